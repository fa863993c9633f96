"""What a method is, and its specification: a guider, a sampler, or images made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from autolora_eval._progress import quiet_libraries
from autolora_eval.plugins.signatures import MethodParameters

if TYPE_CHECKING:
    from diffusers.guiders import BaseGuidance

ModelName = Literal["sdxl", "sd3"]
BaselinePrediction = Literal["conditional", "cfg"]
NfePerStep = Callable[[Mapping[str, Any], int, int], int]


@dataclass(frozen=True)
class ActiveInterval:
    """The denoising steps at which a guider, or a part of it, acts.

    Of N steps these are ⌊start · N⌋ ≤ step < ⌊stop · N⌋.

    Attributes:
        start: Name of the constructor's parameter for the beginning, a fraction of the steps.
        stop: Name of the parameter for the end.
        disable_params: Parameter values that turn off the part that this interval limits, such as
            `{"perturbed_guidance_scale": 0.0}` for PAG. `None` if the interval limits the guider
            as a whole.
        allow_inactive_steps: If `True`, the guider may be inactive at some steps of the interval,
            for example because its scale falls to 1 there.
    """

    start: str = "start"
    stop: str = "stop"
    disable_params: Mapping[str, Any] | None = None
    allow_inactive_steps: bool = False


@dataclass(frozen=True, kw_only=True)
class GuiderSpec:
    """What a guider promises, beyond what its constructor's signature shows.

    Set it as the class attribute `guider_spec`, or pass it to `check_guider(spec=…)`. All fields
    are optional. A check is skipped, with the reason, if it needs a field that is not set.

    Example:
        ```python
        class MyGuider(BaseGuidance):
            guider_spec = GuiderSpec(
                identity_params={"guidance_scale": 1.0, "strength": 0.0},
                linear_params=("guidance_scale",),
            )
        ```

    Attributes:
        identity_params: Parameter values at which the guider returns the baseline prediction.
            Defaults to `guidance_scale` = 1 (0 with `use_original_formulation`) if that is the
            constructor's only parameter whose name ends in `_scale`.
        baseline_prediction: The prediction where guidance does not act: `"conditional"`, or
            `"cfg"` for classifier-free guidance at `guidance_scale`.
        active_intervals: Where the guider acts. Defaults to the parameters `start` and `stop` if
            the constructor has both.
        linear_params: Numeric parameters in which the prediction is affine.
        linear_in_predictions: If `True`, the result is a linear function of the predictions.
        required_effect: Numeric parameters that must each change the prediction. Defaults to the
            parameters whose names end in `_scale`.
        nfe_per_step: (all parameters, step, number of steps) → function evaluations at that step.
            Defaults to what `num_conditions` says.
    """

    identity_params: Mapping[str, Any] | None = None
    baseline_prediction: BaselinePrediction = "conditional"
    active_intervals: tuple[ActiveInterval, ...] | None = None
    linear_params: tuple[str, ...] = ()
    linear_in_predictions: bool = False
    required_effect: tuple[str, ...] | None = None
    nfe_per_step: NfePerStep | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to make images.

    Attributes:
        name: the name in a benchmark file, or the dotted path.
        display_name: the common name, for lists; tables show the benchmark's names.
        summary: one line for `autolora-eval methods` and the report.
        equation: the rule as text; empty if its author does not give one.
        source: the paper or library.
        parameters: the model of its parameters.
        code: what identifies third-party code: class, distribution and version, hash of the
            sources. It is part of every image's content hash; empty for built-in methods.
        needs_lora: whether it compares the model with and without its LoRA, as AutoLoRA does.
        nfe_per_step: (parameters, step, number of steps) → function evaluations at that step. Steps
            count from 0. A run stops if it makes another number. None: the number is an estimate.
        refuse: (parameters, class in the pipeline's model_index.json or None) → why they cannot
            work together and what to do, or None.
    """

    name: str
    display_name: str
    summary: str
    equation: str = ""
    source: str
    parameters: type[MethodParameters]
    code: Mapping[str, str] = field(default_factory=dict)
    needs_lora: bool = False
    nfe_per_step: Callable[[Any, int, int], int] | None = None
    refuse: Callable[[Any, str | None], str | None] = lambda parameters, pipeline: None

    @property
    def identity(self) -> str:
        """A name that no other method has."""
        return self.name

    def nfe(
        self,
        parameters: Any,  # noqa: ANN401
        num_steps: int,
        timesteps: int | None = None,
    ) -> int | None:
        """Return the function evaluations per image; None if they are not known beforehand.

        Args:
            parameters: with the model's defaults filled in.
            num_steps: the number of denoising steps.
            timesteps: the number of the scheduler's timesteps. Default: one per step. Heun has two
                per step.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class GuiderMethod(Method):
    """A method that samples with a diffusers guider.

    Attributes:
        build: parameters → a fresh guider. It imports diffusers.
        guider: the guider class, if `build` only calls it.
    """

    build: Callable[[Any], BaseGuidance]
    guider: type[BaseGuidance] | None = None

    def nfe(
        self,
        parameters: Any,  # noqa: ANN401
        num_steps: int,
        timesteps: int | None = None,
    ) -> int | None:
        """Return the function evaluations per image, declared or announced; None if neither."""
        n = timesteps or num_steps
        try:
            of_steps = self.nfe_of_steps(parameters, num_steps)
            return sum(of_steps[index * num_steps // n] for index in range(n))
        except (Exception, SystemExit):  # a third-party guider may fail without a pipeline
            return None

    def nfe_of_steps(self, parameters: Any, num_steps: int) -> list[int]:  # noqa: ANN401
        """Return the function evaluations at each step.

        Raises:
            Exception: any exception of a third-party guider.
            TypeError: if its `num_conditions` is not a whole number.
        """
        if self.nfe_per_step is not None:
            return [self.nfe_per_step(parameters, step, num_steps) for step in range(num_steps)]
        with quiet_libraries():
            return announced_nfe(self.build(parameters), num_steps)


def announced_nfe(guider: BaseGuidance, num_steps: int) -> list[int]:
    """Return `num_conditions` of a fresh guider at each step.

    Pipelines make one function evaluation for each. A guider that decides by what it sees may
    differ; the run records what it really did.

    Raises:
        TypeError: if `num_conditions` is not a whole number.
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


@dataclass(frozen=True, kw_only=True)
class SamplerMethod(Method):
    """A method that calls a third-party function for each image.

    Attributes:
        prepare: parameters → (prompt, seed, model) → image. A sampler class is instantiated once
            per cell.
    """

    prepare: Callable[[Any], Callable[..., Any]]


class ImageSetParameters(MethodParameters):
    """What the benchmark says about existing images."""

    uses_the_model: ClassVar[bool] = False

    nfe: int | None = Field(default=None, ge=0)
    """The number of function evaluations per image. Default: unknown."""


@dataclass(frozen=True, kw_only=True)
class ImageSetMethod(Method):
    """A method whose images exist already.

    Attributes:
        path: where the images are.
        configured_path: the path as the benchmark has it.
    """

    path: Path
    configured_path: str

    @property
    def identity(self) -> str:
        """The path, which distinguishes two sets of the same name."""
        return self.configured_path

    def nfe(
        self, parameters: ImageSetParameters, num_steps: int, timesteps: int | None = None
    ) -> int | None:
        """Return the function evaluations that the benchmark gives; None if it gives none."""
        return parameters.nfe


def image_set_method(configured_path: str, path: Path) -> ImageSetMethod:
    """Return existing images as a method.

    Tables show the path only if it lies within the benchmark's folder. An absolute path would
    show a directory of a private machine.
    """
    parts = Path(configured_path)
    is_within = not parts.is_absolute() and not {"..", "~"} & set(parts.parts)
    return ImageSetMethod(
        name=configured_path if is_within else path.name,
        configured_path=configured_path,
        display_name="Images made elsewhere",
        summary="Existing images; this package only scores them.",
        source="made elsewhere",
        parameters=ImageSetParameters,
        path=path,
    )
