"""A cell's numbers made again from the files that they were joined from."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from autolora_eval._files import Json
from autolora_eval._text import (
    format_fixed,
    format_interval,
    format_swept_value,
    pluralize,
    truncate,
)
from autolora_eval.analysis.cell_estimates import BoundMeasure, diversity_of
from autolora_eval.analysis.explain_reader import Place, Row, Sources
from autolora_eval.analysis.explanation import Explanation, Facts, Listing
from autolora_eval.analysis.metric_columns import Measure
from autolora_eval.scoring.diversity import Floats, diversity, unit_vectors

if TYPE_CHECKING:
    import pandas as pd


# Tables hold twelve digits, features are float32.
TOLERANCE = 1e-6


def remade(sources: Sources, cell: str) -> dict[str, float]:
    """Return each measure of a cell from its features and its judge's replies, NaN if undefined.

    Diversity is the mean of equation (8) over prompts, as any other measure of diversity is; a
    score the mean over the scored images, and a product that of the two. A measure of somebody
    else whose code is not here is left out.
    """
    found = {"diversity": _diversity(sources, cell, lambda images: diversity)}
    for column, measure in sources.extra.items():
        found[column] = _diversity(sources, cell, partial(sources.references.bound, measure))
    for score in sources.scores:
        found[score.column] = _score(sources, cell, score)
        found[f"div_{score.column}"] = found["diversity"] * found[score.column]
    return found


def _diversity(
    sources: Sources, cell: str, measure_of: Callable[[pd.DataFrame], BoundMeasure]
) -> float:
    features = sources.features(cell)
    if features is None:
        return math.nan
    groups = sources.images(cell).groupby("prompt_index", sort=False)
    values = [diversity_of(images, features, measure_of(images)).value for _, images in groups]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else math.nan


def _score(sources: Sources, cell: str, measure: Measure) -> float:
    judged = sources.judgements_of(cell)
    values = []
    images = sources.images(cell)
    for image_id, sha256 in zip(images["image_id"], images["sha256"], strict=True):
        rows = judged.get((image_id, sha256), [])
        verdicts = [row["scores"][measure.column] for row in rows if row["scores"] is not None]
        if verdicts:
            values.append(float(np.mean(verdicts)))
    return float(np.mean(values)) if values else math.nan


def agreeing(stated: object, found: float) -> bool:
    """Return whether a number of the table and the same made again are one, or both missing."""
    value = float(stated) if isinstance(stated, int | float) else math.nan
    if math.isnan(value) or math.isnan(found):
        return math.isnan(value) and math.isnan(found)
    return abs(value - found) <= TOLERANCE * max(1.0, abs(value))


def cosines(sources: Sources, cell: str, image_ids: list[str], other: str, to: str) -> Floats:
    """Return the cosine of each image's features with those of the image `to` of cell `other`.

    Args:
        sources: the run.
        cell: of the images.
        image_ids: of the images.
        other: the cell of the one image.
        to: its id.

    Returns:
        float64 [N] in [−1, 1]; NaN where either has no features.
    """
    found = np.full(len(image_ids), np.nan)
    here, there = sources.features(cell), sources.features(other)
    if here is None or there is None or to not in there.ids:
        return found
    one = unit_vectors(there.matrix[[there.ids.index(to)]])[0]
    rows = {image_id: row for row, image_id in enumerate(here.ids)}
    known = [place for place, image_id in enumerate(image_ids) if image_id in rows]
    matrix = here.matrix[[rows[image_ids[place]] for place in known]]
    found[known] = unit_vectors(matrix) @ one
    return found


# --------------------
# A row of the result table: what it is, its numbers made again, its prompts, its inputs.


TEXT = 300
NOT_RECORDED = "not recorded"
# What decides images, features, replies and tables; the manifest has the others.
PACKAGES = ("torch", "diffusers", "peft", "transformers", "numpy", "scipy", "pandas")


def explain_cell(sources: Sources, place: Place) -> Explanation:
    """Return what a row of the result table is made of."""
    row = sources.cell(place.cell)
    first = sources.images(place.cell).iloc[0]
    return Explanation(
        title=f"{row['model']} × {row['method']}  ({place.cell})",
        parts=[
            _what(sources, row),
            _numbers(sources, row),
            _prompts(sources, place.cell),
            made_with(sources, place.cell),
            _files(sources, place.cell),
        ],
        further=[command(sources, place.cell, first["prompt_index"])],
    )


def command(sources: Sources, *place: object) -> str:
    """Return the command that explains a place of a run, as a shell takes it."""
    return shlex.join(["autolora-eval", "explain", str(sources.run.folder.path), *map(str, place)])


def _what(sources: Sources, row: Row) -> Facts:
    stated = sources.stated(row["cell"])
    parameters = {k: v for k, v in (stated.get("parameters") or {}).items() if v is not None}
    point = {name: format_swept_value(value) for name, value in (stated.get("point") or {}).items()}
    facts = {
        "rule": stated.get("equation") or ("not stated" if "equation" in stated else None),
        "source": stated.get("source"),
        **_code(stated),
        "parameters": ", ".join(f"{k} = {v}" for k, v in parameters.items()) or None,
        "swept": ", ".join(f"{name} = {value}" for name, value in point.items()) or "nothing",
        "denoiser passes an image": f"{row['nfe']:,.10g}" if _known(row.get("nfe")) else None,
        "baseline": sources.section("benchmark").get("baseline"),
    }
    return Facts("What it is", [(name, text(value)) for name, value in facts.items()])


def _code(stated: Row) -> Row:
    """Return other people's code that made the images; nothing where it is built in."""
    code = stated.get("code")
    if not isinstance(code, dict):
        return {}
    hashed = f"sources SHA-256 {code['sha256']}" if code.get("sha256") else None
    told = (code.get("class"), code.get("distribution"), hashed)
    return {"code": ", ".join(str(part) for part in told if part)}


def _numbers(sources: Sources, row: Row) -> Listing:
    found = remade(sources, row["cell"])
    n_unscored = row["n_unscored"] if _known(row.get("n_unscored")) else 0
    unscored = f", {n_unscored:.0f} unscored" if n_unscored else ""
    over = f"mean over {pluralize(_n_prompts(sources, row['cell']), 'prompt')}"
    made_of = {
        "diversity": f"equation (8), {over}",
        "score": f"mean over {pluralize(int(row['n_images'] - n_unscored), 'image')}{unscored}",
        "product": "diversity × mean score",
        "extra": over,
    }
    rows = []
    for measure in sources.measures:
        stated, again = row[measure.column], found.get(measure.column)
        ends = format_interval(row.get(f"{measure.column}_low"), row.get(f"{measure.column}_high"))
        value = format_fixed(stated, 4)
        what = made_of[measure.kind]
        if measure.kind == "extra":
            what = f"{measure.display_name} ({measure.source}), {over}"
        rows.append([measure.column, value, ends, what, _again(stated, again)])
    return Listing(
        "Its numbers",
        ["", "table", "95 % interval", "made of", "made again from the files"],
        rows,
    )


def _again(stated: object, again: float | None) -> str:
    """Say whether a number made again is the table's; None is one whose code is not here."""
    if again is None:
        return "its code is not here"
    return f"{format_fixed(again, 4)}, {'the same' if agreeing(stated, again) else 'NOT the same'}"


def _prompts(sources: Sources, cell: str) -> Listing:
    known = sources.run.diversity[sources.run.diversity["cell"] == cell]
    rows = []
    for prompt in known.to_dict("records"):
        images = sources.images(cell, prompt["prompt_index"])
        means = [format_fixed(images[measure.column].mean()) for measure in sources.scores]
        unscored = images["unscored_reason"].notna().sum() if sources.scores else 0
        value = format_fixed(prompt["diversity"], 4)
        if math.isnan(prompt["diversity"]):
            value = text(prompt["reason"])
        place, count = str(prompt["prompt_index"]), str(prompt["n"])
        rows.append([place, text(prompt["prompt"]), count, value, *means, str(unscored)])
    heads = ["", "prompt", "images", "diversity", *(m.column for m in sources.scores), "unscored"]
    return Listing("Its prompts", heads, rows)


def made_with(sources: Sources, cell: str) -> Facts:
    """Return the inputs that decide a cell's numbers, each with its hash or revision."""
    return Facts("Made with", [(name, text(value)) for name, value in _inputs(sources, cell)])


def _inputs(sources: Sources, cell: str) -> Iterator[tuple[str, Any]]:
    model = sources.section("models", str(sources.cell(cell)["model"]))
    manifest = sources.run.manifest
    yield "pipeline", _identity(model.get("pipeline"))
    yield "LoRA", _identity(model.get("lora"))
    placed = [model.get("device"), model.get("dtype"), model.get("class")]
    yield "run as", ", ".join(str(part) for part in placed if part)
    yield "settings key", sources.stated(cell).get("settings_key")
    features = sources.section("features")
    yield "extractor", _told(_identity(features.get("identity")), key=features.get("key"))
    judge = sources.section("judge")
    if judge:
        yield "judge", _told(_identity(judge.get("identity")), key=judge.get("key"))
        yield "rubric", _told(judge.get("rubric_name"), **{"SHA-256": judge.get("rubric_sha256")})
    run = sources.stated(cell).get("run")  # a comparison's cell is of one of its runs
    made_by = manifest if run is None else sources.section("compared", str(run))
    file = manifest.get("benchmark_file") if run is None else f"that of the run '{run}'"
    yield "benchmark", _told(file, **{"SHA-256": made_by.get("benchmark_sha256")})
    yield "prompts", _told(**{"SHA-256": manifest.get("prompts_sha256")})
    packages = made_by.get("packages") or {}
    used = {"autolora-eval": made_by.get("autolora_eval_version")}
    yield "software", _told(**used, **{name: packages.get(name) for name in PACKAGES})
    hardware = made_by.get("hardware") or {}
    yield "hardware", _told(hardware.get("device"), hardware.get("platform"))


def _told(*known: object, **named: object) -> str:
    """Join what is known; empty if nothing is."""
    texts = [str(value) for value in known if value]
    return ", ".join([*texts, *(f"{name} {value}" for name, value in named.items() if value)])


def _identity(stated: Json | None) -> str:
    """Return what a model's files were: where from, and its hash or revision."""
    if not stated:
        return NOT_RECORDED
    if stated.get("used") is False:
        return f"{stated.get('name', '')}, not used: images made elsewhere".lstrip(", ")
    name = stated.get("name", "")
    known = {"SHA-256": stated.get("sha256"), "revision": stated.get("revision")}
    told = [f"{label} {value}" for label, value in known.items() if value]
    rest = {k: v for k, v in stated.items() if k not in ("name", "kind", "sha256", "revision")}
    if not told and rest:
        told = [json.dumps(rest, ensure_ascii=False, sort_keys=True)]
    return ", ".join([str(name), *told])


def _files(sources: Sources, cell: str) -> Facts:
    folder = sources.run.folder
    paths = {
        "images": folder.metadata(cell),
        "features": folder.features(cell),
        "replies": folder.judgements(cell),
        "one row an image": folder.scores,
        "one row a prompt": folder.diversity,
    }
    shown = [(name, str(path)) for name, path in paths.items() if path.exists()]
    return Facts("Files", shown)


def _n_prompts(sources: Sources, cell: str) -> int:
    known = sources.run.diversity[sources.run.diversity["cell"] == cell]
    return int(known["diversity"].notna().sum())


def _known(value: object) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def text(value: object) -> str:
    """Return a value on one line; a missing one is said to be missing."""
    missing = value is None or value == "" or value != value
    return NOT_RECORDED if missing else truncate(value, TEXT)
