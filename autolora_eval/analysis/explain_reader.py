"""The files of a run folder that an explanation reads, each read at most once."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from autolora_eval._errors import AutoLoRAEvalError, UsageError, did_you_mean
from autolora_eval._files import Json, iterate_jsonl, sha256_file
from autolora_eval.analysis.cell_estimates import References
from autolora_eval.analysis.metric_columns import Measure, measures
from autolora_eval.analysis.scores import planned_features
from autolora_eval.runs.feature_file import CellFeatures
from autolora_eval.runs.folder import Run, open_run
from autolora_eval.runs.images import ImageError, open_image
from autolora_eval.scoring.diversity_metric import (
    DiversityMetric,
    installed_metric,
    metrics_from_manifest,
)
from autolora_eval.scoring.judging import judgements_by_image
from autolora_eval.scoring.rubric import Score

if TYPE_CHECKING:
    import pandas as pd


Row = dict[str, Any]


@dataclass(frozen=True)
class Sources:
    """A finished run.

    Attributes:
        run: its tables and manifest.
    """

    run: Run
    _features: dict[str, CellFeatures | None] = field(default_factory=dict)

    @cached_property
    def cells(self) -> list[Row]:
        """The rows of the result table."""
        return [{str(k): v for k, v in row.items()} for row in self.run.table.to_dict("records")]

    @cached_property
    def measures(self) -> list[Measure]:
        """What was measured, in the order of the table."""
        rubric = self.section("rubric")
        stated = {
            column: Score.model_validate(score)
            for column, score in (rubric.get("scores") or {}).items()
            if column in self.run.table.columns
        }
        return measures(stated, metrics_from_manifest(self.run.manifest, self.run.table))

    @cached_property
    def extra(self) -> dict[str, DiversityMetric]:
        """The measures of diversity beside equation (8), by column, whose code is installed here.

        What lies in a folder is not imported: the folder may be somebody else's.
        """
        found = [installed_metric(name) for name in self.section("diversity_metrics")]
        return {measure.name: measure for measure in found if measure is not None}

    @cached_property
    def references(self) -> References:
        """What measures that need a reference set were taken against."""
        known = self.run.diversity
        if "reference_cell" not in known:
            return References()
        told = known.dropna(subset=["reference_cell"])
        cells = dict(zip(told["cell"], told["reference_cell"], strict=True))
        return References(cells, self.run.scores, self.features)

    @property
    def scores(self) -> list[Measure]:
        """The judge's scores."""
        return [measure for measure in self.measures if measure.kind == "score"]

    def section(self, *keys: str) -> Json:
        """Return a mapping of the manifest; empty where it is missing."""
        value: Any = self.run.manifest
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    def cell(self, id_: str) -> Row:
        """Return a cell's row of the result table."""
        return next(row for row in self.cells if row["cell"] == id_)

    def stated(self, id_: str) -> Json:
        """Return what the manifest states of a cell."""
        listed = self.run.manifest.get("cells") or []
        return next((dict(cell) for cell in listed if cell.get("id") == id_), {})

    def images(self, cell: str, prompt_index: int | None = None) -> pd.DataFrame:
        """Return a cell's rows of the scores, of one prompt if it is named."""
        rows = self.run.scores[self.run.scores["cell"] == cell]
        return rows if prompt_index is None else rows[rows["prompt_index"] == prompt_index]

    def metadata(self, cell: str, image_id: str) -> Json:
        """Return what was recorded as an image was made; empty if nothing was."""
        rows = iterate_jsonl(self.run.folder.metadata(cell))
        return next((row for row in rows if row.get("file_name") == image_id), {})

    def features(self, cell: str) -> CellFeatures | None:
        """Return the features of a cell's images as they were scored; None if there is no file.

        Raises:
            AutoLoRAEvalError: the file is none of features.
        """
        if cell not in self._features:
            file = self.run.folder.features(cell)
            try:
                found = (
                    planned_features(self.run.folder, self.images(cell)) if file.is_file() else {}
                )
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                raise AutoLoRAEvalError(
                    f"'{file}' cannot be read as features: {error}. Remove it, and have it made "
                    f"anew by: autolora-eval score {self.run.folder.path}"
                ) from error
            self._features[cell] = found.get(cell)
        return self._features[cell]

    def judgements_of(self, cell: str) -> dict[tuple[str, str | None], list[Json]]:
        """Return the replies that count, by (image id, SHA-256), in order of their repeats."""
        judge = self.section("judge")
        if judge.get("key") is None:
            return {}
        found = judgements_by_image(self.run.folder.judgements(cell), str(judge["key"]))
        asked = int(judge.get("repeats") or 1)
        return {
            image: [row for row in rows if row.get("repeat", 0) < asked]
            for image, rows in found.items()
        }

    def state_of(self, file: str, sha256: object) -> str:
        """Say whether an image is still the one that was scored."""
        path = self.run.folder.path / file
        if not path.resolve().is_relative_to(self.run.folder.path.resolve()):
            return "leads out of the run folder"
        if not path.is_file():
            return "not there"
        if not isinstance(sha256, str) or sha256_file(path) != sha256:
            return "changed since it was scored"
        try:
            image = open_image(path)
        except ImageError as error:
            return f"as it was scored, but unusable: {error}"
        return f"as it was scored, {image.width} × {image.height}"


def read_sources(run: Path) -> Sources:
    """Open a finished run.

    Raises:
        UsageError: it is no run folder, or the run has not got as far as its table.
    """
    return Sources(open_run(run))


# --------------------
# Which cell, prompt and image of a run somebody means.


@dataclass(frozen=True)
class Place:
    """A cell, one of its prompts, or one of its images.

    Attributes:
        cell: the cell's id.
        prompt_index: of the prompt; None for the whole cell.
        seed: of the image; None for all of the prompt's.
    """

    cell: str
    prompt_index: int | None = None
    seed: int | None = None


def find_place(sources: Sources, cell: str, prompt: str | None, seed: int | None) -> Place:
    """Return the place that is meant.

    Args:
        sources: the run.
        cell: a cell's id, its method's name, or a part of the id that only one has.
        prompt: a prompt's place in the benchmark, its text, or a part that only one has.
        seed: of an image.

    Raises:
        UsageError: none or several fit.
    """
    id_ = find_cell(sources, cell)
    images = sources.images(id_)
    prompts = dict(zip(images["prompt_index"], images["prompt"], strict=True))
    if prompt is None:
        if seed is None:
            return Place(id_)
        if len(prompts) > 1:
            raise UsageError(f"seed {seed} of which of the {len(prompts)} prompts? Name one too.")
        prompt = str(next(iter(prompts)))
    index = _find_prompt(prompts, prompt)
    if seed is not None:
        seeds = sorted(images.loc[images["prompt_index"] == index, "seed"].tolist())
        if seed not in seeds:
            raise UsageError(f"no image has seed {seed}. Known: {_ranges(seeds)}.")
    return Place(id_, index, seed)


def whole_number(seed: object) -> int | None:
    """Return a seed as it was given, as a whole number or as the text of one.

    Raises:
        UsageError: it is something else.
    """
    if seed is None:
        return None
    try:
        return int(seed) if isinstance(seed, str) else operator.index(seed)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UsageError(f"seed {seed!r:.80}: expected a whole number, such as 3.") from error


def find_cell(sources: Sources, wanted: str) -> str:
    """Return the id of the cell that is meant.

    Raises:
        UsageError: none or several fit.
    """
    ids = [str(row["cell"]) for row in sources.cells]
    if wanted in ids:
        return wanted
    named = [(str(row["method"]), str(row["cell"])) for row in sources.cells]
    found = [id_ for method, id_ in named if method == wanted]
    found = found or [id_ for method, id_ in named if method.lower() == wanted.lower()]
    found = found or [id_ for id_ in ids if wanted.lower() in id_.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"'{wanted}' may be any of {len(found)} cells: {_some(found)}.")
    names = dict.fromkeys([*ids, *(str(row["method"]) for row in sources.cells)])
    raise UsageError(f"no cell '{wanted}' in this run.{did_you_mean(wanted, names)}")


def _find_prompt(prompts: Mapping[int, str], wanted: str) -> int:
    if wanted.isdecimal():
        if int(wanted) in prompts:
            return int(wanted)
        raise UsageError(f"no prompt {wanted}: their places are {_ranges(sorted(prompts))}.")
    exact = [index for index, text in prompts.items() if text == wanted]
    found = exact or [i for i, text in prompts.items() if wanted.lower() in text.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        fitting = _some([f"{index}: {prompts[index]}" for index in found])
        raise UsageError(f"'{wanted}' is in {len(found)} prompts: {fitting}. Name its place.")
    raise UsageError(f"no prompt '{wanted}'.{did_you_mean(wanted, prompts.values())}")


def _some(names: list[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}"


def _ranges(numbers: list[int]) -> str:
    """Write whole numbers, in order, as ranges: "0 to 7, 9".

    >>> _ranges([0, 1, 2, 9])
    '0 to 2, 9'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return _some(texts)
