"""The methods as run: which code made the images, and the NFE counted if none is declared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader
from report.synthetic_run import Tables

from autolora_eval.report import write_report
from autolora_eval.report.provenance import MethodAsRun, methods
from autolora_eval.report.run_view import read_run_view

OURS, THEIRS = "LoRA+CFG", "AutoLoRA+CFG"


@pytest.fixture
def with_third_party(make_run: Callable[..., Tables], tmp_path: Path) -> Callable[..., Any]:
    """A function that writes a run in which the second of two methods is third-party code."""

    def write(counted: float | None, parameters: object = None, **changes: Any) -> Any:
        tables = make_run(methods=(OURS, THEIRS))
        if parameters is not None:
            tables.manifest["cells"][1]["parameters"] = parameters
        tables.manifest["cells"][1]["nfe"] = None
        tables.manifest["methods"][THEIRS] |= changes
        tables.table["nfe"] = tables.table["nfe"].astype("float64")
        tables.table.loc[1, "nfe"] = counted
        return tables.write(tmp_path / "run")

    return write


def third_party(folder: Any) -> MethodAsRun:
    ours, found = methods(read_run_view(folder))
    assert (ours.name, found.name) == (OURS, THEIRS)
    assert ours.code == "", "what is built in is this package's version"
    return found


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            {"class": "a.B", "distribution": "a-package 1.2", "sha256": "0123456789abcdef" * 4},
            "a.B, a-package 1.2, sources SHA-256 0123456789ab",
        ),
        ({"class": "a.B", "sha256": "f" * 64}, "a.B, sources SHA-256 ffffffffffff"),
        ({"class": "diffusers.X", "distribution": "diffusers 0.42.1"}, None),
    ],
)
def test_third_party_code_is_shown_with_its_version_and_hash(
    with_third_party, code, expected
) -> None:
    found = third_party(with_third_party(40.0, code=code))
    assert found.code == ("diffusers.X, diffusers 0.42.1" if expected is None else expected)


def test_nfe_is_the_count_if_none_is_declared(with_third_party) -> None:
    (setting,) = third_party(with_third_party(57.0)).settings
    assert setting.endswith("; NFE per image: 57")


def test_the_nfe_of_a_sampler_may_be_unknown(with_third_party) -> None:
    (setting,) = third_party(with_third_party(None, {"sampler": "a.draw", "w": 2})).settings
    assert setting == "w = 2; NFE not recorded"


def test_a_method_without_an_equation_leaves_no_gap_in_the_report(with_third_party) -> None:
    code = {"class": "odd.<b>Name</b>", "sha256": "f" * 64}
    folder = with_third_party(None, equation="", summary="", code=code)
    assert third_party(folder).equation == []
    write_report(folder)
    page = folder.report_html.read_text(encoding="utf-8")
    assert "Code: odd.&lt;b&gt;Name&lt;/b&gt;, sources SHA-256 ffffffffffff" in page
    assert page.count('<p class="equation">') == 1
    text = "".join(page.extract_text() for page in PdfReader(folder.report_pdf).pages)
    assert "sources SHA-256 ffffffffffff" in " ".join(text.split())
