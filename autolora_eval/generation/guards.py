"""Guards of a run: unusable predictions, a changed model, and images that show nothing.

`autolora-eval check` tests the same and more on a tiny model. A run tests every batch, because
the image of a broken guider, or of a model that a guider has changed, looks like any other image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.guiders import BaseGuidance
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from autolora_eval._devices import is_out_of_memory
from autolora_eval.runs.images import single_colour

# A drift is a difference this many times that between two runs of the unchanged model.
_MARGIN = 8.0


class UnusablePredictionError(Exception):
    """The guider returned an unusable prediction."""


class UnusableImageError(Exception):
    """An image cannot be measured: it is of another kind or size, or it shows nothing.

    Args:
        problem: what is wrong with it.
        problems: of a batch, what is wrong with each such image, by its place.
    """

    def __init__(self, problem: str, problems: Mapping[int, str] | None = None) -> None:
        super().__init__(problem)
        self.problems = problems or {0: problem}


def checked_images(decoded: npt.NDArray[np.floating[Any]]) -> list[Image.Image]:
    """Return decoded images as RGB.

    Args:
        decoded: [B, H, W, 3] from 0 to 1, as a pipeline returns them.

    Raises:
        UnusableImageError: if an image has NaN, which a conversion to 8 bits would make black, or
            a single colour.
    """
    images: list[Image.Image] = []
    problems: dict[int, str] = {}
    for index, values in enumerate(decoded):
        if not np.isfinite(values).all():
            problems[index] = "has NaN after decoding"
            continue
        images += VaeImageProcessor.numpy_to_pil(values)
        if colour := single_colour(images[-1]):
            problems[index] = "has a single colour, RGB {} {} {}".format(*colour)
    if problems:
        raise UnusableImageError(next(iter(problems.values())), problems)
    return images


class PredictionCheck:
    """Replaces a guider's `forward` and checks what it returns.

    Args:
        guider: A fresh guider, which is not used again.
    """

    def __init__(self, guider: BaseGuidance) -> None:
        self._forward = guider.forward
        self._finite: list[torch.Tensor] = []
        guider.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Combine the denoiser's predictions by the guider.

        Raises:
            UnusablePredictionError: if `forward` returned no tensor, or one of another shape.
        """
        output = self._forward(*args, **kwargs)
        prediction = getattr(output, "pred", None)
        # Pipelines read output[0]. If a guider returns a bare tensor, that is its first image.
        if not isinstance(prediction, torch.Tensor) or output[0] is not prediction:
            raise UnusablePredictionError(
                f"forward returned a {type(output).__name__}: expected GuiderOutput(pred=…)"
            )
        parts = [part for part in (*args, *kwargs.values()) if isinstance(part, torch.Tensor)]
        if parts and prediction.shape != parts[0].shape:
            got, wanted = list(prediction.shape), list(parts[0].shape)
            raise UnusablePredictionError(
                f"it returned a prediction of shape {got} for predictions of shape {wanted}"
            )
        self._finite.append(prediction.isfinite().all())
        return output

    def require_finite(self) -> None:
        """Check the predictions of all steps.

        They are checked together at the end, because each check on a GPU waits for all kernels
        in flight.

        Raises:
            UnusablePredictionError: if a prediction is NaN or infinite.
        """
        steps = [number for number, finite in enumerate(self._finite) if not finite]
        if steps:
            raise UnusablePredictionError(
                f"the prediction is NaN or infinite at step {steps[0]} of {len(self._finite)}"
            )


class ModelDriftCheck:
    """Tells whether third-party code has changed a model, by what the model makes of one noise.

    This is what protects the images of one method from another: after each batch of a
    third-party guider the model must still make the same latents. If it does not, the method
    fails and the pipeline is loaded again.

    Args:
        sample: Makes latents of a fixed noise with the model, without a third-party guider.
    """

    def __init__(self, sample: Callable[[], torch.Tensor]) -> None:
        self._expected = sample()
        # Some devices do not repeat a pass to the bit. On a CPU this tolerance is 0.
        self._tolerance = _MARGIN * _max_difference(sample(), self._expected)

    def has_drifted(self, sample: Callable[[], torch.Tensor]) -> bool:
        """Return `True` if the model makes other latents than before, or fails to make any.

        A device without memory for the pass says nothing of the model: that error is raised.
        """
        try:
            latents = sample()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return True
        # Written so that NaN counts as a drift.
        return not _max_difference(latents, self._expected) <= self._tolerance


def _max_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max())
