"""What tables and report were made from, so that neither is edited unseen or made twice."""

from __future__ import annotations

from pathlib import Path

from autolora_eval._files import content_hash, sha256_file
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import RunManifest

# What the latest command reused or did anew decides neither tables nor report.
_COUNTS = {"done", "reused", "cached"}
_VOLATILE: dict[str, bool | set[str]] = {"tables_key": True, "report_key": True}
_VOLATILE |= {"features": _COUNTS, "judge": _COUNTS}


def manifest_key(manifest: RunManifest) -> str:
    """Return the content hash of a manifest, but for what tables and report do not depend on."""
    return content_hash(manifest.model_dump(mode="json", exclude=_VOLATILE))


def tables_key(folder: RunFolder, published: Path | None) -> str:
    """Return the hash of all that the tables were made from and of the tables themselves.

    Args:
        folder: The run folder.
        published: The CSV file of published values, if there is one.
    """
    manifest = folder.read_manifest()
    values = None if published is None else sha256_file(published)
    return content_hash([manifest_key(manifest), values, checksums(folder, manifest)])


def are_tables_current(folder: RunFolder, published: Path | None) -> bool:
    """Return True if the tables were made from the files that are in the run folder now."""
    manifest = folder.find_manifest()
    return manifest is not None and manifest.tables_key == tables_key(folder, published)


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
