"""The stage that makes the images: plan in, image datasets out. Resumes where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from autolora_eval._devices import choose_device, choose_dtype, free_memory
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json, content_hash
from autolora_eval._progress import Advance, Progress
from autolora_eval._sources import identity, lora_identity
from autolora_eval.config.load import ResolvedModel
from autolora_eval.config.plan import Cell, ImageJob, Plan
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.generation.guider_backend import GuidedModel, GuiderFailedError
from autolora_eval.generation.image_import import ImportedCell
from autolora_eval.generation.sampler_backend import SampledCell, sample_method
from autolora_eval.runs.folder import RunFolder


@dataclass
class Generated:
    """What the stage did, for the manifest.

    Attributes:
        models: what each model is, by name.
        image_sets: account of each cell whose images were made elsewhere, by cell.
        settings_keys: content key of each cell's settings, by cell.
        made: images made now.
        reused: images that were there already.
    """

    models: dict[str, Json] = field(default_factory=dict)
    image_sets: dict[str, Json] = field(default_factory=dict)
    settings_keys: dict[str, str] = field(default_factory=dict)
    made: int = 0
    reused: int = 0


def generate(
    plan: Plan,
    folder: RunFolder,
    progress: Progress,
    begin: Callable[[Generated], None] = lambda found: None,
) -> Generated:
    """Make every image of the plan that is not there yet.

    A model is loaded once, whatever LoRA scales its cells have, and only if one of its images is
    missing.

    Args:
        plan: what to make.
        folder: where to.
        progress: is told of each image.
        begin: is told what models and settings are before the first image is made, and what
            became of the images that were made elsewhere.

    Raises:
        AutoLoRAEvalError: a model cannot be loaded; or, once all else is made, a guider failed or
            a sampler made none of a cell's images. Images made so far are kept.
    """
    spec = plan.benchmark.spec
    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    done, missing, imported = _look(plan, folder, device, dtype)
    begin(done)
    failed: list[AutoLoRAEvalError] = []
    with progress.task("Generating", plan.n_images) as advance:
        advance(done.reused)
        # What is wrong with a set of images is known before the first model is loaded.
        _import(imported, missing, done, advance)
        if done.image_sets:
            begin(done)
        for model in plan.benchmark.models.values():
            todo = [
                (data, jobs)
                for data, jobs in missing
                if jobs and data.cell.model.name == model.name
            ]
            # Samplers first: what is broken in one of them is known before the hours of the rest.
            failed += _sample(todo, device, dtype, done, advance)
            guided = [(data, jobs) for data, jobs in todo if data.cell.method.kind == "guider"]
            if guided:
                failed += _guide(
                    GuidedModel(model, device, dtype, spec.batch_size), guided, done, advance
                )
                free_memory()
    if failed:
        told = "\n".join(str(error) for error in failed)
        raise AutoLoRAEvalError(
            f"{told}\nAll else was made and is kept: run the same command again once that is "
            "mended."
        ) from failed[0]
    return done


def _import(
    imported: Mapping[str, ImportedCell],
    missing: Sequence[tuple[ImageDataset, list[ImageJob]]],
    done: Generated,
    advance: Advance,
) -> None:
    """Copy images that were made elsewhere, where any is not here yet or not accounted for."""
    for dataset, jobs in missing:
        images = imported.get(dataset.cell.id)
        if images is not None:
            wanted = images.not_accounted_for(dataset, jobs)
            advance(len(jobs) - len(wanted))
            if wanted or not images.is_accounted_for(dataset.run):
                done.image_sets[dataset.cell.id] = images.fill(dataset, wanted, advance)


def _sample(
    todo: Sequence[tuple[ImageDataset, Sequence[ImageJob]]],
    device: torch.device,
    dtype: torch.dtype,
    done: Generated,
    advance: Advance,
) -> list[AutoLoRAEvalError]:
    """Make the missing images of one model's samplers; return why cells have not one image."""
    groups: dict[str, list[SampledCell]] = {}
    for dataset, jobs in todo:
        if dataset.cell.method.kind == "sampler":
            groups.setdefault(dataset.cell.method.name, []).append(SampledCell(dataset, jobs))
    for cells in groups.values():
        own = sample_method(cells, device, dtype, advance)
        if own.is_loaded:
            done.models[cells[0].dataset.cell.model.name] |= describe(own.loaded)
        del own
        free_memory()
    refusals = (cell.refusal() for cells in groups.values() for cell in cells)
    return [refusal for refusal in refusals if refusal is not None]


def _guide(
    guided: GuidedModel,
    todo: Sequence[tuple[ImageDataset, Sequence[ImageJob]]],
    done: Generated,
    advance: Advance,
) -> list[GuiderFailedError]:
    """Make the missing images of one model's guiders; return why some could not be made."""
    done.models[guided.model.name] |= describe(guided.pipeline)
    guided.make(todo, advance)
    return guided.failed


def _look(
    plan: Plan, folder: RunFolder, device: torch.device, dtype: torch.dtype
) -> tuple[Generated, list[tuple[ImageDataset, list[ImageJob]]], dict[str, ImportedCell]]:
    """Return what every model and cell is, the images that each lacks, and those made elsewhere."""
    done, missing, imported = Generated(), [], {}
    for model in plan.benchmark.models.values():
        cells = [cell for cell in plan.cells if cell.model.name == model.name]
        if all(cell.method.kind == "images" for cell in cells):
            what = _not_loaded(model)
        else:
            what = {"pipeline": identity(model.pipeline), "lora": lora_identity(model.lora)}
        done.models[model.name] = {
            **what,
            "scale": _scales(plan, model.name),
            "size": model.size,
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
        }
        for cell in cells:
            batch_size = plan.benchmark.spec.batch_size
            if cell.method.kind == "images":
                imported[cell.id] = ImportedCell.find(cell, plan, folder)
                key = imported[cell.id].settings_key
            else:
                key = settings_key(cell, what, batch_size, device.type, str(dtype))
            dataset = ImageDataset.open(folder, cell, key)
            jobs = dataset.missing(plan.jobs)
            missing.append((dataset, jobs))
            done.settings_keys[cell.id] = key
            done.reused += len(plan.jobs) - len(jobs)
            done.made += len(jobs)
    return done, missing, imported


def _not_loaded(model: ResolvedModel) -> dict[str, Json]:
    """Return what is known of a model that makes none of its cells' images."""
    parts = {"pipeline": model.pipeline, "lora": model.lora}
    return {
        name: {"name": source.name, "kind": source.kind, "used": False}
        for name, source in parts.items()
    }


def _scales(plan: Plan, model: str) -> float | list[float]:
    """Return the LoRA scale of a model's cells, or those that a sweep gives them."""
    cells = (cell for cell in plan.cells if cell.model.name == model)
    scales = list(dict.fromkeys(cell.model.spec.lora.scale for cell in cells))
    return scales[0] if len(scales) == 1 else scales


def settings_key(cell: Cell, model: Json, batch_size: int, device: str, dtype: str) -> str:
    """Return the content key of all that decides a cell's images but prompt and seed.

    The batch size is part of it: images are bitwise stable under rerun, order and neighbours at
    one batch size, and differ in a few last bits between batch sizes. References (paths) are not:
    the same files elsewhere are the same model.
    """
    files = {
        part: {k: v for k, v in what.items() if k != "name" or what["kind"] == "hub"}
        for part, what in model.items()
    }
    return content_hash(
        {
            "model": files,
            "columns": cell.columns,
            "size": cell.model.size,
            "null_prompt": cell.model.spec.null_prompt,
            "variant": cell.model.spec.variant,
            "batch_size": batch_size,
            "device": device,
            "dtype": dtype,
            **({"code": dict(cell.method.rule.code)} if cell.method.rule.code else {}),
        }
    )


def describe(pipeline: LoraPipeline) -> Json:
    """Return what is known of a pipeline once it is loaded, for the manifest."""
    scheduler = pipeline.pipe.scheduler
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return {
        "class": type(pipeline.pipe).__name__,
        "scheduler": {"class": type(scheduler).__name__, **config},
        "lora_layers": pipeline.lora_tensors,
    }
