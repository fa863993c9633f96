"""Other people's code: found by its dotted path, and told apart by its sources."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from types import CodeType
from typing import Any

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._files import sha256_bytes, sha256_file, sha256_folder

# Libraries that the manifest states the version of, and whose releases do not change.
_LIBRARIES = ("autolora_eval", "diffusers", "huggingface_hub", "numpy", "peft", "PIL", "pydantic")
_RELEASED = frozenset((*_LIBRARIES, "torch", "transformers", *sys.stdlib_module_names))
_PAPER = re.compile(
    r"(?:arxiv\.org/\w+/|huggingface\.co/papers/|arxiv[: ]\s*)(\d{4}\.\d{4,5})", re.I
)
_ADDED: set[Path] = set()  # folders of benchmarks that Python has been made to look into
_ADDRESS = re.compile(r"[:(]?\s*<?https?://[^\s)>]+[)>]?")


def load_dotted(path: str, folders: Sequence[Path] = ()) -> object:
    """Import what a dotted path names.

    Args:
        path: `package.module.Name`, or `package.module:Name`.
        folders: where a module that is not installed is looked for.

    Raises:
        UsageError: no such module or name, or the module fails when it is imported.
    """
    parts = path.replace(":", ".").split(".")
    if not all(part.isidentifier() for part in parts) or len(parts) < 2:
        raise UsageError(f"'{path}' is no dotted path such as 'my_package.MyGuider'.")
    _make_visible(parts[0], folders)
    found, names = _module(parts, folders)
    for name in names:
        if not hasattr(found, name):
            owner = getattr(found, "__name__", str(found))
            near = did_you_mean(name, _public_names(found))
            hidden = _hidden(parts[0], folders)
            raise UsageError(f"'{owner}' has no '{name}'.{near}{hidden}")
        found = getattr(found, name)
    return found


def _make_visible(top: str, folders: Sequence[Path]) -> None:
    """Let Python find a module that lies beside the benchmark and is not installed.

    What is installed comes first: a file beside a benchmark cannot take a library's place.
    """
    importlib.invalidate_caches()
    beside = _beside(top, folders)
    places = _places(top)
    if top in sys.modules or places:
        if beside is not None and places:
            _refuse_other(top, places[0], beside, folders)
        return
    if beside is not None:
        sys.path.append(str(beside.parent))
        _ADDED.add(beside.parent.resolve())


def _beside(top: str, folders: Sequence[Path]) -> Path | None:
    """Return the file or folder of that module's name that lies beside the benchmark."""
    named = (folder / name for folder in folders for name in (f"{top}.py", top))
    is_code = (place for place in named if place.is_file() or next(place.rglob("*.py"), None))
    return next(is_code, None)


def _hidden(top: str, folders: Sequence[Path]) -> str:
    """Say that a module that is installed hides the file that may have been meant."""
    beside, places = _beside(top, folders), _places(top)
    if beside is None or (places and beside.resolve() in (place.resolve() for place in places)):
        return ""
    return f" The installed module '{top}' hides '{beside}': give yours another name."


def _refuse_other(top: str, place: Path, beside: Path, folders: Sequence[Path]) -> None:
    """Refuse a module that another benchmark of this Python process has brought in."""
    home = place.parent.resolve()
    is_ours = home in {folder.resolve() for folder in folders}
    is_brought = top in sys.modules or home in _ADDED
    if is_ours or not is_brought or top in _RELEASED or top in _distributions(tuple(sys.path)):
        return
    raise UsageError(
        f"the module '{top}' was already imported from '{place}', and '{beside}' is another of "
        "that name. Start Python anew for it, or rename one of the two."
    )


def _places(top: str) -> list[Path]:
    """Return the folders of a package, or the file of a module; none where it is not found."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module that was made by hand says no more than its file
        spec = None
    module = sys.modules.get(top, spec)
    inside = getattr(module, "__path__", getattr(spec, "submodule_search_locations", None))
    file = getattr(module, "__file__", getattr(spec, "origin", None))
    return [Path(place) for place in inside or ([file] if file else [])]


def _module(parts: Sequence[str], folders: Sequence[Path]) -> tuple[object, Sequence[str]]:
    """Import the longest leading part of a path that is a module, and return what is left."""
    missing = ""
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        try:
            return importlib.import_module(name), parts[length:]
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise UsageError(failed_import(name, error)) from error
            missing = str(error.name)
        except (Exception, SystemExit) as error:
            raise UsageError(failed_import(name, error)) from error
    near = did_you_mean(missing.split(".")[0], _known_modules(folders), or_list=False)
    raise UsageError(
        f"no module '{missing}'.{near} Install its package into this environment (for one that "
        f"you are writing: pip install -e .), or put {parts[0]}.py beside the benchmark file."
    )


def failed_import(name: str, error: BaseException) -> str:
    """Return what is to be said of a module that fails while it is imported: cause and place."""
    told = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename]
    place = ""
    if isinstance(error, SyntaxError):
        place = f" ({Path(error.filename or name).name}, line {error.lineno})"
        told = error.msg
    elif len(own) > 1:
        place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})"
    return f"'{name}' cannot be imported: {type(error).__name__}: {told:.300}{place}."


def _public_names(owner: object) -> list[str]:
    """Return what a module offers: its own classes and functions, or those that it has."""
    module = getattr(owner, "__name__", "")
    names = [name for name in dir(owner) if not name.startswith("_")]
    called = [
        n for n in names if callable(vars(owner).get(n)) or n in getattr(owner, "__all__", ())
    ]
    own = [name for name in called if getattr(vars(owner).get(name), "__module__", "") == module]
    return own or called or names


def _known_modules(folders: Sequence[Path]) -> set[str]:
    beside = {file.stem for folder in folders for file in folder.glob("*.py")}
    return beside | set(_distributions(tuple(sys.path)))


@lru_cache(maxsize=4)
def _distributions(path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Return the distributions of every importable module; reading them all takes a second."""
    return metadata.packages_distributions()


def code_of(*objects: object) -> dict[str, str]:
    """Return what decides what code does, for content keys and the manifest.

    A library's release is told by its version. All else is told by its version and by the hash
    of its sources too, since the version of what is being written stays what it was: of a package
    all its `.py` files, of a single file that file; and the same of what they import, unless it
    is another installed package.

    Args:
        objects: classes, with all that they inherit from, functions, or instances.

    Returns:
        `distribution`: "name version" of each, where they are installed; `sha256` of the sources,
        where there are others than those of released libraries; `arguments` that a
        `functools.partial` has bound.
    """
    bound = [arguments for one in objects for arguments in _bound(one)]
    objects = tuple(part for one in objects for part in parts_of(one))
    for one in objects:
        if isinstance(one, type) or inspect.isfunction(one):
            _refuse_changed(one)
    tops = sorted({top for one in objects for top in _top_modules(one)})
    installed = _distributions(tuple(sys.path))
    names = sorted({d for top in tops if top != "autolora_eval" for d in installed.get(top, ())})
    code = {}
    if names:
        code["distribution"] = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    if bound:
        code["arguments"] = json.dumps(bound, ensure_ascii=False)
    own = _with_imports([top for top in tops if top not in _RELEASED])
    if own:
        hashes = [f"{top}\0{_sources_hash(top, objects)}" for top in own]
        code["sha256"] = sha256_bytes("\n".join(hashes).encode())
    return code


def _refuse_changed(one: object) -> None:
    """Refuse code whose file has been changed since it was imported, as happens in notebooks.

    Its hash would be of the new code, and its images by the old.
    """
    owners = one.__mro__ if isinstance(one, type) else (one,)
    for owner in owners:
        if owner.__module__.split(".")[0] not in _RELEASED:
            _refuse_changed_file(owner.__module__, [owner])


def _refuse_changed_file(module: str, owners: Iterable[Any]) -> None:
    """Refuse a module whose file no longer has the code of these functions and classes of it."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    if not (file.endswith(".py") and Path(file).is_file()):
        return
    now = set(_code_objects(compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)))
    members = [m for o in owners for m in (vars(o).values() if isinstance(o, type) else [o])]
    functions = [f for member in members if inspect.isfunction(f := inspect.unwrap(member))]
    if any(f.__code__ not in now for f in functions if f.__code__.co_filename == file):
        raise UsageError(
            f"{Path(file).name} has been changed since it was imported. Start Python anew (in "
            "a notebook: restart its kernel), so that what runs is what the file says."
        )


def _code_objects(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_objects(constant)


def parts_of(one: object) -> list[object]:
    """Return what decides what a `functools.partial` does: what it calls, with what functions."""
    if not isinstance(one, partial):
        return [one]
    given = (value for value in (*one.args, *one.keywords.values()) if callable(value))
    return [part for value in (one.func, *given) for part in parts_of(value)]


def _bound(one: object) -> list[object]:
    """Return the arguments that a `functools.partial` has bound, as plain data."""
    if not isinstance(one, partial):
        return []
    given = [*one.args, *(part for item in sorted(one.keywords.items()) for part in item)]
    plain = [v if isinstance(v, str | int | float | None) else dotted(v) for v in given]
    return [*_bound(one.func), *([plain] if plain else [])]


def dotted(one: object) -> str:
    """Return the dotted path of a class or function, or of the class of anything else.

    Of a `functools.partial` it is that of what it calls.
    """
    if isinstance(one, partial):
        return dotted(one.func)
    named = one if hasattr(one, "__qualname__") else type(one)
    return f"{named.__module__}.{getattr(named, '__qualname__', '')}"


def _top_modules(one: object) -> Iterable[str]:
    if not isinstance(one, type):
        if inspect.isroutine(one):
            return [str(one.__module__).split(".")[0]]
        one = type(one)
    mro = one.__mro__
    standard = {"builtins", "abc", "typing"}
    found = [cls.__module__.split(".")[0] for cls in mro if cls.__module__ not in standard]
    # What a class of our own inherits from diffusers is in the manifest already.
    own = [top for top in found if top not in _RELEASED]
    return own or found[:1]


def _with_imports(tops: Sequence[str]) -> list[str]:
    """Return these top modules and those that they import, however far, of no other package."""
    found = list(tops)
    installed = _distributions(tuple(sys.path))
    for top in found:  # which grows
        for other in sorted(_imported(top) - _RELEASED - set(found)):
            package = set(installed.get(other, ()))
            if _places(other) and (not package or package & set(installed.get(top, ()))):
                found.append(other)
                functions = vars(sys.modules[other]).values() if other in sys.modules else ()
                own = [one for one in functions if getattr(one, "__module__", None) == other]
                _refuse_changed_file(other, own)
    return sorted(found)


def _imported(top: str) -> set[str]:
    """Return the top modules that the sources of a module name in their imports."""
    named: set[str] = set()
    for place in _places(top):
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            try:
                tree = ast.parse(file.read_bytes())
            except (OSError, SyntaxError, ValueError):  # compiled, or never imported
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    named |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    named.add(node.module.split(".")[0])
    return named


def _sources_hash(top: str, objects: Sequence[object]) -> str:
    places = _places(top)
    if places and places[0].is_file():
        return sha256_file(places[0])
    if any(place.is_dir() for place in places):
        return "\n".join(sha256_folder(folder, (".py",)) for folder in places)
    try:
        sources = [inspect.getsource(typing.cast("type", one)) for one in objects]
    except (OSError, TypeError) as error:
        raise UsageError(
            f"the source of '{dotted(objects[0])}' cannot be found, so that a change of it could "
            "not be told from what it was. Put it into a file of its own."
        ) from error
    return sha256_bytes("\n".join(sources).encode())


def paper_of(one: object) -> str:
    """Return the paper that a docstring names first, as "arXiv 2410.02416"; empty if none."""
    found = _PAPER.search(_doc(one))
    return f"arXiv {found[1]}" if found else ""


def summary_of(one: object) -> str:
    """Return the first sentence of a docstring, without addresses; empty if there is none."""
    paragraph = " ".join(_ADDRESS.sub("", _doc(one)).strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s", paragraph)[0].strip()
    return sentence if len(sentence) <= 200 else f"{sentence[:199]}…"


def _doc(one: object) -> str:
    named = one if isinstance(one, type) or inspect.isroutine(one) else type(one)
    return str(vars(named).get("__doc__") or "") if isinstance(named, type) else named.__doc__ or ""
