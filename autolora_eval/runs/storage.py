"""A run folder at a URL, such as `s3://bucket/runs/mine`, and its working copy on this machine.

Stages read and write the working copy like any run folder. A thread sends the changes. Files that a
command could not send are kept for the next command with the same URL. The object `.lock` at the
URL names the working copy that wrote last: if it is this one, the newer files are here.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from autolora_eval._errors import AutoLoRAEvalError, UsageError, first_line
from autolora_eval._files import (
    LOCK,
    Json,
    atomic_write,
    cache_folder,
    content_hash,
    link_or_copy,
    require_space,
    slug,
    write_json,
    write_text,
    writing,
)
from autolora_eval.runs.file_systems import file_system, is_url
from autolora_eval.runs.folder import RunFolder

R = TypeVar("R")
SECONDS_BETWEEN = 5.0  # between two sends
FIRST_PAUSE = 0.5  # seconds after a failure; doubled after each further one
TRIES, TRIES_AT_START = 8, 4
_THREADS = 8
# A part of a name at a URL: not "..", and without separators of any file system.
_PART = re.compile(r"(?!\.\.?$)[^\x00-\x1f\x7f\\:/]{1,255}")
# Attributes that show that a file at a URL has changed; each file system has some of them.
_MARKS = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


@contextmanager
def working_copy(
    place: str | Path | None,
    *,
    finished: bool = False,
    stored: Callable[[str], None] = lambda url: None,
) -> Iterator[str | Path | None]:
    """Yield the working copy of the run folder at a URL.

    At the end everything is at the URL, or an error says that it is not.

    Args:
        place: a URL that fsspec knows. Anything else is yielded as it is.
        finished: whether a run must be there.
        stored: called with the URL once everything is there, if anything was sent.

    Raises:
        UsageError: if the URL cannot be used.
        AutoLoRAEvalError: if it does not answer, or another command writes there.
    """
    if not isinstance(place, str) or not is_url(place):
        yield place
        return
    storage = Storage(place)
    with writing(storage.copy):
        with storage.named_by_url():
            storage.fetch()
            if finished and not RunFolder(storage.copy).manifest.is_file():
                raise UsageError(f"'{place}' is not a run folder: it has no manifest.json.")
        with storage.sending(), storage.named_by_url():
            yield storage.copy
        if storage.claimed:
            stored(place)


class _Known(NamedTuple):
    """A file that is equal here and at the URL.

    `mark` identifies its version there. It is empty if the file was sent and not listed yet.
    """

    size: int
    mtime_ns: int
    mark: str = ""

    def is_same_here(self, other: _Known | None) -> bool:
        return other is not None and self[:2] == other[:2]


class Storage:
    """The run folder at a URL, and its working copy.

    Args:
        url: of a file system that fsspec knows.

    Raises:
        UsageError: if the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = file_system(url)
        self._home = cache_folder().absolute() / "runs" / content_hash(url.rstrip("/"))
        self.copy = self._home / slug(url.rstrip("/").rpartition("/")[2])
        self._record = self._home / "sent.json"
        known: Json = {}
        with suppress(OSError, ValueError):
            known = json.loads(self._record.read_text(encoding="utf-8"))
        self._token = str(known.get("working_copy", secrets.token_hex(8)))
        self._known = {name: _Known(*values) for name, values in known.get("files", {}).items()}
        self._seen: str | None = None
        self.claimed = False

    @contextmanager
    def named_by_url(self) -> Iterator[None]:
        """Replace the path of the working copy by the URL in errors."""
        try:
            yield
        except AutoLoRAEvalError as error:
            error.args = (str(error).replace(str(self.copy), self.url),)
            raise

    def fetch(self) -> None:
        """Fetch the files that are newer at the URL.

        Raises:
            UsageError: if it is not a run folder, or has a file with an invalid name.
            AutoLoRAEvalError: if the URL does not answer.
        """
        self._save()
        self._insist(self._fetch, TRIES_AT_START, "Nothing was changed.")

    def _fetch(self) -> None:
        there, note = self._list(), self._note()
        if there and note is None and "manifest.json" not in there:
            raise UsageError(
                f"'{self.url}' has files, but no manifest.json: it is not a run folder. Use "
                "the URL of an empty folder."
            )
        self._seen, own = note, note == self._token
        for name in self._known.keys() - there.keys():
            sent = self._known.pop(name)
            if note is not None and not own and sent.is_same_here(self._here(name)):
                (self.copy / name).unlink()  # another working copy has removed it
        wanted = {}
        for name, info in there.items():
            known, here, mark = self._known.get(name), self._here(name), _mark(info)
            same = known is not None and known.mark == mark
            newer = own and not (known is not None and known.mark and known.is_same_here(here))
            if here is None or not (same or newer):
                wanted[name] = mark
        if wanted:
            require_space(self.copy, sum(there[name]["size"] for name in wanted))
        self._do(self._fetch_one, wanted.items())
        self._save()

    def _fetch_one(self, wanted: tuple[str, str]) -> None:
        name, mark = wanted
        file = self.copy / name
        with atomic_write(file) as temporary:
            self._fs.get_file(f"{self._root}/{name}", str(temporary))
        here = self._here(name)
        assert here is not None
        self._known[name] = here._replace(mark=mark)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send changes during the block, and the rest at its end.

        Raises:
            AutoLoRAEvalError: if the URL does not answer. The working copy keeps everything.
        """
        stop = threading.Event()
        thread = threading.Thread(target=self._keep_sending, args=(stop,), daemon=True)
        thread.start()
        try:
            try:
                yield
            finally:
                stop.set()
                thread.join()
        except Exception as error:
            try:
                self.finish()
            except AutoLoRAEvalError as unsent:
                if not isinstance(error, AutoLoRAEvalError):
                    raise unsent from error
                error.args = (f"{error}\n{unsent}",)
            raise
        except BaseException:  # Ctrl-C: at most one attempt
            with suppress(Exception):
                self.send()
            raise
        else:
            self.finish()

    def _keep_sending(self, stop: threading.Event) -> None:
        pause = SECONDS_BETWEEN
        while not stop.wait(pause):
            began = time.monotonic()
            try:
                self.send()
            except AutoLoRAEvalError:  # `finish` reports it
                return
            except Exception:  # the server is not available
                pause = min(2 * pause, 60)
            else:
                pause = max(SECONDS_BETWEEN, 20 * (time.monotonic() - began))

    def send(self) -> None:
        """Send changed files: images, then the lists that name them.

        Raises:
            AutoLoRAEvalError: if another working copy writes at the URL.
        """
        if not self.claimed and not self._changed():
            return
        self._claim()
        with tempfile.TemporaryDirectory(dir=self._home) as frozen:
            # Copy the lists before looking for images, so that all images that they name are sent.
            lists = {n: here for n, here in self._changed().items() if not n.endswith(".png")}
            for name in lists:
                link_or_copy(self.copy / name, Path(frozen) / name)
            images = {n: here for n, here in self._changed().items() if n.endswith(".png")}
            manifest = {n: lists.pop(n) for n in ("manifest.json",) if n in lists}
            for folder, group in ((self.copy, images), (frozen, lists), (frozen, manifest)):
                try:
                    self._do(partial(self._send_one, Path(folder)), group.items())
                finally:
                    if group:
                        self._save()

    def _send_one(self, folder: Path, changed: tuple[str, _Known]) -> None:
        name, here = changed
        if (folder / name).is_file():  # it was not removed meanwhile
            self._put(folder / name, name)
            self._known[name] = here

    def _put(self, file: Path, name: str) -> None:
        self._fs.put_file(str(file), f"{self._root}/{name}")

    def finish(self) -> None:
        """Send the rest, and compare with the files at the URL.

        Raises:
            AutoLoRAEvalError: if the URL does not answer, or another working copy writes there.
        """
        kept = f"Nothing is lost: the working copy '{self.copy}' has all files."
        self._insist(self._finish, TRIES, f"Not everything was sent. {kept}")

    def _finish(self) -> None:
        self.send()
        if not self.claimed:
            return
        there, here = self._list(), set(self._files())
        removed = [name for name in self._known if name not in here]
        self._do(self._remove, [name for name in removed if name in there])
        for name in removed:
            del self._known[name]
        lost = [n for n in here if n not in there or there[n]["size"] != self._known[n].size]
        for name in lost:
            del self._known[name]
        if lost:
            raise OSError(f"{len(lost)} files that were sent are not there, such as '{lost[0]}'")
        self._known = {n: k._replace(mark=_mark(there[n])) for n, k in self._known.items()}
        self._save()

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    def _claim(self) -> None:
        """Write the note of this working copy, unless it is there already.

        Raises:
            AutoLoRAEvalError: if another working copy has written its note since the start.
        """
        note = self._note()
        if note == self._token:
            self.claimed = True
            return
        if note is not None and (self.claimed or note != self._seen):
            raise AutoLoRAEvalError(
                f"another command writes at '{self.url}' since this one began. One at a time can. "
                "Wait until it ends, then run the same command again."
            )
        if note is None:  # it is new, or the server lost its files
            there = self._list()
            self._known = {name: k for name, k in self._known.items() if name in there}
        file = self._home / "note"
        write_text(file, f"{self._token} process {os.getpid()} on {socket.gethostname()}")
        self._put(file, LOCK)
        self.claimed = True

    def _note(self) -> str | None:
        """Return the token of the working copy that wrote last at the URL; None without a note."""
        try:
            with self._fs.open(f"{self._root}/{LOCK}", "rb") as stream:
                found: bytes = stream.read(300)
        except FileNotFoundError:
            return None
        return found.decode(errors="replace").partition(" ")[0]

    def _list(self) -> dict[str, Json]:
        """Return the files at the URL by name, without hidden ones.

        Raises:
            UsageError: if a name points outside the working copy.
        """
        self._fs.invalidate_cache()
        try:
            found: dict[str, Json] = self._fs.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        names = {path.removeprefix(f"{self._root}/"): info for path, info in found.items()}
        for name, info in names.items():
            if not all(map(_PART.fullmatch, name.split("/"))) or info.get("islink"):
                raise UsageError(
                    f"'{self.url}' has a file {name!r:.100}, which is not a file of a run: it is a "
                    "link, or points outside the folder. Remove it there."
                )
            RunFolder(self.copy).within(self.copy / name)
        return {name: info for name, info in names.items() if "/." not in f"/{name}"}

    def _files(self) -> Iterator[str]:
        for parent, folders, files in os.walk(self.copy):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for file in files:
                path = Path(parent, file)
                if not file.startswith(".") and path.is_file() and not path.is_symlink():
                    yield path.relative_to(self.copy).as_posix()

    def _here(self, name: str) -> _Known | None:
        """Return the state of a file in the working copy; None if it does not exist."""
        try:
            found = (self.copy / name).stat()
        except OSError:
            return None
        return _Known(found.st_size, found.st_mtime_ns)

    def _changed(self) -> dict[str, _Known]:
        """Return the files that are not known to be at the URL."""
        found = {name: self._here(name) for name in self._files()}
        return {n: h for n, h in found.items() if h and not h.is_same_here(self._known.get(n))}

    def _save(self) -> None:
        write_json(self._record, {"working_copy": self._token, "files": dict(self._known)})

    def _do(self, action: Callable[[Any], None], things: Collection[Any]) -> None:
        """Apply an action to things in several threads. Stop after a failure."""
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(action, things):
                pass

    def _insist(self, action: Callable[[], R], tries: int, otherwise: str) -> R:
        """Repeat an action until it succeeds.

        Raises:
            AutoLoRAEvalError: if it never succeeds, or the action raises it.
        """
        for n in range(tries):
            try:
                return action()
            except AutoLoRAEvalError:
                raise
            except Exception as error:  # a file system of fsspec may raise anything
                last = error
                if n + 1 < tries:
                    time.sleep(FIRST_PAUSE * 2**n)
        raise AutoLoRAEvalError(
            f"'{self.url}' does not answer as it should ({type(last).__name__}: "
            f"{first_line(last)}). {otherwise} Run the same command again when it does."
        ) from last


def _mark(info: Json) -> str:
    marks = [info[key] for key in _MARKS if info.get(key) is not None]
    return " ".join(str(m.replace(microsecond=0) if isinstance(m, datetime) else m) for m in marks)
