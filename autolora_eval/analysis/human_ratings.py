"""People's ratings of a run's images, as they come in a CSV file: checked before they are used."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval.scoring.rubric import Score

MAX_BYTES = 50_000_000
MAX_PROBLEMS = 10
SHOWN = 80
# No score can be called so: a score's name begins with a letter.
IMAGE, RATER = "_image", "_rater"
IDENTITY = ("file", "cell", "prompt", "prompt_index", "seed", "sha256")
_WHOLE = ("prompt_index", "seed")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_EXPECTED = (
    "expected 'file' (as in scores.parquet), or 'cell', 'seed' and 'prompt' or 'prompt_index'"
)


def read_ratings(path: Path, images: pd.DataFrame, scores: Mapping[str, Score]) -> pd.DataFrame:
    """Read a file of ratings: one row a rating of an image, by one person.

    A row names its image by `file`, as in scores.parquet, or by `cell`, `seed` and `prompt` or
    `prompt_index`; whatever else of these and `sha256` it states must be so. `rater` tells people
    apart. Any score of the run may be a column; an empty field is no rating.

    Args:
        path: CSV, UTF-8, separated by commas.
        images: one row an image, as in scores.parquet.
        scores: the judge's scores by column, for their ranges.

    Returns:
        Columns `IMAGE` (its place in `images`), `RATER`, and one a score that was rated, NaN
        where a person did not rate it.

    Raises:
        UsageError: with up to ten of the things that are wrong, and their lines.
    """
    header, rows = _rows(path)
    rated = _rated(path, header, scores)
    find = _Finder(images)
    problems: list[str] = []
    first_line: dict[tuple[int, str], int] = {}
    found: list[dict[str, Any]] = []
    for line, fields in rows:
        if len(problems) == MAX_PROBLEMS:
            break
        told, rating = _rating(header, fields, find, {c: scores[c] for c in rated})
        if rating is not None:
            before = first_line.setdefault((rating[IMAGE], rating[RATER]), line)
            if before != line:
                by = f" by '{_shown(rating[RATER])}'" if rating[RATER] else ""
                told = [f"the image was rated{by} in line {before} already; leave out one"]
            found.append(rating)
        problems += [f"{path}:{line}: {_sentence(problem)}" for problem in told]
    if problems:
        more = ["Further lines were not looked at."] if len(problems) >= MAX_PROBLEMS else []
        raise UsageError("\n".join(problems[:MAX_PROBLEMS] + more))
    ratings = pd.DataFrame(found, columns=[IMAGE, RATER, *rated])
    if not ratings[rated].notna().any(axis=None):
        raise UsageError(f"{path}: no rating in it: every field of {', '.join(rated)} is empty.")
    return ratings


def _rows(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Return the names of the columns, and each further row with its line, blank ones left out."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)

    def rest() -> Iterator[tuple[int, list[str]]]:
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise UsageError(f"{path}:{line}: not CSV: {error}.") from error
            if fields is None:
                return
            if any(field.strip() for field in fields):
                yield line, [field.strip() for field in fields]

    rows = rest()
    _, header = next(rows, (0, []))
    if not header:
        raise UsageError(f"{path}: empty; expected a line of column names, and one a rating.")
    separator = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
    if separator is not None:
        shown = "tabs" if separator == "\t" else f"'{separator}'"
        raise UsageError(f"{path}: columns are separated by {shown}; expected commas.")
    return header, rows


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        data = b"" if size > MAX_BYTES else path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"'{path}' cannot be read as a file of ratings: {error.strerror or error}."
        ) from error
    if size > MAX_BYTES:
        raise UsageError(
            f"{path}: {size / 1e6:,.0f} MB; expected at most {MAX_BYTES / 1e6:.0f} MB of ratings."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}). Save it as CSV in UTF-8; "
            "a spreadsheet calls that 'CSV UTF-8'."
        ) from error


def _rated(path: Path, header: Sequence[str], scores: Mapping[str, Score]) -> list[str]:
    """Return the columns that are scores, once the header is found to be right."""
    known = (*IDENTITY, "rater", *scores)
    problems = [
        f"unknown column '{_shown(name)}': remove or rename it.{did_you_mean(name, known)}"
        for name in dict.fromkeys(header)
        if name not in known
    ]
    problems += [
        f"two columns '{name}'; leave out one."
        for name in dict.fromkeys(header)
        if name in known and header.count(name) > 1
    ]
    rated = [name for name in header if name in scores]
    if not (rated or problems):
        problems.append(f"no column of ratings. The judge's scores are: {', '.join(scores)}.")
    by_parts = {"cell", "seed"} <= set(header) and {"prompt", "prompt_index"} & set(header)
    if "file" not in header and not by_parts and not problems:
        problems.append(f"no column says which image a row rates: {_EXPECTED}.")
    if problems:
        raise UsageError("\n".join(f"{path}: {problem}" for problem in problems[:MAX_PROBLEMS]))
    return rated


class _Finder:
    """Finds the image that a row names.

    Args:
        images: one row an image.
    """

    def __init__(self, images: pd.DataFrame) -> None:
        self._rows = images.reindex(columns=list(IDENTITY)).to_dict("records")
        self._cells = list(dict.fromkeys(str(row["cell"]) for row in self._rows))
        self._places: dict[tuple[Hashable, ...], int] = {}
        for place, row in enumerate(self._rows):
            parts = row["cell"], str(row["seed"])
            self._places[(row["file"],)] = place
            self._places[*parts, "prompt", row["prompt"]] = place
            self._places[*parts, "prompt_index", str(row["prompt_index"])] = place

    def __call__(self, stated: Mapping[str, str]) -> int | str:
        """Return the image's place, or what is wrong with what is stated of it."""
        stated = {name: _whole(text) if name in _WHOLE else text for name, text in stated.items()}
        if "file" in stated:
            stated["file"] = stated["file"].replace("\\", "/").removeprefix("./")
            place = self._places.get((stated["file"],))
            if place is None:
                example = f"a path such as '{self._rows[0]['file']}'" if self._rows else "none"
                return f"no image '{_shown(stated['file'])}' in the run; expected {example}"
        else:
            by = next((name for name in ("prompt", "prompt_index") if name in stated), None)
            if by is None or not {"cell", "seed"} <= stated.keys():
                return f"it does not say which image it rates: {_EXPECTED}"
            place = self._places.get((stated["cell"], stated["seed"], by, stated[by]))
            if place is None:
                return self._no_such(stated, by)
        return self._contradiction(stated, place) or place

    def _no_such(self, stated: Mapping[str, str], by: str) -> str:
        if stated["cell"] not in self._cells:
            near = did_you_mean(stated["cell"], self._cells)
            return f"no cell '{_shown(stated['cell'])}' in the run.{near}"
        said = ", ".join(f"{name} '{_shown(stated[name])}'" for name in ("cell", by, "seed"))
        return f"no image of {said} in the run"

    def _contradiction(self, stated: Mapping[str, str], place: int) -> str | None:
        for name, text in stated.items():
            value = self._rows[place][name]
            if text != str(value):
                return (
                    f"{name} is '{_shown(text)}', and that of the image it names is "
                    f"'{_shown(value)}'"
                )
        return None


def _rating(
    header: Sequence[str], fields: Sequence[str], find: _Finder, scores: Mapping[str, Score]
) -> tuple[list[str], dict[str, Any] | None]:
    """Return what is wrong with a row, and the rating that it is if nothing is."""
    if len(fields) != len(header):
        return [f"{len(fields)} fields; expected {len(header)}, as in the first line"], None
    row = dict(zip(header, fields, strict=True))
    place = find({name: row[name] for name in IDENTITY if row.get(name)})
    problems = [place] if isinstance(place, str) else []
    if row.get("rater") == "":
        problems.append("no rater; expected a name, or no column 'rater' at all")
    rating: dict[str, Any] = {IMAGE: place, RATER: row.get("rater", "")}
    for column, score in scores.items():
        value = _value(row[column], score)
        if isinstance(value, str):
            problems.append(f"{column}: {value}")
        rating[column] = value
    return problems, None if problems else rating


def _value(text: str, score: Score) -> float | str:
    """Return a rating, NaN for an empty field, or what is wrong with it."""
    if not text:
        return float("nan")
    if not _NUMBER.fullmatch(text):
        return f"'{_shown(text)}' is not a number such as 3 or 3.5"
    value = float(text)
    if not (np.isfinite(value) and score.min <= value <= score.max):
        return f"{_shown(text)} is out of range; expected {score.min:g} to {score.max:g}"
    return value


def _whole(text: str) -> str:
    """Return a whole number as it is written here: a spreadsheet may make `3.0` of `3`."""
    found = re.fullmatch(r"([+-]?)0*([0-9]{1,18})(\.0*)?", text)
    return text if found is None else f"{'-' if found[1] == '-' else ''}{found[2]}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."


def _shown(value: object) -> str:
    """Return what a file holds as it can be shown on a terminal: short, and nothing that acts."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in str(value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
