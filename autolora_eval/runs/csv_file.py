"""CSV files of a run folder: a text that a spreadsheet would take for a formula is escaped.

As OWASP advises, a text that begins with one of = + - @, a tab or a line break gets an apostrophe
in front. So does a text that has apostrophes before one of these, and reading removes one again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolora_eval._files import write_text

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
# A method may be called 'NA' or 'None': in text columns only an empty field is null.
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
    """Return a text of a CSV file as it was before it was written; anything else as it is."""
    is_escaped = isinstance(value, str) and value.startswith("'") and _FORMULA.match(value)
    return value[1:] if is_escaped else value
