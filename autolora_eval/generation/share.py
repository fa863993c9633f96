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
from autolora_eval.config.plan import Plan
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.generation.model_on_device import ModelOnDevice
from autolora_eval.generation.stage import CellWork, GenerationResult, describe_pipeline
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
    """What became of a share."""

    cell: str
    rows: list[Json]
    failures: dict[str, str]  # why an image could not be made, by `file_name`
    error: str | None  # why a guider could not go on
    pipeline: Json  # what the manifest records of it


Spread = Callable[[type["ShareMaker"], tuple[str, ...], list[Share]], Iterator[Made]]


def make_elsewhere(
    spread: Spread,
    here: ModelOnDevice,
    work: Sequence[CellWork],
    result: GenerationResult,
    advance: Advance,
) -> list[AutoLoRAEvalError]:
    """Do as a `Runner`, but have the images made elsewhere, and record them as they arrive.

    Args:
        spread: yields what a `ShareMaker` made of each share, in any order. The arguments are the
            class, those of its constructor after the plan and the folder, and the shares.
        here: the model.
        work: its cells, all of guiders or all of samplers.
        result: receives what is learnt of the pipeline.
        advance: advances by one for each image.
    """
    from autolora_eval.generation.sampler_backend import SampledCell

    size = 1 if work[0].kind == "sampler" else here.batch_size
    cells = {cell.dataset.cell.id: SampledCell(cell.dataset, cell.jobs) for cell in work}
    errors: dict[str, str] = {}
    for cell in work:
        cell.dataset.record([])
    shares = [
        Share(cell.dataset.cell.id, cell.dataset.settings_key, cell.jobs[n : n + size])
        for cell in sorted(work, key=lambda cell: cell.dataset.cell.method.name)
        for n in range(0, len(cell.jobs), size)
    ]
    maker = image_libraries(), here.model.name, here.device, here.dtype
    for made in spread(ShareMaker, maker, shares):
        cells[made.cell].dataset.record(made.rows)
        cells[made.cell].failures |= made.failures
        result.models[here.model.name] |= made.pipeline
        if made.error is not None:
            errors.setdefault(made.cell, made.error)
        advance(len(made.rows) + len(made.failures))
    for done in cells.values():
        files = [job.file for job in done.jobs if job.file in done.failures]
        done.failures = {file: done.failures[file] for file in files}
        done.dataset.record_failures(done.failures)
    if work[0].kind == "sampler":
        return [failure for done in cells.values() if (failure := done.failure()) is not None]
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

    def made(self, error: str | None, pipeline: Json) -> Made:
        """Return what is sent."""
        return Made(self.cell.id, list(self.rows.values()), self.failed, error, pipeline)


class ShareMaker:
    """Makes shares of one model's images with the model loaded once.

    Args:
        plan: the plan of the run.
        folder: the run folder, or one whose files are brought there.
        libraries: the versions of libraries that this machine must have.
        model: the name of the model.
        device: the torch device.
        dtype: the precision.
    """

    def __init__(
        self, plan: Plan, folder: RunFolder, libraries: str, model: str, device: str, dtype: str
    ) -> None:
        if libraries != image_libraries():
            raise AutoLoRAEvalError(
                f"the machine '{platform.node()}' has {image_libraries()}, and the one that runs "
                f"the command {libraries}. Use the same packages on all machines."
            )
        self._folder = folder
        self._here = ModelOnDevice.of(plan, plan.benchmark.models[model], device, dtype)
        self._cells = {cell.id: cell for cell in self._here.cells}
        self._guided: GuidedModel | None = None
        self._sampled: SampledCell | None = None
        self._pipeline: SamplerPipeline | None = None

    def __call__(self, share: Share) -> Made:
        """Make the images of a share.

        Raises:
            AutoLoRAEvalError: as `generate`, or if this machine has other files of the model.
        """
        cell = self._cells[share.cell]
        if content_hash(self._here.settings(cell)) != share.settings_key:
            raise AutoLoRAEvalError(
                f"cell '{cell.id}': the machine '{platform.node()}' has other files of the model "
                f"'{cell.model.name}' or of the method, or another benchmark, than the one "
                "that runs the command. Use the same files on all machines."
            )
        dataset = _UnlistedImages(self._folder, cell, share.settings_key)
        make = self._sample if cell.method.kind == "sampler" else self._guide
        try:
            return make(dataset, share.jobs)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise self._here.out_of_memory(cell.method.kind) from None

    def _guide(self, dataset: _UnlistedImages, jobs: Sequence[ImageJob]) -> Made:
        from autolora_eval.generation.guider_backend import GuidedModel

        if self._guided is None:
            self._guided = GuidedModel(self._here)
        failures = self._guided.make([(dataset, jobs)], _nobody_watches)
        error = str(failures[0]) if failures else None
        return dataset.made(error, describe_pipeline(self._guided.pipeline))

    def _sample(self, dataset: _UnlistedImages, jobs: Sequence[ImageJob]) -> Made:
        from autolora_eval.generation.sampler_api import SamplerPipeline
        from autolora_eval.generation.sampler_backend import SampledCell

        cell, last = dataset.cell, self._sampled
        if self._pipeline is None or last is None or last.dataset.cell.method is not cell.method:
            self._pipeline = None  # that of the last sampler
            free_memory()
            self._pipeline = SamplerPipeline()
        one = last if last is not None and last.dataset.cell is cell else SampledCell(dataset, jobs)
        one.dataset, one.jobs, one.failures = dataset, jobs, {}
        one.fill(self._here, self._pipeline, _nobody_watches)
        release_frames(one.first_error)
        self._sampled = one
        return dataset.made(None, describe_pipeline(self._pipeline.loaded))


def _nobody_watches(n: int, note: str = "") -> None:
    """Stand for the progress, which advances where the images are recorded."""
