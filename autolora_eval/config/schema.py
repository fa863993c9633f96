"""The benchmark file as typed models: every key with its type, range and default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from autolora_eval._text import first_few
from autolora_eval._yaml import (
    ENTRY_TAG,
    FILE_TAG,
    LIST_TAG,
    MAP_TAG,
    TEXT_TAG,
    DType,
    FiniteFloat,
    Label,
    Name,
    Prompt,
    Ref,
    StrictModel,
    matching,
)
from autolora_eval.scoring.judges.config import JudgeConfig

NegativePrompt = Annotated[str, Field(max_length=10_000)]


class PromptEntry(StrictModel):
    """A prompt with its own negative prompt."""

    prompt: Prompt
    """The prompt."""
    negative_prompt: NegativePrompt | None = None
    """Replaces the negative prompt of every model for this prompt."""

    @model_validator(mode="before")
    @classmethod
    def _is_not_a_text(cls, value: object) -> object:
        if isinstance(value, dict) and not value.keys() & {"prompt", "negative_prompt"}:
            found = first_few([f"'{key}'" for key in value], 3) or "nothing"
            raise ValueError(
                f"no key 'prompt' (found {found}). A text with ': ' must be in quotation marks."
            )
        return value


PromptList = list[
    Annotated[
        Annotated[Prompt, Tag(TEXT_TAG)] | Annotated[PromptEntry, Tag(MAP_TAG)],
        Discriminator(lambda one: MAP_TAG if isinstance(one, dict | PromptEntry) else TEXT_TAG),
    ]
]

Offload = Literal["none", "auto", "model"]
GuidanceBatching = Literal["auto", "separate", "conditions", "all"]


class Seeds(StrictModel):
    """The seeds of every prompt, the same for every method."""

    start: int = Field(default=0, ge=0, le=2**53)
    """The first seed."""
    count: int = Field(ge=1, le=1_000_000)
    """The number of consecutive seeds."""

    def values(self) -> range:
        """Return the seeds."""
        return range(self.start, self.start + self.count)


class Lora(StrictModel):
    """A LoRA: a `.safetensors` file, a folder with one, or a hub id."""

    path: Ref
    """A file, a folder, a hub id, or `miniature:NAME`."""
    weight_name: Name | None = None
    """The file to use if the folder or hub repository has several."""
    revision: Name | None = None
    """Commit, tag or branch on the hub."""
    scale: FiniteFloat = Field(default=1.0, gt=0.0, le=10.0)
    """The LoRA scale, α of equation (2)."""
    part_of_base: bool = False
    """Whether the LoRA is merged into the base model, so that AutoLoRA's base model has it too. Use
    it for a LoRA that reduces the number of steps, beside the LoRA that is studied.
    """
    obtain: str | None = Field(default=None, min_length=1, max_length=1000, exclude=True)
    """How to get a file that cannot be downloaded automatically. With this key, `plan` only reports
    a missing file, and `run` refuses to start. `{place}` is replaced by the file's path.
    """


Loras = Annotated[
    Annotated[Lora, Tag(ENTRY_TAG)]
    | Annotated[list[Lora], Tag(LIST_TAG), Field(min_length=1, max_length=16)],
    Discriminator(lambda value: LIST_TAG if isinstance(value, list) else ENTRY_TAG),
]


class Scheduler(StrictModel):
    """A scheduler of diffusers: its `class`, and options that its constructor takes."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"properties": {"class": {"type": "string"}}, "required": ["class"]},
    )

    @property
    def class_name(self) -> str:
        """The name of the class."""
        return str((self.model_extra or {}).get("class", ""))

    @property
    def options(self) -> dict[str, Any]:
        """The options that differ from those of the pipeline's own scheduler."""
        return {key: value for key, value in (self.model_extra or {}).items() if key != "class"}


class Model(StrictModel):
    """A base pipeline, its LoRAs, and its sampling settings."""

    pipeline: Ref
    """A pipeline folder, a hub id, `miniature:NAME`, or a single `.safetensors` file of SDXL or
    SD3, as ComfyUI and civitai use it.
    """
    pipeline_config: Ref | None = None
    """For a single file: a pipeline folder or hub id that has configurations and tokenizers."""
    revision: Name | None = None
    """Commit, tag or branch on the hub."""
    variant: Name | None = None
    """The weight variant, such as `fp16`, which is part of the names of the weight files."""
    vae: Ref | None = None
    """Another VAE: a folder with its `config.json`, or a hub id. Default: the pipeline's own."""
    text_encoder_3: Literal["own"] | None = "own"
    """`null` leaves out the third text encoder of SD3, T5, which takes the most memory."""
    lora: Loras | None = None
    """The LoRA, or a list of LoRAs that are added. Without one, methods guide the plain model, and
    those that need a LoRA are refused.
    """
    num_inference_steps: int = Field(default=50, ge=1, le=1000)
    """The number of denoising steps."""
    scheduler: Scheduler | None = None
    """`class: NAME` of a scheduler of diffusers, and its options. Default: the pipeline's own."""
    clip_skip: int | None = Field(default=None, ge=1, le=100)
    """The number of layers of the CLIP text encoders to skip, as in diffusers: 1 takes the hidden
    states one layer before those that SDXL and SD3 take.
    """
    guidance_scale: FiniteFloat = Field(default=5.0, ge=0.0, le=100.0)
    """The CFG scale of methods that do not set their own. 1 turns CFG off."""
    width: int | None = Field(default=None, ge=8, le=16_384, multiple_of=8)
    """The width in pixels. Default: that of the pipeline for a folder, 1024 for a hub id. A
    pipeline on the hub that has another size is refused when it is loaded.
    """
    height: int | None = Field(default=None, ge=8, le=16_384, multiple_of=8)
    """The height in pixels, with the same default as the width."""
    negative_prompt: NegativePrompt = ""
    """The negative prompt, ∅ of equation (4), of all prompts that do not have their own."""
    offload: Offload = "none"
    """Which networks are moved off the GPU. `none`: only the text encoders, after all prompts are
    encoded. `auto`: those whose memory another network needs. `model`: all except the one that
    runs. It changes no image, and has no effect on a CPU.
    """
    vae_tiling: bool = False
    """Decode images in overlapping tiles, which takes less memory. It changes images."""
    compile: bool = False
    """Run the denoiser through `torch.compile`. The first batch takes minutes longer, and all
    others less time. It affects the last bits of an image.
    """
    channels_last: bool = False
    """Store the denoiser and the VAE in torch's channels-last layout, which makes convolutions
    faster, on a CPU and on a GPU in half precision. It affects the last bits of an image.
    """

    @property
    def loras(self) -> tuple[Lora, ...]:
        """The LoRAs, in the order of the file."""
        if self.lora is None:
            return ()
        return tuple(self.lora) if isinstance(self.lora, list) else (self.lora,)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The components that are not loaded."""
        return ("text_encoder_3",) if self.text_encoder_3 is None else ()

    @property
    def lora_scales(self) -> tuple[float, ...]:
        """The scales of the LoRAs that are not part of the base model."""
        return tuple(lora.scale for lora in self.loras if not lora.part_of_base)

    def at_lora_scale(self, scale: float) -> Model:
        """Return the model at a scale of the sweep: of its only LoRA, or a factor for several.

        LoRAs that are part of the base model keep their scale.
        """
        several = len(self.lora_scales) > 1
        loras = [
            lora
            if lora.part_of_base
            else lora.model_copy(update={"scale": lora.scale * scale if several else scale})
            for lora in self.loras
        ]
        found = loras if isinstance(self.lora, list) else next(iter(loras), None)
        return self.model_copy(update={"lora": found})


class Features(StrictModel):
    """The extractor whose feature vectors the diversity compares, and its own parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    extractor: Ref = "transformers"
    """`transformers`, `timm`, `colours`, or the name or dotted path of a third-party extractor,
    whose parameters are other keys of this section.
    """
    model: Ref = "facebook/dinov2-giant"
    """The vision model: a folder, a hub id, or `miniature:NAME`."""
    revision: Name | None = None
    """Commit, tag or branch on the hub."""
    batch_size: int = Field(default=32, ge=1, le=4096)
    """Images per forward pass."""
    dtype: DType = "auto"
    """The precision of the extractor. `auto` is float32."""


class Benchmark(StrictModel):
    """One benchmark file: everything that determines the numbers of a run."""

    name: Annotated[
        str,
        matching(
            r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}",
            "up to 80 letters, digits, '.', '_' and '-', the first a letter or digit",
        ),
    ]
    """The name of the benchmark and of its run folder."""
    description: str = Field(default="", max_length=2000)
    """A sentence for the report."""
    prompts: Annotated[
        Annotated[Ref, Tag(FILE_TAG)] | Annotated[PromptList, Tag(LIST_TAG)],
        Discriminator(lambda value: LIST_TAG if isinstance(value, list) else FILE_TAG),
    ]
    """A list of prompts, a YAML or JSON file with such a list, or a text file with one prompt per
    line. An entry is a text, or `{prompt: …, negative_prompt: …}`.
    """
    seeds: Seeds
    """The seeds, the same for every prompt and method."""
    models: dict[Label, Model] = Field(min_length=1)
    """The models, by the names that tables show."""
    methods: dict[Label, dict[str, Any]] = Field(min_length=1)
    """The methods, by the names that tables show. Each has a `guider` or a `sampler` (a name or a
    dotted path) and its parameters, or `images` (a folder or listing of existing images).
    """
    sweep: dict[Label, list[Any]] = Field(default={})
    """Lists of values of parameters, combined with all models and methods. A method that does not
    have a parameter, or sets it itself, is not swept over it.
    """
    baseline: Name | None = None
    """The method that the others are compared with. Default: the first method."""
    features: Features = Features()
    """The feature extractor for diversity."""
    diversity: list[Ref] = Field(default=[], max_length=16)
    """Diversity metrics in addition to equation (8): `vendi`, `vendi_2`, `mean_distance`,
    `coverage`, or the name or dotted path of a third-party `DiversityMetric`.
    """
    diversity_reference: Name | None = None
    """The method whose images are the reference set of metrics such as `coverage`. It may be a
    method with `images`.
    """
    judge: JudgeConfig | None = None
    """The judge. Without one, only diversity is measured."""
    published: Ref | None = None
    """A CSV file of published values, with columns `model`, `method` and those of `table.csv`."""
    device: Annotated[
        str, matching(r"auto|cpu|mps|cuda(:\d+)?", "auto, cpu, cuda, cuda:1 or mps")
    ] = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`, or `auto`: CUDA if available, else the CPU."""
    dtype: DType = "auto"
    """The precision of the pipelines. `auto` is float16 on CUDA and float32 elsewhere."""
    batch_size: int = Field(default=8, ge=1, le=1024)
    """The number of images per batch. It affects the last bits of an image."""
    guidance_batching: GuidanceBatching = "auto"
    """Which predictions of a step share a denoiser pass. `separate`: none. `conditions`: those for
    the prompt and the negative prompt, as in the standard pipelines. `all`: those of the base model
    and the LoRA too. `auto`: `conditions`, but `separate` on a GPU with too little memory, and
    `all` for small batches on a CPU. It affects the last bits of an image.
    """

    @property
    def baseline_method(self) -> str:
        """The name of the method that the others are compared with."""
        return self.baseline or next(iter(self.methods))
