"""The images of guiders, batch by batch. One that fails stops neither the others nor the run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from autolora_eval._devices import free_memory, quiet_libraries
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._progress import Advance
from autolora_eval.config.load import ResolvedModel
from autolora_eval.config.plan import Cell, ImageJob
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.generation.diffusion_pipeline import LoraPipeline, Sample
from autolora_eval.generation.guards import Canary, UnusablePredictionError
from autolora_eval.generation.sampler_backend import failure_reason
from autolora_eval.guidance.method import GuiderMethod
from autolora_eval.runs.images import SECONDS

Todo = tuple[ImageDataset, Sequence[ImageJob]]


class GuiderFailedError(AutoLoRAEvalError):
    """A guider of somebody else made a batch that cannot be used; nothing of it was written."""


@dataclass
class GuidedModel:
    """One model, and the cells that guiders make with it.

    Attributes:
        model: the model.
        device: where it runs.
        dtype: of the pipeline.
        batch_size: images a denoiser pass.
        failed: why cells could not be finished.
        pipeline: it, loaded with its LoRA.
    """

    model: ResolvedModel
    device: torch.device
    dtype: torch.dtype
    batch_size: int
    failed: list[GuiderFailedError] = field(default_factory=list)
    pipeline: LoraPipeline = field(init=False)

    def __post_init__(self) -> None:
        self._load()

    def make(self, todo: Sequence[Todo], advance: Advance) -> None:
        """Make the missing images of all cells, each batch written before the next is begun.

        Args:
            todo: the cells, and what each lacks.
            advance: is told of each image.

        Raises:
            AutoLoRAEvalError: a built-in method failed, or a guider has changed more than the
                model that was loaded for it. What was made is kept.
        """
        canary: Canary | None = None
        for dataset, jobs in todo:
            if dataset.cell.method.definition.code and canary is None:
                canary = Canary(self._latents(), self._latents())
            try:
                self._fill(dataset, jobs, canary, advance)
            except GuiderFailedError as error:
                self.failed.append(error)
                advance(len(dataset.missing(jobs)))
                if canary is not None and not self._is_well(canary):
                    self._load_anew(canary, error)

    def _fill(
        self,
        dataset: ImageDataset,
        jobs: Sequence[ImageJob],
        canary: Canary | None,
        advance: Advance,
    ) -> None:
        cell = dataset.cell
        for start in range(0, len(jobs), self.batch_size):
            batch = jobs[start : start + self.batch_size]
            started = time.perf_counter()
            with quiet_libraries():
                sample = sample_batch(self.pipeline, cell, batch, self.batch_size)
            # A short batch is filled up, so that it takes as long as a whole one.
            took = {SECONDS: round((time.perf_counter() - started) / self.batch_size, 4)}
            if cell.method.definition.code and canary and not self._is_well(canary):
                raise GuiderFailedError(
                    f"cell '{cell.id}': the guider '{cell.method.definition.name}' has changed the "
                    "model (its weights in place, or code that it runs). Later images would be "
                    "of another model. To see the change: autolora-eval check "
                    f"{cell.method.definition.name}."
                )
            dataset.write(batch, sample.images, sample.nfe, metadata=[took] * len(batch))
            advance(len(batch))

    def _load(self) -> None:
        with quiet_libraries():
            self.pipeline = LoraPipeline.load(self.model, self.device, self.dtype)

    def _latents(self) -> torch.Tensor:
        with quiet_libraries():
            return self.pipeline.unguided_latents(self.model.size, self.model.spec.lora.scale)

    def _is_well(self, canary: Canary) -> bool:
        try:
            return canary.is_well(self._latents())
        except (RuntimeError, TypeError, ValueError, AttributeError, UnusablePredictionError):
            return False  # it does not even run

    def _load_anew(self, canary: Canary, error: GuiderFailedError) -> None:
        del self.pipeline
        free_memory()
        self._load()
        if not self._is_well(canary):
            raise AutoLoRAEvalError(
                f"{error} It has changed libraries too, so that nothing more can be made in this "
                "process. What was made is kept: take the method out, or mend it, and run the same "
                "command again."
            ) from error


def sample_batch(
    pipeline: LoraPipeline, cell: Cell, jobs: Sequence[ImageJob], batch_size: int
) -> Sample:
    """Make the images of at most `batch_size` jobs.

    A short batch is filled up with its last job, whose copies are dropped: at one batch size an
    image does not depend on how many others were missing beside it.

    Raises:
        GuiderFailedError: somebody else's guider failed, or made what cannot be used.
        AutoLoRAEvalError: the guider made another number of passes than it declares.
    """
    rule = cell.method.definition
    assert isinstance(rule, GuiderMethod)
    pipeline.set_lora_scale(cell.model.spec.lora.scale)
    filled = [*jobs, *[jobs[-1]] * (batch_size - len(jobs))]
    try:
        sample: Sample = pipeline.sample(
            [job.prompt for job in filled],
            [job.seed for job in filled],
            rule.build(cell.parameters),
            num_inference_steps=cell.model.spec.num_inference_steps,
            size=cell.model.size,
            null_prompt=cell.model.spec.null_prompt,
        )
    except UnusablePredictionError as error:
        raise _unusable(cell, rule, error) from error
    except (Exception, SystemExit) as error:
        if not rule.code or isinstance(error, AutoLoRAEvalError):
            raise
        raise GuiderFailedError(
            f"cell '{cell.id}': the guider '{rule.name}' failed: {failure_reason(error)}. For the "
            "traceback: autolora-eval --debug …"
        ) from error
    if rule.nfe_is_exact and sample.nfe != cell.nfe:
        kind = GuiderFailedError if rule.code else AutoLoRAEvalError
        raise kind(
            f"cell '{cell.id}': the denoiser was called {sample.nfe} times for an image, where "
            f"the plan says {cell.nfe}. The cost in the table would be wrong. A scheduler of "
            "second order calls it twice a step: choose a first-order or multistep one."
            + ("" if not rule.code else f" Or '{rule.name}' declares its passes wrongly.")
        )
    return Sample(sample.images[: len(jobs)], sample.nfe)


def _unusable(cell: Cell, rule: GuiderMethod, error: UnusablePredictionError) -> AutoLoRAEvalError:
    if rule.code:
        return GuiderFailedError(
            f"cell '{cell.id}': the guider '{rule.name}' failed: {error}. What to mend: "
            f"autolora-eval check {rule.name}."
        )
    return AutoLoRAEvalError(
        f"cell '{cell.id}': {error}. Where the model runs in float16, 'dtype: bfloat16' or "
        "'dtype: float32' has the range that it needs."
    )
