"""The image files of a folder, in the order that people count in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import Image

from autolora_eval.errors import UsageError


def image_files(place: Path) -> list[Path]:
    """Return every file below a folder whose suffix Pillow can read, hidden files aside.

    Raises:
        UsageError: a folder cannot be read, a link leads out, or a name cannot be written down.
    """
    files = [file for file in _files(place) if file.suffix.lower() in suffixes()]
    for file in files:
        written_name(file.relative_to(place).as_posix(), str(place))
    return sorted(files, key=lambda file: [_natural(part) for part in file.parts])


@cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of what Pillow can open."""
    known = Image.registered_extensions()  # fills Image.OPEN
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN)


def _files(place: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UsageError(
            f"images '{place}': the folder '{error.filename}' cannot be read: {error.strerror}. "
            "Make it readable, or take it out of the set."
        ) from error

    root = place.resolve()
    for folder, folders, names in os.walk(place, onerror=refuse):
        for name in (*folders, *names):
            file = Path(folder, name)
            if file.is_symlink():
                within(root, file.relative_to(place).as_posix(), str(place))
        files = (Path(folder, name) for name in names if not name.startswith("."))
        # A link to nowhere is an image that is missing; a pipe is none.
        yield from (file for file in files if file.is_file() or file.is_symlink())


def _natural(text: str) -> list[str | int]:
    """Return a key that puts 2 before 10."""
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if n % 2 else part for n, part in enumerate(parts)]


def within(root: Path, name: str, at: str) -> Path:
    """Return a file's path: neither a listing nor a link must pull in files from elsewhere.

    Raises:
        UsageError: it lies outside of `root`.
    """
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise UsageError(
            f"images '{at}': '{name}' lies outside '{root}'. Put all images into one folder, and "
            "a listing beside them that names them relative to it; links may not lead out."
        )
    return path


def written_name(name: str, at: str) -> str:
    """Return a name that can stand in a file.

    Raises:
        UsageError: it cannot: it is no text.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"images '{at}': {name!a:.200} is no UTF-8 text. Rename it.") from error
    if "\0" in name:
        raise UsageError(f"images '{at}': no file can be called {name!r:.100}.")
    return name
