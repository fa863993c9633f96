"""Which variables of the environment a benchmark file may read."""

from __future__ import annotations

import os
import re

from autolora_eval._errors import UsageError

ALLOW = "AUTOLORA_EVAL_ALLOW"
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
_OWN = "AUTOLORA_EVAL_"
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD")


def expanded(text: str) -> str:
    """Return a path or address with `${VAR}` and `${VAR:-default}` replaced.

    As in a shell, the default also stands in for an empty value. Only the one who uses a path or
    address expands it: manifest and report keep the text of the benchmark file.

    Raises:
        UsageError: if a variable may not be read, or is not set and has no default.
    """
    return _VARIABLE.sub(_value, text)


def _value(match: re.Match[str]) -> str:
    name, default = match["name"], match["default"]
    if _SECRET.search(name) or not (name == "HOME" or name.startswith(_OWN) or name in _allowed()):
        raise UsageError(
            f"the environment variable {name} may not be read: only {_OWN}… and HOME, and never a "
            f"key or token. If you trust the file, allow others with {ALLOW}={name}."
        )
    found = os.environ.get(name)
    if default is not None:
        found = found or default
    if found is None:
        raise UsageError(
            f"the environment variable {name} is not set. "
            f"Set it, or give a default: ${{{name}:-value}}."
        )
    return found


def key_problem(name: str) -> str | None:
    """Return why a benchmark may not send the value of a variable to its server, or None."""
    if name != "HF_TOKEN" and (name.startswith(_OWN) or name in _allowed()):
        return None
    if name == "HF_TOKEN":
        return "HF_TOKEN is never sent to a judge's server. Put the server's own key elsewhere."
    return (
        f"the variable {name} may not be sent to a server: only {_OWN}… may. If you trust the "
        f"file, allow it with {ALLOW}={name}."
    )


def _allowed() -> list[str]:
    """Return the names that the user allows besides, separated by commas."""
    return [name.strip() for name in os.environ.get(ALLOW, "").split(",")]
