"""The gallery of the HTML report: images to be filtered, with what the judge replied to each."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

import pandas as pd

from autolora_eval._text import (
    DASH,
    NOT_RECORDED,
    Sentences,
    as_finite_float,
    image_link,
    parameter_label,
    truncate,
)
from autolora_eval.analysis.metrics import Metric
from autolora_eval.analysis.scores import cell_judgements
from autolora_eval.report.gallery_data import Shown, shown_images, shown_replies
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView, text_of, unscored_reason

say = Sentences("gallery")
BATCH = 96
LISTED_WITHOUT_SCRIPT = 48
PROMPT_LENGTH = 600
OPTION_LENGTH = 70
Facets = list[dict[str, str]]


@dataclass(frozen=True)
class Filter:
    """A form control that filters by one property, with the text of each value."""

    name: str
    label: str
    options: dict[str, str]


@dataclass(frozen=True)
class Gallery:
    """All that the gallery's template needs.

    Attributes:
        shown: Which part of the run's images is shown, and why.
        filters: By prompt, cell, seed and judgement.
        orders: The ways to sort, each with its text.
        listed: The first images, for browsers without script.
        data: What the script reads, as JSON knows it.
        cell_links: Links to the images of each cell that has some here, by cell.
    """

    shown: str
    filters: list[Filter]
    scores: list[Metric]
    orders: dict[str, str]
    listed: list[dict[str, Any]]
    data: dict[str, Any]
    script: str
    cell_links: dict[str, str]

    @property
    def links(self) -> dict[str, str]:
        """The link to each of its images, by file."""
        return {image["file"]: image_link(image["file"]) for image in self.data["images"]}

    @property
    def script_hash(self) -> str:
        """The script as a Content-Security-Policy names it."""
        digest = hashlib.sha256(self.script.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def build_gallery(view: RunView) -> Gallery:
    """Return the gallery of a run.

    What users and judges wrote stays text all the way: the template escapes it, the data block
    is JSON without angle brackets, and the script sets it as text.
    """
    shown = shown_images(view)
    facets = _facets(view)
    prompts = {int(s.row["prompt_index"]): truncate(s.row["prompt"], PROMPT_LENGTH) for s in shown}
    ids = {str(image.row["image_id"]) for image in shown}

    @cache
    def judgements(cell: str) -> dict[tuple[str, str | None], list[Row]]:
        return cell_judgements(view.manifest, view.run.folder, cell, ids)

    def replies(row: Row) -> list[Row]:
        return judgements(row["cell"]).get((row["image_id"], row["sha256"]), [])

    images = [_image(view, image, len(prompts) > 1, replies(image.row)) for image in shown]
    listed, others = images[:LISTED_WITHOUT_SCRIPT], images[LISTED_WITHOUT_SCRIPT:]
    filters = _filters(view, shown, facets, prompts)
    script = resources.files("autolora_eval.report") / "templates" / "gallery.js"
    return Gallery(
        shown=_what_is_shown(view, shown),
        filters=filters,
        scores=view.judged,
        orders=_orders(view),
        listed=listed,
        data={
            # The list already contains these images. They are not embedded twice.
            "images": [image | {"picture": ""} for image in listed] + others,
            "cells": [list(facet.values()) for facet in facets],
            "facets": [f"cell.{name}" for name in facets[0]],
            "scores": [metric.column for metric in view.judged],
            "total": len(view.images),
            "batch": BATCH,
        },
        script=script.read_text(encoding="utf-8").replace("\r\n", "\n"),
        cell_links={
            str(view.rows[cell]["cell"]): _cell_link(facets[cell], filters)
            for cell in dict.fromkeys(image.cell for image in shown)
        },
    )


def _image(
    view: RunView, image: Shown, several_prompts: bool, replies: Sequence[Row]
) -> dict[str, Any]:
    row = image.row
    model = f"{truncate(row['model'], NAME_LENGTH)} × " if len(view.models) > 1 else ""
    scores = [as_finite_float(row.get(metric.column)) for metric in view.judged]
    values = [
        f"{m.label} {v:.3g}" for m, v in zip(view.judged, scores, strict=True) if v is not None
    ]
    reason = unscored_reason(view, row)
    judged = f"unscored: {reason}" if reason else ", ".join(values)
    return {
        "file": str(row.get("file")),
        "cell": image.cell,
        "prompt_index": int(row["prompt_index"]),
        "seed": int(row["seed"]),
        "scores": scores,
        "reason": reason,
        "picture": image.thumbnail.uri,
        "crisp": image.crisp,
        "absent": image.missing_reason,
        "title": f"{model}{view.labels[row['cell']]}",
        "text": " · ".join(filter(None, (f"seed {int(row['seed'])}", judged))),
        "prompt": truncate(row["prompt"], PROMPT_LENGTH) if several_prompts else "",
        "facts": _facts(view, row),
        "replies": [asdict(reply) for reply in shown_replies(view, row["cell"], replies)],
    }


def _facets(view: RunView) -> Facets:
    """Return model, method and swept parameters of each cell, in the order of the result table."""
    swept = dict.fromkeys(name for point in view.points.values() for name in point)
    return [
        {
            "model": truncate(row["model"], NAME_LENGTH),
            "method": truncate(row["method"], NAME_LENGTH),
            **{name: view.points[row["cell"]].get(name, "") for name in swept},
        }
        for row in view.rows
    ]


def _cell_link(facet: Mapping[str, str], filters: Sequence[Filter]) -> str:
    known = {found.name for found in filters}
    named = {f"cell.{name}": value for name, value in facet.items() if f"cell.{name}" in known}
    return "&".join(["#gallery", *(f"{name}={quote(v, safe='/')}" for name, v in named.items())])


def _filters(
    view: RunView, shown: Sequence[Shown], facets: Facets, prompts: dict[int, str]
) -> list[Filter]:
    """Return the filters that leave a choice."""
    by_prompt = {str(n): f"{n + 1}. {_short(text)}" for n, text in prompts.items()}
    by_cell = [
        Filter(f"cell.{name}", _title(name), {f[name]: _short(f[name]) for f in facets if f[name]})
        for name in facets[0]
    ]
    seeds = map(str, sorted({int(image.row["seed"]) for image in shown}))
    found = [
        Filter("prompt", "Prompt", by_prompt),
        *by_cell,
        Filter("seed", "Seed", {seed: seed for seed in seeds}),
    ]
    return [f for f in found if len(f.options) > 1] + _judgements(view, shown)


def _title(name: str) -> str:
    """Return a column as the label of a control: "lora_scale" as "LoRA scale"."""
    words = parameter_label(name)
    return words[:1].upper() + words[1:]


def _short(text: str) -> str:
    return text if len(text) <= OPTION_LENGTH else f"{text[: OPTION_LENGTH - 1].rstrip()}…"


def _judgements(view: RunView, shown: Sequence[Shown]) -> list[Filter]:
    if not view.judged:
        return []
    reasons = Counter(filter(None, (unscored_reason(view, image.row) for image in shown)))
    n = reasons.total()
    texts = {"scored": f"scored ({len(shown) - n})", "unscored": f"unscored ({n})"}
    for reason, k in reasons.items():
        texts[f"unscored: {reason}"] = f"{_short(f'unscored: {reason}')} ({k})"
    return [Filter("judgement", "Judgement", texts)]


def _orders(view: RunView) -> dict[str, str]:
    texts = {
        "prompt": "prompt, seed, method",
        "seed": "seed, prompt, method",
        "cell": "method, prompt, seed",
    }
    for metric in view.judged:
        for way in ("highest", "lowest"):
            texts[f"{way}:{metric.column}"] = f"{metric.label}, {way} first"
    return texts


def _facts(view: RunView, row: Row) -> list[tuple[str, str]]:
    reason = unscored_reason(view, row)
    nfe = as_finite_float(row.get("nfe"))
    return [
        ("Prompt", truncate(row["prompt"], PROMPT_LENGTH)),
        ("Seed", str(int(row["seed"]))),
        ("Model", truncate(row["model"], NAME_LENGTH)),
        ("Method", truncate(row["method"], NAME_LENGTH)),
        *((_title(name), value) for name, value in view.points[row["cell"]].items()),
        *((f"{m.display_name} ({m.label})", _score(row, m)) for m in view.judged),
        *([("Unscored", reason)] if reason else []),
        ("NFE", NOT_RECORDED if nfe is None else f"{nfe:.0f}"),
        ("File", truncate(row.get("file"), 2 * PROMPT_LENGTH)),
        ("SHA-256", truncate(text_of(row.get("sha256")) or "no file", NAME_LENGTH)),
    ]


def _score(row: Row, score: Metric) -> str:
    value = as_finite_float(row.get(score.column))
    expected = as_finite_float(row.get(f"{score.column}_expected"))
    return DASH if value is None else say.score(value, score.low, score.high, expected)


def _what_is_shown(view: RunView, shown: Sequence[Shown]) -> str:
    total, rows = len(view.images), pd.DataFrame([image.row for image in shown])
    if len(shown) == total:
        return say.all_shown(total)
    prompts, seeds = (
        [found[column].nunique() for found in (rows, view.images)]
        for column in ("prompt_index", "seed")
    )
    return say.some_shown(
        n=len(shown),
        total=total,
        prompts=prompts,
        seeds=seeds,
        n_cells=len({image.cell for image in shown}),
        all_cells=len(view.rows),
        n_unscored=sum(unscored_reason(view, image.row) is not None for image in shown),
        all_unscored=sum(n for _, n in view.unscored_reasons) if view.judged else 0,
    )
