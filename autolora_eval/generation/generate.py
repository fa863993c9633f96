"""The stage that makes the images: plan in, image datasets out. Resumes where it was stopped."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from autolora_eval.benchmark.load import ResolvedModel
from autolora_eval.devices import choose_device, choose_dtype
from autolora_eval.errors import AutoLoRAEvalError
from autolora_eval.files import Json, content_key
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.generation.imported import ImportedCell
from autolora_eval.generation.pipeline import LoraPipeline, Sample
from autolora_eval.generation.sampled import SampledCell, reason_of, sample_method
from autolora_eval.guidance.registry import Method
from autolora_eval.identity import identity, lora_identity
from autolora_eval.images import SECONDS
from autolora_eval.libraries import quiet_libraries
from autolora_eval.plan import Cell, ImageJob, Plan
from autolora_eval.progress import Advance, Progress
from autolora_eval.run_folder import RunFolder


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
        AutoLoRAEvalError: a model cannot be loaded, a guider made another number of passes than
            it declares, or a sampler made none of a cell's images. Images made so far are kept.
    """
    spec = plan.benchmark.spec
    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    done, missing, imported = _look(plan, folder, device, dtype)
    begin(done)
    failed: list[SampledCell] = []
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
                _guide(model, guided, device, dtype, spec.batch_size, done, advance)
                free_memory()
    if failed:
        told = "\n".join(str(cell.refusal()) for cell in failed)
        raise AutoLoRAEvalError(f"{told} All else is kept.") from failed[0].first_error
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
) -> list[SampledCell]:
    """Make the missing images of one model's samplers; return the cells that none was made of."""
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
    return [cell for cells in groups.values() for cell in cells if cell.refusal()]


def _guide(
    model: ResolvedModel,
    todo: Sequence[tuple[ImageDataset, Sequence[ImageJob]]],
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    done: Generated,
    advance: Advance,
) -> None:
    """Make the missing images of one model's guiders."""
    with quiet_libraries():
        pipeline = LoraPipeline.load(model, device, dtype)
    done.models[model.name] |= describe(pipeline)
    for dataset, jobs in todo:
        _fill(dataset, jobs, pipeline, batch_size, advance)


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
        name: {"reference": source.reference, "kind": source.kind, "used": False}
        for name, source in parts.items()
    }


def _scales(plan: Plan, model: str) -> float | list[float]:
    """Return the LoRA scale of a model's cells, or those that a sweep gives them."""
    cells = (cell for cell in plan.cells if cell.model.name == model)
    scales = list(dict.fromkeys(cell.model.spec.lora.scale for cell in cells))
    return scales[0] if len(scales) == 1 else scales


def _fill(
    dataset: ImageDataset,
    jobs: Sequence[ImageJob],
    pipeline: LoraPipeline,
    batch_size: int,
    advance: Advance,
) -> None:
    """Make a cell's missing images, batch by batch, each written before the next is begun."""
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        started = time.perf_counter()
        with quiet_libraries():
            sample = sample_batch(pipeline, dataset.cell, batch, batch_size)
        # A short batch is filled up, so that it takes as long as a whole one.
        took = {SECONDS: round((time.perf_counter() - started) / batch_size, 4)}
        dataset.add(batch, sample.images, sample.nfe, [took] * len(batch))
        advance(len(batch))


def settings_key(cell: Cell, model: Json, batch_size: int, device: str, dtype: str) -> str:
    """Return the content key of all that decides a cell's images but prompt and seed.

    The batch size is part of it: images are bitwise stable under rerun, order and neighbours at
    one batch size, and differ in a few last bits between batch sizes. References (paths) are not:
    the same files elsewhere are the same model.
    """
    files = {
        part: {k: v for k, v in what.items() if k != "reference" or what["kind"] == "hub"}
        for part, what in model.items()
    }
    return content_key(
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


def sample_batch(
    pipeline: LoraPipeline, cell: Cell, jobs: Sequence[ImageJob], batch_size: int
) -> Sample:
    """Make the images of at most `batch_size` jobs.

    A short batch is filled up with its last job, whose copies are dropped: at one batch size an
    image does not depend on how many others were missing beside it.

    Raises:
        AutoLoRAEvalError: the guider made another number of passes than it declares.
    """
    rule = cell.method.rule
    assert isinstance(rule, Method)
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
    except (Exception, SystemExit) as error:
        if not rule.code or isinstance(error, AutoLoRAEvalError):
            raise
        raise AutoLoRAEvalError(
            f"cell '{cell.id}': the guider '{rule.name}' failed: {reason_of(error)}. For the "
            "traceback: autolora-eval --debug …"
        ) from error
    if rule.nfe_is_declared and sample.nfe != cell.nfe:
        raise AutoLoRAEvalError(
            f"cell '{cell.id}': the denoiser was called {sample.nfe} times for an image, where "
            f"the plan says {cell.nfe}. The cost in the table would be wrong. A scheduler of "
            "second order calls it twice a step: choose a first-order or multistep one."
            + ("" if not rule.code else f" Or '{rule.name}' declares its passes wrongly.")
        )
    return Sample(sample.images[: len(jobs)], sample.nfe)


def describe(pipeline: LoraPipeline) -> Json:
    """Return what is known of a pipeline once it is loaded, for the manifest."""
    scheduler = pipeline.pipe.scheduler
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return {
        "class": type(pipeline.pipe).__name__,
        "scheduler": {"class": type(scheduler).__name__, **config},
        "lora_layers": pipeline.lora_tensors,
    }


def free_memory() -> None:
    """Give a dropped model's memory back, so that the next stage's fits."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
