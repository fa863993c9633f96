"""The identity of a model: the hash of the files that are loaded, or its commit on the hub.

It is part of content keys and of the manifest. Files that are not on this machine are fetched.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from autolora_eval._errors import AutoLoRAEvalError, first_line
from autolora_eval._files import Json, cache_folder, sha256_bytes, sha256_file, write_json
from autolora_eval.sources.model_source import ADAPTER_CONFIG, Source, local_lora, unreachable

_INDEX = "model_index.json"
_SUFFIXES = (".safetensors", ".json", ".model", ".jinja")
_VOCABULARIES = ("vocab.txt", "merges.txt", "dict.txt")
# diffusion_pytorch_model.fp16-00001-of-00002.safetensors, or with the variant at the end
_VARIANT = re.compile(r"[^.]+\.(.+?)(-\d+-of-\d+)?\.safetensors")
# Smaller files are hashed in under 20 ms.
_REMEMBERED_BYTES = 16 * 1024**2
# A file that was written more recently may be written again without a new time.
_SETTLED_NS = 2_000_000_000


def identity(source: Source, variant: str | None = None) -> Json:
    """Return the identity of a model.

    Args:
        source: a folder or file is hashed; a hub id is resolved to its commit.
        variant: the variant of the weights that are loaded, such as `fp16`.
    """
    if source.kind == "hub":
        return {"name": source.name, "kind": "hub", "commit": _commit(source)}
    if source.kind == "file":
        return lora_identity(source)
    digest = hashlib.sha256()
    files = {f.relative_to(source.path).as_posix(): f for f in _loaded_files(source.path, variant)}
    for name, file in sorted(files.items()):
        digest.update(f"{name}\0{remembered_sha256(file)}\n".encode())
    return {"name": source.name, "kind": source.kind, "sha256": digest.hexdigest()}


def lora_identity(source: Source) -> Json:
    """Return the identity of a LoRA: the hash of its file, which is fetched if needed.

    With peft's settings beside the file, which may hold its alpha, it has their hash too.
    """
    file = local_lora(source)
    found: Json = {
        "name": source.name,
        "kind": source.kind,
        "sha256": remembered_sha256(file),
    }
    settings = file.with_name(ADAPTER_CONFIG)
    return found | ({"settings_sha256": sha256_file(settings)} if settings.is_file() else {})


def remembered_sha256(file: Path) -> str:
    """Return the SHA-256 of a file; a large one is read once on a machine, until it changes.

    The cache folder has one small file for each path. It only saves time: if it cannot be used,
    the file is hashed again.
    """
    now, state = time.time_ns(), _state(file)
    if file.stat().st_size < _REMEMBERED_BYTES:
        return sha256_file(file)
    note = cache_folder() / "sha256" / f"{sha256_bytes(str(file.resolve()).encode())[:32]}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["state"] == state:
            return str(known["sha256"])
    digest = sha256_file(file)
    if state == _state(file) and max(state[1:3]) < now - _SETTLED_NS:
        with suppress(OSError):
            write_json(note, {"file": str(file.resolve()), "state": state, "sha256": digest})
    return digest


def _state(file: Path) -> list[int]:
    """Return what changes if a file is changed or replaced."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _loaded_files(folder: Path, variant: str | None) -> Iterator[Path]:
    """Yield the files of a model that may be loaded; a model may also be a single file.

    A pipeline's files are its index and those of its components.
    """
    if folder.is_file():
        yield folder
        return
    index = folder / _INDEX
    if not index.is_file():
        yield from _of_variant(folder.rglob("*"), variant)
        return
    yield index
    for component in json.loads(index.read_text(encoding="utf-8")):
        if (folder / component).is_dir():
            yield from _of_variant((folder / component).rglob("*"), variant)


def weight_variant(name: str) -> str | None:
    """Return the variant of a weight file, such as `fp16`; None if it has none."""
    match = _VARIANT.fullmatch(name)
    return match and match[1]


def _of_variant(files: Iterable[Path], variant: str | None) -> Iterator[Path]:
    """Yield the files that may be loaded; of weights, those of the variant if there are any."""
    found = [file for file in files if file.suffix in _SUFFIXES or file.name in _VOCABULARIES]
    weights = {file: weight_variant(file.name) for file in found if file.suffix == _SUFFIXES[0]}
    chosen = {file for file, own in weights.items() if own == variant}
    for file in found:
        if file.is_file() and (file in chosen or not chosen or file not in weights):
            yield file


def _commit(source: Source) -> str:
    """Return the commit that a hub id and revision stand for, as the cache's folder names it."""
    from huggingface_hub import hf_hub_download

    for name in (_INDEX, "config.json"):
        try:
            path = Path(hf_hub_download(source.location, name, revision=source.revision))
        except (OSError, ValueError) as error:
            problem = error
            continue
        parts = path.parts
        # The last of that name: the cache may itself lie below a folder called snapshots.
        return parts[len(parts) - parts[::-1].index("snapshots")]
    raise AutoLoRAEvalError(unreachable([source], first_line(problem))) from problem
