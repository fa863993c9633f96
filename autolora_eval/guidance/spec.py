"""What an author declares about a guider for the guider checks. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
    are optional. A check that needs a field which is not set is skipped and says so.

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
