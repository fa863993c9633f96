"""The run folder: the paths of its files, its manifest, and the tables of a finished run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from autolora_eval._errors import UsageError, as_damaged
from autolora_eval._files import LOCK, Json, content_hash, path_inside, sha256_file, write_json
from autolora_eval._text import first_few
from autolora_eval.runs.columns import read_csv
from autolora_eval.runs.manifest import FORMAT_VERSION, RunManifest, rows_of_images
from autolora_eval.runs.records import CellRecord

if TYPE_CHECKING:
    import pandas as pd

# Tables and report do not depend on what the latest command did or reused.
_COUNTS = {"done", "reused", "cached"}
_VOLATILE: dict[str, bool | set[str]] = {"tables_key": True, "report_key": True}
_VOLATILE |= {"features": _COUNTS, "judge": _COUNTS}


class _File:
    """The path of a file in a run folder. A link may not point outside the folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: RunFolder, owner: object) -> Path:
        return folder.within(folder.path / self._name)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    manifest = _File("manifest.json")
    """What was run: inputs, hashes, versions, hardware, times."""
    judge_log = _File("judge_server.log")
    """The output of the judge's server, if the run itself started it."""
    scores = _File("scores.parquet")
    """One row per image."""
    diversity = _File("diversity.csv")
    """Equation (8) of every cell and prompt, or the reason why it is undefined."""
    comparisons = _File("comparisons.csv")
    """Paired differences against the baseline."""
    timings = _File("timings.csv")
    """Seconds per image, one row per cell. They depend on the machine."""
    reliability = _File("reliability.csv")
    """How far the judge agrees with itself, one row per cell and score."""
    unscored = _File("unscored.csv")
    """Unscored images, one row per cell and reason."""
    agreement = _File("agreement.csv")
    """How far the judge agrees with people, one row per score and statistic."""
    figures = _File("figures")
    """The folder of figures."""
    report_pdf = _File("report.pdf")
    """The report, for reading and print."""
    report_html = _File("report.html")
    """The report, in one self-contained file."""

    def within(self, path: Path) -> Path:
        """Return a path that is inside the folder.

        A run folder may come from elsewhere: nothing outside it is read, moved or written.

        Raises:
            UsageError: if a name or a link on the path points outside.
        """
        try:
            path_inside(self.path, os.path.relpath(path, self.path))
        except ValueError as error:
            raise UsageError(
                f"'{path}' points outside its run folder. Links in a run folder must stay inside "
                "it; to keep a run elsewhere, link to its whole folder."
            ) from error
        return path

    def _at(self, *names: str) -> Path:
        return self.within(self.path.joinpath(*names))

    def images(self, cell: str) -> Path:
        """Return the image dataset of a cell, a Hugging Face imagefolder."""
        return self._at("images", cell)

    def metadata(self, cell: str) -> Path:
        """Return the list of a cell's images: one JSON object per line."""
        return self._at("images", cell, "metadata.jsonl")

    def stale_images(self, cell: str, settings_key: str) -> Path:
        """Return the folder that keeps a cell's images of other settings."""
        return self._at("stale_images", cell, settings_key)

    def failed_images(self, cell: str) -> Path:
        """Return the list of images that could not be made or imported: JSON Lines."""
        return self._at("failed_images", f"{cell}.jsonl")

    def image_set(self, cell: str) -> Path:
        """Return the import report of a cell's images, one row per finding."""
        return self._at("image_sets", f"{cell}.csv")

    def features(self, cell: str) -> Path:
        """Return the feature matrix of a cell, float32 [N, D]."""
        return self._at("features", f"{cell}.safetensors")

    def judgements(self, cell: str) -> Path:
        """Return the judge's replies to a cell's images: one JSON object per line."""
        return self._at("judgements", f"{cell}.jsonl")

    def table(self, suffix: str) -> Path:
        """Return the result table, one row per cell, as `csv`, `md`, `tex` or `parquet`."""
        return self._at(f"table.{suffix}")

    @property
    def tables(self) -> tuple[Path, ...]:
        """The tables that commands read or people share. Not every run has all of them."""
        return (
            *(self.scores, self.table("parquet"), self.table("csv"), self.diversity),
            *(self.comparisons, self.timings, self.reliability, self.unscored),
        )

    def read_manifest(self) -> RunManifest:
        """Return the manifest.

        Raises:
            UsageError: if there is none, it is damaged, or it has another format version.
        """
        try:
            raw = json.loads(self.manifest.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(
                f"'{self.path}' is not a run folder: it has no manifest.json."
            ) from error
        except (ValueError, RecursionError) as error:
            raise self._damaged(str(error)) from error
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise UsageError(
                f"'{self.path}' has format_version {version} in its manifest.json, and this "
                f"version of autolora-eval reads {FORMAT_VERSION}: run its benchmark again with "
                "another --output, or read it with the version that wrote it."
            )
        try:
            return RunManifest.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(map(str, first["loc"]))
            raise self._damaged(f"{path}: {first['msg']}") from error

    def _damaged(self, why: str) -> UsageError:
        return UsageError(
            f"'{self.path}' has a damaged manifest.json: {why:.300}. Restore it from a copy, or "
            "run the benchmark again with another --output."
        )

    def find_manifest(self) -> RunManifest | None:
        """Return the manifest, or None if there is none yet.

        Raises:
            UsageError: if it is damaged or has another format version.
        """
        return self.read_manifest() if self.manifest.is_file() else None

    def write_manifest(self, manifest: RunManifest) -> None:
        """Write the manifest; its folder is created."""
        write_json(self.manifest, manifest.model_dump(mode="json"))

    def update_manifest(self, **sections: Any) -> RunManifest:  # noqa: ANN401
        """Replace sections of the manifest and return it."""
        manifest = RunManifest.model_validate({**dict(self.read_manifest()), **sections})
        self.write_manifest(manifest)
        return manifest

    def benchmark_file(self) -> str:
        """Return the benchmark of the run: the path of its file, or a shipped benchmark's name.

        Raises:
            UsageError: if this is a comparison, which has none, or the file is gone.
        """
        manifest = self.read_manifest()
        if manifest.compared is not None:
            raise UsageError(
                f"'{self.path}' is a comparison of runs: nothing can be generated or scored in it. "
                "Score the compared runs and compare them again. To redraw its report: "
                f"autolora-eval report {self.path}"
            )
        file = self.path / manifest.benchmark.file
        if not file.is_file() and file.suffix:
            raise UsageError(
                f"'{self.path}': its benchmark file '{file.resolve()}' is gone. Put "
                f"it back, or name it: autolora-eval run BENCHMARK --output {self.path}"
            )
        return str(file.resolve()) if file.is_file() else manifest.benchmark.file

    def relative(self, benchmark: str, file: Path) -> str:
        """Return the path of a benchmark's file relative to the run folder, for the manifest.

        So a run finds it from any working directory, and after both were moved together. A shipped
        benchmark keeps its name.
        """
        if not Path(benchmark).is_file():
            return benchmark
        return Path(os.path.relpath(file.resolve(), self.path.resolve())).as_posix()

    def image_rows(self, cell: CellRecord) -> Iterator[Json]:
        """Yield the metadata of a cell's images, without images of other settings.

        An interrupted run may not have replaced those yet.
        """
        for row in rows_of_images(self.metadata(cell.id)):
            if row["settings_key"] == cell.settings_key:
                yield row


def _table(path: Path) -> pd.DataFrame:
    """Return a table of a run. Raises `UsageError` if it is damaged."""
    import pandas as pd

    with as_damaged(path):
        return read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


@dataclass(frozen=True)
class Run:
    """A finished run: its manifest and its tables, each read from disk at first use.

    Attributes:
        folder: the paths of its files.
        manifest: the settings, hashes and versions of the run.
    """

    folder: RunFolder
    manifest: RunManifest

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per image."""
        return _table(self.folder.scores)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per cell."""
        return _table(self.folder.table("parquet"))

    @cached_property
    def diversity(self) -> pd.DataFrame:
        """One row per cell and prompt."""
        return _table(self.folder.diversity)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """One row per cell and metric, against the baseline."""
        return _table(self.folder.comparisons)

    @cached_property
    def timings(self) -> pd.DataFrame:
        """One row per cell."""
        return _table(self.folder.timings)

    @cached_property
    def reliability(self) -> pd.DataFrame | None:
        """One row per cell and score; None without a judge."""
        return _table(self.folder.reliability) if self.folder.reliability.is_file() else None

    @cached_property
    def agreement(self) -> pd.DataFrame | None:
        """One row per score and statistic; None unless human ratings were compared."""
        return _table(self.folder.agreement) if self.folder.agreement.is_file() else None


def output_folder(path: str | Path, *, joint: bool = False) -> RunFolder:
    """Return the run folder to write at a path.

    Args:
        path: a new or empty folder, or an earlier run, which may have been interrupted.
        joint: whether a comparison will be written; then the earlier run must be a comparison.

    Raises:
        UsageError: if the path or a parent is a file, or the folder holds something else.
    """
    for part in (Path(path), *Path(path).parents):
        if (part.exists() or part.is_symlink()) and not part.is_dir():
            what = "a file" if part.exists() else "a link to nothing"
            raise UsageError(f"'{part}' is {what}, not a run folder. Name another --output.")
    folder, problem = RunFolder(Path(path)), None
    if (manifest := folder.find_manifest()) is None:
        if (name := _foreign_file(folder.path)) is not None:
            problem = f"is not a run folder: it contains '{name}' and no manifest.json"
    elif joint != (manifest.compared is not None):
        problem = "is a run, not a comparison" if joint else "is a comparison of runs"
    if problem is not None:
        earlier = "comparison" if joint else "run"
        raise UsageError(
            f"'{path}' {problem}; expected a new or empty folder, or an earlier {earlier}. Name "
            "another --output."
        )
    return folder


def _foreign_file(folder: Path) -> str | None:
    """Return a name in a folder without manifest that no interrupted run can have left there."""
    if not folder.is_dir() or (folder / LOCK).exists():
        return None  # a killed run, or the working copy of a URL, which was checked there
    # `score --images` writes the benchmark first. Hidden files are those of the system.
    names = {path.name for path in folder.iterdir()} - {"benchmark.yaml"}
    return min((name for name in names if not name.startswith(".")), default=None)


def open_run(path: str | Path) -> Run:
    """Open a finished run.

    Raises:
        UsageError: if it is not a run folder, its tables are missing or older than the settings of
            the run, or a table was edited.
    """
    folder = RunFolder(Path(path))
    manifest = folder.read_manifest()
    if manifest.are_tables_outdated or not folder.table("parquet").is_file():
        raise UsageError(
            f"'{path}' has no tables for its current settings: the run was interrupted. "
            f"Finish it with: autolora-eval run {folder.benchmark_file()} --output {path}"
        )
    _refuse_changed(folder, manifest)
    run = Run(folder, manifest)
    # Read now: a later command may write other tables into the folder.
    _ = run.scores, run.diversity, run.table, run.comparisons
    return run


def _refuse_changed(folder: RunFolder, manifest: RunManifest) -> None:
    """Refuse tables that changed, or whose images, features or replies changed after them.

    A copy may lack the latter, which are large.
    """
    there = [file for file in _records(folder, manifest) if file.is_file()]
    files = {file.relative_to(folder.path).as_posix(): file for file in (*folder.tables, *there)}
    edited = [
        name
        for name, file in files.items()
        if (sha256 := manifest.checksums.get(name)) is not None
        and (not file.is_file() or sha256_file(file) != sha256)
    ]
    if edited:
        command = f"autolora-eval score {folder.path}"
        if manifest.compared is not None:
            command = "autolora-eval compare, with the compared runs"
        raise UsageError(
            f"'{folder.path}': {first_few(edited, 3)} was changed after scoring. Write the tables "
            f"again with: {command}"
        )


def manifest_key(manifest: RunManifest) -> str:
    """Return the hash of those parts of a manifest that tables and report depend on."""
    return content_hash(manifest.model_dump(mode="json", exclude=_VOLATILE))


def tables_key(folder: RunFolder, published: Path | None) -> str:
    """Return the hash of the tables and all their inputs, among them the published values."""
    manifest = folder.read_manifest()
    values = None if published is None else sha256_file(published)
    return content_hash([manifest_key(manifest), values, checksums(folder, manifest)])


def are_tables_current(folder: RunFolder, published: Path | None) -> bool:
    """Return whether the tables were made from the files that are in the run folder now."""
    manifest = folder.find_manifest()
    return manifest is not None and manifest.tables_key == tables_key(folder, published)


def _records(folder: RunFolder, manifest: RunManifest) -> list[Path]:
    """Return the files that tables are written from: features, replies and lists of images."""
    kinds = (folder.metadata, folder.features, folder.judgements)
    return [kind(cell.id) for cell in manifest.cells for kind in kinds]


def checksums(folder: RunFolder, manifest: RunManifest) -> dict[str, str]:
    """Return the SHA-256 of tables, features, replies and lists of images, by path in the folder.

    The lists have the hashes of the images.
    """
    files = [*folder.tables, folder.table("md"), folder.table("tex"), *_records(folder, manifest)]
    return {
        file.relative_to(folder.path).as_posix(): sha256_file(file)
        for file in files
        if file.is_file()
    }
