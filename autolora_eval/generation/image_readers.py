"""Read sets of images that were made elsewhere: each image with its prompt and seed.

A set has one of four forms: a tree `<prompt>/<seed>.png`, a Hugging Face imagefolder, a listing
(CSV, TSV, JSON lines or Parquet), or a dataset that `datasets.Dataset.save_to_disk` wrote. No image
is opened here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from autolora_eval._errors import MissingDependencyError, UsageError
from autolora_eval.generation.image_listing import (
    FILE_COLUMNS,
    LISTINGS,
    PROMPT_COLUMNS,
    SEED_COLUMN,
    ImageRecord,
    check_utf8,
    first_column,
    inside,
    listed_images,
    seed_of,
    text_of,
)
from autolora_eval.runs.images import image_formats

_METADATA = tuple(f"metadata{suffix}" for suffix in LISTINGS)
# Folders that the library `datasets` takes for the splits of a dataset.
_SPLITS = (
    *("train", "training", "validation", "valid", "val", "dev"),
    *("test", "testing", "eval", "evaluation"),
)
_EXPECTED = (
    "expected a folder with metadata.jsonl (a Hugging Face imagefolder), a tree "
    "<prompt>/<seed>.png, a .csv, .tsv, .jsonl or .parquet file with columns file_name, prompt and "
    "seed, or a dataset written by save_to_disk"
)


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
        return ImageSet(path, f"listing {path.name}", listed_images(path))
    if not path.is_dir():
        problem = "does not exist" if not path.exists() else "is neither a folder nor a listing"
        raise UsageError(f"images '{path}': {problem}; {_EXPECTED}.")
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return ImageSet(path, "dataset on disk", _dataset_records(path))
    listings = _metadata_files(path)
    if len(listings) > 1:
        names = " and ".join(listing.relative_to(path).as_posix() for listing in listings)
        raise UsageError(
            f"images '{path}': {names} may both list the images. Remove one, or choose one: "
            f"--images {listings[0]}"
        )
    return _imagefolder(path, listings[0]) if listings else _tree(path)


def _metadata_files(folder: Path) -> list[Path]:
    """Return the metadata of an imagefolder: its own, or else that of its splits."""
    own, of_splits = (
        [place / name for place in places for name in _METADATA if (place / name).is_file()]
        for places in ([folder], [folder / split for split in _SPLITS])
    )
    return own or of_splits


def _imagefolder(folder: Path, listing: Path) -> ImageSet:
    records = listed_images(listing)
    known = {record.source for record in records}
    unlisted = [
        ImageRecord(file.relative_to(folder).as_posix(), None, None, file)
        for file in image_files(folder)
        if file.resolve() not in known
    ]
    name = listing.relative_to(folder).as_posix()
    return ImageSet(folder, f"imagefolder with {name}", records, unlisted=unlisted, listing=name)


def _tree(folder: Path) -> ImageSet:
    """Read `<prompt>/<seed>.png`, or `<seed>.png` for a benchmark with one prompt."""
    files = image_files(folder)
    if not files:
        raise UsageError(f"images '{folder}': contains no image; {_EXPECTED}.")
    prompts = _only_split(folder, files)
    records = []
    for file in files:
        place = file.parent.relative_to(prompts)
        prompt = None if place == Path() else place.as_posix()
        name = file.relative_to(folder).as_posix()
        records.append(ImageRecord(name, prompt, seed_in_name(file.stem), file))
    return ImageSet(folder, "tree of images", records, by_folder=True)


def _only_split(folder: Path, files: list[Path]) -> Path:
    """Return the folder of the prompts: the split in `<split>/<prompt>/<seed>.png`, or `folder`."""
    places = [file.relative_to(folder).parts for file in files]
    if not all(len(place) > 2 and place[0] in _SPLITS for place in places):
        return folder
    splits = sorted({place[0] for place in places})
    if len(splits) > 1:
        named = ", ".join(f"'{folder / split}'" for split in splits)
        raise UsageError(f"images '{folder}': has several splits; choose one of {named}.")
    return folder / splits[0]


def seed_in_name(stem: str) -> int | None:
    """Return the seed in a file name: its only number, or the number after "seed".

    The counter at the end of ComfyUI's names is not a seed. Neither is the one at the beginning of
    AUTOMATIC1111's, which the seed follows.

    >>> seed_in_name("00017"), seed_in_name("img2_seed-31"), seed_in_name("cat")
    (17, 31, None)
    >>> seed_in_name("ComfyUI_00001_"), seed_in_name("00001-31-a cat")
    (None, 31)
    """
    named = re.search(r"seed[ _=-]?(\d+)", stem, re.IGNORECASE) or re.match(
        r"\d{5}-(\d+)(?:-|$)", stem
    )
    if named:
        return int(named[1])
    numbers = re.findall(r"\d+", re.sub(r"_\d{5,}_$", "", stem))
    return int(numbers[0]) if len(numbers) == 1 else None


def image_files(folder: Path) -> list[Path]:
    """Return every file below a folder whose suffix is that of an image, except hidden files.

    Files are sorted as people count: 2 before 10.

    Raises:
        UsageError: if a folder cannot be read, a link leads out, or a name is not valid UTF-8.
    """
    files = [file for file in _files_below(folder) if file.suffix.lower() in _image_suffixes()]
    for file in files:
        check_utf8(file.relative_to(folder).as_posix(), str(folder), "Rename it.")
    return sorted(files, key=lambda file: [_natural_key(part) for part in file.parts])


@cache
def _image_suffixes() -> frozenset[str]:
    known = image_formats()
    return frozenset(
        suffix for suffix, form in Image.registered_extensions().items() if form in known
    )


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
                inside(folder, file.relative_to(folder).as_posix(), str(folder))
        files = (Path(parent, name) for name in names if not name.startswith("."))
        # A dangling link counts as an image that is missing; a pipe or a socket is skipped.
        yield from (file for file in files if file.is_file() or file.is_symlink())


def _natural_key(text: str) -> list[str | int]:
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if n % 2 else part for n, part in enumerate(parts)]


def _dataset_records(path: Path) -> list[ImageRecord]:
    """List a dataset on disk. Images stay there until they are read: they may exceed memory."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "datasets") from error
    dataset = _load_dataset(path)
    image_column = _image_column(dataset, path)
    prompt_column = first_column(dataset.column_names, PROMPT_COLUMNS, path)
    dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    columns = [name for name in (prompt_column, SEED_COLUMN) if name in dataset.column_names]
    records = []
    for number, row in enumerate(dataset.select_columns(columns)):
        at = f"{path}, row {number}"
        prompt, seed = text_of(row[prompt_column], at), seed_of(row.get(SEED_COLUMN), at)
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
    return inside(path, str(stored["path"]), f"{path}, row {number}").read_bytes()
