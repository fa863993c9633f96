"""What a report says of its judge, with and without the files that tell."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from report.readers import page, pdf_text
from report.synthetic_run import Tables

from autolora_eval.analysis.human_agreement import write_agreement
from autolora_eval.analysis.reliability import COLUMNS
from autolora_eval.report import write_report
from autolora_eval.report.content import build_content
from autolora_eval.report.judge_reliability import reliability
from autolora_eval.report.run_view import read_evidence
from autolora_eval.report.tables import Block, Entry
from autolora_eval.runs.folder import RunFolder

Maker = Callable[..., Tables]
CELLS = ("SDXL--LoRA", "SDXL--AutoLoRA")
SIX = tuple(f"prompt {n}" for n in range(6))


def small(make_run: Maker, **options: Any) -> Tables:
    return make_run(methods=("LoRA", "AutoLoRA"), **options)


def repeats(alpha: float = 0.9, **changes: object) -> pd.DataFrame:
    """A reliability table of two scores: α of SA is 0.1 above that of PC."""
    rows = [
        {
            "cell": cell,
            "score": score,
            "n_images": 6,
            "n_asked": 18,
            "n_verdicts": 17,
            "n_repeated": 6,
            "unit": "prompt",
            "n_units": 6,
            "alpha": alpha + 0.1 * place,
            "alpha_low": alpha + 0.1 * place - 0.111,
            "alpha_high": alpha + 0.1 * place + 0.022,
            "exact_agreement": 0.625,
            "mean": 3.125,
            "expected_mean": np.nan,
            "reason": None,
        }
        | changes
        for place, score in enumerate(("pc", "sa"))
        for cell in (*CELLS, "all")
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


class Told(NamedTuple):
    """What a report tells of its judge: on the first page, and inside."""

    caveats: list[str]
    reliability: list[Block]


def content_of(folder: RunFolder) -> Told:
    evidence = read_evidence(folder)
    return Told(build_content(evidence).first.caveats, reliability(evidence))


def said(content: Told, n: int) -> str:
    return " ".join(content.reliability[n].sentences)


def test_a_run_of_before_says_what_is_not_known_and_how_to_know_it(
    tmp_path: Path, make_run: Maker
) -> None:
    folder = small(make_run).write(tmp_path / "run")
    write_report(folder)
    for text in (pdf_text(folder), page(folder).text):
        assert "How far the judge can be trusted" in text
        assert "All 12 images were scored." in text
        assert "nothing tells how far the judge repeats itself" in text
        assert "judge.repeats: 3" in text
        assert "To do so: autolora-eval agreement RUN human.csv" in text
    assert content_of(folder).caveats == []


def test_without_a_judge_there_is_no_such_section(tmp_path: Path, make_run: Maker) -> None:
    content = content_of(small(make_run, judged=False).write(tmp_path / "run"))
    assert content.reliability == []
    assert len(content.caveats) == 1


def unscored(tables: Tables, reasons: dict[int, str]) -> Tables:
    for row, reason in reasons.items():
        tables.scores.loc[row, ["pc", "sa"]] = np.nan
        tables.scores.loc[row, "unscored_reason"] = reason
    counts = tables.scores.groupby("cell", sort=False)["unscored_reason"].count()
    tables.table["n_unscored"] = counts.to_numpy()
    return tables


def test_unscored_images_are_told_by_cell_and_reason(tmp_path: Path, make_run: Maker) -> None:
    reasons = {0: "no_json", 1: "no_json", 7: "out_of_range:pc"}
    content = content_of(unscored(small(make_run), reasons).write(tmp_path / "run"))
    table = content.reliability[0].tables[0]
    assert table.columns == ["Images", "Unscored", "no json", "out of range: pc"]
    texts = [[entry.text for entry in line.entries] for line in table.groups[0].lines]
    assert texts == [["6", "2", "2", "0"], ["6", "1", "0", "1"]]
    assert table.groups[0].lines[0].entries[1].sub == "33.3 %"
    assert said(content, 0) == "Unscored: 3 of 12 images (25.0 %)."
    caveat = next(c for c in content.caveats if "is unscored" in c)
    assert caveat.startswith("33.3 % of SDXL × LoRA is unscored, and 16.7 % of the cell with the")


def test_rare_reasons_are_told_together(tmp_path: Path, make_run: Maker) -> None:
    tables = unscored(small(make_run), {n: f"reason {min(n, 6)}" for n in range(9)})
    table = content_of(tables.write(tmp_path / "run")).reliability[0].tables[0]
    assert table.columns[2:] == ["reason 6", "reason 0", "reason 1", "reason 2", "3 other reasons"]
    assert [e.text for e in table.groups[0].lines[0].entries] == ["6", "6", "0", "1", "1", "1", "3"]


@pytest.mark.parametrize(("n_unscored", "told"), [(1, False), (2, True)])
def test_one_in_a_hundred_unscored_is_no_caveat_of_its_own(
    tmp_path: Path, make_run: Maker, n_unscored: int, told: bool
) -> None:
    tables = small(make_run)
    tables.table["n_images"] = 100
    tables.table["n_unscored"] = [n_unscored, 0]
    content = content_of(tables.write(tmp_path / "run"))
    assert any("is unscored" in caveat for caveat in content.caveats) is told


def test_how_the_judge_was_asked_is_told(tmp_path: Path, make_run: Maker) -> None:
    tables = small(make_run)
    judge = {"constraint": "guided_regex", "served_by": "vllm", "server_version": "0.10.2"}
    tables.manifest["judge"] |= judge | {"cached": 1}
    folder = tables.write(tmp_path / "run")
    assert said(content_of(folder), 0).endswith(
        "The judge was served by vllm 0.10.2. The judge's replies were held to the rubric's form "
        "(guided_regex). 1 reply was taken from the cache of earlier runs."
    )
    tables.manifest["judge"] |= {"constraint": "plain", "served_by": None, "cached": 0}
    tables.manifest["judge"]["server_version"] = None
    told = said(content_of(tables.write(tmp_path / "plain")), 0)
    assert told.endswith("scored. The judge's replies were free: nothing held them to the "
                         "rubric's form (plain).")  # fmt: skip


def test_repeats_are_told_with_intervals(tmp_path: Path, make_run: Maker) -> None:
    tables = small(make_run)
    tables.manifest["judge"]["repeats"] = 3
    folder = tables.write(tmp_path / "run")
    repeats().to_csv(folder.reliability, index=False)
    write_report(folder)
    for text in (pdf_text(folder), page(folder).text):
        for expected in ("0.900", "[0.789, 0.922]", "1.000", "[0.889, 1.022]", "62.5 %"):
            assert expected in text
        assert "Each image was judged 3 times." in text
        assert "BCa bootstrap over prompts" in text
        assert "1 of 18 replies hold no verdict" in text
        assert "At temperature 0 a judge repeats itself by design" in text
        assert "repeats itself badly" not in text
    tables.manifest["judge"]["temperature"] = 0.7
    (folder.path / "manifest.json").write_text(json.dumps(tables.manifest))
    assert "At temperature 0" not in said(content_of(folder), 1)


def test_a_judge_that_repeats_itself_badly_is_a_caveat(tmp_path: Path, make_run: Maker) -> None:
    folder = small(make_run).write(tmp_path / "run")
    repeats(alpha=0.6).to_csv(folder.reliability, index=False)
    write_report(folder)
    for text in (pdf_text(folder), page(folder).text):
        caveats = text[: text.index("What differs")]
        assert "Prompt correspondence: the judge repeats itself badly, α = 0.600" in caveats
        assert "Style adherence: the judge" not in caveats  # 0.7 is not below 0.667
        assert "Krippendorff (Content Analysis, 2nd ed. 2004, p. 241)" in caveats


def test_an_undefined_alpha_is_a_dash_with_its_reason(tmp_path: Path, make_run: Maker) -> None:
    folder = small(make_run).write(tmp_path / "run")
    lost = {"alpha": np.nan, "alpha_low": np.nan, "alpha_high": np.nan}
    repeats(**lost, reason="constant: all are 4").to_csv(folder.reliability, index=False)
    block = content_of(folder).reliability[1]
    assert block.tables[0].groups[0].lines[0].entries[0] == Entry("–", mark="a")
    assert [note.text for note in block.tables[0].notes] == ["constant: all are 4"]
    assert content_of(folder).caveats == []


def test_expected_scores_stand_beside_the_verdicts(tmp_path: Path, make_run: Maker) -> None:
    folder = small(make_run).write(tmp_path / "run")
    once = {"n_repeated": 0, "alpha": np.nan, "exact_agreement": np.nan, "expected_mean": 3.375}
    repeats(**once, reason="no image has two verdicts").to_csv(folder.reliability, index=False)
    block = content_of(folder).reliability[1]
    assert block.tables[0].columns == ["PC mean", "PC expected", "SA mean", "SA expected"]
    texts = [entry.text for entry in block.tables[0].groups[1].lines[0].entries]
    assert texts == ["3.125", "3.375"] * 2
    assert "judge.repeats: 3" in block.sentences[0]


def with_people(make_run: Maker, path: Path, expected: bool = False) -> RunFolder:
    tables = small(make_run, prompts=SIX)
    rng = np.random.default_rng(1)
    n = len(tables.scores)
    people = rng.integers(0, 6, n).astype(float)
    tables.scores["pc"] = np.clip(people + rng.integers(-1, 2, n), 0, 5)
    if expected:
        tables.scores["pc_expected"] = people * 0.9 + 0.2
    folder = tables.write(path)
    frames = [
        tables.scores[["file"]].assign(rater=name, pc=np.clip(people + shift, 0, 5))
        for name, shift in (("ann", 0), ("bob", rng.integers(0, 2, n)))
    ]
    human = path.parent / "human.csv"
    pd.concat(frames).to_csv(human, index=False)
    write_agreement(path, human)
    return folder


def test_agreement_with_people_is_told(tmp_path: Path, make_run: Maker) -> None:
    folder = with_people(make_run, tmp_path / "run", expected=True)
    found = pd.read_csv(folder.agreement)
    write_report(folder)
    for text in (pdf_text(folder), page(folder).text):
        assert "72 ratings of 36 images by 2 people, averaged over people for each image." in text
        assert "Among themselves, people agree with α = " in text
        assert "PC: the expected score is nearer to people than the verdict is (+" in text
        for _, row in found[found["statistic"].isin(["spearman", "kappa"])].iterrows():
            assert f"{row['value']:.3f}" in text
            assert f"[{row['low']:.3f}, {row['high']:.3f}]" in text
        assert "told of whole numbers only" in text
        assert "human.csv" in text  # among the facts, with its SHA-256
    by_cell = content_of(folder).reliability[2].tables[1]
    assert [line.label for line in by_cell.groups[0].lines] == ["LoRA", "AutoLoRA"]
    assert by_cell.groups[0].lines[0].entries[0].sub.endswith("18 images")


def test_agreement_with_other_scores_is_not_shown(tmp_path: Path, make_run: Maker) -> None:
    folder = with_people(make_run, tmp_path / "run")
    scores = pd.read_parquet(folder.scores)
    scores.assign(pc=1.0).to_parquet(folder.scores)
    block = content_of(folder).reliability[2]
    assert block.tables == []
    assert "were compared with other scores than these" in block.sentences[0]


@pytest.mark.parametrize("content", ["", "cell\n", '\x00\x01,,\n"', "cell,score\nall,pc\n"])
def test_damaged_tables_leave_a_report(tmp_path: Path, make_run: Maker, content: str) -> None:
    folder = small(make_run).write(tmp_path / "run")
    folder.reliability.write_text(content)
    folder.agreement.write_text(content)
    assert "nothing tells how far" in said(content_of(folder), 1)


def test_hostile_words_stay_words(tmp_path: Path, make_run: Maker) -> None:
    hostile = '<script>x</script> #panic() {{ 7*7 }} "> onload=1 \u202e\x00'
    tables = unscored(small(make_run, prompts=SIX), {0: hostile, 1: "M" * 300})
    tables.manifest["judge"] |= {"constraint": hostile, "served_by": hostile}
    folder = tables.write(tmp_path / "run")
    table = repeats(reason=hostile, unit=hostile)
    table.to_csv(folder.reliability, index=False)
    human = tmp_path / "<img src=x onerror=y>.csv"
    tables.scores[["file"]].assign(pc=1).to_csv(human, index=False)
    write_agreement(folder.path, human)
    found = pd.read_csv(folder.agreement)
    found.assign(reason=hostile).to_csv(folder.agreement, index=False)
    write_report(folder)
    html = page(folder)
    shown = hostile[:-2] + "\ufffd\ufffd"
    assert html.text.count(shown) >= 3
    assert {tag for tag, _ in html.tags} & {"script"} == set()
    assert [a for _, a in html.tags if any(key.startswith("on") for key in a)] == []
    assert html.open == []
    assert "#panic()" in pdf_text(folder)
    assert "49" not in said(content_of(folder), 0)
