"""Image grids: what the report shows of the images, and the same as files under `figures/`."""

from __future__ import annotations

from dataclasses import dataclass

from autolora_eval._text import as_finite_float, format_fixed, truncate
from autolora_eval.report.grid_layout import PROMPT_LENGTH, GridSpec, Place, choose_grids
from autolora_eval.report.run_view import Row, RunView, in_words, text_of
from autolora_eval.report.thumbnails import Copy, copies

# Large images take 30 ms each to be read.
IMAGES_READ = 256


@dataclass(frozen=True)
class GridImage:
    """One image of a grid.

    Attributes:
        name: of its thumbnail; empty if there is no image.
        text: its seed and scores, or why there is no image.
        file: its path below the run folder; empty if there is no image.
    """

    name: str
    text: str
    file: str = ""


@dataclass(frozen=True)
class GridRow:
    """A row of images."""

    label: str
    pictures: list[GridImage]


@dataclass(frozen=True)
class Grid:
    """Images side by side; see `grid_choice.GridSpec`."""

    name: str
    title: str
    prompt: str
    caption: str
    corner: str
    columns: list[str]
    rows: list[GridRow]


@dataclass(frozen=True)
class Grids:
    """All grids, and the small copies that they show, by name of file."""

    grids: list[Grid]
    copies: dict[str, Copy]

    @property
    def thumbnails(self) -> dict[str, bytes]:
        """The small copies as files."""
        return {name: copy.data for name, copy in self.copies.items()}


def image_grids(view: RunView) -> Grids:
    """Return the grids of a run, as many as its images can be read for."""
    choices = _affordable(choose_grids(view))
    files = [file for choice in choices for file in _files(choice)]
    found = copies(view.run.folder.path, files)
    grids = [_grid(view, choice, found) for choice in choices]
    return Grids(grids, {copy.name: copy for copy in found.values() if copy.name})


def _affordable(choices: list[GridSpec]) -> list[GridSpec]:
    """Return the first grids whose images are no more than may be read, and the very first."""
    kept: list[GridSpec] = []
    read: set[str] = set()
    for choice in choices:
        more = read | set(_files(choice))
        if not kept or len(more) <= IMAGES_READ:
            kept.append(choice)
            read = more
    return kept


def _files(choice: GridSpec) -> list[str]:
    places = [place.row for _, row in choice.rows for place in row]
    return [file for row in places if row and (file := text_of(row.get("file")))]


def _grid(view: RunView, choice: GridSpec, found: dict[str, Copy]) -> Grid:
    rows = [
        GridRow(label, [_picture(view, place, found) for place in places])
        for label, places in choice.rows
    ]
    return Grid(
        *(choice.name, choice.title, choice.prompt, choice.caption, choice.corner, choice.columns),
        rows,
    )


def _picture(view: RunView, place: Place, found: dict[str, Copy]) -> GridImage:
    if place.row is None:
        return GridImage("", f"{place.what}: not in this run")
    copy = found.get(text_of(place.row.get("file")) or "")
    if copy is None or not copy.name:
        error = f"cannot be read: {copy.problem}" if copy else "no file"
        reason = in_words(place.row.get("image_error")) or error
        return GridImage("", truncate(f"{place.what}: {reason}", PROMPT_LENGTH))
    text = f"{place.what}: {_scores(view, place.row)}"
    return GridImage(copy.name, text, str(place.row["file"]))


def _scores(view: RunView, row: Row) -> str:
    scores = [metric for metric in view.metrics if metric.kind == "score"]
    found = [
        f"{m.label} {format_fixed(row[m.column], 1)}"
        for m in scores
        if as_finite_float(row.get(m.column)) is not None
    ]
    reason = in_words(row.get("unscored_reason"))
    if scores and reason:
        return truncate(f"unscored: {reason}", PROMPT_LENGTH)
    return ", ".join(found) or "no scores"
