"""Images that a table lists: CSV, JSON lines or Parquet, each row a file, its prompt and seed."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autolora_eval.errors import UsageError
from autolora_eval.files import Json
from autolora_eval.image_sets.entries import Entry, ImageSet
from autolora_eval.image_sets.tree import image_files, within, written_name

FILE_COLUMNS = ("file_name", "file", "path", "image", "filename")
PROMPT_COLUMNS = ("prompt", "text", "caption")
SEED_COLUMNS = ("seed",)
LISTINGS = (".csv", ".jsonl", ".parquet")


def read_imagefolder(place: Path, file: Path) -> ImageSet:
    """Return what an imagefolder's metadata lists, and the images beside it that it does not.

    Raises:
        UsageError: the metadata cannot be used, with its row.
    """
    entries = _entries(file)
    known = {entry.path for entry in entries}
    unlisted = [
        Entry(image.relative_to(place).as_posix(), None, None, path=image)
        for image in image_files(place)
        if image.resolve() not in known
    ]
    kind = f"imagefolder with {file.name}"
    return ImageSet(place, kind, entries, unlisted=unlisted, listing=file.name)


def read_listing(file: Path) -> ImageSet:
    """Return the images that a file lists.

    Raises:
        UsageError: it cannot be used, with its row.
    """
    return ImageSet(file, f"listing {file.name}", _entries(file))


def _entries(file: Path) -> list[Entry]:
    columns, rows = _table(file)
    name = column_of(columns, FILE_COLUMNS, file)
    prompt = column_of(columns, PROMPT_COLUMNS, file)
    seed = next((column for column in SEED_COLUMNS if column in columns), None)
    root = file.parent.resolve()
    entries = []
    for number, row in enumerate(rows, 1):
        at = f"{file}, row {number}"
        named = _file_named(row.get(name), at)
        stated = None if seed is None else seed_in(row.get(seed), at)
        entries.append(
            Entry(named, text_in(row.get(prompt), at), stated, path=_path(root, named, at))
        )
    return entries


def _table(file: Path) -> tuple[list[str], list[Json]]:
    """Return a table's columns and rows."""
    try:
        if file.suffix.lower() == ".parquet":
            import pandas as pd

            frame = pd.read_parquet(file)
            rows = [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
            return [str(name) for name in frame.columns], rows
        if file.suffix.lower() == ".csv":
            return _csv(file)
        return _json_lines(file)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors
        raise UsageError(f"images '{file}': cannot be read: {error}") from error


def _csv(file: Path) -> tuple[list[str], list[Json]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        lines = [line for line in csv.reader(stream, strict=True) if line]
    columns, found = (lines[0], lines[1:]) if lines else ([], [])
    double = next((name for name in columns if columns.count(name) > 1), None)
    if double is not None:
        raise UsageError(f"images '{file}': two columns are called '{double}'. Rename one.")
    for number, line in enumerate(found, 1):
        if len(line) != len(columns):
            raise UsageError(
                f"images '{file}, row {number}': {len(line)} fields, where the first line names "
                f"{len(columns)} columns. Put a prompt that has a comma in double quotes."
            )
    return columns, [dict(zip(columns, line, strict=True)) for line in found]


def _json_lines(file: Path) -> tuple[list[str], list[Json]]:
    # Not splitlines: a text may hold other line breaks than those between rows.
    lines = [text for text in file.read_text(encoding="utf-8-sig").split("\n") if text.strip()]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            what = f"{error.msg} at column {error.colno}"
            raise UsageError(f"images '{file}, row {number}': no JSON: {what}.") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"images '{file}, row {number}': no JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UsageError(
                f"images '{file}, row {number}': {line.strip():.60} is no object. Expected "
                '{"file_name": …, "prompt": …, "seed": …} on each line.'
            )
        rows.append(row)
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def column_of(columns: list[str], names: Iterable[str], file: Path) -> str:
    """Return the first of some columns that there is.

    Raises:
        UsageError: there is none.
    """
    for name in names:
        if name in columns:
            return name
    wanted = ", ".join(f"'{name}'" for name in names)
    raise UsageError(
        f"images '{file}': no column of {wanted}; it has {', '.join(columns) or 'none'}."
    )


def text_in(value: object, at: str) -> str | None:
    """Return a listed text; None for an empty field.

    Raises:
        UsageError: it is a list or a map, or no text that can be written down.
    """
    value = _single(value, at)
    return None if value is None else written_text(str(value), at)


def written_text(text: str, at: str) -> str:
    """Return a text that can stand in a file.

    Raises:
        UsageError: it holds half a letter.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"images '{at}': {text!a:.200} is no UTF-8 text. Correct it.") from error
    return text


def _single(value: Any, at: str) -> Any:  # noqa: ANN401
    """Return a field's value; None for an empty one."""
    import pandas as pd

    if not pd.api.types.is_scalar(value):
        raise UsageError(f"images '{at}': {value!r:.60} is not one value. Expected a text.")
    return None if value is None or value is pd.NaT or pd.isna(value) or value == "" else value


def _file_named(value: object, at: str) -> str:
    """Return the file that a row of a listing names."""
    if isinstance(value, dict):
        raise UsageError(
            f"images '{at}': the column holds images, not their paths. Load it with the library "
            "`datasets`, and score what its save_to_disk writes."
        )
    named = _single(value, at)
    if named is None:
        raise UsageError(f"images '{at}': no file is named. Remove the row, or name its image.")
    return written_name(str(named), at)


def _path(root: Path, named: str, at: str) -> Path:
    """Return where a listed file is; where there is no such file, a back slash parts folders."""
    path = within(root, named, at)
    if "\\" in named and not os.path.exists(path):  # noqa: PTH110 - also of no possible name
        return within(root, named.replace("\\", "/"), at)
    return path


def seed_in(value: object, at: str) -> int | None:
    """Return a listed seed; None for an empty field.

    Raises:
        UsageError: it is no whole number from 0.
    """
    value = _single(value, at)
    if value is None:
        return None
    whole = re.fullmatch(r"(\d+)(\.0+)?", str(value).strip())
    if whole is None:
        raise UsageError(f"images '{at}': seed '{value}' is not a whole number from 0.")
    return int(whole[1])
