"""Packages of other people, for tests: one really built and installed, others metadata alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autolora_eval._errors import UsageError
from autolora_eval.guidance.method_registry import resolve_method

EXAMPLE = Path(__file__).parent / "example_plugin"

CLASS = """
from diffusers.guiders import ClassifierFreeGuidance

class {name}(ClassifierFreeGuidance):
    '''{doc}'''
"""


def install_example(folder: Path) -> Path:
    """Build `example_plugin` and install it into a folder of its own, without any network."""
    source, target = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    done = subprocess.run(
        [*pip, *options, str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


def write_package(folder: Path, name: str, entry_points: str, **modules: str) -> None:
    """Write what an installed package leaves in a folder: its modules and its metadata."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    (info / "RECORD").write_text("".join(f"{module}.py,,\n" for module in modules))
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)


def refusal(kind: Any, given: str, folders: tuple[Path, ...] = ()) -> str:
    """Return why a method is refused."""
    with pytest.raises(UsageError) as caught:
        resolve_method(kind, given, folders)
    return str(caught.value)
