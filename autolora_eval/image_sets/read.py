"""The forms in which image sets are kept: a tree, an imagefolder, a listing, a dataset on disk."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from autolora_eval.errors import MissingDependencyError, UsageError
from autolora_eval.image_sets.entries import Entry, ImageSet
from autolora_eval.image_sets.listing import (
    FILE_COLUMNS,
    LISTINGS,
    PROMPT_COLUMNS,
    SEED_COLUMNS,
    column_of,
    read_imagefolder,
    read_listing,
    seed_in,
    text_in,
)
from autolora_eval.image_sets.tree import image_files, within

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
