"""The settings of a judge, and the checks of their combination."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._text import first_few
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
from autolora_eval.sources.lookup import expanded, key_problem

Problem = tuple[KeyPath, str]
Constraint = Literal[
    "auto", "structured_outputs", "guided_regex", "response_format", "regex", "plain"
]

_LAUNCH_KEYS = ("vllm_python", "launch_command", "launch_args", "launch_timeout")
# Keys that apply to one backend only.
_KEYS = {
    "openai": (
        *("base_url", "api_key_env", "concurrency", "timeout", "max_retries", "give_up_after"),
        *("launch", *_LAUNCH_KEYS),
    ),
    "transformers": ("batch_size", "dtype"),
}
_CONSTRAINTS = {
    "openai": ("auto", "structured_outputs", "guided_regex", "response_format", "plain"),
    "transformers": ("auto", "regex", "plain"),
}
MODELS_NAMED = 8
DEFAULT_ADDRESS = "http://localhost:8000/v1"
WITHOUT_A_LIST = (404, 405, 501)  # how a server that cannot list its models answers
DEFAULT_KEY_VARIABLE = "AUTOLORA_EVAL_JUDGE_API_KEY"
_COMMAND_FIELDS = ("{model}", "{port}", "{name}")
_CONTAINS_KEY = re.compile(r"^--api[-_]key|(KEY|TOKEN|SECRET|PASSWORD)=.")
# Upper case, which distinguishes names of variables from keys.
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_NO_VARIABLE = (
    "expected the name of an environment variable (capital letters, digits and '_'), not the key "
    "itself, which would be written to the manifest."
)
_FIELD = re.compile(r"\{[A-Za-z_]+\}")


class JudgeConfig(StrictModel):
    """The vision-language model that scores each image, and how it is reached."""

    rubric: Ref
    """The rubric: a YAML file, or `package:file` for a file of an installed package."""
    rubric_values: dict[Name, Prompt] = Field(default={})
    """A text for each of the rubric's own placeholders, such as `style`."""
    model: Ref
    """A hub id, a folder or `miniature:NAME`; for `openai`, the name that the server uses."""
    backend: Literal["transformers", "openai"] = "openai"
    """`transformers` (in this process) or `openai` (a server such as vLLM's)."""
    revision: Name | None = None
    """Commit, tag or branch on the hub."""
    base_url: Addresses = DEFAULT_ADDRESS
    """The server's address, ending in `/v1`, or a list of servers with the same model, which share
    the requests evenly (`openai` only).
    """
    api_key_env: Name = DEFAULT_KEY_VARIABLE
    """The environment variable with the server's API key. The key is never written to a file."""
    temperature: FiniteFloat = Field(default=0.0, ge=0.0, le=2.0)
    """The sampling temperature. 0 is greedy decoding."""
    max_tokens: int = Field(default=4096, ge=1, le=65_536)
    """The maximum length of a reply in tokens, including the reasoning of a reasoning model. With
    `transformers`, it is at most half of the model's context.
    """
    seed: int = Field(default=0, ge=0)
    """The sampling seed. Repeat number r uses seed + r."""
    repeats: int = Field(default=1, ge=1, le=100)
    """How often each image is judged. Its score is the mean of the replies."""
    constraint: Constraint = "auto"
    """How replies are constrained to the rubric's schema. `openai`: `structured_outputs` or
    `guided_regex` (new and old vLLM), `response_format` (a JSON schema), or `plain` (not at all).
    `transformers`: `regex` or `plain`. `auto` takes the first that works.
    """
    logprobs: bool = False
    """Also record the expected score, computed from the token probabilities."""
    cache: bool = True
    """Reuse the replies of earlier runs to the same request about the same image."""
    batch_size: int = Field(default=16, ge=1, le=1024)
    """Images per forward pass (`transformers` only)."""
    concurrency: int = Field(default=32, ge=1, le=1024)
    """Simultaneous requests (`openai` only)."""
    timeout: FiniteFloat = Field(default=120.0, gt=0.0, le=3600.0)
    """Seconds for one request (`openai` only)."""
    max_retries: int = Field(default=4, ge=0, le=20)
    """Retries after a failed request (`openai` only)."""
    give_up_after: FiniteFloat = Field(default=60.0, ge=0.0, le=86_400.0)
    """Seconds without a reachable server after which the run stops (`openai` only)."""
    launch: bool = False
    """Start a vLLM server for judging, and stop it afterwards (`openai` only)."""
    vllm_python: Ref | None = None
    """For `launch`: the Python of the environment in which vLLM is installed."""
    launch_command: list[Ref] = Field(default=[])
    """For `launch`: a command line that starts the server in another way, such as with `uvx` or in
    a container. `{model}` is replaced by the path or hub id of the model, `{name}` by
    `judge.model`, and `{port}` by a free port.
    """
    launch_args: list[Ref] = Field(default=[])
    """For `launch`: more arguments of the server, such as `--max-model-len`."""
    launch_timeout: FiniteFloat = Field(default=900.0, gt=0.0, le=86_400.0)
    """For `launch`: the seconds that the server may take to start."""
    dtype: DType = "auto"
    """The precision of the judge (`transformers` only)."""

    @property
    def has_running_server(self) -> bool:
        """Whether the judge is a server that the run does not start."""
        return self.backend == "openai" and not self.launch

    @property
    def base_urls(self) -> list[str]:
        """The addresses of the servers, with their variables replaced."""
        return [expanded(url) for url in self.stated_urls]

    @property
    def stated_urls(self) -> list[str]:
        """The addresses of the servers as the benchmark states them."""
        return [self.base_url] if isinstance(self.base_url, str) else self.base_url


def judge_problems(judge: JudgeConfig) -> Iterator[Problem]:
    """Yield problems with combinations of a judge's settings.

    Yields:
        The path of a key below `judge`, and a message.
    """
    yield from _other_backends_keys(judge)
    *most, last = _CONSTRAINTS[judge.backend]
    if judge.constraint not in (*most, last):
        expected = f"Expected {', '.join(most)} or {last}."
        what = f"'{judge.constraint}' is not for backend '{judge.backend}'."
        yield ("constraint",), f"{what} {expected}"
    if judge.backend == "openai":
        if not _VARIABLE.fullmatch(judge.api_key_env):
            # The message does not repeat the value, which may be the key.
            yield ("api_key_env",), _NO_VARIABLE
        elif problem := key_problem(judge.api_key_env):
            yield ("api_key_env",), problem
        if "${" in judge.model:
            yield ("model",), "variables are replaced in paths and addresses only. Write the name."
        if unset := list(_wrong_variables(judge)):
            yield from unset
            return
        yield from _wrong_addresses(judge)
        yield from _launch_problems(judge) if judge.launch else _launch_keys_alone(judge)


def _entries(judge: JudgeConfig, *keys: str) -> Iterator[tuple[KeyPath, str]]:
    """Yield the texts of keys that hold a text or a list, each with its path."""
    for key in keys:
        value = getattr(judge, key)
        if isinstance(value, list):
            yield from (((key, index), text) for index, text in enumerate(value))
        elif value is not None:
            yield (key,), value


def _wrong_variables(judge: JudgeConfig) -> Iterator[Problem]:
    """Yield the variables in paths and addresses that may not be read, or are not set."""
    keys = ("base_url", "vllm_python", "launch_command", "launch_args")
    for path, text in _entries(judge, *keys):
        try:
            expanded(text)
        except UsageError as error:
            yield path, str(error)


def _is_set(judge: JudgeConfig, key: str) -> bool:
    """Return True if the file sets a key to anything but null, false or an empty list."""
    value = getattr(judge, key)
    return key in judge.model_fields_set and not (value is None or value is False or value == [])


def _other_backends_keys(judge: JudgeConfig) -> Iterator[Problem]:
    (other,) = _KEYS.keys() - {judge.backend}
    for key in filter(lambda key: _is_set(judge, key), _KEYS[other]):
        advice = f"Remove it, or set 'backend: {other}'."
        yield (key,), f"has no effect with backend '{judge.backend}'. {advice}"


def _wrong_addresses(judge: JudgeConfig) -> Iterator[Problem]:
    servers = [url.rstrip("/") for url in judge.base_urls]
    paths = [path for path, _ in _entries(judge, "base_url")]
    for index, (path, url) in enumerate(zip(paths, judge.base_urls, strict=True)):
        if problem := address_problem(url):
            yield path, problem
        elif (first := servers.index(servers[index])) < index:
            yield path, f"'{url}' is the same as entry {first + 1}. Remove one."


def address_problem(url: str) -> str | None:
    """Return the problem with an address, or None.

    The message does not repeat an address that contains a key.
    """
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.netloc)
        has_key = "@" in parts.netloc or bool(parts.query or parts.fragment)
    except ValueError:  # such as 'http://[::1'
        is_valid, has_key = False, False
    if has_key or ("@" in url and not is_valid):
        return (
            "the address must not contain a user name or key, which would be written to the "
            "manifest. Set the environment variable that judge.api_key_env names."
        )
    return None if is_valid else f"expected an address such as {DEFAULT_ADDRESS} (got '{url}')."


def listing(models: Iterable[str]) -> str:
    """Return the models that a server lists, on one line; hosted servers list hundreds."""
    return first_few(list(models), MODELS_NAMED) or "nothing"


def is_loopback(url: str) -> bool:
    """Return True if an address is on this machine, where no proxy is used."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _launch_keys_alone(judge: JudgeConfig) -> Iterator[Problem]:
    for key in _LAUNCH_KEYS:
        if _is_set(judge, key):
            yield (key,), "has an effect only with 'launch: true'. Add that, or remove this key."


def _launch_problems(judge: JudgeConfig) -> Iterator[Problem]:
    if judge.launch_command and judge.vllm_python:
        problem = "cannot be combined with judge.vllm_python. Remove one of them."
        yield ("launch_command",), problem
    elif not judge.launch_command and not judge.vllm_python:
        needed = "vllm_python, the Python of vLLM's environment, or launch_command."
        yield ("launch",), f"also set what to start: {needed}"
    if len(judge.base_urls) > 1:
        problem = (
            f"there are {len(judge.base_urls)} addresses, but 'launch: true' starts one server at "
            "an address of its own. Remove them, or remove launch."
        )
        yield ("base_url",), problem
    if judge.launch_command:
        yield from _wrong_command(judge)
    for path, text in _entries(judge, "launch_command", "launch_args"):
        if _CONTAINS_KEY.search(text):
            what = "must not contain a key, which would be written to the manifest."
            yield path, f"{what} Use an environment variable."


def _wrong_command(judge: JudgeConfig) -> Iterator[Problem]:
    if not any("{port}" in part for part in judge.launch_command):
        lack = "lacks '{port}', the placeholder for the port of the server."
        yield ("launch_command",), f"{lack} Add, for example: --port, '{{port}}'."
    for path, text in _entries(judge, "launch_command"):
        for field in _FIELD.findall(expanded(text)):
            if field not in _COMMAND_FIELDS:
                hint = did_you_mean(field, _COMMAND_FIELDS)
                yield path, f"unknown placeholder '{field}'.{hint}"
