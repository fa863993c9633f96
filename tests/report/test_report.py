"""The report of a run: what it says, what it says is missing, and that it is one file."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pypdf import PdfReader
from report.readers import page, pdf_pages, pdf_text, reported, svg_texts
from report.synthetic_run import Tables

from autolora_eval._errors import UsageError
from autolora_eval.report import write_report
from autolora_eval.runs.folder import RunFolder

Maker = Callable[..., Tables]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, make_run: Maker) -> RunFolder:
    """A run of four methods with two scores in which nothing is missing."""
    return reported(make_run(), tmp_path_factory.mktemp("plain") / "run")


def test_every_file_is_written_and_opens(plain: RunFolder) -> None:
    names = {path.name for path in plain.figures.iterdir()}
    grids = {"grid_extremes.png", "grid_prompts_seed0.png"}
    grids |= {"grid_seeds_prompt0.png", "grid_seeds_prompt1.png"}
    assert names >= grids | {"diversity_vs_scores.png", "diversity_vs_scores.svg"}
    with Image.open(plain.figures / "diversity_vs_scores.png") as image:
        image.load()
        assert image.format == "PNG"
        assert round(image.info["dpi"][0]) == 200
    root = ElementTree.parse(plain.figures / "diversity_vs_scores.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(PdfReader(plain.report_pdf).pages) in range(3, 10)
    assert page(plain).open == []
    assert not [path.name for path in plain.path.rglob(".partial-*")]


def test_every_number_of_the_table_stands_in_both_reports(
    plain: RunFolder, make_run: Maker
) -> None:
    pdf, html = pdf_text(plain), page(plain).text
    for row in make_run().table.to_dict("records"):
        for column in ("diversity", "pc", "sa", "div_pc", "div_sa"):
            low, value, high = (row[f"{column}{end}"] for end in ("_low", "", "_high"))
            for text in (f"{value:.3f}", f"[{low:.3f}, {high:.3f}]"):
                assert text in pdf
                assert text in html


def test_the_best_of_each_model_is_bold_by_the_direction_of_the_score(
    tmp_path: Path, make_run: Maker
) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"))
    tables.manifest["rubric"]["scores"]["sa"]["higher_is_better"] = False
    html = reported(tables, tmp_path / "run").report_html.read_text(encoding="utf-8")
    results = html[html.index("<main>") : html.index("<figure")]
    # PC falls from 3.111 to 2.961 and SA from 4.111 to 3.961; Div-SA rises from 0.456 to 0.519.
    bold = re.findall(r"<strong>([0-9.]+)</strong>", results)
    assert bold == ["3.111", "0.456", "0.131", "3.961", "0.388"]
    assert "SA ↓" in html
    assert "PC ↑" in html


def test_findings_claim_a_difference_only_where_the_interval_leaves_out_zero(
    tmp_path: Path, make_run: Maker
) -> None:
    folder = reported(make_run(methods=("LoRA", "AutoLoRA")), tmp_path / "run")
    for text in (pdf_text(folder), page(folder).text):
        for sentence in (
            "AutoLoRA is more diverse than LoRA by 0.061 [0.048, 0.075], on 2 of 2 prompts",
            "AutoLoRA has lower Prompt correspondence than LoRA by 0.061 [0.047, 0.074], on 2 of 2",
            "Style adherence: no difference of AutoLoRA from LoRA can be told: 0.000 [−0.013, ",
        ):
            assert sentence in text
        assert "higher Style adherence than" not in text


def test_what_is_significant_of_many_comparisons_stands_first(plain: RunFolder) -> None:
    for text in (pdf_text(plain), page(plain).text):
        assert (
            "AutoLoRA against LoRA: significant: Div +0.061 [+0.048, +0.075] on 2 of 2 prompts "
            "(p = 0.030), PC −0.061 [−0.074, −0.047] on 2 of 2 prompts (p = 0.030), Div-PC +0.061 "
            "[+0.048, +0.075] (p = 0.030), Div-SA +0.061 [+0.048, +0.075] (p = 0.030); no "
            "difference can be told: SA 0.000 [−0.013, +0.014]."
        ) in text
        assert "12 of 15 comparisons are significant" in text


def test_a_difference_that_does_not_survive_correction_is_doubted(
    tmp_path: Path, make_run: Maker
) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"))
    tables.comparisons["p_holm"] = 0.31
    text = page(reported(tables, tmp_path / "run")).text
    assert "for the number of comparisons p = 0.310, so it may be chance" in text
    assert "None of 5 comparisons are significant" in text
    tables = make_run()
    tables.comparisons["p_holm"] = 0.31
    text = page(reported(tables, tmp_path / "many")).text
    assert "AutoLoRA against LoRA: may be chance: Div +0.061 [+0.048, +0.075] on 2 of 2" in text
    assert "against LoRA: significant" not in text


def test_more_methods_than_fit_the_first_page_are_counted(tmp_path: Path, make_run: Maker) -> None:
    methods = tuple(f"M{n}" for n in range(10))
    tables = make_run(methods=methods, prompts=("one",), n_seeds=1)
    folder = reported(tables, tmp_path / "run")
    # Row n has a Div-PC of (0.111 + 0.02 n) (3.111 − 0.15 n), which rises up to n = 7: the first
    # four are those of 7, 8, 6 and 9.
    for text in (pdf_pages(folder)[0], page(folder).text):
        assert re.findall(r"(M\d) against M0: significant", text) == ["M6", "M7", "M8", "M9"]
        assert "5 more methods: see inside" in text
    rows = re.findall(r"M\d(?= 0\.\d{3} \[)", pdf_pages(folder)[0])
    assert rows == ["M0", "M2", "M3", "M4", "M5", "M6", "M7", "M8", "M9"]


def test_a_comparison_without_numbers_is_said_to_lack_them(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"))
    tables.comparisons.loc[0, ["difference", "low", "high", "win_rate"]] = np.nan
    tables.comparisons.loc[1, ["low", "high"]] = np.nan
    tables.comparisons.loc[2, ["win_rate", "n_ties"]] = [0.75, 1]
    text = page(reported(tables, tmp_path / "run")).text
    assert "Diversity: AutoLoRA and LoRA could not be compared." in text
    assert (
        "Prompt correspondence: AutoLoRA differs from LoRA by −0.061; it has no interval." in text
    )
    assert "higher on 1 of 2 prompts and equal on 1" in text


@pytest.mark.parametrize(
    ("needed", "said"),
    [
        (8.0, "about 8"),
        (34.0, "about 34"),
        (199.0, "about 200"),
        (9_201.0, "about 9,300"),
        (11_201.0, "more than 10,000"),
    ],
)
def test_where_no_difference_can_be_told_it_says_how_many_prompts_would_tell(
    tmp_path: Path, make_run: Maker, needed: float, said: str
) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"))
    tables.comparisons["units_for_power_80"] = needed
    text = page(reported(tables, tmp_path / "run")).text
    clause = f"; a difference of this size would need {said} prompts."
    assert clause in text
    # Where a difference is told, it is needless: of five measures one, "SA", is not.
    assert text.count("would need") == 1
    tables.comparisons["units_for_power_80"] = np.nan
    assert "would need" not in page(reported(tables, tmp_path / "other")).text


def test_missing_values_are_dashes_with_their_reason_and_never_zero(
    tmp_path: Path, make_run: Maker
) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"))
    tables.table.loc[1, [c for c in tables.table.columns if "sa" in c or "div" in c]] = np.nan
    tables.table.loc[1, ["n_unscored", "n_missing", "n_undefined_prompts"]] = [6, 2, 2]
    lost = tables.scores["method"] == "AutoLoRA"
    tables.scores.loc[lost, "sa"] = np.nan
    tables.scores.loc[lost, "unscored_reason"] = "missing_score:sa"
    tables.diversity.loc[2:, "diversity"] = np.nan
    tables.diversity.loc[2:, "reason"] = "needs at least two images, has 1"
    folder = reported(tables, tmp_path / "run")
    for text in (pdf_text(folder), page(folder).text):
        start = text.index("AutoLoRA –")
        row = text[start : text.index(" – diversity is undefined", start)]
        assert row.count("–") == 4
        assert "2.961" in row
        assert "0.000" not in text[: text.index("What differs")]
        assert "diversity is undefined: needs at least two images, has 1" in text
        assert "no image was scored: missing score: sa" in text
        assert "6 images of 12 have no score and are left out" in text
        assert "6 × missing score: sa" in text
        assert "2 images are missing or cannot be read (2 of SDXL × AutoLoRA)" in text
        assert "Without a mark, for want of a value: SDXL × AutoLoRA." in text


def test_a_run_without_a_judge_reports_diversity_alone(tmp_path: Path, make_run: Maker) -> None:
    folder = reported(make_run(judged=False), tmp_path / "run")
    for text in (pdf_text(folder), page(folder).text):
        assert "No judge was asked" in text
        assert "0.171" in text
        assert "PC" not in text
    labels = svg_texts(folder)
    assert [label for label in labels if "LoRA" in label] == [
        *("LoRA", "AutoLoRA", "LoRA+CFG", "AutoLoRA+CFG")
    ]


def test_published_values_and_the_distance_from_them_appear(
    tmp_path: Path, make_run: Maker
) -> None:
    tables = make_run(models=("SD3", "SDXL"), methods=("LoRA+CFG", "AutoLoRA+CFG"))
    tables.table["diversity_published"] = [0.136, 0.197, np.nan, 0.170]
    folder = reported(tables, tmp_path / "run")
    for text in (pdf_text(folder), page(folder).text):
        published = text[text.index("Beside the published values") :]
        assert "0.136 0.111 here (−0.025)" in published
        assert "0.170 0.171 here (+0.001)" in published


def test_no_section_on_published_values_without_any(plain: RunFolder) -> None:
    assert "published" not in page(plain).text


def test_miniature_models_and_a_limited_run_are_called_what_they_are(
    tmp_path: Path, plain: RunFolder, make_run: Maker
) -> None:
    tables = make_run(n_seeds=2)
    tables.manifest["limited"] = True
    tables.manifest["models"]["SDXL"]["pipeline"]["name"] = "miniature:sdxl"
    tables.manifest["judge"]["model"] = "miniature:judge"
    folder = reported(tables, tmp_path / "run")
    for text in (pdf_text(folder), page(folder).text):
        assert "SDXL and the judge are miniature models" in text
        assert "They say nothing about SDXL or SD3" in text
        assert "limited to 2 prompts and 2 seeds" in text
    assert "miniature" not in page(plain).text
    assert "limited" not in page(plain).text


def test_methods_and_manifest_tell_where_the_numbers_come_from(plain: RunFolder) -> None:
    for text in (pdf_text(plain), page(plain).text):
        compact = text.replace(" ", "")
        expected = "lora_scale=1.0,num_inference_steps=20,autolora_scale=1.5,guidance_scale=5.0"
        assert f"{expected},base_guidance_scale=5.0;80passesperimage" in compact
        assert "e" * 64 in compact
        assert "size64×64" in compact
        assert "schedulerclass=EulerDiscreteScheduler,a=1,b=2,c=3,d=4,e=5" in compact
        assert "d" * 64 in compact
        assert "3seeds,0to2" in compact
        assert "12.3s,24done,3reused" in compact
        assert "synthetic.yaml" in compact
        assert "someone" not in compact


@pytest.mark.parametrize(
    "section",
    [
        *("benchmark", "benchmark_file", "prompts", "seeds", "limited", "cells", "models"),
        *("features", "judge", "rubric", "packages", "hardware", "stages"),
        "autolora_eval_version",
    ],
)
@pytest.mark.parametrize("left", ["absent", "null", "of another type"])
def test_a_manifest_that_lacks_a_section_is_reported_all_the_same(
    tmp_path: Path, make_run: Maker, section: str, left: str
) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"), n_seeds=2)
    tables.manifest[section] = {"null": None}.get(left, 7)
    if left == "absent":
        del tables.manifest[section]
    from autolora_eval.report.content import build_content
    from autolora_eval.report.run_view import read_evidence

    content = build_content(read_evidence(tables.write(tmp_path / "run")))
    assert content.first.table.groups[0].lines[0].entries[0].text == "0.111"
    if section in ("features", "packages", "hardware", "stages") and left == "absent":
        assert "not recorded" in str(content.sections)


def test_a_manifest_with_nothing_in_it_is_reported(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"))
    tables.manifest = {"benchmark_file": "b.yaml"}
    text = page(reported(tables, tmp_path / "run")).text
    assert "The rubric was not recorded" in text
    assert "PC_LOW" not in text
    assert "3.111" in text
    assert "Unnamed benchmark" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        write_report(RunFolder(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, make_run: Maker) -> None:
    first, second = (reported(make_run(n_seeds=2), tmp_path / name) for name in ("a", "b"))
    for file in ("report.pdf", "report.html", "figures/diversity_vs_scores.svg"):
        assert (first.path / file).read_bytes() == (second.path / file).read_bytes(), file
    png = "figures/diversity_vs_scores.png"
    assert (first.path / png).read_bytes() == (second.path / png).read_bytes()


def test_the_html_asks_nothing_of_any_other_file(plain: RunFolder) -> None:
    found = page(plain)
    policy = found.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:;")
    assert {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object"} == set()
    for tag, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
    assert "@import" not in plain.report_html.read_text(encoding="utf-8")


def test_the_images_of_the_grid_are_those_of_the_run(plain: RunFolder, make_run: Maker) -> None:
    pictures = page(plain).all("img")
    # Methods by seed for two prompts; prompts by method; two prompts of the baseline and the best.
    assert len(pictures) == 4 * 3 * 2 + 2 * 4 + 2 * 2 * 3
    assert pictures[0]["title"] == "seed 0: PC 3.5, SA 4.5"
    embedded = [image for p in PdfReader(plain.report_pdf).pages for image in p.images]
    # A page that shows an image twice holds it once.
    assert len({image.data for image in embedded}) == len({p["src"] for p in pictures})
    file = make_run().scores["file"][0]
    with Image.open(plain.path / file) as original:
        expected = np.asarray(original.resize((256, 256), Image.Resampling.NEAREST))
    first = next(image for image in embedded)
    assert np.array_equal(np.asarray(first.image.convert("RGB")), expected)
