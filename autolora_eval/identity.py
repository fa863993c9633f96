"""What a model is: the hash of its files, or its commit on the hub. Fetches what is not here."""

from __future__ import annotations

from pathlib import Path

from autolora_eval.benchmark.sources import Source
from autolora_eval.errors import AutoLoRAEvalError
from autolora_eval.files import Json, sha256_file, sha256_folder

_MODEL_FILES = (".safetensors", ".json", ".txt", ".model", ".jinja")


def identity(source: Source) -> Json:
    """Return what decides a model's numbers, for content keys and the manifest.

    Args:
        source: a folder or file is hashed; a hub id is resolved to its commit.
    """
    if source.kind == "hub":
        return {"reference": source.reference, "kind": "hub", "commit": _commit(source)}
    digest = sha256_folder(source.path, _MODEL_FILES)
    return {"reference": source.reference, "kind": source.kind, "sha256": digest}


def lora_identity(source: Source) -> Json:
    """Return what a LoRA is: the hash of its file, which is fetched if need be."""
    file = local_lora(source)
    return {"reference": source.reference, "kind": source.kind, "sha256": sha256_file(file)}


def local_lora(source: Source) -> Path:
    """Return the LoRA's file on this machine, fetching it from the hub if need be.

    Raises:
        AutoLoRAEvalError: the hub repository has no single `.safetensors`, or cannot be reached;
            or it is a file that its user must get first.
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


def in_cache(source: Source, marker: str) -> bool:
    """Tell whether a hub model's `marker` file is in the local cache."""
    return cached(source, marker) is not None


def cached(source: Source, name: str) -> Path | None:
    """Return a file of a model folder, or of a hub model as the local cache has it, or None."""
    if source.kind != "hub":
        file = source.path / name
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.location, name, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def fetched(source: Source, name: str) -> Path | None:
    """Return a file of a model, fetched from the hub if need be; None if it is not to be had."""
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
    """Ask the hub for a repository; return None if it is there, else why it cannot be had."""
    from huggingface_hub import HfApi

    try:
        HfApi().repo_info(source.location, revision=source.revision, timeout=5.0)
    except Exception as error:  # the hub's client raises errors of its HTTP library too
        return first_line(error)
    return None


def unreachable(sources: list[Source], reason: str) -> str:
    """Return the message for models on the hub that cannot be had: what, why, what to do."""
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
    """Return the message for a file that its user must get first."""
    return f"the LoRA '{source.reference}' is not here. {source.how_to_get()}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, cut to what fits a message of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _commit(source: Source) -> str:
    """Return the commit that a hub id and revision stand for, as the cache's folder names it."""
    from huggingface_hub import hf_hub_download

    for name in ("model_index.json", "config.json"):
        try:
            path = Path(hf_hub_download(source.location, name, revision=source.revision))
        except (OSError, ValueError) as error:
            problem = error
            continue
        parts = path.parts
        # The last of that name: the cache may itself lie below a folder called snapshots.
        return parts[len(parts) - parts[::-1].index("snapshots")]
    raise AutoLoRAEvalError(unreachable([source], first_line(problem))) from problem
