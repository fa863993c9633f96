"""The import direction, the size of files, and the names of modules."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / "autolora_eval"
# Low to high: a package imports only packages to its left, in functions and for types too.
LAYERS = (
    *("sources", "runs", "plugins", "guidance", "scoring", "config", "generation"),
    *("analysis", "report", "pipeline", "top"),
)
TOP = ("_display", "_options", "cli", "__main__", "__init__")
# `analysis` and `report` read the run folder, never the benchmark or what made the images.
FORBIDDEN = {"analysis": {"config", "generation"}, "report": {"config", "generation"}}
MAX_LINES = 400


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    """The package of a module below `autolora_eval`; helpers are those directly below it."""
    first = module.split(".")[0]
    if first in LAYERS or first == "guider_checks":
        return first
    return "top" if first in TOP else "helper"


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of `autolora_eval` that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = str(node.module)
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("autolora_eval."):
                yield name.removeprefix("autolora_eval.")


def is_allowed(importer: str, imported: str) -> bool:
    if importer == imported or imported == "helper":
        return True
    if importer == "guider_checks":
        return imported in ("plugins", "guidance")
    if imported == "guider_checks" or importer == "helper":
        return False
    return LAYERS.index(imported) < LAYERS.index(importer) and imported not in FORBIDDEN.get(
        importer, ()
    )


def violations() -> set[str]:
    found = set()
    for path in files():
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module == "__init__":
            continue  # it offers names of every package
        for name in imports(path):
            allowed = is_allowed(room(module), room(name))
            if not allowed and not (module == "cli" and room(name) == "guider_checks"):
                found.add(f"{module} → {room(name)}")
    return found


def test_packages_import_only_lower_ones() -> None:
    assert violations() == set()


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    modules = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in files()}
    graph = {
        module: {name for name in (_module_of(n, modules) for n in imports(path)) if name}
        for module, path in modules.items()
        if module != "__init__"
    }
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != 1, " → ".join((*path, module))
        if module not in state:
            state[module] = 1
            for other in sorted(graph.get(module, ())):
                if other != module:
                    visit(other, (*path, module))
            state[module] = 2

    for module in graph:
        visit(module, ())


def _module_of(name: str, modules: dict[str, Path]) -> str:
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def test_no_two_files_have_the_same_name() -> None:
    names = Counter(path.name for path in files() if path.name not in ("__init__.py",))
    assert {name for name, count in names.items() if count > 1} == set()


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in files()}
    long = {name for name, length in lengths.items() if length > MAX_LINES}
    assert long == set()
