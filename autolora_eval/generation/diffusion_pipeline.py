"""A text-to-image pipeline with its LoRAs, sampled with any guider.

In a run, only this module, `pipeline_loading` and `sampling_loop` call Modular Diffusers, whose
guider interface is experimental. Its known defects are worked around there and named in comments,
with the file of diffusers 0.42 in
https://github.com/huggingface/diffusers/tree/v0.42.1/src/diffusers.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import ModularPipeline
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance
from PIL import Image

from autolora_eval._files import Json
from autolora_eval.config.gpu_memory import GIB, model_memory
from autolora_eval.config.inputs import ResolvedModel
from autolora_eval.config.lora_layers import with_lora_files
from autolora_eval.config.lora_settings import Component
from autolora_eval.config.schema import GuidanceBatching
from autolora_eval.generation.lora import load_lora
from autolora_eval.generation.pipeline_loading import leave_device, load_pipeline, place
from autolora_eval.generation.sampling_loop import (
    Embeddings,
    PredictionCheck,
    PromptEmbeddings,
    checked_images,
    global_seed,
    own_noise,
    tell_steps,
)
from autolora_eval.guidance.batched_passes import batched, predicts_independently
from autolora_eval.guidance.denoiser_state import (
    adapter_layers,
    adapters_off,
    merge_lora,
    restored,
    set_lora_scale,
)

ADAPTER = "autolora_eval"
# The prompt of the latents that show whether a model has changed.
CANARY = "a canary"
# The most graphs of a compiled model: LoRAs on or off, sizes of passes, and a scale that varies.
GRAPHS = 64
# The denoiser's input name for each embedding that a text-encoder block makes.
_EMBEDDINGS = {
    "prompt_embeds": "prompt_embeds",
    "encoder_hidden_states": "prompt_embeds",
    "text_embeds": "pooled_prompt_embeds",
}


@dataclass(frozen=True)
class Sample:
    """The result of one call of the denoising loop.

    Attributes:
        images: RGB images, one per prompt.
        nfe: function evaluations of the denoiser per image, counted while it ran.
    """

    images: list[Image.Image]
    nfe: int


class LoraPipeline:
    """A modular text-to-image pipeline with any number of LoRAs.

    Args:
        pipe: the pipeline with all components loaded.
        clip_skip: layers of the CLIP encoders to skip; None for the pipeline's own choice.
        guidance_batching: which predictions for an image share a denoiser pass.

    Attributes:
        lora_layers: the number of layers that each LoRA changes, for the manifest.
        lora_scales: the current scales of the LoRAs, without those merged into the base model.
    """

    def __init__(
        self,
        pipe: ModularPipeline,
        clip_skip: int | None = None,
        guidance_batching: GuidanceBatching = "conditions",
    ) -> None:
        self.pipe = pipe
        self.guidance_batching = guidance_batching
        self.lora_layers: list[int] = []
        self.lora_scales: tuple[float, ...] = ()
        self.embeddings = PromptEmbeddings(pipe, clip_skip)
        self._eager: Callable[[], AbstractContextManager[Any]] = nullcontext

    @classmethod
    def load(
        cls,
        model: ResolvedModel,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int = 1,
        guidance_batching: GuidanceBatching = "conditions",
    ) -> LoraPipeline:
        """Load a pipeline from a folder or the hub, and its LoRAs at their scales.

        Args:
            model: the model.
            device: where it runs.
            dtype: its precision.
            batch_size: the number of images in a batch, for which memory is left free.
            guidance_batching: which predictions for an image share a denoiser pass.

        Raises:
            AutoLoRAEvalError: if no guider can act on the pipeline, the pipeline is damaged, or a
                part of a LoRA does not fit it.
        """
        model = with_lora_files(model)
        pipe = load_pipeline(model, dtype)
        loaded = cls(pipe, model.spec.clip_skip, guidance_batching)
        loaded._load_loras(model)
        # One image at a time: decoding takes more memory than anything else.
        if hasattr(pipe.vae, "enable_slicing"):
            pipe.vae.enable_slicing()
        if model.spec.vae_tiling:
            pipe.vae.enable_tiling()
        if model.spec.channels_last:
            for network in (loaded.denoiser, pipe.vae):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if model.spec.compile:
            loaded._compile()
        memory = model_memory(model, str(dtype).removeprefix("torch."))
        working = memory.batched(guidance_batching).working(batch_size) if memory else 4 * GIB
        place(pipe, device, model.spec.offload, working)
        # Blocks ask for the device four times a batch, and each time diffusers looks for it in all
        # layers of all networks (modular_pipelines/modular_pipeline.py).
        kind, found = type(pipe), pipe._execution_device
        pipe.__class__ = type(kind.__name__, (kind,), {"_execution_device": found})
        return loaded

    def _compile(self) -> None:
        """Compile the denoiser, without torch's silent return to eager code after 8 graphs.

        It counts the graphs of all models of a process together: diffusers wraps each denoiser's
        `forward` in the same function (utils/peft_utils.py).
        """
        torch._dynamo.reset()
        # The names of torch 2.6, which later versions keep beside new ones.
        limits = {"cache_size_limit": GRAPHS, "fail_on_cache_limit_hit": True}
        compiled = torch.compile(self.denoiser.forward)
        self.denoiser.forward = torch._dynamo.config.patch(limits)(compiled)
        self._eager = partial(torch.compiler.set_stance, "force_eager")

    def _load_loras(self, model: ResolvedModel) -> None:
        """Merge the LoRAs of the base model into its weights, then load the others."""
        networks = self.networks
        loras = [
            (spec, lora.file)
            for spec, lora in zip(model.spec.loras, model.loras, strict=True)
            if lora.file is not None
        ]
        for spec, file in loras:
            if spec.part_of_base:
                load_lora(networks, file, ADAPTER)
                merge_lora(list(networks.values()), ADAPTER, spec.scale)
        for spec, file in loras:
            if not spec.part_of_base:
                self.lora_scales += (1.0,)
                load_lora(networks, file, self.adapters[-1])
        self.lora_layers = [len(file.layers) for _, file in loras]
        self.set_lora_scales(model.spec.lora_scales)

    @property
    def adapters(self) -> list[str]:
        """The names of the LoRAs in peft."""
        return [f"{ADAPTER}_{n}" if n else ADAPTER for n in range(len(self.lora_scales))]

    def set_lora_scales(self, scales: tuple[float, ...]) -> None:
        """Set the LoRA scales, with the same bits as if the LoRAs had been loaded at them."""
        if scales != self.lora_scales:
            self.lora_scales = scales
            for adapter, scale in zip(self.adapters, scales, strict=True):
                set_lora_scale(list(self.networks.values()), adapter, scale)

    @property
    def denoiser(self) -> torch.nn.Module:
        """The UNet or transformer that guiders act on."""
        network: torch.nn.Module = getattr(self.pipe, "unet", None) or self.pipe.transformer
        return network

    @property
    def networks(self) -> dict[Component, torch.nn.Module]:
        """The networks that a LoRA may tune."""
        encoders = {
            name: module
            for name in typing.get_args(Component)
            if (module := getattr(self.pipe, name, None)) is not None
        }
        return {"denoiser": self.denoiser, **encoders}

    @property
    def text_encoders(self) -> list[torch.nn.Module]:
        """All text encoders."""
        names = [name for name in self.pipe.component_names if name.startswith("text_encoder")]
        return [module for name in names if (module := getattr(self.pipe, name)) is not None]

    @property
    def _tunes_text_encoders(self) -> bool:
        return any(adapter_layers(encoder) for encoder in self.text_encoders)

    def description(self) -> Json:
        """Return what the manifest records. Infinite numbers of the scheduler are text."""
        scheduler = self.pipe.scheduler
        config = json.loads(scheduler.to_json_string(), parse_constant=str)
        own = {key: value for key, value in config.items() if not key.startswith("_")}
        return {
            "pipeline_class": type(self.pipe).__name__,
            "scheduler": {"class": type(scheduler).__name__, **own},
            "lora_layers": self.lora_layers,
        }

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guider: BaseGuidance,
        *,
        num_inference_steps: int,
        size: tuple[int, int],
        negative_prompts: Sequence[str] | None = None,
        output: str = "images",
    ) -> Any:  # noqa: ANN401
        """Run the denoising loop for one batch.

        Each image has its own CPU generator with its seed, so its initial noise is bitwise the
        same for every guider, batch and device.

        Args:
            prompts: one per image.
            seeds: one per image.
            guider: a new guider. It is changed and must not be used again.
            num_inference_steps: the number of denoising steps.
            size: (width, height) in pixels.
            negative_prompts: ∅ of equation (4), one per image. Default: the empty prompt.
            output: `images`, or the name of another output of the pipeline. `latents` are a
                tensor [B, C, h, w] in the dtype of the pipeline.

        Returns:
            A `Sample` for `images`; otherwise the named output.

        Raises:
            UnusablePredictionError: if the guider returns a prediction of another type or shape,
                or with NaN or infinite values.
            UnusableImageError: if a decoded image has NaN or a single colour.
        """
        # SD3's blocks skip CFG silently if the negative prompt is None, and SDXL's blocks use zero
        # embeddings for it (modular_pipelines/stable_diffusion_3/encoders.py, …_xl/encoders.py).
        null = list(negative_prompts or [""] * len(prompts))
        check = PredictionCheck(guider)
        embeddings = self.encode(prompts, null)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        tell_steps(guider, self.pipe.scheduler)
        with (
            global_seed(seeds[0]),
            self.embeddings.known(embeddings),
            self._guided_by(guider, prompts, null),
            own_noise(self.pipe.scheduler, generators),
            _count_calls(self.denoiser) as calls,
        ):
            made = self.pipe(
                prompt=list(prompts),
                negative_prompt=null,
                generator=generators,
                num_inference_steps=num_inference_steps,
                width=size[0],
                height=size[1],
                output=output,
                output_type="np",
            )
        check.require_finite()
        return Sample(checked_images(made), calls[0]) if output == "images" else made

    def encode(self, prompts: Sequence[str], null: Sequence[str]) -> Embeddings:
        """Return the embeddings of a batch: text encoders with the LoRAs at their scales.

        Args:
            prompts: one per image.
            null: the negative prompts, one per image.
        """
        scales = self.lora_scales if self._tunes_text_encoders else None
        return self.embeddings.batch(prompts, null, scales)

    def release_text_encoders(self) -> None:
        """Move the text encoders off the GPU; the next prompt that is new brings them back."""
        for encoder in self.text_encoders:
            leave_device(encoder)

    def unguided_latents(
        self, size: tuple[int, int], lora_scales: tuple[float, ...]
    ) -> torch.Tensor:
        """Return the latents [1, C, h, w] of one fixed noise after one step without guidance.

        They change if the model changes.

        Args:
            size: (width, height) in pixels.
            lora_scales: α of equation (2), for each LoRA.
        """
        self.set_lora_scales(lora_scales)
        latents: torch.Tensor = self.sample(
            [CANARY],
            [0],
            ClassifierFreeGuidance(guidance_scale=1.0),
            num_inference_steps=1,
            size=size,
            output="latents",
        )
        return latents

    @contextmanager
    def _guided_by(
        self, guider: BaseGuidance, prompts: Sequence[str], null: Sequence[str]
    ) -> Iterator[None]:
        """Install a guider for the block, and restore the denoiser afterwards.

        A guider that raises leaves its hooks on the denoiser, so the guider's own clean-up is not
        enough. `guider.num_conditions` depends on the last step of the last call: hence a new
        guider for each call.
        """
        if hasattr(guider, "set_base_inputs"):
            guider.set_base_inputs(self.base_inputs(prompts, null))
        self.pipe.update_components(guider=guider)
        independent = predicts_independently(guider)
        if self.guidance_batching != "separate" and independent:
            with batched(guider, self.denoiser, self.guidance_batching == "all"):
                yield
        else:
            # Other guiders change layers at each step, which would be compiled each time.
            with restored(self.denoiser), nullcontext() if independent else self._eager():
                yield

    def base_inputs(
        self, prompts: Sequence[str], null: Sequence[str]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
        """Return the embeddings for the base model: text encoders with the LoRA off.

        With the embeddings of the tuned encoders, it would not be the base model:
        latents of SDXL were off by up to 1.75, instead of 2e-5.

        Args:
            prompts: one per image.
            null: the negative prompts, one per image.

        Returns:
            Input name of the denoiser → (conditional, unconditional), each [B, …]. Empty if the
            LoRA does not change a text encoder, so that both branches share the embeddings.
        """
        if not self._tunes_text_encoders:
            return {}
        with adapters_off(*self.text_encoders):
            made = self.embeddings.batch(prompts, null, "LoRA off")
        return {
            name: (made[output], made.get(f"negative_{output}"))
            for name, output in _EMBEDDINGS.items()
            if made.get(output) is not None
        }


@contextmanager
def _count_calls(denoiser: torch.nn.Module) -> Iterator[list[int]]:
    """Count the denoiser's forward passes within the block."""
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    handle = denoiser.register_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()
