"""The documentation is true: the code of every page runs, and every YAML fragment is valid."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from docs_page import blocks, run_line, run_page
from PIL import Image

pytestmark = pytest.mark.e2e

DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
RUN_ELSEWHERE = ("quick_start.md", "how_to/method.md")
SCHEMA = json.loads((ROOT / "benchmarks" / "benchmark.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reader's folder after the quick start: `mine.yaml` and the run `reports/mine`."""
    folder = tmp_path_factory.mktemp("reader")
    with chdir(folder):
        assert run_page(DOCS / "quick_start.md") == ["plan", "run", "explain", "explain"]
        yield folder


@pytest.fixture
def reader(quick_start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which is the current one."""
    folder = tmp_path / "reader"
    shutil.copytree(quick_start, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN_ELSEWHERE])
def test_the_code_of_a_page_runs(page: str, request: pytest.FixtureRequest) -> None:
    if any(b.title or b.language in ("console", "python") for b in blocks(DOCS / page)):
        request.getfixturevalue("reader")
        run_page(DOCS / page)


def test_the_method_of_the_how_to_is_in_the_table(reader: Path) -> None:
    run_page(DOCS / "how_to" / "method.md")
    table = pd.read_parquet(reader / "reports" / "mine" / "table.parquet")
    assert "Norm-keeping CFG" in table["method"].tolist()
    assert table["diversity"].notna().all()


def test_the_sampler_of_the_how_to_differs_from_cfg_only_by_its_noise(reader: Path) -> None:
    (code,) = [b for b in blocks(DOCS / "how_to" / "sampler.md") if b.title == "mixed_noise.py"]
    Path(code.title).write_text(code.text, encoding="utf-8")
    mine = yaml.safe_load(Path("mine.yaml").read_text(encoding="utf-8"))
    del mine["judge"], mine["methods"]["AutoLoRA+CFG"]
    mine["methods"]["Same noise"] = {"sampler": "mixed_noise.mixed_noise", "strength": 0.0}
    mine["models"]["Miniature"]["negative_prompt"] = "a circle"
    Path("mine.yaml").write_text(yaml.safe_dump(mine), encoding="utf-8")
    run_line("autolora-eval run mine.yaml")
    images = reader / "reports" / "mine" / "images"
    for file in (images / "Miniature--LoRA+CFG").rglob("*.png"):
        cfg, own = (
            np.asarray(Image.open(images / cell / file.parent.name / file.name), dtype=int)
            for cell in ("Miniature--LoRA+CFG", "Miniature--Same-noise")
        )
        assert np.abs(cfg - own).max() <= 2, "passes of another size round differently"


@pytest.mark.parametrize("page", PAGES)
def test_yaml_fragments_of_benchmarks_are_valid(page: str) -> None:
    schema = SCHEMA | {"required": []}
    for block in blocks(DOCS / page):
        if block.language == "yaml":
            data = yaml.safe_load(block.text)
            if isinstance(data, dict) and set(data) <= set(SCHEMA["properties"]):
                jsonschema.validate(data, schema)
