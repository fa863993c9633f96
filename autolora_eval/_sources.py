"""Where a model comes from: a folder, a hub id, or a shipped miniature. Nothing is loaded here."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from autolora_eval._environment import expanded
from autolora_eval._errors import AutoLoRAEvalError, UsageError, did_you_mean, first_line
from autolora_eval._files import path_inside
from autolora_eval._resources import shipped_root

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
PICKLE_ADVICE = (
    "a pickle can run code when it is opened, so only .safetensors is read. Convert it on a "
    "machine you trust: load it with torch.load(weights_only=True), and write it with "
    "safetensors.torch.save_file."
)
MINIATURE = "miniature:"
# The YAML at the head of a model card.
_CARD_HEAD = re.compile(r"\s*---\n(.*?)\n---[ \t]*(\n|$)", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """A model's origin, found but not loaded.

    Attributes:
        name: as the benchmark file states it.
        kind: `folder` and `file` are on this machine; `hub` is fetched through the hub's cache;
            `absent` is a file that its user must get first.
        location: absolute path, or hub id.
        revision: commit, tag or branch on the hub.
        weight_name: the weight file within a folder or hub repository, where it matters.
        obtain: how an absent file is to be had.
    """

    name: str
    kind: Literal["folder", "file", "hub", "absent"]
    location: str
    revision: str | None = None
    weight_name: str | None = None
    obtain: str | None = None

    def how_to_get(self) -> str:
        """Return what to do about an absent file: where it is from, and where to put it.

        The place stands where the benchmark writes `{place}`, or at the end.
        """
        place = Path(self.location).expanduser()
        where = str(place) if place.is_absolute() else f"{place} below {Path.cwd()}"
        text = str(self.obtain)
        text = text if "{place}" in text else f"{text} Put the file at {{place}}."
        return text.replace("{place}", where)

    @property
    def path(self) -> Path:
        """The place on this machine of a folder or file."""
        return Path(self.location)


@dataclass(frozen=True)
class Lookup:
    """Where relative paths are looked up: the benchmark file's folder, its parent, here, shipped.

    The parent serves the usual layout, `benchmarks/x.yaml` beside `prompts/`; what is shipped
    comes last, so that anyone's benchmark can name `prompts/rubrics/pixel_art.yaml`.
    """

    folders: tuple[Path, ...]

    @classmethod
    def beside(cls, benchmark_file: Path) -> Lookup:
        """Return the look-up of a benchmark file."""
        here = benchmark_file.resolve().parent
        return cls(tuple(dict.fromkeys((here, here.parent, Path.cwd(), shipped_root()))))

    def find(self, name: str) -> Path | None:
        """Return the first place where `name` exists, with its variables replaced."""
        name = expanded(name)
        try:
            path = Path(name).expanduser()
            places = [path] if path.is_absolute() else [folder / path for folder in self.folders]
            return next((place.resolve() for place in places if place.exists()), None)
        except (OSError, RuntimeError):  # no name of a file: too long, or the home of nobody
            return None

    def file(self, name: str, what: str) -> Path:
        """Return the file that `name` names.

        Raises:
            UsageError: there is none, with the places that were searched.
        """
        found = self.find(name) or _file_of_package(expanded(name))
        if found is None or not found.is_file():
            places = ", ".join(str(folder) for folder in self.folders)
            near = did_you_mean(Path(name).name, self._neighbours(name), or_list=False)
            raise UsageError(f"no such {what}: '{name:.300}' (looked in {places}).{near}")
        return found

    def _neighbours(self, name: str) -> list[str]:
        parents = (folder / Path(name).parent for folder in self.folders)
        try:
            files = (p for d in parents if d.is_dir() for p in d.iterdir() if p.is_file())
            return sorted({path.name for path in files})
        except OSError:
            return []


def _file_of_package(name: str) -> Path | None:
    """Return the file that `package:path/within` names; None if there is no such file."""
    package, _, relative = name.partition(":")
    if not relative or not all(part.isidentifier() for part in package.split(".")):
        return None
    try:
        spec = importlib.util.find_spec(package)
        folders = (spec and spec.submodule_search_locations) or ()
        found = [path_inside(Path(folder), relative) for folder in folders]
    except (ImportError, ValueError):
        return None
    return next((path for path in found if path.is_file()), None)


def is_hub_id(name: str) -> bool:
    """Tell whether a name has the form of a hub id."""
    return _HUB_ID.match(name) is not None


def find_model(
    name: str, revision: str | None, lookup: Lookup, marker: str, *, needs_weights: bool = True
) -> Source:
    """Return the source of a model folder or hub id.

    Args:
        name: folder, hub id or `miniature:NAME`.
        revision: for a hub id.
        lookup: where relative folders are looked up.
        marker: the file that a folder must have: `model_index.json` or `config.json`.
        needs_weights: False if only its other files are read.

    Raises:
        UsageError: neither a folder with `marker` and safe weights nor a hub id.
    """
    wanted = expanded(name)
    if wanted.startswith(MINIATURE):
        _refuse_revision(name, revision)
        return Source(name, "folder", str(_miniature(wanted)))
    found = lookup.find(wanted)
    if found is None and _HUB_ID.match(wanted):
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

    A file that is not there is absent, not an error, if the benchmark says how to `obtain` it.

    Raises:
        UsageError: nothing there, several weight files and no `weight_name`, or a pickle.
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
    if found is None and _HUB_ID.match(wanted) and not wanted.endswith(".safetensors"):
        return Source(name, "hub", wanted, revision, weight_name)
    if found is None and obtain is not None and wanted.endswith(".safetensors"):
        return Source(name, "absent", wanted, obtain=obtain.strip())
    if found is None:
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
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if weight_name is not None and weight_name not in names:
        near = did_you_mean(weight_name, names)
        raise UsageError(f"weight_name: no '{weight_name}' in '{name}'.{near}")
    if weight_name is None and len(names) != 1:
        if not names and any(path.suffix in _PICKLES for path in folder.iterdir()):
            raise UsageError(f"'{name}' holds its LoRA as a pickle: {PICKLE_ADVICE}")
        found = ", ".join(names) if names else "none"
        raise UsageError(
            f"'{name}' must hold one .safetensors file, but has {found}. Name one with weight_name."
        )
    return Source(name, "file", str(folder / (weight_name or names[0])))


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise UsageError(
            f"a revision belongs to a hub id, but '{name}' is on this machine: remove it."
        )


def _refuse_pickles(folder: Path, name: str) -> None:
    """Refuse a model folder whose weights are only there as pickles."""
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        files = {path.suffix for path in place.iterdir() if path.is_file()}
        if files.intersection(_PICKLES) and ".safetensors" not in files:
            raise UsageError(f"'{name}' holds weights as a pickle: {PICKLE_ADVICE}")


def _miniature(name: str) -> Path:
    from autolora_eval._resources import miniature_folder

    return miniature_folder(name.removeprefix(MINIATURE))


def stated_license(source: Source) -> str | None:
    """Return the licence that the model card in a model's folder states; None if it is unknown.

    A folder with several LoRAs has no card of one of them.
    """
    folder = source.path if source.kind == "folder" else source.path.parent
    one = source.kind == "folder" or len(list(folder.glob("*.safetensors"))) == 1
    if source.kind not in ("folder", "file") or not one:
        return None
    try:
        # Not by huggingface_hub, whose import takes half a second.
        head = _CARD_HEAD.match((folder / "README.md").read_text(encoding="utf-8-sig"))
        stated = yaml.safe_load(head[1]) if head else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    found = stated.get("license") if isinstance(stated, dict) else None
    return found if isinstance(found, str) else None


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


@contextmanager
def hub_cache_only() -> Iterator[None]:
    """Let the hub's client answer from its cache while the block runs, and fail otherwise."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


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
    return f"the LoRA '{source.location}' is not here. {source.how_to_get()}"
