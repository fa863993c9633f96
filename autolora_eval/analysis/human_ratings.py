"""People's ratings of a run's images: reading and checking the CSV file."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._text import sanitize
from autolora_eval.runs.columns import unescaped
from autolora_eval.runs.records import ScoreRecord

MAX_PROBLEMS = 10
# Columns of this module only. A rubric's score name starts with a letter, so it cannot clash.
IMAGE, RATER = "_image", "_rater"
IDENTITY = ("file", "cell", "prompt", "prompt_index", "seed", "sha256")
_INTEGERS = ("prompt_index", "seed")
_EXPECTED = (
    "expected 'file' (as in scores.parquet), or 'cell', 'seed' and 'prompt' or 'prompt_index'"
)


def read_ratings(
    path: Path, images: pd.DataFrame, scores: Mapping[str, ScoreRecord]
) -> pd.DataFrame:
    """Read a file of ratings. Each row is one person's rating of one image.

    A row names its image by `file`, as in scores.parquet, or by `cell`, `seed` and `prompt` or
    `prompt_index`. If a row has more of these columns, or `sha256`, they must match the image.
    `rater` is the person. Any score of the run may be a column. Empty fields are ignored.

    Returns:
        Columns `IMAGE` (row number in `images`), `RATER`, and one per rated score, NaN where a
        person did not rate it.

    Raises:
        UsageError: with up to ten problems and their lines.
    """
    table = _read_csv(path)
    rated = {
        column: scores[column] for column in _rated_columns(path, table.columns.tolist(), scores)
    }
    index = _ImageIndex(images)
    problems: list[str] = []
    first_lines: dict[tuple[int, str], int] = {}
    ratings: list[dict[str, Any]] = []
    for line, fields in zip(table.index, table.to_dict("records"), strict=True):
        row = {str(column): unescaped(str(field).strip()) for column, field in fields.items()}
        if not any(row.values()):
            continue
        rating, found = _read_row(row, index, rated)
        if not found:
            first = first_lines.setdefault((rating[IMAGE], rating[RATER]), line)
            if first != line:
                by = f" by '{_shown(rating[RATER])}'" if rating[RATER] else ""
                found = [f"the image was already rated{by} in line {first}; remove one"]
        ratings.append(rating)
        problems += [f"{path}:{line}: {_with_full_stop(text)}" for text in found]
        if len(problems) >= MAX_PROBLEMS:
            problems[MAX_PROBLEMS:] = ["Further lines were not checked."]
            break
    if problems:
        raise UsageError("\n".join(problems))
    result = pd.DataFrame(ratings, columns=[IMAGE, RATER, *rated])
    if not result[list(rated)].notna().any(axis=None):
        raise UsageError(f"{path}: contains no ratings: columns {', '.join(rated)} are empty.")
    return result


def _read_csv(path: Path) -> pd.DataFrame:
    """Return the rows as text, with their line numbers as the index."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            header = stream.readline()
        table = pd.read_csv(
            path,
            # Spreadsheets of some countries write semicolons.
            sep=next((mark for mark in ",;\t" if mark in header), ","),
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            skipinitialspace=True,
            encoding="utf-8-sig",
        )
    except OSError as error:
        raise UsageError(f"Cannot read '{path}': {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x}). Save it as CSV in UTF-8 "
            "(a spreadsheet program calls this format 'CSV UTF-8')."
        ) from error
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise UsageError(f"{path}: not a CSV file of ratings: {error}".rstrip() + ".") from error
    return table.fillna("").set_axis(range(2, len(table) + 2))


def _rated_columns(path: Path, names: list[str], scores: Mapping[str, ScoreRecord]) -> list[str]:
    """Return the columns that are scores; refuse unknown columns, and those without an image."""
    known = (*IDENTITY, "rater", *scores)
    problems = [
        f"unknown column '{_shown(name)}': remove or rename it.{did_you_mean(name, known)}"
        for name in names
        if name not in known
    ]
    rated = [name for name in names if name in scores]
    has_parts = {"cell", "seed"} <= set(names) and {"prompt", "prompt_index"} & set(names)
    if not problems and not rated:
        problems.append(f"no column of ratings. The judge's scores are: {', '.join(scores)}.")
    if not problems and "file" not in names and not has_parts:
        problems.append(f"no column names the rated image: {_EXPECTED}.")
    if problems:
        raise UsageError("\n".join(f"{path}: {problem}" for problem in problems[:MAX_PROBLEMS]))
    return rated


class _ImageIndex:
    """Finds the image that a row names."""

    def __init__(self, images: pd.DataFrame) -> None:
        self._rows = images.reindex(columns=list(IDENTITY)).to_dict("records")
        self._cells = list(dict.fromkeys(str(row["cell"]) for row in self._rows))
        self._indices: dict[tuple[Hashable, ...], int] = {}
        for index, row in enumerate(self._rows):
            parts = row["cell"], str(row["seed"])
            self._indices[(row["file"],)] = index
            self._indices[*parts, "prompt", row["prompt"]] = index
            self._indices[*parts, "prompt_index", str(row["prompt_index"])] = index

    def find(self, fields: Mapping[str, str]) -> int | str:
        """Return the index of the image that the fields name, or what is wrong with them."""
        values = {k: _integer(v) if k in _INTEGERS else v for k, v in fields.items()}
        if "file" in values:
            # A spreadsheet on Windows may write the path with backslashes.
            values["file"] = values["file"].replace("\\", "/").removeprefix("./")
            index = self._indices.get((values["file"],))
            if index is None:
                example = f"expected a path such as '{self._rows[0]['file']}'"
                return f"the run has no image '{_shown(values['file'])}'; {example}"
        else:
            by = next((name for name in ("prompt", "prompt_index") if name in values), None)
            if by is None or not {"cell", "seed"} <= values.keys():
                return f"the row does not name an image: {_EXPECTED}"
            index = self._indices.get((values["cell"], values["seed"], by, values[by]))
            if index is None:
                return self._no_such_image(values, by)
        for name, value in values.items():
            actual = str(self._rows[index][name])
            if value != actual:
                return f"{name} is '{_shown(value)}', but the image has '{_shown(actual)}'"
        return index

    def _no_such_image(self, values: Mapping[str, str], by: str) -> str:
        if values["cell"] not in self._cells:
            near = did_you_mean(values["cell"], self._cells)
            return f"the run has no cell '{_shown(values['cell'])}'.{near}"
        parts = ", ".join(f"{name} '{_shown(values[name])}'" for name in ("cell", by, "seed"))
        return f"the run has no image with {parts}"


def _read_row(
    row: Mapping[str, str], index: _ImageIndex, scores: Mapping[str, ScoreRecord]
) -> tuple[dict[str, Any], list[str]]:
    image = index.find({name: row[name] for name in IDENTITY if row.get(name)})
    rating: dict[str, Any] = {IMAGE: image, RATER: row.get("rater", "")}
    problems = [image] if isinstance(image, str) else []
    if row.get("rater") == "":
        problems.append("empty rater; expected a name, or no column 'rater'")
    for column, score in scores.items():
        try:
            rating[column] = _rating_value(row[column], score)
        except ValueError as error:
            problems.append(f"{column}: {error}")
    return rating, problems


def _rating_value(text: str, score: ScoreRecord) -> float:
    """Return a rating; NaN for an empty field, a ValueError for no number in the range."""
    try:
        value = float(text) if text else math.nan
    except ValueError as error:
        raise ValueError(f"'{_shown(text)}' is not a number such as 3 or 3.5") from error
    if text and not score.min <= value <= score.max:  # also refuses "nan"
        raise ValueError(f"{_shown(text)} is out of range; expected {score.min:g} to {score.max:g}")
    return value


def _integer(text: str) -> str:
    """Return an integer in its shortest form: spreadsheets may write `3.0` for `3`."""
    return re.sub(r"^0+(?=\d)|\.0*$", "", text)


def _with_full_stop(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."


def _shown(value: object) -> str:
    """Return a value of the file as short text without control characters."""
    text = sanitize(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
