"""Folders that packages can be put into."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that packages can be put into."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(path)
    return path


@pytest.fixture
def installed(example_package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example package, installed for this test."""
    monkeypatch.syspath_prepend(example_package)
    return example_package
