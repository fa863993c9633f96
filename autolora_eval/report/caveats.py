"""What a reader must know before believing the numbers."""

from __future__ import annotations

from autolora_eval._text import as_finite_float, join_names, pluralize, truncate
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView, in_words, tally

REASONS_SHOWN = 5
CELLS_NAMED = 4
DIFFERENCES_SHOWN = 6
MESSAGE_LENGTH = 300
# What is told of images that were made elsewhere, as the manifest has it and in words.
_FINDINGS = {
    "missing": "missing",
    "unusable": "unusable",
    "extra": "not asked for and left out",
    "duplicate": "the same as another",
    "wrong_size": "of another size than the model's",
    "constant": "of one colour",
    "converted": "converted",
}


def caveats(evidence: RunView) -> list[str]:
    """Return what a reader must know before the numbers, the gravest first."""
    return [
        *_miniatures(evidence),
        *_limits(evidence),
        *_differences(evidence),
        *_made_elsewhere(evidence),
        *_images_missing(evidence),
        *_unscored(evidence),
        *_undefined(evidence),
        *_judge(evidence),
    ]


def _miniatures(evidence: RunView) -> list[str]:
    references = {
        truncate(name, NAME_LENGTH): _reference(model)
        for name, model in evidence.section("models").items()
    }
    references["the extractor"] = str(evidence.recorded("features", "model"))
    references["the judge"] = str(evidence.recorded("judge", "model"))
    names = [name for name, found in references.items() if found.startswith("miniature:")]
    if not names:
        return []
    subject = join_names(names)
    what = "is a miniature model" if len(names) == 1 else "are miniature models"
    return [
        f"{subject[0].upper()}{subject[1:]} {what}: "
        "small, trained on rendered pictures of simple scenes, so that the whole evaluation runs "
        "on a laptop. These numbers show that the pipeline works. They say nothing about SDXL or "
        "SD3, and nothing about how the methods compare on them."
    ]


def _reference(model: object) -> str:
    pipeline = model.get("pipeline") if isinstance(model, dict) else None
    return str(pipeline.get("name", "")) if isinstance(pipeline, dict) else ""


def _limits(evidence: RunView) -> list[str]:
    if not evidence.recorded("limited"):
        return []
    prompts, seeds = evidence.recorded("prompts"), evidence.recorded("seeds")
    used = ""
    if isinstance(prompts, list) and isinstance(seeds, list):
        used = f" to {pluralize(len(prompts), 'prompt')} and {pluralize(len(seeds), 'seed')}"
    return [
        f"This run was limited{used} and does not cover the benchmark: "
        "its numbers are not the benchmark's."
    ]


def _differences(evidence: RunView) -> list[str]:
    """Tell in what the runs of a comparison differ."""
    stated = evidence.recorded("differences")
    rows = [row for row in stated if isinstance(row, dict)] if isinstance(stated, list) else []
    told = [
        f"Of the runs compared: {truncate(row.get('message'), MESSAGE_LENGTH)}"
        for row in rows[:DIFFERENCES_SHOWN]
    ]
    if len(rows) > DIFFERENCES_SHOWN:
        more = pluralize(len(rows) - DIFFERENCES_SHOWN, "more difference")
        told.append(f"Of the runs compared: {more}, in manifest.json.")
    return told


def _made_elsewhere(evidence: RunView) -> list[str]:
    """Tell which cells' images this package did not make, and what was wrong with them."""
    ids = {str(row["cell"]) for row in evidence.rows}
    sets = {
        cell: found
        for cell, found in evidence.section("image_sets").items()
        if cell in ids and isinstance(found, dict)
    }
    told = [
        f"{_cell(evidence, cell)}: {_account(found)}"
        for cell, found in [*sets.items()][:CELLS_NAMED]
    ]
    if len(sets) > CELLS_NAMED:
        more = pluralize(len(sets) - CELLS_NAMED, "more cell was", "more cells were")
        told.append(f"The images of {more} made elsewhere: image_sets/ has their accounts.")
    return told


def _account(found: Row) -> str:
    counts = {name: int(as_finite_float(found.get(name)) or 0) for name in ("matched", *_FINDINGS)}
    wrong = [f"{counts[name]} {words}" for name, words in _FINDINGS.items() if counts[name]]
    told = (
        f"{pluralize(counts['matched'], 'image')} of the benchmark made elsewhere, whose "
        "prompts, seeds "
        f"and passes are what their maker says{': ' if wrong else ''}{', '.join(wrong)}."
    )
    if beyond := int(as_finite_float(found.get("beyond_limits")) or 0):
        told += f" {pluralize(beyond, 'more image')} of the set lie beyond this limited run."
    if found.get("seeds_by_order"):
        told += " No seeds are stated: pairs with other methods share no noise."
    return told


def _images_missing(evidence: RunView) -> list[str]:
    missing = {r["cell"]: int(as_finite_float(r.get("n_missing")) or 0) for r in evidence.rows}
    total = sum(missing.values())
    if not total:
        return []
    lacking = {cell: n for cell, n in missing.items() if n}
    named = [f"{n} of {_cell(evidence, cell)}" for cell, n in [*lacking.items()][:CELLS_NAMED]]
    more = len(lacking) - len(named)
    where = ", ".join([*named, *([f"and of {pluralize(more, 'more cell')}"] if more else [])])
    return [f"{pluralize(total, 'image is', 'images are')} missing or cannot be read ({where})."]


def _unscored(evidence: RunView) -> list[str]:
    n_unscored = sum(int(as_finite_float(row.get("n_unscored")) or 0) for row in evidence.rows)
    is_judged = any(measure.kind == "score" for measure in evidence.measured)
    if not n_unscored or not is_judged:
        return []
    reasons = tally(in_words(row.get("unscored_reason")) for row in evidence.images)
    shown = [f"{n} × {reason}" for reason, n in reasons[:REASONS_SHOWN]]
    if len(reasons) > REASONS_SHOWN:
        left = sum(n for _, n in reasons[REASONS_SHOWN:])
        shown.append(f"{left} for {pluralize(len(reasons) - REASONS_SHOWN, 'other reason')}")
    because = f": {'; '.join(shown)}" if shown else ", for reasons that were not recorded"
    verb = "has no score and is" if n_unscored == 1 else "have no score and are"
    return [
        f"{pluralize(n_unscored, 'image')} of {len(evidence.images):,} {verb} left out of the mean "
        f"scores, not counted as 0{because}."
    ]


def _undefined(evidence: RunView) -> list[str]:
    undefined = [r for r in evidence.rows if as_finite_float(r.get("n_undefined_prompts"))]
    if len(undefined) > CELLS_NAMED:
        n = sum(int(row["n_undefined_prompts"]) for row in undefined)
        reasons = tally(evidence.why_undefined(row["cell"]) for row in undefined)
        return [
            f"Diversity is undefined {n:,} times for a prompt of a cell, in {len(undefined)} of "
            f"{pluralize(len(evidence.rows), 'cell')}, and left out of the mean: {reasons[0][0]}."
        ]
    return [
        f"{_cell(evidence, row['cell'])}: diversity is undefined for "
        f"{pluralize(int(row['n_undefined_prompts']), 'prompt')}, left out of the mean: "
        f"{evidence.why_undefined(row['cell'])}."
        for row in undefined
    ]


def _judge(evidence: RunView) -> list[str]:
    if not any(measure.kind == "score" for measure in evidence.measured):
        return ["No judge was asked: only diversity was measured, which alone says nothing of "
                "whether the images show what was asked for."]  # fmt: skip
    if not evidence.rubric_is_recorded:
        return ["The rubric was not recorded: the names of the scores are those of the table's "
                "columns, and higher is taken to be better."]  # fmt: skip
    return []


def _cell(evidence: RunView, cell: str) -> str:
    row = next(r for r in evidence.rows if r["cell"] == cell)
    return f"{truncate(row['model'], NAME_LENGTH)} × {evidence.labels[cell]}"
