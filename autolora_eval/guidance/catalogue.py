"""The command `methods`: every method with its parameters, cost and supported models.

Built-in methods and diffusers' guiders are listed without importing torch or diffusers. Plugins of
other packages are imported.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from itertools import groupby
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autolora_eval._devices import package_versions
from autolora_eval._errors import UsageError, did_you_mean, validation_message
from autolora_eval.guidance.diffusers_defects import SD3, SDXL, Parameters
from autolora_eval.guidance.diffusers_guiders import (
    DIFFUSERS_GUIDERS,
    DiffusersGuider,
    constructor_arguments,
    guider_sources,
)
from autolora_eval.guidance.method import GuiderMethod, Method
from autolora_eval.guidance.method_registry import GUIDERS, REGISTRIES, MethodKind, resolve_method
from autolora_eval.plugins.signatures import REQUIRED, SCALE, CallParameters, MethodParameters
from autolora_eval.plugins.third_party import error_message, load_dotted

STEPS, W = 100, 5.0
BUILT_IN, DIFFUSERS, INSTALLED = "built in", "diffusers", "installed"
_MODELS = {SDXL: "SDXL", SD3: "SD3"}
_OF_THE_MODEL = "the model's"


@dataclass(frozen=True)
class ListedParameter:
    """A parameter: its name, Python type and default; None if it is required."""

    name: str
    type: str
    default: str | None


@dataclass(frozen=True)
class Listed:
    """A method in the list.

    Attributes:
        name: the name in a benchmark file.
        kind: the key in a benchmark file.
        group: `built in`, `diffusers`, or `installed` (other packages).
        display_name: the common name.
        summary: one sentence.
        equation: the rule; empty if its author does not give one.
        source: the paper, and the package of the code.
        parameters: in order.
        nfe_per_step: the least and most function evaluations per step at default parameters and
            w = 5; None if they are not known beforehand.
        supports: the models that it works with, in words.
        notes: further remarks.
        problem: why it cannot be used; empty if it can.
    """

    name: str
    kind: MethodKind
    group: str
    display_name: str = ""
    summary: str = ""
    equation: str = ""
    source: str = ""
    parameters: tuple[ListedParameter, ...] = ()
    nfe_per_step: tuple[int, int] | None = None
    supports: str = ""
    notes: str = ""
    problem: str = ""


def catalogue() -> Iterator[Listed]:
    """Yield every method: built in, of diffusers, of installed packages."""
    for method in GUIDERS.built_in().values():
        yield _listed("guider", method, BUILT_IN)
    yield from _of_diffusers()
    for kind in REGISTRIES:
        yield from _of_packages(kind)


def listed_as(names: Sequence[str], folders: Sequence[Path] = ()) -> list[Listed]:
    """Return the methods with these names or dotted paths.

    Args:
        names: as in a benchmark file; the class name is enough for a guider of diffusers.
        folders: where to look for modules that are not installed.

    Raises:
        UsageError: if there is no such method.
    """
    known: dict[str, list[Listed]] = {}
    for one in catalogue():
        known.setdefault(one.name, []).append(one)
        if one.group == DIFFUSERS:
            known.setdefault(one.name.rpartition(".")[2], []).append(one)
    found: list[Listed] = []
    for name in names:
        if name not in known and "." not in name:
            near = did_you_mean(name, [one for one in known if "." not in one])
            raise UsageError(f"no method '{name}'.{near}")
        found += known.get(name) or [_by_path(name, folders)]
    return found


def _by_path(path: str, folders: Sequence[Path]) -> Listed:
    try:
        return _listed("guider", resolve_method("guider", path, folders), "")
    except UsageError as not_a_guider:
        try:
            return _listed("sampler", resolve_method("sampler", path, folders), "")
        except UsageError as not_a_sampler:
            is_function = inspect.isroutine(load_dotted(path, folders))
            raise (not_a_sampler if is_function else not_a_guider) from None


def _listed(kind: MethodKind, method: Method, group: str, problem: str = "") -> Listed:
    parameters, refused = _defaults(method)
    return Listed(
        name=method.name,
        kind=kind,
        group=group,
        display_name=method.display_name,
        summary=method.summary,
        equation=method.equation,
        source=method.source,
        parameters=tuple(_parameters(method.parameters)),
        nfe_per_step=None if parameters is None else _nfe_range(method, parameters),
        supports=_supports(method, group, bool(problem)),
        problem=problem or refused,
    )


def _parameters(model: type[MethodParameters]) -> Iterator[ListedParameter]:
    for name, field in model.model_fields.items():
        if issubclass(model, CallParameters):
            parameter = model._signature.parameters.get(name)
            annotation = model._signature.annotations.get(name)
            default = REQUIRED if parameter is None else parameter.default
            required = default is REQUIRED
        else:
            annotation, default = field.annotation, field.default
            required = default is PydanticUndefined
        # As a benchmark file has it.
        text = None if required else repr(default.value if isinstance(default, Enum) else default)
        if name == SCALE:
            text = _OF_THE_MODEL
        kind = "" if annotation is None else inspect.formatannotation(annotation)
        yield ListedParameter(name, kind.replace("autolora_eval.", ""), text)


def _defaults(method: Method) -> tuple[MethodParameters | None, str]:
    """Return the default parameters, or why the constructor refuses them.

    Both are empty for a method with a required parameter.
    """
    try:
        return method.parameters.model_validate({}).with_model_defaults(W), ""
    except ValidationError as error:
        whole = [validation_message(item) for item in error.errors() if not item["loc"]]
        message = whole[0] if whole else ""
        return None, f"at its default parameters, {message}" if message else ""
    except (Exception, SystemExit) as error:  # a third-party class of parameters
        message = error_message(error)
        return None, f"at its default parameters, it fails: {type(error).__name__}: {message}"


def _nfe_range(method: Method, parameters: MethodParameters) -> tuple[int, int] | None:
    if not isinstance(method, GuiderMethod):
        return None
    try:
        made = method.nfe_of_steps(parameters, STEPS)
    except (Exception, SystemExit):  # a third-party guider may fail without a pipeline
        return None
    return min(made), max(made)


def _supports(method: Method, group: str, is_clash: bool) -> str:
    if group == BUILT_IN:
        return "every model that takes a guider"
    if isinstance(method, GuiderMethod):
        path = method.code.get("class", method.name)
        name = method.name if group == INSTALLED and not is_clash else path
        return f"not declared; autolora-eval check {name}"
    return "not declared"


def _of_diffusers() -> Iterator[Listed]:
    sources = guider_sources()
    version = package_versions().get("diffusers", "(not installed)")
    for guider in DIFFUSERS_GUIDERS.values():
        source = sources.get(guider.name)
        listed = Listed(
            name=guider.path,
            kind="guider",
            group=DIFFUSERS,
            display_name=guider.display_name,
            equation=guider.formula,
            source=f"{guider.source}; diffusers {version}",
            notes=guider.notes,
            problem="" if sources else "diffusers is not installed",
        )
        if source is None:
            yield listed
            continue
        scale = {SCALE: W} if SCALE in guider.defaults else {}
        nfe = [guider.nfe_per_step(scale, step, STEPS) for step in range(STEPS)]
        yield replace(
            listed,
            parameters=tuple(_constructor_parameters(source)),
            nfe_per_step=(min(nfe), max(nfe)),
            supports=_diffusers_support(guider, scale),
        )


def _diffusers_support(guider: DiffusersGuider, parameters: Parameters) -> str:
    refused = {name: guider.refusal(parameters, pipeline) for pipeline, name in _MODELS.items()}
    works = [name for name, why in refused.items() if why is None]
    reasons: dict[str, list[str]] = {}
    for name, why in refused.items():
        if why is not None:
            reasons.setdefault(why.removeprefix(f"{guider.path}: "), []).append(name)
    defects = [f"not {' or '.join(names)}: {why}" for why, names in reasons.items()]
    return "; ".join([*([", ".join(works)] if works else []), *defects])


def _constructor_parameters(source: ast.ClassDef) -> Iterator[ListedParameter]:
    for argument, default in constructor_arguments(source):
        kind = "" if argument.annotation is None else ast.unparse(argument.annotation)
        text = None if default is None else ast.unparse(default)
        text = _OF_THE_MODEL if argument.arg == SCALE else text
        yield ListedParameter(argument.arg, kind, text)


def _of_packages(kind: MethodKind) -> Iterator[Listed]:
    registry = REGISTRIES[kind]
    for name, offers in registry.offers().items():
        clash = registry.clash(name)
        for offer in offers:
            try:
                listed = _listed(kind, offer.load(), INSTALLED, clash)
            except UsageError as error:
                listed = Listed(name, kind, INSTALLED, problem=str(error))
            yield replace(listed, source=listed.source or offer.origin.distribution)


# --------------------
# What the command `methods` prints.


_HEADS = {
    BUILT_IN: "Built in",
    DIFFUSERS: "Guiders of diffusers, named by the dotted path diffusers.guiders.NAME",
    INSTALLED: "From installed packages",
}


def as_json(methods: Iterable[Listed]) -> str:
    """Return methods as indented JSON: a list of objects with the fields of `Listed`."""
    return json.dumps([asdict(method) for method in methods], indent=2, ensure_ascii=False)


def show_list(methods: Iterable[Listed], console: Console) -> None:
    """Print each method in a few lines: name, summary, cost and parameters."""
    for group, members in groupby(methods, key=lambda method: method.group):
        console.print(Text(_HEADS.get(group, ""), "bold"))
        grid = _grid()
        for method in members:
            name = method.name.rpartition(".")[2] if group == DIFFUSERS else method.name
            grid.add_row(Text(name, "bold"), _summary(method))
        console.print(Padding(grid, (0, 0, 1, 2)))
    text = "For details, run: autolora-eval methods NAME (or a guider's dotted path)"
    console.print(Text(text), soft_wrap=True)


def _summary(method: Listed) -> Text:
    if method.problem:
        return Text(method.problem, "red")
    kind = "" if method.kind == "guider" else ", a sampler"
    first = f"{method.display_name}{kind}: {_cost(method)}"
    if method.group == DIFFUSERS:
        return Text(f"{first}; {method.supports.split(': ')[0]}")
    parameters = ", ".join(parameter.name for parameter in method.parameters)
    lines = [
        method.summary,
        f"parameters: {parameters}" if parameters else "",
        f"from {method.source}" if method.group == INSTALLED else "",
    ]
    return Text("\n").join([Text(first), *(Text(line, "dim") for line in lines if line)])


def _cost(method: Listed) -> str:
    if method.nfe_per_step is None:
        return "NFE counted by the run"
    least, most = method.nfe_per_step
    return f"{least} NFE per step" if least == most else f"{least} to {most} NFE per step"


def show_details(methods: Iterable[Listed], console: Console) -> None:
    """Print all that is known about methods."""
    for method in methods:
        console.print(Text.assemble((method.name, "bold"), f"  {method.display_name}"))
        grid = _grid()
        facts = {
            "problem": method.problem,
            "summary": method.summary,
            "formula": method.equation,
            "cost": "" if method.problem and not method.display_name else _cost(method),
            "works on": method.supports,
            "source": method.source,
            "notes": method.notes,
        }
        for name, text in facts.items():
            if text:
                grid.add_row(Text(name, "dim"), Text(text, "red" if name == "problem" else ""))
        for n, parameter in enumerate(method.parameters):
            grid.add_row(Text("" if n else "parameters", "dim"), _shown_parameter(parameter))
        console.print(Padding(grid, (0, 0, 1, 2)))


def _shown_parameter(parameter: ListedParameter) -> Text:
    kind = f": {parameter.type}" if parameter.type else ""
    default = "  required" if parameter.default is None else f" = {parameter.default}"
    return Text.assemble(parameter.name, (f"{kind}{default}", "dim"))


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    return grid
