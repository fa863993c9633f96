"""Equations as plain text cut into what both templates can set as mathematics. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

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
from autolora_eval.config.sweep import INTERVAL, fields_of
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView
from autolora_eval.scoring.diversity_metric import metrics_from_manifest

Kind = Literal["letter", "words", "number", "operator"]
_SCRIPT = r"(?:\{[^{}]*\}|[^\W_]+)"
_ATOM = re.compile(
    r"(?P<words>\s*[^\W\d_]{2,}(?:\s+[^\W\d_]{2,})*\s*)|(?P<letter>[^\W\d_]|[∅∞])"
    r"|(?P<number>\d+(?:\.\d+)?)|(?P<blank>\s+)|(?P<operator>.)"
)
_KINDS: dict[str, Kind] = {"words": "words", "letter": "letter", "number": "number"}
_SCRIPTS = re.compile(rf"(?P<place>[\^_])(?P<text>{_SCRIPT})")


@dataclass(frozen=True)
class Atom:
    """A sign of an equation, with what is lowered and raised beside it.

    Attributes:
        kind: a single letter is a variable; words are set upright, with their blanks.
        text: as it is shown.
        sub: lowered.
        sup: raised.
    """

    kind: Kind
    text: str
    sub: list[Atom] = field(default_factory=list)
    sup: list[Atom] = field(default_factory=list)


def atoms(equation: str) -> list[Atom]:
    """Cut an equation into signs, each with its `^{…}`, `^x`, `_{…}` and `_x`.

    Anything else stays as it is written: an equation of a plugin may hold any text.
    """
    found: list[Atom] = []
    at = 0
    while at < len(equation):
        match = _ATOM.match(equation, at)
        assert match is not None  # its last alternative is any character; blanks hold the others
        at = match.end()
        if match.lastgroup == "blank":
            continue
        scripts: dict[str, list[Atom]] = {}
        # Blanks before a script, as in "the ^", keep it from belonging to what is before them.
        while match[0][-1:].strip() and (more := _SCRIPTS.match(equation, at)):
            if more["place"] in scripts:
                break
            scripts[more["place"]] = _script(more["text"])
            at = more.end()
        kind = _KINDS.get(match.lastgroup or "", "operator")
        text = re.sub(r"\s+", " ", match[0])
        found.append(Atom(kind, text, scripts.get("_", []), scripts.get("^", [])))
    return found


def _script(text: str) -> list[Atom]:
    return atoms(text.removeprefix("{").removesuffix("}"))


# --------------------
# Where the numbers come from: the methods as run, and the essentials of the manifest.


VALUE_LENGTH = 300
MAPPING_LENGTH = 1000
LISTED_SINGLY = 5
STAGE_COUNTS = ("done", "reused", "cached", "failed", "unscored")


@dataclass(frozen=True)
class MethodAsRun:
    """What a method is, and how it was run.

    Attributes:
        name: as in tables.
        guider: the rule.
        equation: its signs.
        summary: in words.
        source: where it comes from.
        settings: its parameters and passes, one line for each distinct setting; a sweep is one.
        code: what of other people's code made its images; empty for what is built in.
    """

    name: str
    guider: str
    equation: list[Atom]
    summary: str
    source: str
    settings: list[str]
    code: str


@dataclass(frozen=True)
class Fact:
    """One line of the manifest."""

    key: str
    value: str


@dataclass(frozen=True)
class Facts:
    """A part of the manifest."""

    title: str
    facts: list[Fact]


def methods(evidence: RunView) -> list[MethodAsRun]:
    """Return the methods in order of the table, each once, with its settings on each model."""
    listed = evidence.recorded("cells")
    groups: dict[str, list[Row]] = {}
    for cell in listed if isinstance(listed, list) else []:
        if isinstance(cell, dict):
            groups.setdefault(str(cell.get("method", NOT_RECORDED)), []).append(cell)
    counted = {row["cell"]: row.get("nfe") for row in evidence.rows}
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


def _code(stated: object) -> str:
    """Return whose code it was, and which: class, distribution, the beginning of its hash."""
    if not isinstance(stated, dict):
        return ""
    told = [stated.get("class"), stated.get("distribution")]
    sha256 = f"sources SHA-256 {str(stated['sha256'])[:12]}" if stated.get("sha256") else None
    return truncate(", ".join(str(part) for part in (*told, sha256) if part), VALUE_LENGTH)


def _setting(cells: list[Row], counted: Mapping[str, object]) -> str:
    """Return the parameters and passes of a method's cells on one model, several where swept."""
    values: dict[str, dict[str, None]] = {}
    for cell in cells:
        for key, value in _with_point(cell).items():
            if value is not None and key not in ("guider", "sampler"):
                values.setdefault(key, {})[str(value)] = None
    named = [f"{key} = {' / '.join(found)}" for key, found in values.items()]
    # What a method declares stands in the plan; of the others the table has what was counted.
    found = (
        as_finite_float(cell.get("nfe")) or as_finite_float(counted.get(str(cell.get("id"))))
        for cell in cells
    )
    nfe = list(dict.fromkeys(found))
    passes = " / ".join("not recorded" if n is None else format_int(n) for n in nfe)
    told = f"{passes} passes per image"
    if nfe == [None]:
        by_itself = any("sampler" in _with_point(cell) for cell in cells)
        told = "passes not counted" if by_itself else "passes per image not recorded"
    return truncate("; ".join([", ".join(named) or "no parameters", told]), VALUE_LENGTH)


def _with_point(cell: Row) -> Row:
    """Return a cell's parameters, an interval in place of its two ends."""
    parameters, point = cell.get("parameters"), cell.get("point")
    stated = parameters if isinstance(parameters, dict) else {}
    interval = point.get(INTERVAL) if isinstance(point, dict) else None
    if interval is None:
        return stated
    kept = {key: value for key, value in stated.items() if key not in fields_of(INTERVAL)}
    return kept | {INTERVAL: format_swept_value(interval)}


def manifest_facts(evidence: RunView) -> list[Facts]:
    """Return the essentials of the manifest; what an older run lacks is said to be lacking."""
    return [
        _benchmark(evidence),
        *(_model(name, model) for name, model in evidence.section("models").items()),
        Facts("Features", _flat(_without_counts(evidence.section("features")))),
        *_other_measures(evidence),
        Facts("Judge", _judge(evidence)),
        *_human_ratings(evidence),
        Facts("Software", _software(evidence)),
        Facts("Hardware", _flat(evidence.section("hardware"))),
        Facts("Stages", _stages(evidence)),
    ]


def _other_measures(evidence: RunView) -> list[Facts]:
    """Return what the measures of diversity beside equation (8) are."""
    facts = []
    for stated in metrics_from_manifest(evidence.run.manifest, evidence.run.table):
        told = [stated.get("equation"), stated["source"], _code(stated.get("code"))]
        name = truncate(stated["display_name"], NAME_LENGTH)
        facts.append(Fact(name, _text("; ".join(str(part) for part in told if part))))
    return [Facts("Diversity beside equation (8)", facts)] if facts else []


def _benchmark(evidence: RunView) -> Facts:
    file = evidence.recorded("benchmark_file")
    prompts, seeds = evidence.recorded("prompts"), evidence.recorded("seeds")
    settings = evidence.section("benchmark")
    facts = {
        # The folder it lies in says something of the machine, and nothing of the run.
        "file": None if file is None else PurePath(str(file)).name,
        "SHA-256": evidence.recorded("benchmark_sha256"),
        "prompts": len(prompts) if isinstance(prompts, list) else None,
        "prompts SHA-256": evidence.recorded("prompts_sha256"),
        "prompt file": settings.get("prompts") if isinstance(settings.get("prompts"), str) else "",
        "seeds": _seeds(seeds) if isinstance(seeds, list) else None,
        "baseline": evidence.baseline,
        "diversity reference": settings.get("diversity_reference") or "",
        "device": settings.get("device"),
        "dtype": settings.get("dtype"),
        "batch size": settings.get("batch_size"),
    }
    return Facts("Benchmark", [Fact(key, _text(v)) for key, v in facts.items() if v != ""])


def _seeds(seeds: list[Any]) -> str:
    if seeds and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{pluralize(len(seeds), 'seed')}, {seeds[0]} to {seeds[-1]}"
    return f"{pluralize(len(seeds), 'seed')}: {', '.join(map(str, seeds))}"


def _model(name: str, model: object) -> Facts:
    return Facts(
        f"Model {truncate(name, NAME_LENGTH)}", _flat(model if isinstance(model, dict) else {})
    )


def _judge(evidence: RunView) -> list[Fact]:
    if "judge" in evidence.run.manifest and evidence.recorded("judge") is None:
        return [Fact("judge", "none: only diversity was measured")]
    rubric = evidence.section("rubric")
    named = {"rubric source": rubric["source"]} if rubric.get("source") else {}
    return _flat({**_without_counts(evidence.section("judge")), **named})


def _human_ratings(evidence: RunView) -> list[Facts]:
    section = evidence.section("agreement")
    stated = {key: value for key, value in section.items() if key != "scores_sha256"}
    return [Facts("Human ratings", _flat(stated))] if stated else []


def _without_counts(section: Row) -> Row:
    """Leave out how much a stage did: that stands with the stages."""
    return {key: value for key, value in section.items() if key not in STAGE_COUNTS}


def _software(evidence: RunView) -> list[Fact]:
    own = [Fact("autolora-eval", _text(evidence.recorded("autolora_eval_version")))]
    packages = evidence.section("packages")
    if not packages:
        return [*own, Fact("packages", NOT_RECORDED)]
    return own + [Fact(sanitize(name), _text(packages[name])) for name in sorted(packages)]


def _stages(evidence: RunView) -> list[Fact]:
    stages = evidence.section("stages")
    facts = [Fact(sanitize(name), _stage(stage)) for name, stage in stages.items()]
    return facts or [Fact("times", NOT_RECORDED)]


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


def _flat(mapping: Row, prefix: str = "") -> list[Fact]:
    """Return a mapping, and the mappings within it, as lines.

    A null says that the key does not apply, as a folder's revision: it is left out. What an older
    run did not record at all is said not to be recorded.
    """
    facts: list[Fact] = []
    for key, value in mapping.items():
        name = f"{prefix}{parameter_label(sanitize(key))}"
        if isinstance(value, dict) and len(value) > LISTED_SINGLY:
            facts.append(Fact(name, _in_one_line(value)))
        elif isinstance(value, dict):
            facts += _flat(value, f"{name} ")
        elif key == "size" and isinstance(value, list):
            facts.append(Fact(name, _text(" × ".join(map(str, value)))))
        elif value is not None:
            facts.append(Fact(name, _text(value)))
    return facts or ([] if prefix else [Fact("all of it", NOT_RECORDED)])


def _in_one_line(mapping: Row) -> str:
    """Return a long mapping, such as a scheduler's configuration, as one line."""
    return truncate(", ".join(f"{f.key} = {f.value}" for f in _flat(mapping)), MAPPING_LENGTH)


def _text(value: object) -> str:
    """Return a value of the manifest as text; a missing one is said to be missing."""
    if value is None or value == "":
        return NOT_RECORDED
    if isinstance(value, list):
        return truncate(", ".join(map(str, value)), VALUE_LENGTH)
    return truncate(value, VALUE_LENGTH)
