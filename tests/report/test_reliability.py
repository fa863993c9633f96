"""What a report says about its judge, with and without the files on its reliability."""

import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from report.readers import content_of as report_content
from report.readers import text_of
from report.synthetic_run import Tables, two_methods

from autolora_eval.analysis.human_agreement import write_agreement
from autolora_eval.analysis.reliability import COLUMNS
from autolora_eval.analysis.table_layout import TableCell
from autolora_eval.report.caveats import caveats
from autolora_eval.report.judge_reliability import Answer, reliability
from autolora_eval.report.run_view import read_run_view
from autolora_eval.runs.folder import RunFolder, open_run

CELLS = ("SDXL--LoRA", "SDXL--AutoLoRA")
SIX = tuple(f"prompt {n}" for n in range(6))


def repeats(alpha: float = 0.9, **changes: object) -> pd.DataFrame:
    """A reliability table of two scores: α of SA is 0.1 above that of PC."""
    pairs = itertools.product(("pc", "sa"), (*CELLS, "all"))
    table = pd.DataFrame(pairs, columns=["score", "cell"])
    alphas = alpha + 0.1 * (table["score"] == "sa")
    counts = {"n_images": 6, "n_asked": 18, "n_valid": 17, "n_repeated": 6, "n_units": 6}
    table = table.assign(unit="prompt", **counts, exact_agreement=0.625, mean=3.125)
    ends = {"alpha": alphas, "alpha_low": alphas - 0.111, "alpha_high": alphas + 0.022}
    return table.assign(**ends, expected_mean=np.nan, reason=None).assign(**changes)[list(COLUMNS)]


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch) -> None:
    """199 resamples instead of 1,999: any interval can be shown."""
    monkeypatch.setattr("autolora_eval.analysis.estimates.N_RESAMPLES", 199)


class AboutJudge(NamedTuple):
    """What a report says about its judge: on the first page, and inside."""

    caveats: list[str]
    reliability: list[Answer]


def content_of(folder: RunFolder) -> AboutJudge:
    view = read_run_view(folder)
    return AboutJudge(caveats(view), reliability(view))


def sentences(content: AboutJudge, n: int) -> str:
    return " ".join(content.reliability[n].sentences)


def test_a_run_without_repeats_and_ratings_says_how_to_get_them(tmp_path):
    content = content_of(two_methods().write(tmp_path / "run"))
    text = text_of(content.reliability)
    assert "All 12 images were scored." in text
    assert "so the judge's consistency is unknown" in text
    assert "judge.repeats: 3" in text
    assert "To compare it, run: autolora-eval agreement RUN human.csv" in text
    assert content.caveats == []


def test_without_a_judge_the_section_is_missing(tmp_path):
    content = content_of(two_methods(judged=False).write(tmp_path / "run"))
    assert content.reliability == []
    assert len(content.caveats) == 1


def unscored(tables: Tables, reasons: dict[int, str]) -> Tables:
    for row, reason in reasons.items():
        tables.scores.loc[row, ["pc", "sa"]] = np.nan
        tables.scores.loc[row, "unscored_reason"] = reason
    counts = tables.scores.groupby("cell", sort=False)["unscored_reason"].count()
    tables.table["n_unscored"] = counts.to_numpy()
    return tables


def test_unscored_images_are_listed_by_cell_and_reason(tmp_path):
    reasons = {0: "no_json", 1: "no_json", 7: "out_of_range:pc"}
    content = content_of(unscored(two_methods(), reasons).write(tmp_path / "run"))
    table = content.reliability[0].tables[0]
    assert table.columns == ("Images", "Unscored", "no JSON", "out of range: pc")
    texts = [[cell.text for cell in row.cells] for row in table.groups[0].rows]
    assert texts == [["6", "2", "2", "0"], ["6", "1", "0", "1"]]
    assert table.groups[0].rows[0].cells[1].details == ("33.3%",)
    assert sentences(content, 0) == "Unscored: 3 of 12 images (25.0%)."
    caveat = content.caveats[-1]
    assert caveat.startswith(
        "33.3% of the images of SDXL × LoRA are unscored, and 16.7% in the cell with the"
    )


def test_rare_reasons_are_listed_together(tmp_path):
    tables = unscored(two_methods(), {n: f"reason {min(n, 6)}" for n in range(9)})
    table = content_of(tables.write(tmp_path / "run")).reliability[0].tables[0]
    assert table.columns[2:] == ("reason 6", *(f"reason {n}" for n in range(3)), "3 other reasons")
    assert [cell.text for cell in table.groups[0].rows[0].cells] == [*"6601113"]


@pytest.mark.parametrize(("n_unscored", "message"), [(1, False), (2, True)])
def test_one_unscored_image_in_a_hundred_is_not_a_separate_caveat(tmp_path, n_unscored, message):
    tables = two_methods()
    tables.table["n_images"] = 100
    tables.table["n_unscored"] = [n_unscored, 0]
    content = content_of(tables.write(tmp_path / "run"))
    said = any("Mean scores cover only the scored images" in caveat for caveat in content.caveats)
    assert said is message


def test_the_report_says_how_the_judge_was_asked(tmp_path):
    tables = two_methods()
    judge = {"constraint": "guided_regex", "served_by": "vllm", "server_version": "0.10.2"}
    tables.manifest["judge"] |= judge | {"cached": 1}
    folder = tables.write(tmp_path / "run")
    assert sentences(content_of(folder), 0).endswith(
        "The judge was served by vllm 0.10.2. The judge's replies were constrained to the rubric's "
        "format (guided_regex). 1 reply was taken from the cache of earlier runs."
    )
    tables.manifest["judge"] |= {"constraint": "plain", "served_by": None, "cached": 0}
    tables.manifest["judge"]["server_version"] = None
    message = sentences(content_of(tables.write(tmp_path / "plain")), 0)
    assert message.endswith("scored. The judge's replies were unconstrained (plain).")


def test_the_agreement_of_repeats_is_reported_with_intervals(tmp_path):
    tables = two_methods()
    tables.manifest["judge"]["repeats"] = 3
    folder = tables.write(tmp_path / "run")
    repeats().to_csv(folder.reliability, index=False)
    content = content_of(folder)
    text = text_of(content.reliability[1])
    for expected in (
        *("0.900", "[0.789, 0.922]", "1.000", "[0.889, 1.022]", "62.5%"),
        "Each image was judged 3 times.",
        "BCa bootstrap over prompts",
        "1 of 18 replies has no valid scores",
        "At temperature 0, a judge gives the same reply by design",
    ):
        assert expected in text
    assert content.caveats == []
    tables.manifest["judge"]["temperature"] = 0.7
    (folder.path / "manifest.json").write_text(json.dumps(tables.manifest))
    assert "At temperature 0" not in sentences(content_of(folder), 1)


def test_a_judge_that_repeats_itself_badly_is_a_caveat(tmp_path):
    folder = two_methods().write(tmp_path / "run")
    repeats(alpha=0.6).to_csv(folder.reliability, index=False)
    (caveat,) = content_of(folder).caveats  # 0.7 of the other score is not below 0.667
    start = "Prompt correspondence: the judge is not consistent with itself (α = 0.6"
    assert caveat.startswith(start)
    assert "Krippendorff (Content Analysis, 2nd ed. 2004, p. 241)" in caveat


def test_unknown_weights_behind_a_server_are_a_caveat(tmp_path):
    tables = two_methods()
    tables.manifest["judge"]["settings"] = {"unlisted": True}
    (caveat,) = content_of(tables.write(tmp_path / "run")).caveats
    assert "does not list a-judge, so it is not known which weights it serves under this" in caveat


def test_a_server_that_may_drop_images_is_a_caveat(tmp_path):
    tables = two_methods()
    tables.manifest["judge"]["settings"] = {"images_dropped": True}
    (caveat,) = content_of(tables.write(tmp_path / "run")).caveats
    assert "so the scores of a-judge may rest on the prompts alone." in caveat


def test_an_undefined_alpha_is_a_dash_with_its_reason(tmp_path):
    folder = two_methods().write(tmp_path / "run")
    lost = {"alpha": np.nan, "alpha_low": np.nan, "alpha_high": np.nan}
    repeats(**lost, reason="constant: all are 4").to_csv(folder.reliability, index=False)
    block = content_of(folder).reliability[1]
    assert block.tables[0].groups[0].rows[0].cells[0] == TableCell("–", why="constant: all are 4")
    assert block.tables[0].footnotes == {"constant: all are 4": "a"}
    assert content_of(folder).caveats == []


def test_expected_scores_are_beside_the_scores(tmp_path):
    folder = two_methods().write(tmp_path / "run")
    once = {"n_repeated": 0, "alpha": np.nan, "exact_agreement": np.nan, "expected_mean": 3.375}
    repeats(**once, reason="no image has two ratings").to_csv(folder.reliability, index=False)
    block = content_of(folder).reliability[1]
    assert block.tables[0].columns == ("PC mean", "PC expected", "SA mean", "SA expected")
    texts = [cell.text for cell in block.tables[0].groups[1].rows[0].cells]
    assert texts == ["3.125", "3.375"] * 2
    assert "judge.repeats: 3" in block.sentences[0]


def with_people(path: Path, expected: bool = False) -> RunFolder:
    tables = two_methods(prompts=SIX)
    rng = np.random.default_rng(1)
    n = len(tables.scores)
    human_agreement = rng.integers(0, 6, n).astype(float)
    tables.scores["pc"] = np.clip(human_agreement + rng.integers(-1, 2, n), 0, 5)
    if expected:
        tables.scores["pc_expected"] = human_agreement * 0.9 + 0.2
    folder = tables.write(path)
    frames = [
        tables.scores[["file"]].assign(rater=name, pc=np.clip(human_agreement + shift, 0, 5))
        for name, shift in (("ann", 0), ("bob", rng.integers(0, 2, n)))
    ]
    human = path.parent / "human.csv"
    pd.concat(frames).to_csv(human, index=False)
    write_agreement(open_run(path), human)
    return folder


def test_agreement_with_people_is_reported(tmp_path):
    folder = with_people(tmp_path / "run", expected=True)
    found = pd.read_csv(folder.agreement)
    text = text_of(report_content(folder).sections)
    assert "72 ratings of 36 images by 2 people, averaged over people for each image." in text
    assert "The agreement between people is α = " in text
    assert "PC: the expected score is closer to people than the judge's score (+" in text
    for _, row in found[found["statistic"].isin(["spearman", "kappa"])].iterrows():
        assert f"{row['value']:.3f}" in text
        assert f"[{row['low']:.3f}, {row['high']:.3f}]" in text
    assert "integers only" in text
    assert "human.csv" in text  # among the facts, with its SHA-256
    by_cell = content_of(folder).reliability[2].tables[1].groups[0].rows
    assert [row.labels for row in by_cell] == [("LoRA",), ("AutoLoRA",)]
    assert by_cell[0].cells[0].details == ("18 images",)


def test_agreement_with_other_scores_is_not_shown(tmp_path):
    folder = with_people(tmp_path / "run")
    scores = pd.read_parquet(folder.scores)
    scores.assign(pc=1.0).to_parquet(folder.scores)
    block = content_of(folder).reliability[2]
    assert block.tables == []
    assert "The scores have changed since they were compared" in block.sentences[0]
