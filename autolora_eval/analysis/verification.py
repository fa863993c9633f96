"""Checks the files of a run folder against its records. Reads only the folder."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, NamedTuple

from autolora_eval._errors import as_damaged
from autolora_eval._files import sha256_file
from autolora_eval.analysis.scores import as_said, rubric_of
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import cell_images
from autolora_eval.runs.lock import LOCK
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.scoring.judgement_store import JudgementFile

# Of an archive that was unpacked.
CARD, HASHES = "README.md", "SHA256SUMS"
# What a run writes besides the files with a checksum and the images.
_WRITTEN = (
    *("manifest.json", "benchmark.yaml", "report.pdf", "report.html", "agreement.csv"),
    *("judge_server.log", "figures/*.svg", "figures/*.png", "image_sets/*.csv"),
    *("failed_images/*.jsonl", "stale_images/*", CARD, HASHES, LOCK),
)


class Finding(NamedTuple):
    """One thing that is not as the records say.

    Attributes:
        kind: what is wrong.
        file: path below the run folder.
        detail: more, in words.
    """

    kind: Literal["missing", "changed", "extra"]
    file: str
    detail: str = ""


def verify(path: Path) -> list[Finding]:
    """Return what is missing, changed or extra in a run folder.

    Raises:
        UsageError: if it is not a run folder.
    """
    folder = RunFolder(path)
    manifest = folder.read_manifest()
    if not manifest.checksums:
        return [Finding("missing", "table.csv", "the run was not scored to its end")]
    with as_damaged(path):
        return [*_files(folder, manifest), *_images(folder, manifest), *_replies(folder, manifest)]


def _files(folder: RunFolder, manifest: RunManifest) -> Iterator[Finding]:
    for name, sha256 in manifest.checksums.items():
        file = folder.within(folder.path / name)
        if not file.is_file():
            yield Finding("missing", name)
        elif sha256_file(file) != sha256:
            yield Finding("changed", name, "after the tables were written")
    for name in run_files(folder, manifest)[1]:
        yield Finding("extra", name)


def run_files(folder: RunFolder, manifest: RunManifest) -> tuple[list[str], list[str]]:
    """Return the files that a run wrote, and the others in its folder."""
    known = set(manifest.checksums)
    for cell in manifest.cells:
        images = folder.images(cell.id).relative_to(folder.path)
        known |= {(images / row["file_name"]).as_posix() for row in folder.image_rows(cell)}
    own: list[str] = []
    others: list[str] = []
    for file in sorted(folder.path.rglob("*")):
        name = file.relative_to(folder.path).as_posix()
        if file.is_symlink() or not file.is_dir():
            is_own = name in known or any(fnmatch(name, pattern) for pattern in _WRITTEN)
            (own if is_own else others).append(name)
    return own, others


def _images(folder: RunFolder, manifest: RunManifest) -> Iterator[Finding]:
    for cell in manifest.cells:
        recorded = {row["file_name"] for row in folder.image_rows(cell)}
        for image in cell_images(manifest, cell, folder):
            name = image.path.relative_to(folder.path).as_posix()
            if image.problem == "missing_image" and image.id in recorded:
                yield Finding("missing", name)
            elif image.problem and image.id in recorded:
                yield Finding("changed", name, image.problem)


def _replies(folder: RunFolder, manifest: RunManifest) -> Iterator[Finding]:
    rubric, judge = rubric_of(manifest), manifest.judge
    if rubric is None or judge is None:
        return
    for cell in manifest.cells:
        file = folder.judgements(cell.id)
        for row in JudgementFile(file).rows(judge.key):
            if as_said(row, rubric)["scores"] != row["scores"]:
                name = file.relative_to(folder.path).as_posix()
                detail = f"scores of {row['image_id']} are not those of the reply"
                yield Finding("changed", name, detail)
