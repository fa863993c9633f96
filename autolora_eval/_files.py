"""Atomic writes, the lock of a folder, hashes, and file names that are safe everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from autolora_eval._errors import AutoLoRAEvalError

Json = dict[str, Any]
# Each stage leaves this much disk space for its last files.
SPARE_BYTES = 50_000_000
_PARTIAL = ".partial-"
LOCK = ".lock"
_held: set[tuple[str, int]] = set()  # locks of this process, each with its thread
CACHE_VARIABLE = "AUTOLORA_EVAL_CACHE"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to `path` if the block succeeds.

    A reader never sees half a file, even if the process is killed.

    Args:
        path: the file to write. Its folder is created. The temporary file has the same suffix,
            because some writers choose the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Files of tempfile are private. This one has the mode of the user's umask.
    temporary = path.parent / f"{_PARTIAL}{secrets.token_hex(4)}{path.suffix}"
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        error.filename = str(path)  # messages name the file that the user knows
        raise
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def require_space(folder: Path, needed: float = 0) -> None:
    """Check that the disk of a folder, which may be new, has room for `needed` more bytes.

    Raises:
        AutoLoRAEvalError: if it does not, before a file is cut off.
    """
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed + SPARE_BYTES:
        raise AutoLoRAEvalError(
            f"the disk of '{folder}' has {free / 1e9:,.2f} GB free, and what is left of the run "
            f"takes about {(needed + SPARE_BYTES) / 1e9:,.2f} GB. Finished work is kept: free some "
            "space, and run the same command again."
        )


@contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; remove those that are new and empty if the block fails."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):  # the folder is not empty
                path.rmdir()
        raise


@contextmanager
def writing(folder: Path, lock: Path | None = None) -> Iterator[None]:
    """Keep other processes from writing into a run folder during the block.

    Blocks of one thread may be nested. The system gives the lock back when a process dies, so the
    lock file of a killed one is harmless, and its temporary files are removed. Windows and file
    systems without locks are not protected.

    Args:
        folder: the run folder. If it is new and the block fails, it is removed if it is empty.
        lock: the file to lock. Default: `.lock` in the folder.

    Raises:
        AutoLoRAEvalError: if another process writes into the folder, or it cannot be written.
    """
    lock = lock or folder / LOCK
    key = os.path.realpath(lock), threading.get_ident()
    if key in _held or sys.platform == "win32":
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(removed_on_failure(lock.parent))
            handle = _locked(folder, lock)
            _remove_partial(folder)
        except OSError as error:
            raise AutoLoRAEvalError(
                f"'{folder}' cannot be written: {error.strerror}. Fix that, or name another "
                "--output."
            ) from error
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)
            lock.unlink(missing_ok=True)  # before the lock is given back
            os.close(handle)


def _locked(folder: Path, lock: Path) -> int:
    """Open and lock the file, and write the holder into it."""
    import fcntl
    import socket

    while True:
        # A link could lead to another file, which the note would replace.
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            with suppress(OSError):  # a file system without locks
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder = os.pread(handle, 300, 0).decode(errors="replace")
                    raise AutoLoRAEvalError(
                        f"{holder or 'another process'} is writing into '{folder}'. Wait until it "
                        "ends, then run the same command again."
                    ) from None
            if lock.exists() and os.path.samestat(os.fstat(handle), lock.stat()):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # another process has just removed the lock file


def _remove_partial(folder: Path) -> None:
    """Remove the temporary files of killed processes below a locked folder."""
    for path in folder.rglob(f"{_PARTIAL}*"):
        if path.is_file() and not path.is_symlink():
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, in a manifest from elsewhere
        text = json.dumps(value, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object per line, atomically."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text(path, "".join(lines))


def iterate_jsonl(path: Path) -> Iterator[Json]:
    """Yield the JSON objects of a file, one per line; none if there is no file.

    A last line without a line break was left by a killed writer and is skipped.

    Raises:
        AutoLoRAEvalError: if another line is not a JSON object.
    """
    if not path.exists():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.endswith(b"\n") and line.strip():
                yield _json_object(line, f"{path}:{number}")


def _json_object(line: bytes, where: str) -> Json:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AutoLoRAEvalError(
            f"{where}: not valid JSON ({error!s:.200}); the file was damaged or edited. Remove "
            "that line: what it was about is done again."
        ) from error
    if not isinstance(found, dict):
        raise AutoLoRAEvalError(f"{where}: expected a JSON object (got {found!r:.60}).")
    return found


def sha256_bytes(data: bytes | memoryview) -> str:
    """Return the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_folder(folder: Path, suffixes: tuple[str, ...]) -> str:
    """Return one SHA-256 of the names and contents of a folder's files with these suffixes."""
    digest = hashlib.sha256()
    inside = (
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
    )
    for path in sorted(p for p in inside if p.is_file() and p.suffix in suffixes):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Return the cache folder: `AUTOLORA_EVAL_CACHE`, or one in the user's cache folder."""
    configured = os.environ.get(CACHE_VARIABLE)
    if configured:
        return Path(configured).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "autolora-eval"


def content_hash(value: object) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return sha256_bytes(text.encode(errors="surrogatepass"))[:16]


def path_inside(folder: Path, name: str) -> Path:
    """Return the absolute path of a file in a folder, with links followed. It need not exist.

    Use it for every name from a third-party file, such as a table of a run folder or a list of
    images: such a name must not pull in other files of this machine.

    Raises:
        ValueError: if the path, or a link on it, points outside the folder.
    """
    path = Path(os.path.realpath(folder / name))  # resolve() fails at a loop of links
    if not path.is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"'{name}' points outside its folder")
    return path


def slug(name: str) -> str:
    """Return a safe folder name: all but letters, digits and + . _ - becomes '-'."""
    safe = re.sub(r"[^A-Za-z0-9+._-]+", "-", name).strip("-.")
    return safe or "unnamed"


def run_name(text: str) -> str:
    """Return a valid benchmark name: at most 80 letters, digits and . _ - of the text.

    >>> run_name("LoRA+CFG, twice"), run_name("_"), run_name("\u732b")
    ('LoRA-CFG-twice', 'unnamed', 'unnamed')
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:80].rstrip("-._")
    return safe or "unnamed"


@lru_cache
def prompt_folder(prompt: str, negative_prompt: str | None = None) -> str:
    """Return the folder name of a prompt's images: readable, and unique by a hash of both texts.

    The name does not depend on the prompt's index, so reordering the prompts keeps the images.
    """
    text = prompt if negative_prompt is None else f"{prompt}\0{negative_prompt}"
    return f"{slug(prompt.lower())[:40].strip('-.')}-{sha256_bytes(text.encode())[:12]}"


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it if that is not possible. It may be missing."""
    if not source.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
