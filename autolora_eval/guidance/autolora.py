"""AutoLoRA as a `diffusers` guider: it works in any modular pipeline that takes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput

from autolora_eval.guidance.adapters import AdapterSwitch
from autolora_eval.guidance.equations import (
    Prediction,
    autolora_guidance,
    autolora_predictions,
    classifier_free_guidance,
    in_interval,
)
from autolora_eval.guidance.spec import GuiderSpec

_COND, _UNCOND = 0, 1


class AutoLoRAGuidance(BaseGuidance):
    """Implements AutoLoRA guidance for LoRA-tuned diffusion models, with or without CFG.

    With ε the base model's prediction, ε_LoRA the same model's with its LoRA on, and ε^w
    classifier-free guidance at scale w (equation 4), the prediction is equation (7):

        ε^{w1} + γ (ε_LoRA^{w2} − ε^{w1})

    With w1 = w2 = 1 this is equation (6). At γ = 1 it is LoRA+CFG(w2) and makes no base pass; at
    γ = 0 it is base+CFG(w1) and makes no LoRA pass: a prediction whose coefficient is zero is not
    made. Outside of the interval [start, stop) the rule is that of γ = 1.

    If the LoRA also tunes the text encoders, the base branch must see the embeddings of the text
    encoders with LoRA off: give them with `set_base_inputs`.

    Args:
        autolora_scale (`float`, defaults to `1.5`): γ. Typical range: 1.0 to 2.0.
        guidance_scale (`float`, defaults to `1.0`): w2, the CFG scale of the LoRA branch.
        base_guidance_scale (`float`, *optional*): w1, the CFG scale of the base branch; w2 where
            not given.
        start (`float`, defaults to `0.0`): fraction of denoising steps after which AutoLoRA starts.
        stop (`float`, defaults to `1.0`): fraction of denoising steps after which AutoLoRA stops.
        enabled (`bool`, defaults to `True`): `False` gives LoRA+CFG(w2) throughout.

    Raises:
        ValueError: at the first prediction, if the denoiser has no LoRA: without one, base and
            LoRA branch are the same and the result would silently be plain CFG.
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
    ) -> None:
        super().__init__(start, stop, enabled)
        self.gamma = autolora_scale
        self.w2 = guidance_scale
        self.w1 = guidance_scale if base_guidance_scale is None else base_guidance_scale
        self._base_inputs: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._switch: AdapterSwitch | None = None

    def set_base_inputs(
        self, inputs: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]
    ) -> None:
        """Give the conditioning of the base branch where it differs from the LoRA branch's.

        Args:
            inputs: (conditional, unconditional) embeddings from text encoders with LoRA off, by
                the denoiser's input names (SDXL: `prompt_embeds` [B, L, D] and `text_embeds`
                [B, P]). Names left out are shared by both branches.
        """
        self._base_inputs = dict(inputs)

    @property
    def active_gamma(self) -> float:
        """γ at the current step: 1 outside the interval. Before the first step, the γ inside."""
        if not self._enabled:
            return 1.0
        if self._step is None or self._num_inference_steps is None:
            return self.gamma
        inside = in_interval(self._step, self._num_inference_steps, self._start, self._stop)
        return self.gamma if inside else 1.0

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        """The predictions made at the current step, in order."""
        return autolora_predictions(self.active_gamma, self.w1, self.w2)

    @property
    def num_conditions(self) -> int:
        """The number of predictions; before the first step the most that any step will need.

        Pipelines ask before the first step, to know whether to encode the null prompt.
        """
        if self._step is not None:
            return len(self.predictions)
        steps = (self.predictions, autolora_predictions(1.0, self.w1, self.w2))
        # A lone prediction without the prompt (w = 0) needs the null prompt all the same.
        needs_null = any(name.endswith("_uncond") for names in steps for name in names)
        return max(2 if needs_null else 1, *(len(names) for names in steps))

    @property
    def is_conditional(self) -> bool:
        """Whether the prediction being prepared is conditional (read by pipelines with hooks)."""
        return bool(self.predictions[self._count_prepared - 1].endswith("_cond"))

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        """Return one batch of denoiser inputs for each prediction of this step."""
        batches = []
        for name in self.predictions:
            inputs = {**data, **self._base_inputs} if name.startswith("base_") else data
            index = _UNCOND if name.endswith("_uncond") else _COND
            batches.append(self._prepare_batch(inputs, index, name))
        return batches

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:  # noqa: ANN401
        """Do as `prepare_inputs`, for the pipelines (Wan, Z-Image, LTX) that call this instead."""
        values = {
            name: tuple(getattr(data, f, None) for f in fields)
            if isinstance(fields, tuple)
            else getattr(data, fields)
            for name, fields in input_fields.items()
        }
        return self.prepare_inputs(values)

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        """Put the denoiser's LoRA on or off for the prediction that comes next.

        The state is set for every prediction rather than toggled, so that an exception in one
        cannot leave the next one wrong.
        """
        name = self.predictions[self._count_prepared]
        if self._switch is None or self._switch.module is not denoiser:
            self._switch = AdapterSwitch(denoiser)
        self._switch.set(enabled=name.startswith("lora_"))
        super().prepare_models(denoiser)

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        """Leave the LoRA on, as it was found."""
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
            base_cond: ε(x, y), [B, C, H, W] or any shape; None where it was not needed.
            base_uncond: ε(x, ∅), same shape.
            lora_cond: ε_LoRA(x, y), same shape.
            lora_uncond: ε_LoRA(x, ∅), same shape.

        Returns:
            `pred` of the same shape and dtype, and the LoRA branch's two predictions (the base
            branch's where no LoRA pass was made). Where no conditional one was made, `pred` stands
            in for it, since Qwen-Image's pipeline gives `pred` the length of `pred_cond`.
        """
        base = _branch(base_uncond, base_cond, self.w1)
        lora = _branch(lora_uncond, lora_cond, self.w2)
        pred = base if lora is None else lora
        if base is not None and lora is not None:
            pred = autolora_guidance(base, lora, self.active_gamma)
        cond, uncond = (base_cond, base_uncond) if lora is None else (lora_cond, lora_uncond)
        return GuiderOutput(pred=pred, pred_cond=pred if cond is None else cond, pred_uncond=uncond)


def _branch(
    uncond: torch.Tensor | None, cond: torch.Tensor | None, w: float
) -> torch.Tensor | None:
    """Equation (4) from those of its terms that were made."""
    if uncond is None or cond is None:
        return cond if uncond is None else uncond
    return classifier_free_guidance(uncond, cond, w)
