"""The two ways a command can fail, and how a misspelt word is answered."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutoLoRAEvalError(Exception):
    """A failure with a message for the user: what was found, what was expected, what to do next."""

    exit_code = 1


class UsageError(AutoLoRAEvalError):
    """The user's input cannot be used as it stands; nothing was loaded and nothing was lost."""

    exit_code = 2


class MissingDependencyError(AutoLoRAEvalError):
    """An optional part of the product is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"The package '{package}' is not installed, and this step needs it. "
            f"Install it with: pip install 'autolora-eval[{extra}]'"
        )


def did_you_mean(word: str, known: Iterable[str], *, or_list: bool = True) -> str:
    """Return " Did you mean 'x'?" for the nearest of `known`, or the list of them all.

    Args:
        word: what the user wrote.
        known: what would have been accepted.
        or_list: list them all if none is near.

    Returns:
        A sentence with a leading blank; empty if there is nothing to suggest.
    """
    choices = list(known)
    lowered = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{lowered[near[0]]}'?"
    return f" Known: {', '.join(choices)}." if choices and or_list else ""
