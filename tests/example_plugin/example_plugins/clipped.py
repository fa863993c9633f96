"""A sampler: the pipeline as it is, from noise without its tails."""

from __future__ import annotations

from PIL import Image


def clipped_noise(prompt: str, seed: int, model, *, limit: float = 2.0) -> Image.Image:
    """Samples with CFG from noise clipped to [−limit, limit]."""
    width, height = model.size
    return model.pipeline(
        prompt,
        negative_prompt=model.negative_prompt,
        latents=model.noise(seed).clamp(-limit, limit),
        guidance_scale=model.guidance_scale,
        num_inference_steps=model.num_inference_steps,
        width=width,
        height=height,
    ).images[0]
