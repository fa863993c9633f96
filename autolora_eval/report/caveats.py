"""The caveats on the first page of a report."""

from __future__ import annotations

from collections.abc import Iterator

from autolora_eval._text import Sentences, as_finite_float, format_alpha, sanitize, truncate
from autolora_eval.analysis.metrics import DIVERSITY
from autolora_eval.analysis.reliability import TENTATIVE_ALPHA
from autolora_eval.report.judge_reliability import of_all_cells
from autolora_eval.report.run_view import NAME_LENGTH, RunView, tally
from autolora_eval.runs.manifest import library_versions

REASONS_SHOWN = 5
CELLS_NAMED = 4
PROMPTS_NAMED = 4
END_LENGTH = 40
DIFFERENCES_SHOWN = 6
MESSAGE_LENGTH = 300
UNSCORED_SHARE = 0.01
# Counts of issues of imported images, and their names in the report.
_ISSUES = {
    "missing": "missing",
    "unusable": "unusable",
    "extra": "not in the benchmark and left out",
    "duplicate": "identical to another",
    "wrong_size": "of another size than the model's",
    "constant": "of a single colour",
    "converted": "converted",
}
say = Sentences("caveats")
say_reliability = Sentences("reliability")


def caveats(view: RunView) -> list[str]:
    """Return the caveats, the most serious first."""
    return [
        *_of_the_run(view),
        *_prompt_cuts(view),
        *_imported(view),
        *_of_the_images(view),
        *_of_the_judge(view),
    ]


def _of_the_run(view: RunView) -> Iterator[str]:
    manifest = view.manifest
    sources = {truncate(name, NAME_LENGTH): m.pipeline.name for name, m in manifest.models.items()}
    sources["the extractor"] = manifest.features.model if manifest.features else ""
    sources["the judge"] = manifest.judge.model if manifest.judge else ""
    if names := [name for name, source in sources.items() if "miniature:" in source]:
        yield say.miniatures(names)
    if manifest.is_limited:
        yield say.limited(len(manifest.prompts), len(manifest.seeds))
    for row in manifest.differences[:DIFFERENCES_SHOWN]:
        yield say.difference(truncate(row.message, MESSAGE_LENGTH))
    if (left := len(manifest.differences) - DIFFERENCES_SHOWN) > 0:
        yield say.more_differences(left)
    versions = library_versions(manifest.libraries)
    differing = [f"{name} {each}" for name, each in versions.items() if " and " in each]
    if differing:
        yield say.libraries([sanitize(text) for text in differing])


def _prompt_cuts(view: RunView) -> Iterator[str]:
    for name, cuts in view.manifest.prompt_cuts.items():
        model, shown = truncate(name, NAME_LENGTH), cuts.cut[:PROMPTS_NAMED]
        if shown:
            places = [
                (cut.name, cut.encoders, cut.limit, cut.tokens, sanitize(cut.read)[-END_LENGTH:])
                for cut in shown
            ]
            n_cut = len({cut.name for cut in cuts.cut})
            yield say.prompts_cut(model, n_cut, places, len(cuts.cut) - len(shown))
        if cuts.same:
            groups = cuts.same[:PROMPTS_NAMED]
            yield say.prompts_same(model, groups, len(cuts.same) - len(groups))


def _imported(view: RunView) -> Iterator[str]:
    sets = view.manifest.image_sets
    for cell, found in list(sets.items())[:CELLS_NAMED]:
        issues = [(n, words) for name, words in _ISSUES.items() if (n := getattr(found, name))]
        name, beyond = _cell_name(view, cell), found.beyond_limits
        yield say.imported(name, found.matched, issues, beyond, found.seeds_by_order)
    if (left := len(sets) - CELLS_NAMED) > 0:
        yield say.more_imported(left)


def _counts(view: RunView, column: str) -> dict[str, int]:
    """Return a count of the result table by cell, of cells where it is not 0."""
    found = {row["cell"]: int(as_finite_float(row.get(column)) or 0) for row in view.rows}
    return {cell: n for cell, n in found.items() if n}


def _of_the_images(view: RunView) -> Iterator[str]:
    if alone := [_cell_name(view, cell) for cell in view.made_alone]:
        yield say.made_alone(alone[:CELLS_NAMED], len(alone[CELLS_NAMED:]))
    if missing := _counts(view, "n_missing"):
        cells = [(n, _cell_name(view, cell)) for cell, n in [*missing.items()][:CELLS_NAMED]]
        yield say.images_missing(sum(missing.values()), cells, len(missing) - len(cells))
        if extra := [metric.label for metric in view.metrics if metric.kind == "extra"]:
            yield say.fewer_images(extra)
    unscored = sum(_counts(view, "n_unscored").values())
    if unscored and view.judged:
        reasons, rest = view.unscored_reasons[:REASONS_SHOWN], view.unscored_reasons[REASONS_SHOWN:]
        n_rest = sum(n for _, n in rest)
        yield say.unscored(unscored, len(view.images), reasons, n_rest, len(rest))
    undefined = _counts(view, "n_undefined_prompts")
    if len(undefined) > CELLS_NAMED:
        (why, _), *_ = tally(view.why_missing(cell, DIVERSITY) for cell in undefined)
        n_prompts = sum(undefined.values())
        yield say.often_undefined(n_prompts, len(undefined), len(view.rows), why)
        return
    for cell, n in undefined.items():
        yield say.undefined(_cell_name(view, cell), n, view.why_missing(cell, DIVERSITY))


def _of_the_judge(view: RunView) -> Iterator[str]:
    if not view.judged:
        yield say.no_judge()
        return
    judge = view.manifest.judge
    if judge is not None:
        for caveat in filter(judge.settings.get, ("images_dropped", "unlisted")):
            yield getattr(say, caveat)(truncate(judge.model, NAME_LENGTH))
    unscored = _counts(view, "n_unscored")
    shares = {cell: unscored.get(cell, 0) / n for cell, n in _counts(view, "n_images").items()}
    worst = max(shares, key=lambda cell: shares[cell])
    share, least = shares[worst], min(shares.values())
    if share > UNSCORED_SHARE:
        yield say.often_unscored(share, _cell_name(view, worst), least if least < share else None)
    for score in view.judged:
        row = of_all_cells(view, score)
        alpha = as_finite_float(row.get("alpha"))
        if alpha is not None and alpha < TENTATIVE_ALPHA:
            text = format_alpha(alpha, row.get("alpha_low"), row.get("alpha_high"))
            name = sanitize(score.display_name)
            yield say.low_alpha(name, text, TENTATIVE_ALPHA, say_reliability.source())


def _cell_name(view: RunView, cell: str) -> str:
    row = next(r for r in view.rows if r["cell"] == cell)
    return f"{truncate(row['model'], NAME_LENGTH)} × {view.labels[cell]}"
