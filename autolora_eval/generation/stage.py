"""The stage that makes the images of a run: from a plan to one image dataset per cell.

It resumes where it was stopped: an image that is on disk with the settings of the plan is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autolora_eval._devices import (
    choose_device,
    choose_dtype,
    free_memory,
    image_libraries,
    is_out_of_memory,
    uncollected,
)
from autolora_eval._errors import AutoLoRAEvalError, release_frames
from autolora_eval._files import Json, content_hash, require_space
from autolora_eval._progress import Advance, Progress
from autolora_eval.config.inputs import MethodKind
from autolora_eval.config.plan import Cell, Plan, image_bytes
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.generation.model_on_device import ModelOnDevice
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import ImageJob
from autolora_eval.runs.records import ImageSetRecord

# A run with nothing to generate imports neither torch nor diffusers: these take seconds.
if TYPE_CHECKING:
    from autolora_eval.generation.image_import import ImageImport


@dataclass
class GenerationResult:
    """The results of the stage, for the manifest.

    Attributes:
        models: the identity and the settings of each model, by name.
        image_sets: the import report of each imported image set, by cell.
        settings_keys: the hash of each cell's settings, by cell.
        settings: all that decides the images of a cell made here, by its hash.
        libraries: versions of the libraries that made or make the images.
        made: the number of images made now.
        reused: the number of images that were there already.
    """

    models: dict[str, Json] = field(default_factory=dict)
    image_sets: dict[str, ImageSetRecord] = field(default_factory=dict)
    settings_keys: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Json] = field(default_factory=dict)
    libraries: set[str] = field(default_factory=set)
    made: int = 0
    reused: int = 0


def generate(
    plan: Plan,
    folder: RunFolder,
    progress: Progress,
    before_first_image: Callable[[GenerationResult], None] = lambda result: None,
    elsewhere: Runner | None = None,
) -> GenerationResult:
    """Make every image of the plan that is missing.

    A model is loaded once for all of its cells and LoRA scales, and only if an image is missing.
    Imported sets come first and samplers second: both fail early, before hours of GPU time.

    Args:
        plan: the cells, prompts and seeds.
        folder: the run folder.
        progress: advances by one for each image.
        before_first_image: called with the models and settings before the first image is made,
            and once more after image sets were imported.
        elsewhere: makes the images of a model in other processes. Default: they are made here.

    Raises:
        AutoLoRAEvalError: after everything else is made, if a model cannot be loaded for guiders, a
            guider failed, or a sampler made no image of a cell. Finished images are kept.
    """
    # The working folder may change: images are written while third-party code runs.
    folder = RunFolder(folder.path.absolute())
    result = GenerationResult()
    work = list(_missing_work(plan, folder, result))
    before_first_image(result)
    cells = [cell for _, of_model in work for cell in of_model]
    needed = sum(len(cell.jobs) * image_bytes(cell.dataset.cell) for cell in cells)
    failures: list[AutoLoRAEvalError] = []
    with progress.task("Images", plan.n_images) as shown:
        shown(result.reused)
        advance = _watching_the_disk(folder, shown, result.made, needed)
        _import_images(cells, result, advance)
        if result.image_sets:
            before_first_image(result)
        for model, of_model in work:
            for kind, here in (("sampler", _run_samplers), ("guider", _run_guiders)):
                own = [cell for cell in of_model if cell.jobs and cell.kind == kind]
                if own:
                    failures += _run(elsewhere or here, model, own, result, advance)
    for dataset in (cell.dataset for cell in cells if cell.jobs and cell.dataset.made_alone):
        progress.say(
            f"note: cell '{dataset.cell.id}' was made in batches of 1: its guider mixes the "
            f"images of a batch. To see where, run: autolora-eval check "
            f"{dataset.cell.method.definition.name}"
        )
    if failures:
        messages = "\n".join(map(str, failures))
        raise AutoLoRAEvalError(
            f"{messages}\nEverything else finished. Fix the problem and run the same command again."
        ) from failures[0]
    return result


def _watching_the_disk(folder: RunFolder, shown: Advance, total: int, needed: int) -> Advance:
    """Return an `advance` that stops the run before a batch if the disk has no room for the rest.

    The run makes `total` images, which need an estimated `needed` bytes.
    """
    left = total

    def advance(n: int, note: str = "") -> None:
        nonlocal left
        shown(n, note)
        left -= n
        if left > 0:
            require_space(folder.path, needed * left / total)

    advance(0)
    return advance


@dataclass(frozen=True)
class CellWork:
    """The images of a cell on disk, and the jobs whose image is missing."""

    dataset: ImageDataset
    jobs: list[ImageJob]
    image_import: ImageImport | None  # None if they are made here

    @property
    def kind(self) -> MethodKind:
        """The kind of the cell's method."""
        return self.dataset.cell.method.kind


# Makes the missing images of a model's cells, all of guiders or all of samplers. Returns the
# failures of cells.
Runner = Callable[
    [ModelOnDevice, Sequence[CellWork], GenerationResult, Advance], list[AutoLoRAEvalError]
]


def _missing_work(
    plan: Plan, folder: RunFolder, result: GenerationResult
) -> Iterator[tuple[ModelOnDevice, list[CellWork]]]:
    """Yield what the cells of each model lack; note models, settings and counts in the result."""
    device = choose_device(plan.benchmark.spec.device)
    dtype = choose_dtype(plan.benchmark.spec.dtype, device)
    for model in plan.benchmark.models.values():
        here = ModelOnDevice.of(plan, model, device, dtype)
        recorded = {"negative_prompt", "clip_skip", "compile", "channels_last"}
        result.models[model.name] = {
            **here.identities,
            "size": model.size,
            **model.spec.model_dump(include=recorded),
            "guidance_batching": here.guidance_batching,
            "device": device,
            "dtype": dtype,
        }
        yield here, [_cell_work(here, cell, plan, folder, result) for cell in here.cells]


def _cell_work(
    here: ModelOnDevice, cell: Cell, plan: Plan, folder: RunFolder, result: GenerationResult
) -> CellWork:
    image_import = None
    if cell.method.kind == "images":
        from autolora_eval.generation.image_import import ImageImport

        image_import = ImageImport.prepare(cell, plan, folder)
        key = image_import.settings_key
    else:
        settings = here.settings(cell)
        key = content_hash(settings)
        result.settings[key] = settings
    dataset = ImageDataset.open(folder, cell, key)
    jobs = dataset.missing(plan.jobs)
    result.settings_keys[cell.id] = key
    result.reused += len(plan.jobs) - len(jobs)
    result.made += len(jobs)
    result.libraries |= dataset.libraries
    if jobs and image_import is None:
        result.libraries.add(image_libraries())
    return CellWork(dataset, jobs, image_import)


def _import_images(work: Sequence[CellWork], result: GenerationResult, advance: Advance) -> None:
    """Import the sets that are not in the run folder, or whose import report is out of date."""
    for cell in work:
        if cell.image_import is None:
            continue
        failed = cell.dataset.failures()
        jobs = [job for job in cell.jobs if job.file not in failed]
        advance(len(cell.jobs) - len(jobs))
        if jobs or not cell.image_import.is_reported(cell.dataset.run):
            report = cell.image_import.run(cell.dataset, jobs, advance)
            result.image_sets[cell.dataset.cell.id] = report


def _run(
    runner: Runner,
    model: ModelOnDevice,
    work: Sequence[CellWork],
    result: GenerationResult,
    advance: Advance,
) -> list[AutoLoRAEvalError]:
    """Return the failures of cells, or of the model if it ran out of memory; free its memory."""
    try:
        failures = runner(model, work, result, advance)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failures = [model.out_of_memory(work[0].kind)]
    for failure in failures:
        release_frames(failure)
    free_memory()  # not in the except clause, where the exception still refers to the model
    return failures


def _run_samplers(
    here: ModelOnDevice, work: Sequence[CellWork], result: GenerationResult, advance: Advance
) -> list[AutoLoRAEvalError]:
    from autolora_eval.generation.sampler_api import SamplerPipeline
    from autolora_eval.generation.sampler_backend import SampledCell

    cells = [SampledCell(cell.dataset, cell.jobs) for cell in work]
    for method in {cell.dataset.cell.method.name: None for cell in work}:
        pipeline = SamplerPipeline(here.model, *here.torch_place())
        for cell in cells:
            if cell.dataset.cell.method.name == method:
                cell.fill(pipeline, advance)
                release_frames(cell.first_error)
        if pipeline.loaded is not None:
            result.models[here.model.name] |= pipeline.loaded.description()
        del pipeline
        free_memory()
    return [failure for cell in cells if (failure := cell.failure()) is not None]


def _run_guiders(
    here: ModelOnDevice, work: Sequence[CellWork], result: GenerationResult, advance: Advance
) -> list[AutoLoRAEvalError]:
    with uncollected():
        from autolora_eval.generation.guider_backend import GuidedModel

        try:
            model = GuidedModel(here)
        except AutoLoRAEvalError as error:
            return [error]  # the other models still make their images
    result.models[here.model.name] |= model.pipeline.description()
    return model.make([(cell.dataset, cell.jobs) for cell in work], advance)
