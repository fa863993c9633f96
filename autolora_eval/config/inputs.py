"""The inputs of a benchmark that need no model, and the benchmark with them resolved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from autolora_eval._errors import UsageError
from autolora_eval._yaml import StrictModel, YamlFile, explained, read_yaml
from autolora_eval.config.lora_file import LoraFile
from autolora_eval.config.schema import Benchmark, Model, PromptEntry, PromptList
from autolora_eval.config.sweep_grid import Sweep
from autolora_eval.guidance.method import Method
from autolora_eval.plugins.signatures import MethodParameters
from autolora_eval.scoring.diversity_metric import DiversityMetric
from autolora_eval.scoring.extractor import ResolvedExtractor
from autolora_eval.scoring.rubric import Rubric
from autolora_eval.sources.model_source import Source, cached

MethodKind = Literal["guider", "sampler", "images"]
METHOD_KINDS: tuple[MethodKind, ...] = ("guider", "sampler", "images")


@dataclass(frozen=True)
class ResolvedLora:
    """A LoRA that has been found, but not loaded; `file` is None until it is on this machine."""

    source: Source
    file: LoraFile | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ResolvedModel:
    """A model whose pipeline and LoRAs have been found, but not loaded.

    Attributes:
        spec: the section of the benchmark file.
        loras: in the order of `spec.loras`.
        vae: where another VAE than the pipeline's is.
        config: where the configurations of a single-file pipeline are.
        size: (width, height) of the images in pixels; 1024² for a hub id without a size.
        timesteps: how often the scheduler asks for a prediction; None if it is not known, which
            counts as once a step.
    """

    name: str
    spec: Model
    pipeline: Source
    loras: tuple[ResolvedLora, ...]
    size: tuple[int, int]
    vae: Source | None = None
    config: Source | None = None
    timesteps: int | None = None

    @property
    def layout(self) -> Source:
        """Where the configurations of the pipeline are, in diffusers' layout."""
        return self.config or self.pipeline

    @property
    def switched_loras(self) -> list[LoraFile]:
        """The files on this machine of the LoRAs that are not part of the base model."""
        pairs = zip(self.spec.loras, self.loras, strict=True)
        return [lora.file for spec, lora in pairs if lora.file and not spec.part_of_base]


@dataclass(frozen=True)
class ResolvedMethod:
    """A method and the parameters that the benchmark sets, without a model's defaults."""

    name: str
    definition: Method
    parameters: MethodParameters
    kind: MethodKind = "guider"


@dataclass(frozen=True)
class LoadedBenchmark:
    """A benchmark file with all its inputs found and checked.

    Attributes:
        spec: the content of the file.
        negative_prompts: by prompt, where a prompt has its own.
        features: where the extractor's model is; None for an extractor without a model.
        rubric: None without a judge.
        judge: where an in-process judge is; None for a server.
        published: the CSV file of published values.
        diversity: the metrics beside equation (8), by their names in the file.
    """

    file: Path
    spec: Benchmark
    prompts: tuple[str, ...]
    models: dict[str, ResolvedModel]
    methods: dict[str, ResolvedMethod]
    features: Source | None
    rubric: Rubric | None
    judge: Source | None
    published: Path | None
    sweep: Sweep = field(default_factory=Sweep)
    extractor: ResolvedExtractor = field(default_factory=ResolvedExtractor.default)
    diversity: Mapping[str, DiversityMetric] = field(default_factory=dict)
    negative_prompts: Mapping[str, str] = field(default_factory=dict)


MAX_PROMPT_LENGTH = 10_000
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx")


class _PromptFile(StrictModel):
    prompts: PromptList


def read_prompts(path: Path) -> dict[str, str | None]:
    """Return the prompts of a file, each with its own negative prompt or None.

    The file is a YAML or JSON list as in a benchmark, or UTF-8 text with one prompt per line.
    """
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        raise UsageError(
            f"{path}: a {suffix} file is a table, whose lines are not prompts. Write its prompts "
            "to a .txt file, one per line."
        )
    if suffix in (".yaml", ".yml", ".json"):  # YAML includes JSON
        document = read_yaml(path)
        places = {("prompts", *keys): line for keys, line in document.lines.items()}
        document = YamlFile(path, {"prompts": document.data}, places)
        try:
            entries = _PromptFile.model_validate(document.data).prompts
        except ValidationError as error:
            raise UsageError("\n".join(explained(error, document, _PromptFile))) from error
        return listed_prompts(entries, str(path))
    try:
        # `splitlines` also breaks at characters that may occur in a prompt, such as U+2028.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 (byte {error.start}). Save the prompts as UTF-8 text."
        ) from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from error
    located = ((f"{path}:{n}", line.strip()) for n, line in enumerate(lines, 1))
    return dict.fromkeys(_checked(located, str(path)))


def listed_prompts(entries: Sequence[str | PromptEntry], where: str) -> dict[str, str | None]:
    """Return the prompts of a list, each with its own negative prompt or None."""
    own = [(e, None) if isinstance(e, str) else (e.prompt, e.negative_prompt) for e in entries]
    found = [(prompt.strip(), negative) for prompt, negative in own]
    _checked(((f"{where}, entry {n}", prompt) for n, (prompt, _) in enumerate(found, 1)), where)
    return {prompt: negative for prompt, negative in found if prompt}


def _checked(located: Iterable[tuple[str, str]], where: str) -> list[str]:
    """Return the prompts of (location, prompt) pairs without the empty ones; refuse repeats."""
    first: dict[str, str] = {}
    for location, prompt in located:
        if not prompt:
            continue
        if len(prompt) > MAX_PROMPT_LENGTH:
            raise UsageError(
                f"{location}: a prompt of {len(prompt)} characters; "
                f"at most {MAX_PROMPT_LENGTH} are allowed. Expected one prompt per line."
            )
        if prompt in first:
            raise UsageError(
                f"{location}: the prompt {prompt[:80]!r} already occurs at {first[prompt]}. "
                "Prompts are paired across methods by their text. Remove one."
            )
        first[prompt] = location
    if not first:
        raise UsageError(f"{where}: contains no prompt. Write one prompt per line.")
    return list(first)


# --------------------
# Which pipelines a guider can act on, by the class in `model_index.json`. Classes in neither list
# are checked by `generation.pipeline_loading.open_pipeline` before the first model is loaded.


INDEX = "model_index.json"
# The tests compare these with a sampling loop written by hand.
TESTED = (
    *("StableDiffusionXLPipeline", "StableDiffusion3Pipeline"),
    *("QwenImagePipeline", "ZImagePipeline"),
)
# Their modular pipelines in diffusers 0.42 have no guider. A test compares this with diffusers.
WITHOUT_GUIDER = (
    *("Cosmos3OmniPipeline", "Flux2Pipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    *("FluxKontextPipeline", "FluxPipeline", "Ideogram4Pipeline"),
)
WHAT_WORKS = f"What works: {', '.join(TESTED[:-1])} and {TESTED[-1]}."


def pipeline_class(index: Path, reference: str) -> str:
    """Return the class that a `model_index.json` names; refuse one that is code to be run."""
    try:
        content = json.loads(index.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{index}: not valid JSON: {error}.") from error
    name = content.get("_class_name") if isinstance(content, dict) else None
    if isinstance(name, list):
        raise UsageError(
            f"'{reference}' is a pipeline with code of its own ({', '.join(map(str, name))}), "
            f"which is not run. {WHAT_WORKS}"
        )
    if not isinstance(name, str) or not name:
        raise UsageError(
            f"the {INDEX} of '{reference}' names no '_class_name', so it is not a "
            "pipeline of diffusers. Write one with save_pretrained."
        )
    return name


def known_class(pipeline: Source) -> str | None:
    """Return the class of a pipeline; None if its index is not on this machine."""
    index = cached(pipeline, INDEX)
    return None if index is None else pipeline_class(index, pipeline.name)


def read_config(source: Source, name: str) -> dict[str, Any]:
    """Return a configuration file of a model; an empty one if it is damaged or not here."""
    file = cached(source, name)
    try:
        content = json.loads(file.read_bytes()) if file is not None else {}
    except (OSError, ValueError):
        content = {}
    return content if isinstance(content, dict) else {}


def check_pipeline(pipeline: Source, index: Path | None) -> None:
    """Refuse a pipeline that is known to take no guider, if its index is on this machine."""
    if index is None:
        return
    name = pipeline_class(index, pipeline.name)
    if name in WITHOUT_GUIDER:
        raise UsageError(no_guider(pipeline.name, name))


def no_guider(reference: str, name: str) -> str:
    """Return the message for a pipeline without a guider."""
    return (
        f"'{reference}' is a {name}, and the modular pipeline that diffusers has for it takes no "
        f"guider, so guidance methods cannot act on it. {WHAT_WORKS}"
    )


WITH_CLIP_SKIP = ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline")


def check_clip_skip(spec: Model, pipeline: Source) -> None:
    """Refuse to skip layers of text encoders that have too few, or that are not CLIP's.

    Pipelines that are not `TESTED` are asked in preflight.
    """
    name = None if spec.clip_skip is None else known_class(pipeline)
    if spec.clip_skip is None or name is None:
        return
    if name in TESTED and name not in WITH_CLIP_SKIP:
        raise UsageError(no_clip_skip(pipeline.name, name))
    for part in ("text_encoder", "text_encoder_2"):
        layers = read_config(pipeline, f"{part}/config.json").get("num_hidden_layers")
        if isinstance(layers, int) and spec.clip_skip >= layers:
            raise UsageError(
                f"the {part} of '{pipeline.name}' has {layers} layers: expected at most "
                f"{layers - 1} (got {spec.clip_skip})."
            )


def no_clip_skip(reference: str, name: str) -> str:
    """Return the message for a pipeline that skips no layers of its text encoders."""
    return f"'{reference}' is a {name}, which takes no clip_skip. Remove clip_skip."


def image_size(spec: Model, pipeline: Source) -> tuple[int, int]:
    """Return (width, height) in pixels of a model's images, read from its configuration files."""
    if spec.width and spec.height:
        return spec.width, spec.height
    side = 1024
    if pipeline.kind == "folder":
        config = _config(pipeline.path, "unet") or _config(pipeline.path, "transformer")
        blocks = _config(pipeline.path, "vae").get("block_out_channels", [0] * 4)
        sample_size = config.get("sample_size") or 128
        if not isinstance(sample_size, int) or not isinstance(blocks, list):
            raise UsageError(
                f"the size of its images cannot be read from '{pipeline.name}': expected a "
                "whole number as the denoiser's sample_size and a list as the VAE's "
                "block_out_channels. Set width and height."
            )
        side = sample_size * 2 ** (len(blocks) - 1)
    return spec.width or side, spec.height or side


def _config(folder: Path, component: str) -> dict[str, Any]:
    path = folder / component / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path}: not valid JSON: {error}.") from error
    return config if isinstance(config, dict) else {}
