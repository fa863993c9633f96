"""Where the numbers come from: the methods as run, and the essentials of the manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from autolora_eval._sentences import Sentences
from autolora_eval._text import (
    NOT_RECORDED,
    as_finite_float,
    format_int,
    format_swept_value,
    parameter_label,
    pluralize,
    sanitize,
    truncate,
)
from autolora_eval.config.sweep_grid import INTERVAL, fields_of
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView
from autolora_eval.scoring.diversity_metric import metrics_from_manifest

say = Sentences("content")
VALUE_LENGTH = 300
MAPPING_LENGTH = 1000
LISTED_SINGLY = 5
STAGE_COUNTS = ("done", "reused", "cached", "failed", "unscored")


@dataclass(frozen=True)
class MethodAsRun:
    """What a method is, and how it was run.

    Attributes:
        name: Its name in tables.
        guider: The guider, sampler or image set.
        equation: The symbols of its equation.
        summary: What it does, in words.
        source: Where it comes from.
        settings: Its parameters and NFE, one line per distinct setting; a sweep is one line.
        code: Class, distribution and hash of third-party code; empty for built-in methods.
    """

    name: str
    guider: str
    equation: list[Atom]
    summary: str
    source: str
    settings: list[str]
    code: str


@dataclass(frozen=True)
class KeyValue:
    """One line of the manifest."""

    key: str
    value: str


@dataclass(frozen=True)
class KeyValues:
    """A part of the manifest."""

    title: str
    facts: list[KeyValue]


def methods(view: RunView) -> list[MethodAsRun]:
    """Return the methods in order of the table, each once, with its settings on each model."""
    listed = view.manifest_value("cells")
    groups: dict[str, list[Row]] = {}
    for cell in listed if isinstance(listed, list) else []:
        if isinstance(cell, dict):
            groups.setdefault(str(cell.get("method", NOT_RECORDED)), []).append(cell)
    counted = {row["cell"]: row.get("nfe") for row in view.rows}
    return [_method(name, cells, counted) for name, cells in groups.items()]


def _method(name: str, cells: list[Row], counted: Mapping[str, object]) -> MethodAsRun:
    first = cells[0]
    by_model: dict[str, list[Row]] = {}
    for cell in cells:
        by_model.setdefault(truncate(cell.get("model"), NAME_LENGTH), []).append(cell)
    by_setting: dict[str, list[str]] = {}
    for model, alike in by_model.items():
        by_setting.setdefault(_setting(alike, counted), []).append(model)
    if len(by_setting) == 1:
        settings = list(by_setting)
    else:
        settings = [f"{', '.join(models)}: {setting}" for setting, models in by_setting.items()]
    return MethodAsRun(
        name=truncate(name, NAME_LENGTH),
        guider=_text(first.get("guider")),
        equation=[] if first.get("equation") == "" else atoms(_text(first.get("equation"))),
        summary="" if first.get("summary") == "" else _text(first.get("summary")),
        source=_text(first.get("source")),
        settings=settings,
        code=_code(first.get("code")),
    )


def _code(code: object) -> str:
    """Return class, distribution and the beginning of the hash of third-party code."""
    if not isinstance(code, dict):
        return ""
    named = [code.get("class"), code.get("distribution")]
    sha256 = f"sources SHA-256 {str(code['sha256'])[:12]}" if code.get("sha256") else None
    return truncate(", ".join(str(part) for part in (*named, sha256) if part), VALUE_LENGTH)


def _setting(cells: list[Row], counted: Mapping[str, object]) -> str:
    """Return the parameters and NFE of a method's cells on one model; swept ones have several."""
    values: dict[str, dict[str, None]] = {}
    for cell in cells:
        for key, value in _with_point(cell).items():
            if value is not None and key not in ("guider", "sampler"):
                values.setdefault(key, {})[str(value)] = None
    parameters = [f"{key} = {' / '.join(found)}" for key, found in values.items()]
    # The plan has the NFE of methods that declare it; for the others the table has a count.
    found = (
        as_finite_float(cell.get("nfe")) or as_finite_float(counted.get(str(cell.get("id"))))
        for cell in cells
    )
    nfe = list(dict.fromkeys(found))
    texts = ["not recorded" if n is None else format_int(n) for n in nfe] if nfe != [None] else []
    is_sampler = any("sampler" in _with_point(cell) for cell in cells)
    return truncate(say.setting(parameters, texts, is_sampler), VALUE_LENGTH)


def _with_point(cell: Row) -> Row:
    """Return a cell's parameters, with an interval instead of its two ends."""
    parameters, point = cell.get("parameters"), cell.get("point")
    own = parameters if isinstance(parameters, dict) else {}
    interval = point.get(INTERVAL) if isinstance(point, dict) else None
    if interval is None:
        return own
    kept = {key: value for key, value in own.items() if key not in fields_of(INTERVAL)}
    return kept | {INTERVAL: format_swept_value(interval)}


def manifest_facts(view: RunView) -> list[KeyValues]:
    """Return the essentials of the manifest; missing values are shown as not recorded."""
    return [
        _benchmark(view),
        *(_model(name, model) for name, model in view.section("models").items()),
        KeyValues("Features", _flat(_without_counts(view.section("features")))),
        *_other_diversity_metrics(view),
        KeyValues("Judge", _judge(view)),
        *_human_ratings(view),
        KeyValues("Software", _software(view)),
        KeyValues("Hardware", _flat(view.section("hardware"))),
        KeyValues("Stages", _stages(view)),
    ]


def _other_diversity_metrics(view: RunView) -> list[KeyValues]:
    """Return the diversity metrics besides equation (8)."""
    facts = []
    for metric in metrics_from_manifest(view.run.manifest, view.run.table):
        described = [metric.get("equation"), metric["source"], _code(metric.get("code"))]
        name = truncate(metric["display_name"], NAME_LENGTH)
        facts.append(KeyValue(name, _text("; ".join(str(part) for part in described if part))))
    return [KeyValues("Diversity metrics besides equation (8)", facts)] if facts else []


def _benchmark(view: RunView) -> KeyValues:
    file = view.manifest_value("benchmark_file")
    prompts, seeds = view.manifest_value("prompts"), view.manifest_value("seeds")
    settings = view.section("benchmark")
    facts = {
        # The folder describes the machine and not the run.
        "file": None if file is None else PurePath(str(file)).name,
        "SHA-256": view.manifest_value("benchmark_sha256"),
        "prompts": len(prompts) if isinstance(prompts, list) else None,
        "prompts SHA-256": view.manifest_value("prompts_sha256"),
        "prompt file": settings.get("prompts") if isinstance(settings.get("prompts"), str) else "",
        "seeds": _seeds(seeds) if isinstance(seeds, list) else None,
        "baseline": view.baseline,
        "diversity reference": settings.get("diversity_published") or "",
        "device": settings.get("device"),
        "dtype": settings.get("dtype"),
        "batch size": settings.get("batch_size"),
    }
    return KeyValues("Benchmark", [KeyValue(key, _text(v)) for key, v in facts.items() if v != ""])


def _seeds(seeds: list[Any]) -> str:
    if seeds and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{pluralize(len(seeds), 'seed')}, {seeds[0]} to {seeds[-1]}"
    return f"{pluralize(len(seeds), 'seed')}: {', '.join(map(str, seeds))}"


def _model(name: str, model: object) -> KeyValues:
    return KeyValues(
        f"Model {truncate(name, NAME_LENGTH)}", _flat(model if isinstance(model, dict) else {})
    )


def _judge(view: RunView) -> list[KeyValue]:
    if "judge" in view.run.manifest and view.manifest_value("judge") is None:
        return [KeyValue("judge", say.no_judge())]
    rubric = view.section("rubric")
    named = {"rubric source": rubric["source"]} if rubric.get("source") else {}
    return _flat({**_without_counts(view.section("judge")), **named})


def _human_ratings(view: RunView) -> list[KeyValues]:
    section = view.section("agreement")
    facts = {key: value for key, value in section.items() if key != "scores_sha256"}
    return [KeyValues("Human ratings", _flat(facts))] if facts else []


def _without_counts(section: Row) -> Row:
    """Leave out the counts of a stage, which are shown with the stages."""
    return {key: value for key, value in section.items() if key not in STAGE_COUNTS}


def _software(view: RunView) -> list[KeyValue]:
    own = [KeyValue("autolora-eval", _text(view.manifest_value("autolora_eval_version")))]
    packages = view.section("packages")
    if not packages:
        return [*own, KeyValue("packages", NOT_RECORDED)]
    return own + [KeyValue(sanitize(name), _text(packages[name])) for name in sorted(packages)]


def _stages(view: RunView) -> list[KeyValue]:
    stages = view.section("stages")
    facts = [KeyValue(sanitize(name), _stage(stage)) for name, stage in stages.items()]
    return facts or [KeyValue("times", NOT_RECORDED)]


def _stage(stage: object) -> str:
    if not isinstance(stage, dict):
        return NOT_RECORDED
    seconds = as_finite_float(stage.get("seconds"))
    time = "time not recorded" if seconds is None else f"{seconds:,.1f} s"
    counts = [
        f"{format_int(stage[key])} {key}"
        for key in ("done", "reused")
        if as_finite_float(stage.get(key)) is not None
    ]
    return ", ".join([time, *counts])


def _flat(mapping: Row, prefix: str = "") -> list[KeyValue]:
    """Return a mapping, and the mappings within it, as lines.

    A null means that the key does not apply, such as the revision of a folder: it is left out. An
    empty mapping is shown as not recorded.
    """
    facts: list[KeyValue] = []
    for key, value in mapping.items():
        name = f"{prefix}{parameter_label(sanitize(key))}"
        if isinstance(value, dict) and len(value) > LISTED_SINGLY:
            facts.append(KeyValue(name, _in_one_line(value)))
        elif isinstance(value, dict):
            facts += _flat(value, f"{name} ")
        elif key == "size" and isinstance(value, list):
            facts.append(KeyValue(name, _text(" × ".join(map(str, value)))))
        elif value is not None:
            facts.append(KeyValue(name, _text(value)))
    return facts or ([] if prefix else [KeyValue("all of it", NOT_RECORDED)])


def _in_one_line(mapping: Row) -> str:
    """Return a long mapping, such as a scheduler's configuration, as one line."""
    return truncate(", ".join(f"{f.key} = {f.value}" for f in _flat(mapping)), MAPPING_LENGTH)


def _text(value: object) -> str:
    """Return a value of the manifest as text; a missing value as not recorded."""
    if value is None or value == "":
        return NOT_RECORDED
    if isinstance(value, list):
        return truncate(", ".join(map(str, value)), VALUE_LENGTH)
    return truncate(value, VALUE_LENGTH)


# ---- Equations, split into symbols that both templates can set as mathematics

AtomKind = Literal["letter", "words", "number", "operator"]
_SCRIPT = r"(?:\{[^{}]*\}|[^\W_]+)"
_ATOM = re.compile(
    r"(?P<words>\s*[^\W\d_]{2,}(?:\s+[^\W\d_]{2,})*\s*)|(?P<letter>[^\W\d_]|[∅∞])"
    r"|(?P<number>\d+(?:\.\d+)?)|(?P<blank>\s+)|(?P<operator>.)"
)
_KINDS: dict[str, AtomKind] = {"words": "words", "letter": "letter", "number": "number"}
_SCRIPTS = re.compile(rf"(?P<script>[\^_])(?P<text>{_SCRIPT})")


@dataclass(frozen=True)
class Atom:
    """A symbol of an equation with its subscript and superscript.

    Attributes:
        kind: A single letter is a variable; words are set upright, with their blanks.
        text: The symbol.
        sub: Its subscript.
        sup: Its superscript.
    """

    kind: AtomKind
    text: str
    sub: list[Atom] = field(default_factory=list)
    sup: list[Atom] = field(default_factory=list)


def atoms(equation: str) -> list[Atom]:
    """Split an equation into symbols, each with its `^{…}`, `^x`, `_{…}` and `_x`.

    Anything else stays as it is written: the equation of a plugin may hold any text.
    """
    found: list[Atom] = []
    position = 0
    while position < len(equation):
        match = _ATOM.match(equation, position)
        assert match is not None  # the last alternative matches any character
        position = match.end()
        if match.lastgroup == "blank":
            continue
        scripts: dict[str, list[Atom]] = {}
        # Blanks before a script, as in "the ^", keep it from belonging to what is before them.
        while match[0][-1:].strip() and (more := _SCRIPTS.match(equation, position)):
            if more["script"] in scripts:
                break
            scripts[more["script"]] = _script(more["text"])
            position = more.end()
        kind = _KINDS.get(match.lastgroup or "", "operator")
        text = re.sub(r"\s+", " ", match[0])
        found.append(Atom(kind, text, scripts.get("_", []), scripts.get("^", [])))
    return found


def _script(text: str) -> list[Atom]:
    return atoms(text.removeprefix("{").removesuffix("}"))
