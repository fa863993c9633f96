"""What a judge's server that the run launches is, as far as that decides its replies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from autolora_eval._files import Json
from autolora_eval._resources import shipped_root
from autolora_eval._sources import Lookup, Source, find_model, identity
from autolora_eval.scoring.judges.config import JudgeConfig

# What says where the model is served and how much at a time, and decides no reply.
_NO_MATTER = frozenset(
    (
        *("--model", "--served-model-name", "--host", "--port", "--uvicorn-log-level"),
        *("--gpu-memory-utilization", "--max-model-len", "--max-num-seqs", "--swap-space"),
        *("--max-num-batched-tokens", "--tensor-parallel-size", "--data-parallel-size"),
        *("--pipeline-parallel-size", "--enforce-eager", "--cpu-offload-gb", "--download-dir"),
    )
)


def model_source(spec: JudgeConfig) -> Source:
    """Return where the judge's model is: a shipped miniature, a folder as seen from here, the hub.

    Raises:
        UsageError: it is none of these.
    """
    lookup = Lookup((Path.cwd(), shipped_root()))
    return find_model(spec.model, spec.revision, lookup, "config.json")


def launched_identity(spec: JudgeConfig) -> Json:
    """Return what decides a launched server's replies, which it does not tell itself.

    Args:
        spec: the benchmark's `judge`.

    Returns:
        `arguments` of the server, such as `--quantization`; `weights`, the hash of a folder.
        Empty without either, and for a server that is not launched.

    Raises:
        UsageError: the model is neither a folder nor a hub id.
    """
    if not spec.launch:
        return {}
    source, arguments = model_source(spec), server_arguments(spec)
    weights = {"weights": identity(source)["sha256"]} if source.kind == "folder" else {}
    return weights | ({"arguments": arguments} if arguments else {})


def server_arguments(spec: JudgeConfig) -> list[str]:
    """Return the options that may decide a reply, each with its values, in the alphabet's order.

    Of a command line that is what comes after the model's name.
    """
    command = spec.launch_command
    model = next((n for n, part in enumerate(command) if "{model}" in part), len(command) - 1)
    options = _options([*command[model + 1 :], *spec.launch_args])
    return sorted(" ".join(option) for option in options if option[0] not in _NO_MATTER)


def _options(arguments: Iterable[str]) -> list[list[str]]:
    """Return each option with its values; `--a_b=1` is `--a-b 1`, as it is to vLLM."""
    found: list[list[str]] = []
    for part in arguments:
        name, equals, value = part.partition("=")
        if part.startswith("--"):
            found.append([name.replace("_", "-"), *([value] if equals else [])])
        elif part.startswith("-") and not part[1:2].isdigit():
            found.append([part])
        elif found:
            found[-1].append(part)
        else:
            found.append([part])
    return found
