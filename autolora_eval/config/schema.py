"""The benchmark file as typed models. Every key is here, with its range and its default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from autolora_eval._yaml import ADDRESS_TAG, FILE_TAG, LIST_TAG, matching

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]
# The name of a model or method, a key: not stripped, lest one silently replace another.
Label = Annotated[
    str,
    StringConstraints(max_length=80),
    matching(r"\S(.*\S)?", "a name on one line, without blanks at its ends"),
]
Ref = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
Prompts = Annotated[
    Annotated[Ref, Tag(FILE_TAG)] | Annotated[list[Prompt], Tag(LIST_TAG)],
    Discriminator(lambda value: LIST_TAG if isinstance(value, list) else FILE_TAG),
]
Addresses = Annotated[
    Annotated[Ref, Tag(ADDRESS_TAG)]
    | Annotated[list[Ref], Tag(LIST_TAG), Field(min_length=1, max_length=64)],
    Discriminator(lambda value: LIST_TAG if isinstance(value, list) else ADDRESS_TAG),
]
Constraint = Literal[
    "auto", "structured_outputs", "guided_regex", "response_format", "regex", "plain"
]
DType = Literal["auto", "float32", "float16", "bfloat16"]


class _Strict(BaseModel):
    """A part of the benchmark file: an unknown key is an error, and a read value is fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Seeds(_Strict):
    """The seeds of every prompt: `count` of them from `start` on, the same for every method."""

    start: int = Field(default=0, ge=0, le=2**53)
    count: int = Field(ge=1, le=1_000_000)

    def values(self) -> range:
        """Return the seeds."""
        return range(self.start, self.start + self.count)


class Lora(_Strict):
    """A LoRA: a `.safetensors` file, a folder with one, or a hub id.

    Attributes:
        path: the file, folder, hub id, or `miniature:NAME`.
        weight_name: the file within a folder or hub repository that has several.
        revision: commit, tag or branch on the hub.
        scale: α of equation (2).
        obtain: how to get a file that cannot be fetched; with it, a missing file is told of by
            `plan` and refused by `run`. Where it writes `{place}` stands where the file belongs.
            It does not decide any number, so no key holds it.
    """

    path: Ref
    weight_name: Name | None = None
    revision: Name | None = None
    scale: FiniteFloat = Field(default=1.0, gt=0.0, le=10.0)
    obtain: str | None = Field(default=None, min_length=1, max_length=1000, exclude=True)


class Model(_Strict):
    """A base pipeline plus a LoRA, and how it is sampled.

    Attributes:
        pipeline: a pipeline folder, a hub id, or `miniature:NAME`.
        revision: commit, tag or branch on the hub.
        variant: weight variant on the hub, such as `fp16`.
        lora: the LoRA.
        num_inference_steps: denoising steps.
        guidance_scale: CFG scale of the methods that do not state their own; 1 is no CFG.
        width: pixels; where not stated a folder's own, or 1024 for a hub id, which is refused
            at loading if it is not the pipeline's own.
        height: pixels; likewise.
        null_prompt: ∅ of equation (4). Always passed on explicitly.
    """

    pipeline: Ref
    revision: Name | None = None
    variant: Name | None = None
    lora: Lora
    num_inference_steps: int = Field(default=50, ge=1, le=10_000)
    guidance_scale: FiniteFloat = Field(default=5.0, ge=0.0, le=100.0)
    width: int | None = Field(default=None, ge=8, le=16_384, multiple_of=8)
    height: int | None = Field(default=None, ge=8, le=16_384, multiple_of=8)
    null_prompt: str = Field(default="", max_length=10_000)


class Features(_Strict):
    """The extractor whose vectors the diversity compares, with the parameters of its kind.

    Attributes:
        extractor: the kind: `transformers`, or the dotted path of a class of your own, whose
            parameters stand beside it.
        model: the vision model: folder, hub id, or `miniature:NAME`.
        revision: commit, tag or branch on the hub.
        batch_size: images a forward pass.
        dtype: of the extractor; `auto` is float32.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    extractor: Ref = "transformers"
    model: Ref = "facebook/dinov2-giant"
    revision: Name | None = None
    batch_size: int = Field(default=32, ge=1, le=4096)
    dtype: DType = "auto"


class JudgeConfig(_Strict):
    """The vision-language model that scores each image, and how it is reached.

    Attributes:
        rubric: rubric file.
        rubric_values: text for each placeholder of the rubric's own, such as `style`.
        model: hub id, folder or `miniature:NAME`; for `openai` the name the server knows.
        backend: `transformers` (in this process) or `openai` (a server such as vLLM's).
        revision: commit, tag or branch on the hub.
        base_url: of the server, ending in `/v1`, or a list of servers of the same model, which
            are used evenly (`openai` only).
        api_key_env: environment variable that holds the server's key; the key is never written.
        temperature: of sampling; 0 is greedy.
        max_tokens: longest reply, in tokens.
        seed: of sampling; repeat number r is asked with seed + r.
        repeats: how often each image is judged; its score is the mean of its verdicts.
        constraint: how replies are held to the rubric's schema: `structured_outputs` or
            `guided_regex` (vLLM's, new and old), `response_format` (a JSON schema), `plain` (not
            at all); for `transformers` `regex` or `plain`. `auto` takes the first that works.
        logprobs: record the expected score over the digit's distribution beside the verdict.
        cache: take replies to the same question about the same image from earlier runs.
        batch_size: images a forward pass (`transformers` only).
        concurrency: calls at a time (`openai` only).
        timeout: seconds for one call (`openai` only).
        max_retries: further tries after a failed call (`openai` only).
        give_up_after: seconds without any server before the run is stopped (`openai` only).
        launch: start vLLM for the judging, and stop it after (`openai` only).
        vllm_python: the Python of the environment that vLLM is installed in, for `launch`.
        launch_command: a command line that starts a server instead, such as `uvx` or a
            container; `{model}`, `{port}` and `{name}` are filled in.
        launch_args: further arguments of the server, such as `--max-model-len`.
        launch_timeout: seconds that the server may take until it answers.
        dtype: of the judge (`transformers` only).
    """

    rubric: Ref
    rubric_values: dict[Name, Prompt] = {}
    model: Ref
    backend: Literal["transformers", "openai"] = "openai"
    revision: Name | None = None
    base_url: Addresses = "http://localhost:8000/v1"
    api_key_env: Name = "AUTOLORA_EVAL_JUDGE_API_KEY"
    temperature: FiniteFloat = Field(default=0.0, ge=0.0, le=2.0)
    max_tokens: int = Field(default=128, ge=1, le=4096)
    seed: int = Field(default=0, ge=0)
    repeats: int = Field(default=1, ge=1, le=100)
    constraint: Constraint = "auto"
    logprobs: bool = False
    cache: bool = True
    batch_size: int = Field(default=16, ge=1, le=1024)
    concurrency: int = Field(default=32, ge=1, le=1024)
    timeout: FiniteFloat = Field(default=120.0, gt=0.0, le=3600.0)
    max_retries: int = Field(default=4, ge=0, le=20)
    give_up_after: FiniteFloat = Field(default=60.0, ge=0.0, le=86_400.0)
    launch: bool = False
    vllm_python: Ref | None = None
    launch_command: list[Ref] = []
    launch_args: list[Ref] = []
    launch_timeout: FiniteFloat = Field(default=900.0, gt=0.0, le=86_400.0)
    dtype: DType = "auto"

    @property
    def base_urls(self) -> list[str]:
        """The addresses of the servers."""
        return [self.base_url] if isinstance(self.base_url, str) else self.base_url


class Benchmark(_Strict):
    """One benchmark file: everything that decides the numbers.

    Attributes:
        name: names the run folder.
        description: a sentence for the report.
        prompts: a text file, one prompt a line, or a list.
        seeds: the same for every prompt and method.
        models: base pipelines with LoRAs, by the name they have in tables.
        methods: what makes the images, by the name they have in tables: a `guider`, which is a
            short name or the dotted path of any guider class, or a `sampler`; and its parameters.
        sweep: values of parameters, crossed with models and methods; a method that states one
            of them, or does not have it, stays as it is.
        baseline: the method that the others are compared with; the first where not stated.
        features: the extractor.
        diversity: measures of diversity beside equation (8), which is always taken: `vendi`,
            `mean_distance`, or the dotted path of any `DiversityMetric`. None is in a product.
        diversity_reference: the method whose images those of the others are compared with, by
            measures of diversity that need a reference set. Images made elsewhere may be one.
        judge: the judge; without one only diversity is measured.
        reference: CSV of published values (model, method, columns as in `table.csv`).
        device: `auto` takes CUDA where there is one, or `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: of the pipelines; `auto` is float16 on CUDA and float32 elsewhere.
        batch_size: images a denoiser pass. Part of what decides an image's last bits.
    """

    name: Annotated[
        str,
        matching(
            r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}",
            "up to 80 letters, digits, '.', '_' and '-', the first a letter or digit",
        ),
    ]
    description: str = Field(default="", max_length=2000)
    prompts: Prompts
    seeds: Seeds
    models: dict[Label, Model] = Field(min_length=1)
    methods: dict[Label, dict[str, Any]] = Field(min_length=1)
    sweep: dict[Label, list[Any]] = {}
    baseline: Name | None = None
    features: Features = Features()
    diversity: list[Ref] = Field(default=[], max_length=16)
    diversity_reference: Name | None = None
    judge: JudgeConfig | None = None
    reference: Ref | None = None
    device: Annotated[
        str, matching(r"auto|cpu|mps|cuda(:\d+)?", "auto, cpu, cuda, cuda:1 or mps")
    ] = "auto"
    dtype: DType = "auto"
    batch_size: int = Field(default=8, ge=1, le=1024)

    @property
    def baseline_method(self) -> str:
        """The name of the method that the others are compared with."""
        return self.baseline or next(iter(self.methods))
