"""Every method that can be named here, for people and scripts: what it takes, costs and supports.

What is built in and what diffusers ships is listed without loading either torch or diffusers;
other packages are imported, since they say by their code alone what they offer.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval.guidance.diffusers_defects import SD3, SDXL
from autolora_eval.guidance.diffusers_guiders import UPSTREAM, UpstreamGuider
from autolora_eval.guidance.method import GuiderMethod, Method, methods
from autolora_eval.guidance.third_party_methods import (
    GROUPS,
    GuiderClassMethod,
    Kind,
    clash_of,
    find_rule,
    plugins,
)
from autolora_eval.plugins.signatures import (
    REQUIRED,
    SCALE,
    CallParameters,
    MethodParameters,
    told_by,
)

STEPS, W = 100, 5.0
BUILT_IN, UPSTREAM_GROUP, INSTALLED = "built in", "diffusers", "installed"
_MODELS = {SDXL: "SDXL", SD3: "SD3"}
_OF_THE_MODEL = "the model's"


@dataclass(frozen=True)
class ListedParameter:
    """A parameter: name, type as Python writes it, and default; None if it must be given."""

    name: str
    type: str
    default: str | None


@dataclass(frozen=True)
class Listed:
    """A method as it is listed.

    Attributes:
        name: what a benchmark file calls it by.
        kind: the key that it is named by.
        group: `built in`, `diffusers`, or `installed` for other packages.
        display_name: what it is commonly called.
        summary: what it does, in a sentence.
        equation: the rule; empty where it is not stated.
        source: paper, and whose code it is.
        parameters: in order.
        passes: the least and the most denoiser passes of a step, at defaults and w = 5; None
            where that is known once it has run.
        supports: the models that it works on, in words.
        notes: what else is to be known.
        problem: why it cannot be used; empty if it can.
    """

    name: str
    kind: Kind
    group: str
    display_name: str = ""
    summary: str = ""
    equation: str = ""
    source: str = ""
    parameters: tuple[ListedParameter, ...] = ()
    passes: tuple[int, int] | None = None
    supports: str = ""
    notes: str = ""
    problem: str = ""


def catalogue() -> Iterator[Listed]:
    """Yield every method that can be named: built in, of diffusers, of installed packages."""
    for rule in methods().values():
        yield _of_rule("guider", rule, BUILT_IN)
    yield from _of_diffusers()
    for kind in GROUPS:
        yield from _of_packages(kind)


def listed_as(names: Sequence[str], folders: Sequence[Path] = ()) -> list[Listed]:
    """Return the methods of these names or dotted paths.

    Args:
        names: what a benchmark could name; of a guider of diffusers the class is enough.
        folders: where a module that is not installed is looked for.

    Raises:
        UsageError: there is no such method.
    """
    known: dict[str, list[Listed]] = {}
    for one in catalogue():
        known.setdefault(one.name, []).append(one)
        if one.group == UPSTREAM_GROUP:
            known.setdefault(one.name.rpartition(".")[2], []).append(one)
    found: list[Listed] = []
    for name in names:
        if name not in known and "." not in name:
            near = did_you_mean(name, [one for one in known if "." not in one])
            raise UsageError(f"no method '{name}'.{near}")
        found += known.get(name) or [_by_path(name, folders)]
    return found


def _by_path(path: str, folders: Sequence[Path]) -> Listed:
    """Return the guider, or else the sampler, that a dotted path names."""
    try:
        return _of_rule("guider", find_rule("guider", path, folders), "")
    except UsageError:
        try:
            return _of_rule("sampler", find_rule("sampler", path, folders), "")
        except UsageError:
            pass
        raise


def _of_rule(kind: Kind, rule: Method, group: str, problem: str = "") -> Listed:
    parameters, refused = _at_defaults(rule)
    return Listed(
        name=rule.name,
        kind=kind,
        group=group,
        display_name=rule.display_name,
        summary=rule.summary,
        equation=rule.equation,
        source=rule.source,
        parameters=tuple(_parameters(rule.parameters)),
        passes=None if parameters is None else _passes(rule, parameters),
        supports=_supports(rule, group, bool(problem)),
        problem=problem or refused,
    )


def _parameters(model: type[MethodParameters]) -> Iterator[ListedParameter]:
    for name, field in model.model_fields.items():
        if issubclass(model, CallParameters):
            stated = model._signature.parameters.get(name)
            annotation = model._signature.annotations.get(name)
            default = REQUIRED if stated is None else stated.default
            required = default is REQUIRED
        else:
            annotation, default = field.annotation, field.default
            required = default is PydanticUndefined
        text = None if required else repr(default)
        if name == SCALE:
            text = _OF_THE_MODEL
        kind = "" if annotation is None else inspect.formatannotation(annotation)
        yield ListedParameter(name, kind.replace("autolora_eval.", ""), text)


def _at_defaults(rule: Method) -> tuple[MethodParameters | None, str]:
    """Return the parameters where nothing is stated, or why a constructor refuses its defaults.

    Neither is returned of a method that needs something stated.
    """
    try:
        return rule.parameters.model_validate({}).with_model_defaults(W), ""
    except ValidationError as error:
        whole = [item["msg"] for item in error.errors() if not item["loc"]]
        told = whole[0].removeprefix("Value error, ") if whole else ""
        return None, f"with nothing stated, {told}" if told else ""
    except (Exception, SystemExit) as error:  # of a stranger's own class of parameters
        return None, f"with nothing stated, it fails: {type(error).__name__}: {told_by(error)}"


def _passes(rule: Method, parameters: MethodParameters) -> tuple[int, int] | None:
    try:
        if isinstance(rule, GuiderClassMethod):
            made = rule.announced(parameters, STEPS)
        elif isinstance(rule, GuiderMethod) and rule.predictions is not None:
            made = [rule.predictions(parameters, step, STEPS) for step in range(STEPS)]
        else:
            return None
    except (Exception, SystemExit):  # of a stranger's that fails away from a pipeline
        return None
    return min(made), max(made)


def _supports(rule: Method, group: str, is_clash: bool) -> str:
    if group == BUILT_IN:
        return "every model that takes a guider"
    if isinstance(rule, GuiderMethod):
        path = rule.code.get("class", rule.name)
        name = rule.name if group == INSTALLED and not is_clash else path
        return f"not declared; autolora-eval check {name}"
    return "not declared"


def _of_diffusers() -> Iterator[Listed]:
    sources = _guider_sources()
    version = _version("diffusers")
    for guider in UPSTREAM.values():
        source = sources.get(guider.name)
        yield Listed(
            name=guider.path,
            kind="guider",
            group=UPSTREAM_GROUP,
            display_name=guider.display_name,
            equation=guider.formula,
            source=f"{guider.source}; diffusers {version}",
            parameters=() if source is None else tuple(_stated_parameters(source)),
            passes=_upstream_passes(guider),
            supports=_upstream_support(guider),
            notes=guider.notes,
            problem="" if sources else "diffusers is not installed",
        )


def _upstream_passes(guider: UpstreamGuider) -> tuple[int, int]:
    stated = {SCALE: W} if SCALE in guider.defaults else {}
    made = [guider.predictions(stated, step, STEPS) for step in range(STEPS)]
    return min(made), max(made)


def _upstream_support(guider: UpstreamGuider) -> str:
    stated = {SCALE: W} if SCALE in guider.defaults else {}
    refused = {name: guider.refusal(stated, pipeline) for pipeline, name in _MODELS.items()}
    works = [name for name, why in refused.items() if why is None]
    reasons: dict[str, list[str]] = {}
    for name, why in refused.items():
        if why is not None:
            reasons.setdefault(why.removeprefix(f"{guider.path}: "), []).append(name)
    told = [f"not {' or '.join(names)}: {why}" for why, names in reasons.items()]
    return "; ".join([*([", ".join(works)] if works else []), *told])


def _guider_sources() -> dict[str, ast.ClassDef]:
    """Return the classes of diffusers' guiders, read as text: importing them takes seconds."""
    spec = find_spec("diffusers")
    if spec is None or spec.origin is None:
        return {}
    files = sorted((Path(spec.origin).parent / "guiders").glob("*.py"))
    trees = [ast.parse(file.read_bytes()) for file in files]
    return {node.name: node for t in trees for node in t.body if isinstance(node, ast.ClassDef)}


def _stated_parameters(source: ast.ClassDef) -> Iterator[ListedParameter]:
    functions = (node for node in source.body if isinstance(node, ast.FunctionDef))
    made = next((node for node in functions if node.name == "__init__"), None)
    if made is None:
        return
    taken = made.args.args[1:]
    defaults = [None] * (len(taken) - len(made.args.defaults)) + [*made.args.defaults]
    for argument, default in zip(taken, defaults, strict=True):
        kind = "" if argument.annotation is None else ast.unparse(argument.annotation)
        text = None if default is None else ast.unparse(default)
        text = _OF_THE_MODEL if argument.arg == SCALE else text
        yield ListedParameter(argument.arg, kind, text)


def _of_packages(kind: Kind) -> Iterator[Listed]:
    for named in plugins(kind).values():
        clash = clash_of(kind, named) or ""
        for plugin in named:
            try:
                listed = _of_rule(kind, plugin.load(), INSTALLED, clash)
            except UsageError as error:
                listed = Listed(plugin.name, kind, INSTALLED, problem=str(error))
            told = listed.source or plugin.distribution
            yield replace(listed, source=told)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(not installed)"
