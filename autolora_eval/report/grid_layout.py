"""Which images are in which grid. All but one grid hold the noise fixed along a row or column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autolora_eval._sentences import Sentences
from autolora_eval._text import as_finite_float, format_fixed, parameter_label, truncate
from autolora_eval.report.findings import (
    best_of_each_method,
    best_row,
    deciding_metric,
    rows_at_point,
    side_by_side,
)
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView, records

PROMPTS_SHOWN = 2
PROMPTS_DOWN = 6
SEEDS_SHOWN = 8
SEEDS_OF_A_SWEEP = 2
SEEDS_DOWN = 4
POINTS_SHOWN = 5
METHODS_ACROSS = 6
PROMPT_LENGTH = 300
LABEL_LENGTH = 120
say = Sentences("grids")


@dataclass(frozen=True)
class GridSlot:
    """One slot of a grid.

    Attributes:
        row: The image's row of scores.parquet; None if the run has no such image.
        seed: The image's seed.
    """

    row: Row | None
    seed: int


@dataclass(frozen=True)
class GridSpec:
    """A grid before its images are opened.

    Attributes:
        name: Name of its file, `grid_…`.
        title: What it shows.
        caption: What is held fixed, and what is left out.
        corner: What the heads of the columns are.
        columns: The heads of the columns.
        rows: Label and slots of each row.
        prompt: The prompt of all images; empty if there are several.
    """

    name: str
    title: str
    caption: str
    corner: str
    columns: list[str]
    rows: list[tuple[str, list[GridSlot]]]
    prompt: str = ""


@dataclass(frozen=True)
class ImageIndex:
    """The images of a run by cell, prompt and seed."""

    view: RunView

    @cached_property
    def places(self) -> dict[str, npt.NDArray[np.intp]]:
        """Where the rows of each cell are in scores.parquet."""
        groups = self.view.images.groupby("cell", sort=False)
        return {str(cell): np.asarray(rows, np.intp) for cell, rows in groups.indices.items()}

    @cached_property
    def prompts(self) -> list[int]:
        """The indices of the prompts."""
        return sorted(map(int, self.view.images["prompt_index"].unique()))

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds."""
        return sorted(map(int, self.view.images["seed"].unique()))

    def slots(self, cell: str | None, prompt: int, seeds: Sequence[int]) -> list[GridSlot]:
        """Return the images of a cell and prompt."""
        images, rows = self.view.images, self.places.get(cell or "", np.zeros(0, dtype=np.intp))
        wanted = images["prompt_index"].to_numpy()[rows] == prompt
        wanted &= np.isin(images["seed"].to_numpy()[rows], seeds)
        found = {int(row["seed"]): row for row in records(images.iloc[rows[wanted]])}
        return [GridSlot(found.get(seed), seed) for seed in seeds]

    def prompt(self, index: int, limit: int = PROMPT_LENGTH) -> str:
        """Return a prompt's text."""
        images = self.view.images
        texts = images.loc[images["prompt_index"] == index, "prompt"]
        return truncate(next(iter(texts), ""), limit)

    @cached_property
    def imported(self) -> str:
        """Whether images were made elsewhere: empty, "seeds", or "no seeds" if one set has none."""
        sets = self.view.manifest.image_sets.values()
        by_order = any(one.seeds_by_order for one in sets)
        return "no seeds" if by_order else "seeds" if sets else ""

    def caption(
        self,
        held: str,
        *shown: tuple[int, int, str, bool],
        which: str = "",
        others: Mapping[str, str] | None = None,
    ) -> str:
        """Return a grid's caption.

        Args:
            held: Where the noise is the same: "column", "row", "all", or empty.
            *shown: How many of how many are shown, of what, and whether these are the first.
            which: A sentence on the cells that are shown.
            others: The swept parameters that are held fixed.
        """
        return say.caption(held, self.imported, others or {}, which, shown)


def choose_grids(view: RunView) -> list[GridSpec]:
    """Return the grids of a run, the most informative first."""
    index = ImageIndex(view)
    return [
        grid
        for kind in (_by_seed, _by_sweep, _by_prompt, _extremes)
        for n, (model, rows) in enumerate(view.models.items())
        for grid in kind(
            index,
            truncate(model, NAME_LENGTH),
            rows,
            f"_model{n + 1}" if len(view.models) > 1 else "",
        )
    ]


def _by_seed(index: ImageIndex, model: str, rows: Sequence[Row], suffix: str) -> Iterator[GridSpec]:
    """Yield methods down and seeds across, for each of the first prompts."""
    cells, which = side_by_side(index.view, rows)
    seeds, prompts = index.seeds[:SEEDS_SHOWN], index.prompts[:PROMPTS_SHOWN]
    counts = (
        (len(seeds), len(index.seeds), "seed", True),
        (len(prompts), len(index.prompts), "prompt", True),
    )
    for prompt in prompts:
        yield GridSpec(
            name=f"grid_seeds_prompt{prompt}{suffix}",
            title=say.by_seed(model),
            prompt=index.prompt(prompt),
            caption=index.caption("column", *counts, which=which),
            corner="seed",
            columns=[str(seed) for seed in seeds],
            rows=[
                (index.view.labels[row["cell"]], index.slots(row["cell"], prompt, seeds))
                for row in cells
            ],
        )


def _by_sweep(
    index: ImageIndex, model: str, rows: Sequence[Row], suffix: str
) -> Iterator[GridSpec]:
    """Yield a swept parameter down and methods across, for each parameter and the first seeds.

    If only one method takes the parameter, its values go across, and seeds down.
    """
    points = [index.view.points.get(row["cell"], {}) for row in rows]
    best = best_row(rows, deciding_metric(index.view)) or rows[0]
    best_point = index.view.points.get(best["cell"], {})
    for name in dict.fromkeys(name for point in points for name in point):
        values = list(dict.fromkeys(point[name] for point in points if name in point))
        taking = [row for row, point in zip(rows, points, strict=True) if name in point]
        # The other swept parameters stay at the best cell's values.
        others = {other: value for other, value in best_point.items() if other != name}
        sweep = _Sweep(name, values, taking, others)
        methods = list(dict.fromkeys(truncate(row["method"], NAME_LENGTH) for row in taking))
        if len(methods) == 1:
            yield _of_one_method(index, model, methods[0], sweep, suffix)
        else:
            yield from _of_methods(index, model, methods, sweep, suffix)


@dataclass(frozen=True)
class _Sweep:
    """A swept parameter, the cells that take it, and the values of the other parameters."""

    name: str
    values: list[str]
    taking: list[Row]
    others: dict[str, str]

    def cells_at(self, view: RunView, value: str) -> dict[str, str]:
        """Return the cell of each method at a value of the parameter."""
        rows = rows_at_point(view, self.taking, self.others | {self.name: value})
        return {truncate(row["method"], NAME_LENGTH): row["cell"] for row in rows}


def _of_methods(
    index: ImageIndex, model: str, methods: Sequence[str], sweep: _Sweep, suffix: str
) -> Iterator[GridSpec]:
    shown, across = some_of(sweep.values), methods[:METHODS_ACROSS]
    lines = {value: sweep.cells_at(index.view, value) for value in shown}
    prompt = index.prompts[0]
    counts = (
        (len(shown), len(sweep.values), "value", False),
        (len(across), len(methods), "method", True),
    )
    for seed in index.seeds[:SEEDS_OF_A_SWEEP]:
        yield GridSpec(
            name=f"grid_{_slug(sweep.name)}_seed{seed}{suffix}",
            title=say.by_method(model, parameter_label(sweep.name), seed),
            prompt=index.prompt(prompt),
            caption=index.caption("all", *counts, others=sweep.others),
            corner=parameter_label(sweep.name),
            columns=list(across),
            rows=[
                (value, [index.slots(cells.get(m), prompt, [seed])[0] for m in across])
                for value, cells in lines.items()
            ],
        )


def _of_one_method(
    index: ImageIndex, model: str, method: str, sweep: _Sweep, suffix: str
) -> GridSpec:
    shown, seeds = some_of(sweep.values, SEEDS_SHOWN), index.seeds[:SEEDS_DOWN]
    cells = [sweep.cells_at(index.view, value).get(method) for value in shown]
    prompt = index.prompts[0]
    counts = (
        (len(shown), len(sweep.values), "value", False),
        (len(seeds), len(index.seeds), "seed", True),
    )
    return GridSpec(
        name=f"grid_{_slug(sweep.name)}{suffix}",
        title=say.of_method(model, method, parameter_label(sweep.name)),
        prompt=index.prompt(prompt),
        caption=index.caption("row", *counts, others=sweep.others),
        corner="seed",
        columns=shown,
        rows=[
            (str(seed), [index.slots(cell, prompt, [seed])[0] for cell in cells]) for seed in seeds
        ],
    )


def some_of(values: Sequence[str], limit: int = POINTS_SHOWN) -> list[str]:
    """Return every n-th value, including the last: of 0.2, 0.3 … 1.3 it is 0.4, 0.7, 1.0, 1.3.

    Args:
        values: The values of a sweep, in order.
        limit: How many at most.
    """
    step = -(-len(values) // limit)
    return list(values[::-1][::step][::-1])


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in name)[:40]


def _by_prompt(
    index: ImageIndex, model: str, rows: Sequence[Row], suffix: str
) -> Iterator[GridSpec]:
    """Yield prompts down and methods across with one seed, if there are several prompts."""
    if len(index.prompts) < 2 or len(index.view.rows) < 2:
        return
    cells, which = side_by_side(index.view, rows)
    prompts, seed = index.prompts[:PROMPTS_DOWN], index.seeds[0]
    count = (len(prompts), len(index.prompts), "prompt", True)
    yield GridSpec(
        name=f"grid_prompts_seed{seed}{suffix}",
        title=say.by_prompt(model, seed),
        caption=index.caption("all", count, which=which),
        corner="prompt",
        columns=[index.view.labels[row["cell"]] for row in cells],
        rows=[
            (
                index.prompt(prompt, LABEL_LENGTH),
                [index.slots(row["cell"], prompt, [seed])[0] for row in cells],
            )
            for prompt in prompts
        ],
    )


def _extremes(
    index: ImageIndex, model: str, rows: Sequence[Row], suffix: str
) -> Iterator[GridSpec]:
    """Yield the most and the least diverse prompt of the baseline and of the best other method."""
    metric = deciding_metric(index.view)
    best_cells = best_of_each_method(rows, metric)
    base = [row for row in best_cells if row["method"] == index.view.baseline]
    best = best_row([row for row in best_cells if row not in base], metric)
    cells = [*base, *([best] if best else [])]
    lines = [line for row in cells for line in _extremes_of(index, row)]
    if not lines:
        return
    names = [index.view.labels[row["cell"]] for row in cells]
    seeds = index.seeds[:SEEDS_SHOWN]
    count = (len(seeds), len(index.seeds), "seed", True)
    yield GridSpec(
        name=f"grid_extremes{suffix}",
        title=say.most_and_least(model),
        caption=index.caption("", count, which=say.extremes(names)),
        corner="seed",
        columns=[str(seed) for seed in seeds],
        rows=lines,
    )


def _extremes_of(index: ImageIndex, row: Row) -> Iterator[tuple[str, list[GridSlot]]]:
    """Yield the two rows of a cell, if at least two of its prompts have a diversity."""
    prompts = index.view.run.diversity
    found = records(prompts[prompts["cell"] == row["cell"]])
    known = [r for r in found if as_finite_float(r.get("diversity")) is not None]
    if len(known) < 2:
        return
    ranked = sorted(known, key=lambda prompt: float(prompt["diversity"]))
    for end, prompt in (("most", ranked[-1]), ("least", ranked[0])):
        n = int(prompt["prompt_index"])
        error = as_finite_float(prompt.get("standard_error"))
        size = format_fixed(prompt["diversity"])
        size += "" if error is None else f" ± {format_fixed(error)}"
        label = f"{index.view.labels[row['cell']]}, {end}: {size} – {index.prompt(n, LABEL_LENGTH)}"
        yield label, index.slots(row["cell"], n, index.seeds[:SEEDS_SHOWN])
