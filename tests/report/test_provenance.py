"""The methods as run: their code, settings, NFE, and equations cut into signs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from report.synthetic_run import Json, make_tables

from autolora_eval.report.provenance import MethodAsRun, atoms, methods
from autolora_eval.report.run_view import read_run_view

OURS, THEIRS = "LoRA+CFG", "AutoLoRA+CFG"
ThirdParty = Callable[..., MethodAsRun]


@pytest.fixture
def third_party(tmp_path: Path) -> ThirdParty:
    """A function that returns the second of two methods, as third-party code."""

    def read(
        counted: float | None, parameters: Json | None = None, **changes: object
    ) -> MethodAsRun:
        tables = make_tables(methods=(OURS, THEIRS))
        if parameters is not None:
            tables.manifest["cells"][1]["parameters"] = parameters
        tables.manifest["cells"][1]["nfe"] = None
        tables.manifest["methods"][THEIRS] |= changes
        tables.table["nfe"] = tables.table["nfe"].astype("float64")
        tables.table.loc[1, "nfe"] = counted
        ours, theirs = methods(read_run_view(tables.write(tmp_path / "run")))
        assert (ours.name, theirs.name) == (OURS, THEIRS)
        assert ours.code == "", "what is built in is this package's version"
        return theirs

    return read


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            {"class": "a.B", "distribution": "a-package 1.2", "sha256": "0123456789abcdef" * 4},
            "a.B, a-package 1.2, sources SHA-256 0123456789ab",
        ),
        ({"class": "a.B", "sha256": "f" * 64}, "a.B, sources SHA-256 ffffffffffff"),
        ({"class": "a.X", "distribution": "diffusers 0.42.1"}, "a.X, diffusers 0.42.1"),
    ],
)
def test_third_party_code_is_shown_with_its_version_and_hash(third_party, code, expected):
    found = third_party(40.0, code=code, equation="", summary="")
    assert (found.code, found.equation) == (expected, [])


@pytest.mark.parametrize(
    ("counted", "parameters", "expected"),
    [
        (57.0, {"sampler": "a.draw", "w": 2}, "w = 2; NFE per image: 57"),
        (33.4, {"sampler": "a.draw"}, "no parameters; NFE per image: 33.4"),
        (None, {"sampler": "a.draw", "w": 2}, "w = 2; NFE not recorded"),
        (40.0, {"images": "theirs", "parameter_nfe": 40}, "no parameters; NFE per image: 40"),
    ],
)
def test_nfe_is_the_count_if_none_is_declared(third_party, counted, parameters, expected):
    assert third_party(counted, parameters).settings == [expected]


def shown(equation: str) -> list[tuple[str, str, str]]:
    """Return the signs of an equation, each with what is lowered and raised."""
    return [
        (atom.text, "".join(a.text for a in atom.sub), "".join(a.text for a in atom.sup))
        for atom in atoms(equation)
    ]


def test_an_equation_is_cut_into_signs_with_their_scripts():
    assert shown("ε_LoRA^{w2}(x) − 1.5 a") == [
        *(("ε", "LoRA", "w2"), ("(", "", ""), ("x", "", ""), (")", "", "")),
        *(("−", "", ""), ("1.5", "", ""), ("a", "", "")),
    ]
    kinds = [a.kind for a in atoms("γ min 2 + ∅")]
    assert kinds == ["letter", "words", "number", "operator", "letter"]
    assert shown("in each level k") == [("in each level ", "", ""), ("k", "", "")]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        *(("", ""), ("_", "_"), ("^^^", "^^^"), ("a_", "a_"), ("a_{", "a_{"), ("{}", "{}")),
        *(("a__b", "a_b"), ("a_{}", "a"), ("\n\x85", ""), ("a^b^c_d", "ab^cd")),
    ],
)
def test_a_text_that_is_not_an_equation_is_shown_too(text, kept):
    assert "".join(f"{sign}{low}{high}" for sign, low, high in shown(text)) == kept
