"""The missing images of a model, made by several processes, each a share of whole batches.

Every batch has the settings of the local engine, and images do not depend on their neighbours: the
bytes are the same. The other processes write image files only. The process that runs the benchmark
writes the lists of images: a batch that was lost, or made twice, changes nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from autolora_eval._devices import free_memory, image_libraries, is_out_of_memory
from autolora_eval._errors import AutoLoRAEvalError, release_frames
from autolora_eval._files import Json, content_hash
from autolora_eval._progress import Advance
from autolora_eval.config.inputs import ResolvedModel
from autolora_eval.config.plan import Cell, Plan
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.generation.out_of_memory import out_of_memory
from autolora_eval.generation.stage import (
    CellWork,
    GenerationResult,
    describe_pipeline,
    guidance_batching_of,
    image_settings,
    model_identities,
)
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import ImageJob

if TYPE_CHECKING:
    from autolora_eval.generation.guider_backend import GuidedModel
    from autolora_eval.generation.sampler_api import SamplerPipeline
    from autolora_eval.generation.sampler_backend import SampledCell


class Share(NamedTuple):
    """Images of one cell to be made: a batch of a guider, or one image of a sampler."""

    cell: str
    settings_key: str
    jobs: Sequence[ImageJob]


class Made(NamedTuple):
    """What became of a share.

    Attributes:
        cell: the cell.
        rows: the rows of the images that were made.
        failures: why an image could not be made, by `file_name`.
        error: why a guider could not go on; None if it could.
        pipeline: what the manifest records of the pipeline.
    """

    cell: str
    rows: list[Json]
    failures: dict[str, str]
    error: str | None
    pipeline: Json


Spread = Callable[[type["ShareMaker"], tuple[str, ...], list[Share]], Iterator[Made]]


def make_elsewhere(
    spread: Spread,
    model: ResolvedModel,
    work: Sequence[CellWork],
    device: str,
    dtype: str,
    batch_size: int,
    result: GenerationResult,
    advance: Advance,
) -> list[AutoLoRAEvalError]:
    """Have the missing images of one model made, and record them as they arrive.

    Args:
        spread: yields what a `ShareMaker` made of each share, in any order. The arguments are the
            class, those of its constructor after the plan and the folder, and the shares.
        model: the model.
        work: its cells, all of guiders or all of samplers.
        device: the torch device.
        dtype: the precision.
        batch_size: the images of a share.
        result: receives what is learnt of the pipeline.
        advance: advances by one for each image.

    Returns:
        The failures of cells.
    """
    from autolora_eval.generation.sampler_backend import SampledCell

    cells = {cell.dataset.cell.id: SampledCell(cell.dataset, cell.jobs) for cell in work}
    errors: dict[str, str] = {}
    shares = []
    for cell in sorted(work, key=lambda cell: cell.dataset.cell.method.name):
        cell.dataset.record([])
        shares += [
            Share(cell.dataset.cell.id, cell.dataset.settings_key, cell.jobs[n : n + batch_size])
            for n in range(0, len(cell.jobs), batch_size)
        ]
    for made in spread(ShareMaker, (image_libraries(), model.name, device, dtype), shares):
        cells[made.cell].dataset.record(made.rows)
        cells[made.cell].failures |= made.failures
        result.models[model.name] |= made.pipeline
        if made.error is not None:
            errors.setdefault(made.cell, made.error)
        advance(len(made.rows) + len(made.failures))
    for done in cells.values():
        order = [job.file for job in done.jobs if job.file in done.failures]
        done.failures = {file: done.failures[file] for file in order}
        done.dataset.record_failures(done.failures)
    if work[0].kind == "sampler":
        return list(filter(None, (done.failure() for done in cells.values())))
    return [AutoLoRAEvalError(errors[cell]) for cell in cells if cell in errors]


@dataclass
class _UnlistedImages(ImageDataset):
    """Images whose lists another process writes."""

    failed: dict[str, str] = field(default_factory=dict)

    def _write_rows(self) -> None:
        """Keep the rows, to be sent."""

    def record_failures(self, reasons: Mapping[str, str]) -> None:
        """Keep the failures, to be sent."""
        self.failed |= reasons


class ShareMaker:
    """Makes shares of one model's images with the model loaded once.

    Args:
        plan: the plan of the run.
        folder: the run folder, or one whose files are brought there.
        libraries: the versions that the images are to be made with.
        model: the name of the model.
        device: the torch device.
        dtype: the precision.

    Raises:
        AutoLoRAEvalError: if this machine has other versions.
    """

    def __init__(
        self, plan: Plan, folder: RunFolder, libraries: str, model: str, device: str, dtype: str
    ) -> None:
        import torch

        if libraries != image_libraries():
            raise AutoLoRAEvalError(
                f"the machine '{platform.node()}' has {image_libraries()}, and the one that runs "
                f"the command {libraries}. Use the same packages on all machines."
            )
        self.plan, self.folder = plan, folder
        self.model = plan.benchmark.models[model]
        self.cells = {cell.id: cell for cell in plan.cells if cell.model.name == model}
        self.identities = model_identities(self.model, list(self.cells.values()))
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        self._dtype_name = dtype
        self._batching = guidance_batching_of(plan, self.model, device, dtype)
        self._guided: GuidedModel | None = None
        self._sampled: SampledCell | None = None
        self._pipeline: SamplerPipeline | None = None

    def __call__(self, share: Share) -> Made:
        """Make the images of a share.

        Raises:
            AutoLoRAEvalError: as `generate`, or if this machine has other files of the model.
        """
        cell = self.cells[share.cell]
        self._require_same_settings(cell, share)
        dataset = _UnlistedImages(self.folder, cell, share.settings_key)
        make = self._sample if cell.method.kind == "sampler" else self._guide
        try:
            return make(dataset, share.jobs)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            n = self.plan.benchmark.spec.batch_size
            batching = "separate" if cell.method.kind == "sampler" else self._batching
            raise out_of_memory(
                self.model, str(self.device), self._dtype_name, n, batching
            ) from None

    def _require_same_settings(self, cell: Cell, share: Share) -> None:
        batch_size = self.plan.benchmark.spec.batch_size
        where = str(self.device), self._dtype_name, self._batching
        here = image_settings(cell, self.identities, batch_size, *where)
        if content_hash(here) != share.settings_key:
            raise AutoLoRAEvalError(
                f"cell '{cell.id}': the machine '{platform.node()}' has other files of the model "
                f"'{self.model.name}' or of the method, or another benchmark, than the one "
                "that runs the command. Use the same files on all machines."
            )

    def _guide(self, dataset: _UnlistedImages, jobs: Sequence[ImageJob]) -> Made:
        from autolora_eval.generation.guider_backend import GuidedModel

        if self._guided is None:
            size = self.plan.benchmark.spec.batch_size
            self._guided = GuidedModel(self.model, self.device, self.dtype, size, self._batching)
        guided = self._guided
        guided.failed.clear()
        guided.make([(dataset, jobs)], _nobody_watches)
        return Made(
            dataset.cell.id,
            list(dataset.rows.values()),
            dataset.failed,
            str(guided.failed[0]) if guided.failed else None,
            describe_pipeline(guided.pipeline),
        )

    def _sample(self, dataset: _UnlistedImages, jobs: Sequence[ImageJob]) -> Made:
        from autolora_eval.generation.sampler_api import SamplerModel, SamplerPipeline
        from autolora_eval.generation.sampler_backend import SampledCell

        cell = dataset.cell
        if self._sampled is None or self._sampled.dataset.cell.method is not cell.method:
            self._pipeline = None  # that of the last sampler
            free_memory()
            self._pipeline = SamplerPipeline()
        if self._sampled is None or self._sampled.dataset.cell is not cell:
            self._sampled = SampledCell(dataset, jobs)
        assert self._pipeline is not None
        one, shared = self._sampled, self._pipeline
        one.dataset, one.jobs, one.failures = dataset, jobs, {}
        one.fill(SamplerModel(cell.model, self.device, self.dtype, shared), shared, _nobody_watches)
        release_frames(one.first_error)
        pipeline = describe_pipeline(shared.loaded) if shared.is_loaded else {}
        return Made(cell.id, list(dataset.rows.values()), dataset.failed, None, pipeline)


def _nobody_watches(n: int, note: str = "") -> None:
    """Stand for the progress, which advances where the images are recorded."""
