"""Models on the Hugging Face hub: their files in its local cache, fetched, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autolora_eval._errors import AutoLoRAEvalError, first_line
from autolora_eval.sources.model_source import Source


def local_lora(source: Source) -> Path:
    """Return the LoRA's file on this machine; it is fetched from the hub if needed.

    Raises:
        AutoLoRAEvalError: if the hub repository has not exactly one `.safetensors` or cannot be
            reached, or the user must get the file first.
    """
    if source.kind == "absent":
        raise AutoLoRAEvalError(absent(source))
    if source.kind != "hub":
        return source.path
    from huggingface_hub import HfApi, hf_hub_download

    name = source.weight_name
    try:
        if name is None:
            files = HfApi().list_repo_files(source.location, revision=source.revision)
            weights = [file for file in files if file.endswith(".safetensors")]
            if len(weights) != 1:
                raise AutoLoRAEvalError(
                    f"'{source.location}' must have one .safetensors, and has "
                    f"{', '.join(weights) or 'none'}. Name one with weight_name."
                )
            name = weights[0]
        return Path(hf_hub_download(source.location, name, revision=source.revision))
    except (OSError, ValueError) as error:
        raise AutoLoRAEvalError(unreachable([source], first_line(error))) from error


@contextmanager
def hub_cache_only() -> Iterator[None]:
    """Let the hub's client answer from its cache only, during the block."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def in_cache(source: Source, marker: str) -> bool:
    """Return whether a hub model's `marker` file is in the local cache."""
    return cached(source, marker) is not None


def cached(source: Source, name: str) -> Path | None:
    """Return a file of a model, in its folder or in the local cache of the hub, or None."""
    if source.kind != "hub":
        file = source.path / name
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.location, name, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def fetched(source: Source, name: str) -> Path | None:
    """Return a file of a model, fetched from the hub if needed; None if it is unavailable."""
    here = cached(source, name)
    if here is not None or source.kind != "hub":
        return here
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(source.location, name, revision=source.revision, etag_timeout=5.0)
    except (OSError, ValueError):
        return None
    return Path(path)


def hub_refusal(source: Source) -> str | None:
    """Ask the hub for a repository. Return why it is unavailable, or None if it is there."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(source.location, revision=source.revision, timeout=5.0)
    except Exception as error:  # the hub's client raises errors of its HTTP library too
        return first_line(error)
    return None


def hub_files(source: Source) -> list[str] | None:
    """Return the names of a hub repository's files; None if the hub cannot be asked."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(source.location, revision=source.revision, timeout=5.0)
    except Exception:  # the hub's client raises errors of its HTTP library too
        return None
    return [file.rfilename for file in found.siblings or []]


def unreachable(sources: list[Source], reason: str) -> str:
    """Return the message for models that are neither in the cache nor available from the hub."""
    commands = [
        f"hf download {source.location}"
        + (f" --revision {source.revision}" if source.revision else "")
        for source in sources
    ]
    return (
        f"not in the local cache, and not to be had from the hub ({reason}): "
        f"{', '.join(source.location for source in sources)}. On a machine with access run: "
        f"{' && '.join(commands)} (for a gated model "
        "accept its licence on its page and run 'hf auth login' first); or name local folders."
    )


def absent(source: Source) -> str:
    """Return the message for a file that the user must get first."""
    return f"the LoRA '{source.location}' is not here. {source.how_to_get()}"
