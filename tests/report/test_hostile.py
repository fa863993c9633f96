"""Text and files that a report must survive: markup, control characters, length, large images."""

import pytest
from report.hostile_run import LONG_NAME, MARKUP, METHODS
from report.readers import in_two, page, pdf_text, svg_texts, write_undrawn
from report.synthetic_run import one_prompt

from autolora_eval._text import format_fixed, sanitize, truncate
from autolora_eval.report.content import own_fonts_suffice


def squeezed(text: str) -> str:
    """Return text without blanks and hyphens: lines break where they like."""
    return "".join(text.split()).replace("-", "")


@pytest.mark.e2e
def test_markup_of_any_language_is_shown_as_it_is_written(hostile):
    found, pdf, svg = page(hostile), squeezed(pdf_text(hostile)), svg_texts(hostile)
    assert found.open == []
    assert [p for p in found.all("p") if p.get("class") == "equation"] == []  # none is declared
    assert {tag for tag, _ in found.tags} & {"script"} == set()
    assert [a for _, a in found.tags if any(key.startswith("on") for key in a)] == []
    # All are in the description; some name a method, a unit, a judge, or the reason of a gap.
    for text in (*MARKUP, *METHODS, "<img src=x onerror=y>.csv", "odd.<b>Name</b>, sources SHA"):
        assert text in found.text
        assert squeezed(text) in pdf
    for n in (0, 1, 6, 7, 8):
        assert found.text.count(MARKUP[n]) >= 2, MARKUP[n]
    # A legend hides names with an underscore, and dollar signs are mathematics, by default.
    cut = {f"{name[:20]}…{name[-19:]}" for name in (LONG_NAME, MARKUP[1])}
    names = cut | {METHODS[3], "_mine"}
    assert names | {"worth  in $y^2$ ↑"} <= set(svg)


@pytest.mark.e2e
def test_control_characters_are_replaced_and_long_texts_are_clipped(hostile):
    assert "a\ufffdb\ufffdc\ufffd[31md\ufffde\ufffdf g" in "".join(in_two(hostile))
    assert "a\ufffdb\ufffdc\ufffd[31md" in pdf_text(hostile)
    for text in (pdf_text(hostile), page(hostile).text):
        assert "[the first 300 of 10,000 characters]" in text
        assert "x" * 300 in squeezed(text)
        assert "x" * 301 not in squeezed(text)


def test_system_fonts_are_asked_only_for_what_the_own_ones_lack():
    assert own_fonts_suffice("plain, ε^{w1} + γ (ε_LoRA − ε) × ↑ ↓ ∅ …\n")
    assert not own_fonts_suffice("plain 狐狸")


@pytest.mark.e2e
def test_large_images_do_not_make_a_large_report(tmp_path):
    tables = one_prompt(n_seeds=2)
    tables.image_size = 1024
    folder = write_undrawn(tables.write(tmp_path / "run"))
    assert folder.report_html.stat().st_size < 300_000
    assert folder.report_pdf.stat().st_size < 300_000


def test_text_helpers():
    assert sanitize(" a\n\tb  c ") == "a b c"
    assert truncate("abcdef", 3) == "abc … [the first 3 of 6 characters]"
    assert truncate("abc", 3) == "abc"
    assert format_fixed(-0.0004) == "0.000"
    assert format_fixed(-0.012, signed=True) == "−0.012"
    assert format_fixed(float("nan")) == format_fixed(None) == "–"
