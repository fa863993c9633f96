"""A plain sampler for measuring the miniatures, independent of the guiders of the package.

Let ε be the prediction of the base model and ε_LoRA that of the model with the LoRA, each with
classifier-free guidance at its own scale. The sampler follows ε + γ(ε_LoRA - ε) and skips
predictions whose coefficient is zero.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline

from recipes import sd3, sd3_text
from recipes.data import to_images
from recipes.files import SD3, SDXL
from recipes.training import mixed_precision
from recipes.unet import TIME_IDS

BATCH = 48

System = Literal["sdxl", "sd3"]
SYSTEMS: tuple[System, ...] = ("sdxl", "sd3")


@dataclass(frozen=True)
class Guidance:
    """γ (0: the base alone, 1: the LoRA alone) and the two scales of classifier-free guidance."""

    gamma: float
    base_scale: float = 1.0
    lora_scale: float = 1.0


@dataclass(frozen=True)
class Prompts:
    """Conditional and null conditions of a batch: [B, L, 128] and [B, D] each."""

    hidden: torch.Tensor
    pooled: torch.Tensor
    null_hidden: torch.Tensor
    null_pooled: torch.Tensor


@dataclass(frozen=True)
class Family:
    """A kind of pipeline, for sampling.

    Attributes:
        pipeline: its class.
        folder: where the shipped one is.
        denoiser: the name of its denoiser.
        encode: encodes texts: (pipeline, texts) → conditions.
        predict: (pipeline, noisy latents [B, 4, 16, 16], time of the scheduler, hidden and pooled
            conditions) → the prediction of the denoiser [B, 4, 16, 16].
        prepared: a context in which the denoiser takes these conditions.
    """

    pipeline: type[DiffusionPipeline]
    folder: Path
    denoiser: str
    encode: Callable[[Any, Sequence[str]], Prompts]
    predict: Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    prepared: Callable[[Any], AbstractContextManager[None]] = lambda pipeline: nullcontext()


def _free(
    family: Family,
    pipeline: DiffusionPipeline,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    prompts: Prompts,
    scale: float,
) -> torch.Tensor:
    """One model's prediction [B, 4, 16, 16], guided by `scale` (1: the conditional pass alone)."""
    n = len(noisy)
    hidden, pooled = prompts.hidden, prompts.pooled
    if scale != 1.0:
        noisy = torch.cat([noisy, noisy])
        hidden = torch.cat([hidden, prompts.null_hidden])
        pooled = torch.cat([pooled, prompts.null_pooled])
    out = family.predict(pipeline, noisy, timestep, hidden, pooled).float()
    return out if scale == 1.0 else out[n:] + scale * (out[:n] - out[n:])


def _guided(
    family: Family,
    pipeline: DiffusionPipeline,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    prompts: Prompts,
    guidance: Guidance,
) -> torch.Tensor:
    """ε + γ(ε_LoRA - ε), of passes whose coefficient is not zero."""
    denoiser = getattr(pipeline, family.denoiser)
    total = torch.zeros_like(noisy)
    if guidance.gamma != 1.0:
        # A pipeline without any LoRA is the base already.
        if pipeline.get_active_adapters():
            denoiser.disable_adapters()
        base = _free(family, pipeline, noisy, timestep, prompts, guidance.base_scale)
        total = total + (1 - guidance.gamma) * base
    if guidance.gamma != 0.0:
        denoiser.enable_adapters()
        adapted = _free(family, pipeline, noisy, timestep, prompts, guidance.lora_scale)
        total = total + guidance.gamma * adapted
    return total


@torch.no_grad()
def _batch(
    family: Family,
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: Guidance,
    steps: int,
) -> npt.NDArray[np.uint8]:
    encoded = family.encode(pipeline, prompts)
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(steps)
    noise = [torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(s)) for s in seeds]
    # Flow matching scales neither the noise nor what the model sees.
    latents = torch.stack(noise) * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        noisy = latents
        if hasattr(scheduler, "scale_model_input"):
            noisy = scheduler.scale_model_input(latents, timestep)
        prediction = _guided(family, pipeline, noisy, timestep, encoded, guidance)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    config = pipeline.vae.config
    latents = latents / float(config["scaling_factor"]) + float(config.get("shift_factor") or 0)
    return to_images(pipeline.vae.decode(latents).sample)


class Sampler:
    """An exported pipeline with a LoRA, in float32.

    Args:
        system: the kind of pipeline.
        lora: the folder of the LoRA.
        folder: the folder of the pipeline; the shipped one if not given.
    """

    def __init__(self, system: System, lora: Path, folder: Path | None = None) -> None:
        self.family = FAMILIES[system]
        kind = self.family.pipeline
        self.pipeline = kind.from_pretrained(
            str(folder or self.family.folder), torch_dtype=torch.float32
        )
        self.pipeline.load_lora_weights(str(lora))
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guidance: Guidance,
        steps: int = 20,
        fast: bool = False,
    ) -> npt.NDArray[np.uint8]:
        """Return pictures uint8 [N, 64, 64, 3], one for each prompt and seed.

        `fast` computes in bfloat16 if the CPU has it: for training data, not for measuring.
        """
        parts = []
        with mixed_precision() if fast else nullcontext(), self.family.prepared(self.pipeline):
            for i in range(0, len(prompts), BATCH):
                part = slice(i, i + BATCH)
                batch = (prompts[part], seeds[part], guidance, steps)
                parts.append(_batch(self.family, self.pipeline, *batch))
        return np.concatenate(parts)


def _encode_sdxl(pipeline: StableDiffusionXLPipeline, prompts: Sequence[str]) -> Prompts:
    hidden, null_hidden, pooled, null_pooled = pipeline.encode_prompt(
        list(prompts),
        do_classifier_free_guidance=True,
        negative_prompt=[""] * len(prompts),
    )
    return Prompts(hidden, pooled, null_hidden, null_pooled)


def _predict_sdxl(
    pipeline: StableDiffusionXLPipeline,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    added = {"text_embeds": pooled, "time_ids": torch.tensor([TIME_IDS]).expand(len(noisy), 6)}
    out: torch.Tensor = pipeline.unet(noisy, timestep, hidden, added_cond_kwargs=added).sample
    return out


def _encode_sd3(pipeline: StableDiffusion3Pipeline, prompts: Sequence[str]) -> Prompts:
    hidden, null_hidden, pooled, null_pooled = pipeline.encode_prompt(
        list(prompts), None, None, negative_prompt=[""] * len(prompts)
    )
    return Prompts(sd3_text.brief(hidden), pooled, sd3_text.brief(null_hidden), null_pooled)


def _predict_sd3(
    pipeline: StableDiffusion3Pipeline,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    times = (timestep / sd3.N_TIMES).expand(len(noisy))
    return sd3.predict(pipeline.transformer, noisy, times, hidden, pooled)


@contextmanager
def _brief_attention(pipeline: StableDiffusion3Pipeline) -> Iterator[None]:
    """Attend as in training: to one of the equal padding tokens, with the weight of all."""
    stock = pipeline.transformer.attn_processors
    sd3.attend_briefly(pipeline.transformer)
    try:
        yield
    finally:
        pipeline.transformer.set_attn_processor(stock)


FAMILIES: dict[System, Family] = {
    "sdxl": Family(StableDiffusionXLPipeline, SDXL, "unet", _encode_sdxl, _predict_sdxl),
    "sd3": Family(
        StableDiffusion3Pipeline, SD3, "transformer", _encode_sd3, _predict_sd3, _brief_attention
    ),
}
