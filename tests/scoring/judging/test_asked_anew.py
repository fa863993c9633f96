"""Which judgements are new, and which come from the run or from the cache of replies."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from io import StringIO
from typing import Any

import pytest
from judge_server import VERDICT, Http
from judging import N, by_content, judge, rows
from rich.console import Console
from scored_run import judge_plan, replace_image, write_images

from autolora_eval._files import sha256_file
from autolora_eval._progress import Progress
from autolora_eval.config.stage_inputs import judge_settings
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.judgement_store import JudgementFile, judgements_by_image
from autolora_eval.scoring.judging import open_judge
from autolora_eval.scoring.reply import MAX_REPLY

CHANGES: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.5},
    "max_tokens": {"max_tokens": 64},
    "seed": {"seed": 1},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_setting_causes_new_judgements(change, make, folder, server) -> None:
    first = judge(make(), folder)
    second = judge(make(**change), folder)
    assert (second.done, second.reused) == (N, 0)
    assert second.key != first.key
    back = judge(make(**{name: benchmark_default(name) for name in change}), folder)
    assert (back.done, back.key) == (0, first.key)


def benchmark_default(name: str) -> object:
    from autolora_eval.scoring.judges.config import JudgeConfig

    return JudgeConfig.model_fields[name].default


def test_launch_arguments_are_part_of_the_key(make) -> None:
    """They are the run's own, and no server tells them."""
    launch = {"launch": True, "vllm_python": "python", "model": "org/vlm", "base_url": "http://x"}
    plain = judge_settings(make(**launch)).request_key
    assert judge_settings(make(**launch, launch_args=["--max-num-seqs", "4"])).request_key == plain
    assert (
        judge_settings(make(**launch, launch_args=["--quantization", "fp8"])).request_key != plain
    )


def test_other_root_model_or_rubric_causes_new_judgements(make, folder, server, workplace) -> None:
    """The root, or the size of the weights, distinguishes two checkpoints under one name."""
    models = [{"id": "some-vlm", "root": "org/some-vlm"}, {"id": "other-vlm"}]
    server.models = {"data": models}
    judge(make(), folder)
    models[0]["root"] = "org/another"
    assert judge(make(), folder).done == N
    models[0]["meta"] = {"n_params": 7_000, "size": 4_000, "n_ctx": 4_096}
    assert judge(make(), folder).done == N
    models[0]["meta"] |= {"n_ctx": 8_192}
    assert judge(make(), folder).done == 0
    models[0]["meta"] |= {"size": 8_000}  # less quantised
    assert judge(make(), folder).done == N
    assert judge(make(model="other-vlm"), folder).done == N
    assert server.calls[-1].body["model"] == "other-vlm"
    rubric = workplace / "rubric.yaml"
    rubric.write_text(rubric.read_text().replace("Does it", "Does this"))
    assert judge(make(), folder).done == N
    assert server.calls[-1].parts[-1]["text"].startswith("Does this show")


def test_other_server_version_causes_no_new_judgements(make, folder, server) -> None:
    """Address, version, time-outs and concurrency decide no reply."""
    judge(make(), folder)
    server.version = "0.99"
    settings = {"timeout": 9.0, "max_retries": 1, "concurrency": 2}
    assert judge(make(**settings), folder).done == 0


def test_only_a_changed_image_is_judged_again(make, folder, server) -> None:
    plan = make()
    server.answer = by_content
    judge(plan, folder)
    first, second = (folder.images(cell.id) / plan.jobs[0].file for cell in plan.cells)
    replace_image(folder, plan.cells[0].id, plan.jobs[0].file, second.read_bytes())
    done = judge(plan, folder)
    assert (done.done, len(server.calls)) == (1, N + 1)
    cell = plan.cells[0].id
    key = plan.jobs[0].file, sha256_file(first)
    (row,) = judgements_by_image(JudgementFile(folder.judgements(cell)).rows(done.key))[key]
    assert row["raw"] == by_content(server.calls[-1], 0)


@pytest.fixture
def other(make, tmp_path) -> RunFolder:
    """Another run with the same images."""
    write_images(make(), RunFolder(tmp_path / "other"))
    return RunFolder(tmp_path / "other")


def test_other_run_takes_replies_from_the_cache(make, folder, server, other) -> None:
    server.answer = by_content
    first = judge(make(cache=True), folder)
    assert (first.done, first.cached) == (N, 0)
    before, calls = rows(make(), folder), len(server.calls)
    second = judge(make(cache=True), other)
    assert (second.done, second.cached) == (0, N)
    assert len(server.calls) == calls
    assert second.unscored == first.unscored
    found = rows(make(), other)
    assert {row["cached"] for row in found} == {True}
    differing = {"cached": False, "attempt": 1}
    assert [row | differing for row in found] == before


@pytest.mark.parametrize("change", [*CHANGES.values(), {"cache": False}])
def test_cache_is_used_only_for_the_same_question(change, make, folder, server, other) -> None:
    judge(make(cache=True), folder)
    done = judge(make(**{"cache": True} | change), other)
    assert (done.done, done.cached) == (N, 0)


def test_failed_call_is_not_cached(make, folder, server, other) -> None:
    server.answer = lambda call, n: Http(500) if n < 3 else VERDICT
    judge(make(cache=True, concurrency=1), folder)
    done = judge(make(cache=True), other)
    assert (done.done, done.cached, done.unscored) == (3, N - 3, 0)


@pytest.mark.parametrize("part", ["raw", "model"])
def test_damaged_cache_entry_causes_a_new_call(part, make, folder, server, other, tmp_path) -> None:
    judge(make(cache=True), folder)
    with sqlite3.connect(tmp_path / "cache" / "judgements.sqlite") as connection:
        connection.execute(f"UPDATE replies SET reply = json_set(reply, '$.{part}', NULL)")
    connection.close()
    done = judge(make(cache=True), other)
    assert (done.done, done.cached, done.unscored) == (N, 0, 0)


def test_shortened_reply_is_not_cached(make, folder, server, other) -> None:
    """The first letters of a reply that is too long may hold a verdict; the whole has none."""
    server.answer = lambda call, n: VERDICT + "." * MAX_REPLY
    assert judge(make(cache=True), folder).unscored == N
    done = judge(make(cache=True), other)
    assert (done.cached, done.unscored) == (0, N)


def test_unusable_cache_is_reported_and_ignored(
    make, folder, server, tmp_path, monkeypatch
) -> None:
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("AUTOLORA_EVAL_CACHE", str(tmp_path / "a_file"))
    said = StringIO()
    plan = make(cache=True)
    with closing(open_judge(judge_settings(plan))) as asked:
        done = judge_plan(plan, folder, asked, Progress(Console(file=said, width=500)))
    assert (done.done, done.cached) == (N, 0)
    assert "the cache of earlier replies is not used: " in said.getvalue()
    assert done.cache_problem in said.getvalue()
