"""What a guider claims, held against its constructor: a misspelt claim would never be tested."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import torch
from diffusers.guiders import BaseGuidance

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval.guidance.diffusers_guiders import diffusers_guider
from autolora_eval.guidance.equations import classifier_free_guidance
from autolora_eval.guidance.spec import ActiveInterval, BaselinePrediction, GuiderSpec, ModelName
from autolora_eval.guider_checks.denoising_loop import (
    Predict,
    Step,
    Watch,
    drive,
    is_blind,
    silence,
)
from autolora_eval.guider_checks.tiny_models import ModelInputs, TinyModel, tiny_model
from autolora_eval.plugins.signatures import Signature, signature_of


def claims_of(cls: type[BaseGuidance], given: GuiderSpec | None, call: Signature) -> GuiderSpec:
    """Return what is claimed of a guider: as given, its attribute `laws`, or what is known of it.

    Args:
        cls: the guider.
        given: what the caller claims of it.
        call: what its constructor takes.

    Raises:
        UsageError: it names a parameter that there is not, or is no declaration.
    """
    stated: object = getattr(cls, "guider_spec", None) if given is None else given
    if stated is None:
        known = diffusers_guider(f"{cls.__module__}.{cls.__name__}")
        return (
            GuiderSpec() if known is None else replace(known.spec, nfe_per_step=known.nfe_per_step)
        )
    if not isinstance(stated, GuiderSpec):
        raise UsageError(
            f"the spec of {cls.__name__} is a {type(stated).__name__}. Write it as "
            "GuiderSpec(identity_params={…}), from autolora_eval.guider_checks."
        )
    if stated.baseline_prediction not in get_args(BaselinePrediction):
        near = did_you_mean(stated.baseline_prediction, get_args(BaselinePrediction))
        raise UsageError(
            f"GuiderSpec.baseline_prediction of {cls.__name__}: "
            f"'{stated.baseline_prediction}'.{near}"
        )
    for where, name in _names(stated):
        if name not in call.parameters and not call.is_open:
            near = did_you_mean(name, call.parameters)
            raise UsageError(
                f"GuiderSpec.{where} of {cls.__name__} names '{name}', which is no parameter "
                f"of its constructor.{near}"
            )
    return stated


def _names(stated: GuiderSpec) -> Iterator[tuple[str, str]]:
    lists: Mapping[str, tuple[str, ...]] = {
        "identity_params": tuple(stated.identity_params or ()),
        "linear_params": stated.linear_params,
        "required_effect": stated.required_effect or (),
    }
    for where, names in lists.items():
        yield from ((where, name) for name in names)
    for window in stated.active_intervals or ():
        for name in (window.start, window.stop, *(window.disable_params or ())):
            yield "active_intervals", name


# --------------------
# The guider under test: its class, its parameters, what it claims, and how it is tried.


EQUAL = 1e-4  # float32 rounding, which a guidance scale of ten multiplies
DIFFERENT = 1e-3
# Of no number of steps a whole multiple, nor of one less; ⌊x⌋, ⌈x⌉ and the nearest all differ.
EDGES = (0.27, 0.68)
_ONLY_DEFAULT_NEUTRAL = "guidance_scale"


class CheckFailedError(Exception):
    """The guider breaks a law: what it did, and what to change."""


class CheckSkippedError(Exception):
    """A law cannot tell anything of this guider: why."""


@dataclass(frozen=True)
class Sampled:
    """One call of a pipeline.

    Attributes:
        guider: as it stood after it.
        latents: float32 [B, 4, H, W].
        calls: denoiser passes really made.
        announced: `num_conditions` at each of the pipeline's steps.
    """

    guider: BaseGuidance
    latents: torch.Tensor
    calls: int
    announced: list[int]


@dataclass(frozen=True)
class GuiderUnderTest:
    """A guider class with parameters, on a tiny model.

    Attributes:
        cls: the class.
        parameters: what its constructor is called with.
        stated: what it claims.
        model: what it is tried on.
    """

    cls: type[BaseGuidance]
    parameters: Mapping[str, Any]
    stated: GuiderSpec
    model: TinyModel

    def build(self, **changes: Any) -> BaseGuidance:  # noqa: ANN401
        """Return a fresh guider, some parameters changed."""
        return self.cls(**copy.deepcopy({**self.parameters, **changes}))

    @cached_property
    def call(self) -> Signature:
        """What its constructor takes, and what those that it hands `**kwargs` on to take."""
        return signature_of(self.cls)

    @property
    def signature(self) -> Mapping[str, inspect.Parameter]:
        """The constructor's parameters that have a name."""
        return self.call.parameters

    @cached_property
    def full(self) -> Mapping[str, Any]:
        """All parameters: those given, and the defaults of the others."""
        defaults = {n: p.default for n, p in self.signature.items() if p.default is not p.empty}
        return {**defaults, **self.parameters}

    @cached_property
    def inputs(self) -> ModelInputs:
        """Two images of ten steps."""
        return ModelInputs.random(1)

    @cached_property
    def other_inputs(self) -> ModelInputs:
        """Two other images."""
        return ModelInputs.random(2)

    def drive(
        self,
        guider: BaseGuidance,
        inputs: ModelInputs | None = None,
        *,
        predict: Predict | None = None,
        watch: Watch | None = None,
        stop_after: int | None = None,
    ) -> list[Step]:
        """Take a guider through one image; the denoiser is as it was before, whatever happens."""
        with self._put_back(guider):
            return drive(
                guider,
                self.model,
                self.inputs if inputs is None else inputs,
                predict=predict,
                watch=watch,
                stop_after=stop_after,
            )

    @contextmanager
    def _put_back(self, guider: BaseGuidance) -> Iterator[None]:
        """Put the denoiser back as it was made, if the guider has come near it."""
        try:
            yield
        finally:
            if not is_blind(guider):
                self.model.pristine.restore()

    def builds(self, **changes: Any) -> bool:  # noqa: ANN401
        """Tell whether its constructor takes these changes."""
        try:
            self.build(**changes)
        except Exception:  # whatever a constructor raises of values that it does not take
            return False
        return True

    def other(self, name: str) -> Any:  # noqa: ANN401
        """Return another value of a number or flag that the constructor takes; None if none."""
        value: Any = self.full.get(name)
        if isinstance(value, bool):
            tried: Sequence[Any] = [not value]
        elif isinstance(value, int):
            tried = [value + 1, value - 1]
        elif not math.isfinite(value):
            return None
        else:
            tried = [value + 1, value + 0.25, value * 0.5, value - 0.25]
        default = getattr(self.signature.get(name), "default", None)
        others = [one for one in tried if one not in (value, default)]
        return next((one for one in others if self.builds(**{name: one})), None)

    def steps(self, **changes: Any) -> list[Step]:  # noqa: ANN401
        """Return a fresh guider's steps, some parameters changed."""
        key = repr(sorted(changes.items()))
        if key not in self._known:
            self._known[key] = self.drive(self.build(**changes))
        return self._known[key]

    @cached_property
    def _known(self) -> dict[str, list[Step]]:
        return {}

    def predictions(self, **changes: Any) -> list[torch.Tensor]:  # noqa: ANN401
        """Return a fresh guider's predictions by step, some parameters changed."""
        return [step.prediction for step in self.steps(**changes)]

    @cached_property
    def edges(self) -> Mapping[str, Any]:
        """Parameters at which each of its windows has steps before it and after it."""
        edges: dict[str, Any] = {}
        for window in self.windows:
            edges |= {window.start: EDGES[0], window.stop: EDGES[1]}
        return edges if self.builds(**edges) else {}

    @cached_property
    def settings(self) -> Sequence[tuple[Mapping[str, Any], str]]:
        """Changes of parameters at which code of its own is reached, each with words for it."""
        windowed = (self.edges, f" with {told(self.edges)}, where it does not always act")
        return [({}, ""), windowed] if self.edges else [({}, "")]

    @cached_property
    def sampled(self) -> Sampled:
        """What the pipeline's own loop makes of a fresh guider."""
        return self.sample(self.build())

    def sample(self, guider: BaseGuidance) -> Sampled:
        """Run the pipeline's own loop; the denoiser is as it was before, whatever happens."""
        before, announced, own = self.model.calls[0], list[int](), guider.set_state

        def noting(*args: Any, **options: Any) -> None:  # noqa: ANN401
            own(*args, **options)
            announced.append(guider.num_conditions)

        guider.set_state = noting
        try:
            with self._put_back(guider):
                latents = self.model.sample(guider, self.inputs)
        finally:
            del guider.set_state
        return Sampled(guider, latents, self.model.calls[0] - before, announced)

    @cached_property
    def guided(self) -> list[Step]:
        """The steps of a fresh guider at the given parameters."""
        return self.steps()

    @cached_property
    def guided_elsewhere(self) -> list[Step]:
        """The steps of a fresh guider on the other two images."""
        return self.drive(self.build(), self.other_inputs)

    @cached_property
    def _branches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The conditional and the unconditional prediction of every step, with no guider at all.

        Raises:
            AssertionError: they are alike, so that no law could tell anything.
        """
        branches = []
        for number in range(len(self.inputs.latents)):
            fields = self.model.fields(self.inputs, number)
            cond, uncond = (_Batch({k: v[i] for k, v in fields.items()}) for i in (0, 1))
            with torch.no_grad():
                pair = tuple(
                    self.model.call(self.model.denoiser, one, self.inputs, number)
                    for one in (cond, uncond)
                )
            assert distance(pair[0], pair[1]) > 10 * DIFFERENT
            branches.append((pair[0], pair[1]))
        return branches

    @cached_property
    def unguided(self) -> list[torch.Tensor]:
        """The prediction of every step where guidance does not act."""
        if self.stated.baseline_prediction == "conditional":
            return [cond for cond, _ in self._branches]
        w = float(self.full["guidance_scale"])
        return [classifier_free_guidance(uncond, cond, w) for cond, uncond in self._branches]

    @cached_property
    def rests(self) -> str:
        """Why it cannot act at the given parameters; empty if it can."""
        if self.full.get("enabled") is False:
            return "it is given enabled=False: leave that out"
        if self.neutral is None or any(self.full.get(k) != v for k, v in self.neutral.items()):
            return ""
        return f"the given parameters are the neutral ones, {told(self.neutral)}: give others"

    def require_acting(self) -> None:
        """Raise NotApplicableError if it cannot act at the given parameters."""
        if self.rests:
            raise CheckSkippedError(self.rests)

    @cached_property
    def neutral(self) -> Mapping[str, Any] | None:
        """Parameters at which guidance does nothing; None if neither stated nor obvious."""
        if self.stated.identity_params is not None:
            return self.stated.identity_params
        if self.scales != [_ONLY_DEFAULT_NEUTRAL]:
            return None
        return {"guidance_scale": 0.0 if self.full.get("use_original_formulation") else 1.0}

    @cached_property
    def scales(self) -> list[str]:
        """The constructor's parameters that are named as scales and are numbers."""
        return [n for n in self.signature if n.endswith("_scale") and is_number(self.full.get(n))]

    @cached_property
    def acting(self) -> list[str]:
        """The parameters that must each change the prediction: as stated, or the scales."""
        stated = self.scales if self.stated.required_effect is None else self.stated.required_effect
        return [name for name in stated if is_number(self.full.get(name))]

    @cached_property
    def windows(self) -> Sequence[ActiveInterval]:
        """Where it acts: as stated, or `start` and `stop` if the constructor has them."""
        if self.stated.active_intervals is not None:
            return self.stated.active_intervals
        default = ActiveInterval()
        return [default] if {default.start, default.stop} <= set(self.signature) else []


class _Batch:
    """The fields of one prepared batch."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.__dict__.update(fields)


def told(parameters: Mapping[str, Any]) -> str:
    """Return parameters in words, as `start=0.27, stop=0.68`."""
    return ", ".join(f"{name}={value}" for name, value in parameters.items())


def is_number(value: object) -> bool:
    """Tell whether a parameter's value is a number that can be raised a little."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return max |a − b| relative to max |b|; infinite where they cannot be compared."""
    if a.shape != b.shape:
        return math.inf
    a, b = a.detach().double(), b.detach().double()
    gap = float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
    return gap if math.isfinite(gap) else math.inf


def first_difference(
    a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], tolerance: float = EQUAL
) -> int | None:
    """Return the first step at which two runs' predictions differ; None if none."""
    pairs = enumerate(zip(a, b, strict=True))
    return next((n for n, (x, y) in pairs if distance(x, y) > tolerance), None)


# --------------------
# A guider class or instance, with its parameters and what it claims, made ready for the laws.


_MODELS: tuple[ModelName, ...] = get_args(ModelName)


def subject_of(
    guider: type[BaseGuidance] | BaseGuidance,
    *,
    model: ModelName,
    spec: GuiderSpec | None,
    parameters: Mapping[str, Any],
) -> GuiderUnderTest:
    """Return the guider under test, for trying laws one by one.

    Args:
        guider: a class, or an instance, of which fresh ones are made from its config.
        model: the family of the tiny model that it is tried on.
        spec: what the guider claims; None: its attribute `guider_spec`, or what is known of it.
        parameters: of the constructor.

    Raises:
        UsageError: it is no guider, or cannot be made from these parameters.
    """
    if model not in _MODELS:
        raise UsageError(f"no tiny model '{model}'.{did_you_mean(model, _MODELS)}")
    cls = guider if isinstance(guider, type) else type(guider)
    if not issubclass(cls, BaseGuidance):
        raise UsageError(
            f"{cls.__module__}.{cls.__qualname__} is no guider: it does not inherit from "
            "diffusers.guiders.BaseGuidance."
        )
    if not isinstance(guider, type):
        parameters = {**_config(guider), **parameters}
    with silence():
        claims = claims_of(cls, spec, signature_of(cls))
        subject = GuiderUnderTest(cls, dict(parameters), claims, tiny_model(model))
        _require_parameters(subject)
    return subject


def _config(guider: BaseGuidance) -> dict[str, Any]:
    if getattr(guider, "_internal_dict", None) is None:
        raise UsageError(
            f"this {type(guider).__name__} does not say what it was made from. Decorate its "
            "__init__ with @register_to_config; or give the class, and its parameters by name."
        )
    return {name: value for name, value in guider.config.items() if not name.startswith("_")}


def _require_parameters(subject: GuiderUnderTest) -> None:
    name, call = subject.cls.__name__, subject.call
    unknown = [one for one in subject.parameters if one not in call.parameters]
    if unknown and not call.is_open:
        near = did_you_mean(unknown[0], call.parameters)
        raise UsageError(f"{name} has no parameter '{unknown[0]}'.{near}")
    if inspect.isabstract(subject.cls) or subject.cls is BaseGuidance:
        raise UsageError(f"{name} is abstract: give a guider that inherits from it.")
    missing = [one for one in call.required if one not in subject.parameters]
    if missing:
        raise UsageError(
            f"{name} needs '{missing[0]}'. Give it: check_guider({name}, {missing[0]}=…), or on "
            f"the command line --parameter {missing[0]}=…"
        )
    try:
        subject.build()
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{name} cannot be made from these parameters: {type(error).__name__}: {error}"
        ) from error
