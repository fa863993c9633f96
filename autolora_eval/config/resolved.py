"""A benchmark with all its inputs found and checked, and nothing loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from autolora_eval._sources import Source
from autolora_eval.config.lora_file import LoraFile
from autolora_eval.config.schema import Benchmark, Model
from autolora_eval.config.sweep_grid import Sweep
from autolora_eval.guidance.method import Method
from autolora_eval.plugins.signatures import MethodParameters
from autolora_eval.scoring.diversity_metric import DiversityMetric
from autolora_eval.scoring.extractor import ResolvedExtractor
from autolora_eval.scoring.rubric import Rubric

MethodKind = Literal["guider", "sampler", "images"]
METHOD_KINDS: tuple[MethodKind, ...] = ("guider", "sampler", "images")


@dataclass(frozen=True)
class ResolvedLora:
    """A LoRA that has been found, but not loaded.

    Attributes:
        source: where it is.
        file: the layers that it tunes; None if its file is not on this machine yet.
    """

    source: Source
    file: LoraFile | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ResolvedModel:
    """A model whose pipeline and LoRAs have been found, but not loaded.

    Attributes:
        name: the name in tables.
        spec: the section of the benchmark file.
        pipeline: where the pipeline is.
        loras: its LoRAs, in the order of `spec.loras`.
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
    """A method and the parameters that the benchmark sets, without a model's defaults.

    Attributes:
        name: the name in tables.
        definition: what makes the images.
        parameters: as the benchmark sets them.
        kind: the key that names the definition in the benchmark.
    """

    name: str
    definition: Method
    parameters: MethodParameters
    kind: MethodKind = "guider"


@dataclass(frozen=True)
class LoadedBenchmark:
    """A benchmark file with all its inputs found and checked.

    Attributes:
        file: the benchmark file.
        spec: its content.
        prompts: the prompts, in order.
        negative_prompts: by prompt, where a prompt has its own.
        models: by name, in order.
        methods: by name, in order.
        features: where the extractor's model is; None for an extractor without a model.
        rubric: the judge's rubric; None without a judge.
        judge: where an in-process judge is; None for a server.
        published: the CSV file of published values.
        sweep: the parameters with several values.
        extractor: the extractor and its parameters.
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
