"""`autolora-eval check`: a guider by its dotted path, the laws of it as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from autolora_eval.errors import UsageError
from autolora_eval.guidance.code import load_dotted
from autolora_eval.guidance.laws.all_laws import LAWS, LawResult, judge
from autolora_eval.guidance.laws.declaration import ModelName
from autolora_eval.guidance.laws.law_table import show_laws
from autolora_eval.guidance.laws.making import subject_of


def check(path: str, words: Sequence[str], model: ModelName, console: Console) -> bool:
    """Try all laws on a guider and print what they say.

    Args:
        path: `package.module.MyGuider`; a module in the working folder is found too.
        words: `name=value` each, the value written as in YAML.
        model: the family of the tiny model that it is tried on.
        console: where to.

    Returns:
        Whether it breaks none.

    Raises:
        UsageError: there is no such guider, or a parameter is wrong.
    """
    found = load_dotted(path, [Path.cwd()])
    if not isinstance(found, type):
        raise UsageError(f"'{path}' is a {type(found).__name__}, not a guider class.")
    parameters = dict(_parameter(word) for word in words)
    results: list[LawResult] = []
    with console.status("making a tiny model …") as status:
        subject = subject_of(found, model=model, laws=None, parameters=parameters)
        for result in judge(subject):
            results.append(result)
            status.update(f"law {len(results)} of {len(LAWS)} …")
    show_laws(f"{path} on a tiny {model.upper()}", results, console)
    return all(result.status != "failed" for result in results)


def _parameter(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"'{word}' is no parameter: write --parameter name=value.")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"the value of '{name}' cannot be read as YAML: {value}") from error
