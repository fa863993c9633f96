"""Families of judges: the packages and the machine that each needs."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from autolora_eval._devices import require
from autolora_eval.sources.hub import cached
from autolora_eval.sources.model_source import Source

EXTRA = "judges"
PACKAGES = ("torchvision", "num2words")
# Their processors hold one for videos, which needs torchvision even if it gets only images.
# By `model_type` in config.json, and by what a name on the hub contains.
_TORCHVISION = ("qwen2vl", "qwen25vl", "qwen3vl", "llavaonevision", "smolvlm", "internvl")
_PIXTRAL = ("pixtral", "mistral3", "mistralsmall3")
_NUM2WORDS = ("smolvlm",)


def needed_packages(source: Source) -> tuple[str, ...]:
    """Return the packages of the extra `judges` that a model's processor needs.

    Args:
        source: a judge in this process. A hub model that is not in the cache is known by its name.
    """
    kinds = [_normal(kind) for kind in _model_types(source)]
    if any(family in kind for kind in kinds for family in _NUM2WORDS):
        return PACKAGES
    if any(family in kind for kind in kinds for family in (*_TORCHVISION, *_PIXTRAL)):
        return PACKAGES[:1]
    return ()


def require_packages(source: Source) -> None:
    """Check that the packages that a judge's processor needs are installed.

    Raises:
        MissingDependencyError: if one is not.
    """
    for package in needed_packages(source):
        require(package, EXTRA)


def _model_types(source: Source) -> list[str]:
    file = cached(source, "config.json")
    if file is None:
        return [source.name]
    try:
        config = json.loads(file.read_bytes())
        vision = config.get("vision_config") or {}  # Pixtral is a LLaVA with its own vision model
        return [str(config.get("model_type")), str(vision.get("model_type"))]
    except (OSError, ValueError, AttributeError):
        return []


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


PROBE_SECONDS = 5.0
LAUNCHERS = ("uvx", "docker", "podman")
_QUERY = "--query-gpu=name,memory.total,memory.free"
_NVIDIA_SMI = ["nvidia-smi", _QUERY, "--format=csv,noheader,nounits"]


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
    import psutil

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
