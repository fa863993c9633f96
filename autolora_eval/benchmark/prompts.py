"""Prompt sets: one prompt a line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from autolora_eval.errors import UsageError

MAX_PROMPT_LENGTH = 10_000


def read_prompts(path: Path) -> list[str]:
    """Read a prompt file: UTF-8, one prompt a line, blank lines left out.

    Raises:
        UsageError: not a readable UTF-8 file, empty, too long a line, or a prompt twice.
    """
    try:
        # Not `splitlines`: it also breaks at characters that can stand in a prompt (U+2028).
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 (byte {error.start}). Save the prompts as UTF-8 text."
        ) from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from error
    return check_prompts(((f"{path}:{n}", s.strip()) for n, s in enumerate(lines, 1)), str(path))


def check_prompts(placed: Iterable[tuple[str, str]], where: str) -> list[str]:
    """Return the prompts, each once.

    Args:
        placed: pairs of place, for messages, and prompt; empty prompts are left out.
        where: the place of them all.

    Raises:
        UsageError: none is left, one is too long, or one stands twice.
    """
    first: dict[str, str] = {}
    for place, prompt in placed:
        if not prompt:
            continue
        if len(prompt) > MAX_PROMPT_LENGTH:
            raise UsageError(
                f"{place}: a prompt of {len(prompt)} characters; "
                f"at most {MAX_PROMPT_LENGTH} are accepted. Is it one prompt a line?"
            )
        if prompt in first:
            raise UsageError(
                f"{place}: the prompt {prompt[:80]!r} stands there for the second time, after "
                f"{first[prompt]}. Prompts are paired across methods by their text: remove one."
            )
        first[prompt] = place
    if not first:
        raise UsageError(f"{where}: no prompt in it. Write one prompt a line.")
    return list(first)
