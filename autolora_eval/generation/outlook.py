"""What a run would keep of its folder and what it would make. Reads files and loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from autolora_eval._devices import choose_dtype, image_libraries
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json, content_hash
from autolora_eval._text import first_few, pluralize
from autolora_eval.config.plan import Cell, Plan
from autolora_eval.config.schema import GuidanceBatching
from autolora_eval.config.stage_inputs import feature_settings, judge_settings
from autolora_eval.generation.dataset import LIBRARIES
from autolora_eval.generation.model_on_device import ModelOnDevice
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import RunManifest, library_versions, rows_of_images
from autolora_eval.scoring.features import known_features
from autolora_eval.scoring.judgement_store import JudgementFile, JudgementKey
from autolora_eval.sources.model_source import hub_cache_only

CHANGES_NAMED = 4
NOT_MADE = "not made yet"


@dataclass(frozen=True)
class CellOutlook:
    """What becomes of a cell's images.

    Attributes:
        kept: the SHA-256 of each image that is kept, by `file_name`.
        to_make: the number of images to make or import.
        why: why they are made.
        libraries: versions of the libraries that made the kept images.
    """

    cell: Cell
    kept: dict[str, str]
    to_make: int
    why: str
    libraries: frozenset[str]


@dataclass(frozen=True)
class StageOutlook:
    """How much a stage keeps and does, with a line for each reason."""

    name: str  # Images, Features or Judgements
    kept: int
    to_do: int
    why: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outlook:
    """What a run would keep of its folder.

    Args:
        plan: the plan of the run.
        folder: its folder.
        manifest: the manifest of the run so far.
        device: the torch device of the run.
        is_here: the run is on this machine. Otherwise its GPU is not asked for its memory, and
            the manifest says which predictions share a pass.
    """

    plan: Plan
    folder: RunFolder
    manifest: RunManifest
    device: str
    is_here: bool = True

    def cells(self) -> list[CellOutlook]:
        """Return what becomes of each cell's images. Nothing is moved, and no image is opened."""
        found = []
        dtype = choose_dtype(self.plan.benchmark.spec.dtype, self.device)
        recorded = {cell.id: cell.settings_key for cell in self.manifest.cells}
        for model in self.plan.benchmark.models.values():
            batching = self._recorded_batching(model.name)
            here = ModelOnDevice.of(self.plan, model, self.device, dtype, batching)
            for cell in here.cells:
                # An image set is not read here.
                settings = here.settings(cell) if cell.method.kind != "images" else None
                key = recorded.get(cell.id) if settings is None else content_hash(settings)
                found.append(self._cell(cell, key, settings))
        return found

    def _recorded_batching(self, model: str) -> GuidanceBatching | None:
        """Return the run's own choice on a GPU elsewhere; None if this machine can choose."""
        is_chosen = self.plan.benchmark.spec.guidance_batching == "auto"
        if self.is_here or not is_chosen or not self.device.startswith("cuda"):
            return None
        recorded = self.manifest.models.get(model)
        return cast("GuidanceBatching", recorded.guidance_batching) if recorded else "separate"

    def _cell(self, cell: Cell, key: str | None, settings: Json | None) -> CellOutlook:
        places = [self.folder.images(cell.id)]
        places += [self.folder.stale_images(cell.id, key)] if key else []  # they return
        rows: dict[str, Json] = {}
        earlier: Counter[str] = Counter()
        for place in places:
            for row in rows_of_images(place / "metadata.jsonl"):
                if row["settings_key"] != key:
                    earlier[row["settings_key"]] += 1
                elif self.folder.within(place / row["file_name"]).is_file():
                    rows.setdefault(row["file_name"], row)
        kept = {job.file: rows[job.file] for job in self.plan.jobs if job.file in rows}
        why = NOT_MADE
        if earlier and settings is not None:
            before = self.manifest.settings.get(earlier.most_common(1)[0][0])
            why = "changed: " + (_changes(before, settings) if before else "settings")
        return CellOutlook(
            cell=cell,
            kept={name: str(row.get("sha256")) for name, row in kept.items()},
            to_make=len(self.plan.jobs) - len(kept),
            why=why,
            libraries=frozenset(str(row[LIBRARIES]) for row in kept.values() if LIBRARIES in row),
        )

    def stages(self, cells: list[CellOutlook]) -> list[StageOutlook]:
        """Return how much each stage keeps and does."""
        reasons: dict[str, list[CellOutlook]] = {}
        for one in cells:
            if one.to_make:
                reasons.setdefault(one.why, []).append(one)
        why = tuple(
            f"{sum(one.to_make for one in found):,} of "
            f"{first_few([one.cell.title for one in found], CHANGES_NAMED)}: {why}"
            for why, found in reasons.items()
        )
        kept = sum(len(one.kept) for one in cells)
        stages = [StageOutlook("Images", kept, self.plan.n_images - kept, why)]
        stages.append(self._features(cells))
        if self.plan.benchmark.rubric is not None:
            stages.append(self._judgements(cells))
        return stages

    def _features(self, cells: list[CellOutlook]) -> StageOutlook:
        key, recorded = feature_settings(self.plan).key, self.manifest.features
        kept = sum(
            item in known
            for one in cells
            if (known := known_features(self.folder.features(one.cell.id), key))
            for item in one.kept.items()
        )
        why: tuple[str, ...] = ()
        if recorded is not None and recorded.key != key:
            why = ("changed: the extractor, its precision, parameters or features.batch_size",)
        return StageOutlook("Features", kept, self.plan.n_images - kept, why)

    def _judgements(self, cells: list[CellOutlook]) -> StageOutlook:
        settings, recorded = (
            replace(judge_settings(self.plan), device=self.device),
            self.manifest.judge,
        )
        if recorded is None:
            return StageOutlook("Judgements", 0, self.plan.n_judge_calls)
        if recorded.request_key != settings.request_key:
            what = "the judge or its settings"
            if recorded.rubric_sha256 != settings.rubric.sha256:
                what = "the rubric"
            return StageOutlook("Judgements", 0, self.plan.n_judge_calls, (f"changed: {what}",))
        kept = 0
        for one in cells:
            status = JudgementFile(self.folder.judgements(one.cell.id)).status(recorded.key)
            asked = (
                JudgementKey(name, sha256, repeat)
                for name, sha256 in one.kept.items()
                for repeat in range(settings.config.repeats)
            )
            kept += sum(key in status and status[key].final for key in asked)
        return StageOutlook("Judgements", kept, self.plan.n_judge_calls - kept)


def _changes(before: Json, now: Json) -> str:
    """Return in what two settings differ, on one line."""
    old, new = dict(_flat(before)), dict(_flat(now))
    names = [name for name in (*old, *(new.keys() - old.keys())) if old.get(name) != new.get(name)]
    parts = []
    for name in sorted(names):
        what = name.removeprefix("columns.").removeprefix("model.")
        if name.endswith((".sha256", ".commit")):
            parts.append(f"files of {what.rpartition('.')[0]}")
        else:
            parts.append(f"{what} {old.get(name)} → {new.get(name)}")
    return first_few(parts, CHANGES_NAMED)


def _flat(value: Json, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, one in value.items():
        if key == "loras":
            one = {f"lora {n}": lora for n, lora in enumerate(one, 1)}
        if isinstance(one, dict):
            yield from _flat(one, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", one


def other_libraries(cells: list[CellOutlook], folder: Path) -> str | None:
    """Return why new images could differ from those that are there; None if they could not.

    After the user has accepted it once, there are images of both versions.
    """
    now = image_libraries()
    there = {libraries for one in cells for libraries in one.libraries}
    to_make = sum(one.to_make for one in cells if one.cell.method.kind != "images")
    if not to_make or not there or now in there:
        return None
    here = library_versions([now])
    shown = []
    for libraries in sorted(there):
        made = library_versions([libraries])
        changed = [name for name in here if made.get(name) != here[name]]
        shown.append(", ".join(f"{name} {made.get(name)}, now {here[name]}" for name in changed))
    n_kept = sum(len(one.kept) for one in cells if one.libraries)
    return (
        f"{pluralize(n_kept, 'image')} of '{folder}' {'was' if n_kept == 1 else 'were'} made with "
        f"other libraries: {'; '.join(shown)}. The {pluralize(to_make, 'image')} still to make "
        "could differ for that reason alone. Install those versions again; or pass "
        "--accept-versions to keep both, which the report then says; or choose another --output "
        "to make all images again."
    )


def run_outlook(plan: Plan, folder: RunFolder) -> tuple[list[StageOutlook], str | None] | None:
    """Return what each stage would keep and do, and why the run is refused; None if it is new.

    No network is used. If the benchmark states no device, it is that of the run so far.
    """
    manifest, device = folder.find_manifest(), plan.benchmark.spec.device
    begun = (folder.path / "images").is_dir()
    if manifest is None or manifest.compared is not None or not begun:
        return None
    if device == "auto":
        device = next((model.device for model in manifest.models.values()), "cpu")
    outlook = Outlook(plan, folder, manifest, device, is_here=False)
    try:
        with hub_cache_only():
            cells = outlook.cells()
            stages = outlook.stages(cells)
    except AutoLoRAEvalError as error:  # a file that it needs is not here
        return [], str(error)
    return stages, other_libraries(cells, folder.path)
