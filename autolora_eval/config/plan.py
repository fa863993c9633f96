"""Plans a run: the cells and images of a benchmark, and their cost. Nothing is read or loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autolora_eval._errors import UsageError
from autolora_eval._files import content_hash, slug
from autolora_eval._text import format_swept_value, pluralize
from autolora_eval.config.inputs import LoadedBenchmark, ResolvedMethod, ResolvedModel
from autolora_eval.config.sweep_grid import (
    LORA_SCALE,
    Point,
    at_point,
    describe,
    fields_of,
    own_point,
)
from autolora_eval.plugins.signatures import MethodParameters
from autolora_eval.runs.columns import parameter_column
from autolora_eval.runs.manifest import ImageJob
from autolora_eval.sources.model_source import Source

# A generated image takes about this many bytes per pixel as PNG (measured for SDXL: 1.3 to 1.7).
PNG_BYTES_PER_PIXEL = 1.6
# An image's row in metadata.jsonl and in the tables.
ROW_BYTES = 1_000
JUDGEMENT_BYTES = 1_000
FEATURE_BYTES = 4 * 1536
# Figures and report: at least this, since they embed pictures up to a limit.
REPORT_BYTES = 4_000_000


@dataclass(frozen=True)
class Cell:
    """One model × method × sweep point: a row of the result table, and one image dataset.

    Attributes:
        id: the name of its folder and files.
        model: the model, with the LoRA scales of the cell.
        parameters: the method's parameters, with those of the sweep and the model's defaults.
        nfe: function evaluations per image; None if they are only known after the run.
        point: the values of the swept parameters that the method takes.
    """

    id: str
    model: ResolvedModel
    method: ResolvedMethod
    parameters: MethodParameters
    nfe: int | None
    point: Point = field(default_factory=dict, hash=False)

    def negative_prompt(self, job: ImageJob) -> str:
        """Return the negative prompt of an image: that of its prompt, or else of the model."""
        own = job.negative_prompt
        return self.model.spec.negative_prompt if own is None else own

    @property
    def title(self) -> str:
        """The name of the cell in messages."""
        at = f" at {describe(self.point)}" if self.point else ""
        return f"{self.model.name} × {self.method.name}{at}"

    @property
    def columns(self) -> dict[str, Any]:
        """The cell's parameters as columns of the tables; a list or map as JSON text."""
        parameters = self.parameters.model_dump()
        made_here = self.parameters.uses_the_model
        return {
            self.method.kind: self.method.definition.name,
            "lora_scale": self._lora_scale if made_here else None,
            "num_inference_steps": self.model.spec.num_inference_steps if made_here else None,
            **{
                parameter_column(name): json.dumps(value, ensure_ascii=False)
                if isinstance(value, list | dict)
                else value
                for name, value in parameters.items()
            },
        }

    @property
    def _lora_scale(self) -> object:
        """The scale of the model's only LoRA, or the factor of several; None without a LoRA."""
        scales = self.model.spec.lora_scales
        if len(scales) == 1:
            return scales[0]
        return self.point.get(LORA_SCALE, 1.0) if scales else None


@dataclass(frozen=True)
class Plan:
    """The cells of a benchmark, by model, sweep point and method, and the images of each."""

    benchmark: LoadedBenchmark
    cells: tuple[Cell, ...]
    jobs: tuple[ImageJob, ...]

    @property
    def n_images(self) -> int:
        """The number of images in all cells."""
        return len(self.cells) * len(self.jobs)

    @property
    def nfe(self) -> int:
        """Function evaluations of all cells whose NFE is known beforehand."""
        return sum(cell.nfe or 0 for cell in self._made_here) * len(self.jobs)

    @property
    def n_cells_of_unknown_nfe(self) -> int:
        """The number of cells whose NFE is only known after the run."""
        return sum(cell.nfe is None for cell in self._made_here)

    @property
    def _made_here(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.method.kind != "images"]

    @property
    def loaded_models(self) -> list[ResolvedModel]:
        """The models that make images: others only lend their name to images made elsewhere."""
        names = {cell.model.name for cell in self._made_here}
        return [model for name, model in self.benchmark.models.items() if name in names]

    @property
    def n_judge_calls(self) -> int:
        """The number of judge requests: `judge.repeats` per image."""
        judge = self.benchmark.spec.judge
        return 0 if judge is None else self.n_images * judge.repeats

    @property
    def disk_bytes(self) -> int:
        """The estimated size of the run folder in bytes."""
        images = sum(map(image_bytes, self.cells)) * len(self.jobs)
        scored = self.n_images * FEATURE_BYTES + self.n_judge_calls * JUDGEMENT_BYTES
        return images + scored + REPORT_BYTES


def image_bytes(cell: Cell) -> int:
    """Return the estimated size of an image of a cell on disk, with its rows."""
    width, height = cell.model.size
    return int(width * height * PNG_BYTES_PER_PIXEL) + ROW_BYTES


def make_plan(
    benchmark: LoadedBenchmark, limit_prompts: int | None = None, limit_seeds: int | None = None
) -> Plan:
    """Return the plan of a benchmark: its cells, images and costs.

    Args:
        benchmark: the loaded benchmark.
        limit_prompts: use only the first `limit_prompts` prompts. Default: all.
        limit_seeds: use only the first `limit_seeds` seeds. Default: all.

    Raises:
        UsageError: if two cells are the same or would share a folder, or a limit is below 1.
    """
    for what, limit in (("prompts", limit_prompts), ("seeds", limit_seeds)):
        if limit is not None and limit < 1:
            raise UsageError(f"the limit of {what} must be at least 1 (got {limit}).")
    cells = tuple(_cells(benchmark))
    _refuse_duplicates(cells, benchmark)
    jobs = tuple(
        ImageJob(index, prompt, seed, benchmark.negative_prompts.get(prompt))
        for index, prompt in enumerate(benchmark.prompts[:limit_prompts])
        for seed in benchmark.spec.seeds.values()[:limit_seeds]
    )
    return Plan(benchmark, cells, jobs)


def _cells(benchmark: LoadedBenchmark) -> Iterator[Cell]:
    for model in benchmark.models.values():
        made: set[tuple[object, ...]] = set()
        for point in benchmark.sweep.points():
            for method in benchmark.methods.values():
                own = own_point(method.parameters, point)
                if not model.spec.lora_scales:
                    own.pop(LORA_SCALE, None)
                # Points that differ only in what a method does not take are one cell.
                if (method.name, *own.values()) not in made:
                    made.add((method.name, *own.values()))
                    yield _cell(model, method, own)


def _cell(model: ResolvedModel, method: ResolvedMethod, point: Point) -> Cell:
    scale = point.get(LORA_SCALE)
    if isinstance(scale, int | float):
        model = replace(model, spec=model.spec.at_lora_scale(float(scale)))
    configured = at_point(method.parameters, point) if point else method.parameters
    parameters = configured.with_model_defaults(model.spec.guidance_scale)
    # A swept parameter with a single value is named too: cells keep their names when another value
    # is added.
    swept = [f"{name}={format_swept_value(value, '-')}" for name, value in point.items()]
    return Cell(
        id="--".join([slug(model.name), slug(method.name), *swept]),
        model=model,
        method=method,
        parameters=parameters,
        nfe=method.definition.nfe(parameters, model.spec.num_inference_steps, model.timesteps),
        point=point,
    )


def _refuse_duplicates(cells: tuple[Cell, ...], benchmark: LoadedBenchmark) -> None:
    """Two names for one computation, or one folder for two, would make a table that misleads."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        model = cell.model.spec.model_dump(mode="json", exclude={"lora", "offload"})
        for part in ("pipeline", "config", "vae"):  # "sdxl" and "./sdxl" are the same path
            source: Source | None = getattr(cell.model, part)
            model[part] = source and source.location
        model["loras"] = [
            spec.model_dump(mode="json") | {"path": lora.source.location}
            for spec, lora in zip(cell.model.spec.loras, cell.model.loras, strict=True)
        ]
        rule = cell.method.definition.identity
        same_work = content_hash({"model": model, "columns": cell.columns, "rule": rule})
        # File systems that ignore case would put two folders into one.
        for key in (f"folder {cell.id.lower()}", f"work {same_work}"):
            if key in seen:
                other = seen[key]
                raise UsageError(
                    f"{benchmark.file}: duplicate cell: '{cell.title}' and '{other.title}' "
                    + ("would share a folder" if key[0] == "f" else "are the same computation")
                    + ". Rename or remove one."
                )
            seen[key] = cell


def cells_by_method(plan: Plan) -> list[tuple[str, str, list[Cell]]]:
    """Return the cells of each model and method, in order."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault((cell.model.name, cell.method.name), []).append(cell)
    return [(*names, cells) for names, cells in groups.items()]


def common_columns(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the shared columns of a method's cells, and all values of the swept ones as text."""
    points = {name: [cell.point[name] for cell in cells] for name in cells[0].point}
    swept = {
        name: " ".join(map(format_swept_value, dict.fromkeys(found)))
        for name, found in points.items()
    }
    hidden = {key for name in points for key in fields_of(name)}
    shared = {
        key: value
        for key, value in cells[0].columns.items()
        if key not in hidden and all(cell.columns[key] == value for cell in cells)
    }
    return shared | swept


def describe_parameters(columns: Mapping[str, Any]) -> str:
    """Return a cell's parameters on one line, without those that have no value."""
    return ", ".join(f"{key}={value}" for key, value in columns.items() if value is not None)


def describe_sampling(model: ResolvedModel) -> str:
    """Return what decides a model's images beside its files and the methods, on one line."""
    spec, (width, height) = model.spec, model.size
    steps = pluralize(spec.num_inference_steps, "step")
    parts = [f"{width} × {height} pixels in {steps}"]
    if spec.scheduler is not None:
        options = describe_parameters(spec.scheduler.options)
        parts.append(spec.scheduler.class_name + (f" ({options})" if options else ""))
    if spec.clip_skip is not None:
        parts.append(f"clip_skip {spec.clip_skip}")
    if spec.negative_prompt:
        parts.append(f"negative prompt {spec.negative_prompt!r:.80}")
    return ", ".join(parts)
