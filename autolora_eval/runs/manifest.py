"""The manifest of a run, its prompts that text encoders cut, and the rows of its image lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json, iterate_jsonl, prompt_folder, sha256_bytes
from autolora_eval.runs.records import (
    AgreementRecord,
    BenchmarkRecord,
    CellRecord,
    ComparedRun,
    CountsRecord,
    DifferenceRecord,
    DiversityMetricRecord,
    FeaturesRecord,
    HardwareRecord,
    ImageSetRecord,
    JudgeRecord,
    MethodRecord,
    ModelRecord,
    Record,
    RubricRecord,
    StageRecord,
    SweptParameter,
)


class PromptCut(Record):
    """A prompt that text encoders do not read to its end.

    Attributes:
        name: "prompt N", counted from 1, "negative prompt N" or "negative prompt".
        encoders: the text encoders that cut it here.
        tokens: its tokens.
        limit: the tokens that are read; both with start and end.
        read: the text that is read.
    """

    name: str
    encoders: list[str]
    tokens: int
    limit: int
    read: str


class PromptCuts(Record):
    """The prompts that a model's text encoders do not read to their end.

    Attributes:
        cut: these prompts.
        same: groups of prompts, counted from 1, that are the same to every text encoder.
    """

    cut: list[PromptCut]
    same: list[list[int]]


FORMAT_VERSION: Literal[1] = 1
# The names in rows of images become paths.
_ROW_PATTERNS = (
    ("file_name", r"[A-Za-z0-9+_][A-Za-z0-9+._-]{0,79}/[0-9]{1,20}\.png", "FOLDER/SEED.png"),
    ("settings_key", "[0-9a-f]{8,64}", "hexadecimal digits"),
)
_ROW_NUMBERS = ("nfe", "seconds")


def hash_prompts(prompts: Sequence[str], negative_prompts: Mapping[str, str]) -> str:
    """Return the SHA-256 of prompts, one per line; a prompt's own negative one follows a NUL."""
    lines = (p if p not in negative_prompts else f"{p}\0{negative_prompts[p]}" for p in prompts)
    return sha256_bytes("\n".join(lines).encode())


def library_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return the versions of each library, given those that images were made with.

    >>> library_versions(["torch 2.8.0, peft 0.18.0", "torch 2.9.0, peft 0.18.0"])
    {'torch': '2.8.0 and 2.9.0', 'peft': '0.18.0'}
    """
    found: dict[str, dict[str, None]] = {}
    for part in (part for each in libraries for part in each.split(", ")):
        name, _, version = part.partition(" ")
        found.setdefault(name, {})[version] = None
    return {name: " and ".join(versions) for name, versions in found.items()}


@dataclass(frozen=True, slots=True)
class ImageJob:
    """One image of a cell: a prompt and a seed.

    Attributes:
        prompt_index: index of the prompt in the benchmark, from 0.
        prompt: its text.
        seed: seeds the image's own generator.
        negative_prompt: the prompt's own; None for that of the model.
    """

    prompt_index: int
    prompt: str
    seed: int
    negative_prompt: str | None = None

    @property
    def file(self) -> str:
        """Path of the image below the cell's image folder."""
        return f"{prompt_folder(self.prompt, self.negative_prompt)}/{self.seed}.png"


def rows_of_images(path: Path) -> Iterator[Json]:
    """Yield the rows of a list of images: a `metadata.jsonl`, or a file of `failed_images/`.

    Raises:
        AutoLoRAEvalError: if a row's file name or settings key is malformed.
    """
    for row in iterate_jsonl(path):
        for name, pattern, expected in _ROW_PATTERNS:
            if re.fullmatch(pattern, str(row.get(name))) is None:
                raise AutoLoRAEvalError(
                    f"{path}: {name} {str(row.get(name))!r:.100} is not of a run: expected "
                    f"{expected}. Remove that line: its image is made again."
                )
        for name in _ROW_NUMBERS:
            if not isinstance(row.get(name), int | float | None):
                raise AutoLoRAEvalError(
                    f"{path}: {name} {row[name]!r:.100} is not a number. Remove that line: its "
                    "image is made again."
                )
        yield row


class RunManifest(Record):
    """What was run.

    Attributes:
        format_version: of the run folder; another one is refused.
        autolora_eval_version: the version that wrote it.
        benchmark: the benchmark.
        limit_prompts: the number of first prompts that were used; None for all.
        limit_seeds: the number of first seeds that were used; None for all.
        prompts: in order.
        negative_prompts: by prompt, where a prompt has its own.
        prompts_sha256: hash of all prompts of the benchmark.
        prompt_cuts: by model, the prompts that its text encoders do not read to their end.
        seeds: in order.
        methods: by name, in order of the tables.
        sweep: the swept parameters, by name.
        cells: in order of the tables.
        rubric: None without a judge.
        diversity_metrics: by what the benchmark calls them.
        models: by name; empty before images are generated.
        image_sets: by cell, for images that were made elsewhere.
        licenses: by name of a model or LoRA, the licence that its model card states.
        settings: by settings key, all that decides the images; also those of earlier settings.
        libraries: the versions of the libraries that made the images; several if the user
            accepted new ones in the middle of the run.
        packages: versions.
        hardware: the machine.
        stages: by name: `generate`, `features`, `judge`.
        features: None before features are extracted.
        judge: None without a judge, or before it has judged.
        counts: None before the tables are written.
        are_tables_outdated: whether the settings changed after the tables were written.
        checksums: by file, the SHA-256 of tables and of their inputs when they were written.
        agreement: None unless human ratings were compared.
        compared: by label, the runs of a comparison.
        differences: the differences between the runs of a comparison.
        tables_key: hash of the tables and their inputs.
        report_key: hash of the report's inputs; empty before it is drawn.
    """

    format_version: Literal[1] = FORMAT_VERSION
    autolora_eval_version: str
    benchmark: BenchmarkRecord
    limit_prompts: int | None = None
    limit_seeds: int | None = None
    prompts: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    negative_prompts: dict[str, str] = Field(default_factory=dict)
    prompts_sha256: str
    prompt_cuts: dict[str, PromptCuts] = Field(default_factory=dict)
    seeds: Annotated[list[Annotated[int, Field(lt=2**63)]], Field(min_length=1)]
    methods: dict[str, MethodRecord]
    sweep: dict[str, SweptParameter] = Field(default_factory=dict)
    cells: Annotated[list[CellRecord], Field(min_length=1)]
    rubric: RubricRecord | None = None
    diversity_metrics: dict[str, DiversityMetricRecord] = Field(default_factory=dict)
    models: dict[str, ModelRecord] = Field(default_factory=dict)
    image_sets: dict[str, ImageSetRecord] = Field(default_factory=dict)
    licenses: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, Json] = Field(default_factory=dict)
    libraries: list[str] = Field(default_factory=list)
    packages: dict[str, str] = Field(default_factory=dict)
    hardware: HardwareRecord = HardwareRecord()
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    features: FeaturesRecord | None = None
    judge: JudgeRecord | None = None
    counts: CountsRecord | None = None
    are_tables_outdated: bool = False
    checksums: dict[str, str] = Field(default_factory=dict)
    agreement: AgreementRecord | None = None
    compared: dict[str, ComparedRun] | None = None
    differences: list[DifferenceRecord] = Field(default_factory=list)
    tables_key: str = ""
    report_key: str = ""

    @property
    def prompt_pairs(self) -> list[tuple[str, str | None]]:
        """Each prompt and its own negative prompt, or None."""
        return [(prompt, self.negative_prompts.get(prompt)) for prompt in self.prompts]

    @property
    def is_limited(self) -> bool:
        """Whether only some of the prompts or seeds were taken."""
        return self.limit_prompts is not None or self.limit_seeds is not None

    @property
    def judge_key(self) -> str | None:
        """Hash of judge and rubric; None without a judge."""
        return None if self.judge is None else self.judge.key

    @property
    def score_columns(self) -> list[str]:
        """The rubric's scores; empty without a judge."""
        return [] if self.rubric is None else list(self.rubric.scores)

    def jobs(self) -> Iterator[ImageJob]:
        """Yield the images of every cell, in order of prompt, then seed: the same for all cells."""
        for index, (prompt, negative_prompt) in enumerate(self.prompt_pairs):
            for seed in self.seeds:
                yield ImageJob(index, prompt, seed, negative_prompt)

    def cell(self, id_: str) -> CellRecord:
        """Return a cell.

        Raises:
            KeyError: if no cell has that id.
        """
        return {cell.id: cell for cell in self.cells}[id_]


def joint_prompt_cuts(
    runs: Iterable[RunManifest], pairs: Sequence[tuple[str, str | None]]
) -> dict[str, PromptCuts]:
    """Return the cut prompts of several runs, with the numbers of the prompts in `pairs`."""
    found: dict[str, PromptCuts] = {}
    number = {pair: n for n, pair in enumerate(pairs, 1)}
    for run in runs:
        numbered = enumerate(run.prompt_pairs, 1)
        numbers = {n: number[pair] for n, pair in numbered if pair in number}
        for model, cuts in run.prompt_cuts.items():
            joint = found.setdefault(model, PromptCuts(cut=[], same=[]))
            cut = [kept for one in cuts.cut if (kept := _renumbered(one, numbers))]
            same = [[numbers[n] for n in group if n in numbers] for group in cuts.same]
            joint.cut.extend(one for one in cut if one not in joint.cut)
            joint.same.extend(g for g in same if len(g) > 1 and g not in joint.same)
    return {model: cuts for model, cuts in found.items() if cuts.cut or cuts.same}


def _renumbered(cut: PromptCut, numbers: Mapping[int, int]) -> PromptCut | None:
    """Return a cut with the new number of its prompt; None if the prompt is not kept."""
    name, _, old = cut.name.rpartition(" ")
    if not old.isdigit():  # the negative prompt of all
        return cut
    number = numbers.get(int(old))
    return None if number is None else cut.model_copy(update={"name": f"{name} {number}"})
