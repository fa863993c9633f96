"""The images of samplers: made one by one, those that fail recorded with the reason."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json, read_jsonl, write_jsonl
from autolora_eval._progress import Advance
from autolora_eval.config.plan import ImageJob
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.generation.sampler_api import (
    OwnPipeline,
    SamplerModel,
    UnusableImageError,
    seeded,
    usable,
)
from autolora_eval.guidance.third_party_methods import SamplerMethod
from autolora_eval.runs.images import SECONDS

# A cell that begins with so many failures is given up: what is broken need not fail a thousand
# times, each perhaps after a minute.
GIVE_UP_AFTER = 8
REASON_LENGTH = 200
# An error that they raise is told by the line that called them.
_OURS = Path(__file__).parents[1]
_LIBRARIES = frozenset(("diffusers", "numpy", "peft", "PIL", "torch", "transformers"))


@dataclass
class SampledCell:
    """One sampler's images of one cell.

    Attributes:
        dataset: where they go.
        jobs: those that are missing.
        failures: `file_name` → why there is no image.
        first_error: of the first that failed.
    """

    dataset: ImageDataset
    jobs: Sequence[ImageJob]
    failures: dict[str, str] = field(default_factory=dict)
    first_error: BaseException | None = None

    def fill(self, model: SamplerModel, shared: OwnPipeline, advance: Advance) -> None:
        """Make the missing images, each written before the next is begun.

        Args:
            model: what the sampler is given.
            shared: the sampler's own pipeline.
            advance: is told of each image.
        """
        rule = self.dataset.cell.method.rule
        assert isinstance(rule, SamplerMethod)
        sampler: Callable[..., Any] | None = None
        for n_tried, job in enumerate(self.jobs):
            if n_tried == GIVE_UP_AFTER and self.dataset.is_empty:
                self._give_up(self.jobs[n_tried:])
                advance(len(self.jobs) - n_tried)
                break
            shared.rows = 0
            try:
                if sampler is None:
                    sampler = rule.prepare(self.dataset.cell.parameters)
                started = time.perf_counter()
                with seeded(job.seed), shared.kept(model.lora_scale):
                    result = sampler(job.prompt, job.seed, model)
                image, declared = usable(result, model.size)
                took = {SECONDS: round(time.perf_counter() - started, 4)}
            except AutoLoRAEvalError:
                raise  # the model itself cannot be had
            except (Exception, SystemExit) as error:  # exit(0) would end the run as done
                self._note(job, error)
            else:
                counted = shared.rows if shared.rows or shared.is_loaded else None
                nfe = counted if declared is None else declared
                self.dataset.add([job], [image], nfe, [took])
            advance(1)
        self._write()

    def refusal(self) -> AutoLoRAEvalError | None:
        """Return what is to be said of a cell of which not one image could be made."""
        if not self.failures or not self.dataset.is_empty:
            return None
        cell = self.dataset.cell
        tried = sum(not reason.startswith("not tried") for reason in self.failures.values())
        refused = AutoLoRAEvalError(
            f"cell '{cell.id}': the sampler '{cell.method.rule.name}' failed on every one of "
            f"{tried} images. The first: {next(iter(self.failures.values()))}."
        )
        refused.__cause__ = self.first_error
        return refused

    def _note(self, job: ImageJob, error: BaseException) -> None:
        self.first_error = self.first_error or error
        self.failures[job.file] = reason_of(error)

    def _give_up(self, jobs: Sequence[ImageJob]) -> None:
        first = next(iter(self.failures.values()))
        told = f"not tried after {GIVE_UP_AFTER} failures in a row, the first: {first}"
        self.failures |= dict.fromkeys((job.file for job in jobs), told[:REASON_LENGTH])

    def _write(self) -> None:
        """Replace what was noted of these images; those that are there now failed no longer."""
        path = self.dataset.run.failed_images(self.dataset.cell.id)
        key = self.dataset.settings_key
        rows: dict[str, Json] = {row["file_name"]: row for row in read_jsonl(path)}
        for name, reason in self.failures.items():
            rows[name] = {"file_name": name, "reason": reason, "settings_key": key}
        made = {n for n, row in self.dataset.rows.items() if row["settings_key"] == key}
        left = [
            row for name, row in rows.items() if row["settings_key"] == key and name not in made
        ]
        if left:
            write_jsonl(path, left)
        else:
            path.unlink(missing_ok=True)


def sample_method(
    cells: Sequence[SampledCell], device: torch.device, dtype: torch.dtype, advance: Advance
) -> OwnPipeline:
    """Make the missing images of all cells of one sampler on one model.

    Returns:
        The pipeline that it used.
    """
    shared = OwnPipeline()
    for cell in cells:
        model = SamplerModel(cell.dataset.cell.model, device, dtype, shared)
        cell.fill(model, shared, advance)
    return shared


def reason_of(error: BaseException) -> str:
    """Return in one line what went wrong in other people's code, and where in it that was."""
    if isinstance(error, UnusableImageError):
        return f"the sampler {error}"[:REASON_LENGTH]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_theirs(Path(frame.filename))]
    frame = (own or frames)[-1]
    told = " ".join(str(error).split())
    place = f" ({Path(frame.filename).name}, line {frame.lineno})"
    return f"{type(error).__name__}: {told}"[: REASON_LENGTH - len(place)] + place


def _is_theirs(file: Path) -> bool:
    return _OURS not in file.parents and not _LIBRARIES.intersection(file.parts)
