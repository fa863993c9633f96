"""The methods as run: whose code made the images, and what was counted if nothing is declared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader
from report.synthetic_run import Tables

from autolora_eval.report import write_report
from autolora_eval.report.provenance import MethodAsRun, methods
from autolora_eval.report.run_view import read_evidence

OURS, THEIRS = "LoRA+CFG", "AutoLoRA+CFG"


@pytest.fixture
def with_theirs(make_run: Callable[..., Tables], tmp_path: Path) -> Callable[..., Any]:
    """A function that writes a run in which the second of two methods is somebody else's."""

    def write(counted: float | None, **changes: Any) -> Any:
        tables = make_run(methods=(OURS, THEIRS))
        tables.manifest["cells"][1] |= {"nfe": None, **changes}
        tables.table["nfe"] = tables.table["nfe"].astype("float64")
        tables.table.loc[1, "nfe"] = counted
        return tables.write(tmp_path / "run")

    return write


def theirs(folder: Any) -> MethodAsRun:
    ours, found = methods(read_evidence(folder))
    assert (ours.name, found.name) == (OURS, THEIRS)
    assert ours.code == "", "what is built in is this package's version"
    return found


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            {"class": "a.B", "distribution": "a-package 1.2", "sha256": "0123456789abcdef" * 4},
            "a.B, a-package 1.2, sources SHA-256 0123456789ab",
        ),
        ({"class": "a.B", "sha256": "f" * 64}, "a.B, sources SHA-256 ffffffffffff"),
        ({"class": "diffusers.X", "distribution": "diffusers 0.42.1"}, None),
        ("not a mapping", ""),
    ],
)
def test_whose_code_it_was_is_said_with_its_version_and_hash(with_theirs, code, told) -> None:
    found = theirs(with_theirs(40.0, code=code))
    assert found.code == ("diffusers.X, diffusers 0.42.1" if told is None else told)


def test_what_is_not_declared_is_what_was_counted(with_theirs) -> None:
    (setting,) = theirs(with_theirs(57.0)).settings
    assert setting.endswith("; 57 passes per image")


def test_a_sampler_s_passes_that_nobody_counted_are_no_number(with_theirs) -> None:
    (setting,) = theirs(with_theirs(None, parameters={"sampler": "a.draw", "w": 2})).settings
    assert setting == "w = 2; passes not counted"


def test_a_rule_that_its_author_does_not_state_leaves_no_gap_in_the_report(with_theirs) -> None:
    code = {"class": "odd.<b>Name</b>", "sha256": "f" * 64}
    folder = with_theirs(None, equation="", summary="", code=code)
    assert theirs(folder).equation == []
    write_report(folder)
    page = folder.report_html.read_text(encoding="utf-8")
    assert "Code: odd.&lt;b&gt;Name&lt;/b&gt;, sources SHA-256 ffffffffffff" in page
    assert page.count('<p class="equation">') == 1
    text = "".join(page.extract_text() for page in PdfReader(folder.report_pdf).pages)
    assert "sources SHA-256 ffffffffffff" in " ".join(text.split())
