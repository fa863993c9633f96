"""Tiny random models with a LoRA, made in memory in a second: what the laws are tried on.

They are real classes of diffusers in real modular pipelines, from which only the text encoders
are left out: embeddings are random too. Of the large models' layers there are the first of
`mid_block.attentions.0.transformer_blocks` (SDXL) and three of `transformer_blocks` (SD3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import (
    StableDiffusion3AutoBlocks,
)
from diffusers.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl import (
    StableDiffusionXLAutoBlocks,
)
from peft import LoraConfig

from autolora_eval.guidance.denoiser_state import DenoiserState
from autolora_eval.guidance.spec import ModelName

TOKENS, WIDTH, POOLED, SIDE = 4, 16, 8, 8
LORA_WEIGHT = 0.7  # not 1, to which a guider might put it back
_VAE_FACTOR = 2


@dataclass(frozen=True)
class ModelInputs:
    """What a denoiser is given at every step of one batch of images.

    Attributes:
        latents: x_t by step, each float32 [B, 4, H, W].
        timesteps: by step, scalars.
        prompt: embeddings of the prompts (conditional, null), each [B, 4, 16].
        pooled: pooled embeddings (conditional, null), each [B, 8].
        known: predictions made of these inputs, by step, prompt (True) or null prompt (False),
            and what the guider had set on the denoiser.
    """

    latents: tuple[torch.Tensor, ...]
    timesteps: tuple[torch.Tensor, ...]
    prompt: tuple[torch.Tensor, torch.Tensor]
    pooled: tuple[torch.Tensor, torch.Tensor]
    known: dict[tuple[int, bool, frozenset[str]], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def random(cls, seed: int, *, rows: int = 2, steps: int = 10, width: int = SIDE) -> ModelInputs:
        """Draw them."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        return cls(
            tuple(draw(rows, 4, SIDE, width) for _ in range(steps)),
            tuple(torch.linspace(981.0, 1.0, steps).unbind()),
            (draw(rows, TOKENS, WIDTH), draw(rows, TOKENS, WIDTH)),
            (draw(rows, POOLED), draw(rows, POOLED)),
        )

    def rows(self, order: list[int]) -> ModelInputs:
        """Return the rows of these numbers, in this order."""
        return ModelInputs(
            tuple(x[order] for x in self.latents),
            self.timesteps,
            (self.prompt[0][order], self.prompt[1][order]),
            (self.pooled[0][order], self.pooled[1][order]),
        )

    def tensors(self) -> list[torch.Tensor]:
        """Return all of them in one list."""
        return [*self.latents, *self.timesteps, *self.prompt, *self.pooled]


Fields = Callable[[ModelInputs, int], dict[str, Any]]
Call = Callable[[torch.nn.Module, Any, ModelInputs, int], torch.Tensor]


@dataclass(frozen=True)
class TinyModel:
    """A denoiser with a LoRA, the loop of its family around it, and what a guider is given there.

    Attributes:
        name: of the family.
        denoiser: a UNet or transformer, float32, in evaluation mode.
        pipe: the modular pipeline, its text encoders left out.
        fields: (inputs, step) → what the pipeline's denoising loop hands to `prepare_inputs`.
        call: (denoiser, one prepared batch, inputs, step) → its prediction.
        calls: one number, the denoiser's forward passes so far.
        pristine: the denoiser as it was made.
    """

    name: ModelName
    denoiser: torch.nn.Module
    pipe: Any
    fields: Fields
    call: Call
    calls: list[int]
    pristine: DenoiserState

    def sample(self, guider: Any, inputs: ModelInputs) -> torch.Tensor:  # noqa: ANN401
        """Run the pipeline's own denoising loop and return latents, float32 [B, 4, 8, 8]."""
        self.pipe.update_components(guider=guider)
        rows, steps = len(inputs.latents[0]), len(inputs.latents)
        latents: torch.Tensor = self.pipe(
            prompt_embeds=inputs.prompt[0],
            negative_prompt_embeds=inputs.prompt[1],
            pooled_prompt_embeds=inputs.pooled[0],
            negative_pooled_prompt_embeds=inputs.pooled[1],
            generator=[torch.Generator().manual_seed(seed) for seed in range(rows)],
            num_inference_steps=steps,
            width=SIDE * _VAE_FACTOR,
            height=SIDE * _VAE_FACTOR,
            output="latents",
        )
        return latents


def tiny_model(name: ModelName) -> TinyModel:
    """Make a tiny model; a like one every time, and no draw from the global random generator.

    Args:
        name: of its family.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"sdxl": _sdxl, "sd3": _sd3}[name]()


def _with_lora(denoiser: Any) -> torch.nn.Module:  # noqa: ANN401
    denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    denoiser.set_adapters("default", LORA_WEIGHT)
    network: torch.nn.Module = denoiser.eval().requires_grad_(False)
    return network


def _counted(denoiser: torch.nn.Module) -> list[int]:
    """Count in `forward` itself, which a guider may call past the hooks of `__call__`."""
    calls, forward = [0], denoiser.forward

    @wraps(forward)
    def counted(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        calls[0] += 1
        return forward(*args, **options)

    denoiser.forward = counted
    return calls


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        force_upcast=False,
        shift_factor=0.0,
    )


def _pipeline(blocks: Any, **components: Any) -> Any:  # noqa: ANN401
    text_to_image = blocks.get_workflow("text2image")
    text_to_image.sub_blocks.pop("text_encoder")
    pipe = text_to_image.init_pipeline()
    pipe.update_components(vae=_vae(), **components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _made(
    name: ModelName,
    denoiser: torch.nn.Module,
    pipe: Any,  # noqa: ANN401
    fields: Fields,
    call: Call,
) -> TinyModel:
    calls = _counted(denoiser)
    return TinyModel(
        name, denoiser, pipe, fields, call, calls, DenoiserState(denoiser, weights=True)
    )


def _sdxl() -> TinyModel:
    unet = UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(1, 2),
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=POOLED + 24,
        use_linear_projection=True,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    pipe = _pipeline(StableDiffusionXLAutoBlocks(), unet=_with_lora(unet), scheduler=scheduler)
    return _made("sdxl", unet, pipe, _sdxl_fields, _sdxl_call)


def _sdxl_fields(inputs: ModelInputs, step: int) -> dict[str, Any]:
    sizes = torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]]).expand(len(inputs.latents[0]), 6)
    return {
        "prompt_embeds": inputs.prompt,
        "time_ids": (sizes, sizes),
        "text_embeds": inputs.pooled,
        "image_embeds": (None, None),
    }


def _sdxl_call(unet: Any, batch: Any, inputs: ModelInputs, step: int) -> torch.Tensor:  # noqa: ANN401
    conditions = {"time_ids": batch.time_ids, "text_embeds": batch.text_embeds}
    prediction: torch.Tensor = unet(
        inputs.latents[step],
        inputs.timesteps[step],
        encoder_hidden_states=batch.prompt_embeds,
        added_cond_kwargs=conditions,
        return_dict=False,
    )[0]
    return prediction


def _sd3() -> TinyModel:
    transformer = SD3Transformer2DModel(
        sample_size=SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=POOLED,
        pos_embed_max_size=SIDE,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    blocks = StableDiffusion3AutoBlocks()
    pipe = _pipeline(blocks, transformer=_with_lora(transformer), scheduler=scheduler)
    return _made("sd3", transformer, pipe, _sd3_fields, _sd3_call)


def _sd3_fields(inputs: ModelInputs, step: int) -> dict[str, Any]:
    latents = inputs.latents[step]
    return {
        "hidden_states": (latents, latents),
        "encoder_hidden_states": inputs.prompt,
        "text_embeds": inputs.pooled,
    }


def _sd3_call(transformer: Any, batch: Any, inputs: ModelInputs, step: int) -> torch.Tensor:  # noqa: ANN401
    prediction: torch.Tensor = transformer(
        hidden_states=batch.hidden_states,
        timestep=inputs.timesteps[step].expand(len(batch.hidden_states)),
        encoder_hidden_states=batch.encoder_hidden_states,
        pooled_projections=batch.text_embeds,
        return_dict=False,
    )[0]
    return prediction


def embeddings_of(batch: Any) -> torch.Tensor:  # noqa: ANN401
    """Return the prompt embeddings that a prepared batch has, by either family's name."""
    found: Mapping[str, Any] = batch.as_dict() if hasattr(batch, "as_dict") else vars(batch)
    for name in ("prompt_embeds", "encoder_hidden_states"):
        if isinstance(found.get(name), torch.Tensor):
            return torch.as_tensor(found[name])
    raise AttributeError("a prepared batch has no prompt embeddings")
