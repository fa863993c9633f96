"""What a guider claims of itself, where its constructor does not say. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ModelName = Literal["sdxl", "sd3"]
Unguided = Literal["conditional", "cfg"]
Passes = Callable[[Mapping[str, Any], int, int], int]


@dataclass(frozen=True)
class ActiveInterval:
    """A part of the denoising steps outside of which something does not act.

    It acts at the steps ⌊start · N⌋ ≤ step < ⌊stop · N⌋ of N.

    Attributes:
        start: the constructor's parameter for its beginning, a fraction of the steps.
        stop: the parameter for its end.
        outside: parameters that put out what the window bounds, where it bounds only a part of
            the guidance (PAG: `{"perturbed_guidance_scale": 0.0}`). None where it bounds all.
        may_rest: it need not act at every step inside, as where a scale falls to neutral.
    """

    start: str = "start"
    stop: str = "stop"
    outside: Mapping[str, Any] | None = None
    may_rest: bool = False


@dataclass(frozen=True, kw_only=True)
class GuiderSpec:
    """What a guider claims, as its class attribute `laws` or an argument of `check_guider`.

    Everything may be left out: what cannot be read off the constructor is then not tested, and
    the law says so.

    Attributes:
        neutral: parameters at which the guider gives the unguided prediction. By default
            `guidance_scale` at 1 (at 0 with `use_original_formulation`), if that is the
            constructor's only parameter named `…scale`.
        unguided: what the prediction is where guidance does not act: the conditional one, or that
            of classifier-free guidance at `guidance_scale`.
        windows: where it acts. By default `start` and `stop`, if the constructor has them.
        linear: numeric parameters of which the prediction is an affine function.
        linear_in_predictions: whether the result is a linear function of the predictions.
        acting: numeric parameters each of which must change the prediction. By default those
            named `…scale`.
        passes: (all parameters, step, number of steps) → denoiser passes at that step. By
            default what the guider's own `num_conditions` says.
    """

    neutral: Mapping[str, Any] | None = None
    unguided: Unguided = "conditional"
    windows: tuple[ActiveInterval, ...] | None = None
    linear: tuple[str, ...] = ()
    linear_in_predictions: bool = False
    acting: tuple[str, ...] | None = None
    passes: Passes | None = field(default=None, compare=False)
