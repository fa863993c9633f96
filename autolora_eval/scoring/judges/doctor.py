"""Which judges can run here, and what each of the others lacks. Nothing is loaded or started."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._sources import Source
from autolora_eval.config.load import LoadedBenchmark, load_benchmark
from autolora_eval.scoring.judges.config import JudgeConfig, address_problem, is_of_this_machine
from autolora_eval.scoring.judges.launched_identity import model_source
from autolora_eval.scoring.judges.machine import (
    PROBE_SECONDS,
    RUNNERS,
    Machine,
    installed,
    look_around,
)
from autolora_eval.scoring.judges.vllm_command import (
    LAST_WITH_MLLAMA,
    MLLAMA_PACKAGES,
    check_launch,
    is_mllama,
    numbers,
    vllm_build,
)

PAPERS_JUDGE = Source(
    "meta-llama/Llama-3.2-11B-Vision-Instruct", "hub", "meta-llama/Llama-3.2-11B-Vision-Instruct"
)
SERVER_VARIABLE = "AUTOLORA_EVAL_JUDGE_URL"
DEFAULT_SERVER = "http://localhost:8000/v1"
KEY_VARIABLE = "AUTOLORA_EVAL_JUDGE_API_KEY"
# As README calls it.
USUAL_PYTHONS = ("judge/bin/python",)
# Weights alone do not make an answer: activations, and with vLLM the cache of keys and values.
HEADROOM = 1.15
_PARAMETERS = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)B\b", re.IGNORECASE)


@dataclass(frozen=True)
class Need:
    """One thing that a judge needs.

    Attributes:
        met: whether it is here.
        fact: what was found.
        step: what to do if it is not.
    """

    met: bool
    fact: str
    step: str = ""


@dataclass(frozen=True)
class Finding:
    """A judge, or a way to one, and all that it needs.

    Attributes:
        judge: what it is.
        needs: of it, those that could be looked at.
    """

    judge: str
    needs: tuple[Need, ...]

    @property
    def runs(self) -> bool:
        """Whether nothing is known against it."""
        return all(need.met for need in self.needs)


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        machine: that was looked at.
        findings: the benchmark's own judge first, if one was named.
    """

    machine: Machine
    findings: tuple[Finding, ...]


def examine(benchmark: str | Path | None = None) -> Diagnosis:
    """Find out which judges can run on this machine.

    Args:
        benchmark: a file or the name of a shipped one, whose judge is looked at first.

    Raises:
        UsageError: the benchmark cannot be used as it stands.
    """
    loaded = None if benchmark is None else load_benchmark(benchmark)
    spec = None if loaded is None else loaded.spec.judge
    machine = look_around()
    looks: list[Callable[[], list[Finding]]] = [
        lambda: [] if loaded is None else [_of_benchmark(loaded, machine)],
        lambda: [_miniature()],
        lambda: [_in_process(machine)],
        lambda: _servers(spec),
        lambda: _environments(spec, machine),
        lambda: [_runners(machine)],
        lambda: [_papers_judge(machine)],
    ]
    # At the same time, since each may wait for an answer that never comes.
    with ThreadPoolExecutor(len(looks)) as pool:
        found = pool.map(lambda look: look(), looks)
        return Diagnosis(machine, tuple(finding for part in found for finding in part))


def _of_benchmark(loaded: LoadedBenchmark, machine: Machine) -> Finding:
    spec = loaded.spec.judge
    name = loaded.spec.name
    if spec is None:
        return Finding(f"'{name}' names no judge", (Need(True, "only diversity is measured"),))
    if spec.backend == "transformers":
        assert loaded.judge is not None
        needs = [*_packages("models", "torch", "transformers", "llguidance")]
        halved = machine.accelerator != "cpu" if spec.dtype == "auto" else spec.dtype != "float32"
        needs += _memory(loaded.judge, machine, machine.accelerator, 2 if halved else 4)
        return Finding(f"'{name}': {spec.model} in this process", tuple(needs))
    needs = list(_packages("openai", "openai", "tenacity"))
    if spec.launch:
        needs += _launch(spec, machine)
        return Finding(f"'{name}': {spec.model} on a server that the run launches", tuple(needs))
    with ThreadPoolExecutor() as pool:
        needs.append(_any_of(list(pool.map(lambda url: _served(url, spec), spec.base_urls))))
    return Finding(f"'{name}': {spec.model} on a server", tuple(needs))


def _any_of(servers: Sequence[Need]) -> Need:
    """Return the need of one server at least: a run does with those that are there."""
    facts = "; ".join(need.fact for need in servers)
    return Need(any(need.met for need in servers), facts, servers[0].step)


def _launch(spec: JudgeConfig, machine: Machine) -> Iterator[Need]:
    try:
        check_launch(spec, PROBE_SECONDS)
    except AutoLoRAEvalError as error:
        yield Need(False, *_halves(str(error)))
        return
    yield Need(True, f"{spec.vllm_python or spec.launch_command[0]} can be started")
    build = vllm_build(spec.vllm_python, PROBE_SECONDS) if spec.vllm_python else None
    accelerator = "cpu" if build and "cpu" in " ".join(build) else "cuda"
    yield from _memory(model_source(spec), machine, accelerator, together=True)


def _halves(message: str) -> tuple[str, str]:
    """Return a message's fact and its advice, which is the last sentence, if there are two."""
    fact, dot, step = message.partition(". ")
    return (fact + dot.strip(), step) if dot else (message, "")


def _miniature() -> Finding:
    needs = tuple(_packages("models", "torch", "transformers", "llguidance"))
    return Finding("The shipped miniature (model: miniature:judge), in this process", needs)


def _in_process(machine: Machine) -> Finding:
    """A model of the user's own in this process: what it must fit into."""
    needs = list(_packages("models", "torch", "transformers", "llguidance"))
    size = _room(machine, machine.accelerator)
    where = {"cuda": "on the GPU", "mps": "on Apple's GPU", "cpu": "on the CPU, slowly"}
    weight = 4 if machine.accelerator == "cpu" else 2
    needs.append(
        Need(
            True,
            f"{where[machine.accelerator]}: {size:.0f} GiB, room for about "
            f"{_rounded(size / HEADROOM / weight * 2**30 / 1e9)} billion parameters",
        )
    )
    return Finding("Any image-text-to-text model of transformers, in this process", tuple(needs))


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 1 else f"{value:.1f}"


def _packages(extra: str, *names: str) -> Iterator[Need]:
    versions = {name: installed(name) for name in names}
    absent = [name for name, version in versions.items() if version is None]
    if absent:
        step = f"pip install 'autolora-eval[{extra}]'"
        yield Need(False, f"{', '.join(absent)} not installed", step)
    else:
        yield Need(True, ", ".join(f"{name} {version}" for name, version in versions.items()))


def _memory(
    source: Source, machine: Machine, accelerator: str, width: int = 2, *, together: bool = False
) -> Iterator[Need]:
    """Yield whether a judge's weights fit, if their size is known or told by its name.

    Args:
        source: the judge's model.
        machine: where it is to run.
        accelerator: what it is to run on.
        width: bytes of one parameter.
        together: several GPUs can share it, as vLLM's can.
    """
    if accelerator == "cuda" and not machine.gpus:
        yield Need(False, "no NVIDIA GPU here", "use a machine with one, or a server elsewhere")
        return
    parameters = _parameters(source)
    if parameters is None:
        return
    wanted = HEADROOM * parameters * width / 2**30
    room = _room(machine, accelerator)
    what = "GPU memory" if accelerator == "cuda" else "memory"
    fact = f"takes {_gib(wanted)} of {what}; {_gib(room)} here"
    in_all = sum(gpu.memory for gpu in machine.gpus)
    if together and accelerator == "cuda" and room < wanted <= in_all:
        yield Need(True, f"{fact}: add --tensor-parallel-size {len(machine.gpus)}")
        return
    yield Need(wanted <= room, fact, "take a smaller judge, or a server elsewhere")


def _gib(size: float) -> str:
    return f"about {size:.0f} GiB" if size >= 1 else "less than 1 GiB"


def _room(machine: Machine, accelerator: str) -> float:
    """Return the GiB that one judge can have: of the largest GPU, or of the system."""
    if accelerator == "cuda":
        return max(gpu.memory for gpu in machine.gpus)
    return machine.memory


def _parameters(source: Source) -> float | None:
    """Return about how many parameters a model has, from its weights here or from its name."""
    if source.kind == "folder":
        size = sum(path.stat().st_size for path in source.path.glob("*.safetensors"))
        return size / 2 or None
    named = _PARAMETERS.search(source.name)
    return float(named[1]) * 1e9 if named else None


def _servers(spec: JudgeConfig | None) -> list[Finding]:
    """Look at the usual server; a benchmark's own are in its own finding."""
    if spec is not None and spec.backend == "openai" and not spec.launch:
        return []
    url = os.environ.get(SERVER_VARIABLE) or DEFAULT_SERVER
    needs = (*_packages("openai", "openai", "tenacity"), _served(url))
    where = "" if address_problem(url) else f" at {url}"
    return [Finding(f"Whatever a server{where} serves", needs)]


def _served(url: str, spec: JudgeConfig | None = None) -> Need:
    """Look at what a server serves."""
    if problem := address_problem(url):
        return Need(False, f"{SERVER_VARIABLE}: {problem}")
    start = f"start one (README, 'The judge'), or set {SERVER_VARIABLE} or judge.base_url"
    request = urllib.request.Request(f"{url}/models")
    proxies = urllib.request.ProxyHandler({} if is_of_this_machine(url) else None)
    opener = urllib.request.build_opener(proxies)
    variable = KEY_VARIABLE if spec is None else spec.api_key_env
    if key := os.environ.get(variable):
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    try:
        with opener.open(request, timeout=PROBE_SECONDS) as answer:
            served = [str(model["id"]) for model in json.loads(answer.read(1_000_000))["data"]]
    except urllib.error.HTTPError as error:
        step = f"put its key into {variable}" if error.code in (401, 403) else "check the address"
        return Need(False, f"{url} answers {error.code}", step)
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        reason = getattr(error, "reason", error)
        return Need(False, f"{url} does not answer ({str(reason)[:100]})", start)
    listed = ", ".join(served) or "nothing"
    if spec is not None and spec.model not in served:
        return Need(False, f"{url} serves {listed}, not '{spec.model}'", "set judge.model")
    return Need(bool(served), f"{url} serves {listed}", start)


def _environments(spec: JudgeConfig | None, machine: Machine) -> list[Finding]:
    """Look at the environments that a run could launch vLLM from."""
    stated = [spec.vllm_python] if spec is not None and spec.vllm_python else []
    command = shutil.which("vllm")
    beside = [str(Path(command).with_name("python"))] if command else []
    pythons = dict.fromkeys([*stated, *(path for path in USUAL_PYTHONS if Path(path).exists())])
    title = "A server that the run launches from vLLM's own environment"
    builds = {python: vllm_build(python, PROBE_SECONDS) for python in [*pythons, *beside]}
    found = {python: build for python, build in builds.items() if build is not None}
    if not found:
        looked = ", ".join(builds) or ", ".join(USUAL_PYTHONS)
        step = "python3 -m venv judge && judge/bin/pip install vllm; then vllm_python: "
        return [Finding(title, (Need(False, f"no vLLM in {looked}", f"{step}{USUAL_PYTHONS[0]}"),))]
    return [
        Finding(f"{title}, {python}", tuple(_build_needs(build, machine)))
        for python, build in found.items()
    ]


def _build_needs(build: tuple[str, str], machine: Machine) -> Iterator[Need]:
    old = numbers(build[1]) <= LAST_WITH_MLLAMA
    which = "the paper's judge and others of its time" if old else "any but Llama-3.2-Vision"
    yield Need(True, f"{' '.join(build)} serves {which}")
    if "cpu" not in " ".join(build) and not machine.gpus:
        yield Need(False, "no NVIDIA GPU here, which this build needs", "use a machine with one")


def _runners(machine: Machine) -> Finding:
    title = "A server that the run launches with judge.launch_command"
    usable = [name for name, works in machine.runners.items() if works]
    broken = [name for name, works in machine.runners.items() if not works]
    needs = [Need(True, f"{', '.join(usable)} found")]
    if not usable:
        fact = f"{', '.join(broken)} found, but without its service" if broken else "none found"
        step = "start its service, or install uv" if broken else "install uv or docker"
        needs = [Need(False, f"of {', '.join(RUNNERS)}: {fact}", step)]
    if not machine.gpus:
        needs.append(
            Need(False, "no NVIDIA GPU here, which vLLM's builds need", "use a machine with one")
        )
    return Finding(title, tuple(needs))


def _papers_judge(machine: Machine) -> Finding:
    """The judge of the paper's tables: an old vLLM, a GPU, and a licence."""
    return Finding(
        f"The paper's judge, {PAPERS_JUDGE.name}",
        (
            _old_vllm(machine),
            *_memory(PAPERS_JUDGE, machine, "cuda", together=True),
            _access(PAPERS_JUDGE),
        ),
    )


def _old_vllm(machine: Machine) -> Need:
    assert is_mllama(PAPERS_JUDGE)
    for python in (path for path in USUAL_PYTHONS if Path(path).exists()):
        build = vllm_build(python, PROBE_SECONDS)
        if build and numbers(build[1]) <= LAST_WITH_MLLAMA:
            return Need(True, f"vLLM {build[1]} in {python}")
    usable = next((name for name, works in machine.runners.items() if works), None)
    if usable is not None:
        return Need(True, f"vLLM 0.10.2 through {usable} (README, 'The judge')")
    step = f"python3 -m venv judge && judge/bin/pip install {MLLAMA_PACKAGES}"
    return Need(False, "no vLLM 0.10.2, the last that serves it", step)


def _access(source: Source) -> Need:
    """Tell whether a gated model may be had: it is here, or there is a login."""
    from huggingface_hub import get_token

    from autolora_eval._sources import in_cache

    if in_cache(source, "config.json"):
        return Need(True, "its files are in the hub's cache")
    if get_token():
        return Need(True, "gated: a login for the hub is here; it must have accepted the licence")
    step = "accept the licence on its page, then: hf auth login"
    return Need(False, "gated on the hub, and no login here", step)


# --------------------
# The doctor's findings as text: a verdict each, what speaks for it, and what to do otherwise.


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print which judges can run here and what the others lack."""
    console.print(Text.assemble(("Judges on this machine", "bold"), f": {diagnosis.machine}"))
    console.print()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in diagnosis.findings:
        verdict = Text("can run", "green") if finding.runs else Text("cannot", "red")
        table.add_row(verdict, _told(finding))
    console.print(table)


def _told(finding: Finding) -> Text:
    text = Text(finding.judge, "bold")
    for need in finding.needs:
        mark = "yes: " if need.met else "no: "
        text.append("\n")
        text.append(mark, "green not bold" if need.met else "red not bold")
        text.append(need.fact, "not bold")
        if not need.met and need.step:
            text.append(f"\n→ {need.step}", "not bold")
    return text
