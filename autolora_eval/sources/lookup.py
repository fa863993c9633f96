"""Where the paths of a benchmark file lead: variables, folders beside the file, shipped files."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._files import path_inside

_PACKAGE = Path(__file__).resolve().parents[1]
ALLOW = "AUTOLORA_EVAL_ALLOW"
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
_OWN = "AUTOLORA_EVAL_"
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD")


def expanded(text: str) -> str:
    """Return a path or address with `${VAR}` and `${VAR:-default}` replaced.

    As in a shell, the default also replaces an empty value. Expand a path or address only where it
    is used: manifest and report keep the text of the benchmark file.

    Raises:
        UsageError: if a variable may not be read, or is not set and has no default.
    """
    return _VARIABLE.sub(_value, text)


def _value(match: re.Match[str]) -> str:
    name, default = match["name"], match["default"]
    if _SECRET.search(name) or not (name == "HOME" or name.startswith(_OWN) or name in _allowed()):
        raise UsageError(
            f"the environment variable {name} may not be read: only {_OWN}… and HOME, and never a "
            f"key or token. If you trust the file, allow others with {ALLOW}={name}."
        )
    found = os.environ.get(name)
    if default is not None:
        found = found or default
    if found is None:
        raise UsageError(
            f"the environment variable {name} is not set. "
            f"Set it, or give a default: ${{{name}:-value}}."
        )
    return found


def key_problem(name: str) -> str | None:
    """Return why a benchmark may not send the value of a variable to its server, or None."""
    if name != "HF_TOKEN" and (name.startswith(_OWN) or name in _allowed()):
        return None
    if name == "HF_TOKEN":
        return "HF_TOKEN is never sent to a judge's server. Put the server's own key elsewhere."
    return (
        f"the variable {name} may not be sent to a server: only {_OWN}… may. If you trust the "
        f"file, allow it with {ALLOW}={name}."
    )


def _allowed() -> list[str]:
    return [name.strip() for name in os.environ.get(ALLOW, "").split(",")]


def shipped_root() -> Path:
    """Return the folder that holds `benchmarks/` and `prompts/`.

    In a wheel they are packaged below `autolora_eval/shipped`. In a checkout they are beside the
    package.
    """
    packaged = _PACKAGE / "shipped"
    return packaged if (packaged / "benchmarks").is_dir() else _PACKAGE.parent


def shipped_benchmarks() -> dict[str, Path]:
    """Return the shipped benchmark files by name."""
    folder = shipped_root() / "benchmarks"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def miniatures() -> dict[str, Path]:
    """Return the folders of the shipped miniatures by name.

    They are small real models, trained from scratch by the recipes in `recipes/` on a procedurally
    drawn domain. They run the product on a laptop. Their numbers say nothing about large models.
    """
    folder = _PACKAGE / "shipped" / "miniature"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: path for path in found if path.is_dir()}


def miniature_folder(name: str) -> Path:
    """Return the folder of a shipped miniature.

    Raises:
        UsageError: if there is none of that name.
    """
    known = miniatures()
    if name not in known:
        raise UsageError(f"no miniature '{name}'.{did_you_mean(name, known)}")
    return known[name]


@dataclass(frozen=True)
class Lookup:
    """The folders in which relative paths are looked up.

    They are the benchmark file's folder, its parent, the working directory and the shipped files.
    The parent serves the usual layout, `benchmarks/x.yaml` beside `prompts/`. The shipped files
    come last, so that any benchmark can name `prompts/rubrics/pixel_art.yaml`.
    """

    folders: tuple[Path, ...]

    @classmethod
    def beside(cls, benchmark_file: Path) -> Lookup:
        """Return the folders for a benchmark file."""
        here = benchmark_file.resolve().parent
        return cls(tuple(dict.fromkeys((here, here.parent, Path.cwd(), shipped_root()))))

    def find(self, name: str) -> Path | None:
        """Return the first existing path of `name`, with its variables replaced."""
        name = expanded(name)
        try:
            path = Path(name).expanduser()
            paths = [path] if path.is_absolute() else [folder / path for folder in self.folders]
            return next((path.resolve() for path in paths if path.exists()), None)
        except (OSError, RuntimeError):  # too long for a path, or the home of an unknown user
            return None

    def file(self, name: str, what: str) -> Path:
        """Return the file that `name` names.

        Raises:
            UsageError: if there is none. The message lists the folders.
        """
        found = self.find(name) or _file_of_package(expanded(name))
        if found is None or not found.is_file():
            folders = ", ".join(map(str, self.folders))
            near = did_you_mean(Path(name).name, self._neighbours(name), or_list=False)
            raise UsageError(f"no such {what}: '{name:.300}' (looked in {folders}).{near}")
        return found

    def _neighbours(self, name: str) -> list[str]:
        parents = (folder / Path(name).parent for folder in self.folders)
        try:
            files = (p for d in parents if d.is_dir() for p in d.iterdir() if p.is_file())
            return sorted({path.name for path in files})
        except OSError:
            return []


def _file_of_package(name: str) -> Path | None:
    """Return the file that `package:path/within` names; None if it does not exist."""
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
