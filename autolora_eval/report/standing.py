"""Who is ahead in a run: the measure that decides, and the cells that stand for their methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autolora_eval.analysis.measures import Measure
from autolora_eval.report.evidence import Evidence, Row
from autolora_eval.text import number, place_words

# More cells of a model than these are not all shown side by side.
CELLS_SIDE_BY_SIDE = 9


def deciding_measure(evidence: Evidence) -> Measure:
    """Return the measure that methods are ranked by where there must be one.

    As in the paper it is the product of diversity and score, of which the first score's is taken;
    without a judge it is diversity.
    """
    products = [measure for measure in evidence.measured if measure.kind == "product"]
    return products[0] if products else evidence.measured[0]


def best_of(rows: Sequence[Row], measure: Measure) -> Row | None:
    """Return the row with the best value; the first of equals, None where none has a value."""
    known = [row for row in rows if number(row.get(measure.column)) is not None]
    if not known:
        return None
    sign = 1.0 if measure.higher_is_better else -1.0
    return max(known, key=lambda row: sign * float(row[measure.column]))


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return rows of one model by method, in order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row["method"]), []).append(row)
    return groups


def best_settings(rows: Sequence[Row], measure: Measure) -> list[Row]:
    """Return for each method of one model its best cell; its first where none has a value."""
    return [best_of(alike, measure) or alike[0] for alike in by_method(rows).values()]


def at_point(evidence: Evidence, rows: Sequence[Row], point: Mapping[str, str]) -> list[Row]:
    """Return for each method of one model its cell at a sweep point.

    Args:
        evidence: the run.
        rows: of one model.
        point: swept parameters; one that a method does not take does not matter for it. Of several
            cells, which differ in a parameter that is not in the point, the first is taken.
    """
    found = []
    for alike in by_method(rows).values():
        for row in alike:
            own = evidence.points.get(row["cell"], {})
            if all(point.get(name, value) == value for name, value in own.items()):
                found.append(row)
                break
    return found


def side_by_side(evidence: Evidence, rows: Sequence[Row]) -> tuple[list[Row], str]:
    """Return the cells of a model that are shown side by side, and which those are.

    Args:
        evidence: the run.
        rows: of one model.

    Returns:
        All cells if they are few; else those at the sweep point where the deciding measure is
        best, and a sentence that says so.
    """
    if len(rows) <= CELLS_SIDE_BY_SIDE:
        return list(rows), ""
    measure = deciding_measure(evidence)
    best = best_of(rows, measure) or rows[0]
    point = evidence.points.get(best["cell"], {})
    if not point:
        return list(rows[:CELLS_SIDE_BY_SIDE]), f"The first {CELLS_SIDE_BY_SIDE} methods."
    told = (
        f"Each at {place_words(point)}, where {best['method']} has the best {measure.label} of the "
        "run, as far as a method takes it."
    )
    return at_point(evidence, rows, point)[:CELLS_SIDE_BY_SIDE], told
