"""Any `BaseGuidance` subclass as a method: its parameters are its constructor's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from autolora_eval._devices import require
from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval.guidance.diffusers_guiders import UpstreamGuider, upstream_guider
from autolora_eval.guidance.method import GuiderMethod, Method, methods
from autolora_eval.plugins.signatures import (
    CallParameters,
    MethodParameters,
    parameters_model,
    signature_of,
)
from autolora_eval.plugins.third_party import (
    code_of,
    dotted,
    failed_import,
    load_dotted,
    paper_of,
    parts_of,
    summary_of,
)

if TYPE_CHECKING:
    from diffusers.guiders import BaseGuidance


@dataclass(frozen=True, kw_only=True)
class GuiderClassMethod(GuiderMethod):
    """A guider class of diffusers or of somebody else.

    Attributes:
        guider: the class.
        upstream: what is known of it, if it is one of diffusers'.
    """

    guider: type[BaseGuidance]
    upstream: UpstreamGuider | None = None

    @property
    def nfe_is_declared(self) -> bool:
        """Whether there is a declaration of its passes, as there is of diffusers' own guiders."""
        return self.upstream is not None

    def nfe(self, parameters: MethodParameters, num_steps: int) -> int | None:
        """Return the passes that the guider announces for an image; None if it announces none.

        A guider states before every step how many predictions it is about to ask for
        (`num_conditions`), and the pipelines make one pass for each. It is an expectation: one
        that decides by what it sees may do otherwise, and what is recorded is what it did.
        """
        try:
            return sum(self.announced(parameters, num_steps))
        except (Exception, SystemExit):  # whatever a stranger's guider raises away from a pipeline
            return None

    def announced(self, parameters: MethodParameters, num_steps: int) -> list[int]:
        """Return the passes of each step, as declared or announced.

        Raises:
            Exception: whatever the guider raises, and TypeError if it announces no number.
        """
        assert isinstance(parameters, CallParameters)
        if self.upstream is not None:
            stated = parameters.stated()
            return [self.upstream.predictions(stated, n, num_steps) for n in range(num_steps)]
        from autolora_eval._devices import quiet_libraries

        with quiet_libraries():
            return announced_passes(self.build(parameters), num_steps)

    def refusal(self, parameters: MethodParameters, pipeline: str | None) -> str | None:
        """Return the defect of diffusers that these parameters would run into on a pipeline."""
        assert isinstance(parameters, CallParameters)
        if self.upstream is None:
            return None
        return self.upstream.refusal(parameters.stated(), pipeline)


def announced_passes(guider: BaseGuidance, num_steps: int) -> list[int]:
    """Return the number of predictions that a guider announces, step by step.

    Args:
        guider: a fresh guider.
        num_steps: number of denoising steps.

    Raises:
        TypeError: it announces something else than a number.
    """
    import torch

    found = []
    for step in range(num_steps):
        guider.set_state(step=step, num_inference_steps=num_steps, timestep=torch.tensor(0))
        announced = guider.num_conditions
        if not isinstance(announced, int) or isinstance(announced, bool):
            raise TypeError(f"num_conditions is {announced!r}")
        found.append(announced)
    return found


def guider_method(name: str, guider: object, source: str = "") -> GuiderMethod:
    """Return a guider class as a method; a `GuiderMethod` is returned as it is.

    Args:
        name: the word or dotted path for it in a benchmark file.
        guider: what was found there.
        source: where from, such as "my-package 1.2"; the distribution's name where not given.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(guider, GuiderMethod):
        return _declared(name, guider)
    require("diffusers", "models")
    from diffusers.guiders import BaseGuidance

    if not isinstance(guider, type) or not issubclass(guider, BaseGuidance):
        raise UsageError(
            f"'{name}' is {what_is(guider)}, and no subclass of diffusers.guiders.BaseGuidance."
            f"{_hint(guider)}"
        )
    code = code_of(guider)
    upstream = upstream_guider(dotted(guider)) if _is_of_diffusers(guider) else None
    origin = source or code.get("distribution", "") or f"{guider.__module__.split('.')[0]}.py"
    paper = upstream.source if upstream else paper_of(guider)
    return GuiderClassMethod(
        name=name,
        display_name=upstream.display_name if upstream else guider.__name__,
        summary=summary_of(guider),
        equation=upstream.formula if upstream else "",
        source="; ".join(text for text in (paper, origin) if text),
        parameters=parameters_model(signature_of(guider), partial(_attempt, guider)),
        code={"class": dotted(guider), **code},
        build=partial(_build, guider),
        guider=guider,
        upstream=upstream,
    )


def _declared(name: str, method: GuiderMethod) -> GuiderMethod:
    """Return somebody's own declaration under the name that it is known by here."""
    code = code_of(method.build, method.parameters)
    is_ours = all(dotted(part).startswith("autolora_eval.") for part in parts_of(method.build))
    return replace(method, name=name, code={} if is_ours else {"class": name, **code})


def _is_of_diffusers(guider: type) -> bool:
    return guider.__module__.split(".")[0] == "diffusers"


def _attempt(guider: Callable[..., object], arguments: dict[str, Any]) -> None:
    from autolora_eval._devices import quiet_libraries

    with quiet_libraries():
        guider(**arguments)


def _build(guider: Callable[..., BaseGuidance], parameters: CallParameters) -> BaseGuidance:
    return guider(**parameters.arguments())


def what_is(found: object) -> str:
    """Return in words what stands where something else was expected."""
    if isinstance(found, type):
        return "a class"
    if isinstance(found, ModuleType):
        return "a module"
    return "a function" if callable(found) else f"a value of {type(found).__name__}"


def _hint(found: object) -> str:
    if not callable(found):
        return ""
    return (
        " What makes an image by itself, (prompt, seed, model) → image, is named by 'sampler:' "
        "instead of 'guider:'."
    )


# --------------------
# Methods that are no guiders: a callable (prompt, seed, model) → image of somebody else.


GIVEN = ("prompt", "seed", "model")


@dataclass(frozen=True, kw_only=True)
class SamplerMethod(Method):
    """A sampler: how a callable of its is had for the images of a cell.

    Attributes:
        prepare: parameters → (prompt, seed, model) → image. A class is made once for a cell.
    """

    prepare: Callable[[Any], Callable[..., Any]]


def sampler_method(name: str, sampler: object, source: str = "") -> SamplerMethod:
    """Return a sampler as a method.

    Args:
        name: the word or dotted path for it in a benchmark file.
        sampler: a function, whose further parameters are the method's; an object that can be
            called; or a class of such, whose constructor's parameters are the method's.
        source: where from, such as "my-package 1.2"; the distribution's name where not given.

    Raises:
        UsageError: it is none of these.
    """
    if not callable(sampler):
        raise UsageError(f"'{name}' is {what_is(sampler)}, and nothing that can be called.")
    is_class = isinstance(sampler, type)
    if is_class and "__call__" not in dir(sampler):
        raise UsageError(f"the class '{name}' has no __call__(self, prompt, seed, model).")
    _refuse_other_arguments(name, sampler.__call__ if is_class else sampler, skip=int(is_class))
    signature = signature_of(sampler, given=0 if is_class else len(GIVEN))
    code = code_of(sampler)
    origin = source or code.get("distribution", "") or f"{dotted(sampler).split('.')[0]}.py"
    return SamplerMethod(
        name=name,
        display_name=dotted(sampler).rpartition(".")[2],
        summary=summary_of(sampler),
        source="; ".join(text for text in (paper_of(sampler), origin) if text),
        parameters=parameters_model(signature),
        code={"class": dotted(sampler), **code},
        prepare=partial(_prepare, sampler, is_class),
    )


def _prepare(
    sampler: Callable[..., Any], is_class: bool, parameters: CallParameters
) -> Callable[..., Any]:
    arguments = parameters.arguments()
    if is_class:
        made: Callable[..., Any] = sampler(**arguments)
        return made
    return partial(sampler, **arguments)


def _refuse_other_arguments(name: str, call: Callable[..., Any], skip: int) -> None:
    """Refuse what cannot be called as (prompt, seed, model)."""
    taken = list(inspect.signature(call).parameters)[skip:][: len(GIVEN)]
    if tuple(taken) != GIVEN:
        raise UsageError(
            f"the sampler '{name}' takes ({', '.join(taken) or 'nothing'}); its first three "
            f"arguments must be ({', '.join(GIVEN)})."
        )


# --------------------
# Methods by name or path: built in, of an installed package, or of any module.
#
# An installed package offers methods by entry points. Their names are read from its metadata; it
# is imported only when one of them is used or listed, so that a broken one harms nobody else.


Kind = Literal["guider", "sampler"]
GROUPS: dict[Kind, str] = {"guider": "autolora_eval.methods", "sampler": "autolora_eval.samplers"}


@dataclass(frozen=True)
class Plugin:
    """A method that an installed package offers, not yet imported.

    Attributes:
        kind: what it is offered as.
        name: its name.
        path: the dotted path that it stands for.
        distribution: the package, as "name version".
        entry: the entry point.
    """

    kind: Kind
    name: str
    path: str
    distribution: str
    entry: metadata.EntryPoint

    @property
    def title(self) -> str:
        """It and where it is from, for messages."""
        return f"'{self.name}' of {self.distribution} ({self.path})"

    def load(self) -> Method:
        """Import it.

        Raises:
            UsageError: it cannot be imported, or is no method; the message says whose it is.
        """
        try:
            found = self.entry.load()
        except (Exception, SystemExit) as error:
            cause = failed_import(self.path, error)
            raise UsageError(f"the {self.kind} {self.title} is broken: {cause}") from error
        try:
            rule = as_rule(self.kind, self.name, found, self.distribution)
        except UsageError as error:
            raise UsageError(f"the {self.kind} {self.title} is broken: {error}") from error
        code = {"distribution": self.distribution, **rule.code, "class": self.path}
        return replace(rule, name=self.name, code=code)


def plugins(kind: Kind) -> dict[str, list[Plugin]]:
    """Return what installed packages offer, by name: more than one where they clash."""
    found: dict[str, list[Plugin]] = {}
    for entry in sorted(metadata.entry_points(group=GROUPS[kind]), key=_order):
        path = entry.value.replace(":", ".").split("[")[0].strip()
        plugin = Plugin(kind, entry.name, path, _distribution(entry), entry)
        found.setdefault(entry.name, []).append(plugin)
    return found


def _order(entry: metadata.EntryPoint) -> tuple[str, str]:
    return entry.name, _distribution(entry)


def _distribution(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"


def find_rule(kind: Kind, stated: str, folders: Sequence[Path] = ()) -> Method:
    """Return the method that a benchmark file names.

    Args:
        kind: the key that names it.
        stated: a name, or a dotted path.
        folders: where a module that is not installed is looked for.

    Raises:
        UsageError: there is none, several packages offer one of that name, or it is broken.
    """
    built_in = methods() if kind == "guider" else {}
    if stated in built_in:
        return built_in[stated]
    offered = plugins(kind)
    if stated in offered:
        clash = clash_of(kind, offered[stated])
        if clash is not None:
            raise UsageError(clash)
        return offered[stated][0].load()
    if "." not in stated.replace(":", "."):
        raise UsageError(f"unknown {kind} '{stated}'.{_suggestion(kind, stated, offered)}")
    return as_rule(kind, stated, load_dotted(stated, folders))


def as_rule(kind: Kind, name: str, found: object, source: str = "") -> Method:
    """Return what was found under a name as a method of that kind.

    Raises:
        UsageError: it is something else.
    """
    if kind == "guider":
        return guider_method(name, found, source)
    return sampler_method(name, found, source)


def clash_of(kind: Kind, named: Sequence[Plugin]) -> str | None:
    """Return why a name cannot be used because others have it too; None if it is one's own."""
    name = named[0].name
    if kind == "guider" and name in methods():
        return (
            f"'{name}' is built in, and {_listed(named)} cannot take its place: it is named by "
            "its dotted path alone."
        )
    if len(named) > 1:
        return (
            f"several packages offer a {kind} called '{name}': {_listed(named)}. Name the one "
            "that is meant by its dotted path, or uninstall the others."
        )
    return None


def _listed(named: Sequence[Plugin]) -> str:
    return ", ".join(f"{plugin.path} of {plugin.distribution}" for plugin in named)


def _suggestion(kind: Kind, stated: str, offered: dict[str, list[Plugin]]) -> str:
    known = [*(methods() if kind == "guider" else ()), *offered]
    upstream = upstream_guider(stated) if kind == "guider" else None
    if upstream is not None:
        return f" Did you mean '{upstream.path}'?"
    other: Kind = "sampler" if kind == "guider" else "guider"
    if stated in plugins(other) or (other == "guider" and stated in methods()):
        return f" It is a {other}: write '{other}: {stated}'."
    path = "or the dotted path of one, such as 'my_package.MyGuider'"
    if kind == "sampler":
        path = "or the dotted path of one, such as 'my_package.my_sampler'"
    near = did_you_mean(stated, known)
    return near if near.startswith(" Did") else f"{near.rstrip('.')}{',' if near else ''} {path}."
