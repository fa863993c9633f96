"""The columns that every table has, and how tables are written as CSV."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolora_eval._files import write_text

if TYPE_CHECKING:
    import pandas as pd

_COMPUTED = frozenset(
    (
        *("cell", "model", "method", "guider", "sampler", "images", "prompt", "prompt_index"),
        *("seed", "image_id", "file", "sha256", "nfe", "unscored_reason", "image_error"),
        *("n_images", "n_missing", "n_unscored", "n_undefined_prompts", "diversity", "reason"),
        *("rater", "lora_scale", "num_inference_steps"),
    )
)
_ENDINGS = ("_low", "_high", "_published", "_prompt_mean", "_expected")
_BEGINNING = "div_"
# Further columns of diversity.csv, and the suffix of the column beside a metric's own.
_OF_PROMPTS, _REASON = frozenset(("n", "standard_error", "reference_cell")), "_reason"


def is_computed(column: str) -> bool:
    """Return whether a column is computed, so that no score or parameter may have its name."""
    return column in _COMPUTED or column.startswith(_BEGINNING) or column.endswith(_ENDINGS)


def parameter_column(parameter: str) -> str:
    """Return the column of a method's parameter: its name, unless a computed column has it."""
    return f"parameter_{parameter}" if is_computed(parameter) else parameter


def is_taken_in_diversity(column: str) -> bool:
    """Return whether a diversity metric cannot have this name: another column has it."""
    return is_computed(column) or column in _OF_PROMPTS or column.endswith(_REASON)


_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
# A method may be called 'NA' or 'None', so in text columns only an empty field is null.
_TEXT_COLUMNS = (
    *("cell", "model", "method", "baseline", "baseline_cell", "measure", "unit", "prompt"),
    *("reason", "sentence", "score", "compared", "statistic"),
)


def write_csv(path: Path, table: pd.DataFrame, float_format: str | None = None) -> None:
    """Write a table as CSV, atomically."""
    names = {name: _escaped(name) for name in table.columns}
    texts = {
        name: table[name].map(_escaped)
        for name in table.columns
        if any(isinstance(value, str) for value in table[name])
    }
    escaped = table.assign(**texts).rename(columns=names)
    write_text(path, escaped.to_csv(index=False, float_format=float_format, lineterminator="\n"))


def read_csv(path: Path) -> pd.DataFrame:
    """Read a table that `write_csv` wrote."""
    import pandas as pd

    types = dict.fromkeys(_TEXT_COLUMNS, str)
    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=types)
    texts = table.select_dtypes(exclude="number")
    back = {str(name): texts[name].map(unescaped, na_action="ignore") for name in texts}
    return table.assign(**back).rename(columns=unescaped)


def _escaped(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def unescaped(value: Any) -> Any:  # noqa: ANN401
    """Undo the escaping of a text in a CSV file; return anything else as it is."""
    is_escaped = isinstance(value, str) and value.startswith("'") and _FORMULA.match(value)
    return value[1:] if is_escaped else value
