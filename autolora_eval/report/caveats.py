"""What a reader must know before believing the numbers."""

from __future__ import annotations

from autolora_eval._sentences import Sentences
from autolora_eval._text import as_finite_float, format_alpha, sanitize, truncate
from autolora_eval.analysis.reliability import TENTATIVE_ALPHA
from autolora_eval.report.judge_reliability import of_all_cells, source
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView, tally
from autolora_eval.runs.manifest import library_versions
from autolora_eval.runs.records import ImageSetRecord

REASONS_SHOWN = 5
CELLS_NAMED = 4
PROMPTS_NAMED = 4
END_LENGTH = 40
DIFFERENCES_SHOWN = 6
MESSAGE_LENGTH = 300
UNSCORED_SHARE = 0.01
# Counts of the import of images that were made elsewhere, and what they are called.
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


def caveats(view: RunView) -> list[str]:
    """Return what a reader must know before the numbers, the most serious first."""
    return [
        *_miniatures(view),
        *_limits(view),
        *_differences(view),
        *_libraries(view),
        *_prompt_cuts(view),
        *_imported(view),
        *_images_missing(view),
        *_unscored(view),
        *_undefined(view),
        *_judge(view),
        *_often_unscored(view),
        *_low_alpha(view),
    ]


def _miniatures(view: RunView) -> list[str]:
    manifest = view.manifest
    sources = {
        truncate(name, NAME_LENGTH): model.pipeline.name for name, model in manifest.models.items()
    }
    sources["the extractor"] = manifest.features.model if manifest.features else ""
    sources["the judge"] = manifest.judge.model if manifest.judge else ""
    names = [name for name, source in sources.items() if "miniature:" in source]
    return [say.miniatures(names)] if names else []


def _limits(view: RunView) -> list[str]:
    manifest = view.manifest
    if not manifest.is_limited:
        return []
    return [say.limited(len(manifest.prompts), len(manifest.seeds))]


def _differences(view: RunView) -> list[str]:
    """Return how the runs of a comparison differ."""
    rows = view.manifest.differences
    messages = [truncate(row.message, MESSAGE_LENGTH) for row in rows[:DIFFERENCES_SHOWN]]
    left = len(rows) - len(messages)
    return [*map(say.difference, messages), *([say.more_differences(left)] if left else [])]


def _libraries(view: RunView) -> list[str]:
    """Return which versions made the images, if their user accepted new ones in the middle."""
    versions = library_versions(view.manifest.libraries)
    differing = [f"{name} {each}" for name, each in versions.items() if " and " in each]
    return [say.libraries([sanitize(text) for text in differing])] if differing else []


def _prompt_cuts(view: RunView) -> list[str]:
    """Return which prompts a text encoder did not read to their end, or as another one."""
    found = []
    for name, cuts in view.manifest.prompt_cuts.items():
        model, shown = truncate(name, NAME_LENGTH), cuts.cut[:PROMPTS_NAMED]
        if shown:
            places = [
                (cut.name, cut.encoders, cut.limit, cut.tokens, sanitize(cut.read)[-END_LENGTH:])
                for cut in shown
            ]
            n_cut = len({cut.name for cut in cuts.cut})
            found.append(say.prompts_cut(model, n_cut, places, len(cuts.cut) - len(shown)))
        if cuts.same:
            groups = cuts.same[:PROMPTS_NAMED]
            found.append(say.prompts_same(model, groups, len(cuts.same) - len(groups)))
    return found


def _imported(view: RunView) -> list[str]:
    """Return which cells' images were made elsewhere, and what was wrong with them."""
    sets = view.manifest.image_sets
    shown = [_import_report(view, cell, sets[cell]) for cell in [*sets][:CELLS_NAMED]]
    left = len(sets) - len(shown)
    return [*shown, say.more_imported(left)] if left else shown


def _import_report(view: RunView, cell: str, found: ImageSetRecord) -> str:
    issues = [(n, words) for name, words in _ISSUES.items() if (n := getattr(found, name))]
    name, beyond = _cell_name(view, cell), found.beyond_limits
    return say.imported(name, found.matched, issues, beyond, found.seeds_by_order)


def _count(row: Row, key: str) -> int:
    return int(as_finite_float(row.get(key)) or 0)


def _images_missing(view: RunView) -> list[str]:
    missing = {r["cell"]: n for r in view.rows if (n := _count(r, "n_missing"))}
    if not missing:
        return []
    cells = [(missing[cell], _cell_name(view, cell)) for cell in [*missing][:CELLS_NAMED]]
    return [say.images_missing(sum(missing.values()), cells, len(missing) - len(cells))]


def _unscored(view: RunView) -> list[str]:
    n = sum(_count(row, "n_unscored") for row in view.rows)
    if not n or not view.judged:
        return []
    reasons = view.unscored_reasons
    rest = reasons[REASONS_SHOWN:]
    n_rest = sum(count for _, count in rest)
    return [say.unscored(n, len(view.images), reasons[:REASONS_SHOWN], n_rest, len(rest))]


def _undefined(view: RunView) -> list[str]:
    rows = [row for row in view.rows if _count(row, "n_undefined_prompts")]
    if len(rows) > CELLS_NAMED:
        n = sum(_count(row, "n_undefined_prompts") for row in rows)
        reasons = tally(view.why_undefined(row["cell"]) for row in rows)
        return [say.often_undefined(n, len(rows), len(view.rows), reasons[0][0])]
    return [
        say.undefined(
            _cell_name(view, row["cell"]),
            _count(row, "n_undefined_prompts"),
            view.why_undefined(row["cell"]),
        )
        for row in rows
    ]


def _judge(view: RunView) -> list[str]:
    return [] if view.judged else [say.no_judge()]


def _often_unscored(view: RunView) -> list[str]:
    if not view.judged:
        return []
    shares = {
        row["cell"]: _count(row, "n_unscored") / n
        for row in view.rows
        if (n := _count(row, "n_images"))
    }
    worst = max(shares, key=lambda cell: shares[cell], default="")
    share, least = shares.get(worst, 0.0), min(shares.values(), default=0.0)
    if share <= UNSCORED_SHARE:
        return []
    return [say.often_unscored(share, _cell_name(view, worst), least if least < share else None)]


def _low_alpha(view: RunView) -> list[str]:
    found = []
    for score in view.judged:
        row = of_all_cells(view, score)
        alpha = as_finite_float(row.get("alpha"))
        if alpha is not None and alpha < TENTATIVE_ALPHA:
            text = format_alpha(alpha, row.get("alpha_low"), row.get("alpha_high"))
            name = sanitize(score.display_name)
            found.append(say.low_alpha(name, text, TENTATIVE_ALPHA, source()))
    return found


def _cell_name(view: RunView, cell: str) -> str:
    row = next(r for r in view.rows if r["cell"] == cell)
    return f"{truncate(row['model'], NAME_LENGTH)} × {view.labels[cell]}"
