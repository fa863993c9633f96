"""The judging stage with a server: requests, stored judgements and counts.

`test_judge_faults.py` proves which failures are asked again, and what a killed run keeps.
"""

from __future__ import annotations

import json
from math import nan

import pytest
from json_lines import read_jsonl
from judge_server import VERDICT, Call, Drop, Http, JudgeServer, completion
from judging import SECRET, N, by_content, judge, outcome, rows
from scored_run import manifest_of, replace_image, write_manifest

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import sha256_file
from autolora_eval.analysis.scores import join_scores
from autolora_eval.config.stage_inputs import judge_settings
from autolora_eval.scoring.judging import completed_judging


def test_each_image_is_judged_once_with_its_prompt(make, folder, server) -> None:
    plan = make()
    done = judge(plan, folder)
    assert (done.done, done.reused, done.unscored) == (N, 0, 0)
    assert len(server.calls) == N
    found = rows(plan, folder)
    assert [(row["prompt"], row["seed"]) for row in found] == 2 * [
        (job.prompt, job.seed) for job in plan.jobs
    ]
    asked = {call.sha256: call.parts[-1]["text"] for call in server.calls}
    for cell in plan.cells:
        for row in read_jsonl(folder.judgements(cell.id)):
            file = folder.images(cell.id) / row["image_id"]
            assert row["sha256"] == sha256_file(file)
            assert asked[row["sha256"]] == f"Does it show {row['prompt']}?"
            assert (row["scores"], row["reason"], row["raw"]) == ({"pc": 4.0}, None, VERDICT)
            assert (row["model"], row["judge_key"]) == ("served-as", done.key)


def test_complete_run_needs_no_server(make, folder, server) -> None:
    plan = make()
    done = judge(plan, folder)
    files = {cell.id: folder.judgements(cell.id).read_bytes() for cell in plan.cells}
    write_manifest(plan, folder)
    folder.update_manifest(judge=done)
    server.models = Drop()
    again = completed_judging(judge_settings(plan), folder.read_manifest(), folder)
    assert again == done.model_copy(update={"done": 0, "reused": N})
    assert len(server.calls) == N
    assert {cell.id: folder.judgements(cell.id).read_bytes() for cell in plan.cells} == files


def test_order_and_concurrency_do_not_matter(make, folder, server, benchmark_data) -> None:
    server.answer = by_content
    plan = make()
    key = judge(plan, folder).key
    first = outcome(plan, folder)
    for cell in plan.cells:
        folder.judgements(cell.id).unlink()
    benchmark_data["prompts"] = ["a blue house", "a cat", "a dog"]
    benchmark_data["methods"] = dict(reversed(benchmark_data["methods"].items()))
    other = make(concurrency=3)
    assert judge(other, folder).key == key
    assert outcome(other, folder) == first
    reasons = {reason for _, reason in first.values()}
    assert reasons >= {None, "out_of_range:pc"}


def test_judgements_before_a_server_failure_are_kept(make, folder, server) -> None:
    plan = make(concurrency=1)

    def answer(call: Call, n: int) -> object:
        if n >= 6:
            server.models = Drop()
            return Drop()
        return by_content(call, n)

    server.answer = answer
    found = r"It answered earlier in this run\. The judgements so far are kept"
    with pytest.raises(AutoLoRAEvalError, match=found):
        judge(plan, folder)
    kept = rows(plan, folder)
    assert len(kept) == 6
    before = {row["sha256"] for row in kept}
    asked = len(server.calls)
    server.models, server.answer = JudgeServer().models, by_content
    done = judge(plan, folder)
    assert (done.done, done.reused) == (N - 6, 6)
    assert len(server.calls) - asked == N - 6
    assert not {call.sha256 for call in server.calls[asked:]} & before
    assert len(outcome(plan, folder)) == N


def test_unscored_count_ignores_judgements_of_replaced_images(make, folder, server) -> None:
    plan = make()
    server.answer = lambda call, n: "no verdict" if n == 0 else VERDICT
    assert judge(plan, folder).unscored == 1
    replaced = next(row for row in rows(plan, folder) if row["scores"] is None)
    first = [folder.images(cell.id) / replaced["image_id"] for cell in plan.cells]
    mine = next(path for path in first if sha256_file(path) == replaced["sha256"])
    other = next(path for path in first if path != mine)
    replace_image(folder, mine.parent.parent.name, replaced["image_id"], other.read_bytes())
    assert judge(plan, folder).unscored == 0


def test_missing_and_corrupt_images_cause_no_call(make, folder, server) -> None:
    plan = make()
    absent, corrupt = (cell.id for cell in plan.cells)
    file = plan.jobs[1].file
    (folder.images(absent) / file).unlink()
    replace_image(folder, corrupt, file, b"no picture")
    done = judge(plan, folder)
    assert (len(server.calls), done.unscored) == (N - 2, 2)
    found = outcome(plan, folder)
    assert (absent, file) not in found
    assert found[corrupt, file] == (None, "corrupt_image")


def test_every_repeat_is_asked_and_kept(make, folder, server) -> None:
    seeds: list[int] = []

    def answer(call: Call, n: int) -> str:
        seeds.append(call.body["seed"])
        return f'{{"pc": {call.body["seed"]}}}'

    server.answer = answer
    plan = make(repeats=3, temperature=0.5)
    done = judge(plan, folder)
    assert (done.done, sorted(seeds)) == (3 * N, sorted([0, 1, 2] * N))
    found = rows(plan, folder)
    assert [(row["image_id"], row["repeat"]) for row in found] == [
        (job.file, repeat) for _ in plan.cells for job in plan.jobs for repeat in range(3)
    ]
    assert all(row["scores"] == {"pc": row["repeat"]} for row in found)
    scores, _ = join_scores(manifest_of(plan, folder, done.key), folder)
    assert scores["pc"].tolist() == [1.0] * N  # the mean of 0, 1 and 2
    # Fewer repeats ask nothing and count the first only; more ask for what is missing.
    fewer = make(repeats=2)
    assert judge(fewer, folder).done == 0
    scores, _ = join_scores(manifest_of(fewer, folder, done.key), folder)
    assert scores["pc"].tolist() == [0.5] * N
    assert judge(make(repeats=4), folder).done == N


def test_image_is_unscored_only_if_no_repeat_has_a_score(make, folder, server) -> None:
    def answer(call: Call, n: int) -> str:
        first = call.body["seed"] == 0
        return "I cannot tell." if first or call.sha256[0] < "8" else VERDICT

    server.answer = answer
    plan = make(repeats=2)
    done = judge(plan, folder)
    scores, _ = join_scores(manifest_of(plan, folder, done.key), folder)
    message = scores["sha256"] >= "8"
    assert scores["pc"].tolist() == [
        4.0 if each else pytest.approx(nan, nan_ok=True) for each in message
    ]
    assert scores["unscored_reason"].isna().tolist() == message.tolist()
    assert set(scores["unscored_reason"].dropna()) <= {"no_json"}


def test_lone_surrogates_are_replaced(make, folder, server) -> None:
    said = completion('{"pc": 2} \ud83d \U0001f600 \x00 é') | {"model": "m\ud83d" + "x" * 1000}
    body = json.dumps(said).encode()
    server.answer = lambda call, n: Http(200, body)
    plan = make()
    assert judge(plan, folder).unscored == 0
    assert {row["raw"] for row in rows(plan, folder)} == {'{"pc": 2} ? \U0001f600 \x00 é'}
    assert {row["model"] for row in rows(plan, folder)} == {"m?" + "x" * 198}
    assert judge(plan, folder).done == 0


def test_key_is_sent_but_never_written(make, folder, server, capfd, caplog) -> None:
    caplog.set_level("DEBUG")
    echo = f"Bearer {SECRET}"

    def answer(call: Call, n: int) -> object:
        """A server that repeats what it was sent."""
        if n < 3:  # the trials
            return VERDICT + echo
        said = [VERDICT + echo, Http(500, echo.encode()), Http(401, echo.encode()), echo]
        return said[n % 4] if n % 4 else completion(said[0]) | {"model": echo}

    server.answer = answer
    server.models = {"data": [{"id": "some-vlm", "root": echo, "owned_by": echo}]}
    server.version = echo
    plan = make(constraint="auto", max_retries=1)
    write_manifest(plan, folder)
    folder.update_manifest(judge=judge(plan, folder))
    assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {SECRET}"}
    written = [path for path in folder.path.rglob("*") if path.is_file()]
    assert folder.manifest in written
    assert folder.judgements(plan.cells[0].id) in written
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    shown = "".join(capfd.readouterr()) + caplog.text
    assert SECRET not in shown
