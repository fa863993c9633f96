"""The runs that are compared, each under a short name of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from autolora_eval.errors import UsageError
from autolora_eval.files import Json
from autolora_eval.run_folder import Run, open_run

_NEEDED = ("cells", "benchmark", "prompts", "seeds")
# Cell ids name files; a manifest of somebody else must not lead out of the folder.
_CELL_ID = re.compile(r"[^/\\.][^/\\]*")


@dataclass(frozen=True)
class SourceRun:
    """A finished run.

    Attributes:
        label: its short name.
        run: its tables and manifest.
    """

    label: str
    run: Run

    @property
    def manifest(self) -> Json:
        """What was run."""
        return self.run.manifest

    def section(self, name: str) -> Json:
        """Return a section of the manifest; empty where there is none."""
        found: Any = self.manifest.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def cells(self) -> list[Json]:
        """Its cells, as the manifest states them."""
        return [dict(cell) for cell in self.manifest.get("cells") or []]

    @property
    def prompts(self) -> list[str]:
        """Its prompts, in order."""
        return [str(prompt) for prompt in self.manifest.get("prompts") or []]

    @property
    def seeds(self) -> list[int]:
        """Its seeds, in order."""
        return [int(seed) for seed in self.manifest.get("seeds") or []]

    @property
    def repeats(self) -> int:
        """How often its judge was asked of each image."""
        return int(self.section("judge").get("repeats") or 1)

    @cached_property
    def hashes(self) -> dict[tuple[str, str, int], str | None]:
        """SHA-256 of every image, by (cell, prompt, seed); None for one that is missing."""
        columns = ("cell", "prompt", "seed", "sha256")
        rows = zip(*(self.run.scores[name] for name in columns), strict=True)
        return {
            (str(cell), str(prompt), int(seed)): sha if isinstance(sha, str) else None
            for cell, prompt, seed, sha in rows
        }


def open_sources(paths: Sequence[str | Path]) -> list[SourceRun]:
    """Open the runs; each is called as its folder, with as much of the path as tells it apart.

    Raises:
        UsageError: fewer than two, one of them twice, or one is no finished run.
    """
    places = [Path(path).resolve() for path in paths]
    if len(places) < 2:
        raise UsageError(f"name two or more runs to compare (got {len(places)}).")
    for place, path in zip(places, paths, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"'{path}' is named twice.")
    depth = 1
    while len({place.parts[-depth:] for place in places}) < len(places):
        depth += 1
    sources = [
        SourceRun("/".join(place.parts[-depth:]), open_run(path))
        for place, path in zip(places, paths, strict=True)
    ]
    for source in sources:
        _refuse_unfit(source)
    return sources


def _refuse_unfit(source: SourceRun) -> None:
    """Stop at a run that lacks what a comparison is made of."""
    for name in _NEEDED:
        if not source.manifest.get(name):
            raise UsageError(
                f"'{source.label}' does not record its {name}: an older version made it, or its "
                "manifest.json was changed. With its benchmark, run it again: what is there stays."
            )
    for cell in source.cells:
        id_ = str(cell.get("id"))
        if not _CELL_ID.fullmatch(id_):
            raise UsageError(f"'{source.label}': '{id_:.100}' is no name of a cell.")
        if not source.run.folder.features(id_).is_file():
            raise UsageError(
                f"'{source.label}': its cell '{id_:.100}' has no features. Make them with: "
                f"autolora-eval score {source.run.folder.path}"
            )
