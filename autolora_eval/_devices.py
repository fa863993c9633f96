"""Device and precision of models, and facts of the machine."""

from __future__ import annotations

import gc
import importlib.util
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from autolora_eval._errors import AutoLoRAEvalError, MissingDependencyError, first_line

PACKAGES = (
    *("torch", "diffusers", "peft", "transformers"),  # these four decide images
    *("tokenizers", "accelerate", "safetensors", "aiohttp", "llguidance", "timm"),
    *("numpy", "scipy", "pandas", "pillow", "typst"),
)
_NVIDIA_SMI = (
    *("nvidia-smi", "--query-gpu=uuid,name,memory.total,memory.free"),
    "--format=csv,noheader,nounits",
)


def require(package: str, extra: str) -> None:
    """Check that an optional package is installed.

    Raises:
        MissingDependencyError: if it is not; the message says how to install it.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingDependencyError(package, extra)


def choose_device(requested: str) -> str:
    """Return the device that the benchmark asks for; `auto` takes CUDA if it is available.

    torch is imported only if it could see another device than the CPU.

    Returns:
        `cpu`, `mps`, `cuda`, or `cuda:1`.

    Raises:
        AutoLoRAEvalError: if this machine does not have it.
    """
    require("torch", "models")
    if requested == "cpu" or (requested == "auto" and metadata.version("torch").endswith("+cpu")):
        return "cpu"
    import torch

    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = requested.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise AutoLoRAEvalError(
                f"the benchmark asks for device '{requested}', but torch {torch.__version__} sees "
                f"{count} CUDA device(s) here. Run it on a machine with a GPU and a CUDA build of "
                "torch, or set 'device: cpu' in the benchmark (slow for large models)."
            )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise AutoLoRAEvalError("the benchmark asks for device 'mps', but torch finds none here.")
    return requested


def choose_dtype(requested: str, device: str) -> str:
    """Return the precision that the benchmark asks for, such as `float32`.

    `auto` is float16 on CUDA, as most diffusion pipelines are published, and float32 elsewhere,
    where half precision is slower or missing.
    """
    if requested != "auto":
        return requested
    return "float16" if device.startswith("cuda") else "float32"


@contextmanager
def uncollected() -> Iterator[None]:
    """Import model libraries without garbage collection, which takes a sixth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def restored_generators() -> Iterator[None]:
    """Restore the global random generators of torch, NumPy and Python after the block."""
    import numpy as np
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    # By default it would start CUDA on every GPU of the machine, with a warning.
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(gpus, device_type="cuda"):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute convolutions in float32. On CUDA, torch rounds their inputs to TF32 by default."""
    import torch

    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def free_memory() -> None:
    """Release the GPU memory of deleted models, which torch would keep."""
    if "torch" in sys.modules:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            with suppress(RuntimeError):  # after an error of `require_gpu`
                torch.cuda.empty_cache()


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 1 GiB for later tensors. Other C libraries do nothing.

    By default, glibc gives large blocks back to the system at once. The system then clears new
    pages for each tensor, which takes 15% of a denoiser pass with 16 rows of the SD3 miniature.
    """
    import ctypes

    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 2**30)
        library.mallopt(_M_TRIM_THRESHOLD, -1)  # never trim


# On mps and CPUs, and in cuBLAS and cuDNN, torch has no OutOfMemoryError, but a RuntimeError with
# one of these phrases.
_PHRASES = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device has no memory left."""
    text = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and any(phrase in text for phrase in _PHRASES)
    )


def require_gpu(user: str, error: BaseException) -> None:
    """Check that a CUDA GPU still works after an error of a part of the run, such as a guider.

    After a failed kernel, such as an index out of range, all later calls of the process fail, so
    that other parts would be blamed.

    Raises:
        AutoLoRAEvalError: if it does not.
    """
    import torch

    if not torch.cuda.is_initialized():
        return
    try:
        for index in range(torch.cuda.device_count()):
            if torch.cuda.memory_reserved(index):  # others would need a new context
                torch.cuda.synchronize(index)
    except RuntimeError:
        raise AutoLoRAEvalError(
            f"{user} left the GPU in an error state, so this process cannot continue: "
            f"{first_line(error)}. Finished work is kept: fix or remove {user}, and run the same "
            "command again. CUDA_LAUNCH_BLOCKING=1 makes the traceback of --debug exact."
        ) from error


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide numbers."""
    versions = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


@cache
def image_libraries() -> str:
    """Return the versions of the libraries that decide images, as in the row of an image."""
    found = package_versions()
    return ", ".join(f"{name} {found[name]}" for name in PACKAGES[:4] if name in found)


def hardware(device: str) -> dict[str, Any]:
    """Return facts about this machine and the device that is used, for the manifest."""
    import psutil

    facts: dict[str, Any] = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": device,
    }
    if device.startswith("cuda"):
        import torch

        memory = torch.cuda.get_device_properties(device).total_memory
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["gpu_memory_gib"] = round(memory / 2**30, 1)
        facts["cuda"] = torch.version.cuda
    return facts


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU; memory in GiB."""

    name: str
    memory: float
    free: float


@dataclass(frozen=True)
class Machine:
    """This machine: cores, memory in GiB, visible NVIDIA GPUs, and what torch can use."""

    cores: int
    memory: float
    gpus: tuple[Gpu, ...]
    accelerator: str

    def __str__(self) -> str:
        gpus = [f"{gpu.name}, {gpu.memory:.0f} GiB ({gpu.free:.0f} free)" for gpu in self.gpus]
        listed = " + ".join(gpus) or "no NVIDIA GPU"
        return f"{self.cores} CPU cores, {self.memory:.0f} GiB memory, {listed}"

    def room(self, accelerator: str) -> float:
        """Return the GiB available to one model: of the largest GPU, or of the system."""
        return max(gpu.memory for gpu in self.gpus) if accelerator == "cuda" else self.memory


def this_machine() -> Machine:
    """Return what this machine has. torch is not imported."""
    import psutil

    gpus = _gpus()
    return Machine(
        cores=os.cpu_count() or 1,
        memory=psutil.virtual_memory().total / 2**30,
        gpus=gpus,
        accelerator=_accelerator(gpus),
    )


def _gpus() -> tuple[Gpu, ...]:
    """Ask the driver for the visible GPUs, which needs no torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return ()
    try:
        done = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=5.0, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = done.stdout.splitlines()
    if visible is not None and re.fullmatch(r"(\d+|GPU-[\w-]+)(,(\d+|GPU-[\w-]+))*", visible):
        rows = [
            row
            for chosen in visible.split(",")
            for number, row in enumerate(rows)
            # CUDA also accepts the beginning of a UUID.
            if chosen == str(number) or (chosen.startswith("GPU-") and row.startswith(chosen))
        ]
    return tuple(gpu for row in rows if (gpu := _gpu(row)) is not None)


def _gpu(row: str) -> Gpu | None:
    """Return the GPU of a row; None if its memory may not be read, as in a container with MIG."""
    import psutil

    system = psutil.virtual_memory()
    try:
        name, *sizes = row.partition(",")[2].rsplit(",", 2)
        memory, free = (
            # Such a GPU shares the memory of the system.
            of_system / 2**30 if size.strip() == "[N/A]" else float(size) / 1024
            for size, of_system in zip(sizes, (system.total, system.available), strict=True)
        )
    except ValueError:
        return None
    return Gpu(name.strip(), memory, free)


def _accelerator(gpus: tuple[Gpu, ...]) -> str:
    """Return what torch can use, read from its version file: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "cpu"
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    if gpus and re.search(r"^cuda\b[^=\n]*=\s*['\"]", text, re.MULTILINE):
        return "cuda"
    return "mps" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else "cpu"
