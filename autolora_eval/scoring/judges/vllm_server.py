"""A judge's server that runs during the judging: started, waited for, and always stopped."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.scoring.judges import supervisor
from autolora_eval.scoring.judges.config import JudgeConfig, listing
from autolora_eval.scoring.judges.server import StatusError, listed_now
from autolora_eval.scoring.judges.vllm_command import (
    HOST,
    MLLAMA_PACKAGES,
    own_environment,
    server_command,
    vllm_python,
)

Say = Callable[[str], None]
POLL_SECONDS = 0.5
SAY_EVERY_SECONDS = 60.0
TAIL_LINES = 20
_READ_BYTES = 1_000_000
_LONGEST_LINE = 300
# Pattern in the log → advice. The first match counts.
_ADVICE = {
    r"No module named '?vllm": (
        "vLLM is not installed in that environment: {python} -m pip install vllm."
    ),
    r"Mllama\w+ (was supported|is not supported)|architectures \['Mllama.*not supported": (
        "Llama-3.2-Vision was last supported by vLLM 0.10.2. Give it an environment of its own: "
        f"pip install {MLLAMA_PACKAGES}."
    ),
    r"all_special_tokens_extended": (
        "this vLLM does not know transformers 5. In its environment: pip install 'transformers<5'."
    ),
    r"gated repo|GatedRepoError|(401|403) Client Error|not a local folder and is not a valid": (
        "the hub does not give '{model}' to this user. Accept its licence on its page, and run 'hf "
        "auth login' or set HF_TOKEN."
    ),
    r"LocalEntryNotFoundError|OfflineModeIsEnabled|couldn't connect to|outgoing traffic": (
        "the hub cannot be reached, and '{model}' is not in its cache here. On a machine with "
        "access run: hf download {model}"
    ),
    r"CUDA out of memory|OutOfMemoryError|can't allocate memory|Free memory on device|"
    r"No available memory for the cache": (
        "the memory is too small for this judge and what else is in it (see nvidia-smi). Lower "
        "--max-model-len, --max-num-seqs or --gpu-memory-utilization in judge.launch_args, or "
        "take a smaller judge."
    ),
    r"larger than the (maximum number of tokens|available KV cache)": (
        "lower --max-model-len in judge.launch_args: 8192 is ample for one image and a rubric."
    ),
    r"Failed to infer device type|No CUDA GPUs are available|no NVIDIA driver|libcuda\.so": (
        "vLLM sees no GPU. 'nvidia-smi' must list one, and a container needs '--gpus all'."
    ),
    r"unrecognized arguments|error: argument |error: unexpected argument|unknown flag": (
        "an argument in judge.launch_args or judge.launch_command is not one of this version's."
    ),
    r"[Aa]ddress already in use|port is already allocated": (
        "another program took the port in that moment. Run the same command again."
    ),
}
_KILLED = "it was killed, most likely because the machine ran out of memory (see the system log)."
_ERROR = re.compile(r"\b\w*(Error|Exception)\b: \S")


@contextmanager
def launched_server(spec: JudgeConfig, log: Path, say: Say = lambda text: None) -> Iterator[str]:
    """Serve the judge on this machine while the block runs; its output replaces the log file.

    A supervisor process stops the server with all its workers when the block ends, and also when
    this process is interrupted or killed.

    Yields:
        The address of the server, ending in `/v1`.

    Raises:
        UsageError: if the judge's model is neither a folder nor a hub id.
        AutoLoRAEvalError: if the server ended or did not answer in time, with the end of its log.
            Also if the block fails after the server ended.
    """
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = int(free.getsockname()[1])
    command, url = server_command(spec, port), f"http://{HOST}:{port}/v1"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"starting the judge's server for '{spec.model}' (log: {log})")
    started = time.monotonic()
    with _supervised(command, _environment(spec), log) as process:
        _await_health(process, spec, url, log, say)
        say(f"the judge's server answers after {time.monotonic() - started:.0f} s")
        try:
            yield url
        except AutoLoRAEvalError as error:
            code = process.poll()
            if code is None:
                raise
            what = f"{error}\nThe judge's server ended with exit code {code} during the judging"
            raise startup_error(what, code, log, spec) from error


def _environment(spec: JudgeConfig) -> dict[str, str]:
    """Return the server's environment variables: without the judge's key, its programs first.

    vLLM compiles kernels with the `ninja` of its environment, which must be on the PATH.
    """
    variables = own_environment()
    variables.pop(spec.api_key_env, None)
    variables["PYTHONUNBUFFERED"] = "1"
    if not spec.launch_command:
        folders = [str(vllm_python(spec).parent), variables.get("PATH", os.defpath)]
        variables["PATH"] = os.pathsep.join(folders)
    return variables


@contextmanager
def _supervised(
    command: list[str], variables: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command under a supervisor process, and stop it when the block ends."""
    grace = supervisor.GRACE_SECONDS
    line = [sys.executable, "-I", supervisor.__file__, str(os.getpid()), str(grace), *command]
    with log.open("wb") as stream:
        # A session of its own, so that Ctrl-C reaches only us, and we stop the server properly.
        process = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(grace + supervisor.KILL_SECONDS + 5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_health(
    process: subprocess.Popen[bytes], spec: JudgeConfig, url: str, log: Path, say: Say
) -> None:
    """Wait until the server lists the judge's model."""
    start = time.monotonic()
    last_message = start
    while (code := process.poll()) is None:
        if _is_served(url, spec):
            return
        now = time.monotonic()
        if now - start > spec.launch_timeout:
            what = (
                f"the judge's server did not answer within {spec.launch_timeout:g} s and was "
                "stopped. The first start may download the model: increase judge.launch_timeout"
            )
            raise startup_error(what, None, log, spec)
        if now - last_message >= SAY_EVERY_SECONDS:
            last_message = now
            say(f"waiting for the judge's server ({now - start:.0f} s)")
        time.sleep(POLL_SECONDS)
    what = f"the judge's server ended with exit code {code} before it answered"
    raise startup_error(what, code, log, spec)


def _is_served(url: str, spec: JudgeConfig) -> bool:
    """Return True if a server has the judge's model; False while it does not answer."""
    try:
        served = listed_now(url, spec)
    except AutoLoRAEvalError as error:
        cause = error.__cause__
        if isinstance(cause, StatusError) and cause.status in (401, 403):
            raise AutoLoRAEvalError(
                f"the judge's server requires an API key (status {cause.status}). Set "
                f"{spec.api_key_env} to the key that it was started with, or start it without one."
            ) from error
        return False  # not started yet
    if served is not None and spec.model not in served:
        raise AutoLoRAEvalError(
            f"the launched server serves {listing(served)}, not '{spec.model}'. "
            "Add to judge.launch_command, for example: --served-model-name, '{name}'."
        )
    return True


def startup_error(what: str, code: int | None, log: Path, spec: JudgeConfig) -> AutoLoRAEvalError:
    """Return the error for a server that did not start or did not keep running, with its log's end.

    `what` is a sentence without a full stop. `code` is None if the server still ran.
    """
    text = _read_end(log)
    lines = [line[:_LONGEST_LINE] for line in text.splitlines() if line.strip()]
    tail = lines[-TAIL_LINES:]
    advice = next((advice for pattern, advice in _ADVICE.items() if re.search(pattern, text)), "")
    advice = advice.format(python=spec.vllm_python or "python", model=spec.model)
    if not advice and code == 137:
        advice = _KILLED
    parts = [f"{what}: {advice.rstrip('.')}." if advice else f"{what}."]
    # vLLM's last line is often "see root cause above".
    first = next((line for line in lines if _ERROR.search(line)), None)
    if first is not None and first not in tail:
        parts.append(f"The first error in its log:\n    {first}")
    parts.append(f"The end of its log, {log}:" if tail else f"Its log, {log}, is empty.")
    return AutoLoRAEvalError("\n".join([*parts, *(f"    {line}" for line in tail)]))


def _read_end(log: Path) -> str:
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _READ_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
