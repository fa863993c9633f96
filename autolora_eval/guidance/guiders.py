"""Any `BaseGuidance` subclass as a method: its parameters are its constructor's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autolora_eval.devices import require
from autolora_eval.errors import UsageError
from autolora_eval.guidance.code import code_of, dotted, paper_of, parts_of, summary_of
from autolora_eval.guidance.registry import Method, MethodParameters
from autolora_eval.guidance.signatures import CallParameters, parameters_model, signature_of
from autolora_eval.guidance.upstream import UpstreamGuider, upstream_guider

if TYPE_CHECKING:
    from diffusers.guiders import BaseGuidance


@dataclass(frozen=True, kw_only=True)
class GuiderMethod(Method):
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
        from autolora_eval.libraries import quiet_libraries

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


def guider_method(name: str, guider: object, source: str = "") -> Method:
    """Return a guider class as a method; a `Method` is returned as it is.

    Args:
        name: the word or dotted path for it in a benchmark file.
        guider: what was found there.
        source: where from, such as "my-package 1.2"; the distribution's name where not given.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(guider, Method):
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
    return GuiderMethod(
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


def _declared(name: str, method: Method) -> Method:
    """Return somebody's own declaration under the name that it is known by here."""
    code = code_of(method.build, method.parameters)
    is_ours = all(dotted(part).startswith("autolora_eval.") for part in parts_of(method.build))
    return replace(method, name=name, code={} if is_ours else {"class": name, **code})


def _is_of_diffusers(guider: type) -> bool:
    return guider.__module__.split(".")[0] == "diffusers"


def _attempt(guider: Callable[..., object], arguments: dict[str, Any]) -> None:
    from autolora_eval.libraries import quiet_libraries

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
