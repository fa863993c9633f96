"""Guiders and samplers by name or dotted path, and how a third-party object becomes a method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from autolora_eval._devices import require
from autolora_eval._errors import UsageError
from autolora_eval._progress import quiet_libraries
from autolora_eval.guidance.diffusers_guiders import DiffusersGuider, diffusers_guider
from autolora_eval.guidance.method import GuiderMethod, Method, SamplerMethod
from autolora_eval.plugins.registry import Origin, Registry
from autolora_eval.plugins.signatures import CallParameters, parameters_model, signature_of
from autolora_eval.plugins.third_party import (
    cited_paper,
    doc_summary,
    qualified_name,
    source_fingerprint,
    unwrap_partial,
)

if TYPE_CHECKING:
    from diffusers.guiders import BaseGuidance

MethodKind = Literal["guider", "sampler"]
SAMPLER_ARGUMENTS = ("prompt", "seed", "model")


def resolve_method(kind: MethodKind, name: str, folders: Sequence[Path] = ()) -> Method:
    """Return the method with a name or dotted path.

    Modules that are not installed are looked up in the folders.

    Raises:
        UsageError: if there is no such method, or it cannot be used.
    """
    method: Method = REGISTRIES[kind].find(name, folders)
    return method


def _read_guider(found: object, origin: Origin) -> GuiderMethod:
    if isinstance(found, GuiderMethod):
        return _declared_method(found, origin)
    require("diffusers", "models")
    from diffusers.guiders import BaseGuidance

    if not isinstance(found, type) or not issubclass(found, BaseGuidance):
        hint = ""
        if isinstance(found, BaseGuidance):
            hint = f" Name its class, {type(found).__name__}, and give the parameters as keys."
        elif callable(found):
            hint = (
                " A function (prompt, seed, model) → image is named by 'sampler:', not 'guider:'."
            )
        raise UsageError(
            f"'{origin.name}' is {describe_type(found)}, not a subclass of "
            f"diffusers.guiders.BaseGuidance.{hint}"
        )
    known = diffusers_guider(qualified_name(found))
    described = _described(found, origin, known.source if known else "")
    return GuiderMethod(
        **described | ({} if known is None else _fields_of_diffusers_guider(known)),
        parameters=parameters_model(signature_of(found), partial(_try_constructor, found)),
        build=partial(_construct, found),
        guider=found,
        needs_lora=hasattr(found, "set_base_inputs"),
    )


def _fields_of_diffusers_guider(known: DiffusersGuider) -> dict[str, Any]:
    def nfe_per_step(parameters: CallParameters, step: int, num_steps: int) -> int:
        return known.nfe_per_step(parameters.configured(), step, num_steps)

    def refuse(parameters: CallParameters, pipeline: str | None) -> str | None:
        return known.refusal(parameters.configured(), pipeline)

    return {
        "display_name": known.display_name,
        "equation": known.formula,
        "nfe_per_step": nfe_per_step,
        "refuse": refuse,
    }


def _declared_method(method: GuiderMethod, origin: Origin) -> GuiderMethod:
    """Return a third-party `GuiderMethod` under the name that the benchmark uses."""
    is_ours = all(
        qualified_name(part).startswith("autolora_eval.") for part in unwrap_partial(method.build)
    )
    code = {} if is_ours else _code(source_fingerprint(method.build, method.parameters), origin)
    return replace(method, name=origin.name, code=code)


def _described(found: object, origin: Origin, paper: str = "") -> dict[str, Any]:
    """Return the fields of a method that a third-party class or function shows."""
    fingerprint = source_fingerprint(found)
    path = qualified_name(found)
    package = fingerprint.get("distribution", "") or f"{path.split('.')[0]}.py"
    sources = (paper or cited_paper(found), origin.distribution or package)
    path = origin.path if origin.distribution else path
    return {
        "name": origin.name,
        "display_name": qualified_name(found).rpartition(".")[2],
        "summary": doc_summary(found),
        "source": "; ".join(text for text in sources if text),
        "code": _code(fingerprint, replace(origin, path=path)),
    }


def _code(fingerprint: dict[str, str], origin: Origin) -> dict[str, str]:
    offered = {"distribution": origin.distribution} if origin.distribution else {}
    return {**offered, **fingerprint, "class": origin.path}


def _try_constructor(guider: Callable[..., object], arguments: dict[str, Any]) -> None:
    with quiet_libraries():
        made = guider(**arguments)
    if getattr(made, "_internal_dict", None) is None:  # pipelines fail on it
        raise UsageError(
            f"{type(made).__name__} has no config. Decorate its __init__ with @register_to_config, "
            "from diffusers.configuration_utils."
        )


def _construct(guider: Callable[..., BaseGuidance], parameters: CallParameters) -> BaseGuidance:
    return guider(**parameters.arguments())


def describe_type(found: object) -> str:
    """Return in words what an object is, for messages."""
    if isinstance(found, type):
        return "a class"
    if isinstance(found, ModuleType):
        return "a module"
    return "a function" if inspect.isroutine(found) else f"a value of type {type(found).__name__}"


def _read_sampler(found: object, origin: Origin) -> SamplerMethod:
    """Return a sampler as a method.

    A function's further parameters are the method's, and so are the constructor's parameters of a
    class whose instances are called.
    """
    if not callable(found):
        raise UsageError(f"'{origin.name}' is {describe_type(found)}, which cannot be called.")
    is_class = isinstance(found, type)
    if is_class and "__call__" not in dir(found):
        raise UsageError(f"the class '{origin.name}' has no __call__(self, prompt, seed, model).")
    call = found.__call__ if is_class else found
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(call).parameters.values()
    except ValueError as error:
        raise UsageError(
            f"the sampler '{origin.name}' is built in, and Python does not know its arguments. "
            "Call it in a function (prompt, seed, model) → image."
        ) from error
    taken = tuple(one.name for one in parameters if one.kind in by_position)
    taken = taken[int(is_class) :][: len(SAMPLER_ARGUMENTS)]
    if taken != SAMPLER_ARGUMENTS:
        raise UsageError(
            f"the sampler '{origin.name}' takes ({', '.join(taken) or 'nothing'}) by position; its "
            f"first three arguments must be ({', '.join(SAMPLER_ARGUMENTS)})."
        )
    signature = signature_of(found, skip=0 if is_class else len(SAMPLER_ARGUMENTS))
    return SamplerMethod(
        **_described(found, origin),
        parameters=parameters_model(signature),
        prepare=partial(_prepare, found, is_class),
    )


def _prepare(
    sampler: Callable[..., Any], is_class: bool, parameters: CallParameters
) -> Callable[..., Any]:
    arguments = parameters.arguments()
    return sampler(**arguments) if is_class else partial(sampler, **arguments)


def _hint_for_guider(name: str) -> str:
    known = diffusers_guider(name)
    if known is not None:
        return f" Did you mean '{known.path}'?"
    return f" It is a sampler: write 'sampler: {name}'." if name in SAMPLERS.offers() else ""


def _hint_for_sampler(name: str) -> str:
    is_guider = name in GUIDERS.offers() or name in GUIDERS.built_in()
    return f" It is a guider: write 'guider: {name}'." if is_guider else ""


GUIDERS = Registry(
    noun="guider",
    package="autolora_eval.guidance.methods",
    attribute="METHOD",
    group="autolora_eval.methods",
    example="my_package.MyGuider",
    read=_read_guider,
    hint=_hint_for_guider,
)
SAMPLERS = Registry(
    noun="sampler",
    group="autolora_eval.samplers",
    example="my_package.my_sampler",
    read=_read_sampler,
    hint=_hint_for_sampler,
)
REGISTRIES: dict[MethodKind, Registry[Any]] = {"guider": GUIDERS, "sampler": SAMPLERS}
