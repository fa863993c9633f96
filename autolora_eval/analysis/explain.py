"""Explain a number of a finished run: the images, hashes and judge replies that it comes from."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from autolora_eval._errors import as_damaged
from autolora_eval._files import Json
from autolora_eval._text import (
    DASH,
    NOT_RECORDED,
    format_fixed,
    format_interval,
    format_swept_value,
    image_link,
    pluralize,
    truncate,
)
from autolora_eval.analysis.explanation import (
    Explanation,
    Section,
    join,
    model_inputs,
    print_explanation,
    source_text,
)
from autolora_eval.analysis.run_reader import Row, RunReader, is_close, recompute, select
from autolora_eval.runs.folder import open_run
from autolora_eval.runs.records import JudgeRecord
from autolora_eval.scoring.diversity import leave_one_out
from autolora_eval.scoring.rubric import Rubric

__all__ = ["Explanation", "explain", "print_explanation"]

MAX_TEXT = 300
MAX_NEIGHBOURS = 5
# The packages that decide images, features, replies and tables. The manifest has the others.
PACKAGES = ("torch", "diffusers", "peft", "transformers", "numpy", "scipy", "pandas")


def explain(
    run: str | Path, cell: str, prompt: str | int | None = None, seed: int | None = None
) -> Explanation:
    """Explain how a number of a finished run was computed. Only the run folder is read.

    Args:
        run: the run folder.
        cell: a cell's id, or a method's name if the run has one cell of that method.
        prompt: a prompt's index or its text. The default explains the whole cell.
        seed: the seed of one image. The default explains all images of the prompt.

    Returns:
        The explanation of the cell, of the prompt in that cell, or of the image.

    Raises:
        UsageError: if there is no such run, cell, prompt or image. The message suggests the
            nearest name.
    """
    with as_damaged(Path(run)):
        reader = RunReader(open_run(run))
        cell_id, index = select(reader, cell, None if prompt is None else str(prompt), seed)
        if index is None:
            return _explain_cell(reader, cell_id)
        if seed is None:
            return _explain_prompt(reader, cell_id, index)
        return _explain_image(reader, cell_id, index, seed)


def _explain_cell(reader: RunReader, cell: str) -> Explanation:
    row = reader.cell(cell)
    folder = reader.run.folder
    files = {
        "images": folder.metadata(cell),
        "features": folder.features(cell),
        "replies": folder.judgements(cell),
        "one row per image": folder.scores,
        "one row per prompt": folder.diversity,
    }
    return Explanation(
        title=f"{row['model']} × {row['method']}  ({cell})",
        sections=[
            _cell_summary(reader, row),
            Section("Metrics", rows=_metric_rows(reader, row)),
            Section("Prompts", rows=_prompt_rows(reader, cell)),
            _inputs(reader, cell),
            Section("Files", {name: str(path) for name, path in files.items() if path.exists()}),
        ],
        next_command=_command(reader, cell, reader.images(cell)["prompt_index"].iloc[0]),
    )


def _command(reader: RunReader, *selectors: object) -> str:
    folder = str(reader.run.folder.path)
    return shlex.join(["autolora-eval", "explain", folder, *map(str, selectors)])


def _cell_summary(reader: RunReader, row: Row) -> Section:
    manifest = reader.run.manifest
    entry = manifest.cell(row["cell"])
    method = manifest.methods[entry.method]
    parameters = {k: v for k, v in entry.parameters.items() if v is not None}
    swept = {name: format_swept_value(value) for name, value in entry.point.items()}
    nfe = row["nfe"]  # None if no cell has one
    code = method.code
    code_hash = {"sources SHA-256": code.get("sha256")}
    values = {
        "formula": method.equation or "not given",
        "source": method.source,
        "code": join(code.get("class"), code.get("distribution"), **code_hash) or None,
        "parameters": ", ".join(f"{name} = {value}" for name, value in parameters.items()),
        "swept": ", ".join(f"{name} = {value}" for name, value in swept.items()) or "nothing",
        "NFE per image": "" if nfe is None or math.isnan(nfe) else f"{nfe:,.10g}",
        "baseline": manifest.benchmark.baseline,
    }
    return Section("Summary", _texts(values))


def _metric_rows(reader: RunReader, row: Row) -> list[dict[str, str]]:
    recomputed = recompute(reader, row["cell"])
    n_unscored = int(row["n_unscored"]) if reader.scores else 0
    unscored = f", {n_unscored} unscored" if n_unscored else ""
    n_prompts = int(reader.prompts(row["cell"])["diversity"].notna().sum())
    over_prompts = f"mean over {pluralize(n_prompts, 'prompt')}"
    computed_from = {
        "diversity": f"equation (8), {over_prompts}",
        "score": f"mean over {pluralize(row['n_images'] - n_unscored, 'image')}{unscored}",
        "product": "diversity × mean score",
    }
    rows = []
    for metric in reader.metrics:
        value = row[metric.column]
        low, high = row[f"{metric.column}_low"], row[f"{metric.column}_high"]
        how = f"{metric.display_name} ({metric.source}), {over_prompts}"
        again = "its code is not installed"
        if metric.column in recomputed:
            is_same = is_close(value, recomputed[metric.column])
            same = "same" if is_same else "DIFFERENT"
            again = f"{format_fixed(recomputed[metric.column], 4)}, {same}"
        rows.append(
            {
                "metric": metric.column,
                "table": format_fixed(value, 4),
                "95% interval": format_interval(low, high),
                "computed from": computed_from.get(metric.kind, how),
                "recomputed from the files": again,
            }
        )
    return rows


def _prompt_rows(reader: RunReader, cell: str) -> list[dict[str, str]]:
    rows = []
    for prompt in reader.prompts(cell).to_dict("records"):
        images = reader.images(cell, prompt["prompt_index"])
        n_unscored = images["unscored_reason"].notna().sum() if reader.scores else 0
        row = {
            "index": str(prompt["prompt_index"]),
            "prompt": _text(prompt["prompt"]),
            "images": str(prompt["n"]),
            "diversity": _value_or_reason(prompt["diversity"], prompt["reason"]),
        }
        row |= {score.column: format_fixed(images[score.column].mean()) for score in reader.scores}
        rows.append(row | {"unscored": str(n_unscored)})
    return rows


def _inputs(reader: RunReader, cell: str) -> Section:
    manifest = reader.run.manifest
    entry = manifest.cell(cell)
    model, features, judge = manifest.models[entry.model], manifest.features, manifest.judge
    # In a comparison, a cell was made by one of the compared runs.
    made_by = manifest.compared[entry.run] if manifest.compared and entry.run else None
    benchmark, benchmark_sha256 = manifest.benchmark.file, manifest.benchmark.sha256
    if made_by is not None:
        benchmark = f"benchmark of the run '{entry.run}'"
        benchmark_sha256 = made_by.benchmark_sha256
    whose = made_by or manifest
    hardware = whose.hardware
    values = {
        **model_inputs(model),
        "run as": join(model.device, model.dtype, model.pipeline_class),
        "settings key": join(entry.settings_key),
        "extractor": features and join(source_text(features.identity), key=features.key),
        "judge": judge and join(_judge_text(judge), key=judge.key),
        "rubric": judge and join(judge.rubric_name, **{"SHA-256": judge.rubric_sha256}),
        "benchmark": join(benchmark, **{"SHA-256": benchmark_sha256}),
        "prompts": join(**{"SHA-256": manifest.prompts_sha256}),
        "software": join(
            **{"autolora-eval": whose.autolora_eval_version},
            **{name: whose.packages.get(name) for name in PACKAGES},
        ),
        "hardware": join(hardware.device, hardware.gpu, hardware.platform),
    }
    return Section("Inputs", _texts(values))


def _explain_prompt(reader: RunReader, cell: str, prompt_index: int) -> Explanation:
    row, images = reader.cell(cell), reader.images(cell, prompt_index)
    prompts = reader.prompts(cell)
    prompt = prompts[prompts["prompt_index"] == prompt_index].to_dict("records")[0]
    value = _value_or_reason(prompt["diversity"], prompt["reason"])
    values = {
        "prompt": prompt["prompt"],
        "diversity": value,
        "jackknife standard error": format_fixed(prompt["standard_error"], 4),
        "images with features": prompt["n"],
        "reference image set": _str_or_none(prompt.get("reference_cell")),
        **{
            metric.column: _value_or_reason(
                prompt[metric.column], prompt.get(f"{metric.column}_reason")
            )
            for metric in reader.metrics
            if metric.kind == "extra"
        },
    }
    return Explanation(
        title=f"{row['model']} × {row['method']}, prompt {prompt_index}",
        sections=[
            Section("Summary", _texts(values)),
            Section(
                "Images",
                rows=_image_rows(reader, cell, prompt_index),
                note="If diversity is lower without an image, that image differs from the others.",
            ),
        ],
        next_command=_command(reader, cell, prompt_index, images["seed"].iloc[0]),
    )


def _image_rows(reader: RunReader, cell: str, prompt_index: int) -> list[dict[str, str]]:
    images = reader.images(cell, prompt_index).to_dict("records")
    seeds = {image["image_id"]: image["seed"] for image in images}
    vectors = reader.unit_vectors(cell, seeds)
    known = list(vectors)
    units = np.stack(list(vectors.values())) if known else np.zeros((0, 1))  # [N, D]
    cosines = units @ units.T
    np.fill_diagonal(cosines, -np.inf)
    # Without one image, equation (8) needs two others.
    without = dict(zip(known, leave_one_out(units), strict=True)) if len(known) > 2 else {}
    nearest = dict.fromkeys(seeds, DASH)
    if len(known) > 1:
        for image_id, row, best in zip(known, cosines, cosines.argmax(axis=1), strict=True):
            nearest[image_id] = f"seed {seeds[known[best]]} ({format_fixed(row[best])})"
    return [
        {
            "seed": str(image["seed"]),
            **{score.column: format_fixed(image[score.column], 2) for score in reader.scores},
            "nearest (cosine)": nearest[image["image_id"]],
            "diversity without it": format_fixed(without.get(image["image_id"]), 4),
            "file": str(image["file"]),
            "missing": join(
                _str_or_none(image["image_error"]), _str_or_none(image["unscored_reason"])
            ),
        }
        for image in images
    ]


def _explain_image(reader: RunReader, cell: str, prompt_index: int, seed: int) -> Explanation:
    images = reader.images(cell, prompt_index)
    image = images[images["seed"] == seed].iloc[0]
    row: Row = {str(column): value for column, value in image.items()}
    replies = reader.replies(cell).get((row["image_id"], row["sha256"]), [])
    return Explanation(
        title=f"{row['model']} × {row['method']}, prompt {prompt_index}, seed {seed}",
        sections=[
            _image_summary(reader, row),
            *_neighbours(reader, row),
            *_judge_sections(reader, row["prompt"], replies),
            _inputs(reader, cell),
        ],
    )


def _image_summary(reader: RunReader, row: Row) -> Section:
    made = reader.image_metadata(row["cell"], row["image_id"])
    file, source_hash = str(row["file"]), {"SHA-256": made.get("source_sha256")}
    scores = [f"{score.column} {format_fixed(row[score.column], 2)}" for score in reader.scores]
    values = {
        "prompt": row["prompt"],
        "file": str(reader.run.folder.path / file),
        "SHA-256": _str_or_none(row["sha256"]) or "",
        "now": reader.file_state(file, row["sha256"]),
        "in the report": _report_link(reader, file),
        "seed": row["seed"],
        "NFE": join(made.get("nfe")),
        "settings key": join(made.get("settings_key")),
        "made with": join(made.get("libraries")),
        "imported from": join(made.get("source"), **source_hash) or None,
        "scores": ", ".join(scores) or None,
        "unusable": _str_or_none(row["image_error"]),
        "unscored": _str_or_none(row["unscored_reason"]),
    }
    return Section("Summary", _texts(values))


def _report_link(reader: RunReader, file: str) -> str | None:
    """Return the link to an image in report.html, if the report's gallery has the image."""
    report = reader.run.folder.report_html
    if not report.is_file() or not (reader.run.folder.path / file).is_file():
        return None
    if file not in report.read_text(encoding="utf-8"):
        return None
    return f"{report.resolve().as_uri()}{image_link(file)}"


def _neighbours(reader: RunReader, row: Row) -> Iterator[Section]:
    """Yield the nearest images of the prompt in the cell, and the images from the same noise."""
    cell, image_id = row["cell"], row["image_id"]
    images = reader.images(cell, row["prompt_index"]).set_index("image_id")
    vectors = reader.unit_vectors(cell, images.index)
    own = vectors.pop(image_id, None)
    cosines = {} if own is None else {id_: float(other @ own) for id_, other in vectors.items()}
    rows = [
        {
            "image": f"seed {images['seed'][id_]}",
            "cosine": format_fixed(cosines[id_]),
            "file": str(images["file"][id_]),
        }
        for id_ in sorted(cosines, key=lambda id_: -cosines[id_])[:MAX_NEIGHBOURS]
    ]
    if rows:
        yield Section("Nearest images of the prompt", rows=rows)
    scores = reader.run.scores
    same = scores[["prompt_index", "seed", "model"]].eq(
        [row["prompt_index"], row["seed"], row["model"]]
    )
    rows = []
    for other in scores[same.all(axis=1) & (scores["cell"] != cell)].to_dict("records"):
        found = reader.unit_vectors(other["cell"], [other["image_id"]]).get(other["image_id"])
        cosine = None if own is None or found is None else float(found @ own)
        file = other["file"] if _str_or_none(other["sha256"]) else "missing"
        rows.append({"cell": other["cell"], "cosine": format_fixed(cosine), "file": file})
    if rows:
        yield Section("Same prompt and seed, other methods", rows=rows)


def _judge_text(judge: JudgeRecord) -> str:
    """Return where a judge's files come from, or that a server has it."""
    on_server = f"{judge.model} on a server"
    return on_server if judge.identity is None else source_text(judge.identity)


def _judge_sections(reader: RunReader, prompt: str, replies: list[Json]) -> Iterator[Section]:
    if not replies and reader.scores:
        yield Section("Judge", {"reply": "none recorded for this file"})
    for reply in replies:
        number = f" {reply['repeat'] + 1}" if len(replies) > 1 else ""
        scores = (reply["scores"] or {}).items()
        values = {
            "model": reply["model"],
            "scores": ", ".join(f"{k} {format_fixed(v, 2)}" for k, v in scores) or "none",
            "attempts": reply["attempt"],
            "seconds": reply["latency_seconds"],
            "from the cache": "yes" if reply["cached"] else "no",
            "unscored": reply["reason"],
        }
        yield Section(f"Judge reply{number}", _texts(values))
        if reply["raw"] is not None:
            yield Section(f"Text of the reply{number}", text=reply["raw"])
    rubric = reader.run.manifest.rubric
    if replies and rubric is not None:
        question = Rubric.model_validate(rubric.model_dump()).question(prompt)
        text = f"{question.before}[image]{question.after}"
        yield Section("Question to the judge", text=text)


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    """Return values as short texts; None leaves a value out, an empty one is "not recorded"."""
    return {name: _text(value) for name, value in values.items() if value is not None}


def _text(value: object) -> str:
    return truncate(value, MAX_TEXT) or NOT_RECORDED


def _value_or_reason(value: float, reason: object) -> str:
    return f"undefined: {_text(reason)}" if math.isnan(value) else format_fixed(value, 4)


def _str_or_none(value: object) -> str | None:
    """Return a text of a data frame, in which a missing one may be None, NaN or NA."""
    return value if isinstance(value, str) else None
