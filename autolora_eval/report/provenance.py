"""Provenance of the numbers: the methods as run, and the main facts of the manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from autolora_eval._text import (
    NOT_RECORDED,
    Sentences,
    as_finite_float,
    format_nfe,
    format_swept_value,
    parameter_label,
    pluralize,
    sanitize,
    truncate,
)
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import CellRecord, MethodRecord, ModelRecord, Record

say = Sentences("content")
VALUE_LENGTH = 300
MAPPING_LENGTH = 1000
LISTED_SINGLY = 5
# Not listed again: the line has the method and the NFE. The second NFE is that of an image set.
_NAMED = ("guider", "sampler", "images", "parameter_nfe")
STAGE_COUNTS = ("done", "reused", "cached", "failed", "unscored")


@dataclass(frozen=True)
class MethodAsRun:
    """What a method is, and how it was run."""

    name: str
    guider: str  # or the sampler, or the image set
    equation: list[Atom]
    summary: str
    source: str
    settings: list[str]  # parameters and NFE, one line per distinct setting; a sweep is one line
    code: str  # class, distribution and hash of third-party code


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
    return [_method(view, name, method) for name, method in view.manifest.methods.items()]


def _method(view: RunView, name: str, method: MethodRecord) -> MethodAsRun:
    by_model: dict[str, list[CellRecord]] = {}
    for cell in view.manifest.cells:
        if cell.method == name:
            by_model.setdefault(truncate(cell.model, NAME_LENGTH), []).append(cell)
    by_setting: dict[str, list[str]] = {}
    for model, alike in by_model.items():
        by_setting.setdefault(_setting(view, alike, method), []).append(model)
    if len(by_setting) == 1:
        settings = list(by_setting)
    else:
        settings = [f"{', '.join(models)}: {setting}" for setting, models in by_setting.items()]
    return MethodAsRun(
        name=truncate(name, NAME_LENGTH),
        guider=_text(method.name),
        equation=atoms(_text(method.equation)) if method.equation else [],
        summary=_text(method.summary) if method.summary else "",
        source=_text(method.source),
        settings=settings,
        code=_code(method.code),
    )


def _code(code: Mapping[str, str]) -> str:
    sha256 = f"sources SHA-256 {code['sha256'][:12]}" if "sha256" in code else None
    known = (code.get("class"), code.get("distribution"), sha256)
    return truncate(", ".join(part for part in known if part), VALUE_LENGTH)


def _setting(view: RunView, cells: list[CellRecord], method: MethodRecord) -> str:
    """Return the parameters and NFE of a method's cells on one model; swept ones have several."""
    counted = {row["cell"]: row.get("nfe") for row in view.rows}
    values: dict[str, dict[str, None]] = {}
    for cell in cells:
        for key, value in _with_point(cell, view.manifest).items():
            if value is not None and key not in _NAMED:
                values.setdefault(key, {})[str(value)] = None
    parameters = [f"{key} = {' / '.join(found)}" for key, found in values.items()]
    # The plan has the NFE of methods that declare it; for the others the table has a count.
    known = (as_finite_float(cell.nfe) or as_finite_float(counted.get(cell.id)) for cell in cells)
    nfe = list(dict.fromkeys(known))
    texts = ["not recorded" if n is None else format_nfe(n) for n in nfe] if nfe != [None] else []
    return truncate(say.setting(parameters, texts, method.kind == "sampler"), VALUE_LENGTH)


def _with_point(cell: CellRecord, manifest: RunManifest) -> Row:
    """Return a cell's parameters, with an interval instead of its two ends."""
    parameters = dict(cell.parameters)
    for name, value in cell.point.items():
        columns = manifest.sweep[name].columns if name in manifest.sweep else ()
        if len(columns) > 1:
            parameters = {key: own for key, own in parameters.items() if key not in columns}
            parameters[name] = format_swept_value(value)
    return parameters


def manifest_facts(view: RunView) -> list[KeyValues]:
    """Return the main facts of the manifest, without parts that do not apply."""
    manifest, people = view.manifest, view.manifest.agreement
    packages = sorted(manifest.packages.items())
    models = [
        KeyValues(f"Model {truncate(name, NAME_LENGTH)}", _model(model))
        for name, model in manifest.models.items()
    ]
    versions = {"autolora-eval": manifest.autolora_eval_version, **dict(packages)}
    software = [KeyValue(sanitize(name), _text(version)) for name, version in versions.items()]
    stages = [
        KeyValue(name, f"{s.seconds:,.1f} s, {s.done:,} done, {s.reused:,} reused")
        for name, s in manifest.stages.items()
    ]
    facts = [
        KeyValues("Benchmark", _benchmark(manifest)),
        *models,
        KeyValues("Features", _record(manifest.features)),
        KeyValues("Diversity metrics besides equation (8)", _other_diversity_metrics(manifest)),
        KeyValues("Judge", _judge(manifest)),
        KeyValues("Human ratings", _record(people, "scores_sha256") if people else []),
        KeyValues("Software", software),
        KeyValues("Hardware", _record(manifest.hardware)),
        KeyValues("Stages", stages or [KeyValue("times", NOT_RECORDED)]),
    ]
    return [part for part in facts if part.facts]


def _other_diversity_metrics(manifest: RunManifest) -> list[KeyValue]:
    facts = []
    for metric in manifest.diversity_metrics.values():
        described = [metric.equation, metric.source, _code(metric.code)]
        name = truncate(metric.display_name, NAME_LENGTH)
        facts.append(KeyValue(name, _text("; ".join(part for part in described if part))))
    return facts


def _benchmark(manifest: RunManifest) -> list[KeyValue]:
    benchmark, seeds = manifest.benchmark, manifest.seeds
    in_a_row = bool(seeds) and seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    listed = f"{seeds[0]} to {seeds[-1]}" if in_a_row else ", ".join(map(str, seeds))
    facts = {
        # The folder describes the machine and not the run.
        "file": PurePath(benchmark.file).name,
        "SHA-256": benchmark.sha256,
        "prompts": len(manifest.prompts),
        "prompts SHA-256": manifest.prompts_sha256,
        "prompt file": benchmark.prompt_file,
        "seeds": f"{pluralize(len(seeds), 'seed')}{', ' if in_a_row else ': '}{listed}",
        "baseline": benchmark.baseline,
        "diversity reference": benchmark.diversity_reference or "",
        "device": benchmark.device,
        "dtype": benchmark.dtype,
        "batch size": benchmark.batch_size,
    }
    return [KeyValue(key, _text(value)) for key, value in facts.items() if value != ""]


def _model(model: ModelRecord) -> list[KeyValue]:
    optional = ("clip_skip", "negative_prompt", "compile", "channels_last")
    unset = {key for key in optional if not getattr(model, key)}
    left_out = {"loras", "lora_layers", *unset}
    values = model.model_dump(mode="json", exclude=left_out, exclude_none=True)
    layers: Sequence[int | None] = model.lora_layers or [None] * len(model.loras)
    for number, (lora, n) in enumerate(zip(model.loras, layers, strict=True), 1):
        key = "lora" if len(model.loras) == 1 else f"lora {number}"
        values[key] = lora.model_dump(mode="json", exclude_none=True) | {"layers": n}
    values |= {} if model.loras else {"lora": "none"}
    return _flat(values)


def _judge(manifest: RunManifest) -> list[KeyValue]:
    judge, rubric = manifest.judge, manifest.rubric
    if judge is None:
        return [KeyValue("judge", say.no_judge())]
    source = {"rubric source": rubric.source} if rubric and rubric.source else {}
    settings = judge.model_dump(mode="json", exclude={"settings", *STAGE_COUNTS})
    return _flat({**settings, **judge.settings, **source})


def _record(record: Record | None, *left_out: str) -> list[KeyValue]:
    """Return a record as lines, without the counts of a stage, which the stages show."""
    if record is None:
        return _flat({})
    values = record.model_dump(mode="json", exclude={*STAGE_COUNTS, *left_out}, exclude_none=True)
    return _flat(values)


def _flat(mapping: Row, prefix: str = "") -> list[KeyValue]:
    """Return a mapping, and the mappings within it, as lines.

    A null means that the key does not apply, such as the revision of a folder: it is left out, and
    so is `used`, unless a model was not used. An empty mapping is shown as not recorded.
    """
    facts: list[KeyValue] = []
    for key, value in mapping.items():
        name = f"{prefix}{parameter_label(sanitize(key))}"
        if isinstance(value, dict) and len(value) > LISTED_SINGLY:
            # A long mapping, such as a scheduler's configuration, is one line.
            line = ", ".join(f"{fact.key} = {fact.value}" for fact in _flat(value))
            facts.append(KeyValue(name, truncate(line, MAPPING_LENGTH)))
        elif isinstance(value, dict):
            facts += _flat(value, f"{name} ")
        elif key == "size" and isinstance(value, list):
            facts.append(KeyValue(name, _text(" × ".join(map(str, value)))))
        elif value is not None and (key, value) != ("used", True):
            facts.append(KeyValue(name, _text(value)))
    return facts or ([] if prefix else [KeyValue("all of it", NOT_RECORDED)])


def _text(value: object) -> str:
    """Return a value of the manifest as text; a missing value as not recorded."""
    if value is None or value == "":
        return NOT_RECORDED
    if isinstance(value, bool):
        return "yes" if value else "no"
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

    A single letter is a variable; words are set upright, with their blanks.
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
            scripts[more["script"]] = atoms(more["text"].removeprefix("{").removesuffix("}"))
            position = more.end()
        kind = _KINDS.get(match.lastgroup or "", "operator")
        text = re.sub(r"\s+", " ", match[0])
        found.append(Atom(kind, text, scripts.get("_", []), scripts.get("^", [])))
    return found
