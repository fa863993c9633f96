"""The first page: what won, by how much, how sure, at what cost, and what to know before that."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pypdf import PdfReader
from report.readers import page, pdf_pages, reported
from report.synthetic_run import Tables
from report.table1_run import write_table1_run

from autolora_eval.report import write_report
from autolora_eval.runs.folder import RunFolder, open_run

Maker = Callable[..., Tables]


def first_pages(folder: RunFolder) -> tuple[str, str]:
    """Return the first page of the PDF, and the HTML down to its first section."""
    html = page(folder).text
    return pdf_pages(folder)[0], html[: html.index("Cost")]


@pytest.fixture(scope="module")
def table1(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The paper's Table 1 with 16 seeds, drawn from its published values."""
    folder = write_table1_run(tmp_path_factory.mktemp("table1") / "run", n_seeds=16)
    write_report(folder)
    return folder


def with_baseline(tables: Tables, best: float) -> Tables:
    """Give the first method, the baseline, this Div-PC."""
    tables.table.loc[0, ["div_pc", "div_pc_low", "div_pc_high"]] = [best, best - 0.1, best + 0.1]
    return tables


def test_it_says_what_won_by_how_much_how_sure_and_at_what_cost(
    tmp_path: Path, make_run: Maker
) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"))
    tables.comparisons["units_for_power_80"] = [4.0, 9.0, 1200.0, 4.0, 5.0]
    for text in first_pages(reported(tables, tmp_path / "run")):
        # Row 1 has diversity 0.131 and PC 2.961.
        assert "(Div-PC): AutoLoRA is first with 0.388 [0.368, 0.411]; higher than LoRA by" in text
        assert "by 0.061 [0.048, 0.075] (p = 0.030)." in text
        assert "Beside LoRA, one image costs: AutoLoRA 2× the passes." in text
        assert "LoRA and AutoLoRA, on SDXL: 2 prompts × 3 seeds, 12 images in all." in text
        assert "AutoLoRA is more diverse than LoRA by 0.061 [0.048, 0.075], on 2 of 2" in text
        assert "4 of 5 comparisons are significant: p below 0.05 after Holm's correction" in text
        assert "80 times in 100 takes about, in prompts: Div 4; PC 9; SA 1,200;" in text
        assert "0.111 [0.105, 0.118]" in text


def test_it_says_so_when_the_baseline_is_first(tmp_path: Path, make_run: Maker) -> None:
    tables = with_baseline(make_run(methods=("LoRA", "AutoLoRA")), best=0.9)
    tables.comparisons.loc[3, ["difference", "low", "high"]] = [-0.512, -0.6, -0.4]
    for text in first_pages(reported(tables, tmp_path / "run")):
        assert "(Div-PC): LoRA, the baseline, is first with 0.900 [0.800, 1.000]. Next is" in text
        assert "Next is AutoLoRA with 0.388 [0.368, 0.411]; lower than LoRA by 0.512" in text


def test_it_names_the_next_where_that_is_not_the_baseline(tmp_path: Path, make_run: Maker) -> None:
    """Of 48 cells the best two can be as good as equal: the baseline alone would not tell."""
    for text in first_pages(reported(make_run(methods=("LoRA", "A", "B")), tmp_path / "run")):
        # Row n has a Div-PC of (0.111 + 0.02 n) (3.111 − 0.15 n).
        assert re.search(r"\(Div-PC\): B is first with 0\.424 .* Next is A with 0\.388 \[", text)


def test_it_claims_nothing_where_nothing_is_significant(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run()
    tables.comparisons[["low", "high"]] = [-0.2, 0.3]
    tables.comparisons["p_holm"] = 1.0
    for text in first_pages(reported(tables, tmp_path / "run")):
        assert re.search(r"it cannot be told from LoRA \(\+0\.0\d1 \[−0\.200, \+0\.300\]\)", text)
        assert "None of 15 comparisons are significant" in text
        assert "higher than" not in text
        assert "more diverse" not in text


def test_its_caveats_stand_on_it(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"))
    tables.manifest["models"]["SDXL"]["pipeline"]["name"] = "miniature:sdxl"
    tables.table.loc[1, ["n_unscored", "n_missing"]] = [3, 1]
    tables.scores.loc[tables.scores.index[-3:], "unscored_reason"] = "no_json"
    for text in first_pages(reported(tables, tmp_path / "run")):
        assert "Before you read the numbers" in text
        assert "They say nothing about SDXL" in text
        assert "3 images of 12 have no score" in text
        assert "1 image is missing or cannot be read" in text


def test_images_made_elsewhere_are_told_on_it(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run(methods=("LoRA", "Theirs"))
    tables.manifest["image_sets"] = {
        "SDXL--Theirs": {
            "read_as": "tree of images",
            "images": 9,
            "matched": 5,
            "seeds_by_order": True,
            **{"missing": 1, "unusable": 2, "extra": 4, "duplicate": 0, "wrong_size": 3},
        },
        "SDXL--gone": {"matched": 77},
    }
    for text in first_pages(reported(tables, tmp_path / "run")):
        assert "SDXL × Theirs: 5 images of the benchmark made elsewhere, whose prompts" in text
        assert "1 missing, 2 unusable, 4 not asked for and left out, 3 of another size" in text
        assert "No seeds are stated: pairs with other methods share no noise." in text
        assert "the same as another" not in text
        assert "77" not in text


def test_what_compared_runs_differ_in_is_told_on_it(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"))
    messages = ["seeds: 3 in a, 4 in b; only the 3 that all have are compared.", "<b>&#x41; *x* $y"]
    messages += [f"model '{n}' differs" for n in range(6)]
    tables.manifest["differences"] = [
        {"what": "seeds", "grave": "told", "message": message} for message in messages
    ]
    for text in first_pages(reported(tables, tmp_path / "run")):
        assert f"Of the runs compared: {messages[0]}" in text
        assert f"Of the runs compared: {messages[1]}" in text
        assert "model '3' differs" in text
        assert "model '4' differs" not in text
        assert "Of the runs compared: 2 more differences, in manifest.json." in text


def test_what_ails_many_cells_is_one_caveat(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run(methods=tuple(f"M{n}" for n in range(7)), n_seeds=1)
    tables.table[["n_missing", "n_undefined_prompts"]] = [1, 2]
    tables.diversity["reason"] = "needs at least two images, has 1"
    for text in first_pages(reported(tables, tmp_path / "run")):
        assert "undefined 14 times for a prompt of a cell, in 7 of 7 cells, and left out" in text
        assert "7 images are missing or cannot be read (1 of SDXL × M0, 1 of SDXL × M1, " in text
        assert "1 of SDXL × M3, and of 3 more cells)." in text


def test_seconds_stand_beside_the_passes_where_they_were_taken(
    tmp_path: Path, make_run: Maker
) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"))
    folder = tables.write(tmp_path / "run")
    folder.timings.write_text(
        "cell,n_timed,seconds_per_image\nSDXL--AutoLoRA,6,4.5\nSDXL--LoRA,6,2\n"
    )
    write_report(folder)
    for text in first_pages(folder):
        assert "s/image" in text
        assert "AutoLoRA 2× the passes, 2.25× the seconds." in text


@pytest.mark.parametrize("name", ["disney_princess_autolora_scale_miniature", "M" * 80])
def test_the_benchmarks_name_is_one_word_where_there_is_room(
    tmp_path: Path, make_run: Maker, name: str
) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"))
    tables.manifest["benchmark"]["name"] = name
    text = PdfReader(reported(tables, tmp_path / "run").report_pdf).pages[0].extract_text()
    assert text.replace("\u200b", "").replace("\n", "").count(name) == 2, "title and footer"
    assert text.count(name) == (2 if "_" in name else 0)


def test_what_a_sweep_costs_is_a_range_of_each_kind(table1: RunFolder, tmp_path: Path) -> None:
    """Passes are the same at all points; seconds are not, and LoRA+CFG's differ too."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(table1.path, folder.path)
    table = open_run(folder.path).table
    cells = table.assign(rank=table["lora_scale"].rank(method="dense"))
    took = [
        (row.cell, 16, row.rank if row.method == "LoRA" else 2.0)
        for row in cells.itertuples(index=False)
    ]
    columns = ["cell", "n_timed", "seconds_per_image"]
    pd.DataFrame(took, columns=columns).to_csv(folder.timings, index=False)
    write_report(folder)
    for text in first_pages(folder):
        assert (
            "LoRA 0.5× the passes, 0.5× to 6× the seconds; AutoLoRA 1× the passes, 1× the" in text
        )
        assert "×: times the baseline's with the same swept parameters." in text


def test_of_48_cells_it_has_the_best_of_each_method(table1: RunFolder) -> None:
    table = open_run(table1.path).table
    for text in first_pages(table1):
        for method, rows in table.groupby("method"):
            best = rows.loc[rows["div_cps"].idxmax()]
            scale = f"{best['lora_scale']:g}"
            assert f"{method} (LoRA scale {scale}) {best['diversity']:.3f}" in text
        first = table.loc[table["div_cps"].idxmax()]
        assert f"{first['method']} at LoRA scale {first['lora_scale']:g}" in text
        assert "1 prompt × 16 seeds, 768 images in all" in text
        assert "4 of 48 cells: of each method the one with the best Div-CPS" in text
        assert "AutoLoRA+CFG 2× the passes" in text


def test_along_a_sweep_it_counts_where_a_method_is_ahead(table1: RunFolder) -> None:
    rows = open_run(table1.path).comparisons
    rows = rows[(rows["method"] == "LoRA") & (rows["measure"] == "diversity")]
    told = (rows["p_holm"] < 0.05) & ((rows["low"] > 0) | (rows["high"] < 0))
    most = rows.loc[rows["difference"].idxmax()]
    assert rows["difference"].median() > 0
    expected = (
        f"LoRA against LoRA+CFG at 12 points of LoRA scale: Div higher at "
        f"{(rows['difference'] > 0).sum()} of 12, {told.sum()} significantly: median "
        f"{rows['difference'].median():+.3f}, at most {most['difference']:+.3f} "
        f"[{most['low']:+.3f}, {most['high']:+.3f}] at LoRA scale "
    )
    for text in first_pages(table1):
        assert expected in text


def test_ties_along_a_sweep_do_not_turn_its_direction(tmp_path: Path, table1: RunFolder) -> None:
    """Higher at 1, lower at 4 and equal at 7 of 12 points has the median 0, and is no "higher"."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(table1.path, folder.path)
    rows = pd.read_csv(folder.comparisons)
    own = rows.index[(rows["method"] == "LoRA") & (rows["measure"] == "diversity")]
    rows.loc[own, "difference"] = [0.1, *[-0.2] * 4, *[0.0] * 7]
    rows.loc[own, "low"], rows.loc[own, "high"] = (rows["difference"] + d for d in (-0.1, 0.1))
    rows.loc[own, "p_holm"] = 0.01
    rows.to_csv(folder.comparisons, index=False)
    write_report(folder)
    for text in first_pages(folder):
        assert "Div lower at 4 of 12, 4 significantly: median 0.000, at most −0.200 [" in text


def test_inside_the_sweep_is_laid_out_as_the_papers_table(table1: RunFolder) -> None:
    table = open_run(table1.path).table.set_index(["lora_scale", "method"])
    methods = ("LoRA", "AutoLoRA", "LoRA+CFG", "AutoLoRA+CFG")
    for text in (" ".join(pdf_pages(table1)[1:]), page(table1).text):
        for scale in (0.2, 0.7, 1.3):
            told = [f"{scale:g}"]
            for method in methods:
                row = table.loc[scale, method]
                difference = f"{row['cps'] - row['cps_published']:+.3f}".replace("-", "−")
                difference = "0.000" if float(difference.replace("−", "-")) == 0.0 else difference
                told.append(f"{row['cps']:.3f}")
                told.append(f"[{row['cps_low']:.3f}, {row['cps_high']:.3f}]")
                told.append(f"{row['cps_published']:.3f} ({difference})")
            assert " ".join(told) in text


def test_48_cells_make_a_few_legible_pages(table1: RunFolder) -> None:
    pages = pdf_pages(table1)
    assert len(pages) <= 14
    cost = next(text for text in pages if "NFE in all" in text)
    # Cells of a method whose images take as many passes are told in one line.
    assert "LoRA+CFG (12 cells) 100 19,200 192" in cost.replace("1 × ", "")


def test_what_a_report_says_of_a_comparison_stands_in_its_table_too(table1: RunFolder) -> None:
    rows = pd.read_csv(table1.comparisons)
    assert rows["sentence"].notna().all()
    assert (rows["difference"].notna() == np.isfinite(rows["difference"])).all()
    row = rows[(rows["method"] == "LoRA") & (rows["measure"] == "diversity")].iloc[0]
    size = f"by {abs(row['difference']):.3f} ["
    told = row["low"] > 0 or row["high"] < 0
    assert (size in row["sentence"]) == told
    assert row["sentence"].startswith("LoRA scale 0.2: ")
