"""Read sets of images that were made elsewhere: each image with its prompt and seed.

A set has one of four forms: a tree `<prompt>/<seed>.png`, a Hugging Face imagefolder, a listing
(CSV, JSON lines or Parquet), or a dataset that `datasets.Dataset.save_to_disk` wrote. No image is
opened here.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from autolora_eval._errors import MissingDependencyError, UsageError
from autolora_eval._files import path_inside, sha256_bytes, sha256_file

# Larger files are not images that a text-to-image model made.
MAX_BYTES = 256 * 1024**2
FILE_COLUMNS = ("file_name", "file", "path", "image", "filename")
PROMPT_COLUMNS = ("prompt", "text", "caption")
SEED_COLUMN = "seed"
LISTINGS = (".csv", ".jsonl", ".parquet")
_METADATA = tuple(f"metadata{suffix}" for suffix in LISTINGS)
_EXPECTED = (
    "expected a folder with metadata.jsonl (a Hugging Face imagefolder), a tree "
    "<prompt>/<seed>.png, a .csv, .jsonl or .parquet file with columns file_name, prompt and "
    "seed, or a dataset written by save_to_disk"
)


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
            OSError: if there is no such file.
        """
        if not isinstance(self.source, Path):
            return self.source()
        with self.source.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)

    def sha256(self) -> str:
        """Return the SHA-256 of the encoded image.

        Raises:
            OSError: if there is no such file.
        """
        source = self.source
        return sha256_file(source) if isinstance(source, Path) else sha256_bytes(self.read())


@dataclass(frozen=True)
class ImageSet:
    """A set of images.

    Attributes:
        path: the folder or the listing.
        form: the form in which it was read, for messages.
        records: its images.
        by_folder: True if the prompts of the records are names of folders.
        unlisted: images in an imagefolder that its metadata does not name.
        listing: the file name of that metadata; empty if there is none.
    """

    path: Path
    form: str
    records: list[ImageRecord]
    by_folder: bool = False
    unlisted: list[ImageRecord] = field(default_factory=list)
    listing: str = ""


def read_image_set(path: Path) -> ImageSet:
    """Detect the form of an image set and list its images.

    Args:
        path: a folder or a listing.

    Raises:
        UsageError: if it has none of the forms, or one of its rows or names cannot be used.
    """
    if path.is_file() and path.suffix.lower() in LISTINGS:
        return ImageSet(path, f"listing {path.name}", _listed(path))
    if not path.is_dir():
        problem = "does not exist" if not path.exists() else "is neither a folder nor a listing"
        raise UsageError(f"images '{path}': {problem}; {_EXPECTED}.")
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return ImageSet(path, "dataset on disk", _dataset_records(path))
    listings = [name for name in _METADATA if (path / name).is_file()]
    if len(listings) > 1:
        raise UsageError(
            f"images '{path}': {' and '.join(listings)} may both list the images. Remove one, or "
            f"choose one: --images {path / listings[0]}"
        )
    return _imagefolder(path, path / listings[0]) if listings else _tree(path)


def _imagefolder(folder: Path, listing: Path) -> ImageSet:
    records = _listed(listing)
    known = {record.source for record in records}
    unlisted = [
        ImageRecord(file.relative_to(folder).as_posix(), None, None, file)
        for file in image_files(folder)
        if file.resolve() not in known
    ]
    form = f"imagefolder with {listing.name}"
    return ImageSet(folder, form, records, unlisted=unlisted, listing=listing.name)


def _tree(folder: Path) -> ImageSet:
    """Read `<prompt>/<seed>.png`, or `<seed>.png` for a benchmark with one prompt."""
    files = image_files(folder)
    if not files:
        raise UsageError(f"images '{folder}': contains no image; {_EXPECTED}.")
    records = []
    for file in files:
        inner = file.relative_to(folder)
        prompt = None if inner.parent == Path() else inner.parent.as_posix()
        records.append(ImageRecord(inner.as_posix(), prompt, seed_in_name(file.stem), file))
    return ImageSet(folder, "tree of images", records, by_folder=True)


def seed_in_name(stem: str) -> int | None:
    """Return the seed in a file name: its only number, or the number after "seed".

    >>> seed_in_name("00017"), seed_in_name("img2_seed-31"), seed_in_name("cat")
    (17, 31, None)
    """
    named = re.search(r"seed[ _=-]?(\d+)", stem, re.IGNORECASE)
    if named:
        return int(named[1])
    numbers = re.findall(r"\d+", stem)
    return int(numbers[0]) if len(numbers) == 1 else None


def image_files(folder: Path) -> list[Path]:
    """Return every file below a folder whose suffix Pillow can read, except hidden files.

    Files are sorted as people count: 2 before 10.

    Raises:
        UsageError: if a folder cannot be read, a link leads out, or a name is not valid UTF-8.
    """
    files = [file for file in _files_below(folder) if file.suffix.lower() in _image_suffixes()]
    for file in files:
        _check_utf8(file.relative_to(folder).as_posix(), str(folder), "Rename it.")
    return sorted(files, key=lambda file: [_natural_key(part) for part in file.parts])


@cache
def _image_suffixes() -> frozenset[str]:
    registered = Image.registered_extensions()  # also fills Image.OPEN
    return frozenset(suffix for suffix, form in registered.items() if form in Image.OPEN)


def _files_below(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise UsageError(
            f"images '{folder}': the folder '{error.filename}' cannot be read: {error.strerror}. "
            "Make it readable, or remove it from the set."
        ) from error

    # os.walk does not follow links to folders: a linked folder is read under its own name only.
    for parent, folders, names in os.walk(folder, onerror=fail):
        for name in (*folders, *names):
            file = Path(parent, name)
            if file.is_symlink():
                _inside(folder, file.relative_to(folder).as_posix(), str(folder))
        files = (Path(parent, name) for name in names if not name.startswith("."))
        # A dangling link counts as an image that is missing; a pipe or a socket is skipped.
        yield from (file for file in files if file.is_file() or file.is_symlink())


def _natural_key(text: str) -> list[str | int]:
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if n % 2 else part for n, part in enumerate(parts)]


def _inside(folder: Path, name: str, at: str) -> Path:
    try:
        return path_inside(folder, name)
    except ValueError as error:
        raise UsageError(
            f"images '{at}': '{name}' lies outside '{folder}'. Put all images into one folder, "
            "with the listing beside them and paths relative to it; links may not lead out."
        ) from error


def _check_utf8(text: str, at: str, advice: str) -> str:
    """Return a text that can be written as UTF-8; a name or JSON may hold half a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"images '{at}': {text!a:.200} is not valid UTF-8. {advice}") from error
    return text


# Listings. CSV and JSON lines are read by the standard library: pandas turns a column of large
# seeds with one empty field into floats, fills rows that are too short, and reports no row of JSON.


def _listed(file: Path) -> list[ImageRecord]:
    columns, rows = _read_table(file)
    name_column = _first_column(columns, FILE_COLUMNS, file)
    prompt_column = _first_column(columns, PROMPT_COLUMNS, file)
    records = []
    for number, row in enumerate(rows, 1):
        at = f"{file}, row {number}"
        name = _file_name(row.get(name_column), at)
        prompt, seed = _text(row.get(prompt_column), at), _seed(row.get(SEED_COLUMN), at)
        records.append(ImageRecord(name, prompt, seed, _listed_path(file.parent, name, at)))
    return records


def _read_table(file: Path) -> tuple[list[str], list[Any]]:
    """Return the columns and the rows of a listing."""
    try:
        if file.suffix.lower() == ".csv":
            return _csv(file)
        if file.suffix.lower() == ".jsonl":
            rows = list(_json_lines(file))
            return list(dict.fromkeys(name for row in rows for name in row)), rows
        import pandas as pd

        frame = pd.read_parquet(file).rename(columns=str)
        return list(frame.columns), frame.to_dict("records")
    except (OSError, ValueError, csv.Error) as error:  # errors of pyarrow are ValueErrors
        raise UsageError(f"images '{file}': cannot be read: {error}") from error


def _csv(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        lines = [line for line in csv.reader(stream, strict=True) if line]
    columns, rows = (lines[0], lines[1:]) if lines else ([], [])
    duplicate = next((name for name in columns if columns.count(name) > 1), None)
    if duplicate is not None:
        raise UsageError(f"images '{file}': two columns are named '{duplicate}'. Rename one.")
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise UsageError(
                f"images '{file}, row {number}': has {len(row)} fields, but the header has "
                f"{len(columns)}. Put a prompt with a comma in double quotes."
            )
    return columns, [dict(zip(columns, row, strict=True)) for row in rows]


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


def _first_column(columns: list[str], names: Iterable[str], path: Path) -> str:
    for name in names:
        if name in columns:
            return name
    wanted = ", ".join(f"'{name}'" for name in names)
    raise UsageError(
        f"images '{path}': no column named {wanted}; it has {', '.join(columns) or 'no columns'}."
    )


def _value(value: Any, at: str) -> Any:  # noqa: ANN401
    """Return the value of a field; None if it is empty."""
    import pandas as pd

    if not pd.api.types.is_scalar(value):
        raise UsageError(f"images '{at}': {value!r:.60} is not a single value. Expected text.")
    return None if pd.isna(value) or value == "" else value


def _text(value: object, at: str) -> str | None:
    value = _value(value, at)
    return None if value is None else _check_utf8(str(value), at, "Correct it.")


def _seed(value: object, at: str) -> int | None:
    value = _value(value, at)
    if value is None:
        return None
    whole = re.fullmatch(r"(\d+)(\.0+)?", str(value).strip())
    if whole is None:
        raise UsageError(f"images '{at}': seed '{value}' is not a whole number of at least 0.")
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
    return _check_utf8(str(name), at, "Rename it.")


def _listed_path(folder: Path, name: str, at: str) -> Path:
    """Return the path of a listed file. Without such a file, a backslash separates folders."""
    path = _inside(folder, name, at)
    if "\\" in name and not os.path.exists(path):  # noqa: PTH110 - no error for names too long
        return _inside(folder, name.replace("\\", "/"), at)
    return path


def _dataset_records(path: Path) -> list[ImageRecord]:
    """List a dataset on disk. Images stay there until they are read: they may exceed memory."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "datasets") from error
    dataset = _load_dataset(path)
    image_column = _image_column(dataset, path)
    prompt_column = _first_column(dataset.column_names, PROMPT_COLUMNS, path)
    dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    columns = [name for name in (prompt_column, SEED_COLUMN) if name in dataset.column_names]
    records = []
    for number, row in enumerate(dataset.select_columns(columns)):
        at = f"{path}, row {number}"
        prompt, seed = _text(row[prompt_column], at), _seed(row.get(SEED_COLUMN), at)
        load = partial(_encoded_image, dataset, image_column, number, path)
        records.append(ImageRecord(f"row {number}", prompt, seed, load))
    return records


def _load_dataset(path: Path) -> Any:  # noqa: ANN401
    """Return a saved dataset, or the only split of a saved DatasetDict."""
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
    return _inside(path, str(stored["path"]), f"{path}, row {number}").read_bytes()
