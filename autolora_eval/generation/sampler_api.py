"""The interface of samplers: what a sampler returns, and what it is given of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._progress import quiet_libraries
from autolora_eval.config.inputs import ResolvedModel
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.denoiser_state import DenoiserState, adapter_layers
from autolora_eval.sources.model_source import local_lora

__all__ = ["SampledImage", "Sampler", "SamplerModel"]

# Pipelines that draw their noise in the shape of the latents; others pack it first.
_UNPACKED_LATENTS = ("StableDiffusionXL", "StableDiffusion3")


@dataclass(frozen=True)
class SampledImage:
    """An image, and the number of function evaluations that it took.

    Attributes:
        image: RGB image of the model's size: PIL, or uint8 of shape [H, W, 3].
        nfe: function evaluations of the denoiser; None if not reported.
    """

    image: Image.Image | npt.NDArray[np.uint8]
    nfe: int | None = None


class Sampler(Protocol):
    """The interface of a sampler, which a benchmark names by `sampler:`. One call makes one image.

    A function is called for each image. All parameters after `model` are the method's parameters:

        def my_sampler(prompt, seed, model, *, strength: float = 1.0):
            return model.pipeline(prompt, latents=model.noise(seed), …).images[0]

    A class is instantiated once per cell with the method's parameters, and the instance is called
    for each image. Use a class to load a model of your own.
    """

    def __call__(
        self, prompt: str, seed: int, model: SamplerModel
    ) -> Image.Image | npt.NDArray[np.uint8] | SampledImage:
        """Make one image.

        Args:
            prompt: the prompt.
            seed: the same for all methods. The global generators of torch, NumPy and Python are
                seeded with it while the sampler runs, and restored afterwards.
            model: the base pipeline, the LoRAs and the settings.

        Returns:
            An RGB image of `model.size`: PIL, uint8 of shape [H, W, 3], or a `SampledImage` to
            report the cost. If the image has another size or type, or the sampler raises, the
            image is recorded as missing with the reason, and the run continues.
        """
        ...


class SamplerModel:
    """The model that a sampler uses. It is loaded on first use. Do not set its attributes.

    Each sampler has its own pipeline. Its changes to the pipeline do not affect other methods, and
    are undone after each image, except for weights that were changed in place.

    Attributes:
        name: the name of the model in tables.
        base: the base pipeline: the absolute path of a folder or file, or a hub id.
        revision: the commit, tag or branch of the base pipeline on the hub; or None.
        variant: the weight variant on the hub, such as `fp16`; or None.
        lora_scales: the scale of each of the `loras`, α of equation (2).
        num_inference_steps: the number of denoising steps.
        guidance_scale: the CFG scale for methods without a scale of their own.
        negative_prompt: the negative prompt of the image that is being made.
        clip_skip: the layers of the CLIP text encoders to skip, as standard pipelines count them;
            None for the pipeline's own choice.
        size: (width, height) that the image must have, in pixels.
        device: the device of the pipeline.
        dtype: the precision of the pipeline.
    """

    def __init__(self, model: ResolvedModel, shared: SamplerPipeline) -> None:
        self._model, self._shared, spec = model, shared, model.spec
        self.name, self.base = model.name, model.pipeline.location
        self.revision, self.variant = spec.revision, spec.variant
        self.lora_scales = tuple(lora.scale for lora in spec.loras)
        self.num_inference_steps = spec.num_inference_steps
        self.guidance_scale = spec.guidance_scale
        self.negative_prompt, self.clip_skip = spec.negative_prompt, spec.clip_skip
        self.size = model.size
        self.device, self.dtype = shared.device, shared.dtype

    @cached_property
    def loras(self) -> tuple[Path, ...]:
        """The local `.safetensors` files of the LoRAs, in the order of the benchmark."""
        return tuple(local_lora(lora.source) for lora in self._model.loras)

    @property
    def modular(self) -> diffusers.ModularPipeline:
        """The base pipeline with the LoRAs at their scales: the pipeline that guiders use."""
        return self._load().pipe

    @property
    def pipeline(self) -> diffusers.DiffusionPipeline:
        """The same components in the standard pipeline class, such as `StableDiffusionXLPipeline`.

        The class is the one that `model_index.json` names. The LoRAs are on, at their scales.
        """
        return self._shared.standard(self.modular)

    @property
    def denoiser(self) -> torch.nn.Module:
        """The UNet or transformer, with the LoRAs on."""
        return self._load().denoiser

    def _load(self) -> LoraPipeline:
        return self._shared.load(self._model.spec.lora_scales)

    def generator(self, seed: int) -> torch.Generator:
        """Return a new CPU generator with the seed, as all methods use it."""
        return torch.Generator("cpu").manual_seed(seed)

    def noise(self, seed: int) -> torch.Tensor:
        """Return the initial noise from which all guiders start at this seed.

        Returns:
            Standard normal noise of shape [1, C, h, w] of the latents, in the dtype and on the
            device of the pipeline. Schedulers multiply it by `init_noise_sigma`; standard
            pipelines do so if it is passed as `latents=`.

        Raises:
            AutoLoRAEvalError: if the pipeline is neither SDXL nor SD3.
        """
        pipeline = self.pipeline
        if not type(pipeline).__name__.startswith(_UNPACKED_LATENTS):
            raise AutoLoRAEvalError(
                f"noise() supports SDXL and SD3 pipelines, not {type(pipeline).__name__}. Use "
                "generator(seed) instead."
            )
        width, height = (side // int(pipeline.vae_scale_factor) for side in self.size)
        config: Any = self.denoiser.config
        shape = (1, int(config.in_channels), height, width)
        # Drawn on the CPU: a GPU draws other numbers from the same seed.
        noise = torch.randn(shape, generator=self.generator(seed), dtype=self.dtype)
        return noise.to(self.device)


class SamplerPipeline:
    """The pipeline of one sampler, loaded on first use, with a count of function evaluations.

    Attributes:
        loaded: the pipeline; None before its first use.
        n_rows: the rows of all batches that the denoiser evaluated. A batch with a conditional
            and a negative prompt counts as two function evaluations.
    """

    def __init__(self, model: ResolvedModel, device: torch.device, dtype: torch.dtype) -> None:
        self._model, self.device, self.dtype = model, device, dtype
        self.loaded: LoraPipeline | None = None
        self._standard: diffusers.DiffusionPipeline | None = None
        self._components: dict[str, Any] = {}
        self._states: list[DenoiserState] = []
        self._adapter_layers: list[BaseTunerLayer] = []
        self.n_rows = 0

    def load(self, lora_scales: tuple[float, ...]) -> LoraPipeline:
        """Return the pipeline; on the first call, load it with the LoRAs at these scales."""
        if self.loaded is None:
            with quiet_libraries():
                self.loaded = LoraPipeline.load(self._model, self.device, self.dtype)
            self.loaded.denoiser.register_forward_hook(self._count, with_kwargs=True)
            self._save_state(self.loaded, lora_scales)
        return self.loaded

    def standard(self, modular: diffusers.ModularPipeline) -> diffusers.DiffusionPipeline:
        """Return the standard pipeline with the components of the modular one."""
        if self._standard is None:
            location, revision = self._model.layout.location, self._model.spec.revision
            components = {name: getattr(modular, name, None) for name in modular.component_names}
            with quiet_libraries():
                config = diffusers.DiffusionPipeline.load_config(location, revision=revision)
                self._standard = diffusers.DiffusionPipeline.from_pretrained(
                    location,
                    revision=revision,
                    use_safetensors=True,
                    trust_remote_code=False,
                    **{name: part for name, part in components.items() if name in config},
                )
            self._standard.set_progress_bar_config(disable=True)
        return self._standard

    @contextmanager
    def restored(self, lora_scales: tuple[float, ...]) -> Iterator[None]:
        """Restore the pipeline after the block: layers, LoRAs, hooks and components.

        Otherwise an image would depend on the images that were made before it.

        Args:
            lora_scales: the scales of the LoRAs at which the block starts.
        """
        if self.loaded is not None:
            self._save_state(self.loaded, lora_scales)
        try:
            yield
        finally:
            if self.loaded is not None:
                self._restore(self.loaded)

    def _save_state(self, loaded: LoraPipeline, lora_scales: tuple[float, ...]) -> None:
        loaded.set_lora_scales(lora_scales)
        names = loaded.pipe.component_names
        self._components = {name: getattr(loaded.pipe, name, None) for name in names}
        self._states = [DenoiserState(network) for network in self._networks()]
        self._adapter_layers = self._current_adapter_layers()

    def _networks(self) -> list[torch.nn.Module]:
        parts = self._components.values()
        return [part for part in parts if isinstance(part, torch.nn.Module)]

    def _current_adapter_layers(self) -> list[BaseTunerLayer]:
        return [layer for network in self._networks() for layer in adapter_layers(network)]

    def _restore(self, loaded: LoraPipeline) -> None:
        # A sampler may also unload the layers that it has merged.
        layers = (*self._adapter_layers, *self._current_adapter_layers())
        if any(layer.merged for layer in layers):
            # Subtracting a merged LoRA leaves rounding errors. Load the pipeline again instead.
            self.loaded = self._standard = None
            self._components, self._states, self._adapter_layers = {}, [], []
            return
        for name, component in self._components.items():
            for pipe in (loaded.pipe, self._standard):
                if hasattr(pipe, name) and getattr(pipe, name) is not component:
                    setattr(pipe, name, component)
        for state in self._states:
            state.restore()

    def _count(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: object
    ) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        latents = next((tensor for tensor in tensors if tensor.ndim > 1), None)
        self.n_rows += 1 if latents is None else len(latents)
