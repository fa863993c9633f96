"""Samplers: methods that make an image by themselves, and what they are given of the model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from autolora_eval._devices import quiet_libraries
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._sources import local_lora
from autolora_eval.config.load import ResolvedModel
from autolora_eval.generation.diffusion_pipeline import ADAPTER, LoraPipeline
from autolora_eval.guidance.denoiser_state import DenoiserState

# Pipelines whose noise is a draw of the latents' own shape.
_UNPACKED = ("StableDiffusionXL", "StableDiffusion3")


@dataclass(frozen=True)
class SampledImage:
    """An image of which its sampler knows what it cost.

    Attributes:
        image: RGB, of the model's size.
        nfe: denoiser passes it took; None if that is not to be told.
    """

    image: Image.Image | npt.NDArray[np.uint8]
    nfe: int | None = None


class Sampler(Protocol):
    """What `sampler:` names in a benchmark file: anything that makes one image of a prompt.

    A function is called for every image, its further parameters being the method's:

        def my_sampler(prompt, seed, model, *, strength: float = 1.0):
            return model.pipeline(prompt, latents=model.noise(seed), …).images[0]

    A class is made once for a cell, with the method's parameters, and then called for every image:
    the place to load a model of one's own.
    """

    def __call__(
        self, prompt: str, seed: int, model: SamplerModel
    ) -> Image.Image | npt.NDArray[np.uint8] | SampledImage:
        """Make one image.

        Args:
            prompt: the prompt.
            seed: the same for every method. The global generators of torch, NumPy and Python are
                seeded by it too while the sampler runs, and put back after.
            model: base pipeline, LoRA and settings.

        Returns:
            RGB of `model.size`: a PIL image or uint8 [H, W, 3]; or a `SampledImage`, to declare
            what it cost. An image of another size or type, and an exception, are recorded as
            missing with the reason, and the run goes on.
        """
        ...


class SamplerModel:
    """The model that a sampler is asked to sample, loaded when it is first used.

    A sampler has a pipeline of its own: what it changes in it reaches no other method, and is put
    back after each image. Weights changed in place are not.

    Args:
        model: the model, its LoRA at the cell's scale.
        device: where it is to run.
        dtype: of the pipeline.
        shared: holds the pipeline of all cells of one method.
    """

    def __init__(
        self, model: ResolvedModel, device: torch.device, dtype: torch.dtype, shared: OwnPipeline
    ) -> None:
        self._model, self._shared = model, shared
        self.device, self.dtype = device, dtype

    @property
    def name(self) -> str:
        """The model's name in tables."""
        return self._model.name

    @property
    def base(self) -> str:
        """Where the base pipeline is: a folder's absolute path, or a hub id."""
        return self._model.pipeline.location

    @property
    def revision(self) -> str | None:
        """The base pipeline's commit, tag or branch on the hub."""
        return self._model.spec.revision

    @property
    def variant(self) -> str | None:
        """The weight variant on the hub, such as `fp16`."""
        return self._model.spec.variant

    @cached_property
    def lora(self) -> Path:
        """The LoRA's `.safetensors` file on this machine."""
        return local_lora(self._model.lora)

    @property
    def lora_scale(self) -> float:
        """The LoRA scale, α of equation (2)."""
        return self._model.spec.lora.scale

    @property
    def num_inference_steps(self) -> int:
        """Denoising steps."""
        return self._model.spec.num_inference_steps

    @property
    def guidance_scale(self) -> float:
        """The CFG scale of the methods that do not state their own."""
        return self._model.spec.guidance_scale

    @property
    def null_prompt(self) -> str:
        """The null prompt, ∅ of equation (4)."""
        return self._model.spec.null_prompt

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) that the image must have, in pixels."""
        return self._model.size

    @property
    def modular(self) -> diffusers.ModularPipeline:
        """The base pipeline with the LoRA at its scale, as the guiders have it."""
        loaded = self._shared.load(self._model, self.device, self.dtype)
        loaded.set_lora_scale(self.lora_scale)
        return loaded.pipe

    @property
    def pipeline(self) -> diffusers.DiffusionPipeline:
        """The same components in the pipeline class that model_index.json names.

        Such as `StableDiffusionXLPipeline`. The LoRA is on, at its scale: what is changed in it
        holds for one image.
        """
        return self._shared.standard(self.modular, self._model)

    @property
    def denoiser(self) -> torch.nn.Module:
        """The UNet or transformer, LoRA on."""
        _ = self.modular
        return self._shared.loaded.denoiser

    def generator(self, seed: int) -> torch.Generator:
        """Return a fresh generator on the CPU, seeded as every method's is."""
        return torch.Generator("cpu").manual_seed(seed)

    def noise(self, seed: int) -> torch.Tensor:
        """Return the initial noise that every guider starts from at this seed.

        Returns:
            Standard normal, [1, C, H, W] of the latents, in the pipeline's dtype and on its
            device. Schedulers multiply it by `init_noise_sigma`; standard pipelines do so with
            `latents=`.

        Raises:
            AutoLoRAEvalError: the pipeline is none of SDXL and SD3.
        """
        pipeline = self.pipeline
        if not type(pipeline).__name__.startswith(_UNPACKED):
            raise AutoLoRAEvalError(
                f"noise() knows the latents of SDXL and SD3, not of a {type(pipeline).__name__}. "
                "Use generator(seed)."
            )
        width, height = (side // int(pipeline.vae_scale_factor) for side in self.size)
        config: Any = self.denoiser.config
        shape = (1, int(config.in_channels), height, width)
        drawn = torch.randn(shape, generator=self.generator(seed), dtype=self.dtype)
        return drawn.to(self.device)


class OwnPipeline:
    """The pipeline of one sampler, loaded once if at all, and the count of its passes."""

    def __init__(self) -> None:
        self._loaded: LoraPipeline | None = None
        self._standard: diffusers.DiffusionPipeline | None = None
        self._denoiser: DenoiserState | None = None
        self._parts: dict[str, Any] = {}
        self.rows = 0

    @property
    def is_loaded(self) -> bool:
        """Whether the sampler has used it."""
        return self._loaded is not None

    @property
    def loaded(self) -> LoraPipeline:
        """The pipeline that was loaded."""
        assert self._loaded is not None
        return self._loaded

    def load(self, model: ResolvedModel, device: torch.device, dtype: torch.dtype) -> LoraPipeline:
        """Return the pipeline, loaded at the first call."""
        if self._loaded is None:
            with quiet_libraries():
                self._loaded = LoraPipeline.load(model, device, dtype)
            self._loaded.denoiser.register_forward_hook(self._count, with_kwargs=True)
            self._note(self._loaded)
        return self._loaded

    @contextmanager
    def kept(self, lora_scale: float) -> Iterator[None]:
        """Put the pipeline back as it was before the block, or as it was loaded in it.

        What a sampler does to layers, LoRA, hooks and scheduler for one image would else be found
        by the next, which then depended on which images were made before it.

        Args:
            lora_scale: that the block begins with.
        """
        if self._loaded is not None:
            self._loaded.set_lora_scale(lora_scale)
            self._note(self._loaded)
        try:
            yield
        finally:
            if self._loaded is not None:
                self._put_back(self._loaded)

    def _note(self, loaded: LoraPipeline) -> None:
        self._denoiser = DenoiserState(loaded.denoiser)
        names = loaded.pipe.component_names
        self._parts = {name: getattr(loaded.pipe, name, None) for name in names}

    def _put_back(self, loaded: LoraPipeline) -> None:
        for name, part in self._parts.items():
            for pipe in (loaded.pipe, self._standard):
                if hasattr(pipe, name) and getattr(pipe, name) is not part:
                    setattr(pipe, name, part)
        assert self._denoiser is not None
        self._denoiser.restore()
        try:
            loaded.pipe.enable_lora()
            loaded.pipe.set_adapters(ADAPTER, loaded.lora_scale)
        except (ValueError, KeyError, AttributeError, RuntimeError):  # it was unloaded
            self._loaded = self._standard = None

    def standard(
        self, modular: diffusers.ModularPipeline, model: ResolvedModel
    ) -> diffusers.DiffusionPipeline:
        """Return the modular pipeline's components in their standard pipeline."""
        if self._standard is None:
            parts = {name: getattr(modular, name, None) for name in modular.component_names}
            with quiet_libraries():
                config = diffusers.DiffusionPipeline.load_config(
                    model.pipeline.location, revision=model.spec.revision
                )
                known = {name: part for name, part in parts.items() if name in config}
                self._standard = diffusers.DiffusionPipeline.from_pretrained(
                    model.pipeline.location,
                    revision=model.spec.revision,
                    use_safetensors=True,
                    **known,
                )
            self._standard.set_progress_bar_config(disable=True)
        return self._standard

    def _count(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: object
    ) -> None:
        """Count the rows of a batch: conditional and null prompt in one call are two passes."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        latents = next((tensor for tensor in tensors if tensor.ndim > 1), None)
        self.rows += 1 if latents is None else len(latents)


class UnusableImageError(Exception):
    """What a sampler returned is no image of the model's size; the message says what it is."""


def usable(result: object, size: tuple[int, int]) -> tuple[Image.Image, int | None]:
    """Return what a sampler returned as an RGB image and the passes it declared.

    Args:
        result: a PIL image, uint8 [H, W, 3], or a `SampledImage` of one of them.
        size: (width, height) that it must have, in pixels.

    Raises:
        UnusableImageError: it is something else.
    """
    nfe: Any = None
    image: object = result
    if isinstance(result, SampledImage):
        image, nfe = result.image, result.nfe
    if nfe is not None and (isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 0):
        raise UnusableImageError(f"declared an nfe of {nfe!r:.40}: expected a whole number")
    if isinstance(image, np.ndarray):
        image = _picture(image)
    if not isinstance(image, Image.Image):
        raise UnusableImageError(
            f"returned {_article(type(image).__name__)}: expected a PIL image or uint8 [H, W, 3]"
        )
    if image.size != size:
        got, wanted = (f"{width}×{height}" for width, height in (image.size, size))
        raise UnusableImageError(f"returned an image of {got} pixels: expected {wanted}")
    return image.convert("RGB"), nfe


def _picture(array: npt.NDArray[Any]) -> Image.Image:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UnusableImageError("returned numbers that are not finite (NaN or infinite)")
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UnusableImageError(
            f"returned an array of {array.dtype} {list(array.shape)}: expected uint8 [H, W, 3]"
        )
    return Image.fromarray(array)


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'AEIOUaeiou' else 'a'} {noun}"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python for the block, and put them back.

    For samplers that draw from them: one image must not depend on those made before it. The
    working folder is put back too.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with chdir("."), torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
