"""`autolora-eval check`: a guider by its name or dotted path, the laws of it as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from diffusers.guiders import BaseGuidance
from pydantic import ValidationError
from rich.console import Console

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval.guidance.method import GuiderMethod
from autolora_eval.guidance.method_registry import GUIDERS, describe_type
from autolora_eval.guidance.spec import ModelName
from autolora_eval.guider_checks.denoising_loop import silence
from autolora_eval.guider_checks.guider_under_test import subject_of
from autolora_eval.guider_checks.runner import LAWS, CheckResult, judge, show_laws
from autolora_eval.plugins.signatures import CoercionError, signature_of
from autolora_eval.plugins.third_party import load_dotted

W = 5.0  # of a method that leaves its CFG scale to the model
_OWN_CHECK = "Value error, "


def check(stated: str, words: Sequence[str], model: ModelName, console: Console) -> bool:
    """Try all laws on a guider and print what they say.

    Args:
        stated: `package.module.MyGuider`, of which a module in the working folder is found too;
            or the name of a method, built in or of an installed package.
        words: `name=value` each, the value written as in YAML.
        model: the family of the tiny model that it is tried on.
        console: where to.

    Returns:
        Whether it breaks none.

    Raises:
        UsageError: there is no such guider, or a parameter is wrong.
    """
    guider, parameters = _guider(stated, dict(_parameter(word) for word in words))
    results: list[CheckResult] = []
    with console.status("making a tiny model …") as status:
        subject = subject_of(guider, model=model, spec=None, parameters=parameters)
        for result in judge(subject):
            results.append(result)
            status.update(f"law {len(results)} of {len(LAWS)} …")
    show_laws(f"{stated} on a tiny {model.upper()}", results, console)
    return all(result.status != "failed" for result in results)


def _guider(
    stated: str, parameters: Mapping[str, Any]
) -> tuple[type[BaseGuidance] | BaseGuidance, Mapping[str, Any]]:
    """Return what is to be tested, and the parameters that are still to be given to it."""
    is_path = "." in stated.replace(":", ".")
    found: object = load_dotted(stated, [Path.cwd()]) if is_path else GUIDERS.find(stated)
    if isinstance(found, GuiderMethod) and found.guider is not None:
        return found.guider, _fitted(found.guider, parameters)
    if isinstance(found, GuiderMethod):
        return _built(found, parameters), {}
    if not isinstance(found, type):
        raise UsageError(f"'{stated}' is {describe_type(found)}, and no guider class.")
    return found, _fitted(found, parameters)


def _fitted(guider: type, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return values from the command line as what the annotations ask for, as a benchmark's are."""
    signature = signature_of(guider)
    fit: dict[str, Any] = {}
    for name, value in parameters.items():
        try:
            fit |= signature.arguments({name: value})
        except CoercionError as error:
            raise UsageError(
                f"{guider.__name__}: {name}: {error}, and it is given {value!r:.80}."
            ) from error
    return fit


def _built(method: GuiderMethod, parameters: Mapping[str, Any]) -> BaseGuidance:
    """Return the guider that a method makes of parameters as a benchmark states them."""
    try:
        stated = method.parameters.model_validate(parameters, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            near = did_you_mean(name, method.parameters.model_fields)
            raise UsageError(f"'{method.name}' has no parameter '{name}'.{near}") from error
        told = first["msg"].removeprefix(_OWN_CHECK)
        raise UsageError(f"'{method.name}': {name or 'parameters'}: {told}.") from error
    with silence():
        return method.build(stated.with_model_defaults(W))


def _parameter(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"'{word}' is no parameter: write --parameter name=value.")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"the value of '{name}' cannot be read as YAML: {value}") from error
