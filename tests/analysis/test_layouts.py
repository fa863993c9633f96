"""The paper's two layouts: what is bold, what stands beside it, and that names stay names."""

import re
import shutil
import subprocess
from typing import Any

import pytest

from autolora_eval.analysis.metrics import DIVERSITY, Metric, metrics_of
from autolora_eval.analysis.table_layout import (
    Layout,
    Results,
    by_method,
    by_point,
    choose_layout,
    latex,
    markdown,
)
from autolora_eval.scoring.rubric import Score

PC, ERRORS = metrics_of(
    {
        "pc": Score(key="PC", display_name="Prompt correspondence"),
        "er": Score(key="ER", display_name="Errors", higher_is_better=False),
    }
)[1:3]
HOSTILE = ["a|b", r"a\|b", "<img src=x>", "*x*", "_x_", "`x`", "[x](http://y)", "plain-1.5+x"]
HOSTILE_TEX = ["a&b", "50%", "$x$", "#1", "a_b", "{x}", "~", "^", r"\input{x}", "[2pt]", "*"]


def row(method: str, model: str = "A", point: str = "", **values: float) -> dict[str, Any]:
    return {
        "cell": f"{model}--{method}{point}",
        "model": model,
        "method": method,
        "n_images": 1000,
        "n_missing": 0,
        "n_unscored": 0,
        "nfe": 40,
        **values,
    }


def one_model(*rows: dict[str, Any], metrics: tuple[Metric, ...] = (DIVERSITY, PC)) -> Results:
    reasons = {("A--c", "pc"): "no_json", ("A--c", "diversity"): "has 1 image"}
    return Results(rows, metrics, {}, {row["cell"]: {} for row in rows}, reasons)


def swept(
    values: dict[tuple[str, str], dict[str, float]], reasons: dict[tuple[str, str], str]
) -> Results:
    """Results of a sweep over two LoRA scales; a method at "" does not take it."""
    rows, points = [], {}
    for (method, scale), numbers in values.items():
        rows.append(row(method, point=scale, **numbers))
        points[rows[-1]["cell"]] = {"lora_scale": scale} if scale else {}
    return Results(rows, (DIVERSITY,), {"lora_scale": ["0.4", "1"]}, points, reasons)


def table(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]


def test_the_best_of_each_model_is_bold_with_ties_and_direction():
    first = one_model(
        row("a", diversity=0.2, er=1.0, pc=3.0),
        row("b", diversity=0.1, er=0.5, pc=3.0001),  # the same as it is printed
        row("c", diversity=float("nan"), er=2.0, pc=float("nan")),
        row("d", "B", diversity=0.9, er=0.1, pc=1.0),  # nothing to be better than
        metrics=(DIVERSITY, ERRORS, PC),
    )
    found = table(markdown(by_method(first)))
    assert found[0][:5] == ["Model", "Method", "Div ↑", "ER ↓", "PC ↑"]
    assert [line[2:5] for line in found[2:]] == [
        ["**0.200**", "1.000", "**3.000**"],
        ["0.100", "**0.500**", "**3.000**"],
        ["–", "2.000", "–"],
        ["0.900", "0.100", "1.000"],
    ]
    assert latex(by_method(first)).count(r"\textbf") == 4


def test_a_dash_has_its_reason_below():
    nothing = {"diversity": float("nan"), "pc": float("nan")}
    results = one_model(row("a", diversity=0.2, pc=1.0), row("c", **nothing), row("e", **nothing))
    assert by_method(results).notes == (
        "– no value (has 1 image): A × c: Div.",
        "– no value (no_json): A × c: PC.",
        "– no value (reason not recorded): A × e: Div, PC.",
    )
    assert markdown(by_method(results)).endswith("(reason not recorded): A × e: Div, PC.\n")
    assert r"no value (no\_json): A $\times$ c: PC." in latex(by_method(results))


def test_intervals_are_shown():
    within = {"diversity_low": 0.1, "diversity_high": 0.3}
    results = one_model(row("a", diversity=0.2, **within), metrics=(DIVERSITY,))
    layout = by_method(results)
    assert "| 0.200 [0.100, 0.300] |" in markdown(layout)
    lines = latex(layout).splitlines()
    assert lines[6] == r"A & a & 0.200 & 40 & 1000 \\"
    assert lines[7] == r" &  & {\scriptsize [0.100, 0.300]} &  &  \\"


def test_published_values_and_the_difference_are_below_ours():
    nan = float("nan")
    results = one_model(
        row("a", diversity=0.15, pc=4.0, diversity_published=0.1701, pc_published=nan),
        row("c", diversity=nan, pc=3.0, diversity_published=0.2, pc_published=2.5),
        row("e", diversity=0.1, pc=3.0, diversity_published=nan, pc_published=nan),
    )
    found = [line[:4] for line in table(markdown(by_method(results)))[2:]]
    assert found == [
        ["A", "a", "**0.150**", "**4.000**"],
        ["", "published", "0.170", "–"],
        ["", "difference", "−0.020", "–"],
        ["A", "c", "–", "3.000"],
        ["", "published", "0.200", "2.500"],
        ["", "difference", "–", "+0.500"],
        ["A", "e", "0.100", "3.000"],
    ]
    assert r" & difference & $-$0.020 & -- &  &  \\" in latex(by_method(results))


def test_by_point_has_points_down_and_methods_across():
    results = swept(
        {
            ("base", ""): {"diversity": 0.3},
            ("x", "0.4"): {"diversity": 0.2, "diversity_published": 0.25},
            ("x", "1"): {"diversity": 0.4, "n_unscored": 3},
        },
        {},
    )
    assert choose_layout(results) == by_point(results)
    text = markdown(by_point(results))
    assert text.startswith("### Div ↑\n\n| Model | LoRA scale | base | x |\n| --- |")
    assert table(text)[2:6] == [
        ["A", "0.4", "**0.300**", "0.200"],
        ["", "published", "–", "0.250"],
        ["", "difference", "–", "−0.050"],
        ["A", "1", "0.300", "**0.400**"],
    ]
    assert "| A | 1 | 1000 | 1000, 3 unscored |" in text
    assert "does not take a swept parameter are repeated" in text
    assert r"& & \multicolumn{2}{c}{Div $\uparrow$} \\" in latex(by_point(results))


@pytest.mark.parametrize("make", [by_method, by_point])
def test_published_nfe_is_below_ours(make):
    results = swept({("x", "0.4"): {"nfe_published": 50.0}, ("x", "1"): {}}, {})
    found = [line[4 if make is by_method else 2] for line in table(markdown(make(results)))]
    at = found.index("40")
    assert found[at : at + 3] == ["40", "50", "−10"]


def test_a_mean_of_passes_has_a_decimal():
    results = one_model(row("a", diversity=1.0) | {"nfe": 33.4, "nfe_published": 33.0})
    assert [line[4] for line in table(markdown(by_method(results)))[2:]] == ["33.4", "33.0", "+0.4"]


def test_one_point_is_shown_by_method():
    results = Results([row("a", diversity=1.0)], (DIVERSITY,), {"s": ["1"]}, {"A--a": {}}, {})
    assert choose_layout(results) == by_method(results)
    assert table(markdown(choose_layout(results)))[2][:4] == ["A", "a", "–", "1.000"]


def named(names: list[str]) -> list[Layout]:
    """Both layouts of methods of these names."""
    rows = [row(name, diversity=0.1, diversity_published=0.2) for name in names]
    rows[0]["diversity"] = float("nan")
    points = {line["cell"]: {} for line in rows}
    results = Results(rows, (DIVERSITY, PC), {}, points, {("A--x", "pc"): "x_y|z"})
    return [by_method(results), by_point(results)]


@pytest.mark.parametrize("make", [by_method, by_point])
def test_markdown_of_hostile_names_keeps_its_columns(make):
    layout = named(HOSTILE)[make is by_point]
    for lines in markdown(layout).split("\n\n"):
        found = [len(re.split(r"(?<!\\)\|", line)) for line in lines.splitlines() if line[0] == "|"]
        assert len(set(found)) <= 1
    assert all(name in markdown(layout) for name in (r"a\|b", r"\<img src=x>", r"\*x\*", r"\_x\_"))
    assert all(name in markdown(layout) for name in (r"a\\\|b", r"\`x\`", r"[x]\(http://y)"))


@pytest.mark.parametrize("make", [by_method, by_point])
def test_latex_of_hostile_names_is_balanced_text(make):
    text = latex(named(HOSTILE_TEX)[make is by_point])
    bare = re.sub(r"\\[&%$#_{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    for form, body in re.findall(r"begin{tabular}{(l*r*)}\n(.*?)\\end{tabular}", text, re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        for line in rows:
            span = sum(int(n) - 1 for n in re.findall(r"\\multicolumn{(\d+)}", line))
            assert len(re.findall(r"(?<!\\)&", line)) + span == len(form) - 1, line
            assert not line.startswith(("[", "*"))
    for name in (r"a\&b", r"50\%", r"\$x\$", r"\#1", r"a\_b", r"\{x\}", "{[}2pt]", "{*}"):
        assert name in text
    for name in (r"\textasciitilde{}", r"\textasciicircum{}", r"\textbackslash{}input\{x\}"):
        assert name in text


def test_latex_compiles(tmp_path):
    engine = shutil.which("tectonic") or shutil.which("pdflatex")
    if engine is None:
        pytest.skip("no TeX engine here (tectonic or pdflatex): only the text was checked")
    tables = "\n\\clearpage\n".join(map(latex, named(HOSTILE_TEX)))
    preamble = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    file = tmp_path / "table.tex"
    file.write_text(f"{preamble}{tables}\\end{{document}}\n", encoding="utf-8")
    options = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in engine else []
    done = subprocess.run(
        [engine, *options, file.name], cwd=tmp_path, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "table.pdf").read_bytes().startswith(b"%PDF")
