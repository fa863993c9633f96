"""The run folder: where every file of the contract stands, and how a finished run is read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolora_eval._errors import UsageError
from autolora_eval._files import Json

if TYPE_CHECKING:
    import pandas as pd

# The section of a manifest that a comparison of runs has, and no run.
COMPARED = "compared"


@dataclass(frozen=True)
class RunFolder:
    """Everything that one run wrote.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def manifest(self) -> Path:
        """What was run: inputs, hashes, versions, hardware, times."""
        return self.path / "manifest.json"

    def images(self, cell: str) -> Path:
        """Return the image dataset of a cell, a Hugging Face imagefolder."""
        return self.path / "images" / cell

    def metadata(self, cell: str) -> Path:
        """Return the list of a cell's images: one JSON object a line."""
        return self.images(cell) / "metadata.jsonl"

    def stale_images(self, cell: str, settings_key: str) -> Path:
        """Return where a cell's images of other settings are kept, to return with them."""
        return self.path / "stale_images" / cell / settings_key

    def failed_images(self, cell: str) -> Path:
        """Return why images could not be made or imported: one JSON object a line."""
        return self.path / "failed_images" / f"{cell}.jsonl"

    def image_set(self, cell: str) -> Path:
        """Return the account of a cell's images that were made elsewhere, one row a finding."""
        return self.path / "image_sets" / f"{cell}.csv"

    def features(self, cell: str) -> Path:
        """Return the feature matrix of a cell, float32 [N, D]."""
        return self.path / "features" / f"{cell}.safetensors"

    def judgements(self, cell: str) -> Path:
        """Return the judge's replies to a cell's images: one JSON object a line."""
        return self.path / "judgements" / f"{cell}.jsonl"

    @property
    def judge_log(self) -> Path:
        """What the judge's server printed, where the run itself started it."""
        return self.path / "judge_server.log"

    @property
    def scores(self) -> Path:
        """One row an image."""
        return self.path / "scores.parquet"

    @property
    def diversity(self) -> Path:
        """Equation (8) of every cell and prompt, or the reason why it is undefined."""
        return self.path / "diversity.csv"

    def table(self, suffix: str) -> Path:
        """Return the result table, one row a cell, as `csv`, `md`, `tex` or `parquet`."""
        return self.path / f"table.{suffix}"

    @property
    def comparisons(self) -> Path:
        """Paired differences against the baseline."""
        return self.path / "comparisons.csv"

    @property
    def timings(self) -> Path:
        """Seconds of an image, one row a cell: of the machine, and so in no other table."""
        return self.path / "timings.csv"

    @property
    def reliability(self) -> Path:
        """How far the judge agrees with itself, one row a cell and score."""
        return self.path / "reliability.csv"

    @property
    def unscored(self) -> Path:
        """Unscored images, one row a cell and reason."""
        return self.path / "unscored.csv"

    @property
    def agreement(self) -> Path:
        """How far the judge agrees with people, one row a score and statistic."""
        return self.path / "agreement.csv"

    @property
    def figures(self) -> Path:
        """The folder of figures."""
        return self.path / "figures"

    @property
    def report_pdf(self) -> Path:
        """The report, for reading and print."""
        return self.path / "report.pdf"

    @property
    def report_html(self) -> Path:
        """The report, in one self-contained file."""
        return self.path / "report.html"

    def read_manifest(self) -> Json:
        """Return the manifest; empty if there is none yet.

        Raises:
            UsageError: the file of that name holds something else.
        """
        if not self.manifest.is_file():
            return {}
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
        except ValueError:
            manifest = None
        if not isinstance(manifest, dict):
            raise self.refused()
        return manifest

    def benchmark_file(self) -> str:
        """Return the benchmark that was run: its file's place now, or a shipped one's name.

        Raises:
            UsageError: the manifest does not say, or it is a comparison, which has none.
        """
        manifest = self.read_manifest()
        if COMPARED in manifest:
            raise UsageError(
                f"'{self.path}' is a comparison of runs: there is nothing to generate or score in "
                "it. Score the runs that it is of, and compare them again; its report is drawn "
                f"anew by: autolora-eval report {self.path}"
            )
        if "benchmark_file" not in manifest:
            raise self.refused()
        stated = str(manifest["benchmark_file"])
        file = self.path / stated
        return str(file.resolve()) if file.is_file() else stated

    def relative(self, benchmark: str, file: Path) -> str:
        """Return what the manifest states of a benchmark: its file as seen from the run folder.

        So stated, a run is found from any working directory, and together with its benchmark
        wherever both are moved; a shipped benchmark is stated by its name.

        Args:
            benchmark: as the user named it.
            file: the benchmark file.
        """
        if not Path(benchmark).is_file():
            return benchmark
        return Path(os.path.relpath(file.resolve(), self.path.resolve())).as_posix()

    def settings_key(self, cell: str) -> str | None:
        """Return the content key of the settings that a cell's images must have, if it is known."""
        for stated in self.read_manifest().get("cells") or []:
            if stated.get("id") == cell:
                key: str | None = stated.get("settings_key")
                return key
        return None

    def refused(self) -> UsageError:
        """Return what is to be said of a manifest that is not a run's."""
        return UsageError(f"'{self.path}' is not a run folder: its manifest.json is not a run's.")


@dataclass(frozen=True)
class Run:
    """A finished run, as tables.

    Attributes:
        folder: where its files are.
        manifest: what was run.
        scores: one row an image.
        diversity: one row a cell and prompt.
        table: one row a cell.
        comparisons: one row a cell and measure, against the baseline.
    """

    folder: RunFolder
    manifest: Json
    scores: pd.DataFrame
    diversity: pd.DataFrame
    table: pd.DataFrame
    comparisons: pd.DataFrame


def open_run(path: str | Path) -> Run:
    """Read a finished run.

    Args:
        path: the run folder.

    Raises:
        UsageError: it is no run folder, or the run has not got as far as its table.
    """
    import pandas as pd

    folder = RunFolder(Path(path))
    manifest = folder.read_manifest()
    if not manifest:
        raise UsageError(f"'{path}' is not a run folder: it has no manifest.json.")
    if not folder.table("parquet").is_file():
        raise UsageError(
            f"'{path}' has no table yet: the run was interrupted. "
            f"Finish it with: autolora-eval run {folder.benchmark_file()} --output {path}"
        )
    # A method may be called 'NA' or 'None': only an empty field is null.
    names = [
        *("cell", "model", "method", "baseline", "baseline_cell"),
        *("measure", "unit", "prompt", "reason", "sentence"),
    ]
    as_written: dict[str, Any] = {
        "keep_default_na": False,
        "na_values": [""],
        "dtype": dict.fromkeys(names, str),
    }
    return Run(
        folder=folder,
        manifest=manifest,
        scores=pd.read_parquet(folder.scores),
        diversity=pd.read_csv(folder.diversity, **as_written),
        table=pd.read_parquet(folder.table("parquet")),
        comparisons=pd.read_csv(folder.comparisons, **as_written),
    )
