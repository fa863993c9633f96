"""One image: its file, how it was made, its neighbours, and the judge's replies word for word."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import ValidationError

from autolora_eval._files import Json
from autolora_eval._text import format_fixed, image_link
from autolora_eval.analysis.explain_cell import cosines, made_with, text
from autolora_eval.analysis.explain_reader import Place, Row, Sources
from autolora_eval.analysis.explanation import Explanation, Facts, Listing, Quote
from autolora_eval.scoring.rubric import Rubric

NEIGHBOURS = 5


def explain_image(sources: Sources, place: Place) -> Explanation:
    """Return all that is known of one image."""
    images = sources.images(place.cell, place.prompt_index)
    row = {str(k): v for k, v in images[images["seed"] == place.seed].iloc[0].items()}
    sha256 = row["sha256"] if isinstance(row["sha256"], str) else None
    replies = sources.judgements_of(place.cell).get((row["image_id"], sha256), [])
    return Explanation(
        title=f"{row['model']} × {row['method']}, prompt {place.prompt_index}, seed {place.seed}",
        parts=[
            _what(sources, place, row),
            *_neighbours(sources, place, row),
            *_judged(sources, replies),
            *_question(sources, str(row["prompt"]), bool(replies)),
            made_with(sources, place.cell),
        ],
    )


def _what(sources: Sources, place: Place, row: Row) -> Facts:
    made = sources.metadata(place.cell, row["image_id"])
    is_there = (sources.run.folder.path / row["file"]).is_file()
    facts = [
        ("prompt", text(row["prompt"])),
        ("file", str(sources.run.folder.path / row["file"])),
        ("SHA-256", text(row["sha256"])),
        ("now", sources.state_of(str(row["file"]), row["sha256"])),
        *(_in_the_report(sources, str(row["file"])) if is_there else []),
        ("seed", str(row["seed"])),
        ("denoiser passes", text(made.get("nfe"))),
        ("settings key", text(made.get("settings_key"))),
    ]
    if "source" in made:
        told = f"{made['source']}, SHA-256 {made.get('source_sha256')}"
        facts.append(("made elsewhere", text(told)))
    scores = [
        f"{measure.column} {format_fixed(row[measure.column], 2)}" for measure in sources.scores
    ]
    if scores:
        facts.append(("scores", ", ".join(scores)))
    for column, name in (("image_error", "unusable"), ("unscored_reason", "unscored")):
        if isinstance(row.get(column), str):
            facts.append((name, text(row[column])))
    return Facts("What it is", facts)


def _in_the_report(sources: Sources, file: str) -> list[tuple[str, str]]:
    """Return where the HTML report shows the image, if it is among those in its gallery."""
    path = sources.run.folder.report_html
    link = image_link(file)
    if not path.is_file() or file not in path.read_text(encoding="utf-8"):
        return []
    return [("in the report", f"{path.resolve().as_uri()}{link}")]


def _neighbours(sources: Sources, place: Place, row: Row) -> Iterator[Listing]:
    """List the nearest images of the prompt in the cell, and the same noise in other cells."""
    others = sources.images(place.cell, place.prompt_index)
    others = others[others["seed"] != place.seed]
    near = cosines(sources, place.cell, others["image_id"].tolist(), place.cell, row["image_id"])
    order = [int(at) for at in np.argsort(-near) if not np.isnan(near[at])][:NEIGHBOURS]
    found = others.iloc[order]
    pairs = zip(found["seed"], near[order], found["file"], strict=True)
    rows = [[f"seed {seed}", format_fixed(cosine), str(file)] for seed, cosine, file in pairs]
    heads = ["", "cosine", "file"]
    if rows:
        yield Listing("Nearest in the cell, same prompt", heads, rows)
    same = sources.run.scores
    same = same[
        (same["prompt_index"] == place.prompt_index)
        & (same["seed"] == place.seed)
        & (same["model"] == row["model"])
        & (same["cell"] != place.cell)
    ]
    rows = []
    for cell, image_id, file in zip(same["cell"], same["image_id"], same["file"], strict=True):
        cosine = cosines(sources, cell, [image_id], place.cell, row["image_id"])[0]
        rows.append([str(cell), format_fixed(cosine), str(file)])
    if rows:
        yield Listing("The same prompt and seed by the other methods", heads, rows)


def _judged(sources: Sources, replies: list[Json]) -> Iterator[Facts | Quote]:
    if not replies and sources.scores:
        yield Facts("The judge", [("reply", "none recorded for this very file")])
    for reply in replies:
        number = f" {int(reply.get('repeat', 0)) + 1}" if len(replies) > 1 else ""
        scores = reply["scores"] or {}
        facts = [
            ("model", text(reply.get("model"))),
            ("scores", ", ".join(f"{k} {format_fixed(v, 2)}" for k, v in scores.items()) or "none"),
            ("calls made", text(reply.get("attempt"))),
            ("seconds", text(reply.get("latency_seconds"))),
            ("from the cache", "yes" if reply.get("cached") else "no"),
        ]
        if reply["reason"] is not None:
            facts.append(("unscored", text(reply["reason"])))
        yield Facts(f"The judge's reply{number}", facts)
        if reply.get("raw") is not None:
            yield Quote(f"Its reply{number}, word for word", str(reply["raw"]))


def _question(sources: Sources, prompt: str, asked: bool) -> Iterator[Quote]:
    """Quote what was put to the judge, if the run recorded the rubric."""
    recorded = sources.section("rubric")
    if not (asked and recorded):
        return
    try:
        question = Rubric.model_validate(recorded).question(prompt)
    except ValidationError:
        return
    yield Quote("What it was asked", f"{question.before}[the image]{question.after}")
