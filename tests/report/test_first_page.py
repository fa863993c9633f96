"""What the first page says: which method ranks first, by how much, how sure, and at what cost."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from report.readers import content_of, first_page_text, text_of
from report.synthetic_run import make_tables, two_methods
from scored_run import accept_tables

from autolora_eval.report.findings import findings
from autolora_eval.report.run_view import read_run_view
from autolora_eval.runs.folder import RunFolder, open_run

# ---- Which method ranks first


def test_it_says_what_ranks_first_by_how_much_how_sure_and_at_what_cost(tmp_path):
    tables = two_methods()
    tables.comparisons["units_for_power_80"] = [4.0, 9.0, 1200.0, 4.0, 5.0]
    text = first_page_text(tables.write(tmp_path / "run"))
    for expected in (
        # Row 1 has diversity 0.131 and PC 2.961.
        "(Div-PC): AutoLoRA ranks first with 0.388 [0.368, 0.411]. This is higher than LoRA by "
        "0.061 [0.048, 0.075] (p = 0.030).",
        "Cost of one image relative to LoRA: AutoLoRA 2× the NFE.",
        "LoRA and AutoLoRA, on SDXL: 2 prompts × 3 seeds, 12 images in total.",
        "4 of 5 comparisons are significant (p < 0.05 after Holm's correction",
        "Number of prompts needed for 80% power (p < 0.05 without correction), if the true "
        "differences are the observed ones: "
        "Div 4; PC 9; SA",
        "0.111 [0.105, 0.118]",
    ):
        assert expected in text


def test_it_says_so_if_the_baseline_ranks_first(tmp_path):
    tables = two_methods()
    tables.table.loc[0, ["div_pc", "div_pc_low", "div_pc_high"]] = [0.9, 0.8, 1.0]
    tables.comparisons.loc[3, ["difference", "low", "high"]] = [-0.512, -0.6, -0.4]
    text = first_page_text(tables.write(tmp_path / "run"))
    assert "(Div-PC): LoRA (the baseline) ranks first with 0.900 [0.800, 1.000]. Second is" in text
    assert "Second is AutoLoRA with 0.388 [0.368, 0.411]. This is lower than LoRA by 0.512" in text


def test_a_difference_over_some_prompts_is_not_said_to_be_that_of_the_ranking(tmp_path):
    """The cell lacks an easy prompt: it is second, but ahead on the others."""
    tables = two_methods(prompts=("a", "b", "c"))
    tables.table.loc[0, "div_pc"] = 0.9
    # Prompts with a diversity in both cells. The scores and the product have all three.
    tables.comparisons.loc[0, "n_units"] = 2
    text = first_page_text(tables.write(tmp_path / "run"))
    assert "0.388 [0.368, 0.411]. Over the 2 prompts that both have, it is higher than" in text


def test_it_names_the_second_if_that_is_not_the_baseline(tmp_path):
    text = first_page_text(make_tables(methods=("LoRA", "A", "B")).write(tmp_path / "run"))
    # Row n has a Div-PC of (0.111 + 0.02 n) (3.111 − 0.15 n).
    assert re.search(r"\(Div-PC\): B ranks first with 0\.424 .* Second is A with 0\.388 \[", text)


def test_methods_with_the_same_value_share_the_first_rank(tmp_path):
    """A method with γ = 1 makes the very images of LoRA+CFG."""
    tables = make_tables(methods=("LoRA", "A", "B"))
    tables.table["div_pc"] = [0.5, 0.4, 0.5]
    text = first_page_text(tables.write(tmp_path / "run"))
    assert "(Div-PC): LoRA and B rank first with the same value, 0.500." in text
    tables.table["div_pc"] = 0.5
    text = first_page_text(tables.write(tmp_path / "all"))
    assert "(Div-PC): LoRA, A and B rank first with the same value, 0.500." in text


def test_too_few_units_for_the_rank_test_are_named(tmp_path):
    """Five tests of eight prompts are enough: 5 · 2/2⁸ = 0.039. Of seven, 5 · 2/2⁷ = 0.078."""
    tables = two_methods()
    tables.comparisons["test"] = "Wilcoxon signed-rank"
    found = {}
    for n in (7, 8):
        tables.comparisons["n_units"] = n
        found[n] = first_page_text(tables.write(tmp_path / str(n)))
    assert (
        "With 7 prompts, no Wilcoxon test can be significant after correction, even if all "
        "prompts agree. This needs at least 8 prompts."
    ) in found[7]
    assert "no Wilcoxon test" not in found[8]
    tables.comparisons["n_units"] = [7, 8, 8, 8, 8]
    text = first_page_text(tables.write(tmp_path / "run"))
    assert "are paired over 7 to 8 prompts that both methods have." in text


def test_a_single_comparison_is_not_counted(tmp_path):
    tables = two_methods(judged=False)
    text = first_page_text(tables.write(tmp_path / "run"))
    assert "The only comparison is significant (p < 0.05). Differences have 95%" in text
    tables.comparisons["p_holm"] = 0.0499
    assert "by 0.061 [0.048, 0.075], on 2 of 2 prompts (p < 0.05)." in first_page_text(
        tables.write(tmp_path / "close")
    )
    tables.comparisons["p_holm"] = 0.0501
    text = first_page_text(tables.write(tmp_path / "too_close"))
    assert "which is not significant after correction for multiple comparisons (p = 0.050)" in text
    assert "The only comparison is not significant (p < 0.05)." in text


def test_it_claims_nothing_if_nothing_is_significant(tmp_path):
    tables = make_tables()
    tables.comparisons[["low", "high"]] = [-0.2, 0.3]
    tables.comparisons["p_holm"] = 1.0
    text = first_page_text(tables.write(tmp_path / "run"))
    assert re.search(r"from LoRA is not significant: \+0\.0\d1 \[−0\.200, \+0\.300\]\.", text)
    assert "None of 15 comparisons is significant" in text
    assert "higher than" not in text
    assert "more diverse" not in text


def test_a_difference_is_claimed_only_if_the_interval_leaves_out_zero(tmp_path):
    text = first_page_text(two_methods().write(tmp_path / "run"))
    for sentence in (
        "AutoLoRA is more diverse than LoRA by 0.061 [0.048, 0.075], on 2 of 2 prompts",
        "AutoLoRA has lower Prompt correspondence than LoRA by 0.061 [0.047, 0.074], on 2 of 2",
        "AutoLoRA and LoRA do not differ significantly in Style adherence (0.000 [−0.013, +0.014]",
    ):
        assert sentence in text
    assert "higher Style adherence than" not in text


def test_many_comparisons_are_summarized_with_the_significant_ones_first(tmp_path):
    tables = make_tables()
    text = first_page_text(tables.write(tmp_path / "run"))
    assert (
        "AutoLoRA against LoRA: The differences in Div (+0.061 [+0.048, +0.075], higher on 2 of 2 "
        "prompts, p = 0.030), PC (−0.061 [−0.074, −0.047], lower on 2 of 2 prompts, p = 0.030), "
        "Div-PC (+0.061 [+0.048, +0.075], p = 0.030) and Div-SA (+0.061 [+0.048, +0.075], p = "
        "0.030) are significant. The difference in SA (0.000 [−0.013, +0.014]) is not significant."
    ) in text
    assert "12 of 15 comparisons are significant" in text
    tables.comparisons["p_holm"] = 0.31
    text = first_page_text(tables.write(tmp_path / "doubted"))
    assert "AutoLoRA against LoRA: The differences in Div (+0.061 [+0.048," in text
    assert "p = 0.310) are not significant after correction. The difference in SA (0.000" in text
    assert "are significant." not in text


def test_a_sample_size_is_named_only_where_a_difference_is_unclear(tmp_path):
    tables = two_methods()
    tables.comparisons["units_for_power_80"] = 34.0
    (found,) = findings(read_run_view(tables.write(tmp_path / "run")))
    # Of the five metrics only the difference in "SA" is unclear.
    assert [text for text in found.sentences if "To detect" in text] == [found.sentences[2]]
    assert found.sentences[2].endswith("this size, use about 34 prompts.")


def test_more_methods_than_fit_the_first_page_are_counted(tmp_path):
    methods = tuple(f"M{n}" for n in range(10))
    content = content_of(make_tables(methods=methods, n_seeds=1).write(tmp_path / "run"))
    # Row n has a Div-PC of (0.111 + 0.02 n) (3.111 − 0.15 n), which rises up to n = 7: the first
    # four are those of 7, 8, 6 and 9.
    leads = [finding.lead for finding in content.first.findings]
    assert leads == [
        *(f"M{n} against M0:" for n in (6, 7, 8, 9)),
        "5 more methods: see the section “Differences from the baseline”.",
    ]
    table = content.first.table
    assert "Shown: 9 of 10 cells, the baseline and those with the best Div-PC." in table.caption
    rows = [row.labels[0] for row in table.groups[0].rows]
    assert rows == ["M0", "M2", "M3", "M4", "M5", "M6", "M7", "M8", "M9"]
    assert content.first.cost.endswith("M8 1× the NFE. The section “Cost” has 1 more method.")


def test_the_best_of_all_cells_is_bold_where_only_some_are_shown(tmp_path):
    """Of M1, which is not shown, the SA is the greatest; the Div-PC rises up to M8."""
    tables = make_tables(methods=tuple(f"M{n}" for n in range(10)), n_seeds=1)
    tables.table.loc[1, "sa"] = 4.9
    table = content_of(tables.write(tmp_path / "run")).first.table
    bold = {
        (head, row.labels[0])
        for row in table.groups[0].rows
        for head, cell in zip(table.columns, row.cells, strict=True)
        if cell.bold
    }
    # Div rises and PC falls with n.
    assert bold == {("Div ↑", "M9"), ("PC ↑", "M0"), ("Div-PC ↑", "M8"), ("Div-SA ↑", "M9")}


def test_all_models_have_as_many_rows_on_the_first_page(tmp_path):
    tables = make_tables(("A", "B", "C"), ("LoRA", "M1", "M2", "M3"), n_seeds=1)
    table = content_of(tables.write(tmp_path / "run")).first.table
    assert [len(group.rows) for group in table.groups] == [3, 3, 3]


def test_nothing_is_said_of_other_methods_if_there_is_one(tmp_path):
    content = content_of(make_tables(methods=("LoRA",)).write(tmp_path / "run"))
    assert content.compared == "LoRA, on SDXL: 2 prompts × 3 seeds, 6 images in total."
    for caption in (content.first.table.caption, *(grid.caption for grid in content.grids.grids)):
        assert not [words for words in ("best", "baseline", "same noise") if words in caption]


def test_the_best_of_each_model_is_bold_by_the_direction_of_the_score(tmp_path):
    tables = two_methods()
    tables.manifest["rubric"]["scores"]["sa"]["higher_is_better"] = False
    table = content_of(tables.write(tmp_path / "run")).first.table
    # PC falls from 3.111 to 2.961 and SA from 4.111 to 3.961; Div-PC rises from 0.345 to 0.388.
    bold = [cell.text for row in table.groups[0].rows for cell in row.cells if cell.bold]
    assert bold == ["3.111", "0.131", "3.961", "0.388"]
    assert table.columns[:5] == ("Div ↑", "PC ↑", "SA ↓", "Div-PC ↑", "NFE")
    assert (
        "SA: not multiplied by diversity, because the product would have no clear" in table.caption
    )


def test_missing_values_are_dashes_with_their_reason_and_never_zero(tmp_path):
    tables = two_methods()
    tables.table.loc[1, [c for c in tables.table.columns if "sa" in c or "div" in c]] = np.nan
    tables.table.loc[1, ["n_unscored", "n_missing", "n_undefined_prompts"]] = [6, 2, 2]
    lost = tables.scores["method"] == "AutoLoRA"
    tables.scores.loc[lost, "sa"] = np.nan
    tables.scores.loc[lost, "unscored_reason"] = "missing_score:sa"
    tables.diversity.loc[2:, "diversity"] = np.nan
    tables.diversity.loc[2:, "reason"] = "needs at least 2 images, has 1"
    first = content_of(tables.write(tmp_path / "run")).first
    assert [c.text for c in first.table.groups[0].rows[1].cells][:5] == ["–", "2.961", *"–––"]
    assert list(first.table.footnotes) == [
        "no value (needs at least 2 images, has 1)",
        "no value (missing score: sa)",
    ]
    text = text_of(first.caveats)
    assert "6 of 12 images are unscored and left out of the mean scores: " in text
    assert "6 × missing score: sa" in text
    assert "2 images are missing or unreadable (2 of SDXL × AutoLoRA)" in text


def test_published_values_are_beside_ours_with_the_difference(tmp_path):
    tables = make_tables(models=("SD3", "SDXL"), methods=("LoRA+CFG", "AutoLoRA+CFG"))
    tables.table["diversity_published"] = [0.136, 0.197, np.nan, 0.170]
    content = content_of(tables.write(tmp_path / "run"))
    (section,) = [section for section in content.sections if section.name == "published"]
    assert "0.136 0.111 here (−0.025)" in text_of(section.parts)
    assert "0.170 0.171 here (+0.001)" in text_of(section.parts)


def test_seconds_are_beside_the_nfe_if_they_were_measured(tmp_path):
    folder = two_methods().write(tmp_path / "run")
    folder.timings.write_text(
        "cell,n_timed,seconds_per_image\nSDXL--AutoLoRA,6,4.5\nSDXL--LoRA,6,2\n"
    )
    text = first_page_text(folder)
    assert "s/image" in text
    assert "AutoLoRA 2× the NFE and 2.25× the seconds." in text


def test_seconds_of_different_machines_are_not_divided(tmp_path):
    tables = two_methods()
    record = {"manifest_sha256": "0", "autolora_eval_version": "0", "benchmark_sha256": "0"}
    for cell, run in zip(tables.manifest["cells"], "ab", strict=True):
        cell |= {"run": run, "cell_in_run": cell["id"]}
    tables.manifest["compared"] = {run: record | {"hardware": {"gpu": run}} for run in "ab"}
    folder = tables.write(tmp_path / "run")
    folder.timings.write_text(
        "cell,n_timed,seconds_per_image\nSDXL--AutoLoRA,6,4.5\nSDXL--LoRA,6,2\n"
    )
    assert "AutoLoRA 2× the NFE." in first_page_text(folder)


def copied(sweep: RunFolder, path: Path) -> RunFolder:
    """Return a copy that can be changed, without images."""
    ignored = shutil.ignore_patterns("images", "distinct", "figures")
    return RunFolder(shutil.copytree(sweep.path, path / "run", ignore=ignored))


def test_a_sweep_has_a_range_of_costs(undrawn_sweep, tmp_path):
    """NFE is the same at all points; seconds are not, and those of LoRA+CFG differ too."""
    folder = copied(undrawn_sweep, tmp_path)
    table = open_run(folder.path).table
    cells = table.assign(rank=table["lora_scale"].rank(method="dense"))
    took = [
        (row.cell, 16, row.rank if row.method == "LoRA" else 2.0)
        for row in cells.itertuples(index=False)
    ]
    columns = ["cell", "n_timed", "seconds_per_image"]
    pd.DataFrame(took, columns=columns).to_csv(folder.timings, index=False)
    accept_tables(folder)
    text = first_page_text(folder)
    assert "LoRA 0.5× the NFE and 0.5× to 6× the seconds; AutoLoRA 1× the NFE and 1× the" in text
    assert "×: multiple of the baseline with the same swept parameters." in text
    (section,) = [s for s in content_of(folder).sections if s.name == "cost"]
    # The mean of 1 to 12 seconds.
    assert "LoRA (12 cells) 50 0.5 × 6.50 0.5 to 6 × 5,400" in text_of(section.parts)


def test_of_48_cells_the_best_of_each_method_is_shown(undrawn_sweep):
    table = open_run(undrawn_sweep.path).table
    text = first_page_text(undrawn_sweep)
    for method, rows in table.groupby("method"):
        best = rows.loc[rows["div_cps"].idxmax()]
        scale = f"{best['lora_scale']:g}"
        assert f"{method} (LoRA scale {scale}) {best['diversity']:.3f}" in text
    first = table.loc[table["div_cps"].idxmax()]
    assert f"{first['method']} at LoRA scale {first['lora_scale']:g}" in text
    assert "1 prompt × 9 seeds, 432 images in total" in text
    assert "Shown: 4 of 48 cells, the one with the best Div-CPS of each method" in text
    assert "AutoLoRA+CFG 2× the NFE" in text


def test_along_a_sweep_it_counts_where_a_method_is_ahead(undrawn_sweep):
    rows = open_run(undrawn_sweep.path).comparisons
    rows = rows[(rows["method"] == "LoRA") & (rows["metric"] == "diversity")]
    significant = (rows["p_holm"] < 0.05) & ((rows["low"] > 0) | (rows["high"] < 0))
    most = rows.loc[rows["difference"].idxmax()]
    assert rows["difference"].median() > 0
    expected = (
        f"LoRA against LoRA+CFG at 12 points of LoRA scale: Div is higher at "
        f"{(rows['difference'] > 0).sum()} of 12 points ({significant.sum()} significant), median "
        f"{rows['difference'].median():+.3f}, largest {most['difference']:+.3f} "
        f"[{most['low']:+.3f}, {most['high']:+.3f}] at LoRA scale "
    )
    assert expected.replace("-", "−") in first_page_text(undrawn_sweep).replace("-", "−")


def test_ties_along_a_sweep_do_not_change_its_direction(tmp_path, undrawn_sweep):
    """Higher at 1, lower at 4 and equal at 7 of 12 points: the median is 0, the direction lower."""
    folder = copied(undrawn_sweep, tmp_path)
    rows = pd.read_csv(folder.comparisons)
    own = rows.index[(rows["method"] == "LoRA") & (rows["metric"] == "diversity")]
    rows.loc[own, "difference"] = [0.1, *[-0.2] * 4, *[0.0] * 7]
    rows.loc[own, "low"], rows.loc[own, "high"] = (rows["difference"] + d for d in (-0.1, 0.1))
    rows.loc[own, "p_holm"] = 0.01
    rows.to_csv(folder.comparisons, index=False)
    accept_tables(folder)
    expected = "Div is lower at 4 of 12 points (4 significant), median 0.000, largest −0.200 ["
    assert expected in first_page_text(folder)


def test_cells_of_equal_nfe_are_one_row_of_the_cost_table(undrawn_sweep):
    (section,) = [s for s in content_of(undrawn_sweep).sections if s.name == "cost"]
    assert "LoRA+CFG (12 cells) 100 10,800 108" in text_of(section.parts).replace("1 × ", "")
