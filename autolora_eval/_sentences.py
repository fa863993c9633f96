"""The English of tables, figures and reports: macros of the templates in `templates/`.

Code computes plain values; a template says them. What users, judges and plugins wrote reaches a
template as a value only, so that it can never become template code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from autolora_eval import _text

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.environment import TemplateModule


class Sentences:
    """The macros of one template as methods that return one line of text.

    Args:
        name: Name of the template, without its suffix.

    Example:
        >>> Sentences("cost").times_note(swept=False)
        "×: multiples of the baseline's."
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

    # The text is plain: whoever writes HTML or typst escapes it there.
    environment = Environment(
        loader=PackageLoader("autolora_eval"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": _text.format_fixed,
        "signed": lambda value, digits=3: _text.format_fixed(value, digits, signed=True),
        "interval": lambda ends: _text.format_interval(*ends),
        "signed_interval": lambda ends: _text.format_interval(*ends, signed=True),
        "count": _text.format_int,
        "plural": _text.pluralize,
        "p": _text.format_p_value,
        "listed": lambda names: _text.join_names(list(names)),
        "percent": lambda share: f"{100 * share:.1f}%",
        "parameter": _text.parameter_label,
        "point": _text.point_label,
        "capital": lambda text: text[:1].upper() + text[1:],
    }
    return environment
