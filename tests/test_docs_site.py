"""The documentation site builds strictly, loads nothing from elsewhere, and is up to date."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

pytestmark = pytest.mark.e2e

_OUTSIDE = re.compile(r"^(https?:)?//", re.IGNORECASE)
_CSS_URL = re.compile(r"(?:url\(\s*|@import\s+)['\"]?((?:https?:)?//[^)'\"]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


class _Loads(HTMLParser):
    """Collects the addresses that a browser loads by itself when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") != "canonical":
            self.found.append(values.get("href") or "")
        if tag != "a":
            self.found += [
                values[name] or "" for name in ("src", "data", "poster") if name in values
            ]


def test_no_page_or_stylesheet_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        parser = _Loads()
        parser.feed(page.read_text(encoding="utf-8"))
        assert [address for address in parser.found if _OUTSIDE.match(address)] == [], page
    for sheet in site.rglob("*.css"):
        assert _CSS_URL.findall(sheet.read_text(encoding="utf-8")) == [], sheet


def test_search_works_without_a_server(site: Path) -> None:
    assert (site / "search" / "search_index.js").is_file()
    assert "iframe-worker-shim.js" in (site / "index.html").read_text(encoding="utf-8")


def docs_module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["write_command_line", "write_benchmark_file"])
def test_a_written_page_is_current(name: str) -> None:
    module = docs_module(name)
    written = module.PAGE.read_text(encoding="utf-8")
    assert written == module.page(), f"run: python docs/{name}.py"


def test_the_share_of_a_gain_is_a_ratio_of_sums_with_its_interval() -> None:
    module, draw = docs_module("trading_cost_table"), np.random.default_rng(0)
    noise, gain = draw.normal(0.0, 1.0, 2_000), draw.normal(2.0, 1.0, 2_000)
    assert module.share(noise, noise, noise + gain) == (0.0, 0.0, 0.0)
    assert module.share(noise + gain, noise, noise + gain) == pytest.approx((1.0, 1.0, 1.0))
    off = draw.normal(0.0, 0.5, 2_000)
    value, low, high = module.share(noise + 0.9 * gain + off, noise, noise + gain)
    assert low < 0.9 < high
    # By the delta method the error is that of the mean of kept - share * gain, over the gain.
    wanted = 1.96 * (off + (0.9 - value) * gain).std() / gain.mean() / 2_000**0.5
    assert (high - low) / 2 == pytest.approx(wanted, rel=0.01)
