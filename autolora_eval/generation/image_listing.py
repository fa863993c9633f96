"""Lists images that were made elsewhere: the rows of a table, and the files below a folder."""

from __future__ import annotations

import csv
import errno
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from autolora_eval._devices import require
from autolora_eval._errors import UsageError
from autolora_eval._files import path_inside, sha256_bytes
from autolora_eval.runs.images import MAX_BYTES, image_formats

FILE_COLUMNS = ("file_name", "file", "path", "image", "filename")
PROMPT_COLUMNS = ("prompt", "text", "caption")
SEED_COLUMN = "seed"
LISTINGS = (".csv", ".tsv", ".jsonl", ".parquet")
MAX_ROWS = 2_000_000
# Spreadsheets of some countries write semicolons into their .csv files.
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


@dataclass(frozen=True)
class ImageRecord:
    """One image of a set, not opened.

    Attributes:
        name: the name of the image in the set: its path, or its row in a dataset.
        prompt: its prompt, or the folder that stands for the prompt; None if the set has none.
        seed: its seed; None if the set has none.
        source: its file, or a function that returns its encoded bytes.
    """

    name: str
    prompt: str | None
    seed: int | None
    source: Path | Callable[[], bytes] = field(compare=False, repr=False)

    def read(self) -> bytes:
        """Return the encoded image. Of a file larger than `MAX_BYTES`, return its beginning.

        Raises:
            OSError: if the file does not exist.
        """
        if not isinstance(self.source, Path):
            return self.source()
        if not self.source.is_file():  # a pipe would be waited for
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.source)
        with self.source.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)

    def sha256(self) -> str:
        """Return the SHA-256 of what `read` returns.

        Raises:
            OSError: if the file does not exist.
        """
        return sha256_bytes(self.read())


# CSV and JSON lines are read by the standard library: pandas turns a column of large seeds with
# one empty field into floats, fills rows that are too short, and reports no row of JSON.


def listed_images(file: Path) -> list[ImageRecord]:
    """Return the images of a listing.

    Raises:
        UsageError: if it cannot be read, or one of its rows cannot be used.
    """
    columns, rows = _read_table(file)
    name_column = _first_column(columns, FILE_COLUMNS, file)
    prompt_column = _first_column(columns, PROMPT_COLUMNS, file)
    seed_column = _find_column(columns, (SEED_COLUMN,))
    if not rows:
        raise UsageError(f"images '{file}': has no rows. Add a row for each image.")
    records = []
    for number, row in enumerate(rows, 1):
        at = f"{file}, row {number}"
        name = _file_name(row.get(name_column), at)
        prompt, seed = _text_of(row.get(prompt_column), at), _seed_of(row.get(seed_column), at)
        records.append(ImageRecord(name, prompt, seed, _listed_path(file.parent, name, at)))
    return records


def _read_table(file: Path) -> tuple[list[str], list[Any]]:
    try:
        if file.suffix.lower() in (".csv", ".tsv"):
            return _csv(file)
        if file.suffix.lower() == ".jsonl":
            rows = list(_json_lines(file))
            return list(dict.fromkeys(name for row in rows for name in row)), rows
        return _parquet(file)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"images '{file}': not UTF-8 (byte 0x{error.object[error.start]:02x}). Save it in "
            "UTF-8 (a spreadsheet program calls this format 'CSV UTF-8')."
        ) from error
    # Of pyarrow: most are ValueErrors, and a KeyError where the metadata of pandas is damaged.
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError, csv.Error) as error:
        raise UsageError(f"images '{file}': cannot be read: {error}") from error


def _parquet(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Read the columns that a listing needs, whatever pandas noted of an index.

    A few bytes can stand for a billion equal rows: what is read is bounded.
    """
    from pyarrow.parquet import ParquetFile

    rows: list[dict[str, Any]] = []
    with ParquetFile(file) as table:
        columns = [str(name) for name in table.schema_arrow.names]
        known = (*FILE_COLUMNS, *PROMPT_COLUMNS, SEED_COLUMN)
        wanted = [name for name in columns if _find_column([name], known)]
        for batch in table.iter_batches(batch_size=1024, columns=wanted):
            rows += batch.to_pylist()
            if len(rows) > MAX_ROWS:
                raise UsageError(
                    f"images '{file}': has more than {MAX_ROWS:,} rows. Split it into several."
                )
    return columns, rows


def _csv(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        header = stream.readline()
        if header.startswith("sep="):  # for Excel
            header = stream.readline()
        separator = _separator(header)
        # People write a blank after a comma: quotes begin behind it.
        lines_of_text = itertools.chain([header], stream)
        reader = csv.reader(lines_of_text, delimiter=separator, skipinitialspace=True, strict=True)
        lines = [line for line in reader if any(line)]  # Excel writes rows of empty fields
    columns, rows = (lines[0], lines[1:]) if lines else ([], [])
    duplicate = next((name for name in columns if columns.count(name) > 1), None)
    if duplicate is not None:
        raise UsageError(f"images '{file}': two columns are named '{duplicate}'. Rename one.")
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise UsageError(
                f"images '{file}, row {number}': has {len(row)} fields, but the header has "
                f"{len(columns)}. Put a prompt with a {_SEPARATORS[separator]} in double quotes."
            )
    return columns, [dict(zip(columns, row, strict=True)) for row in rows]


def _separator(header: str) -> str:
    """Return the separator that finds a column of files in a header; a comma if none does."""
    for separator in _SEPARATORS:
        if _find_column(next(csv.reader([header], delimiter=separator), []), FILE_COLUMNS):
            return separator
    return ","


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    # Not splitlines: it also splits at characters such as U+2028, which may stand in a prompt.
    lines = [text for text in file.read_text(encoding="utf-8-sig").split("\n") if text.strip()]
    for number, line in enumerate(lines, 1):
        at = f"{file}, row {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"images '{at}': not valid JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UsageError(
                f"images '{at}': {line.strip():.60} is not an object. Expected "
                '{"file_name": …, "prompt": …, "seed": …} on each line.'
            )
        yield row


def dataset_images(path: Path) -> list[ImageRecord]:
    """Return the images of a dataset that `save_to_disk` wrote. Each is read when it is needed.

    Raises:
        UsageError: if it cannot be read, or one of its rows cannot be used.
    """
    require("datasets", "datasets")
    import datasets

    dataset = _load_dataset(path)
    image_column = _image_column(dataset, path)
    prompt_column = _first_column(dataset.column_names, PROMPT_COLUMNS, path)
    dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    seed_column = _find_column(dataset.column_names, (SEED_COLUMN,))
    columns = [name for name in (prompt_column, seed_column) if name is not None]
    records = []
    for number, row in enumerate(dataset.select_columns(columns)):
        at = f"{path}, row {number}"
        prompt, seed = _text_of(row[prompt_column], at), _seed_of(row.get(seed_column), at)
        load = partial(_encoded_image, dataset, image_column, number, path)
        records.append(ImageRecord(f"row {number}", prompt, seed, load))
    return records


def _load_dataset(path: Path) -> Any:  # noqa: ANN401
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged state.json raises a KeyError, and so on
        cause = f"{type(error).__name__}: {error}"
        raise UsageError(f"images '{path}': cannot be read: {cause}. Save it again.") from error
    if not isinstance(dataset, datasets.DatasetDict):
        return dataset
    if len(dataset) != 1:
        splits = ", ".join(f"'{path / name}'" for name in dataset)
        raise UsageError(f"images '{path}': has several splits; choose one of {splits}.")
    return next(iter(dataset.values()))


def _image_column(dataset: Any, path: Path) -> str:  # noqa: ANN401
    import datasets

    found = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    if not found:
        raise UsageError(f"images '{path}': no column of images in {dataset.column_names}.")
    chosen = next((name for name in FILE_COLUMNS if name in found), None)
    if len(found) > 1 and chosen is None:
        raise UsageError(
            f"images '{path}': several columns of images: {', '.join(found)}. Name the column to "
            "score 'image'."
        )
    return str(chosen or found[0])


def _encoded_image(dataset: Any, column: str, number: int, path: Path) -> bytes:  # noqa: ANN401
    stored = dataset[number][column] or {}
    if stored.get("bytes") is not None:
        return bytes(stored["bytes"])
    if not stored.get("path"):
        raise FileNotFoundError(f"row {number}")
    return inside(path, str(stored["path"]), f"{path}, row {number}").read_bytes()


def image_files(folder: Path) -> list[Path]:
    """Return every file below a folder whose suffix is that of an image, except hidden ones.

    Files are sorted as people count: 2 before 10.

    Raises:
        UsageError: if a folder cannot be read, a link points outside, or a name is not valid UTF-8.
    """
    formats = image_formats()
    suffixes = {end for end, form in Image.registered_extensions().items() if form in formats}
    files = [file for file in _files_below(folder) if file.suffix.lower() in suffixes]
    for file in files:
        check_utf8(name_below(folder, file), str(folder), "Rename it.")
    return sorted(files, key=lambda file: [_natural_key(part) for part in file.parts])


def _files_below(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise UsageError(
            f"images '{folder}': the folder '{error.filename}' cannot be read: {error.strerror}. "
            "Make it readable, or remove it from the set."
        ) from error

    # os.walk does not follow links to folders: a linked folder is read under its own name only.
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *names):
            file = Path(parent, name)
            if file.is_symlink():
                inside(folder, name_below(folder, file), str(folder))
        files = (Path(parent, name) for name in names if not name.startswith("."))
        # A dangling link counts as an image that is missing; a pipe or a socket is skipped.
        yield from (file for file in files if file.is_file() or file.is_symlink())


def name_below(folder: Path, file: Path) -> str:
    """Return the name of a file in a set: its path below the set's folder."""
    return file.relative_to(folder).as_posix()


def _natural_key(text: str) -> list[str | int]:
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if n % 2 else part for n, part in enumerate(parts)]


def _first_column(columns: list[str], names: Iterable[str], path: Path) -> str:
    """Return the first of some names that is a column.

    Raises:
        UsageError: if none is.
    """
    found = _find_column(columns, names)
    if found is not None:
        return found
    wanted = ", ".join(f"'{name}'" for name in names)
    raise UsageError(
        f"images '{path}': no column named {wanted}; it has {', '.join(columns) or 'no columns'}."
    )


def _find_column(columns: Iterable[str], names: Iterable[str]) -> str | None:
    """Return the first of some names that is a column, in any case and with blanks around it."""
    known = {column.strip().lower(): column for column in columns}
    return next((known[name] for name in names if name in known), None)


def _value(value: Any, at: str) -> Any:  # noqa: ANN401
    """Return the value of a field; None if it is empty."""
    if isinstance(value, list | dict):
        raise UsageError(f"images '{at}': {value!r:.60} is not a single value. Expected text.")
    return None if value is None or value == "" or value != value else value  # NaN is empty too


def _text_of(value: object, at: str) -> str | None:
    value = _value(value, at)
    return None if value is None else check_utf8(str(value), at, "Correct it.")


def _seed_of(value: object, at: str) -> int | None:
    value = _value(value, at)
    if value is None:
        return None
    whole = re.fullmatch(r"(\d{1,30})(\.0+)?", str(value).strip())
    if whole is None:
        raise UsageError(
            f"images '{at}': seed '{value!s:.60}' is not a whole number of at least 0."
        )
    return int(whole[1])


def _file_name(value: object, at: str) -> str:
    if isinstance(value, dict):
        raise UsageError(
            f"images '{at}': the column holds images instead of paths. Load the file with the "
            "library `datasets`, write it with save_to_disk, and score that folder."
        )
    name = _value(value, at)
    if name is None:
        raise UsageError(f"images '{at}': no file name. Remove the row, or add the file name.")
    return check_utf8(str(name), at, "Rename it.")


def _listed_path(folder: Path, name: str, at: str) -> Path:
    """Return the path of a listed file. Without such a file, a backslash separates folders."""
    path = inside(folder, name, at)
    if "\\" in name and not os.path.exists(path):  # noqa: PTH110 - no error for names too long
        return inside(folder, name.replace("\\", "/"), at)
    return path


def inside(folder: Path, name: str, at: str) -> Path:
    """Return the path of a file of a set, which may not lie outside of its folder."""
    try:
        return path_inside(folder, name)
    except ValueError as error:
        raise UsageError(
            f"images '{at}': '{name}' lies outside '{folder}'. Put all images into one folder, "
            "with the listing beside them and paths relative to it; links must stay inside the "
            "folder."
        ) from error


def check_utf8(text: str, at: str, advice: str) -> str:
    """Return a text that can be written as UTF-8; a name or JSON may hold half a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"images '{at}': {text!a:.200} is not valid UTF-8. {advice}") from error
    return text
