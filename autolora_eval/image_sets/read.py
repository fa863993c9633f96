"""The forms in which image sets are kept: a tree, an imagefolder, a listing, a dataset on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolora_eval.errors import MissingDependencyError, UsageError
from autolora_eval.image_sets.entries import SUFFIXES, Entry, ImageSet

if TYPE_CHECKING:
    import pandas as pd

FILE_COLUMNS = ("file_name", "file", "path", "image", "filename")
PROMPT_COLUMNS = ("prompt", "text", "caption")
SEED_COLUMNS = ("seed",)
LISTINGS = (".csv", ".jsonl", ".parquet")
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
        return _listed(place, f"listing {place.name}")
    if not place.is_dir():
        what = "is not there" if not place.exists() else "is no folder and no listing"
        raise UsageError(f"images '{place}': {what}; {_EXPECTED}.")
    if (place / "dataset_info.json").is_file() or (place / "dataset_dict.json").is_file():
        return _dataset(place)
    for name in _METADATA:
        if (place / name).is_file():
            return _listed(place / name, f"imagefolder with {name}", place)
    return _tree(place)


def _tree(place: Path) -> ImageSet:
    """Read `<prompt>/<seed>.png`, or `<seed>.png` for a benchmark of one prompt."""
    root = place.resolve()
    files = []
    for file in sorted(place.rglob("*")):
        if file.is_symlink():
            _within(root, file.relative_to(place).as_posix(), str(place))
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith("."):
            files.append(file)
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


def _listed(file: Path, kind: str, place: Path | None = None) -> ImageSet:
    table = _table(file)
    columns = [str(column) for column in table.columns]
    name = _column(columns, FILE_COLUMNS, file)
    prompt = _column(columns, PROMPT_COLUMNS, file)
    seed = next((column for column in SEED_COLUMNS if column in columns), None)
    root = file.parent.resolve()
    entries = []
    for number, row in enumerate(table.to_dict("records"), 1):
        at = f"{file}, row {number}"
        named = _file_named(row[name], at)
        path = _within(root, named, at)
        stated = None if seed is None else _seed(row[seed], at)
        entries.append(Entry(named, _text(row[prompt]), stated, path=path))
    return ImageSet(place or file, kind, entries)


def _table(file: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if file.suffix.lower() == ".parquet":
            return pd.read_parquet(file)
        if file.suffix.lower() == ".csv":
            return pd.read_csv(file, dtype=str, keep_default_na=False)
        # Not splitlines: a text may hold other line breaks than those between rows.
        lines = file.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
        return pd.DataFrame(rows, dtype=object)  # as floats, large seeds would be others
    except (OSError, ValueError) as error:  # pyarrow's and pandas' errors are ValueErrors
        raise UsageError(f"images '{file}': cannot be read: {error}") from error


def _column(columns: list[str], names: Iterable[str], file: Path) -> str:
    for name in names:
        if name in columns:
            return name
    wanted = ", ".join(f"'{name}'" for name in names)
    raise UsageError(
        f"images '{file}': no column of {wanted}; it has {', '.join(columns) or 'none'}."
    )


def _text(value: object) -> str | None:
    """Return a listed text; None for an empty field."""
    return None if value is None or value == "" or value != value else str(value)


def _file_named(value: object, at: str) -> str:
    """Return the file that a row of a listing names."""
    if isinstance(value, dict):
        raise UsageError(
            f"images '{at}': the column holds images, not their paths. Load it with the library "
            "`datasets`, and score what its save_to_disk writes."
        )
    named = _text(value)
    if named is None:
        raise UsageError(f"images '{at}': no file is named. Remove the row, or name its image.")
    if "\0" in named:
        raise UsageError(f"images '{at}': no file can be called {named!r:.100}.")
    return named


def _within(root: Path, name: str, at: str) -> Path:
    """Return a file's path: neither a listing nor a link must pull in files from elsewhere."""
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise UsageError(
            f"images '{at}': '{name}' lies outside '{root}'. Put all images into one folder, and "
            "a listing beside them that names them relative to it; links may not lead out."
        )
    return path


def _seed(value: object, at: str) -> int | None:
    """Return a listed seed; None for an empty field."""
    if value is None or value == "" or value != value:
        return None
    whole = re.fullmatch(r"(\d+)(\.0+)?", str(value).strip())
    if whole is None:
        raise UsageError(f"images '{at}': seed '{value}' is not a whole number from 0.")
    return int(whole[1])


def _dataset(place: Path) -> ImageSet:
    """Read what `datasets.Dataset.save_to_disk` wrote; images are not decoded."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "datasets") from error
    try:
        loaded = datasets.load_from_disk(str(place))
    except (OSError, ValueError) as error:
        raise UsageError(f"images '{place}': cannot be read: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) != 1:
            splits = ", ".join(f"'{place / name}'" for name in loaded)
            raise UsageError(f"images '{place}': several splits; name one of {splits}.")
        loaded = next(iter(loaded.values()))
    pictures = [name for name, kind in loaded.features.items() if isinstance(kind, datasets.Image)]
    if not pictures:
        raise UsageError(
            f"images '{place}': no column of images; it has {', '.join(loaded.column_names)}."
        )
    prompt = _column(loaded.column_names, PROMPT_COLUMNS, place)
    seed = next((column for column in SEED_COLUMNS if column in loaded.column_names), None)
    loaded = loaded.cast_column(pictures[0], datasets.Image(decode=False))
    texts = loaded.select_columns([prompt] if seed is None else [prompt, seed])
    entries = [
        Entry(
            f"row {number}",
            _text(row[prompt]),
            None if seed is None else _seed(row[seed], f"{place}, row {number}"),
            load=partial(_stored, loaded, pictures[0], number, place),
        )
        for number, row in enumerate(texts)
    ]
    return ImageSet(place, "dataset on disk", entries)


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
    return _within(place.resolve(), str(stored["path"]), f"{place}, row {number}").read_bytes()
