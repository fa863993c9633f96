"""Results of guider checks, and the errors that end a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autolora_eval._errors import AutoLoRAEvalError

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: Name of the check, such as `"check_output_shape"`.
        status: `"passed"`, `"failed"` or `"skipped"`.
        message: What is wrong and how to fix it, or why the check was skipped. Empty if it passed.
    """

    name: str
    status: Status
    message: str = ""


class CheckFailedError(AutoLoRAEvalError):
    """A guider failed one or more checks.

    Attributes:
        results: The results of all checks, if the error is raised by `check_guider`.
    """

    def __init__(self, message: str, results: Sequence[CheckResult] = ()) -> None:
        super().__init__(message)
        self.results = list(results)


class CheckSkippedError(Exception):
    """A check does not apply to a guider. The message is the reason."""
