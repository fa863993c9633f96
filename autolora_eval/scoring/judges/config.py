"""The settings of a judge, and which of them do not go together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from autolora_eval._errors import did_you_mean
from autolora_eval._yaml import (
    Addresses,
    DType,
    FiniteFloat,
    KeyPath,
    Name,
    Prompt,
    Ref,
    StrictModel,
)

Problem = tuple[KeyPath, str]
Constraint = Literal[
    "auto", "structured_outputs", "guided_regex", "response_format", "regex", "plain"
]

_OF_A_LAUNCH = ("vllm_python", "launch_command", "launch_args", "launch_timeout")
# The keys that only one backend has, by backend.
_KEYS = {
    "openai": (
        *("base_url", "api_key_env", "concurrency", "timeout", "max_retries", "give_up_after"),
        *("launch", *_OF_A_LAUNCH),
    ),
    "transformers": ("batch_size", "dtype"),
}
_CONSTRAINTS = {
    "openai": ("auto", "structured_outputs", "guided_regex", "response_format", "plain"),
    "transformers": ("auto", "regex", "plain"),
}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_AN_ADDRESS = "http://localhost:8000/v1"
_FILLED_IN = ("{model}", "{port}", "{name}")
_HOLDS_A_KEY = re.compile(r"^--api[-_]key|(KEY|TOKEN|SECRET|PASSWORD)=.")
# In capitals, as the names of such variables are and keys are not.
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_NO_VARIABLE = (
    "expected the name of an environment variable, in capital letters, digits and '_', and not the "
    "key itself, since the manifest states it."
)
_FIELD = re.compile(r"\{[A-Za-z_]+\}")


class JudgeConfig(StrictModel):
    """The vision-language model that scores each image, and how it is reached."""

    rubric: Ref
    """The rubric: a YAML file, or `package:file` for a file of an installed package."""
    rubric_values: dict[Name, Prompt] = Field(default={})
    """The text for each of the rubric's own placeholders, such as `style`."""
    model: Ref
    """A hub id, a folder or `miniature:NAME`; for `openai` the name that the server knows."""
    backend: Literal["transformers", "openai"] = "openai"
    """`transformers` (in this process) or `openai` (a server such as vLLM's)."""
    revision: Name | None = None
    """Commit, tag or branch on the hub."""
    base_url: Addresses = "http://localhost:8000/v1"
    """The server's address, ending in `/v1`, or a list of servers of the same model, which share
    the load evenly (`openai` only).
    """
    api_key_env: Name = "AUTOLORA_EVAL_JUDGE_API_KEY"
    """The environment variable that holds the server's API key. The key is never written."""
    temperature: FiniteFloat = Field(default=0.0, ge=0.0, le=2.0)
    """The sampling temperature. 0 is greedy decoding."""
    max_tokens: int = Field(default=128, ge=1, le=4096)
    """The maximum length of a reply in tokens."""
    seed: int = Field(default=0, ge=0)
    """The sampling seed. Repeat number r uses seed + r."""
    repeats: int = Field(default=1, ge=1, le=100)
    """How often each image is judged. Its score is the mean of the replies."""
    constraint: Constraint = "auto"
    """How replies are constrained to the rubric's schema: `structured_outputs` or `guided_regex`
    (new and old vLLM), `response_format` (a JSON schema), `plain` (not at all); for `transformers`
    `regex` or `plain`. `auto` takes the first that works.
    """
    logprobs: bool = False
    """Also record the expected score over the token probabilities of the digit."""
    cache: bool = True
    """Reuse replies of earlier runs to the same question about the same image."""
    batch_size: int = Field(default=16, ge=1, le=1024)
    """Images per forward pass (`transformers` only)."""
    concurrency: int = Field(default=32, ge=1, le=1024)
    """Simultaneous requests (`openai` only)."""
    timeout: FiniteFloat = Field(default=120.0, gt=0.0, le=3600.0)
    """Seconds for one request (`openai` only)."""
    max_retries: int = Field(default=4, ge=0, le=20)
    """Retries after a failed request (`openai` only)."""
    give_up_after: FiniteFloat = Field(default=60.0, ge=0.0, le=86_400.0)
    """Seconds without any reachable server until the run stops (`openai` only)."""
    launch: bool = False
    """Start a vLLM server for the judging, and stop it afterwards (`openai` only)."""
    vllm_python: Ref | None = None
    """The Python of the environment in which vLLM is installed, for `launch`."""
    launch_command: list[Ref] = Field(default=[])
    """A command line that starts another server, such as `uvx` or a container. `{model}`, `{port}`
    and `{name}` are filled in.
    """
    launch_args: list[Ref] = Field(default=[])
    """Further arguments of the server, such as `--max-model-len`."""
    launch_timeout: FiniteFloat = Field(default=900.0, gt=0.0, le=86_400.0)
    """Seconds that the server may take to start."""
    dtype: DType = "auto"
    """The precision of the judge (`transformers` only)."""

    @property
    def base_urls(self) -> list[str]:
        """The addresses of the servers."""
        return [self.base_url] if isinstance(self.base_url, str) else self.base_url


def judge_problems(judge: JudgeConfig) -> Iterator[Problem]:
    """Yield what is wrong with a judge's settings, beyond each by itself.

    Args:
        judge: as the benchmark file states it.

    Yields:
        The key's place below `judge`, and what is wrong with what it says.
    """
    yield from _other_backends_keys(judge)
    constraints = _CONSTRAINTS[judge.backend]
    if judge.constraint not in constraints:
        yield (
            ("constraint",),
            f"'{judge.constraint}' is not for backend '{judge.backend}'. "
            f"Expected {', '.join(constraints[:-1])} or {constraints[-1]}.",
        )
    if judge.backend == "openai":
        if not _VARIABLE.fullmatch(judge.api_key_env):
            # Not repeated: it may be the key itself.
            yield ("api_key_env",), _NO_VARIABLE
        yield from _wrong_addresses(judge)
        yield from launch_problems(judge) if judge.launch else _launch_keys_alone(judge)


def _states(judge: JudgeConfig, key: str) -> bool:
    """Tell whether a key is there and says more than no, nothing or an empty list."""
    value = getattr(judge, key)
    return key in judge.model_fields_set and not (value is None or value is False or value == [])


def _other_backends_keys(judge: JudgeConfig) -> Iterator[Problem]:
    for backend, keys in _KEYS.items():
        for key in keys:
            if backend != judge.backend and _states(judge, key):
                yield (
                    (key,),
                    f"does nothing with backend '{judge.backend}'. Remove it, or write "
                    f"'backend: {backend}'.",
                )


def _wrong_addresses(judge: JudgeConfig) -> Iterator[Problem]:
    is_list = isinstance(judge.base_url, list)
    servers = [url.rstrip("/") for url in judge.base_urls]
    for index, url in enumerate(judge.base_urls):
        place = ("base_url", index) if is_list else ("base_url",)
        problem, first = address_problem(url), servers.index(servers[index])
        if problem is not None:
            yield place, problem
        elif first < index:
            yield (
                place,
                f"'{url}' is entry {first + 1} already; a server takes its share once. Remove one.",
            )


def address_problem(url: str) -> str | None:
    """Return what is wrong with an address, None if nothing is.

    One that carries a key, which would reach the manifest, is refused and not repeated.
    """
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.netloc)
        keeps_a_key = "@" in parts.netloc or bool(parts.query or parts.fragment)
    except ValueError:  # such as 'http://[::1'
        is_one, keeps_a_key = False, False
    if keeps_a_key or ("@" in url and not is_one):
        return (
            "a user name or key does not belong into the address, since the manifest states it. "
            "Put the key into the environment variable that judge.api_key_env names."
        )
    return None if is_one else f"expected an address such as {_AN_ADDRESS} (got '{url}')."


def is_loopback(url: str) -> bool:
    """Tell whether an address is this machine's: to it no proxy leads, whatever HTTP_PROXY says."""
    return urlsplit(url).hostname in _LOOPBACK


def _launch_keys_alone(judge: JudgeConfig) -> Iterator[Problem]:
    for key in _OF_A_LAUNCH:
        if _states(judge, key):
            yield (key,), "takes effect with 'launch: true' only. Add that, or remove this."


def launch_problems(judge: JudgeConfig) -> Iterator[Problem]:
    """Yield what is wrong with what a launch states, as `judge_problems` does."""
    if judge.launch_command and judge.vllm_python:
        yield (
            ("launch_command",),
            "either this or judge.vllm_python says what to start, not both. Remove one.",
        )
    elif not judge.launch_command and not judge.vllm_python:
        yield (
            ("launch",),
            "say what to start: vllm_python, the Python of the environment that vLLM is "
            "installed in, or launch_command.",
        )
    if len(judge.base_urls) > 1:
        yield (
            ("base_url",),
            f"{len(judge.base_urls)} addresses are stated, and 'launch: true' starts one server at "
            "an address of its own. Remove them, or remove launch.",
        )
    if judge.launch_command:
        yield from _wrong_command(judge.launch_command)
    for key in ("launch_command", "launch_args"):
        for index, part in enumerate(getattr(judge, key)):
            if _HOLDS_A_KEY.search(part):
                yield (
                    (key, index),
                    "a key does not belong into a command line, since the manifest states it. Put "
                    "it into an environment variable.",
                )


def _wrong_command(command: list[str]) -> Iterator[Problem]:
    if not any("{port}" in part for part in command):
        yield (
            ("launch_command",),
            "no part of it holds '{port}', where the port that is chosen at the start goes, such "
            "as: --port, '{port}'.",
        )
    for index, part in enumerate(command):
        for field in _FIELD.findall(part):
            if field not in _FILLED_IN:
                yield (
                    ("launch_command", index),
                    f"nothing is filled in for '{field}'.{did_you_mean(field, _FILLED_IN)}",
                )
