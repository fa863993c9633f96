"""This machine: its cores, memory, GPUs, and the programs that can launch a judge's server.

This module does not import torch.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

PROBE_SECONDS = 5.0
LAUNCHERS = ("uvx", "docker", "podman")
_NVIDIA_SMI = (
    *("nvidia-smi", "--query-gpu=name,memory.total,memory.free"),
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU; memory in GiB."""

    name: str
    memory: float
    free: float


@dataclass(frozen=True)
class Machine:
    """This machine.

    Attributes:
        cores: number of CPU cores.
        memory: system memory in GiB.
        gpus: the NVIDIA GPUs that this process may use.
        accelerator: what the installed torch can use: `cuda`, `mps` or `cpu`.
        launchers: programs of `LAUNCHERS` that are installed.
    """

    cores: int
    memory: float
    gpus: tuple[Gpu, ...]
    accelerator: str
    launchers: tuple[str, ...]

    def __str__(self) -> str:
        gpus = [f"{gpu.name}, {gpu.memory:.0f} GiB ({gpu.free:.0f} free)" for gpu in self.gpus]
        listed = " + ".join(gpus) or "no NVIDIA GPU"
        return f"{self.cores} CPU cores, {self.memory:.0f} GiB memory, {listed}"

    def room(self, accelerator: str) -> float:
        """Return the GiB available to one judge: of the largest GPU, or of the system."""
        return max(gpu.memory for gpu in self.gpus) if accelerator == "cuda" else self.memory


def this_machine() -> Machine:
    """Return what this machine has."""
    gpus = _gpus()
    return Machine(
        cores=os.cpu_count() or 1,
        memory=psutil.virtual_memory().total / 2**30,
        gpus=gpus,
        accelerator=_accelerator(gpus),
        launchers=tuple(name for name in LAUNCHERS if shutil.which(name)),
    )


def _gpus() -> tuple[Gpu, ...]:
    """Ask the driver for the visible GPUs, which needs no torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return ()
    try:
        done = subprocess.run(
            _NVIDIA_SMI, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
        rows = [line.rsplit(",", 2) for line in done.stdout.splitlines() if line.strip()]
        gpus = [Gpu(name.strip(), float(m) / 1024, float(f) / 1024) for name, m, f in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
    if visible is not None and re.fullmatch(r"\d+(,\d+)*", visible):
        gpus = [gpus[n] for n in map(int, visible.split(",")) if n < len(gpus)]
    return tuple(gpus)


def _accelerator(gpus: tuple[Gpu, ...]) -> str:
    """Return what torch can use, read from its version file: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "cpu"
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    if gpus and re.search(r"^cuda\b[^=\n]*=\s*['\"]", text, re.MULTILINE):
        return "cuda"
    return "mps" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else "cpu"
