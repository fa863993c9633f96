"""Which images are in which grid. In all grids but one, a row or column has the same noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import pandas as pd

from autolora_eval._text import Sentences, as_finite_float, format_fixed, parameter_label, truncate
from autolora_eval.analysis.scores import records
from autolora_eval.report.findings import (
    best_of_each_method,
    best_row,
    deciding_metric,
    rows_at_point,
    side_by_side,
)
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView

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
    """One place of a grid: an image's row of scores.parquet, None if the run has no such image."""

    row: Row | None
    seed: int


T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class GridRow(Generic[T]):
    """A row of a grid."""

    label: str
    images: list[T]


@dataclass(frozen=True)
class Grid(Generic[T]):
    """Images side by side.

    Attributes:
        name: Name of its file, `grid_…`.
        caption: What is held fixed, and what is left out.
        corner: What the heads of the columns are.
        prompt: The prompt of all images; empty if there are several.
    """

    name: str
    title: str
    caption: str
    corner: str
    columns: list[str]
    rows: list[GridRow[T]]
    prompt: str = ""

    def with_rows(self, rows: list[GridRow[U]]) -> Grid[U]:
        """Return the same grid with other things in its places."""
        head = (self.name, self.title, self.caption, self.corner, self.columns)
        return Grid(*head, rows, self.prompt)


class _Images:
    """The images of a run by cell, prompt and seed."""

    def __init__(self, view: RunView) -> None:
        keys = ["cell", "prompt_index", "seed"]
        self._images = view.images.drop_duplicates(keys, keep="last")
        self._index = pd.MultiIndex.from_frame(self._images[keys])
        self.prompts = sorted(map(int, self._images["prompt_index"].unique()))
        self.seeds = sorted(map(int, self._images["seed"].unique()))
        self._texts = dict(view.images.groupby("prompt_index")["prompt"].first())

    def slots(self, places: Sequence[tuple[str | None, int, int]]) -> list[GridSlot]:
        """Return the images at these cells, prompts and seeds."""
        found = self._index.get_indexer(pd.MultiIndex.from_tuples(places))
        rows = iter(records(self._images.iloc[found[found >= 0]]))
        return [
            GridSlot(next(rows) if known else None, seed)
            for known, (_, _, seed) in zip(found >= 0, places, strict=True)
        ]

    def prompt(self, index: int, limit: int = PROMPT_LENGTH) -> str:
        """Return a prompt's text."""
        return truncate(self._texts[index] or "", limit)


def choose_grids(view: RunView) -> list[Grid[GridSlot]]:
    """Return the grids of a run, the most informative first."""
    images, several = _Images(view), len(view.models) > 1
    models = [
        _ModelGrids(
            view, images, truncate(model, NAME_LENGTH), rows, f"_model{n}" if several else ""
        )
        for n, (model, rows) in enumerate(view.models.items(), start=1)
    ]
    kinds = (_ModelGrids.by_seed, _ModelGrids.by_sweep, _ModelGrids.by_prompt, _ModelGrids.extremes)
    return [grid for kind in kinds for model in models for grid in kind(model)]


# The number shown, the total, the noun, and whether the first ones are shown.
_Count = tuple[int, int, str, bool]


def _first(shown: Sequence[object], of: Sequence[object], noun: str) -> _Count:
    return len(shown), len(of), noun, True


@dataclass(frozen=True)
class _Sweep:
    """A swept parameter: the cell of each method at the values that are shown."""

    name: str
    methods: list[str]
    cells: dict[str, dict[str, str]]  # by value, then by method
    others: dict[str, str]  # the swept parameters that are held fixed
    n_values: int

    @property
    def count(self) -> _Count:
        """Number of values that are shown."""
        return len(self.cells), self.n_values, "value", False


@dataclass(frozen=True)
class _ModelGrids:
    """The grids of one model, whose file names end in `suffix`."""

    view: RunView
    images: _Images
    model: str
    rows: Sequence[Row]
    suffix: str

    def by_seed(self) -> Iterator[Grid[GridSlot]]:
        """Yield methods down and seeds across, for each of the first prompts."""
        cells, which = side_by_side(self.view, self.rows)
        seeds, prompts = self.images.seeds[:SEEDS_SHOWN], self.images.prompts[:PROMPTS_SHOWN]
        counts = (
            *self._methods(cells, which),
            _first(seeds, self.images.seeds, "seed"),
            _first(prompts, self.images.prompts, "prompt"),
        )
        for prompt in prompts:
            yield Grid(
                name=f"grid_seeds_prompt{prompt}{self.suffix}",
                title=say.by_seed(self.model),
                prompt=self.images.prompt(prompt),
                caption=self._caption("column" if len(cells) > 1 else "", *counts, which=which),
                corner="seed",
                columns=[str(seed) for seed in seeds],
                rows=[
                    GridRow(
                        self.view.labels[cell],
                        self.images.slots([(cell, prompt, s) for s in seeds]),
                    )
                    for cell in (row["cell"] for row in cells)
                ],
            )

    def _methods(self, cells: Sequence[Row], which: str) -> list[_Count]:
        """Return how many methods are shown, unless a sentence says which."""
        return [] if which else [_first(cells, self.rows, "method")]

    def by_sweep(self) -> Iterator[Grid[GridSlot]]:
        """Yield a swept parameter down and methods across, for each parameter and the first seeds.

        If only one method takes the parameter, its values go across, and seeds down.
        """
        points = [self.view.points.get(row["cell"], {}) for row in self.rows]
        best = best_row(self.rows, deciding_metric(self.view)) or self.rows[0]
        best_point = self.view.points.get(best["cell"], {})
        for name in dict.fromkeys(name for point in points for name in point):
            values = list(dict.fromkeys(point[name] for point in points if name in point))
            taking = [row for row, point in zip(self.rows, points, strict=True) if name in point]
            # The other swept parameters stay at the best cell's values.
            others = {other: value for other, value in best_point.items() if other != name}
            methods = list(dict.fromkeys(truncate(row["method"], NAME_LENGTH) for row in taking))
            shown = some_of(values, SEEDS_SHOWN if len(methods) == 1 else POINTS_SHOWN)
            cells = {
                value: {
                    truncate(row["method"], NAME_LENGTH): row["cell"]
                    for row in rows_at_point(self.view, taking, others | {name: value})
                }
                for value in shown
            }
            sweep = _Sweep(name, methods, cells, others, len(values))
            if len(methods) == 1:
                yield self._of_one_method(sweep)
            else:
                yield from self._of_methods(sweep)

    def _of_methods(self, sweep: _Sweep) -> Iterator[Grid[GridSlot]]:
        across, prompt = sweep.methods[:METHODS_ACROSS], self.images.prompts[0]
        counts = (sweep.count, _first(across, sweep.methods, "method"))
        for seed in self.images.seeds[:SEEDS_OF_A_SWEEP]:
            yield Grid(
                name=f"grid_{_slug(sweep.name)}_seed{seed}{self.suffix}",
                title=say.by_method(self.model, parameter_label(sweep.name), seed),
                prompt=self.images.prompt(prompt),
                caption=self._caption("all", *counts, others=sweep.others),
                corner=parameter_label(sweep.name),
                columns=across,
                rows=[
                    GridRow(value, self.images.slots([(own.get(m), prompt, seed) for m in across]))
                    for value, own in sweep.cells.items()
                ],
            )

    def _of_one_method(self, sweep: _Sweep) -> Grid[GridSlot]:
        (method,), prompt = sweep.methods, self.images.prompts[0]
        seeds, cells = self.images.seeds[:SEEDS_DOWN], sweep.cells.values()
        counts = (sweep.count, _first(seeds, self.images.seeds, "seed"))
        return Grid(
            name=f"grid_{_slug(sweep.name)}{self.suffix}",
            title=say.of_method(self.model, method, parameter_label(sweep.name)),
            prompt=self.images.prompt(prompt),
            caption=self._caption("row", *counts, others=sweep.others),
            corner="seed",
            columns=list(sweep.cells),
            rows=[
                GridRow(str(s), self.images.slots([(own.get(method), prompt, s) for own in cells]))
                for s in seeds
            ],
        )

    def by_prompt(self) -> Iterator[Grid[GridSlot]]:
        """Yield prompts down and methods across with one seed, if there are several prompts."""
        if len(self.images.prompts) < 2 or len(self.view.rows) < 2:
            return
        cells, which = side_by_side(self.view, self.rows)
        prompts, seed = self.images.prompts[:PROMPTS_DOWN], self.images.seeds[0]
        counts = (*self._methods(cells, which), _first(prompts, self.images.prompts, "prompt"))
        yield Grid(
            name=f"grid_prompts_seed{seed}{self.suffix}",
            title=say.by_prompt(self.model, seed),
            caption=self._caption("all", *counts, which=which),
            corner="prompt",
            columns=[self.view.labels[row["cell"]] for row in cells],
            rows=[
                GridRow(
                    self.images.prompt(prompt, LABEL_LENGTH),
                    self.images.slots([(row["cell"], prompt, seed) for row in cells]),
                )
                for prompt in prompts
            ],
        )

    def extremes(self) -> Iterator[Grid[GridSlot]]:
        """Yield the most and the least diverse prompt of the baseline and the best other method."""
        metric = deciding_metric(self.view)
        best_cells = best_of_each_method(self.rows, metric)
        base = [row for row in best_cells if row["method"] == self.view.baseline]
        best = best_row([row for row in best_cells if row not in base], metric)
        cells = [*base, *([best] if best else [])]
        seeds = self.images.seeds[:SEEDS_SHOWN]
        rows = [line for row in cells for line in self._extremes_of(row["cell"], seeds)]
        if not rows:
            return
        names = [self.view.labels[row["cell"]] for row in cells]
        count = _first(seeds, self.images.seeds, "seed")
        yield Grid(
            name=f"grid_extremes{self.suffix}",
            title=say.most_and_least(self.model),
            caption=self._caption("", count, which=say.extremes(names)),
            corner="seed",
            columns=[str(seed) for seed in seeds],
            rows=rows,
        )

    def _extremes_of(self, cell: str, seeds: Sequence[int]) -> Iterator[GridRow[GridSlot]]:
        """Yield the two rows of a cell, if at least two of its prompts have a diversity."""
        prompts = self.view.run.diversity
        found = records(prompts[prompts["cell"] == cell])
        known = [r for r in found if as_finite_float(r.get("diversity")) is not None]
        if len(known) < 2:
            return
        ranked = sorted(known, key=lambda prompt: float(prompt["diversity"]))
        for end, row in (("most", ranked[-1]), ("least", ranked[0])):
            prompt = int(row["prompt_index"])
            error = as_finite_float(row.get("standard_error"))
            size = format_fixed(row["diversity"])
            size += "" if error is None else f" ± {format_fixed(error)}"
            text = self.images.prompt(prompt, LABEL_LENGTH)
            label = f"{self.view.labels[cell]}, {end}: {size} – {text}"
            yield GridRow(label, self.images.slots([(cell, prompt, seed) for seed in seeds]))

    def _caption(
        self,
        held: str,
        *counts: _Count,
        which: str = "",
        others: Mapping[str, str] | None = None,
    ) -> str:
        """Return a caption; `held` is the "row" or "column" of the same noise, "all" or empty."""
        by_order = any(one.seeds_by_order for one in self.view.manifest.image_sets.values())
        return say.caption(held, self.view.imported, by_order, others or {}, which, counts)


def some_of(values: Sequence[str], limit: int = POINTS_SHOWN) -> list[str]:
    """Return every n-th value, including the last: of 0.2, 0.3 … 1.3 it is 0.4, 0.7, 1.0, 1.3."""
    step = -(-len(values) // limit)
    return list(values[::-1][::step][::-1])


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in name)[:40]
