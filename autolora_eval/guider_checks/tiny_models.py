"""Tiny random models with a LoRA, on which the checks run. They are made in memory in a second.

They are diffusers' own classes in its own modular pipelines, without text encoders: the embeddings
are random too. Of the layers that guiders address, SDXL has the first of
`mid_block.attentions.0.transformer_blocks` and SD3 has three of `transformer_blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, wraps
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

from autolora_eval.guidance.denoiser_state import ABSENT, DenoiserState
from autolora_eval.guidance.method import ModelName

TOKENS, WIDTH, POOLED, SIDE = 4, 16, 8, 8
LORA_SCALE = 0.7  # Not 1, the scale to which a faulty guider might reset it.
_VAE_FACTOR = 2
_SCALARS = (bool, int, float, str, type(None))
# Words for changes of the denoiser, by attribute of a layer.
_CHANGES = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_modules": "replaced layer",
    "_parameters": "replaced weight",
    "weights": "changed weights",
    "forward": "replaced forward method",
    "hooks": "hook of diffusers",
    "_diffusers_hook": "hook of diffusers",
    "processor": "attention processor",
    "_disable_adapters": "LoRA switched on or off",
    "_active_adapter": "active LoRA",
    "scaling": "LoRA scale",
    "merged_adapters": "LoRA merged into the weights",
    "training": "training mode",
}


@dataclass(frozen=True)
class ModelInputs:
    """The inputs of a denoiser for one batch of images.

    Attributes:
        latents: x_t of each step, float32 [B, 4, H, W].
        timesteps: Of each step, scalars.
        prompt: Embeddings of the prompts and of the negative prompt, each [B, 4, 16].
        pooled: Pooled embeddings of both, each [B, 8].
        known: Predictions computed so far, by step, branch (`True`: prompts, `False`: negative
            prompt) and settings of the denoiser.
    """

    latents: tuple[torch.Tensor, ...]
    timesteps: tuple[torch.Tensor, ...]
    prompt: tuple[torch.Tensor, torch.Tensor]
    pooled: tuple[torch.Tensor, torch.Tensor]
    known: dict[tuple[int, bool, frozenset[str]], torch.Tensor] = field(default_factory=dict)
    _copies: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._copies.extend(tensor.clone() for tensor in self._tensors())

    @classmethod
    def random(cls, seed: int, *, rows: int = 2, steps: int = 10, width: int = SIDE) -> ModelInputs:
        """Draw random inputs."""
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
        """Return the images with these indices, in this order."""
        return ModelInputs(
            tuple(x[order] for x in self.latents),
            self.timesteps,
            (self.prompt[0][order], self.prompt[1][order]),
            (self.pooled[0][order], self.pooled[1][order]),
        )

    def is_modified(self) -> bool:
        """Return `True` if a guider has changed them in place."""
        return not all(map(torch.equal, self._tensors(), self._copies))

    def restore(self) -> bool:
        """Undo changes in place. Return `True` if there were any."""
        modified = self.is_modified()
        if modified:
            for tensor, kept in zip(self._tensors(), self._copies, strict=True):
                tensor.copy_(kept)
        return modified

    def _tensors(self) -> list[torch.Tensor]:
        return [*self.latents, *self.timesteps, *self.prompt, *self.pooled]


Fields = Callable[[ModelInputs, int], dict[str, Any]]
Forward = Callable[[torch.nn.Module, Any, ModelInputs, int], torch.Tensor]


class TinyModel:
    """A denoiser with a LoRA, and the modular pipeline of its family around it.

    Args:
        denoiser: A UNet or transformer with a LoRA, float32.
        pipe: The modular pipeline, without text encoders.
        fields: (inputs, step) → what the pipeline's denoising loop gives to `prepare_inputs`.
        forward: (denoiser, prepared batch, inputs, step) → the prediction.

    Attributes:
        nfe: Function evaluations so far.
    """

    def __init__(
        self,
        denoiser: torch.nn.Module,
        pipe: Any,  # noqa: ANN401
        fields: Fields,
        forward: Forward,
    ) -> None:
        self.denoiser, self.pipe, self.fields, self._forward = denoiser, pipe, fields, forward
        self.nfe = 0
        self._count_calls()
        self._inputs: dict[int, ModelInputs] = {}
        self._state = DenoiserState(denoiser)
        self._buffers = [(layer._buffers, dict(layer._buffers)) for layer in denoiser.modules()]
        tensors = {**dict(denoiser.named_parameters()), **dict(denoiser.named_buffers())}
        self._weights = {name: (live, live.detach().clone()) for name, live in tensors.items()}

    def _count_calls(self) -> None:
        # A guider may call `forward` directly and so bypass the hooks of `__call__`.
        forward = self.denoiser.forward

        @wraps(forward)
        def counted(*args: Any, **options: Any) -> Any:  # noqa: ANN401
            self.nfe += 1
            return forward(*args, **options)

        self.denoiser.forward = counted

    def inputs(self, seed: int) -> ModelInputs:
        """Return the inputs of two images. Their known predictions are shared in the process."""
        return self._inputs.setdefault(seed, ModelInputs.random(seed))

    def predict(
        self,
        inputs: ModelInputs,
        step: int,
        batch: Any,  # noqa: ANN401
        branch: bool | None = None,
        settings: frozenset[str] = frozenset(),
    ) -> torch.Tensor:
        """Return the denoiser's prediction at a step for a prepared batch, [B, 4, H, W].

        `branch` is `True` or `False` if the batch is exactly that of the prompts or of the null
        prompt, so that a known prediction at the same `settings` of the denoiser may be used. It
        counts as an evaluation.
        """
        if branch is None or inputs.is_modified():
            return self._forward(self.denoiser, batch, inputs, step)
        key = (step, branch, settings)
        if key in inputs.known:
            self.nfe += 1
        else:
            inputs.known[key] = self._forward(self.denoiser, batch, inputs, step)
        return inputs.known[key].clone()

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

    def describe_changes(self) -> list[str]:
        """Return in words what differs from the model as it was made."""
        changes = self._state.changes() | {(n, "weights"): None for n in self._changed_weights()}
        words: dict[str, None] = {}
        for (layer, name), value in changes.items():
            if name in ("_hook_order", "_fn_refs"):
                continue  # They go with "hooks" of diffusers' registry.
            what = _CHANGES.get(name, f"attribute {name!r}")
            at = f"'{layer}'" if layer else "the denoiser"
            words[f"{'removed ' if value is ABSENT else ''}{what} on {at}"] = None
        return list(words)

    def settings(self) -> frozenset[str] | None:
        """Return the changed switches as a key. `None` if anything but plain values changed."""
        changes = self._state.changes()
        plain = all(isinstance(value, _SCALARS) for value in changes.values())
        if not plain or self._changed_weights():
            return None
        return frozenset(f"{layer}.{name}={value!r}" for (layer, name), value in changes.items())

    def restore(self) -> None:
        """Put the model back as it was made."""
        self._state.restore()
        for table, kept in self._buffers:
            table.update(kept)
        for name in self._changed_weights():
            live, copied = self._weights[name]
            live.data = copied.clone()

    def _changed_weights(self) -> list[str]:
        for table, kept in self._buffers:
            if any(table[name] is not buffer for name, buffer in kept.items()):
                return list(self._weights)  # The model was cast or moved.
        return [name for name, (live, kept) in self._weights.items() if not _equal(live, kept)]


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))


@cache
def tiny_model(name: ModelName) -> TinyModel:
    """Make a tiny model, once per process. Draws nothing from the global random generators."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"sdxl": _sdxl, "sd3": _sd3}[name]()


def _with_lora(denoiser: Any) -> torch.nn.Module:  # noqa: ANN401
    denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    denoiser.set_adapters("default", LORA_SCALE)
    network: torch.nn.Module = denoiser.eval().requires_grad_(False)
    return network


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
    return TinyModel(unet, pipe, _sdxl_fields, _sdxl_forward)


def _sdxl_fields(inputs: ModelInputs, step: int) -> dict[str, Any]:
    sizes = torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]]).expand(len(inputs.latents[0]), 6)
    return {
        "prompt_embeds": inputs.prompt,
        "time_ids": (sizes, sizes),
        "text_embeds": inputs.pooled,
        "image_embeds": (None, None),
    }


def _sdxl_forward(unet: Any, batch: Any, inputs: ModelInputs, step: int) -> torch.Tensor:  # noqa: ANN401
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
    return TinyModel(transformer, pipe, _sd3_fields, _sd3_forward)


def _sd3_fields(inputs: ModelInputs, step: int) -> dict[str, Any]:
    latents = inputs.latents[step]
    return {
        "hidden_states": (latents, latents),
        "encoder_hidden_states": inputs.prompt,
        "text_embeds": inputs.pooled,
    }


def _sd3_forward(transformer: Any, batch: Any, inputs: ModelInputs, step: int) -> torch.Tensor:  # noqa: ANN401
    prediction: torch.Tensor = transformer(
        hidden_states=batch.hidden_states,
        timestep=inputs.timesteps[step].expand(len(batch.hidden_states)),
        encoder_hidden_states=batch.encoder_hidden_states,
        pooled_projections=batch.text_embeds,
        return_dict=False,
    )[0]
    return prediction


def prompt_embeddings(batch: Any) -> torch.Tensor:  # noqa: ANN401
    """Return the prompt embeddings of a prepared batch of either family."""
    found: Mapping[str, Any] = batch.as_dict() if hasattr(batch, "as_dict") else vars(batch)
    for name in ("prompt_embeds", "encoder_hidden_states"):
        if isinstance(found.get(name), torch.Tensor):
            return torch.as_tensor(found[name])
    raise AttributeError("a prepared batch has no prompt embeddings")
