"""The model libraries, kept quiet: their notices would tear up the progress display."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
