"""The image files of a folder, in the order that people count in."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from autolora_eval._errors import MissingDependencyError, UsageError
from autolora_eval._files import Json, path_inside
from autolora_eval.generation.image_sets.records import Entry, ImageSet


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
    try:
        return path_inside(root, name)
    except ValueError as error:
        raise UsageError(
            f"images '{at}': '{name}' lies outside '{root}'. Put all images into one folder, and "
            "a listing beside them that names them relative to it; links may not lead out."
        ) from error


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


# --------------------
# Images that a table lists: CSV, JSON lines or Parquet, each row a file, its prompt and seed.


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


# --------------------
# The forms in which image sets are kept: a tree, an imagefolder, a listing, a dataset on disk.


_METADATA = tuple(f"metadata{suffix}" for suffix in LISTINGS)
_EXPECTED = (
    "expected a folder with metadata.jsonl (a Hugging Face imagefolder), a tree "
    "<prompt>/<seed>.png, a .csv, .jsonl or .parquet of file_name, prompt and seed, or a dataset "
    "that save_to_disk wrote"
)


def read_image_set(place: Path) -> ImageSet:
    """Find out how a set of images is kept, and list it. No image is opened.

    Args:
        place: a folder or a listing.

    Raises:
        UsageError: none of the forms, with what each needs.
    """
    if place.is_file() and place.suffix.lower() in LISTINGS:
        return read_listing(place)
    if not place.is_dir():
        what = "is not there" if not place.exists() else "is no folder and no listing"
        raise UsageError(f"images '{place}': {what}; {_EXPECTED}.")
    if (place / "dataset_info.json").is_file() or (place / "dataset_dict.json").is_file():
        return _dataset(place)
    listings = [name for name in _METADATA if (place / name).is_file()]
    if len(listings) > 1:
        raise UsageError(
            f"images '{place}': both {' and '.join(listings)} may list the images. Remove one, or "
            f"name it: --images {place / listings[0]}"
        )
    return read_imagefolder(place, place / listings[0]) if listings else _tree(place)


def _tree(place: Path) -> ImageSet:
    """Read `<prompt>/<seed>.png`, or `<seed>.png` for a benchmark of one prompt."""
    files = image_files(place)
    if not files:
        raise UsageError(f"images '{place}': no image in it; {_EXPECTED}.")
    entries = []
    for file in files:
        inner = file.relative_to(place)
        folder = inner.parent.as_posix()
        prompt = None if folder == "." else folder
        entries.append(Entry(inner.as_posix(), prompt, seed_of(file.stem), path=file))
    return ImageSet(place, "tree of images", entries, by_folder=True)


def seed_of(stem: str) -> int | None:
    """Return the seed that a file's name states: its only number, or the one after "seed".

    >>> seed_of("00017"), seed_of("seed_4"), seed_of("img2_seed-31"), seed_of("cat")
    (17, 4, 31, None)
    """
    named = re.search(r"seed[ _=-]?(\d+)", stem, re.IGNORECASE)
    if named:
        return int(named[1])
    numbers = re.findall(r"\d+", stem)
    return int(numbers[0]) if len(numbers) == 1 else None


def _dataset(place: Path) -> ImageSet:
    """Read what `datasets.Dataset.save_to_disk` wrote; images are not decoded."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "datasets") from error
    loaded = _loaded(place)
    column = _pictures(loaded, place)
    prompt = column_of(loaded.column_names, PROMPT_COLUMNS, place)
    seed = next((column for column in SEED_COLUMNS if column in loaded.column_names), None)
    loaded = loaded.cast_column(column, datasets.Image(decode=False))
    texts = loaded.select_columns([prompt] if seed is None else [prompt, seed])
    entries = [
        Entry(
            f"row {number}",
            text_in(row[prompt], f"{place}, row {number}"),
            None if seed is None else seed_in(row[seed], f"{place}, row {number}"),
            load=partial(_stored, loaded, column, number, place),
        )
        for number, row in enumerate(texts)
    ]
    return ImageSet(place, "dataset on disk", entries)


def _loaded(place: Path) -> Any:  # noqa: ANN401
    """Return a saved dataset, or the only split of one."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(place))
    except Exception as error:  # a state.json without its keys is a KeyError, and so on
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"images '{place}': cannot be read: {what}. Save it again.") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if len(loaded) != 1:
        splits = ", ".join(f"'{place / name}'" for name in loaded)
        raise UsageError(f"images '{place}': several splits; name one of {splits}.")
    return next(iter(loaded.values()))


def _pictures(loaded: Any, place: Path) -> str:  # noqa: ANN401
    """Return the column that holds the images."""
    import datasets

    found = [name for name, kind in loaded.features.items() if isinstance(kind, datasets.Image)]
    if not found:
        raise UsageError(
            f"images '{place}': no column of images; it has {', '.join(loaded.column_names)}."
        )
    chosen = next((name for name in FILE_COLUMNS if name in found), None)
    if len(found) > 1 and chosen is None:
        raise UsageError(
            f"images '{place}': several columns of images: {', '.join(found)}. Call the one to be "
            "scored 'image'."
        )
    return str(chosen or found[0])


def _stored(loaded: Any, column: str, number: int, place: Path) -> bytes:  # noqa: ANN401
    """Return an image of a dataset, encoded.

    Raises:
        OSError: the dataset has neither its bytes nor its file.
    """
    stored = loaded[number][column] or {}
    if stored.get("bytes") is not None:
        return bytes(stored["bytes"])
    if not stored.get("path"):
        raise FileNotFoundError(f"row {number}")
    return within(place.resolve(), str(stored["path"]), f"{place}, row {number}").read_bytes()
