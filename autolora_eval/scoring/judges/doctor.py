"""Which judge backends can run on this machine, and what the others lack.

Nothing is loaded or started. Every probe has a timeout.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autolora_eval._devices import Machine, this_machine
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json
from autolora_eval.scoring.judges.config import (
    DEFAULT_ADDRESS,
    JudgeConfig,
    address_problem,
    listing,
)
from autolora_eval.scoring.judges.vllm_command import (
    LAST_WITH_MLLAMA,
    LIMITS,
    MLLAMA_PACKAGES,
    check_launch,
    model_source,
    numbers,
    vllm_build,
)
from autolora_eval.sources.model_source import Source, cached

_LLAMA = "meta-llama/Llama-3.2-11B-Vision-Instruct"
NEW_JUDGE = "Qwen/Qwen2.5-VL-7B-Instruct"
PAPER_JUDGE = Source(_LLAMA, "hub", _LLAMA)
SERVER_VARIABLE = "AUTOLORA_EVAL_JUDGE_URL"
VLLM_PYTHON = "judge/bin/python"  # the path that the documentation uses
HEADROOM = 1.15  # memory for weights and activations, in parts of the weights
# vLLM also needs a cache of keys and values, here for 16 questions of 2048 tokens, and takes 90% of
# a GPU. A layer has 4 KiB a token (8 heads of 128, two of bfloat16), and a model of B billion
# parameters about 12·√B layers: Llama 3.2 11B has 40.
CACHED_TOKENS = 16 * 2048
VLLM_SHARE = 0.9
_PARAMETERS = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)B\b", re.IGNORECASE)
_QUANTISED = {r"fp8|int8|w8a": 0.5, r"awq|gptq|int4|4bit|w4a": 0.25}
VERSION_SECONDS = 5.0  # the time limit for reading the version of vLLM
_NO_GPU = "no NVIDIA GPU here"
_IN_PROCESS = ("models", "torch", "transformers", "llguidance")  # the extra, then its packages
_ON_A_SERVER = ("openai", "aiohttp")
LAUNCHERS = ("uvx", "docker", "podman")
EXTRA = "judges"
PACKAGES = ("torchvision", "num2words")
# Families whose processors need them, by model type or name. Most hold a processor for videos.
_FAMILIES = re.compile("qwen(2|25|3)vl|llavaonevision|smolvlm|internvl|pixtral|mistral(small)?3")


@dataclass(frozen=True)
class Requirement:
    """One requirement of a judge, what was found, and what to do if it is not met."""

    met: bool
    fact: str
    step: str = ""


@dataclass(frozen=True)
class BackendStatus:
    """A judge, or a way to run one, with its requirements."""

    judge: str
    requirements: tuple[Requirement, ...]

    @property
    def runs(self) -> bool:
        """Whether all requirements are met."""
        return all(requirement.met for requirement in self.requirements)


@dataclass(frozen=True)
class Diagnosis:
    """The machine, and the status of each judge, that of the benchmark first."""

    machine: Machine
    backends: tuple[BackendStatus, ...]


def examine(
    name: str = "", judge: JudgeConfig | None = None, source: Source | None = None
) -> Diagnosis:
    """Find out which judges can run on this machine, the named benchmark's first."""
    machine = this_machine()
    checks: list[Callable[[], BackendStatus | None]] = [
        lambda: _benchmark_judge(name, judge, source, machine) if name else None,
        lambda: _in_process(machine),
        _current_families,
        lambda: None if judge and judge.backend == "openai" else _any_server(),
        lambda: _vllm_environment(judge, machine),
        lambda: _launch_command(machine),
        lambda: _paper_judge(machine),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:  # in parallel, since each may time out
        found = pool.map(lambda check: check(), checks)
        return Diagnosis(machine, tuple(status for status in found if status is not None))


def _benchmark_judge(
    name: str, judge: JudgeConfig | None, source: Source | None, machine: Machine
) -> BackendStatus:
    if judge is None:
        return BackendStatus(f"'{name}' names no judge: only diversity is measured", ())
    if judge.backend == "transformers":
        assert source is not None
        half = machine.accelerator == "cuda" if judge.dtype == "auto" else judge.dtype != "float32"
        memory = _memory(source, machine, machine.accelerator, bytes_each=2 if half else 4)
        needs = [_packages(*_IN_PROCESS)]
        if needed := _needed_packages(source):
            needs.append(_packages(EXTRA, *needed))
        return BackendStatus(f"'{name}': {judge.model} in this process", (*needs, *memory))
    packages = _packages(*_ON_A_SERVER)
    if judge.launch:
        title = f"'{name}': {judge.model} on a server that the run launches"
        return BackendStatus(title, (packages, *_launch(judge, machine)))
    with ThreadPoolExecutor() as pool:
        servers = list(pool.map(lambda url: _served(url, judge), judge.base_urls))
    facts = "; ".join(server.fact for server in servers)
    any_server = Requirement(any(server.met for server in servers), facts, servers[0].step)
    return BackendStatus(f"'{name}': {judge.model} on a server", (packages, any_server))


def _launch(judge: JudgeConfig, machine: Machine) -> Iterator[Requirement]:
    try:
        check_launch(judge, VERSION_SECONDS)
    except AutoLoRAEvalError as error:
        fact, _, step = str(error).partition(". ")
        yield Requirement(False, fact, step)
        return
    yield Requirement(True, f"{judge.vllm_python or judge.launch_command[0]} can be started")
    build = vllm_build(judge.vllm_python, VERSION_SECONDS) if judge.vllm_python else None
    accelerator = "cpu" if build and "cpu" in " ".join(build) else "cuda"
    yield from _memory(model_source(judge), machine, accelerator, shared=True)


def _in_process(machine: Machine) -> BackendStatus:
    where = {"cuda": "on the GPU", "cpu": "on the CPU, slowly"}
    where["mps"] = f"{where['cpu']}, or on Apple's GPU with 'device: mps'"
    kind = machine.accelerator
    room, bytes_each = machine.room(kind), 2 if kind == "cuda" else 4
    billions = room / HEADROOM / bytes_each * 2**30 / 1e9
    fact = f"{where[kind]}: {room:.0f} GiB, enough for about {billions:.2g} billion parameters"
    return BackendStatus(
        "Any image-text-to-text model of transformers in this process, such as miniature:judge",
        (_packages(*_IN_PROCESS), Requirement(True, fact)),
    )


def _current_families() -> BackendStatus:
    return BackendStatus(
        "Qwen2-VL to Qwen3-VL, LLaVA-OneVision, SmolVLM, InternVL, Pixtral and Mistral3 in this "
        "process",
        (_packages(EXTRA, *PACKAGES),),
    )


def _any_server() -> BackendStatus:
    url = os.environ.get(SERVER_VARIABLE) or DEFAULT_ADDRESS
    where = "" if address_problem(url) else f" at {url}"
    return BackendStatus(f"Any model on a server{where}", (_packages(*_ON_A_SERVER), _served(url)))


def _vllm_environment(judge: JudgeConfig | None, machine: Machine) -> BackendStatus:
    """Check the environment from which a run could launch vLLM."""
    python = (judge.vllm_python if judge else None) or VLLM_PYTHON
    title = f"A server that the run launches from vLLM's own environment, {python}"
    build = vllm_build(python, VERSION_SECONDS)
    if build is None:
        step = f"python3 -m venv judge && judge/bin/pip install vllm; then vllm_python: {python}"
        return BackendStatus(title, (Requirement(False, "no vLLM there", step),))
    old = numbers(build[1]) <= LAST_WITH_MLLAMA
    models = "Llama-3.2-Vision, but no newer models" if old else "any model but Llama-3.2-Vision"
    served = Requirement(True, f"{' '.join(build)} serves {models}")
    gpu = () if "cpu" in " ".join(build) else _gpu_for("this build needs", machine)
    return BackendStatus(title, (served, *gpu))


def _launch_command(machine: Machine) -> BackendStatus:
    installed = launchers()
    found = ", ".join(installed) or f"none of {', '.join(LAUNCHERS)}"
    program = Requirement(bool(installed), f"{found} found", "install uv or docker")
    requirements = (program, *_gpu_for("vLLM's builds need", machine))
    return BackendStatus("A server that the run launches with judge.launch_command", requirements)


def launchers() -> list[str]:
    """Return the installed programs that can launch a judge's server."""
    return [name for name in LAUNCHERS if shutil.which(name)]


def _gpu_for(need: str, machine: Machine) -> tuple[Requirement, ...]:
    """Return an unmet requirement if there is no GPU."""
    fact = f"{_NO_GPU}, which {need}"
    return () if machine.gpus else (Requirement(False, fact, "use a machine with an NVIDIA GPU"),)


def _paper_judge(machine: Machine) -> BackendStatus:
    """Check the judge of the paper's tables: an old vLLM, a GPU, and a licence."""
    build = vllm_build(VLLM_PYTHON, VERSION_SECONDS)
    if build and numbers(build[1]) <= LAST_WITH_MLLAMA:
        vllm = Requirement(True, f"vLLM {build[1]} in {VLLM_PYTHON}")
    elif installed := launchers():
        with_limits = f"with {LIMITS} --enforce-eager"
        vllm = Requirement(True, f"vLLM 0.10.2 through {installed[0]}, {with_limits}")
    else:
        step = f"python3 -m venv judge && judge/bin/pip install {MLLAMA_PACKAGES}"
        vllm = Requirement(False, "no vLLM 0.10.2, the last version that serves it", step)
    requirements = (vllm, *_memory(PAPER_JUDGE, machine, "cuda", shared=True), _access(PAPER_JUDGE))
    return BackendStatus(f"The paper's judge, {PAPER_JUDGE.name}", requirements)


def _packages(extra: str, *names: str) -> Requirement:
    found: dict[str, str] = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if missing := [name for name in names if name not in found]:
        fact = f"{', '.join(missing)} not installed"
        return Requirement(False, fact, f"pip install 'autolora-eval[{extra}]'")
    return Requirement(True, ", ".join(f"{name} {found[name]}" for name in names))


def _needed_packages(source: Source) -> tuple[str, ...]:
    """Return the packages of the extra `judges` that a model's processor needs.

    A hub model that is not in the cache is known by its name.
    """
    config = _config(source)
    vision = config.get("vision_config") or {}  # Pixtral is a LLaVA with its own vision model
    names = f"{config.get('model_type', source.name)} {vision.get('model_type')}".lower()
    family = _FAMILIES.search(re.sub(r"[^a-z0-9 ]", "", names))
    if family is None:
        return ()
    return PACKAGES if family[0] == "smolvlm" else PACKAGES[:1]


def _config(source: Source) -> Json:
    """Return the config.json of a model; empty if it is not on this machine or not readable."""
    file = cached(source, "config.json")
    try:
        config = json.loads(file.read_bytes()) if file else {}
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _memory(
    source: Source, machine: Machine, accelerator: str, *, bytes_each: int = 2, shared: bool = False
) -> Iterator[Requirement]:
    """Yield whether a judge's weights fit into memory, if their size is known.

    With `shared`, vLLM serves it: it has a cache, and can share a model between several GPUs.
    """
    if accelerator == "cuda" and not machine.gpus:
        yield Requirement(False, _NO_GPU, "use a machine with an NVIDIA GPU, or a server elsewhere")
        return
    parameters = _parameters(source)
    if parameters is None:
        return
    shares = (share for bits, share in _QUANTISED.items() if re.search(bits, source.name, re.I))
    needed = HEADROOM * parameters * bytes_each * next(shares, 1.0) / 2**30
    kind, room = "GPU memory" if accelerator == "cuda" else "memory", machine.room(accelerator)
    usable, total = room, 0.0
    if shared:
        needed += 12 * math.sqrt(parameters / 1e9) * 4 * CACHED_TOKENS / 2**20
        kind += " for weights and cache"
        usable = VLLM_SHARE * room
        total = VLLM_SHARE * sum(gpu.memory for gpu in machine.gpus)
    fact = f"needs about {max(needed, 1.0):.0f} GiB of {kind}; {room:.0f} GiB here"
    if accelerator == "cuda" and usable < needed <= total:
        yield Requirement(True, f"{fact}: add --tensor-parallel-size {len(machine.gpus)}")
    else:
        step = "use a smaller or a quantised judge, or a server elsewhere"
        yield Requirement(needed <= usable, fact, step)


def _parameters(source: Source) -> float | None:
    """Return the approximate number of parameters, from the weights or the model's name."""
    if source.kind == "folder":
        config = _config(source)
        stored = 4 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 2
        size = sum(path.stat().st_size for path in source.path.glob("*.safetensors"))
        return size / stored or None
    named = _PARAMETERS.search(source.name)
    return float(named[1]) * 1e9 if named else None


def _served(url: str, judge: JudgeConfig | None = None) -> Requirement:
    """Return whether a server answers, and serves the judge's model if one is given."""
    if problem := address_problem(url):
        return Requirement(False, f"{SERVER_VARIABLE}: {problem}")
    if not find_spec("aiohttp"):
        return Requirement(False, f"{url} cannot be asked without aiohttp")
    from autolora_eval.scoring.judges.server import listed_now

    spec = judge or JudgeConfig(rubric="any", model=NEW_JUDGE)
    start = f"run 'vllm serve {spec.model} {LIMITS}', or set {SERVER_VARIABLE} or judge.base_url"
    try:
        served = listed_now(url, spec)
    except AutoLoRAEvalError as error:
        fact, _, step = str(error).partition(". ")
        step = start if "does not answer" in fact else step
        return Requirement(False, fact.removeprefix("the judge's server at "), step)
    if served is None:
        return Requirement(True, f"{url} does not list '{spec.model}', but answers as it")
    fact = f"{url} serves {listing(served)}"
    if judge is not None and not {judge.model, f"models/{judge.model}"} & set(served):
        return Requirement(False, f"{fact}, not '{judge.model}'", "set judge.model")
    return Requirement(bool(served), fact, start)


def _access(source: Source) -> Requirement:
    """Return whether a gated model can be downloaded or is in the cache."""
    from huggingface_hub import get_token

    if cached(source, "config.json"):
        return Requirement(True, "its files are in the hub's cache")
    if get_token():
        return Requirement(True, "gated on the hub: the account must have accepted the licence")
    step = "accept the licence on its page, then run: hf auth login"
    return Requirement(False, "gated on the hub, and no login here", step)


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print which judges can run here, and what the others lack."""
    console.print(Text.assemble(("Judges on this machine", "bold"), f": {diagnosis.machine}\n"))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for status in diagnosis.backends:
        verdict = Text("can run", "green") if status.runs else Text("cannot", "red")
        table.add_row(verdict, _description(status))
    console.print(table)


def _description(status: BackendStatus) -> Text:
    text = Text(status.judge, "bold")
    for requirement in status.requirements:
        style = "green not bold" if requirement.met else "red not bold"
        text.append("\nyes: " if requirement.met else "\nno: ", style)
        text.append(requirement.fact, "not bold")
        if not requirement.met and requirement.step:
            text.append(f"\n→ {requirement.step}", "not bold")
    return text
