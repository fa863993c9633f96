"""Makes the images of guiders, batch by batch. If one guider fails, the others still run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from autolora_eval._devices import free_memory, is_out_of_memory, quiet_libraries
from autolora_eval._errors import AutoLoRAEvalError, release_frames
from autolora_eval._progress import Advance
from autolora_eval.config.inputs import ResolvedModel
from autolora_eval.config.plan import Cell
from autolora_eval.config.schema import GuidanceBatching
from autolora_eval.generation.dataset import ImageDataset, background_writer
from autolora_eval.generation.diffusion_pipeline import LoraPipeline, Sample
from autolora_eval.generation.guards import (
    ModelDriftCheck,
    UnusableImageError,
    UnusablePredictionError,
)
from autolora_eval.generation.sampler_backend import failure_reason
from autolora_eval.guidance.method import GuiderMethod
from autolora_eval.runs.images import SECONDS
from autolora_eval.runs.manifest import ImageJob

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


@dataclass
class GuidedModel:
    """One loaded model, and the cells that guiders make with it.

    Attributes:
        model: The model of the benchmark.
        device: Where the pipeline runs.
        dtype: Data type of the pipeline.
        batch_size: Number of images that are sampled together.
        guidance_batching: Which predictions for an image share a denoiser pass.
        failed: One error for each cell that could not be finished.
        pipeline: The pipeline with its LoRAs.
    """

    model: ResolvedModel
    device: torch.device
    dtype: torch.dtype
    batch_size: int
    guidance_batching: GuidanceBatching = "conditions"
    failed: list[GuiderFailedError] = field(default_factory=list)
    pipeline: LoraPipeline = field(init=False)
    _drift_check: ModelDriftCheck | None = None

    def __post_init__(self) -> None:
        self._load()

    def make(self, todo: Sequence[Todo], advance: Advance) -> None:
        """Make the missing images of all cells; each batch is written beside the next.

        Args:
            todo: The cells, each with its missing images.
            advance: Called with the number of images that are done.

        Raises:
            AutoLoRAEvalError: if a built-in method fails, or a guider changed library code, which
                loading the model again cannot undo. Finished images are kept.
        """
        third_party = any(dataset.cell.method.definition.code for dataset, _ in todo)
        if third_party and self._drift_check is None:
            self._drift_check = ModelDriftCheck(self._sample_fixed_noise)
        self._encode_prompts(todo)
        for dataset, jobs in todo:
            try:
                self._fill(dataset, jobs, advance)
                dataset.record_failures({})
            except GuiderFailedError as error:
                dataset.record_failures(error.reasons)
                release_frames(error)
                self.failed.append(error)
                advance(len(dataset.missing(jobs)))
                if self._has_drifted():
                    self._reload(error)
                    self._encode_prompts(todo)

    def _encode_prompts(self, todo: Sequence[Todo]) -> None:
        """Encode every prompt, after which no text encoder is needed on the device."""
        with quiet_libraries():
            for dataset, jobs in todo:
                cell = dataset.cell
                self.pipeline.set_lora_scales(cell.model.spec.lora_scales)
                for prompt, null in dict.fromkeys(
                    (j.prompt, cell.negative_prompt(j)) for j in jobs
                ):
                    copies = [prompt] * self.batch_size, [null] * self.batch_size
                    self.pipeline.encode(*copies)
                    self.pipeline.base_inputs(*copies)
        self.pipeline.release_text_encoders()

    def _fill(self, dataset: ImageDataset, jobs: Sequence[ImageJob], advance: Advance) -> None:
        cell = dataset.cell
        with background_writer(dataset, advance) as write:
            for start in range(0, len(jobs), self.batch_size):
                batch = jobs[start : start + self.batch_size]
                started = time.perf_counter()
                with quiet_libraries():
                    sample = sample_batch(self.pipeline, cell, batch, self.batch_size)
                # A short batch is filled up, so it takes as long as a full one.
                seconds = {SECONDS: round((time.perf_counter() - started) / self.batch_size, 4)}
                if cell.method.definition.code:
                    self._require_same_model(cell)
                write(batch, sample.images, sample.nfe, [seconds] * len(batch))

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
        with quiet_libraries():
            self.pipeline = LoraPipeline.load(
                self.model, self.device, self.dtype, self.batch_size, self.guidance_batching
            )

    def _sample_fixed_noise(self) -> torch.Tensor:
        with quiet_libraries():
            return self.pipeline.unguided_latents(self.model.size, self.model.spec.lora_scales)

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

    A short batch is filled up with copies of its last job, which are dropped afterwards. Results
    differ slightly between batch sizes, so an image would otherwise depend on how many images
    were missing beside it.

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
        sample: Sample = pipeline.sample(
            [job.prompt for job in filled],
            [job.seed for job in filled],
            rule.build(cell.parameters),
            num_inference_steps=cell.model.spec.num_inference_steps,
            size=cell.model.size,
            negative_prompts=[cell.negative_prompt(job) for job in filled],
        )
    except UnusablePredictionError as error:
        raise _unusable(cell, rule, error) from error
    except UnusableImageError as error:
        raise _shows_nothing(cell, filled, pipeline.denoiser, error) from error
    except (Exception, SystemExit) as error:
        if not rule.code or isinstance(error, AutoLoRAEvalError) or is_out_of_memory(error):
            raise
        raise GuiderFailedError(
            f"cell '{cell.id}': the guider '{rule.name}' failed: {failure_reason(error)}. For the "
            "traceback: autolora-eval --debug …"
        ) from error
    if rule.nfe_is_exact and sample.nfe != cell.nfe:
        kind = GuiderFailedError if rule.code else AutoLoRAEvalError
        raise kind(
            f"cell '{cell.id}': an image took {sample.nfe} function evaluations, but the plan says "
            f"{cell.nfe}. The cost in the table would be wrong. If the model was downloaded only "
            "now, run the same command again: its scheduler is known by now."
            + ("" if not rule.code else f" Or '{rule.name}' declares a wrong NFE.")
        )
    return Sample(sample.images[: len(jobs)], sample.nfe)


def _unusable(cell: Cell, rule: GuiderMethod, error: UnusablePredictionError) -> AutoLoRAEvalError:
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
