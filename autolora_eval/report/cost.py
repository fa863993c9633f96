"""What an image cost: denoiser passes, seconds, and calls of the judge, beside the baseline's."""

from __future__ import annotations

from autolora_eval._text import as_finite_float, format_fixed, format_int, point_label, truncate
from autolora_eval.analysis.reliability import ALL
from autolora_eval.analysis.timings import SECONDS_PER_IMAGE
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView, row_where
from autolora_eval.report.tables import Entry, Group, Line, ResultTable

METHODS_TOLD = 8
POINTS_TOLD = 4


def baseline_row(evidence: RunView, row: Row) -> Row | None:
    """Return the cell that a cell is compared with; else the baseline's only one of its model."""
    compared = next((r for r in evidence.compared if r["cell"] == row["cell"]), {})
    base = compared.get("baseline_cell")
    alike = [r for r in evidence.rows if r["model"] == row["model"]]
    named = [r for r in alike if r["cell"] == base]
    own = [r for r in alike if r["method"] == evidence.baseline]
    return named[0] if named else own[0] if len(own) == 1 else None


def ratio(row: Row, base: Row | None, column: str) -> float | None:
    """Return how many times the baseline's; None for the baseline, and where either is unknown."""
    ours, theirs = (as_finite_float((r or {}).get(column)) for r in (row, base))
    if ours is None or not theirs or base is None or base["cell"] == row["cell"]:
        return None
    return ours / theirs


def times(row: Row, base: Row | None, column: str) -> str:
    """Return `ratio` as "2 ×"; empty where there is none."""
    found = ratio(row, base, column)
    return "" if found is None else f"{found:.3g} ×"


def times_note(evidence: RunView) -> str:
    """Return what "×" means: of a sweep, the baseline's cell may not be the one that is shown."""
    there = " with the same swept parameters" if any(evidence.points.values()) else ""
    return f"×: times the baseline's{there}."


def cost_entries(evidence: RunView, row: Row) -> list[Entry]:
    """Return passes, and seconds where they were taken, for a cell of the result table."""
    base = baseline_row(evidence, row)
    entries = [Entry(passes(row.get("nfe")), times(row, base, "nfe"))]
    if has_seconds(evidence):
        entries.append(
            Entry(seconds(row.get(SECONDS_PER_IMAGE)), times(row, base, SECONDS_PER_IMAGE))
        )
    return entries


def cost_heads(evidence: RunView) -> list[str]:
    """Return the heads of `cost_entries`."""
    return ["NFE", "s/image"] if has_seconds(evidence) else ["NFE"]


def has_seconds(evidence: RunView) -> bool:
    """Tell whether any cell knows what its images took."""
    return any(as_finite_float(row.get(SECONDS_PER_IMAGE)) is not None for row in evidence.rows)


def passes(value: object) -> str:
    """Return denoiser passes; those of a sampler that counts them itself may be a mean."""
    found = as_finite_float(value)
    return format_int(value) if found is None or found.is_integer() else format_fixed(found, 1)


def seconds(value: object) -> str:
    """Return seconds with three digits that count; a dash for none."""
    found = as_finite_float(value)
    return (
        format_fixed(found, 0 if found >= 100 else 1 if found >= 10 else 2)
        if found
        else format_fixed(value)
    )


def cost_sentence(evidence: RunView) -> str:
    """Return what the methods cost beside the baseline, in one sentence; empty without one.

    A sweep may change what an image costs: then a method has a range of each.
    """
    told: dict[str, dict[str, list[float]]] = {}
    for row in evidence.rows:
        base = baseline_row(evidence, row)
        if base is None or base["cell"] == row["cell"]:
            continue
        for column, noun in (("nfe", "the passes"), (SECONDS_PER_IMAGE, "the seconds")):
            found = ratio(row, base, column)
            if found is not None:
                own = told.setdefault(truncate(row["method"], NAME_LENGTH), {})
                own.setdefault(noun, []).append(found)
    costs = [
        f"{name} {', '.join(f'{_range(found)} {noun}' for noun, found in own.items())}"
        for name, own in list(told.items())[:METHODS_TOLD]
    ]
    if not costs:
        return ""
    return (
        f"Beside {truncate(evidence.baseline, NAME_LENGTH)}, one image costs: {'; '.join(costs)}."
    )


def _range(found: list[float]) -> str:
    """Return the least and the greatest of several ratios, as one where they are printed alike."""
    least, most = f"{min(found):.3g}×", f"{max(found):.3g}×"
    return least if least == most else f"{least} to {most}"


def cost_table(evidence: RunView) -> ResultTable:
    """Return passes, seconds and judge calls, a line for all cells that are made alike."""
    columns = {"NFE for one image": "nfe"}
    if has_seconds(evidence):
        columns["Seconds for one image"] = SECONDS_PER_IMAGE
    groups = []
    for model, rows in evidence.models.items():
        alike: dict[tuple[str, object], list[Row]] = {}
        for row in rows:
            alike.setdefault((str(row["method"]), row.get("nfe")), []).append(row)
        lines = [_line(evidence, found, columns) for found in alike.values()]
        groups.append(Group(truncate(model, NAME_LENGTH), lines))
    heads = [*columns, "NFE in all", *(["Judge calls"] if evidence.judged else [])]
    caption = (
        f"NFE: denoiser passes really made. {times_note(evidence)}"
        + (
            " Seconds: the median over a cell's images, on the machine of the run."
            if has_seconds(evidence)
            else ""
        )
        + (" Judge calls: verdicts asked for, repeats included." if evidence.judged else "")
    )
    return ResultTable(caption, heads, groups, [])


def _line(evidence: RunView, rows: list[Row], columns: dict[str, str]) -> Line:
    """Return the costs of cells of one method whose images take as many passes."""
    first, base = rows[0], baseline_row(evidence, rows[0])
    name = evidence.labels[first["cell"]]
    if len(rows) > 1:
        points = [point_label(evidence.points.get(row["cell"], {})) for row in rows]
        which = "; ".join(points) if len(rows) <= POINTS_TOLD and all(points) else None
        name = f"{truncate(first['method'], NAME_LENGTH)} ({which or f'{len(rows)} cells'})"
    entries = []
    for column in columns.values():
        known = [value for row in rows if (value := as_finite_float(row.get(column))) is not None]
        mean = sum(known) / len(known) if known else None
        text = passes(mean) if column == "nfe" else seconds(mean)
        entries.append(Entry(text, times(first, base, column)))
    made = [(as_finite_float(row.get("nfe")), as_finite_float(row.get("n_images"))) for row in rows]
    known = [nfe * images for nfe, images in made if nfe is not None and images is not None]
    entries.append(Entry(format_int(sum(known) if len(known) == len(made) else None)))
    if evidence.judged:
        calls = [asked for row in rows if (asked := _calls(evidence, row["cell"])) is not None]
        entries.append(Entry(format_int(sum(calls) if len(calls) == len(rows) else None)))
    return Line(name, entries)


def _calls(evidence: RunView, cell: str) -> float | None:
    """Return how many verdicts were asked for; older runs do not know."""
    rows = [
        row_where(evidence.reliability, score=measure.column, cell=cell)
        for measure in evidence.judged[:1]
        if cell != ALL
    ]
    return as_finite_float(rows[0].get("n_asked")) if rows else None
