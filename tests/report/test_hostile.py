"""Text and files that a report must survive: markup, control characters, length, broken images."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from report.readers import page, pdf_text, reported, svg_texts
from report.synthetic_run import Tables

from autolora_eval._text import format_fixed, sanitize, truncate
from autolora_eval.report.content import own_fonts_suffice
from autolora_eval.report.provenance import atoms

pytestmark = pytest.mark.e2e

Maker = Callable[..., Tables]

MARKUP = [
    '#import "data.json": *',
    "#panic() *bold* _it_ @ref <label> $x^2$ [content] // comment",
    "<script>alert('x')</script>",
    "</style></svg><img src=x onerror=alert(1)>",
    '"> onload="alert(1)',
    "$\\{ \\frac{1}{0} $ ${HOME}",
    "{{ 7 * 7 }} {% include 'x' %}",
    "]]> & &amp; &#x3c;",
    "`raw` ```typ #1/0```",
]


def squeezed(text: str) -> str:
    """Return text without blanks and hyphens: lines break where they like."""
    return "".join(text.split()).replace("-", "")


def test_markup_of_any_language_is_shown_as_it_is_written(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run(models=(MARKUP[0],), methods=("LoRA", *MARKUP), prompts=tuple(MARKUP))
    tables.manifest["benchmark"]["description"] = " ".join(MARKUP)
    tables.manifest["rubric"]["scores"]["pc"]["display_name"] = MARKUP[1]
    # A folder's name is a slug in a real run.
    tables.scores["file"] = [f"images/{n}.png" for n in range(len(tables.scores))]
    folder = reported(tables, tmp_path / "run")
    found, pdf, svg = page(folder), squeezed(pdf_text(folder)), " ".join(svg_texts(folder))
    assert found.open == []
    assert {tag for tag, _ in found.tags} & {"script"} == set()
    assert [a for _, a in found.tags if any(key.startswith("on") for key in a)] == []
    for hostile in MARKUP:
        assert found.text.count(hostile) >= 2, "description and method"
        assert pdf.count(squeezed(hostile)) >= 2
        assert hostile[:31] in svg


def test_control_characters_and_text_reversal_are_replaced(tmp_path: Path, make_run: Maker) -> None:
    prompt = "a\x00b\x07c\x1b[31md\u202ee\ud800f\u2028g"
    tables = make_run(methods=("LoRA", "AutoLoRA"))
    tables.manifest["benchmark"]["description"] = prompt
    folder = reported(tables, tmp_path / "run")
    source = folder.report_html.read_text(encoding="utf-8")
    assert "a\ufffdb\ufffdc\ufffd[31md\ufffde\ufffdf g" in source
    assert "a\ufffdb\ufffdc\ufffd[31md" in pdf_text(folder)


def test_a_very_long_prompt_is_clipped_and_says_so(tmp_path: Path, make_run: Maker) -> None:
    unit, prompt = "x", "x" * 10_000  # no blank to break a line at
    tables = make_run(methods=("LoRA", "AutoLoRA"), prompts=(prompt,), n_seeds=1)
    folder = reported(tables, tmp_path / "run")
    for text in (pdf_text(folder), page(folder).text):
        assert "[the first 300 of" in text
        # 300 characters: the word 60 times, or the letter 300 times.
        whole = unit.strip() * (300 // len(unit))
        assert squeezed(text).count(whole) == 1
        assert squeezed(text).count(whole + unit.strip()) == 0


def test_long_names_and_names_of_figures_are_drawn_as_they_are(
    tmp_path: Path, make_run: Maker
) -> None:
    long, dollars = "M" * 80, r"$x^2$ \alpha"
    tables = make_run(models=("SDXL", "S" * 80), methods=("LoRA", long, "_mine", dollars))
    tables.manifest["rubric"]["scores"]["pc"]["display_name"] = "worth\x00 in $y^2$"
    tables.scores["file"] = [f"images/{n}.png" for n in range(len(tables.scores))]
    folder = reported(tables, tmp_path / "run")
    assert long in squeezed(pdf_text(folder))
    assert long in page(folder).text
    # A legend hides names with an underscore, and dollar signs are mathematics, by default.
    assert {f"{'M' * 31}…", "_mine", dollars, "worth  in $y^2$ ↑"} <= set(svg_texts(folder))


def test_system_fonts_are_asked_only_for_what_the_own_ones_lack() -> None:
    assert own_fonts_suffice("plain, ε^{w1} + γ (ε_LoRA − ε) × ↑ ↓ ∅ …\n")
    assert not own_fonts_suffice("plain 狐狸")


def test_broken_and_missing_images_say_why_there_is_none(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"))
    folder = tables.write(tmp_path / "run")
    files = list(tables.scores["file"])
    (folder.path / files[0]).write_bytes(b"\x89PNG no image at all")
    (folder.path / files[1]).unlink()
    whole = (folder.path / files[2]).read_bytes()
    (folder.path / files[2]).write_bytes(whole[: len(whole) // 2])
    from autolora_eval.report import write_report

    write_report(folder)
    found = page(folder)
    # By seed, by prompt, and the extremes, in which each of the lost stands as often as here.
    assert len(found.all("img")) == (2 * 2 * 3 - 3) + (2 * 2 - 1) + (2 * 2 * 3 - 3)
    assert "seed 0: corrupt image" in found.text
    assert "seed 1: missing image" in found.text
    assert "seed 2: corrupt image" in found.text


def test_large_images_do_not_make_a_large_report(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"), prompts=("one",), n_seeds=2)
    tables.image_size = 1024
    folder = reported(tables, tmp_path / "run")
    assert folder.report_html.stat().st_size < 400_000
    assert folder.report_pdf.stat().st_size < 400_000


def test_text_helpers() -> None:
    assert sanitize(" a\n\tb  c ") == "a b c"
    assert truncate("abcdef", 3) == "abc … [the first 3 of 6 characters]"
    assert truncate("abc", 3) == "abc"
    assert format_fixed(-0.0004) == "0.000"
    assert format_fixed(-0.012, signed=True) == "−0.012"
    assert format_fixed(float("nan")) == "–"
    assert format_fixed(None) == "–"


def shown(equation: str) -> list[tuple[str, str, str]]:
    """Return the signs of an equation, each with what is lowered and raised."""
    return [
        (atom.text, "".join(a.text for a in atom.sub), "".join(a.text for a in atom.sup))
        for atom in atoms(equation)
    ]


def test_an_equation_is_cut_into_signs_with_their_scripts() -> None:
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
def test_a_text_that_is_no_equation_is_shown_all_the_same(text: str, kept: str) -> None:
    assert "".join(f"{sign}{low}{high}" for sign, low, high in shown(text)) == kept


def test_the_report_loads_no_model_library_and_no_pyplot(tmp_path: Path, make_run: Maker) -> None:
    folder = make_run(methods=("LoRA", "AutoLoRA"), n_seeds=2).write(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path\n"
        "from autolora_eval.report import write_report\n"
        "from autolora_eval.runs.folder import RunFolder\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"write_report(RunFolder(Path({str(folder.path)!r})))\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'matplotlib.pyplot'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
