"""Third-party code: import by dotted path, and a fingerprint of its sources."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from types import CodeType
from typing import Any

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._files import sha256_bytes, sha256_file, sha256_folder

# The manifest records the versions of these, and a released version never changes.
_LIBRARIES = ("autolora_eval", "diffusers", "huggingface_hub", "numpy", "peft", "PIL", "pydantic")
_RELEASED = frozenset((*_LIBRARIES, "torch", "transformers", *sys.stdlib_module_names))
_OWN_FOLDERS = (Path(traceback.__file__).parent, Path(__file__).resolve().parents[1])
_PAPER = re.compile(
    r"(?:arxiv\.org/\w+/|huggingface\.co/papers/|arxiv[: ]\s*)(\d{4}\.\d{4,5})", re.I
)
_URL = re.compile(r"[:(]?\s*<?https?://[^\s)>]+[)>]?")
_ADDED: set[Path] = set()  # benchmark folders that were added to sys.path

# --------------------
# Import.


def load_dotted(path: str, folders: Sequence[Path] = ()) -> object:
    """Import the object at a dotted path.

    Raises:
        UsageError: if there is no such module or name, or the module fails on import.
    """
    if re.search(r"\.py\b", path):
        raise UsageError(
            f"'{path}' names a file. Name its module and class, such as 'my_module.MyGuider'."
        )
    parts = path.replace(":", ".").split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UsageError(f"'{path}' is not a dotted path such as 'my_package.MyGuider'.")
    beside = _module_beside(parts[0], folders)
    _make_importable(parts[0], beside)
    found, names = _import_module(parts, folders)
    for name in names:
        if not hasattr(found, name):
            owner = getattr(found, "__name__", str(found))
            near = did_you_mean(name, _public_names(found))
            raise UsageError(f"'{owner}' has no '{name}'.{near}{_hidden_file(parts[0], beside)}")
        found = getattr(found, name)
    return found


def _module_beside(top: str, folders: Sequence[Path]) -> Path | None:
    """Return the file or folder of a module in one of the folders."""
    candidates = (folder / name for folder in folders for name in (f"{top}.py", top))
    return next((p for p in candidates if p.is_file() or next(p.rglob("*.py"), None)), None)


def _make_importable(top: str, beside: Path | None) -> None:
    """Append the benchmark's folder to sys.path for a module that is not installed.

    Installed modules come first, so a file beside a benchmark cannot replace a library.
    """
    importlib.invalidate_caches()
    if beside is None:
        return
    locations, home = _locations(top), beside.parent.resolve()
    if not locations:
        sys.path.append(str(beside.parent))
        _ADDED.add(home)
    elif locations[0].parent.resolve() in _ADDED - {home}:
        raise UsageError(
            f"the module '{top}' was already imported from '{locations[0]}', and '{beside}' has "
            "the same name. Restart Python, or rename one of the two."
        )


def _hidden_file(top: str, beside: Path | None) -> str:
    if beside is None or beside.resolve() in (path.resolve() for path in _locations(top)):
        return ""
    return f" The installed module '{top}' hides '{beside}'. Rename your file."


def _locations(top: str) -> list[Path]:
    """Return the folders of a package or the file of a module; none if it cannot be found."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module made by hand has no spec
        spec = None
    module = sys.modules.get(top, spec)
    folders = getattr(module, "__path__", getattr(spec, "submodule_search_locations", None))
    file = getattr(module, "__file__", getattr(spec, "origin", None))
    return [Path(path) for path in folders or ([file] if file else [])]


def _import_module(parts: Sequence[str], folders: Sequence[Path]) -> tuple[object, Sequence[str]]:
    """Import the longest prefix of a path that is a module; also return the remaining parts."""
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
    known = {file.stem for folder in folders for file in folder.glob("*.py")}
    known |= set(_distributions())
    near = did_you_mean(missing.split(".")[0], known, or_list=False)
    raise UsageError(
        f"no module '{missing}'.{near} Install its package into this environment (a package that "
        f"you are writing: pip install -e .), or put {parts[0]}.py beside the benchmark file."
    )


def failed_import(name: str, error: BaseException) -> str:
    """Return the message for a module that fails on import: the cause and its line."""
    message = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename]
    line = ""
    if isinstance(error, SyntaxError):
        line = f" ({Path(error.filename or name).name}, line {error.lineno})"
        message = error.msg
    elif len(own) > 1:
        line = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})"
    return f"'{name}' cannot be imported: {type(error).__name__}: {message:.300}{line}."


def error_message(error: BaseException) -> str:
    """Return the message of an error of third-party code on one line."""
    if isinstance(error, SystemExit):
        return f"it ends the program (SystemExit: {error.code})"
    return " ".join(str(error).split())


def third_party_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Return the last line of third-party code in an error's traceback; None without one."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((one for one in reversed(frames) if not _is_of_a_library(one.filename)), None)


def _is_of_a_library(filename: str) -> bool:
    """Return True for files of Python, this package and the libraries that it calls."""
    file = Path(filename)
    for folder, package in pairwise(file.parts):
        if folder in ("site-packages", "dist-packages"):
            return package in _RELEASED
    return filename.startswith("<frozen ") or any(map(file.is_relative_to, _OWN_FOLDERS))


def _public_names(owner: object) -> list[str]:
    """Return the classes and functions of a module, without those that it imports if it can."""
    names = [name for name in dir(owner) if not name.startswith("_")]
    objects = {name: vars(owner).get(name) for name in names}
    exported = getattr(owner, "__all__", ())
    called = [name for name in names if callable(objects[name]) or name in exported]
    module = getattr(owner, "__name__", "")
    own = [name for name in called if getattr(objects[name], "__module__", "") == module]
    return own or called or names


def _distributions() -> Mapping[str, list[str]]:
    """Return the distributions of every importable module."""
    return _distributions_at(tuple(one for one in sys.path if Path(one).resolve() not in _ADDED))


@lru_cache(maxsize=8)
def _distributions_at(path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Return the same for a `sys.path`. Reading a large one takes half a second."""
    return metadata.packages_distributions()


# --------------------
# Fingerprint.


def source_fingerprint(*objects: object) -> dict[str, str]:
    """Return what identifies third-party code, for content hashes and the manifest.

    A released library is identified by its version. Other code is also identified by a hash of
    its sources, since its version does not change while it is being written: all `.py` files of a
    package or the file of a module, and the same of every module that it imports, except other
    installed packages.

    Args:
        objects: classes, with all their base classes, functions, or instances.

    Returns:
        `distribution`: "name version" of each installed package; `sha256` of the sources, unless
        all code is released; `arguments` bound by a `functools.partial`.

    Raises:
        UsageError: if a source cannot be found, or changed after it was imported.
    """
    bound = [arguments for one in objects for arguments in _bound_arguments(one)]
    objects = tuple(part for one in objects for part in unwrap_partial(one))
    tops = sorted({top for one in objects for top in _top_modules(one)})
    installed = _distributions()
    names = sorted({d for top in tops if top != "autolora_eval" for d in installed.get(top, ())})
    fingerprint = {}
    if names:
        fingerprint["distribution"] = ", ".join(
            f"{name} {metadata.version(name)}" for name in names
        )
    if bound:
        plain = json.dumps(bound, ensure_ascii=False, default=qualified_name, skipkeys=True)
        fingerprint["arguments"] = plain
    own = _with_imports([top for top in tops if top not in _RELEASED])
    _refuse_changed(own)
    if own:
        hashes = [f"{top}\0{_sources_hash(top, objects)}" for top in own]
        fingerprint["sha256"] = sha256_bytes("\n".join(hashes).encode())
    return fingerprint


def unwrap_partial(one: object) -> list[object]:
    """Return the functions that a `functools.partial` calls or binds; else the object itself."""
    if not isinstance(one, partial):
        return [one]
    bound = (value for value in (*one.args, *one.keywords.values()) if callable(value))
    return [part for value in (one.func, *bound) for part in unwrap_partial(value)]


def _bound_arguments(one: object) -> list[object]:
    if not isinstance(one, partial):
        return []
    bound = [*one.args, *(part for item in sorted(one.keywords.items()) for part in item)]
    return [*_bound_arguments(one.func), *([bound] if bound else [])]


def qualified_name(one: object) -> str:
    """Return the dotted path of a class or function, or of the class of another object.

    For a `functools.partial` it is that of the function.
    """
    if isinstance(one, partial):
        return qualified_name(one.func)
    named = one if hasattr(one, "__qualname__") else type(one)
    return f"{named.__module__}.{getattr(named, '__qualname__', '')}"


def _top_modules(one: object) -> Iterable[str]:
    if inspect.isroutine(one):
        return [str(one.__module__).split(".")[0]]
    mro = (one if isinstance(one, type) else type(one)).__mro__
    standard = {"builtins", "abc", "typing"}
    found = [cls.__module__.split(".")[0] for cls in mro if cls.__module__ not in standard]
    # A released base class is in the manifest already.
    return [top for top in found if top not in _RELEASED] or found[:1]


def _with_imports(tops: Sequence[str]) -> list[str]:
    """Return these modules and all that they import, directly or not, of no other package."""
    found = list(tops)
    installed = _distributions()
    for top in found:  # the list grows during the loop
        for other in sorted(_imported_modules(top) - _RELEASED - set(found)):
            packages = set(installed.get(other, ()))
            if _locations(other) and (not packages or packages & set(installed.get(top, ()))):
                found.append(other)
    return sorted(found)


def _imported_modules(top: str) -> set[str]:
    """Return the top modules in the import statements of a module's sources."""
    files = (file for p in _locations(top) for file in (p.rglob("*.py") if p.is_dir() else [p]))
    names: set[str] = set()
    for file in files:
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):  # compiled, or never imported
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.split(".")[0])
    return names


def _refuse_changed(tops: Sequence[str]) -> None:
    """Refuse modules whose file changed after the import, as happens in notebooks.

    The hash would be that of the new code, but the images would come from the old.
    """
    for name, module in list(sys.modules.items()):
        file = str(getattr(module, "__file__", None) or "")
        if name.split(".")[0] in tops and file.endswith(".py") and Path(file).is_file():
            in_file = set(_code_objects(_compiled(file)))
            members = (
                member
                for one in vars(module).values()
                for member in (vars(one).values() if isinstance(one, type) else [one])
            )
            functions = [inspect.unwrap(member) for member in members if inspect.isfunction(member)]
            codes = [f.__code__ for f in functions if f.__code__.co_filename == file]
            if not in_file.issuperset(codes):
                raise UsageError(
                    f"{Path(file).name} changed after it was imported. Restart Python (or the "
                    "notebook kernel)."
                )


def _compiled(file: str) -> CodeType:
    try:
        return compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)
    except SyntaxError:  # half edited
        return compile("", file, "exec")


def _code_objects(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_objects(constant)


def _sources_hash(top: str, objects: Sequence[Any]) -> str:
    locations = _locations(top)
    if locations and locations[0].is_file():
        return sha256_file(locations[0])
    if any(path.is_dir() for path in locations):
        return "\n".join(sha256_folder(folder, (".py",)) for folder in locations)
    try:
        sources = [inspect.getsource(one) for one in objects]
    except (OSError, TypeError) as error:
        raise UsageError(
            f"cannot find the source of '{qualified_name(objects[0])}', so changes to it would go "
            "unnoticed. Move it into a .py file."
        ) from error
    return sha256_bytes("\n".join(sources).encode())


# --------------------
# Docstrings.


def cited_paper(one: object) -> str:
    """Return the first paper in a docstring, as "arXiv 2410.02416"; empty if there is none."""
    found = _PAPER.search(_doc(one))
    return f"arXiv {found[1]}" if found else ""


def doc_summary(one: object) -> str:
    """Return the first sentence of a docstring, without URLs; empty if there is none."""
    paragraph = " ".join(_URL.sub("", _doc(one)).strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s", paragraph)[0].strip()
    return sentence if len(sentence) <= 200 else f"{sentence[:199]}…"


def _doc(one: object) -> str:
    """Return the docstring of a class itself (not of a base class) or of a function."""
    owner = one if isinstance(one, type) or inspect.isroutine(one) else type(one)
    return owner.__dict__.get("__doc__") or "" if isinstance(owner, type) else owner.__doc__ or ""
