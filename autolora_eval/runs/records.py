"""The typed parts of a run's manifest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from autolora_eval._files import Json

SweptValue = bool | int | float | str | tuple[float, ...] | None


class Record(BaseModel):
    """A part of the manifest. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceRecord(Record):
    """The identity of a model's files, or of the code of an extractor without a model.

    Attributes:
        name: as the benchmark names it.
        kind: `hub`, `folder`, `file` or `code`.
        sha256: hash of the files.
        commit: revision on the hub.
        used: False for a model that only lends its name to images that were made elsewhere.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    kind: str
    sha256: str | None = None
    commit: str | None = None
    used: bool = True


class LoraRecord(SourceRecord):
    """The identity of a LoRA's file, and how it is used."""

    scale: float = 1.0
    part_of_base: bool = False


class BenchmarkRecord(Record):
    """The benchmark of a run.

    Attributes:
        file: its path relative to the run folder, the name of a shipped benchmark, or a
            description of a comparison.
        sha256: of the file; empty for a comparison.
        name: its name.
        description: its description.
        prompt_file: the file of prompts; empty where the benchmark lists them.
        baseline: the method that the others are compared with.
        diversity_reference: the method whose images are the reference set of diversity metrics.
        device: as configured.
        dtype: as configured.
        batch_size: images per denoiser call.
        content: the whole benchmark, for provenance; nothing reads it.
    """

    file: str
    sha256: str = ""
    name: str
    description: str = ""
    prompt_file: str = ""
    baseline: str
    diversity_reference: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 1
    content: Json = {}


class MethodRecord(Record):
    """A method of the run.

    Attributes:
        kind: `guider`, `sampler` or `images`, which is also its column in the tables.
        name: the guider's or sampler's name, or the path of the images.
        summary: one line.
        equation: as text; empty if it is unknown.
        source: paper or library.
        code: class, distribution, version and hash of third-party code; empty if built in.
    """

    kind: Literal["guider", "sampler", "images"]
    name: str
    summary: str = ""
    equation: str = ""
    source: str = ""
    code: dict[str, str] = {}


class CellRecord(Record):
    """A cell: one model × method × point of the sweep.

    Attributes:
        id: names its files, so it must not be a path.
        model: name of its model.
        method: name of its method.
        point: its values of the swept parameters.
        parameters: its parameters as columns of the tables.
        nfe: declared function evaluations per image; None if they are counted.
        plan_key: hash of all that the benchmark asks for in this cell.
        settings_key: hash of all that decides its images but prompt and seed; None before they
            are generated.
        run: in a comparison, the run that the cell is from.
        cell_in_run: in a comparison, its id there.
    """

    id: Annotated[str, Field(pattern=r"^[^/\\.\x00-\x1f][^/\\\x00-\x1f]*$")]
    model: str
    method: str
    point: dict[str, SweptValue] = {}
    parameters: dict[str, Any] = {}
    nfe: Annotated[int, Field(lt=2**63)] | None = None
    plan_key: str = ""
    settings_key: str | None = None
    run: str | None = None
    cell_in_run: str | None = None


class SweptParameter(Record):
    """A parameter with several values.

    Attributes:
        values: in order.
        columns: the columns of the tables that it sets.
    """

    values: tuple[SweptValue, ...]
    columns: tuple[str, ...]


class ModelRecord(Record):
    """A model as it ran.

    Attributes:
        pipeline: the pipeline's files.
        config: the configurations of a pipeline in a single file.
        vae: the files of another VAE than the pipeline's.
        loras: the files of its LoRAs, their scales before a sweep, and whether they are part of
            the base model.
        size: width and height of its images.
        device: where it ran.
        dtype: its precision.
        pipeline_class: class of the loaded pipeline; None if nothing had to be loaded.
        scheduler: configuration of its scheduler.
        lora_layers: the number of layers that each LoRA tunes.
        clip_skip: skipped layers of its CLIP encoders; None for the pipeline's own choice.
        negative_prompt: of prompts that have none of their own.
        guidance_batching: which predictions for an image shared a denoiser pass.
        compile: whether its denoiser was compiled.
        channels_last: whether its denoiser and VAE had the channels-last layout.
    """

    pipeline: SourceRecord
    loras: list[LoraRecord]
    config: SourceRecord | None = None
    vae: SourceRecord | None = None
    size: tuple[int, int]
    device: str
    dtype: str
    pipeline_class: str | None = None
    scheduler: Json | None = None
    lora_layers: list[int] | None = None
    clip_skip: int | None = None
    negative_prompt: str = ""
    guidance_batching: str = "separate"
    compile: bool = False
    channels_last: bool = False


class ImageSetRecord(Record):
    """How the images of an image set were matched with a cell.

    Attributes:
        read_as: the layout that the set was read as.
        images: images in the set.
        matched: images that the benchmark asks for.
        beyond_limits: images that only the unlimited benchmark asks for.
        seeds_by_order: seeds were assigned by order, since the set does not state them.
        settings_key: hash of the images.
        import_key: hash of the import report.
    """

    read_as: str
    images: int
    matched: int
    beyond_limits: int
    seeds_by_order: bool
    settings_key: str
    import_key: str
    missing: int = 0
    unusable: int = 0
    extra: int = 0
    duplicate: int = 0
    wrong_size: int = 0
    constant: int = 0
    converted: int = 0


class ScoreRecord(Record):
    """One score of the rubric: see `autolora_eval.scoring.rubric.Score`."""

    key: str
    display_name: str
    min: float = 0.0
    max: float = 5.0
    higher_is_better: bool = True
    type: Literal["integer", "number"] = "integer"


class RubricRecord(Record):
    """The rubric: see `autolora_eval.scoring.rubric.Rubric`."""

    name: str
    source: str = ""
    placeholders: Json = {}
    scores: dict[str, ScoreRecord]
    remarks: Json = {}
    text: str = ""


class DiversityMetricRecord(Record):
    """A diversity metric besides equation (8); an infinite bound is null.

    See `autolora_eval.scoring.diversity_metric.DiversityMetric`.
    """

    name: str
    display_name: str
    label: str
    higher_is_better: bool
    low: float | None = None
    high: float | None = None
    equation: str = ""
    source: str = ""
    least_images: int = 2
    against_reference: bool = False
    code: dict[str, str] = {}


class FeaturesRecord(Record):
    """The extractor, and how many images it took.

    Attributes:
        model: the model, or the extractor's name if it has no model.
        key: hash of all that decides a feature vector but the image.
        identity: its files or code.
        dtype: its precision.
        extractor: its kind, unless it is the default.
        parameters: its parameters, unless it is the default.
        code: its third-party code.
        preprocessing: what is done to an image first.
        dim: length of a vector; None if no image has one.
    """

    model: str
    key: str
    identity: SourceRecord
    dtype: str
    extractor: str | None = None
    parameters: Json | None = None
    code: dict[str, str] | None = None
    preprocessing: Json | None = None
    dim: int | None = None
    done: int = 0
    reused: int = 0
    failed: int = 0


class JudgeRecord(Record):
    """The judge, and how many judgements it gave.

    Attributes:
        model: as the benchmark names it.
        key: hash of all that decides a judgement but the image and its prompt.
        request_key: hash of what the benchmark asks, independent of the server.
        rubric_name: name of the rubric.
        rubric_sha256: hash of what it asks.
        repeats: judgements per image.
        identity: the files of a judge in this process.
        temperature: of sampling.
        constraint: how replies are constrained to the rubric's form.
        served_by: name of the server.
        server_version: its version.
        settings: all else that the judge says of itself.
        cache_problem: why the cache of earlier replies was not used.
    """

    model: str
    key: str
    request_key: str = ""
    rubric_name: str
    rubric_sha256: str
    repeats: int = 1
    identity: SourceRecord | None = None
    temperature: float | None = None
    constraint: str | None = None
    served_by: str | None = None
    server_version: str | None = None
    settings: Json = {}
    cache_problem: str | None = None
    done: int = 0
    reused: int = 0
    cached: int = 0
    unscored: int = 0


class StageRecord(Record):
    """When a stage ran, how long it took, and how much it did."""

    started: str
    seconds: float
    done: int
    reused: int


class CountsRecord(Record):
    """Images of the run, and how many of them lack a file or a score."""

    images: int
    missing: int
    unscored: int


class AgreementRecord(Record):
    """What agreement.csv was computed from."""

    ratings_file: str
    ratings_sha256: str
    ratings: int
    images: int
    raters: int
    scores_sha256: str


class HardwareRecord(Record):
    """The machine."""

    platform: str = ""
    python: str = ""
    cpu: str = ""
    cores: int | None = None
    memory_gib: float | None = None
    device: str | None = None
    gpu: str | None = None
    gpu_memory_gib: float | None = None
    cuda: str | None = None


class ComparedRun(Record):
    """A run of a comparison: runs may be of different machines."""

    manifest_sha256: str
    autolora_eval_version: str
    benchmark_sha256: str
    packages: dict[str, str] = {}
    hardware: HardwareRecord = HardwareRecord()
    stages: dict[str, StageRecord] = {}


class DifferenceRecord(Record):
    """One thing in which compared runs differ.

    Attributes:
        what: the thing.
        severity: `error`: the runs cannot be compared; `judge`: only if asked for; `note`: a
            caveat.
        message: which run has what, and what follows.
    """

    what: str
    severity: Literal["error", "judge", "note"]
    message: str
