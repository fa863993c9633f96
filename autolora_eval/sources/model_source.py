"""Where a model comes from: a folder, the Hugging Face hub or its local cache, or a miniature.

No weights are loaded here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import yaml
from safetensors import SafetensorError

from autolora_eval._errors import AutoLoRAEvalError, UsageError, did_you_mean, first_line
from autolora_eval.sources.lookup import Lookup, expanded, miniature_folder

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
PICKLE_ADVICE = (
    "a pickle can run code when it is opened, so only .safetensors is read. Convert it on a "
    "machine you trust: load it with torch.load(weights_only=True), and write it with "
    "safetensors.torch.save_file."
)
MINIATURE = "miniature:"
# peft's settings of a LoRA, beside its file.
ADAPTER_CONFIG = "adapter_config.json"
# The YAML at the head of a model card.
_CARD_HEAD = re.compile(r"\s*---\n(.*?)\n---[ \t]*(\n|$)", re.DOTALL)


# What `from_pretrained` raises for a folder that is incomplete, damaged or not of transformers.
# RuntimeError: a package is broken, such as a torchvision built for another version of torch.
LOADING_ERRORS = (
    *(OSError, ValueError, AttributeError, ImportError, KeyError, RuntimeError),
    SafetensorError,
)


@dataclass(frozen=True)
class Source:
    """A model's origin, found but not loaded.

    Attributes:
        name: the text in the benchmark file.
        kind: `folder` and `file` are on this machine; `hub` is fetched through the hub's cache;
            `absent` is a file that the user must get first.
        location: absolute path, or hub id.
        revision: commit, tag or branch on the hub.
        weight_name: the weight file of a LoRA in a hub repository.
        obtain: how to get an absent file.
    """

    name: str
    kind: Literal["folder", "file", "hub", "absent"]
    location: str
    revision: str | None = None
    weight_name: str | None = None
    obtain: str | None = None

    def how_to_get(self) -> str:
        """Return where to get an absent file, and where to put it.

        The benchmark's text may say the latter by `{place}`.
        """
        text = str(self.obtain)
        text = text if "{place}" in text else f"{text} Save it as {{place}}."
        return text.replace("{place}", str(Path.cwd() / Path(self.location).expanduser()))

    @property
    def path(self) -> Path:
        """The path of a folder or file."""
        return Path(self.location)


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a hub id."""
    return _HUB_ID.match(name) is not None


def find_model(
    name: str, revision: str | None, lookup: Lookup, marker: str, *, needs_weights: bool = True
) -> Source:
    """Return the source of a model folder or hub id.

    Args:
        name: folder, hub id or `miniature:NAME`.
        revision: for a hub id.
        lookup: the folders for relative paths.
        marker: the file that a folder must have: `model_index.json` or `config.json`.
        needs_weights: False if only its other files are read.

    Raises:
        UsageError: if it is neither a folder with `marker` and safe weights nor a hub id.
    """
    wanted = expanded(name)
    if wanted.startswith(MINIATURE):
        _refuse_revision(name, revision)
        return Source(name, "folder", str(_miniature(wanted)))
    found = lookup.find(wanted)
    if found is None and is_hub_id(wanted):
        return Source(name, "hub", wanted, revision)
    if found is None:
        raise UsageError(
            f"no such folder: '{name}'. Expected a folder with a {marker}, a hub id such as "
            f"'owner/name', or '{MINIATURE}NAME'."
        )
    if not (found / marker).is_file():
        raise UsageError(
            f"'{name}' has no {marker}, so it is not a model in the diffusers/transformers "
            "layout. Write one with save_pretrained."
        )
    _refuse_revision(name, revision)
    if needs_weights:
        _refuse_pickles(found, name)
    return Source(name, "folder", str(found))


def find_lora(
    name: str,
    weight_name: str | None,
    revision: str | None,
    lookup: Lookup,
    obtain: str | None = None,
) -> Source:
    """Return the source of a LoRA: a `.safetensors` file, a folder with one, or a hub id.

    A missing file is not an error if the benchmark says how to `obtain` it.

    Raises:
        UsageError: if it is missing, a pickle, or one of several weight files without a
            `weight_name`.
    """
    if weight_name is not None and Path(weight_name).suffix in _PICKLES:
        raise UsageError(f"weight_name '{weight_name}' is a pickle: {PICKLE_ADVICE}")
    wanted = expanded(name)
    if wanted.startswith(MINIATURE):
        _refuse_revision(name, revision)
        return _lora_in(_miniature(wanted), weight_name, name)
    found = lookup.find(wanted)
    if Path(wanted).suffix in _PICKLES:
        raise UsageError(f"'{name}' is a pickle: {PICKLE_ADVICE}")
    if found is None:
        is_file = wanted.endswith(".safetensors")
        if is_hub_id(wanted) and not is_file:
            return Source(name, "hub", wanted, revision, weight_name)
        if is_file and obtain is not None:
            return Source(name, "absent", wanted, obtain=obtain.strip())
        raise UsageError(
            f"no such LoRA: '{name}'. Expected a .safetensors file, a folder with one, or a "
            "hub id such as 'owner/name'. A LoRA from civitai needs a login there: download the "
            "file yourself and name its path here."
        )
    _refuse_revision(name, revision)
    if found.is_dir():
        return _lora_in(found, weight_name, name)
    if found.suffix != ".safetensors":
        raise UsageError(f"'{name}' is not a .safetensors file.")
    if weight_name is not None:
        raise UsageError(
            f"a weight_name belongs to a folder or hub id, but '{name}' is a file: remove it."
        )
    return Source(name, "file", str(found))


def _lora_in(folder: Path, weight_name: str | None, name: str) -> Source:
    if weight_name is None:
        files = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*"))
        return Source(name, "file", str(folder / _only_lora(name, files)))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
    if weight_name not in names:
        near = did_you_mean(weight_name, names)
        raise UsageError(f"weight_name: no '{weight_name}' in '{name}'.{near}")
    return Source(name, "file", str(folder / weight_name))


def _only_lora(name: str, files: Sequence[str]) -> str:
    """Return the only `.safetensors` file among the files of a folder or of a hub repository."""
    weights = [file for file in files if file.endswith(".safetensors")]
    if len(weights) == 1:
        return weights[0]
    if not weights and any(Path(file).suffix in _PICKLES for file in files):
        raise UsageError(f"'{name}' holds its LoRA as a pickle: {PICKLE_ADVICE}")
    raise UsageError(
        f"'{name}' must hold one .safetensors file, but has {', '.join(weights) or 'none'}. Name "
        "one with weight_name."
    )


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise UsageError(
            f"a revision belongs to a hub id, but '{name}' is on this machine: remove it."
        )


def _refuse_pickles(folder: Path, name: str) -> None:
    """Refuse a model folder that has weights as pickles only."""
    for part in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        suffixes = {path.suffix for path in part.iterdir() if path.is_file()}
        if suffixes.intersection(_PICKLES) and ".safetensors" not in suffixes:
            raise UsageError(f"'{name}' holds weights as a pickle: {PICKLE_ADVICE}")


def _miniature(name: str) -> Path:
    return miniature_folder(name.removeprefix(MINIATURE))


def stated_license(source: Source) -> str | None:
    """Return the licence in the model card of a model's folder; None if it is unknown.

    The card of a folder with several LoRAs may be about another one.
    """
    if source.kind not in ("folder", "file"):
        return None
    folder = source.path if source.kind == "folder" else source.path.parent
    if source.kind == "file" and len(list(folder.glob("*.safetensors"))) != 1:
        return None
    try:
        # The import of huggingface_hub, which can read cards, takes half a second.
        head = _CARD_HEAD.match((folder / "README.md").read_text(encoding="utf-8-sig"))
        stated = yaml.safe_load(head[1]) if head else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    found = stated.get("license") if isinstance(stated, dict) else None
    return found if isinstance(found, str) else None


# ---- Files of a model, in its folder, the cache of the hub, or fetched from the hub


def local_lora(source: Source) -> Path:
    """Return the LoRA's file on this machine; it is fetched from the hub if needed.

    peft's settings of the LoRA, which may hold its alpha, are put beside it.

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
            name = _only_lora(source.location, files)
        path = Path(hf_hub_download(source.location, name, revision=source.revision))
        fetched(source, str(PurePosixPath(name).with_name(ADAPTER_CONFIG)))
        return path
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
    found = _hub_info(source)
    return first_line(found) if isinstance(found, Exception) else None


def hub_files(source: Source) -> list[str] | None:
    """Return the names of a hub repository's files; None if the hub cannot be asked."""
    found = _hub_info(source)
    return None if isinstance(found, Exception) else [one.rfilename for one in found.siblings or []]


def _hub_info(source: Source) -> ModelInfo | Exception:
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(source.location, revision=source.revision, timeout=5.0)
    except Exception as error:  # the hub's client raises errors of its HTTP library too
        return error


def unreachable(sources: list[Source], reason: str) -> str:
    """Return the message for models that are neither in the cache nor available from the hub."""
    commands = [
        f"hf download {source.location}"
        + (f" --revision {source.revision}" if source.revision else "")
        for source in sources
    ]
    return (
        f"not in the local cache, and not available from the hub ({reason}): "
        f"{', '.join(source.location for source in sources)}. On a machine with access run: "
        f"{' && '.join(commands)} (for a gated model "
        "accept its licence on its page and run 'hf auth login' first); or name local folders."
    )


def absent(source: Source) -> str:
    """Return the message for a file that the user must get first."""
    return f"the LoRA file '{source.location}' does not exist. {source.how_to_get()}"


# ---- Loading by `from_pretrained`


def loading_options(source: Source) -> dict[str, Any]:
    """Return the arguments of every `from_pretrained`."""
    # Without `trust_remote_code=False`, transformers asks on the terminal whether to run code.
    revision = {"revision": source.revision} if source.revision else {}
    return {"trust_remote_code": False, **revision}


def unloadable(what: str, source: Source, error: Exception) -> AutoLoRAEvalError:
    """Return the error for an `extractor` or `judge` that `from_pretrained` cannot load."""
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
