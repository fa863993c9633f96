"""The judge's replies in the gallery: whose they are, in what order, and why there is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report.judged_gallery import gallery_of, judgement, write_judgements
from report.synthetic_run import Tables

from autolora_eval.report import gallery_data as gallery_replies
from autolora_eval.report import write_report

pytestmark = pytest.mark.e2e

Maker = Callable[..., Tables]
Json = dict[str, Any]


def one_image(make_run: Maker, path: Path, *rows: Json) -> list[Json]:
    """Return the replies that the gallery shows for the one image of a run with these rows."""
    tables = make_run(methods=("LoRA", "AutoLoRA"), prompts=("one",), n_seeds=1)
    folder = tables.write(path)
    image = tables.scores.iloc[0]
    write_judgements(folder, [("SDXL--LoRA", judgement(image, **row)) for row in rows])
    replies: list[Json] = gallery_of(folder).data["images"][0]["replies"]
    return replies


def test_replies_are_those_of_the_runs_judge_to_the_image_as_it_is(
    tmp_path: Path, make_run: Maker
) -> None:
    (found,) = one_image(
        make_run,
        tmp_path / "run",
        {"raw": "another judge", "judge_key": "other"},
        {"raw": "another picture", "sha256": "1" * 64},
        {"raw": "first try", "scores": None, "reason": "http_500"},
        {"raw": "second try", "attempt": 2},
        {"raw": "last", "judge_key": "other"},
    )
    assert found == {
        "about": "a-judge, attempt 2, 0.25 s, PC 3.5, SA 4.5",
        "raw": "second try",
        "note": "",
    }


def test_each_repeat_is_shown_up_to_five(tmp_path: Path, make_run: Maker) -> None:
    rows = [{"repeat": n, "raw": f"reply {n}"} for n in (1, 0, 2, 3, 4, 5, 6)]
    found = one_image(make_run, tmp_path / "run", *rows)
    assert [reply["raw"] for reply in found] == [*(f"reply {n}" for n in range(5)), None]
    assert found[0]["about"].startswith("a-judge, reply 1 of 7, attempt 1")
    assert found[5]["about"] == "2 more replies: judgements/SDXL--LoRA.jsonl"


def test_an_unscored_reply_tells_why(tmp_path: Path, make_run: Maker) -> None:
    (read,) = one_image(
        make_run, tmp_path / "a", {"scores": None, "reason": "out_of_range:pc", "cached": True}
    )
    assert read["about"] == (
        "a-judge, attempt 1, from the cache of earlier replies, unscored: out of range: pc"
    )
    (failed,) = one_image(
        make_run, tmp_path / "b", {"scores": None, "reason": "timeout", "raw": None}
    )
    assert failed["about"].endswith("unscored: timeout, no reply")
    assert failed["raw"] is None
    (none,) = one_image(make_run, tmp_path / "c")
    assert none["about"] == "judgements/SDXL--LoRA.jsonl has no reply to this image."


def test_a_long_reply_is_cut_and_says_so(tmp_path: Path, make_run: Maker) -> None:
    (found,) = one_image(make_run, tmp_path / "run", {"raw": "x" * 2001})
    assert found["raw"] == "x" * gallery_replies.RAW_LENGTH
    assert found["note"] == (
        "The first 2,000 of 2,001 characters; the rest is in judgements/SDXL--LoRA.jsonl."
    )
    (whole,) = one_image(make_run, tmp_path / "other", {"raw": "x" * 2000})
    assert whole["note"] == ""


@pytest.mark.parametrize("line", ["{not json}\n", '{"image_id": 1}\n', "[]\n", "\xff\n"])
def test_a_damaged_file_of_judgements_leaves_a_report(
    tmp_path: Path, make_run: Maker, line: str
) -> None:
    folder = make_run(methods=("LoRA", "AutoLoRA"), prompts=("one",), n_seeds=1).write(
        tmp_path / "run"
    )
    folder.judgements("x").parent.mkdir()
    folder.judgements("SDXL--LoRA").write_text(line, encoding="latin-1")
    write_report(folder)
    (reply,) = gallery_of(folder).data["images"][0]["replies"]
    assert reply["about"].startswith("judgements/SDXL--LoRA.jsonl cannot be read: ")
    assert reply["raw"] is None


def test_judgements_outside_the_run_folder_are_not_read(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"), prompts=("one",), n_seeds=1)
    tables.table["cell"] = tables.scores["cell"] = "../../secret"
    folder = tables.write(tmp_path / "run")
    secret = judgement(tables.scores.iloc[0], raw="secret")
    (tmp_path / "secret.jsonl").write_text(json.dumps(secret) + "\n")
    reply = gallery_of(folder).data["images"][0]["replies"][0]
    assert "leads out of its run folder" in reply["about"]
    assert reply["raw"] is None
