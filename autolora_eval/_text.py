"""Text for tables, reports and the terminal: numbers, foreign text, and sentences of templates.

The English of tables, figures and reports is in `templates/`. Code computes plain values; a
template says them. What users, judges and plugins wrote reaches a template as a value only, so that
it can never become template code.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Real
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.environment import TemplateModule

NOT_RECORDED = "not recorded"
DASH = "–"
MINUS = "−"
# They reorder the text around them: with them, a prompt could change what a report says.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_REPLACEMENT = "\ufffd"

# Spelling of the paper.
_SPELLING = {"lora": "LoRA", "autolora": "AutoLoRA", "cfg": "CFG", "nfe": "NFE"}


def sanitize(value: object) -> str:
    """Return a value as one line of text that is safe in every output format.

    Control characters, lone surrogates and characters that reorder text become U+FFFD. Each run
    of white space becomes one space.
    """
    return re.sub(r"\s+", " ", printable(str(value))).strip()


def printable(text: str) -> str:
    """Return a text without control characters and characters that reorder it; lines are kept."""
    if text.isprintable():
        return text
    return "".join(_REPLACEMENT if _is_hostile(c) else c for c in text)


def truncate(value: object, limit: int) -> str:
    """Return sanitized text of at most `limit` characters, with a note if it was longer."""
    text = sanitize(value)
    if len(text) <= limit:
        return text
    return f"{text[:limit].rstrip()} … [the first {limit} of {len(text):,} characters]"


def as_finite_float(value: object) -> float | None:
    """Return a value as a float if it is a finite number, else None."""
    # `Real` includes the integers of NumPy: pandas reads a CSV column of whole numbers as such.
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def format_fixed(value: object, digits: int = 3, *, signed: bool = False) -> str:
    """Return a number with fixed decimals and a true minus sign; a dash if it is undefined."""
    found = as_finite_float(value)
    if found is None:
        return DASH
    text = f"{found:+.{digits}f}" if signed else f"{found:.{digits}f}"
    if float(text) == 0.0:
        text = f"{0.0:.{digits}f}"
    return text.replace("-", MINUS)


def format_interval(low: object, high: object, *, signed: bool = False) -> str:
    """Return "[low, high]"; empty if either end is undefined."""
    if as_finite_float(low) is None or as_finite_float(high) is None:
        return ""
    return f"[{format_fixed(low, signed=signed)}, {format_fixed(high, signed=signed)}]"


def format_alpha(value: object, low: object, high: object) -> str:
    """Return "α = 0.812 [0.700, 0.901]", without brackets if there is no interval."""
    return f"α = {format_fixed(value)} {format_interval(low, high)}".rstrip()


def format_int(value: object) -> str:
    """Return an integer with thousands separators; a dash if it is undefined."""
    found = as_finite_float(value)
    return DASH if found is None else f"{found:,.0f}"


def format_nfe(value: object) -> str:
    """Return an NFE: an integer, or a mean with one decimal if images differ."""
    found = as_finite_float(value)
    return DASH if found is None else f"{found:,.{0 if found.is_integer() else 1}f}"


def pluralize(n: int, singular: str, plural: str | None = None) -> str:
    """Return a count with its noun, such as "1 image" or "2 images"."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def parameter_label(name: str) -> str:
    """Return the name of a parameter or column as words: "LoRA scale" for "lora_scale"."""
    return " ".join(_SPELLING.get(word, word) for word in name.split("_"))


def point_label(point: Mapping[str, object]) -> str:
    """Return a point of a sweep as words: "LoRA scale 0.4, guidance scale 5"."""
    return ", ".join(f"{parameter_label(name)} {value}" for name, value in point.items())


def format_swept_value(value: object, separator: str = "–") -> str:
    """Return a swept value as text: 0.4 as "0.4", 1.0 as "1", an interval as "0.25–0.75"."""
    if isinstance(value, tuple | list):
        return separator.join(map(format_swept_value, value))
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def join_names(names: list[str]) -> str:
    """Return names as an English list: "A", "A and B", "A, B and C"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def first_few(names: Sequence[str], limit: int) -> str:
    """Return at most `limit` names on one line, and the number of the others: "A, B and 3 more"."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def format_p_value(value: float) -> str:
    """Return "p = 0.016", or "p < 0.001"; "p < 0.05" if it would be rounded to 0.050."""
    if value < 0.001:
        return "p < 0.001"
    text = f"{value:.3f}"
    return "p < 0.05" if value < 0.05 and text == "0.050" else f"p = {text}"


def image_link(file: object) -> str:
    """Return the fragment of a URL that opens an image, by its column `file`, in `report.html`."""
    return f"#image={quote(str(file), safe='/')}"


def _is_hostile(character: str) -> bool:
    category = unicodedata.category(character)
    return (category == "Cc" and character not in "\t\n\r") or (
        category == "Cs" or character in _REORDERING
    )


class Sentences:
    """The macros of a template, named without suffix, as methods that return one line of text.

    Example:
        >>> Sentences("captions").see_table()
        'The numbers are in the result table.'
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, macro: str) -> Callable[..., str]:
        def say(*values: object, **named: object) -> str:
            text = getattr(_module(self._name), macro)(*values, **named)
            return " ".join(str(text).split())

        return say


@cache
def _module(name: str) -> TemplateModule:
    return _environment().get_template(f"{name}.j2").module


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # The text is plain. Code that writes HTML or typst escapes it.
    environment = Environment(
        loader=PackageLoader("autolora_eval"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": format_fixed,
        "signed": lambda value, digits=3: format_fixed(value, digits, signed=True),
        "interval": lambda ends: format_interval(*ends),
        "signed_interval": lambda ends: format_interval(*ends, signed=True),
        "count": format_int,
        "plural": pluralize,
        "p": format_p_value,
        "listed": lambda names: join_names(list(names)),
        "percent": lambda share: f"{100 * share:.1f}%",
        "point": point_label,
        "capital": lambda text: text[:1].upper() + text[1:],
    }
    return environment
