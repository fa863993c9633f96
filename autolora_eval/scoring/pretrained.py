"""How models of transformers are loaded: never with code of their own, and what a failure says."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._sources import Source

# What `from_pretrained` raises for a folder that is incomplete, damaged or not of transformers.
# RuntimeError: a package that is there but broken, such as a torchvision beside another torch.
LOADING_ERRORS = (
    *(OSError, ValueError, AttributeError, ImportError, KeyError, RuntimeError),
    SafetensorError,
)


def loading_options(source: Source) -> dict[str, Any]:
    """Return the arguments of every `from_pretrained`.

    Without `trust_remote_code=False`, transformers asks on the terminal whether to run the code
    of a model folder.
    """
    revision = {"revision": source.revision} if source.revision else {}
    return {"trust_remote_code": False, **revision}


def unloadable(what: str, source: Source, error: Exception) -> AutoLoRAEvalError:
    """Return the error for a model that cannot be loaded.

    Args:
        what: `extractor` or `judge`.
        source: the model.
        error: what `from_pretrained` raised.
    """
    text = " ".join(str(error).split())
    cause = text[:400]
    if "trust_remote_code" in text:
        cause = (
            "it needs Python code from its own folder, which is never run. Use a model whose class "
            "is part of transformers"
        )
    elif isinstance(error, SafetensorError):
        cause = f"its .safetensors is damaged or incomplete ({cause}). Get its files again"
    elif what == "judge" and isinstance(error, ImportError | RuntimeError):
        advice = "What processors of judges need: pip install 'autolora-eval[judges]'"
        cause = f"{cause.rstrip('.')}. {advice}"
    elif isinstance(error, KeyError):
        cause = f"its configuration has no {cause}"
    return AutoLoRAEvalError(f"the {what} '{source.name}' cannot be loaded: {cause.rstrip('.')}.")
