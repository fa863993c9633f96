"""What is asked of a guider while it runs: predictions that can be used, a model left as it was.

The laws (`autolora-eval check`) try the same and more on a tiny model. A run asks it of every
batch, since an image of a broken guider, or of a model that one has changed, looks like any other.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.guiders import BaseGuidance

# How much more than from one pass to the next of an unchanged model; that is 0 on a CPU.
_MARGIN = 8.0


class UnusablePredictionError(Exception):
    """What a guider returned is no prediction that a scheduler could go on with."""


class PredictionCheck:
    """Stands in place of a guider's `forward`, and looks at what that returns.

    Args:
        guider: a fresh guider, which is not used again.
    """

    def __init__(self, guider: BaseGuidance) -> None:
        self._forward = guider.forward
        self._finite: list[torch.Tensor] = []
        guider.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what the guider makes of the denoiser's predictions.

        Raises:
            UnusablePredictionError: the pipelines would take it for something that it is not.
        """
        output = self._forward(*args, **kwargs)
        prediction = getattr(output, "pred", None)
        # The pipelines take output[0]: of a tensor that is its first image.
        if not isinstance(prediction, torch.Tensor) or output[0] is not prediction:
            raise UnusablePredictionError(
                f"forward returned a {type(output).__name__}: expected GuiderOutput(pred=…)"
            )
        parts = [part for part in (*args, *kwargs.values()) if isinstance(part, torch.Tensor)]
        if parts and prediction.shape != parts[0].shape:
            got, wanted = list(prediction.shape), list(parts[0].shape)
            raise UnusablePredictionError(
                f"it made a prediction of shape {got} out of those of shape {wanted}"
            )
        self._finite.append(prediction.isfinite().all())
        return output

    def refuse_what_is_not_finite(self) -> None:
        """Look at all steps at once: on a GPU each look would wait for all that is under way.

        Raises:
            UnusablePredictionError: a prediction was NaN or infinite.
        """
        steps = [number for number, finite in enumerate(self._finite) if not finite]
        if steps:
            raise UnusablePredictionError(
                f"the prediction is NaN or infinite at step {steps[0]} of {len(self._finite)}"
            )


class Canary:
    """What a model makes of one noise, before and after somebody else's guider.

    Args:
        first: latents that the model made.
        second: the same made again, as far as it makes the same.
    """

    def __init__(self, first: torch.Tensor, second: torch.Tensor) -> None:
        self._latents = first
        self._tolerance = _MARGIN * _gap(first, second)

    def is_well(self, latents: torch.Tensor) -> bool:
        """Return whether these latents are of the same model still."""
        return _gap(latents, self._latents) <= self._tolerance


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max())
