"""Makes the images of guiders, batch by batch. If one guider fails, the others still run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance

from autolora_eval._devices import free_memory, is_out_of_memory, require_gpu
from autolora_eval._errors import AutoLoRAEvalError, release_frames
from autolora_eval._progress import Advance, quiet_libraries
from autolora_eval.config.plan import Cell
from autolora_eval.generation.dataset import ImageDataset, background_writer
from autolora_eval.generation.diffusion_pipeline import CANARY, LoraPipeline, Sample
from autolora_eval.generation.model_on_device import ModelOnDevice
from autolora_eval.generation.sampling_loop import (
    UnusableImageError,
    UnusablePredictionError,
    failure_reason,
)
from autolora_eval.guidance.method import GuiderMethod, Method
from autolora_eval.runs.images import MADE_ALONE, SECONDS
from autolora_eval.runs.manifest import ImageJob

# A drift is a difference of this many times the difference between two unchanged runs.
_MARGIN = 8.0
# Two images of different batches are the same up to this part of their largest latent.
_SAME = 1e-3
_OTHER_PROMPT = "a coal mine"
# Enough for a guider that acts only in an interval of the steps.
_TRIAL_STEPS = 5
Todo = tuple[ImageDataset, Sequence[ImageJob]]


class GuiderFailedError(AutoLoRAEvalError):
    """A guider made an unusable batch. No image of that batch was written.

    Args:
        message: for the user.
        reasons: what is wrong with images of the batch, by `file_name`.
    """

    def __init__(self, message: str, reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})


class GuidedModel:
    """A loaded model, with which guiders make images."""

    pipeline: LoraPipeline
    _drift_check: ModelDriftCheck | None = None

    def __init__(self, here: ModelOnDevice) -> None:
        self._here = here
        self._batch_sizes: dict[str, int] = {}  # of third-party guiders, by cell
        self._load()

    def make(self, todo: Sequence[Todo], advance: Advance) -> list[AutoLoRAEvalError]:
        """Make the missing images of some cells. Each batch is written while the next is made.

        Args:
            todo: the cells, each with its missing images.
            advance: called with the number of images that are done.

        Returns:
            One error for each cell that could not be finished.

        Raises:
            AutoLoRAEvalError: if a built-in method fails, or a guider changed library code, which
                loading the model again cannot undo. Finished images are kept.
        """
        third_party = any(dataset.cell.method.definition.code for dataset, _ in todo)
        if third_party and self._drift_check is None:
            self._drift_check = ModelDriftCheck(self._sample_fixed_noise)
        self._encode_prompts(todo)
        failures: list[AutoLoRAEvalError] = []
        for dataset, jobs in todo:
            try:
                self._fill(dataset, jobs, advance)
                dataset.record_failures({})
            except GuiderFailedError as error:
                dataset.record_failures(error.reasons)
                release_frames(error)
                failures.append(error)
                advance(len(dataset.missing(jobs)))
                if self._has_drifted():
                    self._reload(error)
                    self._encode_prompts(todo)
        return failures

    def _encode_prompts(self, todo: Sequence[Todo], size: int | None = None) -> None:
        """Encode every prompt for batches of one size; then no text encoder is needed."""
        size = size or self._here.batch_size
        with quiet_libraries():
            for dataset, jobs in todo:
                cell = dataset.cell
                self.pipeline.set_lora_scales(cell.model.spec.lora_scales)
                pairs = dict.fromkeys((job.prompt, cell.negative_prompt(job)) for job in jobs)
                for prompt, null in pairs:
                    copies = [prompt] * size, [null] * size
                    self.pipeline.encode(*copies)
                    self.pipeline.base_inputs(*copies)
        self.pipeline.release_text_encoders()

    def _fill(self, dataset: ImageDataset, jobs: Sequence[ImageJob], advance: Advance) -> None:
        cell = dataset.cell
        size = self._batch_size(cell) if cell.method.definition.code else self._here.batch_size
        alone = {MADE_ALONE: True} if size < self._here.batch_size else {}
        if alone:
            self._encode_prompts([(dataset, jobs)], size)
        with background_writer(dataset, advance) as write:
            for start in range(0, len(jobs), size):
                batch = jobs[start : start + size]
                started = time.perf_counter()
                with quiet_libraries():
                    sample = sample_batch(self.pipeline, cell, batch, size)
                # A short batch is filled up, so it takes as long as a full one.
                seconds = {SECONDS: round((time.perf_counter() - started) / size, 4), **alone}
                if cell.method.definition.code:
                    self._require_same_model(cell)
                write(batch, sample.images, sample.nfe, [seconds] * len(batch))

    def _batch_size(self, cell: Cell) -> int:
        """Return the size of the batches of a third-party guider: 1 if it mixes their images.

        Raises:
            GuiderFailedError: if it does not make an image of a batch of 1 again.
        """
        if cell.id not in self._batch_sizes:
            found = 0
            for size in dict.fromkeys((self._here.batch_size, 1)):
                if self._repeats_an_image(cell, min(size, 2)):
                    found = size
                    break
            self._batch_sizes[cell.id] = found
            self.pipeline.release_text_encoders()
        if not self._batch_sizes[cell.id]:
            name = cell.method.definition.name
            raise GuiderFailedError(
                f"cell '{cell.id}': the guider '{name}' makes different images from the same "
                "prompt and seed. Keep no state on the class or in the module, and seed your own "
                f"generators at step 0. To find the fault, run: autolora-eval check {name}."
            )
        return self._batch_sizes[cell.id]

    def _repeats_an_image(self, cell: Cell, size: int) -> bool:
        """Return whether a guider makes the same image beside another and beside its copy."""
        rule = cell.method.definition
        assert isinstance(rule, GuiderMethod)
        gap, largest = self._repeat(cell, size, lambda: rule.build(cell.parameters))
        if gap <= _SAME * largest:
            return True
        self._require_same_model(cell)
        # A row may be rounded by its position on some devices, also for diffusers' own guider.
        plain = partial(ClassifierFreeGuidance, guidance_scale=cell.model.spec.guidance_scale)
        return gap <= _MARGIN * self._repeat(cell, size, plain)[0]

    def _repeat(
        self, cell: Cell, size: int, build: Callable[[], BaseGuidance]
    ) -> tuple[float, float]:
        """Make an image in a few steps: beside another one, after it, and beside a copy of itself.

        Returns:
            The largest difference between the first and its copies, and the largest latent.
        """
        one, other = (CANARY, 0), (_OTHER_PROMPT, 1)
        steps = min(_TRIAL_STEPS, cell.model.spec.num_inference_steps)
        made = []
        for batch in ([other, one][-size:], [other] * size, [one] * size):
            prompts, seeds = zip(*batch, strict=True)
            self.pipeline.set_lora_scales(cell.model.spec.lora_scales)
            with quiet_libraries(), _reported(cell):
                latents: torch.Tensor = self.pipeline.sample(
                    prompts,
                    seeds,
                    build(),
                    num_inference_steps=steps,
                    size=cell.model.size,
                    output="latents",
                )
            made.append(latents)
        return _max_difference(made[0][-1:], made[2]), float(made[2].abs().max())

    def _has_drifted(self) -> bool:
        check = self._drift_check
        return check is not None and check.has_drifted(self._sample_fixed_noise)

    def _require_same_model(self, cell: Cell) -> None:
        if self._has_drifted():
            name = cell.method.definition.name
            raise GuiderFailedError(
                f"cell '{cell.id}': the guider '{name}' changed the model: its weights, or code "
                "that it runs. Later images would come from a different model. To see what "
                f"changed, run: autolora-eval check {name}."
            )

    def _load(self) -> None:
        here = self._here
        how = here.batch_size, here.guidance_batching
        with quiet_libraries():
            self.pipeline = LoraPipeline.load(here.model, *here.torch_place(), *how)

    def _sample_fixed_noise(self) -> torch.Tensor:
        model = self._here.model
        with quiet_libraries():
            return self.pipeline.unguided_latents(model.size, model.spec.lora_scales)

    def _reload(self, error: GuiderFailedError) -> None:
        del self.pipeline  # Free its memory before the model is loaded again.
        free_memory()
        self._load()
        if self._has_drifted():
            raise AutoLoRAEvalError(
                f"{error} It also changed library code, so this process cannot continue. "
                "Finished images are kept: fix or remove the method and run the same command "
                "again."
            ) from error


def sample_batch(
    pipeline: LoraPipeline, cell: Cell, jobs: Sequence[ImageJob], batch_size: int
) -> Sample:
    """Make the images of at most `batch_size` jobs.

    A short batch is filled up with copies of its last job, which are dropped afterwards: results
    differ slightly between batch sizes.

    Raises:
        GuiderFailedError: if a third-party guider fails or returns an unusable prediction, or an
            image shows nothing.
        AutoLoRAEvalError: if a built-in guider does, or its NFE is not the declared one.
    """
    rule = cell.method.definition
    assert isinstance(rule, GuiderMethod)
    pipeline.set_lora_scales(cell.model.spec.lora_scales)
    filled = [*jobs, *[jobs[-1]] * (batch_size - len(jobs))]
    try:
        with _reported(cell):
            sample: Sample = pipeline.sample(
                [job.prompt for job in filled],
                [job.seed for job in filled],
                rule.build(cell.parameters),
                num_inference_steps=cell.model.spec.num_inference_steps,
                size=cell.model.size,
                negative_prompts=[cell.negative_prompt(job) for job in filled],
            )
    except UnusableImageError as error:
        raise _shows_nothing(cell, filled, pipeline.denoiser, error) from error
    if rule.nfe_per_step is not None and sample.nfe != cell.nfe:
        raise _other_nfe(cell, rule, sample.nfe)
    return Sample(sample.images[: len(jobs)], sample.nfe)


@contextmanager
def _reported(cell: Cell) -> Iterator[None]:
    """Turn an error of a guider into one for the user; not one of an unusable image."""
    rule = cell.method.definition
    try:
        yield
    except UnusableImageError:
        raise
    except UnusablePredictionError as error:
        raise _unusable(cell, rule, error) from error
    except (Exception, SystemExit) as error:
        require_gpu(f"the guider '{rule.name}'", error)
        if not rule.code or isinstance(error, AutoLoRAEvalError) or is_out_of_memory(error):
            raise
        raise GuiderFailedError(
            f"cell '{cell.id}': the guider '{rule.name}' failed: {failure_reason(error)}. To find "
            f"the fault, run: autolora-eval check {rule.name}. For the traceback: "
            "autolora-eval --debug …"
        ) from error


def _other_nfe(cell: Cell, rule: GuiderMethod, nfe: int) -> AutoLoRAEvalError:
    message = (
        f"cell '{cell.id}': an image took {nfe} function evaluations, but the plan says "
        f"{cell.nfe}. The cost in the table would be wrong. If the model was downloaded only "
        "now, run the same command again: its scheduler is known by now."
    )
    if rule.code:
        return GuiderFailedError(f"{message} Or '{rule.name}' declares a wrong NFE.")
    return AutoLoRAEvalError(message)


def _unusable(cell: Cell, rule: Method, error: UnusablePredictionError) -> AutoLoRAEvalError:
    if rule.code:
        return GuiderFailedError(
            f"cell '{cell.id}': the guider '{rule.name}' failed: {error}. To find the fault, "
            f"run: autolora-eval check {rule.name}."
        )
    return AutoLoRAEvalError(
        f"cell '{cell.id}': {error}. If the model runs in float16, use 'dtype: bfloat16' or "
        "'dtype: float32', which have a larger range."
    )


def _shows_nothing(
    cell: Cell, jobs: Sequence[ImageJob], denoiser: torch.nn.Module, error: UnusableImageError
) -> GuiderFailedError:
    advice = "Check its scales, the LoRA and the VAE."
    if denoiser.dtype == torch.float16:
        advice = (
            "The VAE may overflow in float16: take another, such as "
            "madebyollin/sdxl-vae-fp16-fix for SDXL, or 'dtype: bfloat16' or 'dtype: float32'."
        )
    found = {jobs[index]: problem for index, problem in error.problems.items()}
    first = next(iter(found))
    more = "" if len(found) == 1 else f", and {len(found) - 1} more of its batch like it"
    return GuiderFailedError(
        f"cell '{cell.id}': the image of '{first.prompt:.60}', seed {first.seed}, {error}{more}. "
        f"failed_images/ lists each. The cell was stopped; images that were made before are kept. "
        f"{advice}",
        {job.file: f"the image {problem}" for job, problem in found.items()},
    )


class ModelDriftCheck:
    """Finds out whether third-party code has changed a model.

    This protects the images of one method from another: after each batch of a third-party guider
    the model must still make the same latents of the same noise. If it does not, the method fails
    and the pipeline is loaded again.

    Args:
        sample: makes latents of a fixed noise with the model, without a third-party guider.
    """

    def __init__(self, sample: Callable[[], torch.Tensor]) -> None:
        self._expected = sample()
        # Some devices do not repeat a pass to the bit. On a CPU this tolerance is 0.
        self._tolerance = _MARGIN * _max_difference(sample(), self._expected)

    def has_drifted(self, sample: Callable[[], torch.Tensor]) -> bool:
        """Return `True` if the model makes other latents than before, or fails to make any.

        An error about memory is raised, since it says nothing about the model.
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
    # On the CPU: Apple's GPU has no float64.
    return float((a.cpu().double() - b.cpu().double()).abs().max())
