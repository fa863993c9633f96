"""Why a judge's server did not come up, read from its log."""

from __future__ import annotations

import re
from pathlib import Path

from autolora_eval.benchmark.schema import Judge as JudgeSpec
from autolora_eval.serving.command import MLLAMA_PACKAGES

TAIL_LINES = 20
_READ_BYTES = 1_000_000
_LONGEST_LINE = 300
# What stands in the log → what to do. The first that is found is told.
_ADVICE = (
    (
        r"No module named '?vllm",
        "vLLM is not installed in that environment: {python} -m pip install vllm.",
    ),
    (
        r"Mllama\w+ (was supported|is not supported)|architectures \['Mllama.*not supported",
        "Llama-3.2-Vision was last supported by vLLM 0.10.2. Give it an environment of its own: "
        f"pip install {MLLAMA_PACKAGES}.",
    ),
    (
        r"all_special_tokens_extended",
        "this vLLM does not know transformers 5. In its environment: pip install 'transformers<5'.",
    ),
    (
        r"gated repo|GatedRepoError|(401|403) Client Error|not a local folder and is not a valid",
        "the hub does not give '{model}' to this user. Accept its licence on its page, and run 'hf "
        "auth login' or set HF_TOKEN.",
    ),
    (
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|couldn't connect to|outgoing traffic",
        "the hub cannot be reached, and '{model}' is not in its cache here. On a machine with "
        "access run: hf download {model}",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError|can't allocate memory|Free memory on device|"
        r"No available memory for the cache",
        "the memory is too small for this judge beside what else is on it (see nvidia-smi). Lower "
        "--max-model-len, --max-num-seqs or --gpu-memory-utilization in judge.launch_args, or "
        "take a smaller judge.",
    ),
    (
        r"larger than the (maximum number of tokens|available KV cache)",
        "lower --max-model-len in judge.launch_args: 8192 is ample for one image and a rubric.",
    ),
    (
        r"Failed to infer device type|No CUDA GPUs are available|no NVIDIA driver|libcuda\.so",
        "vLLM sees no GPU. 'nvidia-smi' must list one, and a container needs '--gpus all'.",
    ),
    (
        r"unrecognized arguments|error: argument |error: unexpected argument|unknown flag",
        "an argument in judge.launch_args or judge.launch_command is not one of this version's.",
    ),
    (
        r"[Aa]ddress already in use|port is already allocated",
        "another program took the port in that moment. Run the same command again.",
    ),
)
_KILLED = "it was killed: on most machines for want of memory (see the system's log)."
_ERROR = re.compile(r"\b\w*(Error|Exception)\b: \S")


def explain(what: str, code: int | None, log: Path, spec: JudgeSpec) -> str:
    """Return the message for a server that did not come up, or not stay.

    Args:
        what: happened, as a sentence without a full stop.
        code: its exit code; None if it still ran.
        log: what it wrote.
        spec: the benchmark's `judge`.
    """
    text = _read_end(log)
    lines = [line[:_LONGEST_LINE] for line in text.splitlines() if line.strip()]
    tail = lines[-TAIL_LINES:]
    advice = _advice(text, code, spec)
    told = [f"{what}{'' if advice is None else ': ' + advice.rstrip('.')}."]
    # vLLM's last words mostly are "see root cause above".
    first = next((line for line in lines if _ERROR.search(line)), None)
    if first is not None and first not in tail:
        told.append(f"The first error in its log:\n    {first}")
    told.append(f"The end of its log, {log}:" if tail else f"Its log, {log}, is empty.")
    return "\n".join([*told, *(f"    {line}" for line in tail)])


def _advice(text: str, code: int | None, spec: JudgeSpec) -> str | None:
    for pattern, advice in _ADVICE:
        if re.search(pattern, text):
            return advice.format(python=spec.vllm_python or "python", model=spec.model)
    return _KILLED if code == 137 else None


def _read_end(log: Path) -> str:
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _READ_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
