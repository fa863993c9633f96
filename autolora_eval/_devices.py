"""Device and precision of models, facts of the machine, and the output of model libraries."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import platform
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

from autolora_eval._errors import AutoLoRAEvalError, MissingDependencyError

PACKAGES = (
    # these four decide images
    "torch",
    "diffusers",
    "peft",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "aiohttp",
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


def free_memory() -> None:
    """Give back the GPU memory of models that nobody holds any more. torch would keep it."""
    if "torch" in sys.modules:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# On mps and CPUs torch has no OutOfMemoryError, but a RuntimeError with one of these phrases.
_PHRASES = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device has no memory left."""
    text = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and any(phrase in text for phrase in _PHRASES)
    )


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


def hardware(device: str | None = None) -> dict[str, Any]:
    """Return facts about this machine, for the manifest."""
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
# Notices of model libraries would break the progress display, and most do not concern the images.
# Those that do are shown once.


_NAMES = ("diffusers", "transformers", "peft", "huggingface_hub")
# It prints the traceback of every exception before it raises it.
_REPORTS_TWICE = "diffusers.modular_pipelines.modular_pipeline"
_MATTERS = re.compile(
    r"truncat|missing|unexpected|mismatch|ignor|mixture|fall(s|ing)? back|float16|half precision"
    r"|not (been )?(used|initiali[sz]ed|expected|supported|implemented)|\bnan\b|overflow"
    r"|incorrect|wrong",
    re.IGNORECASE,
)
# Notices that are intended, change nothing, or are covered by an error of this package.
_EXPECTED = re.compile("generation flags|requires torchvision|Failed to create component")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_WARNING_LENGTH, _BEGINNING = 400, 60
_shown: set[str] = set()


def forget_warnings() -> None:
    """Show warnings of libraries again, since another run begins."""
    _shown.clear()


def _show_once(library: str, text: str) -> None:
    """Show a library's warning if it may matter to the images, and no other began alike."""
    if _MATTERS.search(text) and not _EXPECTED.search(text) and text[:_BEGINNING] not in _shown:
        _shown.add(text[:_BEGINNING])
        short = textwrap.shorten(_COLOUR.sub("", text), _WARNING_LENGTH, placeholder=" …")
        sys.stderr.write(f"warning of {library}: {short}\n")


class _Notices(logging.Handler):
    """Replacement for a library's handlers: passes errors on and shows warnings that matter."""

    def __init__(self, handlers: list[logging.Handler]) -> None:
        super().__init__()
        self.handlers = handlers or [handler for handler in [logging.lastResort] if handler]

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            for handler in self.handlers if record.name != _REPORTS_TWICE else ():
                handler.handle(record)
        elif record.levelno >= logging.WARNING:
            _show_once(record.name.partition(".")[0], record.getMessage())


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep notices and bars of the model libraries off the screen.

    Errors still show, and each warning that may matter to the images shows once in a run.
    """
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in _NAMES]
    before = [(logger, logger.level, logger.handlers) for logger in loggers]
    show = warnings.showwarning
    for logger in loggers:
        # `setLevel` walks over all loggers, and this block is entered at every batch.
        if logger.getEffectiveLevel() != logging.WARNING:
            logger.setLevel(logging.WARNING)
        logger.handlers = [_Notices(logger.handlers)]
    warnings.showwarning = partial(_show_warning, show)
    # diffusers is heavy, and not every stage has imported it.
    bars = [transformers_logging, *filter(None, [sys.modules.get("diffusers.utils.logging")])]
    for library in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in bars:
            library.enable_progress_bar()
        warnings.showwarning = show
        for logger, level, handlers in before:
            if logger.level != level:
                logger.setLevel(level)
            logger.handlers = handlers


def _show_warning(
    show: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    *more: Any,  # noqa: ANN401
) -> None:
    """Replace `warnings.showwarning`: show only warnings of model libraries that matter."""
    library = next((name for name in (*_NAMES, "torch") if name in Path(filename).parts), None)
    if library is None:
        show(message, category, filename, lineno, *more)
    elif not issubclass(category, DeprecationWarning | FutureWarning):
        _show_once(library, str(message))
