"""Which images stand in which grid, as the paper's Figures 1 and 3 to 8 do. Pure.

Every grid holds the noise fixed along a row or a column: what differs there is the method, the
swept parameter or the prompt alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autolora_eval._text import (
    as_finite_float,
    format_fixed,
    join_names,
    parameter_label,
    pluralize,
    point_label,
    truncate,
)
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


@dataclass(frozen=True)
class Place:
    """One place of a grid.

    Attributes:
        row: of scores.parquet; None if the run has no such image.
        what: its seed, for those who cannot see it.
    """

    row: Row | None
    what: str


@dataclass(frozen=True)
class GridSpec:
    """A grid before its images are opened.

    Attributes:
        name: of its file, `grid_…`.
        title: what it shows; a prompt is in `prompt`.
        prompt: the one prompt of all images; empty where there are several.
        caption: what is held fixed, and what is left out.
        corner: what the heads of the columns are.
        columns: heads.
        rows: label and places.
    """

    name: str
    title: str
    prompt: str
    caption: str
    corner: str
    columns: list[str]
    rows: list[tuple[str, list[Place]]]


@dataclass(frozen=True)
class ImageIndex:
    """The images of a run by their place."""

    view: RunView
    rows: dict[tuple[str, int, int], Row]
    prompts: list[int]
    seeds: list[int]

    def place(self, cell: str, prompt: int, seed: int) -> Place:
        """Return an image, or that the run has none there."""
        return Place(self.rows.get((cell, prompt, seed)), f"seed {seed}")

    def prompt(self, index: int, limit: int = PROMPT_LENGTH) -> str:
        """Return a prompt's text."""
        texts = (row["prompt"] for key, row in self.rows.items() if key[1] == index)
        return truncate(next(texts, ""), limit)

    def noise(self, held: str) -> str:
        """Return what is said of the noise of a grid, and that images made elsewhere have theirs.

        Args:
            held: what holds for images that were made here.
        """
        sets = [one for one in self.view.section("image_sets").values() if isinstance(one, dict)]
        if not sets:
            return held
        if any(one.get("seeds_by_order") for one in sets):
            return f"{held} But images made elsewhere without seeds share none."
        return f"{held} Of images made elsewhere it is their maker's seed."

    def label(self, row: Row) -> str:
        """Return a cell's name within its model."""
        return self.view.labels[row["cell"]]


def choose_grids(view: RunView) -> list[GridSpec]:
    """Return the grids of a run, those first that say most of it."""
    shelf = ImageIndex(
        view,
        {(row["cell"], int(row["prompt_index"]), int(row["seed"])): row for row in view.images},
        sorted({int(row["prompt_index"]) for row in view.images}),
        sorted({int(row["seed"]) for row in view.images}),
    )
    kinds = (_by_seed, _by_sweep, _by_prompt, _extremes)
    return [
        grid
        for kind in kinds
        for n, (model, rows) in enumerate(view.models.items())
        for grid in kind(shelf, truncate(model, NAME_LENGTH), rows, _suffix(view, n))
    ]


def _suffix(view: RunView, n: int) -> str:
    """Return what tells the files of several models apart."""
    return f"_model{n + 1}" if len(view.models) > 1 else ""


def _by_seed(shelf: ImageIndex, model: str, rows: Sequence[Row], suffix: str) -> Iterator[GridSpec]:
    """Yield methods down and seeds across, for each of the first prompts."""
    cells, which = side_by_side(shelf.view, rows)
    seeds = shelf.seeds[:SEEDS_SHOWN]
    for prompt in shelf.prompts[:PROMPTS_SHOWN]:
        yield GridSpec(
            name=f"grid_seeds_prompt{prompt}{suffix}",
            title=f"{model}: methods by seed",
            prompt=shelf.prompt(prompt),
            caption=" ".join(
                filter(
                    None,
                    (
                        shelf.noise("One noise a column."),
                        which,
                        _left_out(seeds, shelf.seeds, "seed"),
                        _left_out(shelf.prompts[:PROMPTS_SHOWN], shelf.prompts, "prompt"),
                    ),
                )
            ),
            corner="seed",
            columns=[str(seed) for seed in seeds],
            rows=[
                (shelf.label(row), [shelf.place(row["cell"], prompt, seed) for seed in seeds])
                for row in cells
            ],
        )


def _left_out(shown: Sequence[object], of_all: Sequence[object], noun: str) -> str:
    if len(shown) == len(of_all):
        return ""
    return f"The first {len(shown)} of {pluralize(len(of_all), noun)}."


def _by_sweep(
    shelf: ImageIndex, model: str, rows: Sequence[Row], suffix: str
) -> Iterator[GridSpec]:
    """Yield a swept parameter down and methods across, for each parameter and the first seeds.

    One that a single method takes goes across instead, and seeds down.
    """
    points = [shelf.view.points.get(row["cell"], {}) for row in rows]
    best = best_row(rows, deciding_metric(shelf.view)) or rows[0]
    for name in dict.fromkeys(name for point in points for name in point):
        values = list(dict.fromkeys(point[name] for point in points if name in point))
        shown = some_of(values)
        taking = [row for row, point in zip(rows, points, strict=True) if name in point]
        # What is not varied here stays where the run was best, as far as that has it.
        others = {
            other: value
            for other, value in shelf.view.points.get(best["cell"], {}).items()
            if other != name
        }
        methods = list(dict.fromkeys(truncate(row["method"], NAME_LENGTH) for row in taking))
        if len(methods) == 1:
            yield _along(shelf, f"{model}: {methods[0]}", name, values, taking, others, suffix)
            continue
        lines = {v: rows_at_point(shelf.view, taking, others | {name: v}) for v in shown}
        across = methods[:METHODS_ACROSS]
        told = [
            shelf.noise("The same noise everywhere."),
            f"At {point_label(others)}." if others else "",
            f"{len(shown)} of {len(values)} values." if len(shown) < len(values) else "",
            _left_out(across, methods, "method"),
        ]
        for seed in shelf.seeds[:SEEDS_OF_A_SWEEP]:
            yield GridSpec(
                name=f"grid_{_slug(name)}_seed{seed}{suffix}",
                title=f"{model}: {parameter_label(name)} by method, seed {seed}",
                prompt=shelf.prompt(shelf.prompts[0]),
                caption=" ".join(filter(None, told)),
                corner=parameter_label(name),
                columns=across,
                rows=[
                    (value, [_of_method(shelf, found, method, seed) for method in across])
                    for value, found in lines.items()
                ],
            )


def _along(
    shelf: ImageIndex,
    title: str,
    name: str,
    values: Sequence[str],
    taking: Sequence[Row],
    others: Mapping[str, str],
    suffix: str,
) -> GridSpec:
    """Return a swept parameter of one method across, and seeds down."""
    shown = some_of(values, SEEDS_SHOWN)
    seeds = shelf.seeds[:SEEDS_DOWN]
    cells = [rows_at_point(shelf.view, taking, {**others, name: value}) for value in shown]
    told = [
        shelf.noise("One noise a row."),
        f"At {point_label(others)}." if others else "",
        f"{len(shown)} of {len(values)} values." if len(shown) < len(values) else "",
        _left_out(seeds, shelf.seeds, "seed"),
    ]
    prompt = shelf.prompts[0]
    return GridSpec(
        name=f"grid_{_slug(name)}{suffix}",
        title=f"{title} by {parameter_label(name)}",
        prompt=shelf.prompt(prompt),
        caption=" ".join(filter(None, told)),
        corner="seed",
        columns=shown,
        rows=[
            (
                str(seed),
                [
                    shelf.place(found[0]["cell"], prompt, seed)
                    if found
                    else Place(None, f"seed {seed}")
                    for found in cells
                ],
            )
            for seed in seeds
        ],
    )


def _of_method(shelf: ImageIndex, found: Sequence[Row], method: str, seed: int) -> Place:
    cells = [row["cell"] for row in found if truncate(row["method"], NAME_LENGTH) == method]
    if not cells:
        return Place(None, f"seed {seed}")
    return shelf.place(cells[0], shelf.prompts[0], seed)


def some_of(values: Sequence[str], limit: int = POINTS_SHOWN) -> list[str]:
    """Return every n-th value, the last among them: of 0.2, 0.3 … 1.3 it is 0.4, 0.7, 1.0, 1.3.

    Args:
        values: of a sweep, in order.
        limit: how many at most.
    """
    step = -(-len(values) // limit)
    return list(values[::-1][::step][::-1])


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in name)[:40]


def _by_prompt(
    shelf: ImageIndex, model: str, rows: Sequence[Row], suffix: str
) -> Iterator[GridSpec]:
    """Yield prompts down and methods across with one seed, where there are several prompts."""
    if len(shelf.prompts) < 2 or len(shelf.view.rows) < 2:
        return
    cells, which = side_by_side(shelf.view, rows)
    prompts, seed = shelf.prompts[:PROMPTS_DOWN], shelf.seeds[0]
    told = (
        shelf.noise("The same noise everywhere."),
        which,
        _left_out(prompts, shelf.prompts, "prompt"),
    )
    yield GridSpec(
        name=f"grid_prompts_seed{seed}{suffix}",
        title=f"{model}: prompts by method, seed {seed}",
        prompt="",
        caption=" ".join(filter(None, told)),
        corner="prompt",
        columns=[shelf.label(row) for row in cells],
        rows=[
            (shelf.prompt(p, LABEL_LENGTH), [shelf.place(row["cell"], p, seed) for row in cells])
            for p in prompts
        ],
    )


def _extremes(
    shelf: ImageIndex, model: str, rows: Sequence[Row], suffix: str
) -> Iterator[GridSpec]:
    """Yield the most and the least diverse prompt of the baseline and of the best method."""
    metric = deciding_metric(shelf.view)
    settings = best_of_each_method(rows, metric)
    base = [row for row in settings if row["method"] == shelf.view.baseline]
    best = best_row([row for row in settings if row not in base], metric)
    cells = [*base, *([best] if best else [])]
    lines = [line for row in cells for line in _extremes_of(shelf, row)]
    if not lines:
        return
    names = join_names([shelf.label(row) for row in cells])
    yield GridSpec(
        name=f"grid_extremes{suffix}",
        title=f"{model}: the most and the least diverse prompts",
        prompt="",
        caption=(
            f"Of {names}. Diversity is of all the images of the prompt; ± is its standard error by "
            f"the jackknife. {_left_out(shelf.seeds[:SEEDS_SHOWN], shelf.seeds, 'seed')}"
        ).rstrip(),
        corner="seed",
        columns=[str(seed) for seed in shelf.seeds[:SEEDS_SHOWN]],
        rows=lines,
    )


def _extremes_of(shelf: ImageIndex, row: Row) -> Iterator[tuple[str, list[Place]]]:
    """Yield the two rows of a cell; none unless two of its prompts have a diversity."""
    found = [r for r in shelf.view.diversities if r["cell"] == row["cell"]]
    known = [r for r in found if as_finite_float(r.get("diversity")) is not None]
    if len(known) < 2:
        return
    ranked = sorted(known, key=lambda prompt: float(prompt["diversity"]))
    ends = {"most": ranked[-1], "least": ranked[0]}
    for end, prompt in ends.items():
        index = int(prompt["prompt_index"])
        error = as_finite_float(prompt.get("standard_error"))
        size = format_fixed(prompt["diversity"]) + (
            f" ± {format_fixed(error)}" if error is not None else ""
        )
        label = f"{shelf.label(row)}, {end}: {size} – {shelf.prompt(index, LABEL_LENGTH)}"
        seeds = shelf.seeds[:SEEDS_SHOWN]
        yield label, [shelf.place(row["cell"], index, seed) for seed in seeds]
