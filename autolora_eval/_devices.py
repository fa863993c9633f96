"""Where and at which precision models run, and how that is told to people."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from autolora_eval._errors import AutoLoRAEvalError, MissingDependencyError

PACKAGES = (
    "torch",
    "diffusers",
    "peft",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "openai",
    "llguidance",
    "timm",
    "krippendorff",
    "numpy",
    "scipy",
    "pandas",
    "pillow",
    "typst",
)


def require(package: str, extra: str) -> None:
    """Check that an optional package is installed.

    Raises:
        MissingDependencyError: it is not; the message says how to install it.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingDependencyError(package, extra)


def choose_device(stated: str) -> str:
    """Return the device that the benchmark asks for; `auto` takes CUDA where there is one.

    torch is imported only where it could see another device than the CPU.

    Returns:
        `cpu`, `mps`, `cuda`, or `cuda:1`.

    Raises:
        AutoLoRAEvalError: it asks for a device that is not here.
    """
    require("torch", "models")
    if stated == "cpu" or (stated == "auto" and metadata.version("torch").endswith("+cpu")):
        return "cpu"
    import torch

    if stated == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = stated.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise AutoLoRAEvalError(
                f"the benchmark wants device '{stated}', but torch {torch.__version__} sees "
                f"{count} CUDA device(s) here. Run it on a machine with a GPU and a CUDA build of "
                "torch, or set 'device: cpu' in the benchmark (slow for large models)."
            )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise AutoLoRAEvalError("the benchmark wants device 'mps', which torch does not see here.")
    return stated


def choose_dtype(stated: str, device: str) -> str:
    """Return the precision that the benchmark asks for, such as `float32`.

    `auto` is float16 on CUDA, where diffusion pipelines are published for it, and float32
    elsewhere, where half precision is slower or missing.
    """
    if stated != "auto":
        return stated
    return "float16" if device.startswith("cuda") else "float32"


def free_memory() -> None:
    """Give back the GPU memory of models that are no longer held; torch keeps it otherwise."""
    if "torch" in sys.modules:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide numbers."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hardware(device: str | None = None) -> dict[str, Any]:
    """Return what this machine is, for the manifest."""
    import psutil

    facts: dict[str, Any] = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
    if device is not None:
        facts["device"] = device
        if device.startswith("cuda"):
            import torch

            facts["gpu"] = torch.cuda.get_device_name(device)
            facts["gpu_memory_gib"] = round(
                torch.cuda.get_device_properties(device).total_memory / 2**30, 1
            )
            facts["cuda"] = torch.version.cuda
    return facts


# --------------------
# The model libraries, kept quiet: their notices would tear up the progress display.


_NAMES = ("diffusers", "transformers", "peft", "huggingface_hub")
# It prints the traceback of every exception that it then raises.
_TELLS_TWICE = "diffusers.modular_pipelines.modular_pipeline"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep notices and bars of diffusers and transformers off the screen; errors still show."""
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in (*_NAMES, _TELLS_TWICE)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR if logger.name != _TELLS_TWICE else logging.CRITICAL)
    # diffusers is heavy, and not every stage has imported it.
    bars = [transformers_logging, *filter(None, [sys.modules.get("diffusers.utils.logging")])]
    for library in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in bars:
            library.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
