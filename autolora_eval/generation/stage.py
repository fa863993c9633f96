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
from autolora_eval.config.gpu_memory import choose_guidance_batching
from autolora_eval.config.inputs import ResolvedModel
from autolora_eval.config.plan import Cell, Plan, image_bytes
from autolora_eval.config.schema import GuidanceBatching
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.generation.image_import import ImageImport
from autolora_eval.generation.out_of_memory import card_bytes, out_of_memory
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import ImageJob
from autolora_eval.runs.records import ImageSetRecord
from autolora_eval.sources.identity import identity, lora_identity
from autolora_eval.sources.model_source import Source

# A run with nothing to generate imports neither torch nor diffusers: these take seconds.
if TYPE_CHECKING:
    from autolora_eval.generation.diffusion_pipeline import LoraPipeline
# Keys of a model that decide its images, beside its files, its size and what tables show.
SAMPLING_KEYS = {
    "negative_prompt",
    "variant",
    "text_encoder_3",
    "scheduler",
    "clip_skip",
    "vae_tiling",
    "compile",
    "channels_last",
}


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
        AutoLoRAEvalError: if a model cannot be loaded; or, after everything else is made, if a
            guider failed or a sampler made no image of a cell. Finished images are kept.
    """
    # The working folder may change: images are written while third-party code runs.
    folder = RunFolder(folder.path.absolute())
    spec = plan.benchmark.spec
    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    result = GenerationResult()
    work = list(_missing_work(plan, folder, device, dtype, result))
    before_first_image(result)
    failures: list[AutoLoRAEvalError] = []
    left = sum(len(cell.jobs) * image_bytes(cell.dataset.cell) for cell in work)
    with progress.task("Generating", plan.n_images) as shown:
        shown(result.reused)
        advance = _watching_the_disk(folder, shown, result.made, left)
        _import_images(work, result, advance)
        if result.image_sets:
            before_first_image(result)
        for model in plan.benchmark.models.values():
            cells = [cell for cell in work if cell.jobs and cell.model == model.name]
            sampled = [cell for cell in cells if cell.kind == "sampler"]
            guided = [cell for cell in cells if cell.kind == "guider"]
            for own, here, batch_size in (
                (sampled, _run_samplers, 1),
                (guided, _run_guiders, spec.batch_size),
            ):
                if not own:
                    continue
                run = elsewhere or here
                try:
                    failures += run(model, own, device, dtype, batch_size, result, advance)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    batching = result.models[model.name]["guidance_batching"]
                    failures.append(out_of_memory(model, device, dtype, batch_size, batching))
                for failure in failures:
                    release_frames(failure)
                free_memory()  # outside of the clause, whose exception holds the model
    if failures:
        messages = "\n".join(map(str, failures))
        raise AutoLoRAEvalError(
            f"{messages}\nEverything else finished. Fix the problem and re-run the same command."
        ) from failures[0]
    return result


def _watching_the_disk(folder: RunFolder, shown: Advance, total: int, needed: int) -> Advance:
    """Return an `advance` that stops the run before a batch if the disk has no room for the rest.

    Args:
        folder: the run folder.
        shown: the `advance` of the progress bar.
        total: the number of images to make.
        needed: their estimated bytes.
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
    """What is to be done for one cell.

    Attributes:
        dataset: the images on disk.
        jobs: the jobs whose image is missing.
        image_import: the images to import; None if they are made here.
    """

    dataset: ImageDataset
    jobs: list[ImageJob]
    image_import: ImageImport | None

    @property
    def kind(self) -> str:
        """The kind of the cell's method."""
        return self.dataset.cell.method.kind

    @property
    def model(self) -> str:
        """The name of the cell's model."""
        return self.dataset.cell.model.name


# Makes the missing images of one model's cells; returns the failures of cells.
Runner = Callable[
    [ResolvedModel, Sequence[CellWork], str, str, int, GenerationResult, Advance],
    list[AutoLoRAEvalError],
]


def _missing_work(
    plan: Plan,
    folder: RunFolder,
    device: str,
    dtype: str,
    result: GenerationResult,
) -> Iterator[CellWork]:
    """Yield what each cell lacks; note models, settings and counts in the result."""
    for model in plan.benchmark.models.values():
        cells = [cell for cell in plan.cells if cell.model.name == model.name]
        identities = model_identities(model, cells)
        spec = plan.benchmark.spec
        batching = guidance_batching_of(plan, model, device, dtype)
        result.models[model.name] = {
            **identities,
            "size": model.size,
            **model.spec.model_dump(
                include={"negative_prompt", "clip_skip", "compile", "channels_last"}
            ),
            "guidance_batching": batching,
            "device": device,
            "dtype": dtype,
        }
        for cell in cells:
            image_import = None
            if cell.method.kind == "images":
                image_import = ImageImport.prepare(cell, plan, folder)
                key = image_import.settings_key
            else:
                settings = image_settings(
                    cell, identities, spec.batch_size, device, dtype, batching
                )
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
            yield CellWork(dataset, jobs, image_import)


def model_identities(model: ResolvedModel, cells: Sequence[Cell]) -> Json:
    """Return the hashes of pipeline and LoRAs; their names only if all images are imported."""
    used = any(cell.method.kind != "images" for cell in cells)
    loras = [
        {
            **(lora_identity(lora.source) if used else _unused(lora.source)),
            "scale": spec.scale,
            "part_of_base": spec.part_of_base,
        }
        for spec, lora in zip(model.spec.loras, model.loras, strict=True)
    ]
    parts = {"pipeline": model.pipeline, "config": model.config, "vae": model.vae}
    found = {
        part: identity(source, model.spec.variant if source is model.pipeline else None)
        if used
        else _unused(source)
        for part, source in parts.items()
        if source is not None
    }
    return {**found, "loras": loras}


def _unused(source: Source) -> Json:
    return {"name": source.name, "kind": source.kind, "used": False}


def guidance_batching_of(
    plan: Plan, model: ResolvedModel, device: str, dtype: str
) -> GuidanceBatching:
    """Return which predictions share a denoiser pass on a device; never `auto`."""
    spec = plan.benchmark.spec
    card = card_bytes(device)
    return choose_guidance_batching(spec.guidance_batching, model, dtype, spec.batch_size, card)


def image_settings(
    cell: Cell,
    model: Json,
    batch_size: int,
    device: str,
    dtype: str,
    guidance_batching: GuidanceBatching = "separate",
) -> Json:
    """Return all that decides a cell's images, except for prompt and seed: its hash is their key.

    The batch size is included: at one batch size, images are bitwise independent of order and
    neighbours, but between batch sizes they differ in the last bits. Paths are not included: the
    same files in another folder are the same model. Versions of libraries are not included, but
    written to each image's row: a run is not begun anew for them unless its user wants it.

    Args:
        cell: the cell.
        model: the identities of its parts, such as `pipeline` and `loras`.
        batch_size: the number of images per batch.
        device: such as `cuda:1`, whose number is left out.
        dtype: the precision, such as `float16`.
        guidance_batching: which predictions share a denoiser pass, for cells of guiders. Images of
            versions without this key are those of `separate`.
    """
    stacks = cell.method.kind == "guider" and guidance_batching != "separate"
    files = {part: _without_path(known) for part, known in model.items() if part != "loras"}
    loras = [
        _without_path(known) | {"scale": lora.scale}
        for known, lora in zip(model["loras"], cell.model.spec.loras, strict=True)
    ]
    return {
        "model": files | {"loras": loras},
        "columns": cell.columns,
        "size": list(cell.model.size),
        **cell.model.spec.model_dump(mode="json", include=SAMPLING_KEYS, exclude_defaults=True),
        "batch_size": batch_size,
        "device": device.partition(":")[0],
        "dtype": dtype,
        **({"guidance_batching": guidance_batching} if stacks else {}),
        **({"code": dict(cell.method.definition.code)} if cell.method.definition.code else {}),
    }


def _without_path(known: Json) -> Json:
    return {key: value for key, value in known.items() if key != "name" or known["kind"] == "hub"}


def _import_images(work: Sequence[CellWork], result: GenerationResult, advance: Advance) -> None:
    """Import the sets that are not in the run folder, or whose import report is out of date."""
    for cell in work:
        if cell.image_import is not None:
            failed = cell.dataset.failures()
            jobs = [job for job in cell.jobs if job.file not in failed]
            advance(len(cell.jobs) - len(jobs))
            if jobs or not cell.image_import.is_reported(cell.dataset.run):
                report = cell.image_import.run(cell.dataset, jobs, advance)
                result.image_sets[cell.dataset.cell.id] = report


def _run_samplers(
    model: ResolvedModel,
    work: Sequence[CellWork],
    device: str,
    dtype: str,
    batch_size: int,  # one image is made at a time
    result: GenerationResult,
    advance: Advance,
) -> list[AutoLoRAEvalError]:
    """Make the missing images of one model's samplers; return the failures of whole cells."""
    import torch

    from autolora_eval.generation.sampler_backend import SampledCell, run_sampler

    by_method: dict[str, list[SampledCell]] = {}
    for cell in work:
        by_method.setdefault(cell.dataset.cell.method.name, []).append(
            SampledCell(cell.dataset, cell.jobs)
        )
    for cells in by_method.values():
        pipeline = run_sampler(cells, torch.device(device), getattr(torch, dtype), advance)
        if pipeline.is_loaded:
            result.models[model.name] |= describe_pipeline(pipeline.loaded)
        del pipeline
        for sampled in cells:
            release_frames(sampled.first_error)
        free_memory()
    failures = (sampled.failure() for cells in by_method.values() for sampled in cells)
    return [failure for failure in failures if failure is not None]


def _run_guiders(
    model: ResolvedModel,
    work: Sequence[CellWork],
    device: str,
    dtype: str,
    batch_size: int,
    result: GenerationResult,
    advance: Advance,
) -> list[AutoLoRAEvalError]:
    """Make the missing images of one model's guiders; return the failures of cells."""
    batching = result.models[model.name]["guidance_batching"]
    with uncollected():
        import torch

        from autolora_eval.generation.guider_backend import GuidedModel

        place = torch.device(device), getattr(torch, dtype)
        backend = GuidedModel(model, *place, batch_size, batching)
    result.models[model.name] |= describe_pipeline(backend.pipeline)
    backend.make([(cell.dataset, cell.jobs) for cell in work], advance)
    return list(backend.failed)


def describe_pipeline(pipeline: LoraPipeline) -> Json:
    """Return what the manifest records of a loaded pipeline."""
    from autolora_eval.generation.scheduling import describe_scheduler

    return {
        "pipeline_class": type(pipeline.pipe).__name__,
        "scheduler": describe_scheduler(pipeline.pipe.scheduler),
        "lora_layers": pipeline.lora_layers,
    }
