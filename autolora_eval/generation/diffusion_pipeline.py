"""A base pipeline with its LoRA, sampled by any guider: all that touches Modular Diffusers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModularPipeline
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance
from diffusers.modular_pipelines import PipelineState
from PIL import Image
from safetensors import safe_open

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._sources import Source, cached, first_line, local_lora
from autolora_eval.config.inputs import INDEX, WHAT_WORKS, no_guider, pipeline_class
from autolora_eval.config.load import ResolvedModel
from autolora_eval.config.schema import Model
from autolora_eval.generation.guards import PredictionCheck
from autolora_eval.guidance.adapters import adapter_layers, adapters_off
from autolora_eval.guidance.denoiser_state import restored

ADAPTER = "autolora_eval"
_DOWN = re.compile(r"(lora_A|lora_down|lora\.down|_lora\.down)\b")
# The denoiser's name for each embedding that a text-encoder block makes.
_EMBEDDINGS = {
    "prompt_embeds": "prompt_embeds",
    "encoder_hidden_states": "prompt_embeds",
    "text_embeds": "pooled_prompt_embeds",
}


@dataclass(frozen=True)
class Sample:
    """What one call of the denoising loop made.

    Attributes:
        images: RGB, one a prompt.
        nfe: denoiser passes really made for each image.
    """

    images: list[Image.Image]
    nfe: int


class LoraPipeline:
    """A modular text-to-image pipeline with one LoRA.

    Args:
        pipe: the pipeline, all components loaded and on their device, the LoRA in it.
        lora_tensors: number of LoRA layers, for the manifest.
        lora_scale: the scale that the LoRA is at.
    """

    def __init__(self, pipe: ModularPipeline, lora_tensors: int, lora_scale: float) -> None:
        self.pipe = pipe
        self.lora_tensors = lora_tensors
        self.lora_scale = lora_scale

    @classmethod
    def load(cls, model: ResolvedModel, device: torch.device, dtype: torch.dtype) -> LoraPipeline:
        """Load a pipeline folder or hub id, and its LoRA at its scale.

        Raises:
            AutoLoRAEvalError: the pipeline is none that a guider can act on, is damaged, or not
                all of the LoRA fits it.
        """
        spec = model.spec
        pipe = open_pipeline(model.pipeline, spec)
        networks = [
            name
            for name, component in pipe._component_specs.items()
            if isinstance(component.type_hint, type)
            and issubclass(component.type_hint, torch.nn.Module)
        ]
        options: dict[str, Any] = {"use_safetensors": dict.fromkeys(networks, True)}
        if spec.variant is not None:
            options["variant"] = dict.fromkeys(networks, spec.variant)
        # from_pretrained keeps the revision for model_index.json alone.
        if spec.revision is not None:
            options["revision"] = spec.revision
        pipe.load_components(dtype=dtype, **options)
        _refuse_gaps(pipe, model.pipeline.name)
        _refuse_another_size(pipe, model)
        # The product draws one bar for the whole stage; diffusers would draw one a batch.
        pipe.set_progress_bar_config(disable=True)
        tensors = _load_lora(pipe, local_lora(model.lora), model.lora.name)
        pipe.set_adapters(ADAPTER, spec.lora.scale)
        pipe.to(device)
        return cls(pipe, tensors, spec.lora.scale)

    def set_lora_scale(self, scale: float) -> None:
        """Put the LoRA at another scale, as if it had been loaded at it; no weight is touched."""
        if scale != self.lora_scale:
            self.pipe.set_adapters(ADAPTER, scale)
            self.lora_scale = scale

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that the guider guides."""
        network: torch.nn.Module = getattr(self.pipe, "unet", None) or self.pipe.transformer
        return network

    @property
    def text_encoders(self) -> list[torch.nn.Module]:
        """Every text encoder."""
        names = [name for name in self.pipe.component_names if name.startswith("text_encoder")]
        return [module for name in names if (module := getattr(self.pipe, name)) is not None]

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guider: BaseGuidance,
        *,
        num_inference_steps: int,
        size: tuple[int, int],
        null_prompt: str = "",
        output: str = "images",
    ) -> Any:  # noqa: ANN401
        """Run the denoising loop for one batch.

        Every image has a generator of its own on the CPU, seeded by its seed: its initial noise
        is bitwise the same for every guider, batch and device.

        Args:
            prompts: one an image.
            seeds: one an image.
            guider: a fresh guider; it is not used again.
            num_inference_steps: denoising steps.
            size: (width, height) in pixels.
            null_prompt: ∅ of equation (4); always passed on, since SD3 runs without any CFG
                if it is left out, and SDXL takes zero embeddings for it.
            output: `images`, or the name of another output of the pipeline such as `latents`.

        Returns:
            A `Sample`, or what the pipeline returns for another `output`.

        Raises:
            UnusablePredictionError: what the guider makes is none that can be gone on with.
        """
        null = [null_prompt] * len(prompts)
        check = PredictionCheck(guider)
        with (
            contextlib.chdir("."),  # of somebody else's code: put back after it
            self._guided_by(guider, list(prompts), null),
            _counted(self.denoiser) as calls,
        ):
            images = self.pipe(
                prompt=list(prompts),
                negative_prompt=null,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                num_inference_steps=num_inference_steps,
                width=size[0],
                height=size[1],
                output=output,
            )
        check.refuse_what_is_not_finite()
        return Sample(images, calls[0]) if output == "images" else images

    def unguided_latents(self, size: tuple[int, int], lora_scale: float) -> torch.Tensor:
        """Return what the model with its LoRA makes of one noise in one step: [1, C, H, W].

        Args:
            size: (width, height) in pixels.
            lora_scale: α of equation (2).
        """
        self.set_lora_scale(lora_scale)
        latents: torch.Tensor = self.sample(
            ["a canary"],
            [0],
            ClassifierFreeGuidance(guidance_scale=1.0),
            num_inference_steps=1,
            size=size,
            output="latents",
        )
        return latents

    @contextmanager
    def _guided_by(
        self, guider: BaseGuidance, prompts: list[str], null: list[str]
    ) -> Iterator[None]:
        """Put a guider in, and leave no trace of it on the denoiser, whatever happens.

        The guider is not asked to clean up: it may be what failed.
        """
        with restored(self.denoiser):
            self.pipe.update_components(guider=guider)
            if hasattr(guider, "set_base_inputs"):
                guider.set_base_inputs(self.base_inputs(prompts, null))
            yield

    def base_inputs(
        self, prompts: list[str], null: list[str]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
        """Return the base branch's embeddings: those of the text encoders with LoRA off.

        Args:
            prompts: one an image.
            null: the null prompt, one an image.

        Returns:
            (conditional, unconditional) by the denoiser's input names; empty if the LoRA leaves
            the text encoders alone, so that both branches share the pipeline's own embeddings.
        """
        if not any(adapter_layers(encoder) for encoder in self.text_encoders):
            return {}
        state = PipelineState()
        # Z-Image's block writes its chat template into the lists that it is given.
        state.set("prompt", list(prompts))
        state.set("negative_prompt", list(null))
        with adapters_off(*self.text_encoders), torch.no_grad():
            self.pipe.blocks.sub_blocks["text_encoder"](self.pipe, state)
        return {
            name: (state.get(made), state.get(f"negative_{made}"))
            for name, made in _EMBEDDINGS.items()
            if state.get(made) is not None
        }


def open_pipeline(pipeline: Source, spec: Model) -> ModularPipeline:
    """Read a pipeline's configuration; no weights are loaded.

    Raises:
        AutoLoRAEvalError: it is none that makes pictures of a text, or it takes no guider, or no
            null prompt where the benchmark states one.
        OSError: it is on the hub, which cannot be reached.
    """
    try:
        pipe = ModularPipeline.from_pretrained(
            pipeline.location,
            workflow="text2image",
            revision=spec.revision,
            trust_remote_code=False,
        )
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise AutoLoRAEvalError(_why_not(pipeline, error)) from error
    if "guider" not in pipe.component_names:
        raise AutoLoRAEvalError(no_guider(pipeline.name, type(pipe).__name__))
    if spec.null_prompt and "negative_prompt" not in pipe.blocks.input_names:
        raise AutoLoRAEvalError(
            f"'{pipeline.name}' is a {type(pipe).__name__}, which takes no null prompt but "
            f"its own (got '{spec.null_prompt}'). Remove null_prompt."
        )
    return pipe


def _why_not(pipeline: Source, error: Exception) -> str:
    """Return the message for a pipeline that cannot be opened, from what diffusers says of it."""
    index = cached(pipeline, INDEX)
    name = pipeline_class(index, pipeline.name) if index else "pipeline without an index"
    version = f"diffusers {diffusers.__version__}"
    if isinstance(error, AttributeError):
        why = f"says that it is a '{name}', which {version} does not know."
    elif isinstance(error, NotImplementedError) or "orkflow" in str(error):
        why = f"is a {name}, for which {version} has no way from a text alone to a picture."
    elif "blocks" in str(error):
        why = (
            f"is a {name}, for which {version} has no modular pipeline, so that no guidance method "
            "can act on it."
        )
    else:
        why = f"is a {name} that cannot be opened: {first_line(error).rstrip('.')}."
    return f"'{pipeline.name}' {why} {WHAT_WORKS}"


def _refuse_gaps(pipe: ModularPipeline, reference: str) -> None:
    """Refuse a pipeline of which a part could not be loaded.

    diffusers only logs that, and SD3 then samples without the text encoder that is missing.
    """
    lost = [
        name
        for name, part in pipe._component_specs.items()
        if part.default_creation_method == "from_pretrained"
        and part.pretrained_model_name_or_path
        and part.type_hint is not None
        and getattr(pipe, name, None) is None
    ]
    if lost:
        raise AutoLoRAEvalError(
            f"'{reference}': {', '.join(lost)} could not be loaded: files are missing, damaged, "
            "or not .safetensors. Fetch the model anew, or write it with save_pretrained."
        )


def _refuse_another_size(pipe: ModularPipeline, model: ResolvedModel) -> None:
    """Refuse to sample a hub's pipeline at a size that nobody stated and that is not its own."""
    own = (getattr(pipe, "default_width", None), getattr(pipe, "default_height", None))
    stated = model.spec.width is not None and model.spec.height is not None
    if model.pipeline.kind == "hub" and not stated and None not in own and own != model.size:
        raise AutoLoRAEvalError(
            f"'{model.pipeline.name}' makes images of {own[0]}×{own[1]} pixels, and the plan "
            f"took them for {model.size[0]}×{model.size[1]}. State width and height of the model."
        )


def _load_lora(pipe: ModularPipeline, file: Path, reference: str) -> int:
    """Load a LoRA file in diffusers', peft's or kohya's names; all of it must find its layer.

    diffusers only warns about keys that fit nothing, and then samples with part of a LoRA.

    Returns:
        The number of layers that the LoRA tunes.
    """
    try:
        with safe_open(file, framework="pt") as weights:
            stated = sum(bool(_DOWN.search(key)) for key in weights.keys())  # noqa: SIM118
        converted = pipe.lora_state_dict(str(file), unet_config=_unet_config(pipe))
        if isinstance(converted, tuple):
            converted = converted[0]
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=ADAPTER)
    except (ValueError, KeyError, RuntimeError) as error:
        raise AutoLoRAEvalError(
            f"the LoRA '{reference}' does not fit this pipeline: {str(error)[:300]}"
        ) from error
    wanted = {key: tensor for key, tensor in converted.items() if _DOWN.search(key)}
    homeless = _without_a_layer(wanted, _loaded_matrices(pipe))
    if not wanted or homeless or len(wanted) < stated:
        unused = max(len(homeless), stated - len(wanted))
        raise AutoLoRAEvalError(
            f"{unused} of the {max(stated, len(wanted))} layers of the LoRA '{reference}' do not "
            f"fit this pipeline{f', such as {homeless[0]}' if homeless else ''}. Was it made for "
            "another base model, or is it a kind other than LoRA (LoHa, LoKr)?"
        )
    return len(wanted)


def _loaded_matrices(pipe: ModularPipeline) -> list[torch.Tensor]:
    """Return the matrix A of equation (2) of every layer that carries the adapter.

    Layers alone prove nothing: peft puts an empty adapter on every layer of a tuned name.
    """
    components = [getattr(pipe, name) for name in pipe.component_names]
    networks = [part for part in components if isinstance(part, torch.nn.Module)]
    layers = [layer for network in networks for layer in adapter_layers(network)]
    return [layer.lora_A[ADAPTER].weight for layer in layers if ADAPTER in layer.lora_A]


def _without_a_layer(
    wanted: Mapping[str, torch.Tensor], loaded: Sequence[torch.Tensor]
) -> list[str]:
    """Return the names of the file's matrices that no layer has taken over."""
    homes: dict[torch.Size, list[torch.Tensor]] = {}
    for tensor in loaded:
        homes.setdefault(tensor.shape, []).append(tensor.detach().cpu())
    return [
        name
        for name, tensor in wanted.items()
        if not any(torch.equal(home, tensor.to(home.dtype)) for home in homes.get(tensor.shape, []))
    ]


def _unet_config(pipe: ModularPipeline) -> Any:  # noqa: ANN401
    unet = getattr(pipe, "unet", None)
    return None if unet is None else unet.config


@contextmanager
def _counted(denoiser: torch.nn.Module) -> Iterator[list[int]]:
    """Count the denoiser's forward passes within the block."""
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    handle = denoiser.register_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()
