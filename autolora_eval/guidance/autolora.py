"""AutoLoRA and CFG as `diffusers` guiders, for every modular pipeline that takes a guider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput

from autolora_eval.guidance.denoiser_state import AdapterSwitch
from autolora_eval.guidance.diffusers_guiders import DIFFUSERS_GUIDERS
from autolora_eval.guidance.equations import (
    Prediction,
    autolora_guidance,
    autolora_predictions,
    classifier_free_guidance,
    in_interval,
    last_base_step,
    reused_autolora_guidance,
    scales_equal,
)
from autolora_eval.guidance.method import GuiderSpec

__all__ = ["AutoLoRAGuidance"]

_COND, _UNCOND = 0, 1


class AutoLoRAGuidance(BaseGuidance):
    """AutoLoRA guidance for LoRA-tuned diffusion models, with or without classifier-free guidance.

    Let ε be the prediction of the base model, ε_LoRA that of the same model with its LoRA on, and
    ε^w classifier-free guidance at scale w:

        ε^w = ε(x, ∅) + w (ε(x, y) − ε(x, ∅))                                          (4)

    The guided prediction is

        ε^{w1}(x, y) + γ (ε_LoRA^{w2}(x, y) − ε^{w1}(x, y))                            (7)

    With w1 = w2 = 1 this is AutoLoRA without CFG, equation (6). The base model guides the LoRA
    model as a weaker model does in AutoGuidance, equation (5): γ > 1 extrapolates from the base
    model through the LoRA model.

    Predictions with a coefficient of zero are not computed. At γ = 1 the guider is CFG of the LoRA
    model at w2 and never evaluates the base model; at γ = 0 it is CFG of the base model at w1 and
    never evaluates the LoRA model. Otherwise a step takes two function evaluations without CFG and
    four with it.

    Outside the interval [`start`, `stop`) the guider acts as with γ = 1.

    With `base_every` = k > 1 the base model is evaluated only at every k-th step of the interval.
    In between, the last difference D = ε_LoRA^{w2} − ε^{w1} is reused: ε_LoRA^{w2} + (γ − 1) D.

    Args:
        autolora_scale: The AutoLoRA scale γ. Values from 1.0 to 2.0 are typical. Larger values
            strengthen the LoRA's effect relative to the base model.
        guidance_scale: The CFG scale w2 of the LoRA model. 1.0 turns its CFG off. The paper uses
            5.0 for SDXL and 7.0 for SD3.
        base_guidance_scale: The CFG scale w1 of the base model. Default: `guidance_scale`.
        start: The fraction of the denoising steps after which AutoLoRA starts, in [0, 1].
        stop: The fraction of the denoising steps after which AutoLoRA stops, in [0, 1].
        enabled: Whether AutoLoRA is on. `False` acts as γ = 1 at all steps.
        base_every: The base model is evaluated at every `base_every`-th step of the interval. With
            a second-order scheduler such as Heun, it is evaluated at both timesteps of that step.

    Raises:
        ValueError: if `base_every` is less than 1, or more than 1 at γ = 0, which uses the base
            model alone, and a stored difference has no use.
        ValueError: at the first prediction, if the denoiser has no LoRA and `set_base_inputs` was
            not called. The result would silently be CFG.

    Example:
        ```python
        pipe = ModularPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
        pipe.load_components()
        pipe.load_lora_weights("my_lora.safetensors")
        pipe.update_components(guider=AutoLoRAGuidance(autolora_scale=1.5, guidance_scale=5.0))
        image = pipe(prompt="a red cat", output="images")[0]
        ```

    If the LoRA also tunes the text encoders, pass the embeddings of the text encoders with LoRA off
    to `set_base_inputs`. Otherwise the base model gets tuned embeddings.
    """

    _input_predictions = ["base_cond", "base_uncond", "lora_cond", "lora_uncond"]  # noqa: RUF012
    guider_spec = GuiderSpec(
        identity_params={"autolora_scale": 1.0},
        baseline_prediction="cfg",
        linear_params=("autolora_scale", "guidance_scale"),
        linear_in_predictions=True,
    )

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        autolora_scale: float = 1.5,
        guidance_scale: float = 1.0,
        base_guidance_scale: float | None = None,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        base_every: int = 1,
    ) -> None:
        super().__init__(start, stop, enabled)
        if base_every < 1:
            raise ValueError(f"base_every is {base_every}; it must be at least 1.")
        if base_every > 1 and scales_equal(autolora_scale, 0.0):
            raise ValueError(
                "autolora_scale 0 is the base model alone: a stored difference has no use. Set "
                "base_every to 1."
            )
        self.gamma = autolora_scale
        self.w2 = guidance_scale
        self.w1 = guidance_scale if base_guidance_scale is None else base_guidance_scale
        self.base_every = base_every
        self._kept: tuple[int, torch.Tensor] | None = None  # the step of D, and D
        self._base_inputs: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._switch: AdapterSwitch | None = None

    def set_base_inputs(
        self, inputs: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]
    ) -> None:
        """Set the inputs of the base model that differ from those of the LoRA model.

        Args:
            inputs: (conditional, unconditional) embeddings from the text encoders with LoRA off, by
                the denoiser's input names. For SDXL these are `prompt_embeds` [B, L, D] and
                `text_embeds` [B, P]. Both models share all other inputs.
        """
        self._base_inputs = dict(inputs)

    @property
    def active_gamma(self) -> float:
        """γ at the current step, 1 outside the interval. Before the first step, γ inside it."""
        if not self._enabled:
            return 1.0
        if self._step is None or self._num_inference_steps is None:
            return self.gamma
        inside = in_interval(self._step, self._num_inference_steps, self._start, self._stop)
        return self.gamma if inside else 1.0

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        """The predictions that the current step needs, in the order in which they are made."""
        due = self._step is None or self._step == self._base_step
        return autolora_predictions(self.active_gamma, self.w1, self.w2, base_is_due=due)

    @property
    def _base_step(self) -> int:
        """The step of the interval whose base prediction the current step takes."""
        return last_base_step(self._step, self._num_inference_steps, self._start, self.base_every)

    @property
    def num_conditions(self) -> int:
        """The number of predictions of the current step.

        Before the first step it is the largest number that any step needs: pipelines read it then
        to decide whether to encode the negative prompt.
        """
        if self._step is not None:
            return len(self.predictions)
        steps = (self.predictions, autolora_predictions(1.0, self.w1, self.w2))
        # Pipelines encode the negative prompt for 2 or more. A single unconditional prediction
        # (w = 0) needs it too.
        needs_null = any(name.endswith("_uncond") for names in steps for name in names)
        return max(2 if needs_null else 1, *(len(names) for names in steps))

    @property
    def is_conditional(self) -> bool:
        """Whether the prediction that is being prepared is conditional. Pipelines read it."""
        return bool(self.predictions[self._count_prepared - 1].endswith("_cond"))

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        """Return one batch of denoiser inputs for each prediction of this step.

        Args:
            data: (conditional, unconditional) tensors by the denoiser's input names.
        """
        if self._step == 0:  # a new batch of images
            self._kept = None
        batches = []
        for name in self.predictions:
            inputs = {**data, **self._base_inputs} if name.startswith("base_") else data
            index = _UNCOND if name.endswith("_uncond") else _COND
            batches.append(self._prepare_batch(inputs, index, name))
        return batches

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:  # noqa: ANN401
        """Do the same as `prepare_inputs`, for pipelines such as Wan, Z-Image and LTX."""
        values = {
            name: tuple(getattr(data, f, None) for f in fields)
            if isinstance(fields, tuple)
            else getattr(data, fields)
            for name, fields in input_fields.items()
        }
        return self.prepare_inputs(values)

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        """Switch the denoiser's LoRA on or off for the next prediction.

        Raises:
            ValueError: if the denoiser has no LoRA, and `set_base_inputs` was not called.
        """
        # Set for every prediction, not toggled: after an exception the next one is still right.
        name = self.predictions[self._count_prepared]
        if self._switch is None or self._switch.module is not denoiser:
            # A LoRA may tune the text encoders alone.
            self._switch = AdapterSwitch(denoiser, is_required=not self._base_inputs)
        self._switch.set(enabled=name.startswith("lora_"))
        super().prepare_models(denoiser)

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        """Switch the LoRA on again."""
        if self._switch is not None:
            self._switch.set(enabled=True)

    def forward(
        self,
        base_cond: torch.Tensor | None = None,
        base_uncond: torch.Tensor | None = None,
        lora_cond: torch.Tensor | None = None,
        lora_uncond: torch.Tensor | None = None,
    ) -> GuiderOutput:
        """Combine the predictions by equation (7).

        Args:
            base_cond: ε(x, y), [B, C, H, W] or any other shape. `None` if it was not needed.
            base_uncond: ε(x, ∅), same shape.
            lora_cond: ε_LoRA(x, y), same shape.
            lora_uncond: ε_LoRA(x, ∅), same shape.

        Returns:
            `pred`, of the same shape and dtype, and `pred_cond` and `pred_uncond` of the LoRA
            model, or of the base model if the LoRA model was not evaluated.
        """
        base = _guided_branch(base_uncond, base_cond, self.w1)
        lora = _guided_branch(lora_uncond, lora_cond, self.w2)
        cond, uncond = (base_cond, base_uncond) if lora is None else (lora_cond, lora_uncond)
        pred = self._combined(base, lora)
        # Qwen-Image's pipeline rescales `pred` to the norm of `pred_cond`, so it must be a tensor.
        return GuiderOutput(pred=pred, pred_cond=pred if cond is None else cond, pred_uncond=uncond)

    def _combined(self, base: torch.Tensor | None, lora: torch.Tensor | None) -> Any:  # noqa: ANN401
        gamma = self.active_gamma
        if lora is not None and base is None and not scales_equal(gamma, 1.0):
            return reused_autolora_guidance(lora, self._difference(), gamma)
        if base is None or lora is None:
            return base if lora is None else lora
        if self.base_every > 1:
            self._kept = (self._step, lora - base)
        return autolora_guidance(base, lora, gamma)

    def _difference(self) -> torch.Tensor:
        """Return D of the last step with a base prediction, never that of another image."""
        if self._kept is None or self._kept[0] != self._base_step:
            raise ValueError(
                f"step {self._step} reuses the base prediction of step {self._base_step}, which "
                "was not made. Run all steps in order from 0, or set base_every to 1."
            )
        return self._kept[1]


def _guided_branch(
    uncond: torch.Tensor | None, cond: torch.Tensor | None, w: float
) -> torch.Tensor | None:
    """Apply equation (4) to the predictions that were made. `None` if none was."""
    if uncond is None or cond is None:
        # The coefficient of the missing prediction is 0, so that of the other one is 1.
        return cond if uncond is None else uncond
    return classifier_free_guidance(uncond, cond, w)


class LeanClassifierFreeGuidance(ClassifierFreeGuidance):
    """diffusers' guider with the interval of this package, and without useless predictions.

    At scale 0 it makes no conditional prediction, whose coefficient is 0.
    """

    guider_spec = DIFFUSERS_GUIDERS["ClassifierFreeGuidance"].spec

    def _is_cfg_enabled(self) -> bool:
        # diffusers cuts start · steps down to a whole number: 0.29 · 100, just below 29, to 28
        # (guiders/classifier_free_guidance.py).
        inside = self._step is None or in_interval(
            self._step, self._num_inference_steps, self._start, self._stop
        )
        return self._enabled and inside and not scales_equal(self.guidance_scale, 1.0)

    @property
    def _needs_no_cond(self) -> bool:
        # Before the first step pipelines read how many predictions there are, to encode ∅ for two.
        acts = self._step is not None and self._is_cfg_enabled()
        return acts and scales_equal(self.guidance_scale, 0.0)

    @property
    def num_conditions(self) -> int:
        """The number of predictions of the current step."""
        return 1 if self._needs_no_cond else int(super().num_conditions)

    @property
    def is_conditional(self) -> bool:
        """Whether the prediction that is being prepared is conditional."""
        return not self._needs_no_cond and bool(super().is_conditional)

    def prepare_inputs(self, data: Any) -> list[Any]:  # noqa: ANN401
        """Return one batch of denoiser inputs for each prediction of this step."""
        if self._needs_no_cond:
            return [self._prepare_batch(data, _UNCOND, "pred_uncond")]
        return list(super().prepare_inputs(data))

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> list[Any]:  # noqa: ANN401
        """Do the same as `prepare_inputs`, for pipelines such as Z-Image."""
        if self._needs_no_cond:
            batch = self._prepare_batch_from_block_state
            return [batch(input_fields, data, _UNCOND, "pred_uncond")]
        return list(super().prepare_inputs_from_block_state(data, input_fields))

    def forward(
        self, pred_cond: torch.Tensor | None = None, pred_uncond: torch.Tensor | None = None
    ) -> GuiderOutput:
        """Combine the predictions by equation (4)."""
        if pred_cond is None:
            # Qwen-Image's pipeline rescales `pred` to the norm of `pred_cond`.
            return GuiderOutput(pred=pred_uncond, pred_cond=pred_uncond, pred_uncond=pred_uncond)
        return super().forward(pred_cond, pred_uncond)
