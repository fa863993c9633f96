"""The findings of a run: which method ranks first, and how each differs from the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from autolora_eval._text import (
    Sentences,
    as_finite_float,
    format_fixed,
    format_interval,
    parameter_label,
    point_label,
    sanitize,
    truncate,
)
from autolora_eval.analysis.comparisons import SIGNIFICANCE, WILCOXON, Comparison
from autolora_eval.analysis.metrics import DIVERSITY, Metric
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView, grouped

# If a model has more cells, only some of them are shown side by side.
CELLS_SIDE_BY_SIDE = 9
MODELS_NAMED = 3
METHODS_NAMED = 4
PRODUCTS_NAMED = 2
# More sentences do not fit on the first page: comparisons are then summarized.
SENTENCES_IN_FULL = 6
MAX_UNITS = 10_000
# The interval excludes zero, but the corrected p-value is not below 0.05.
_ONLY_UNCORRECTED = "not significant after correction"
say, say_comparison = Sentences("findings"), Sentences("comparisons")


# ---- Ranking


def deciding_metric(view: RunView) -> Metric:
    """Return the metric that methods are ranked by if there must be a single one.

    As in the paper it is the product of diversity and score, for the first score that has one;
    otherwise it is diversity.
    """
    return next((m for m in view.metrics if m.kind == "product"), view.metrics[0])


def loss(row: Row | None, metric: Metric) -> float:
    """Return a value to sort rows by, the best first; infinite if the row has no value."""
    value = as_finite_float((row or {}).get(metric.column))
    if value is None:
        return float("inf")
    return -value if metric.higher_is_better else value


def best_row(rows: Sequence[Row], metric: Metric) -> Row | None:
    """Return the row with the best value, the first of equals; None if no row has a value."""
    known = [row for row in rows if as_finite_float(row.get(metric.column)) is not None]
    return min(known, key=lambda row: loss(row, metric), default=None)


def best_of_each_method(rows: Sequence[Row], metric: Metric) -> list[Row]:
    """Return the best cell of each method of one model, or its first if none has a value."""
    return [best_row(alike, metric) or alike[0] for alike in grouped(rows, "method").values()]


def rows_at_point(view: RunView, rows: Sequence[Row], point: Mapping[str, str]) -> list[Row]:
    """Return the cell of each method of one model at a sweep point, the first that fits.

    A parameter that a method does not take is ignored for it.
    """

    def fits(row: Row) -> bool:
        own = view.points.get(row["cell"], {})
        return all(point.get(name, value) == value for name, value in own.items())

    fitting = [row for row in rows if fits(row)]
    methods = grouped(rows, "method")
    found = grouped(fitting, "method")
    return [found[method][0] for method in methods if method in found]


def side_by_side(view: RunView, rows: Sequence[Row]) -> tuple[list[Row], str]:
    """Return the cells of one model that are shown side by side, and which those are.

    Returns:
        All cells if they are few; of a sweep, else those at the point with the best value of the
        deciding metric, and a sentence that says so; of other runs, the first ones.
    """
    if len(rows) <= CELLS_SIDE_BY_SIDE:
        return list(rows), ""
    metric = deciding_metric(view)
    best = best_row(rows, metric) or rows[0]
    point = view.points.get(best["cell"], {})
    if not point:
        return list(rows[:CELLS_SIDE_BY_SIDE]), ""
    chosen = rows_at_point(view, rows, point)[:CELLS_SIDE_BY_SIDE]
    return chosen, say.best_point(point, best["method"], metric.label)


# ---- Which method ranks first


@dataclass(frozen=True)
class ComparisonSummary:
    """What was found about one cell, or about one method along a sweep.

    Attributes:
        lead: Who is compared with whom.
        sentences: One sentence per metric or group of metrics.
        listed: Whether each sentence has a line of its own.
    """

    lead: str
    sentences: list[str]
    listed: bool = False


def winner_sentences(view: RunView) -> list[ComparisonSummary]:
    """Return which method ranks first by diversity × score, for each model.

    Without a judge it is by diversity.
    """
    products = [m for m in view.metrics if m.kind == "product"][:PRODUCTS_NAMED]
    metrics = products or [deciding_metric(view)]
    models = list(view.models)
    found = [_winner(view, model, m) for model in models[:MODELS_NAMED] for m in metrics]
    left = len(models) - MODELS_NAMED
    more = [ComparisonSummary(say.more_models(left), [])] if left > 0 else []
    return [*filter(None, found), *more]


def _winner(view: RunView, model: str, metric: Metric) -> ComparisonSummary | None:
    rows = view.models[model]
    first = best_row(rows, metric)
    if first is None or len({row["method"] for row in rows}) == 1:
        return None
    others = [row for row in rows if row["method"] != first["method"]]
    named = metric.label == metric.display_name
    name = sanitize(metric.display_name) + ("" if named else f" ({metric.label})")
    title = (_model_name(view, model), name)
    best = [row for row in best_of_each_method(others, metric) if _are_equal(row, first, metric)]
    if best:
        names = [_cell_name(view, row) for row in (first, *best)]
        value = format_fixed(first.get(metric.column))
        return ComparisonSummary(say.tied_lead(*title, names, METHODS_NAMED), [say.tied(value)])
    is_baseline = first["method"] == view.baseline
    lead = say.winner_lead(*title, _cell_name(view, first), is_baseline)
    second = best_row(others, metric)
    return ComparisonSummary(lead, [_winner_sentence(view, metric, first, second)])


def _winner_sentence(view: RunView, metric: Metric, first: Row, second: Row | None) -> str:
    """Return how the best cell, or if that is the baseline's the second, compares with it."""
    compared = second if first["method"] == view.baseline else first
    cell = compared["cell"] if compared else ""
    base = view.baseline_cells.get(cell, "")
    comparison = view.comparisons.get((cell, metric.column))
    # The baseline's cell that the first was compared with need not be named again.
    is_named = (
        compared is first
        and second is not None
        and (second["cell"] == base if base else second["method"] == view.baseline)
    )
    shown = None if is_named else second
    return say.winner(
        value=_value(first, metric),
        nothing_else=compared is None,
        comparison=comparison if compared is first else None,
        at_same_point=all(view.points.get(one) for one in (cell, base)),
        n_shared=_n_shared(view, cell, metric),
        second=shown and _cell_name(view, shown),
        second_value=shown and _value(shown, metric),
        second_comparison=comparison if shown and compared is shown else None,
    )


def _n_shared(view: RunView, cell: str, metric: Metric) -> int:
    """Return the number of units that a cell and the baseline share; 0 if these are all.

    A product has the units of both factors, each of which is restricted to its shared units.
    """
    columns = (metric.column, DIVERSITY.column, metric.column.removeprefix("div_"))
    found = [c for column in columns if (c := view.comparisons.get((cell, column)))]
    if not found:
        return 0
    n = min(comparison.n_units for comparison in found)
    unit = "prompt_index" if found[0].unit == "prompt" else "seed"
    return n if n < view.images[unit].nunique() else 0


def _are_equal(a: Row, b: Row, metric: Metric) -> bool:
    """Return True if both have the same value, up to rounding errors."""
    x, y = (as_finite_float(row.get(metric.column)) for row in (a, b))
    return x is not None and y is not None and math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12)


def _model_name(view: RunView, model: str) -> str:
    return truncate(model, NAME_LENGTH) if len(view.models) > 1 else ""


def _cell_name(view: RunView, row: Row) -> str:
    """Return a cell's name in a sentence: its method and its sweep point."""
    point = view.points.get(row["cell"], {})
    name = truncate(row["method"], NAME_LENGTH)
    return f"{name} at {point_label(point)}" if point else name


def _value(row: Row, metric: Metric) -> str:
    within = format_interval(row.get(f"{metric.column}_low"), row.get(f"{metric.column}_high"))
    return f"{format_fixed(row.get(metric.column))} {within}".rstrip()


# ---- Differences from the baseline


# The comparisons of one method on one model, by cell.
ByCell = dict[str, list[Comparison]]


def findings(view: RunView) -> list[ComparisonSummary]:
    """Return one summary for each method that was compared with the baseline."""
    groups: dict[tuple[str, str], ByCell] = {}
    for row in view.compared:
        found = view.comparisons.get((row["cell"], row["metric"]))
        if found is not None and row["method"] != row["baseline"]:
            cells = groups.setdefault((str(row["model"]), str(row["method"])), {})
            cells.setdefault(str(row["cell"]), []).append(found)
    n_sentences = len(groups) * len(view.metrics)
    in_full = n_sentences <= SENTENCES_IN_FULL and all(len(c) == 1 for c in groups.values())
    n_significant = sum(found.is_significant for found in view.comparisons.values())
    metric, by_method = deciding_metric(view), grouped(view.rows, "model", "method")

    def rank(key: tuple[str, str]) -> float:
        return loss(best_row(by_method.get(key, []), metric), metric)

    # There is room for the methods with the best values.
    kept = sorted(groups, key=rank)[:METHODS_NAMED]
    summaries = [
        _summary(view, key[0], cells, in_full, n_significant <= SENTENCES_IN_FULL)
        for key, cells in groups.items()
        if key in kept
    ]
    left = len(groups) - len(kept)
    return [*summaries, ComparisonSummary(say.more_methods(left), [])] if left else summaries


def _summary(
    view: RunView, model: str, cells: ByCell, in_full: bool, significant_in_full: bool
) -> ComparisonSummary:
    found = [comparison for own in cells.values() for comparison in own]
    order = {metric.column: n for n, metric in enumerate(view.metrics)}
    found.sort(key=lambda comparison: order[comparison.metric.column])
    parameters = sorted({name for cell in cells for name in view.points.get(cell, {})})
    names = [sanitize(parameter_label(name)) for name in parameters]
    name = _model_name(view, model)
    lead = say.against(name, found[0].method, found[0].baseline, len(cells), names)
    if len(cells) > 1:
        metrics = dict.fromkeys(comparison.metric for comparison in found)
        return ComparisonSummary(lead, [_along(view, cells, metric) for metric in metrics])
    if in_full:
        return ComparisonSummary(lead, [say_comparison.sentence(c, "") for c in found], listed=True)
    first = [c for c in found if significant_in_full and c.is_significant]
    sentences = [say_comparison.sentence(c, "") for c in first]
    return ComparisonSummary(lead, sentences + _in_brief([c for c in found if c not in first]))


def _in_brief(found: Sequence[Comparison]) -> list[str]:
    """Return the comparisons in brief, one sentence for each outcome."""
    groups: dict[str, list[str]] = {
        name: [] for name in ("significant", _ONLY_UNCORRECTED, "not significant")
    }
    not_tested = []
    for comparison in found:
        brief = say_comparison.brief(comparison)
        if comparison.outcome in ("not compared", "no interval"):
            not_tested.append(comparison.metric.label)
        elif comparison.outcome == "unclear":
            groups["not significant"].append(brief)
        elif comparison.may_be_chance:
            groups[_ONLY_UNCORRECTED].append(brief)
        else:
            groups["significant"].append(brief)
    sentences = [say.group(outcome, briefs) for outcome, briefs in groups.items() if briefs]
    return [*sentences, say.not_tested(not_tested)] if not_tested else sentences


def _along(view: RunView, cells: ByCell, metric: Metric) -> str:
    """Return how a method compares with the baseline along a sweep, by one metric."""
    known = [
        (cell, found, found.difference)
        for cell, own in cells.items()
        for found in own
        if found.metric == metric and found.difference is not None
    ]
    if not known:
        return say.not_tested([metric.label])
    middle = median(difference for _, _, difference in known)
    up, down = (sum(sign * difference > 0 for _, _, difference in known) for sign in (1, -1))
    # If most points are ties, the median is zero and says nothing about the others.
    sign = -1 if (down, -middle) > (up, middle) else 1
    direction = "higher" if sign > 0 else "lower"
    agree = [found.outcome == direction for _, found, _ in known if found.is_significant]
    cell, largest, _ = max(known, key=lambda item: sign * item[2])
    return say.along_sweep(
        metric=metric.label,
        direction=direction,
        n_ahead=up if sign > 0 else down,
        n_points=len(known),
        n_significant=sum(agree),
        n_opposite=len(agree) - sum(agree),
        median=middle,
        largest=largest,
        where=point_label(view.points.get(cell, {})),
    )


# ---- Statistical significance


def certainty_sentences(view: RunView) -> list[str]:
    """Return how many differences are significant, and the sample sizes that they need."""
    found = [comparison for comparison in view.comparisons.values() if comparison.p is not None]
    if not found:
        return []
    n_significant = sum(comparison.is_significant for comparison in found)
    unit = found[0].unit
    alike = [comparison for comparison in found if comparison.unit == unit]
    counts = sorted({comparison.n_units for comparison in alike})
    sentences = [say.significant(n_significant, len(found), unit, counts[0], counts[-1])]
    n_ranked = sum(row.get("test") == WILCOXON for row in view.compared)
    # If all n units agree, p is 2/2ⁿ. At best, Holm's correction multiplies it by n_ranked.
    if n_ranked * 2.0 ** (1 - counts[-1]) >= SIGNIFICANCE:
        least = math.ceil(math.log2(n_ranked / SIGNIFICANCE)) + 1
        sentences.append(say.too_few(unit, counts[-1], least))
    sizes = []
    for metric in view.metrics:
        needed = [c.units_needed for c in alike if c.metric == metric and c.units_needed]
        if needed:
            sizes.append((metric.label, min(needed), max(needed)))
    return [*sentences, say.power(unit, sizes, MAX_UNITS)] if sizes else sentences
