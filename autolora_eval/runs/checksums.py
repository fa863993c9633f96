"""Checksums of what a run's numbers come from, taken when its tables are written."""

from __future__ import annotations

from pathlib import Path

from autolora_eval._files import sha256_file
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import RunManifest


def checksums(folder: RunFolder, manifest: RunManifest) -> dict[str, str]:
    """Return the SHA-256 of tables, features, replies and lists of images, by path in the folder.

    Images are not among them: the lists have the hash of each.
    """
    files: list[Path] = [*folder.tables, folder.table("md"), folder.table("tex")]
    for cell in manifest.cells:
        files += [folder.metadata(cell.id), folder.features(cell.id), folder.judgements(cell.id)]
    return {
        file.relative_to(folder.path).as_posix(): sha256_file(file)
        for file in files
        if file.is_file()
    }
