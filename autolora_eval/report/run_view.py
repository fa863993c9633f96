"""What a report is made from: the tables and the manifest of a run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from autolora_eval._text import (
    format_swept_value,
    point_label,
    truncate,
)
from autolora_eval.analysis.comparisons import Comparison, read_comparison
from autolora_eval.analysis.metrics import Metric, run_metrics
from autolora_eval.analysis.scores import N_MADE_ALONE, SECONDS_PER_IMAGE, records
from autolora_eval.analysis.table_layout import group_by_model
from autolora_eval.analysis.tables import missing_reasons
from autolora_eval.report.figures._base import FigureData
from autolora_eval.report.figures._style import values
from autolora_eval.runs.folder import Run, open_run
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import HardwareRecord

if TYPE_CHECKING:
    import pandas as pd

    from autolora_eval.runs.folder import RunFolder

Row = dict[str, Any]
NAME_LENGTH = 80
REASON_LENGTH = 160
NO_REASON = "reason not recorded"


@dataclass(frozen=True)
class RunView:
    """A run as the report reads it: its tables, and its metrics in order."""

    run: Run
    metrics: list[Metric]

    @property
    def manifest(self) -> RunManifest:
        """What was run."""
        return self.run.manifest

    @property
    def imported(self) -> str:
        """Whether "some" or "all" images were made elsewhere; empty if none."""
        n_sets = len(self.manifest.image_sets)
        return "all" if n_sets == len(self.manifest.cells) else "some" if n_sets else ""

    @property
    def baseline(self) -> str:
        """The method that the others are compared with."""
        return self.manifest.benchmark.baseline

    @property
    def judged(self) -> list[Metric]:
        """The judge's scores; empty without a judge."""
        return [metric for metric in self.metrics if metric.kind == "score"]

    # ---- Cells

    @cached_property
    def table(self) -> pd.DataFrame:
        """The result table, with the seconds of an image where they were taken."""
        table, timings = self.run.table, self.run.timings
        seconds = dict(zip(timings["cell"], timings[SECONDS_PER_IMAGE], strict=True))
        return table.assign(**{SECONDS_PER_IMAGE: table["cell"].map(seconds).astype("float64")})

    @property
    def made_alone(self) -> list[str]:
        """The cells whose images were made in batches of 1, since their guiders mix images."""
        timings = self.run.timings
        if N_MADE_ALONE not in timings:  # a run of an earlier version
            return []
        return [str(cell) for cell in timings.loc[timings[N_MADE_ALONE] > 0, "cell"]]

    def hardware(self, cell: str) -> HardwareRecord:
        """Return the machine of a cell's images; in a comparison, that of its run."""
        manifest, run = self.manifest, self.manifest.cell(cell).run
        return manifest.compared[run].hardware if manifest.compared and run else manifest.hardware

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of `table`, one per cell."""
        return records(self.table)

    @cached_property
    def models(self) -> dict[str, list[Row]]:
        """The rows of the result table by model, in order."""
        return group_by_model(self.rows)

    @cached_property
    def points(self) -> dict[str, dict[str, str]]:
        """The swept parameters that distinguish a cell from others of its model and method."""
        points = {
            cell.id: {
                truncate(name, NAME_LENGTH): truncate(format_swept_value(value), NAME_LENGTH)
                for name, value in cell.point.items()
            }
            for cell in self.manifest.cells
        }
        found = {}
        for alike in grouped(self.rows, "model", "method").values():
            swept = {row["cell"]: points.get(row["cell"], {}) for row in alike}
            for cell, point in swept.items():
                found[cell] = {
                    name: value
                    for name, value in point.items()
                    if len({other.get(name) for other in swept.values()}) > 1
                }
        return found

    @property
    def is_swept(self) -> bool:
        """Whether cells of one method differ in a swept parameter."""
        return any(self.points.values())

    @cached_property
    def labels(self) -> dict[str, str]:
        """The name of each cell within its model: the method and, in a sweep, its point."""
        found = {row["cell"]: truncate(row["method"], NAME_LENGTH) for row in self.rows}
        for cell, point in self.points.items():
            if point:
                found[cell] = truncate(f"{found[cell]} ({point_label(point)})", 2 * NAME_LENGTH)
        return found

    @property
    def figure_data(self) -> FigureData:
        """What figures are drawn from."""
        return FigureData(
            table=self.table,
            metrics=[m for m in self.metrics if np.isfinite(values(self.table, m.column)).any()],
            points=self.points,
            labels=self.labels,
            scores=self.run.scores,
            diversity=self.run.diversity,
            comparisons=self.run.comparisons,
        )

    # ---- Images

    @property
    def images(self) -> pd.DataFrame:
        """The rows of scores.parquet, one per image: too many to be objects of Python."""
        return self.run.scores

    @cached_property
    def unscored(self) -> dict[str, Counter[str]]:
        """How many images of each cell have no score, by reason in words."""
        found: dict[str, Counter[str]] = {}
        counts = self.images.groupby(["cell", "unscored_reason"], sort=False).size()
        for cell, reason, n in counts.reset_index().itertuples(index=False, name=None):
            if words := truncate(in_words(reason) or "", REASON_LENGTH):
                found.setdefault(str(cell), Counter())[words] += int(n)
        return found

    @cached_property
    def unscored_reasons(self) -> list[tuple[str, int]]:
        """Why images have no score, and how many, the most frequent first."""
        return ranked(sum(self.unscored.values(), Counter()))

    @cached_property
    def reasons(self) -> dict[tuple[str, str], str]:
        """Why a cell (first) has no value of a metric (second), or some of its units have none."""
        found = missing_reasons(self.images, self.run.diversity, self.table, self.metrics)
        return {key: truncate(in_words(why), REASON_LENGTH) for key, why in found.items()}

    def why_missing(self, cell: str, metric: Metric) -> str:
        """Return why a cell has no value of a metric, or some of its units have none."""
        return self.reasons.get((cell, metric.column), NO_REASON)

    # ---- Comparisons and the judge

    @cached_property
    def compared(self) -> list[Row]:
        """The rows of comparisons.csv."""
        return records(self.run.comparisons)

    @cached_property
    def comparisons(self) -> dict[tuple[str, str], Comparison]:
        """The comparisons with the baseline, by cell and metric column."""
        by_column = {metric.column: metric for metric in self.metrics}
        return {
            (row["cell"], row["metric"]): read_comparison(
                row,
                by_column[row["metric"]],
                truncate(row["method"], NAME_LENGTH),
                truncate(row["baseline"], NAME_LENGTH),
            )
            for row in self.compared
            if row["metric"] in by_column
        }

    @cached_property
    def baseline_cells(self) -> dict[str, str]:
        """The baseline's cell that each cell is compared with."""
        return {row["cell"]: row["baseline_cell"] for row in self.compared}

    @cached_property
    def reliability(self) -> list[Row]:
        """How well the judge agrees with itself; empty without a judge."""
        return [] if self.run.reliability is None else records(self.run.reliability)

    @cached_property
    def agreement(self) -> list[Row]:
        """How well the judge agrees with people; empty without human ratings."""
        return [] if self.run.agreement is None else records(self.run.agreement)


def read_run_view(folder: RunFolder) -> RunView:
    """Read the files of a run folder.

    Raises:
        UsageError: It is not a run folder, or it has no table yet.
    """
    run = open_run(folder.path)
    return RunView(run, run_metrics(run.manifest))


def grouped(rows: Iterable[Row], *columns: str) -> dict[tuple[Any, ...], list[Row]]:
    """Return rows by their values in some columns, in order."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(column) for column in columns), []).append(row)
    return groups


def row_where(rows: Iterable[Row], **where: str) -> Row:
    """Return the first row with these values; empty if there is none."""
    return next((r for r in rows if all(r.get(key) == value for key, value in where.items())), {})


def text_of(value: object) -> str | None:
    """Return the text in a cell of a table; None for NaN, which means no text."""
    return value if isinstance(value, str) and value else None


def in_words(reason: object) -> str | None:
    """Return a reason with its code as words: `out_of_range:pc` as "out of range: pc"."""
    text = text_of(reason)
    code = text and re.match(r"([a-z]+(?:_[a-z]+)+)(:\s*)?", text)
    if not text or not code:
        return text
    words = code[1].replace("_", " ").replace("json", "JSON")
    return f"{words}{': ' if code[2] else ''}{text[code.end() :]}"


def unscored_reason(view: RunView, image: Row) -> str | None:
    """Return why an image has no score; None if it has, or no judge was asked."""
    reason = in_words(image.get("unscored_reason")) if view.judged else None
    return truncate(reason, REASON_LENGTH) if reason else None


def tally(reasons: Iterable[object]) -> list[tuple[str, int]]:
    """Return the distinct texts with their counts, the most frequent first."""
    return ranked(Counter(truncate(reason, REASON_LENGTH) for reason in reasons if text_of(reason)))


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return texts with their counts, the most frequent first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
