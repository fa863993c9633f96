"""The guider under test: its class, its parameters, its spec, and its runs, each made once."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from types import SimpleNamespace
from typing import Any, get_args

import torch
from diffusers.guiders import BaseGuidance

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval.guidance.diffusers_guiders import diffusers_guider
from autolora_eval.guidance.equations import classifier_free_guidance
from autolora_eval.guidance.method import ActiveInterval, BaselinePrediction, GuiderSpec, ModelName
from autolora_eval.guider_checks.denoising_loop import (
    DIFFERENT,
    Step,
    distance,
    format_params,
    ignores_denoiser,
    is_number,
    iter_steps,
    quiet_diffusers,
)
from autolora_eval.guider_checks.tiny_models import ModelInputs, TinyModel, tiny_model
from autolora_eval.plugins.signatures import Signature, signature_of

# Multiples of neither 1/N nor 1/(N − 1) for N = 10 steps, and ⌊x⌋, ⌈x⌉ and the nearest integer all
# differ: every wrong way to compute the first and the last step shows.
INTERVAL = (0.27, 0.68)
_PIPELINE_STEPS = 4
_CFG_SCALE = "guidance_scale"


@dataclass(frozen=True)
class Sampled:
    """One call of a pipeline.

    Attributes:
        guider: The guider after the call.
        latents: float32 [B, 4, H, W].
        nfe: Function evaluations.
        num_conditions: `num_conditions` at each step.
    """

    guider: BaseGuidance
    latents: torch.Tensor
    nfe: int
    num_conditions: list[int]


@dataclass(frozen=True)
class GuiderUnderTest:
    """A guider class with arguments of its constructor, on a tiny model."""

    cls: type[BaseGuidance]
    parameters: Mapping[str, Any]
    spec: GuiderSpec
    model: TinyModel
    _known: dict[str, list[Step]] = field(default_factory=dict)

    def build(self, **changes: Any) -> BaseGuidance:  # noqa: ANN401
        """Return a fresh guider, some parameters changed."""
        return self.cls(**copy.deepcopy({**self.parameters, **changes}))

    def builds(self, **changes: Any) -> bool:  # noqa: ANN401
        """Return `True` if the constructor accepts these changes."""
        try:
            self.build(**changes)
        except Exception:  # A constructor may raise anything.
            return False
        return True

    @cached_property
    def signature(self) -> Mapping[str, inspect.Parameter]:
        """The constructor's parameters, including those of parents that `**kwargs` go to."""
        return signature_of(self.cls).parameters

    @cached_property
    def all_params(self) -> Mapping[str, Any]:
        """The given parameters and the defaults of the others."""
        defaults = {n: p.default for n, p in self.signature.items() if p.default is not p.empty}
        return {**defaults, **self.parameters}

    def alternative_value(self, name: str) -> Any:  # noqa: ANN401
        """Return another accepted value of a number or flag. `None` if there is none."""
        value: Any = self.all_params.get(name)
        if isinstance(value, bool):
            candidates: Sequence[Any] = [not value]
        elif isinstance(value, int):
            candidates = [value + 1, value - 1]
        elif not math.isfinite(value):
            return None
        else:
            candidates = [value + 1, value + 0.25, value * 0.5, value - 0.25]
        default = getattr(self.signature.get(name), "default", None)
        others = [one for one in candidates if one not in (value, default)]
        return next((one for one in others if self.builds(**{name: one})), None)

    @cached_property
    def identity_params(self) -> Mapping[str, Any] | None:
        """Parameters at which guidance has no effect. `None` if they are not known."""
        if self.spec.identity_params is not None:
            return self.spec.identity_params
        if self.scales != [_CFG_SCALE]:
            return None
        return {_CFG_SCALE: 0.0 if self.all_params.get("use_original_formulation") else 1.0}

    def numeric(self, names: Iterable[str]) -> list[str]:
        """Return which of some parameters are numbers."""
        return [name for name in names if is_number(self.all_params.get(name))]

    @cached_property
    def scales(self) -> list[str]:
        """The numeric parameters whose names end in `_scale`."""
        return self.numeric(name for name in self.signature if name.endswith("_scale"))

    @cached_property
    def required_effect(self) -> list[str]:
        """The numeric parameters that must each change the prediction."""
        declared = self.spec.required_effect
        return self.scales if declared is None else self.numeric(declared)

    @cached_property
    def active_intervals(self) -> Sequence[ActiveInterval]:
        """Where it acts: as promised, or `start` and `stop` if the constructor has both."""
        if self.spec.active_intervals is not None:
            return self.spec.active_intervals
        default = ActiveInterval()
        return [default] if {default.start, default.stop} <= set(self.signature) else []

    @cached_property
    def interval_params(self) -> Mapping[str, Any]:
        """Parameters at which each interval has steps before it and after it."""
        params: dict[str, Any] = {}
        for interval in self.active_intervals:
            params |= {interval.start: INTERVAL[0], interval.stop: INTERVAL[1]}
        return params if self.builds(**params) else {}

    @cached_property
    def param_variants(self) -> Sequence[tuple[Mapping[str, Any], str]]:
        """Parameter changes that reach more of the guider's code, each with words for messages."""
        if not self.interval_params:
            return [({}, "")]
        words = f" with {format_params(self.interval_params)}, where it is not always active"
        return [({}, ""), (self.interval_params, words)]

    @cached_property
    def inactive_reason(self) -> str:
        """Why it cannot act at the given parameters. Empty if it can."""
        if self.all_params.get("enabled") is False:
            return "guidance is disabled (enabled=False); remove that argument"
        identity = self.identity_params
        if identity is None or any(self.all_params.get(k) != v for k, v in identity.items()):
            return ""
        return f"the parameters are its identity parameters, {format_params(identity)}: give others"

    @property
    def inputs(self) -> ModelInputs:
        """Ten steps of two images."""
        return self.model.inputs(1)

    @property
    def other_inputs(self) -> ModelInputs:
        """Ten steps of two other images."""
        return self.model.inputs(2)

    def run(
        self,
        guider: BaseGuidance,
        inputs: ModelInputs | None = None,
        stop_after: int | None = None,
        **options: Any,  # noqa: ANN401
    ) -> list[Step]:
        """Run denoising steps with a guider and put model and inputs back afterwards.

        Args:
            guider: A guider.
            inputs: Defaults to ten steps of two images.
            stop_after: Number of steps. Defaults to all.
            **options: Those of `iter_steps`.
        """
        used = self.inputs if inputs is None else inputs
        with self.restored(used):
            return list(islice(iter_steps(guider, self.model, used, **options), stop_after))

    @contextmanager
    def restored(self, inputs: ModelInputs) -> Iterator[None]:
        """Put model and inputs back after the block, also if it raises."""
        try:
            yield
        finally:
            inputs.restore()
            if not ignores_denoiser(self.cls):
                self.model.restore()

    def steps(self, **changes: Any) -> list[Step]:  # noqa: ANN401
        """Return the steps of a fresh guider, some parameters changed."""
        key = str(sorted(changes.items()))
        if key not in self._known:
            self._known[key] = self.run(self.build(**changes))
        return self._known[key]

    def outputs(self, **changes: Any) -> list[torch.Tensor]:  # noqa: ANN401
        """Return a fresh guider's output of each step, some parameters changed."""
        return [step.output for step in self.steps(**changes)]

    def outputs_of(self, guider: BaseGuidance, **options: Any) -> list[torch.Tensor]:  # noqa: ANN401
        """Return the output of each step of a run. Options are those of `run`."""
        return [step.output for step in self.run(guider, **options)]

    @property
    def guided(self) -> list[Step]:
        """The steps of a fresh guider at the given parameters."""
        return self.steps()

    @cached_property
    def guided_elsewhere(self) -> list[Step]:
        """The steps of a fresh guider on the other images."""
        return self.run(self.build(), self.other_inputs)

    @cached_property
    def sampled(self) -> Sampled:
        """A call of the pipeline with a fresh guider."""
        return self.sample(self.build())

    def sample(self, guider: BaseGuidance) -> Sampled:
        """Call the pipeline with a guider and put model and inputs back afterwards."""
        inputs = ModelInputs.random(1, steps=_PIPELINE_STEPS)
        nfe, num_conditions, set_state = self.model.nfe, list[int](), guider.set_state

        def recording_set_state(*args: Any, **options: Any) -> None:  # noqa: ANN401
            set_state(*args, **options)
            num_conditions.append(guider.num_conditions)

        guider.set_state = recording_set_state
        try:
            with self.restored(inputs):
                latents = self.model.sample(guider, inputs)
        finally:
            del guider.set_state
        return Sampled(guider, latents, self.model.nfe - nfe, num_conditions)

    @cached_property
    def baseline(self) -> list[torch.Tensor]:
        """The baseline prediction of each step: conditional, or classifier-free guided."""
        branches = [self._branches(step) for step in range(len(self.inputs.latents))]
        if self.spec.baseline_prediction == "conditional":
            return [cond for cond, _ in branches]
        w = float(self.all_params[_CFG_SCALE])
        return [classifier_free_guidance(uncond, cond, w) for cond, uncond in branches]

    def _branches(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the conditional and the unconditional prediction, [B, 4, H, W] each."""
        fields = self.model.fields(self.inputs, step)
        batches = [SimpleNamespace(**{k: v[i] for k, v in fields.items()}) for i in (0, 1)]
        with torch.no_grad():
            cond = self.model.predict(self.inputs, step, batches[0], branch=True)
            uncond = self.model.predict(self.inputs, step, batches[1], branch=False)
        # Otherwise the checks would prove nothing.
        assert distance(cond, uncond) > 10 * DIFFERENT
        return cond, uncond


# --------------------
# From the arguments of `check_guider` to a guider under test.


def guider_under_test(
    guider: type[BaseGuidance] | BaseGuidance,
    *,
    model: ModelName,
    spec: GuiderSpec | None,
    parameters: Mapping[str, Any],
) -> GuiderUnderTest:
    """Validate the arguments of `check_guider` and return the guider under test.

    Raises:
        UsageError: if `guider` is not a guider, or cannot be made from the parameters.
    """
    if model not in get_args(ModelName):
        raise UsageError(f"no tiny model '{model}'.{did_you_mean(model, get_args(ModelName))}")
    cls = guider if isinstance(guider, type) else type(guider)
    if not issubclass(cls, BaseGuidance):
        raise UsageError(
            f"{cls.__module__}.{cls.__qualname__} is not a guider: it does not inherit from "
            "diffusers.guiders.BaseGuidance."
        )
    if not isinstance(guider, type):
        parameters = {**_config(guider), **parameters}
    with quiet_diffusers():
        call = signature_of(cls)
        spec = _spec(cls, spec, call)
        tested = GuiderUnderTest(cls, dict(parameters), spec, tiny_model(model))
        _require_parameters(tested, call)
    return tested


def _config(guider: BaseGuidance) -> dict[str, Any]:
    if getattr(guider, "_internal_dict", None) is None:
        raise UsageError(
            f"this {type(guider).__name__} does not record its parameters. Decorate its __init__ "
            "with @register_to_config, or pass the class and its parameters by name."
        )
    return {name: value for name, value in guider.config.items() if not name.startswith("_")}


def _spec(cls: type[BaseGuidance], given: GuiderSpec | None, call: Signature) -> GuiderSpec:
    """Return the spec as given, as the class has it, or as it is known of diffusers' guiders."""
    spec: object = getattr(cls, "guider_spec", None) if given is None else given
    if spec is None:
        known = diffusers_guider(f"{cls.__module__}.{cls.__name__}")
        return (
            GuiderSpec() if known is None else replace(known.spec, nfe_per_step=known.nfe_per_step)
        )
    if not isinstance(spec, GuiderSpec):
        raise UsageError(
            f"the spec of {cls.__name__} is a {type(spec).__name__}. Write it as "
            "GuiderSpec(identity_params={…}), from autolora_eval.guider_checks."
        )
    baseline, valid = spec.baseline_prediction, get_args(BaselinePrediction)
    if baseline not in valid:
        raise UsageError(
            f"GuiderSpec.baseline_prediction of {cls.__name__}: '{baseline}'."
            f"{did_you_mean(baseline, valid)}"
        )
    for key, name in _parameter_names(spec):
        if name not in call.parameters and not call.is_open:
            raise UsageError(
                f"GuiderSpec.{key} of {cls.__name__} names '{name}', which is not a parameter "
                f"of its constructor.{did_you_mean(name, call.parameters)}"
            )
    return spec


def _parameter_names(spec: GuiderSpec) -> Iterator[tuple[str, str]]:
    for key in ("identity_params", "linear_params", "required_effect"):
        yield from ((key, name) for name in getattr(spec, key) or ())
    for interval in spec.active_intervals or ():
        for name in (interval.start, interval.stop, *(interval.disable_params or ())):
            yield "active_intervals", name


def _require_parameters(tested: GuiderUnderTest, call: Signature) -> None:
    name = tested.cls.__name__
    unknown = [one for one in tested.parameters if one not in call.parameters]
    if unknown and not call.is_open:
        near = did_you_mean(unknown[0], call.parameters)
        raise UsageError(f"{name} has no parameter '{unknown[0]}'.{near}")
    if inspect.isabstract(tested.cls) or tested.cls is BaseGuidance:
        raise UsageError(f"{name} is abstract: give a guider that inherits from it.")
    missing = [one for one in call.required if one not in tested.parameters]
    if missing:
        raise UsageError(
            f"{name} needs '{missing[0]}'. Pass it: check_guider({name}, {missing[0]}=…), or on "
            f"the command line --parameter {missing[0]}=…"
        )
    try:
        tested.build()
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{name} cannot be made from these parameters: {type(error).__name__}: {error}"
        ) from error
