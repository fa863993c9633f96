"""What this machine has for a judge. Nothing is loaded for it, and each look is short."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PROBE_SECONDS = 5.0
# Programs that fetch and start a vLLM, each with what shows that it works here: docker's version
# is not told without its service.
RUNNERS = {
    "uvx": ("uvx", "--version"),
    "docker": ("docker", "version"),
    "podman": ("podman", "version"),
}
_QUERY = [
    "nvidia-smi",
    "--query-gpu=name,memory.total,memory.free",
    "--format=csv,noheader,nounits",
]


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it; memory in GiB."""

    name: str
    memory: float
    free: float


@dataclass(frozen=True)
class Machine:
    """This machine.

    Attributes:
        cores: of the CPU.
        memory: GiB of the system's memory.
        gpus: NVIDIA's, those that this process may use.
        torch: installed version, None without.
        accelerator: that this torch can use: `cuda`, `mps`, or `cpu` for none.
        runners: those of `RUNNERS` that are installed, and whether they work.
    """

    cores: int
    memory: float
    gpus: tuple[Gpu, ...]
    torch: str | None
    accelerator: str
    runners: Mapping[str, bool]

    def __str__(self) -> str:
        """Return it as a line for people."""
        gpus = [f"{gpu.name}, {gpu.memory:.0f} GiB ({gpu.free:.0f} free)" for gpu in self.gpus]
        listed = " + ".join(gpus) or "no NVIDIA GPU"
        return f"{self.cores} CPU cores, {self.memory:.0f} GiB memory, {listed}"


def look_around() -> Machine:
    """Return what this machine is."""
    import psutil

    with ThreadPoolExecutor() as pool:  # each may take its time
        there = [name for name in RUNNERS if shutil.which(name)]
        works = pool.map(lambda name: _answers(RUNNERS[name]), there)
        gpus = pool.submit(_gpus).result()
        runners = dict(zip(there, works, strict=True))
    version = installed("torch")
    return Machine(
        cores=os.cpu_count() or 1,
        memory=psutil.virtual_memory().total / 2**30,
        gpus=gpus,
        torch=version,
        accelerator=_accelerator(version, gpus),
        runners=runners,
    )


def installed(package: str) -> str | None:
    """Return the version of a package of ours, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _answers(command: Sequence[str]) -> bool:
    """Tell whether a program runs and ends well."""
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=PROBE_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _gpus() -> tuple[Gpu, ...]:
    """Ask the driver, which answers without torch; nothing where CUDA is told to see no GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return ()
    try:
        done = subprocess.run(
            _QUERY, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
        rows = [line.rsplit(",", 2) for line in done.stdout.splitlines() if line.strip()]
        gpus = [Gpu(name.strip(), float(m) / 1024, float(f) / 1024) for name, m, f in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
    if visible is not None and re.fullmatch(r"\d+(,\d+)*", visible):
        return tuple(gpus[n] for n in map(int, visible.split(",")) if n < len(gpus))
    return tuple(gpus)


def _accelerator(version: str | None, gpus: tuple[Gpu, ...]) -> str:
    if version is None:
        return "cpu"
    if gpus and _cuda_build():
        return "cuda"
    return "mps" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else "cpu"


def _cuda_build() -> bool:
    """Tell whether torch is built for CUDA, from its version file: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"^cuda\b[^=\n]*=\s*['\"]", text, re.MULTILINE) is not None
