"""Makes the images of samplers one by one, and records why others failed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from autolora_eval._devices import is_out_of_memory, require_gpu
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._progress import Advance, quiet_libraries
from autolora_eval.generation.dataset import ImageDataset, background_writer
from autolora_eval.generation.sampler_api import SampledImage, SamplerModel, SamplerPipeline
from autolora_eval.generation.sampling_loop import (
    REASON_LENGTH,
    UnusableImageError,
    failure_reason,
    global_seed,
)
from autolora_eval.guidance.method import SamplerMethod
from autolora_eval.runs.images import SECONDS, single_colour
from autolora_eval.runs.manifest import ImageJob

# If this many first images of a cell fail, the others are not tried: each may take a minute.
GIVE_UP_AFTER = 8
_NOT_TRIED = "not tried"


@dataclass
class SampledCell:
    """The images of one cell that a sampler makes.

    Attributes:
        jobs: the jobs whose image is missing.
        failures: why an image could not be made, by `file_name`.
    """

    dataset: ImageDataset
    jobs: Sequence[ImageJob]
    failures: dict[str, str] = field(default_factory=dict)
    first_error: BaseException | None = None
    # A worker of Ray fills a cell in several shares, with one instance of a sampler's class.
    _sampler: Callable[..., Any] | None = None
    _n_tried: int = 0

    def fill(self, shared: SamplerPipeline, advance: Advance) -> None:
        """Make the missing images with the pipeline that all cells of the sampler share."""
        cell = self.dataset.cell
        model = SamplerModel(cell.model, shared)
        with background_writer(self.dataset, advance) as write:
            for n, job in enumerate(self.jobs):
                all_failed = len(self.failures) >= self._n_tried
                if self._n_tried == GIVE_UP_AFTER and all_failed and self.dataset.is_empty:
                    self._give_up(self.jobs[n:])
                    advance(len(self.jobs) - n)
                    break
                self._n_tried += 1
                try:
                    assert isinstance(cell.method.definition, SamplerMethod)
                    prepare = cell.method.definition.prepare
                    self._sampler = self._sampler or prepare(cell.parameters)
                    image, nfe, seconds = self._sample(self._sampler, job, model, shared)
                except AutoLoRAEvalError:
                    raise  # the model cannot be loaded: no sampler can run
                except (Exception, SystemExit) as error:  # exit(0) would end the run as a success
                    require_gpu(f"the sampler '{cell.method.definition.name}'", error)
                    if is_out_of_memory(error):
                        raise
                    self.first_error = self.first_error or error
                    self.failures[job.file] = failure_reason(error)
                    advance(1)
                else:
                    write([job], [image], nfe, [{SECONDS: seconds}])
        self.dataset.record_failures(self.failures)

    def failure(self) -> AutoLoRAEvalError | None:
        """Return the error of a cell without a single image; None if it has one."""
        if not self.failures or not self.dataset.is_empty:
            return None
        cell = self.dataset.cell
        n_tried = sum(not reason.startswith(_NOT_TRIED) for reason in self.failures.values())
        error = AutoLoRAEvalError(
            f"cell '{cell.id}': the sampler '{cell.method.definition.name}' failed on all "
            f"{n_tried} images. First failure: {next(iter(self.failures.values()))}."
        )
        error.__cause__ = self.first_error
        return error

    def _sample(
        self,
        sampler: Callable[..., Any],
        job: ImageJob,
        model: SamplerModel,
        shared: SamplerPipeline,
    ) -> tuple[Image.Image, int | None, float]:
        """Return an image, its NFE and the seconds it took."""
        shared.n_rows = 0
        model.negative_prompt = self.dataset.cell.negative_prompt(job)
        started = time.perf_counter()
        scales = self.dataset.cell.model.spec.lora_scales
        with (
            global_seed(job.seed),
            shared.restored(scales),
            quiet_libraries(),
            _refused_nan(),
        ):
            result = sampler(job.prompt, job.seed, model)
        image, nfe = check_image(result, model.size)
        if nfe is None and (shared.n_rows or shared.loaded is not None):
            nfe = shared.n_rows
        return image, nfe, round(time.perf_counter() - started, 4)

    def _give_up(self, jobs: Sequence[ImageJob]) -> None:
        first = next(iter(self.failures.values()))
        reason = f"{_NOT_TRIED} after {GIVE_UP_AFTER} failures in a row, the first: {first}"
        self.failures |= dict.fromkeys((job.file for job in jobs), reason[:REASON_LENGTH])


def check_image(result: object, size: tuple[int, int]) -> tuple[Image.Image, int | None]:
    """Return what a sampler returned as an RGB image, and its NFE if the sampler reports it.

    Args:
        result: a PIL image, uint8 of shape [H, W, 3], or a `SampledImage` with one of them.
        size: (width, height) that the image must have, in pixels.

    Raises:
        UnusableImageError: if it is anything else, or the image has a single colour.
    """
    image: object = result
    nfe: Any = None
    if isinstance(result, SampledImage):
        image, nfe = result.image, result.nfe
    if nfe is not None and (isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 0):
        raise UnusableImageError(f"reported nfe={nfe!r:.40}: expected a whole number from 0")
    if isinstance(image, np.ndarray):
        image = _image_of_array(image)
    if not isinstance(image, Image.Image):
        raise UnusableImageError(
            f"returned {type(image).__name__}: expected a PIL image or uint8 [H, W, 3]"
        )
    if image.size != size:
        got, expected = (f"{width}×{height}" for width, height in (image.size, size))
        raise UnusableImageError(f"returned an image of {got} pixels: expected {expected}")
    image = image.convert("RGB")
    if colour := single_colour(image):
        raise UnusableImageError(
            "returned a single colour, RGB {} {} {} (a safety checker, or a VAE that overflows "
            "in float16)".format(*colour)
        )
    return image, nfe


def _image_of_array(array: npt.NDArray[Any]) -> Image.Image:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UnusableImageError("returned an array with NaN or infinite values")
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UnusableImageError(
            f"returned an array of {array.dtype} {list(array.shape)}: expected uint8 [H, W, 3]"
        )
    return Image.fromarray(array)


@contextmanager
def _refused_nan() -> Iterator[None]:
    """Raise if a pipeline turns NaN into black pixels, of which NumPy only warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "invalid value encountered in cast", RuntimeWarning)
        yield
