"""What guidance costs: our CFG and AutoLoRA beside the standard pipeline and a naive loop.

On the miniatures, with the same LoRA, batch and steps, on two threads. All get the prompt
embeddings, so that only sampling and decoding are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance

from autolora_eval._progress import quiet_libraries
from autolora_eval.config.gpu_memory import choose_guidance_batching
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.schema import GuidanceBatching
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.sources.model_source import local_lora
from benchmarks.performance.measure import Row, in_turns, ratio, show

BENCHMARK = Path(__file__).parents[1] / "pixel_art_miniature.yaml"
STEPS, SIDE, ROUNDS, W, GAMMA = 20, 64, 5, 3.0, 1.5
BATCHES, THREADS = (1, 4), 2
MODELS: dict[str, Any] = {"SDXL": StableDiffusionXLPipeline, "SD3": StableDiffusion3Pipeline}
RATIOS = [
    ("CFG / standard pipeline", "cfg", "standard", "≤ 1.00"),
    ("AutoLoRA+CFG / naive four passes", "autolora", "naive", "≤ 0.80"),
    ("AutoLoRA+CFG / CFG", "autolora", "cfg", "≤ 1.7"),
    ("AutoLoRA+CFG, batching all / conditions", "all", "conditions", ""),
]
Run = Callable[[], object]


def competitors(model: str, batch: int) -> dict[str, Run]:
    """Return what makes one batch of images in each way."""
    resolved = load_benchmark(BENCHMARK).models[f"{model} miniature"]
    assert resolved.size == (SIDE, SIDE)
    ours = LoraPipeline.load(resolved, torch.device("cpu"), torch.float32)
    standard = MODELS[model].from_pretrained(resolved.pipeline.location, torch_dtype=torch.float32)
    standard.load_lora_weights(str(local_lora(resolved.loras[0].source)))
    standard.set_progress_bar_config(disable=True)
    prompts, seeds = [f"a red apple {n}" for n in range(batch)], range(batch)
    encoded = _encoded(standard, prompts)

    chosen = choose_guidance_batching("auto", resolved, "float32", batch, card=0)

    def guided(guider: BaseGuidance, batching: GuidanceBatching = chosen) -> object:
        ours.guidance_batching = batching
        steps = {"num_inference_steps": STEPS, "size": (SIDE, SIDE)}
        return ours.sample(prompts, seeds, guider, **steps)  # type: ignore[arg-type]

    def by_pipeline() -> object:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        sizes = {"width": SIDE, "height": SIDE, "num_inference_steps": STEPS}
        return standard(**encoded, guidance_scale=W, generator=generators, **sizes).images

    return {
        "standard": by_pipeline,
        "naive": lambda: naive(standard, encoded, seeds),
        "cfg": lambda: guided(ClassifierFreeGuidance(guidance_scale=W)),
        "autolora": lambda: guided(AutoLoRAGuidance(GAMMA, W)),
        "conditions": lambda: guided(AutoLoRAGuidance(GAMMA, W), "conditions"),
        "all": lambda: guided(AutoLoRAGuidance(GAMMA, W), "all"),
    }


@torch.no_grad()
def naive(pipe: Any, encoded: dict[str, torch.Tensor], seeds: Sequence[int]) -> object:  # noqa: ANN401
    """Make images with equation (7) in four passes a step, switching the LoRA off and on."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    is_xl = isinstance(pipe, StableDiffusionXLPipeline)
    denoiser = pipe.unet if is_xl else pipe.transformer
    factor = pipe.vae_scale_factor
    shape = (1, 4, SIDE // factor, SIDE // factor)
    latents = torch.cat([torch.randn(shape, generator=one) for one in generators])
    scheduler = pipe.scheduler
    scheduler.set_timesteps(STEPS)
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    ids = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]], dtype=torch.float32)

    def predict(null: str, t: torch.Tensor) -> torch.Tensor:
        hidden, pooled = encoded[f"{null}prompt_embeds"], encoded[f"{null}pooled_prompt_embeds"]
        if is_xl:
            added = {"text_embeds": pooled, "time_ids": ids.expand(len(latents), 6)}
            x = scheduler.scale_model_input(latents, t)
            made = denoiser(x, t, hidden, added_cond_kwargs=added, return_dict=False)[0]
        else:
            time = t.expand(len(latents))
            made = denoiser(latents, hidden, pooled, time, return_dict=False)[0]
        return made  # type: ignore[no-any-return]

    for t in scheduler.timesteps:
        denoiser.disable_lora()
        base, base_null = predict("", t), predict("negative_", t)
        denoiser.enable_lora()
        lora, lora_null = predict("", t), predict("negative_", t)
        base = base_null + W * (base - base_null)
        lora = lora_null + W * (lora - lora_null)
        latents = scheduler.step(base + GAMMA * (lora - base), t, latents, return_dict=False)[0]
    config = pipe.vae.config
    shift = getattr(config, "shift_factor", None) or 0.0
    decoded = pipe.vae.decode(latents / config.scaling_factor + shift, return_dict=False)[0]
    return pipe.image_processor.postprocess(decoded)


def _encoded(pipe: Any, prompts: list[str]) -> dict[str, torch.Tensor]:  # noqa: ANN401
    more = {} if isinstance(pipe, StableDiffusionXLPipeline) else {"prompt_3": None}
    nothing = [""] * len(prompts)
    with torch.no_grad():
        made = pipe.encode_prompt(
            prompts,
            prompt_2=None,
            negative_prompt=nothing,
            do_classifier_free_guidance=True,
            **more,
        )
    prefixes = ("prompt", "negative_prompt", "pooled_prompt", "negative_pooled_prompt")
    return {f"{prefix}_embeds": one for prefix, one in zip(prefixes, made, strict=True)}


def rows(model: str, batch: int) -> list[Row]:
    """Return the ratios of one model."""
    with quiet_libraries():
        seconds = in_turns(competitors(model, batch), ROUNDS)
    case = f"{model}, batch of {batch}"
    return [ratio(f"{case}: {title}", seconds[a], seconds[b], goal) for title, a, b, goal in RATIOS]


def main() -> None:
    """Measure on two threads."""
    torch.set_num_threads(THREADS)
    show([row for model in MODELS for batch in BATCHES for row in rows(model, batch)])


if __name__ == "__main__":
    main()
