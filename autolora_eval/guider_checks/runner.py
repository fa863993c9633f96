"""The results of checks, their registry, and the command `autolora-eval check`.

This module imports no torch, so that the public names can be imported quickly.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autolora_eval._devices import uncollected
from autolora_eval._errors import (
    AutoLoRAEvalError,
    UsageError,
    did_you_mean,
    validation_message,
)
from autolora_eval._progress import quiet_libraries
from autolora_eval.guidance.method import ModelName
from autolora_eval.plugins.third_party import third_party_frame

if TYPE_CHECKING:
    from diffusers.guiders import BaseGuidance
    from rich.console import Console

    from autolora_eval.guidance.method import GuiderMethod
    from autolora_eval.guider_checks.harness import GuiderUnderTest

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


_STYLES: dict[Status, str] = {"passed": "green", "failed": "bold red", "skipped": "dim"}
# The CFG scale of the model, for methods that take theirs from it.
_MODEL_GUIDANCE_SCALE = 5.0


@dataclass(frozen=True)
class Check:
    """A registered check.

    Attributes:
        function: Raises `CheckFailedError` or `CheckSkippedError`, or returns if the guider passes.
        requires: Names of the checks without which this one proves nothing.
    """

    function: Callable[[GuiderUnderTest], None]
    requires: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.__name__


_REGISTERED: dict[str, Check] = {}


def check(
    *, requires: tuple[str, ...] = ()
) -> Callable[[Callable[[GuiderUnderTest], None]], Callable[[GuiderUnderTest], None]]:
    """Register a function as a check.

    Args:
        requires: Names of checks. If one of them fails, or one that it requires itself, the new
            check is skipped, so that one fault is reported under one name.
    """

    def register(function: Callable[[GuiderUnderTest], None]) -> Callable[[GuiderUnderTest], None]:
        _REGISTERED[function.__name__] = Check(function, requires)
        return function

    return register


@cache
def all_checks() -> Mapping[str, Check]:
    """Return all checks by name, each after those that it requires. Imports torch."""
    for module in ("interface_checks", "prediction_checks"):
        importlib.import_module(f"autolora_eval.guider_checks.{module}")
    ordered: dict[str, Check] = {}
    for name in _REGISTERED:
        ordered |= {one: _REGISTERED[one] for one in (*_required(name), name)}
    return ordered


@cache
def _required(name: str) -> tuple[str, ...]:
    """Return what a check requires, directly or not, in the order in which it runs."""
    found: dict[str, None] = {}
    for direct in _REGISTERED[name].requires:
        found |= dict.fromkeys((*_required(direct), direct))
    return tuple(found)


def run_with_required(
    name: str, guider: GuiderUnderTest, known: dict[str, CheckResult]
) -> CheckResult:
    """Run one check after those that it requires. New results are added to the known ones."""
    all_checks()  # registers them
    for one in (*_required(name), name):
        if one not in known:
            failed = [n for n in _required(one) if known[n].status == "failed"]
            known[one] = (
                CheckResult(one, "skipped", f"requires {failed[0]}, which failed")
                if failed
                else _run(_REGISTERED[one], guider)
            )
    return known[name]


def _run(check: Check, guider: GuiderUnderTest) -> CheckResult:
    from autolora_eval.guider_checks.denoising_loop import ProtocolError, quiet_diffusers

    try:
        with quiet_diffusers():
            check.function(guider)
    except (CheckFailedError, ProtocolError) as error:
        return CheckResult(check.name, "failed", f"{error}{_location(error.__cause__)}")
    except CheckSkippedError as error:
        return CheckResult(check.name, "skipped", str(error))
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        message = f"it raised {type(error).__name__}: {text:.300}{_location(error)}"
        return CheckResult(check.name, "failed", message)
    return CheckResult(check.name, "passed")


def _location(error: BaseException | None) -> str:
    """Return the last line of third-party code in a traceback, as " (file:line)", or ""."""
    frame = third_party_frame(error) if error is not None else None
    return f" ({Path(frame.filename).name}:{frame.lineno})" if frame else ""


# --------------------
# The command `autolora-eval check`.


def check_command(
    name: str, arguments: Sequence[str], model: ModelName, console: Console, progress: Console
) -> bool:
    """Run all checks on a guider and print a table of the results.

    Args:
        name: A dotted path such as `package.module.MyGuider`, which may be a module in the working
            folder; or the name of a method, built in or of an installed package.
        arguments: Parameters as `name=value`, each value written as in YAML.
        model: Family of the tiny model.
        console: Where the table goes.
        progress: Where the progress line goes. It is drawn on a terminal only, and removed.

    Returns:
        `True` if no check failed.

    Raises:
        UsageError: if there is no such guider, or a parameter is wrong.
    """
    # This line is printed first, because the imports below take seconds.
    with progress.status("Loading diffusers …") as status, uncollected(), quiet_libraries():
        import torch

        from autolora_eval.guider_checks.harness import guider_under_test

        # Threads do not make a tiny model faster, and on a busy machine they wait for each other:
        # the checks took 56 s instead of 6 s beside two other processes on two cores.
        torch.set_num_threads(1)
        guider, parameters = _find_guider(name, dict(_parameter(word) for word in arguments))
        tested = guider_under_test(guider, model=model, spec=None, parameters=parameters)
        known: dict[str, CheckResult] = {}
        for n, check_name in enumerate(all_checks(), 1):
            status.update(f"Check {n} of {len(all_checks())}: {check_name}")
            run_with_required(check_name, tested, known)
    results = list(known.values())
    _print_results(f"{name} on a tiny {model.upper()}", results, console)
    return all(result.status != "failed" for result in results)


def _find_guider(
    name: str, parameters: Mapping[str, Any]
) -> tuple[type[BaseGuidance] | BaseGuidance, Mapping[str, Any]]:
    """Return the guider that a name stands for, and the parameters to construct it with."""
    from autolora_eval.guidance.method import GuiderMethod
    from autolora_eval.guidance.method_registry import GUIDERS, describe_type
    from autolora_eval.plugins.third_party import load_dotted

    is_path = "." in name.replace(":", ".")
    found: object = load_dotted(name, [Path.cwd()]) if is_path else GUIDERS.find(name)
    if isinstance(found, GuiderMethod) and found.guider is not None:
        return found.guider, _coerced(found.guider, parameters)
    if isinstance(found, GuiderMethod):
        return _built(found, parameters), {}
    if not isinstance(found, type):
        raise UsageError(f"'{name}' is {describe_type(found)}; expected a guider class.")
    return found, _coerced(found, parameters)


def _coerced(guider: type, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert values to the constructor's annotations, as in a benchmark file."""
    from autolora_eval.plugins.signatures import CoercionError, signature_of

    signature = signature_of(guider)
    arguments: dict[str, Any] = {}
    for name, value in parameters.items():
        try:
            arguments |= signature.arguments({name: value})
        except CoercionError as error:
            raise UsageError(f"{guider.__name__}: {name}: {error} (got {value!r:.80}).") from error
    return arguments


def _built(method: GuiderMethod, parameters: Mapping[str, Any]) -> BaseGuidance:
    from pydantic import ValidationError

    from autolora_eval.guider_checks.denoising_loop import quiet_diffusers

    try:
        validated = method.parameters.model_validate(parameters, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            near = did_you_mean(name, method.parameters.model_fields)
            raise UsageError(f"'{method.name}' has no parameter '{name}'.{near}") from error
        message = f"{name or 'parameters'}: {validation_message(first)}"
        raise UsageError(f"'{method.name}': {message}.") from error
    with quiet_diffusers():
        return method.build(validated.with_model_defaults(_MODEL_GUIDANCE_SCALE))


def _parameter(word: str) -> tuple[str, Any]:
    import yaml

    from autolora_eval._yaml import parse_yaml

    name, equals, value = word.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"'{word}' is not a parameter: write --parameter name=value.")
    try:
        return name, parse_yaml(value)
    except yaml.YAMLError as error:
        raise UsageError(f"the value of '{name}' is not valid YAML: {value}") from error


def _print_results(title: str, results: Sequence[CheckResult], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("Check", overflow="fold", width=38)  # the longest name
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    for result in results:
        shade = "dim" if result.status == "skipped" else ""
        mark = "FAILED" if result.status == "failed" else result.status
        cells = ((result.name, shade), (mark, _STYLES[result.status]), (result.message, shade))
        table.add_row(*(Text(*cell) for cell in cells))
    console.print(table)
    counts = Counter(result.status for result in results)
    parts = [f"{counts[status]} {status}" for status in _STYLES if counts[status]]
    console.print(Text.assemble((title, "bold"), f": {', '.join(parts)}"), soft_wrap=True)
