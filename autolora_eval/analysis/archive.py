"""The files of a run against its records, and an archive of a run with a dataset card.

The entries of an archive are not compressed, so that the same folder gives the same bytes, and no
archive can grow when it is unpacked.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import yaml

from autolora_eval._errors import AutoLoRAEvalError, UsageError, as_damaged
from autolora_eval._files import LOCK, atomic_write, sha256_file
from autolora_eval._text import pluralize, printable
from autolora_eval.analysis.scores import as_said, rubric_of
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import cell_images
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.scoring.judgement_store import JudgementFile

# The two files of an archive that a run does not have.
CARD, HASHES = "README.md", "SHA256SUMS"
# What a run writes besides the files with a checksum and the images.
_WRITTEN = (
    *("manifest.json", "benchmark.yaml", "report.pdf", "report.html", "agreement.csv"),
    *("judge_server.log", "figures/*.svg", "figures/*.png", "image_sets/*.csv"),
    *("failed_images/*.jsonl", "stale_images/*", CARD, HASHES, LOCK),
)


class Finding(NamedTuple):
    """A file that differs from the records; `file` is its path below the run folder."""

    kind: Literal["missing", "changed", "extra"]
    file: str
    detail: str = ""


def verify(path: Path) -> list[Finding]:
    """Return what is missing, changed or extra in a run folder."""
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


# What a run keeps for itself: images of other settings, and a log that names the machine.
_NOT_PACKED = ("stale_images/", "judge_server.log", CARD, HASHES)
_PART = r"(?!\.{1,2}(?:/|$))[^/\\:\x00-\x1f\x7f]{1,200}"
_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,9}}")
_SUM = re.compile(r"([0-9a-f]{64})  ([^\n]+)\n")
_MODE = (stat.S_IFREG | 0o644) << 16


def pack(run: Path, output: Path | None = None) -> Path:
    """Write an archive of a scored run: its files, their SHA-256 and a dataset card.

    The default of `output` is `<run folder>.zip` beside the run folder. A run whose files are
    missing or changed is refused.
    """
    wrong = [finding for finding in verify(run) if finding.kind != "extra"]
    if wrong:
        raise UsageError(
            f"'{run}' cannot be packed: {wrong[0].kind}: {wrong[0].file}. To list all "
            f"problems, run: autolora-eval verify {run}"
        )
    folder = RunFolder(run)
    manifest = folder.read_manifest()
    own, _ = run_files(folder, manifest)
    names = [name for name in own if not name.startswith(_NOT_PACKED)]
    # Not with_suffix: of 'sdxl-1.0' it would make 'sdxl-1.zip'.
    output = output or Path(f"{run.resolve()}.zip")
    if output.is_dir():
        named = f"{run.resolve().name}.zip"
        raise UsageError(f"'{output}' is a folder. Name the archive, such as '{named}'.")
    with atomic_write(output) as temporary, ZipFile(temporary, "w", ZIP_STORED) as archive:
        sums = {CARD: _add(archive, CARD, card(manifest).encode())}
        sums |= {name: _add(archive, name, folder.within(run / name)) for name in names}
        _add(archive, HASHES, "".join(f"{s}  {name}\n" for name, s in sums.items()).encode())
    return output


def _add(archive: ZipFile, name: str, content: Path | bytes) -> str:
    """Add an entry whose time and mode are always the same, and return its SHA-256."""
    entry = ZipInfo(name)  # its default time is in 1980
    entry.create_system, entry.external_attr = 3, _MODE
    if isinstance(content, bytes):
        archive.writestr(entry, content)
        return hashlib.sha256(content).hexdigest()
    entry.file_size = content.stat().st_size
    with content.open("rb") as source, archive.open(entry, "w") as target:
        shutil.copyfileobj(source, target, 1024**2)
    return sha256_file(content)


def verify_archive(path: Path) -> list[Finding]:
    """Return what is missing, changed or extra in an archive that `pack` wrote.

    It is unpacked into a temporary folder, of no more bytes than the archive has. Another archive,
    and an entry that points outside it or is a link, are refused.
    """
    with TemporaryDirectory() as place:
        folder = Path(place)
        try:
            damaged = list(_unpack(path, folder))
            return damaged or list(_unlike_sums(folder)) or verify(folder)
        except AutoLoRAEvalError as error:
            raise type(error)(str(error).replace(place, str(path))) from error


def _unpack(path: Path, folder: Path) -> Iterator[Finding]:
    """Write the entries of an archive into a folder, and yield those that are damaged."""
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
            _refuse_unsafe(path, entries)
            for entry in entries:
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with archive.open(entry) as source, target.open("wb") as stream:
                        shutil.copyfileobj(source, stream, 1024**2)
                except (BadZipFile, EOFError) as error:
                    yield Finding("changed", entry.filename, str(error))
    except (BadZipFile, EOFError, NotImplementedError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # an offset before its start
            raise
        raise UsageError(
            f"'{path}' is neither a run folder nor an archive of one, or it is damaged: {error}."
        ) from error


def _refuse_unsafe(path: Path, entries: list[ZipInfo]) -> None:
    """Refuse an archive that `pack` did not write, before anything of it is unpacked."""
    names = Counter(entry.filename for entry in entries)
    folders = {str(place) for name in names for place in PurePosixPath(name).parents}
    for entry in entries:
        name = entry.filename
        problem = None
        if _NAME.fullmatch(name) is None:
            problem = "its name points outside the archive or is not that of a file"
        elif stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            problem = "it is not a regular file"
        elif entry.compress_type != ZIP_STORED or entry.flag_bits & 1:
            problem = "it is compressed or encrypted"
        elif names[name] > 1 or name in folders:
            problem = "another entry has its name"
        if problem:
            raise UsageError(
                f"'{path}' is refused: {name!r:.200}: {problem}. Nothing was unpacked."
            )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise UsageError(f"'{path}' is refused: its entries overlap. Nothing was written.")


def _unlike_sums(folder: Path) -> Iterator[Finding]:
    """Yield the files of an unpacked archive that differ from its list of hashes."""
    file = folder / HASHES
    text = file.read_bytes().decode(errors="replace") if file.is_file() else ""
    sums = {name: sha256 for sha256, name in _SUM.findall(text)}
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {HASHES}
    if not sums or _SUM.sub("", text):
        yield Finding("changed" if text else "missing", HASHES)
    for name in sorted(sums.keys() - there):
        yield Finding("missing", name)
    for name in sorted(there):
        if name not in sums:
            yield Finding("extra", name)
        elif sha256_file(folder / name) != sums[name]:
            yield Finding("changed", name, "not as in SHA256SUMS")


def card(manifest: RunManifest) -> str:
    """Return the dataset card of a run, with which the library `datasets` reads its images."""
    sources = _sources(manifest)
    known = {licence for _, _, licence, _ in sources}
    head = {
        "license": known.pop() if len(known) == 1 else "unknown",
        "tags": ["autolora-eval"],
        # Not by the names of folders: a prompt's may have the word 'test' in it.
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "images/**"}]}
        ],
    }
    name, about = manifest.benchmark.name, manifest.benchmark.description
    counts = [
        pluralize(len(manifest.cells), "cell"),
        pluralize(len(manifest.prompts), "prompt"),
        pluralize(len(manifest.seeds), "seed"),
    ]
    rows = [" | ".join(map(_field, row)) for row in sources]
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
            f"# {_field(name)}",
            *([f"\n{_field(about)}"] if about else []),
            f"\nA run of autolora-eval {_field(manifest.autolora_eval_version)}: "
            f"{' × '.join(counts)}. `report.html` shows it, `table.csv` has its numbers, and "
            "`manifest.json` says how they were made.",
            "\n| what | name | licence | SHA-256 or commit |\n| --- | --- | --- | --- |",
            *(f"| {row} |" for row in rows),
            '\nRead the images with `datasets.load_dataset("FOLDER")`, where FOLDER is this one, '
            f"unpacked. Check all files with `sha256sum -c {HASHES}`, or the archive with "
            "`autolora-eval verify ARCHIVE`.\n",
        ]
    )


def _sources(manifest: RunManifest) -> list[tuple[str, str, str, str]]:
    found = []
    for model in manifest.models.values():
        parts = {"pipeline": model.pipeline, "VAE": model.vae}
        found += [(what, source) for what, source in parts.items() if source is not None]
        found += [("LoRA", lora) for lora in model.loras]
    found += [("extractor", manifest.features.identity)] if manifest.features else []
    judge = manifest.judge
    found += [("judge", judge.identity)] if judge and judge.identity else []
    licences = manifest.licenses
    rows = [
        (what, one.name, licences.get(one.name, "unknown"), one.sha256 or one.commit or "unknown")
        for what, one in found
    ]
    rows += [("judge", judge.model, "unknown", "unknown")] if judge and not judge.identity else []
    prompts = ("prompts", manifest.benchmark.prompt_file or "in the benchmark", "unknown")
    return list(dict.fromkeys([*rows, (*prompts, manifest.prompts_sha256)]))


def _field(text: str) -> str:
    """Return foreign text on one line, with Markdown escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(printable(text).split()))
