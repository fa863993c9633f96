"""A server that fails in every way: no image is lost, and none is judged twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from json_lines import read_jsonl
from judge_server import Call, Drop, Hang, Http, JudgeServer, completion, judge_server
from judging import SECRET, judge, rows
from scored_run import manifest_of, write_images

from autolora_eval._files import Json
from autolora_eval.analysis.scores import join_scores
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.judge import is_transient
from autolora_eval.scoring.judges import openai_judge

pytestmark = pytest.mark.e2e

N = 200  # 2 cells × 10 prompts × 10 seeds
CONCURRENCY = 8
# What the server does, its weight, and the outcome of an image with that answer.
SAID: dict[str, tuple[int, Any, Any]] = {
    "scores": (50, '{"pc": 3}', 3.0),
    "scores within text": (5, 'Surely:\n```json\n{"pc": "2",}\n```\n', 2.0),
    "corrected scores": (5, 'It says {"pc": 5}, but no: {"pc": 1}', 1.0),
    "out of range": (4, '{"pc": 6}', "out_of_range:pc"),
    "not a number": (2, '{"pc": "good"}', "not_a_number:pc"),
    "other keys": (2, '{"score": 3}', "missing_score"),
    "no JSON": (3, "I would rather not say.", "no_json"),
    "white space": (3, completion('{"pc":' + " \n\t" * 4000, "length"), "truncated"),
    "only white space": (2, completion(" " * 30_000, "stop"), "no_json"),
    "refusal": (2, completion(None, "content_filter"), "refused"),
}
FAILED: dict[str, tuple[int, Any, str]] = {
    "500": (5, Http(500, b'{"error": {"message": "boom"}}'), "http_500"),
    "503 in HTML": (3, Http(503, b"<html>busy</html>", "text/html"), "http_503"),
    "429": (4, Http(429, b"{}", headers={"Retry-After": "0.05"}), "http_429"),
    "400": (2, Http(400, b"{}"), "http_400"),
    "hang": (1, Hang(1.5), "timeout"),
    "drop": (4, Drop(), "connection"),
    "torn body": (3, Http(200, b'{"choices": [', declared_length=900), "connection"),
    "HTML": (3, Http(200, b"<html>Log in</html>", "text/html"), "bad_response"),
    "empty": (2, Http(200, b""), "bad_response"),
    "too long a body": (1, Http(200, b" " * 5_000_000), "bad_response"),
}
WAYS = SAID | FAILED
NAMES, WEIGHTS = list(WAYS), [way[0] for way in WAYS.values()]


class Faulty:
    """A server whose answer depends on the image and on the number of earlier calls for it.

    Attributes:
        asked: the answers so far, by SHA-256 of the image.
    """

    def __init__(self) -> None:
        self.asked: dict[str, list[str]] = {}
        self.total = 0
        self._lock = threading.Lock()

    def __call__(self, call: Call, n: int) -> Any:
        with self._lock:
            before = self.asked.setdefault(call.sha256, [])
            chosen = random.Random(f"{call.sha256} {len(before)}")
            before.append(chosen.choices(NAMES, WEIGHTS)[0])
            self.total += 1
            return WAYS[before[-1]][1]

    def said(self, sha256: str) -> list[str]:
        """The answers about an image that were replies, not failures."""
        return [name for name in self.asked[sha256] if name in SAID]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[JudgeServer, Faulty]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_API_KEY", SECRET)
    monkeypatch.setattr(openai_judge, "BACKOFF_SECONDS", 0.01)
    faults = Faulty()
    with judge_server(JudgeServer(answer=faults, keep=False)) as server:
        yield server, faults


@pytest.fixture
def benchmark(faulty, write_benchmark, benchmark_data) -> Path:
    judge = {"base_url": faulty[0].url, "max_retries": 2, "concurrency": CONCURRENCY}
    judge |= {"timeout": 1.0, "constraint": "plain", "cache": False, "give_up_after": 20.0}
    benchmark_data["judge"] = benchmark_data["judge"] | judge
    benchmark_data["prompts"] = [f"prompt number {n}" for n in range(10)]
    benchmark_data["seeds"] = {"start": 0, "count": 10}
    return write_benchmark(benchmark_data)


@pytest.fixture
def plan(benchmark: Path) -> Plan:
    return make_plan(load_benchmark(benchmark))


@pytest.fixture
def folder(plan: Plan, tmp_path: Path) -> RunFolder:
    write_images(plan, folder := RunFolder(tmp_path / "run"))
    return folder


def judge_until_complete(plan: Plan, folder: RunFolder) -> list[Json]:
    """Judge again until no call of the last run failed; a run makes at most three calls each."""
    done = [judge(plan, folder)]
    while any(is_transient(row["reason"]) for row in rows(plan, folder)):
        assert len(done) < 12
        done.append(judge(plan, folder))
    return done


def outcome(row: Json) -> object:
    return row["reason"] if row["scores"] is None else row["scores"]["pc"]


def check_accounts(plan: Plan, folder: RunFolder, done: Json) -> None:
    """Every image has one row, in order, and all counts agree."""
    found = rows(plan, folder)
    planned = [(cell.id, job.file) for cell in plan.cells for job in plan.jobs]
    scores, _ = join_scores(manifest_of(plan, folder, done.key), folder)
    assert len(planned) == N == len(found) == len(scores)
    for cell in plan.cells:
        ids = [row["image_id"] for row in read_jsonl(folder.judgements(cell.id))]
        assert ids == [job.file for job in plan.jobs]
    unscored = sum(row["scores"] is None for row in found)
    assert done.done + done.reused + done.cached == N
    assert done.unscored == unscored == scores["unscored_reason"].notna().sum()
    assert scores["pc"].isna().sum() == unscored
    shown = scores.set_index("sha256")
    for row in found:
        column = "unscored_reason" if row["scores"] is None else "pc"
        assert outcome(row) == shown.at[row["sha256"], column]


def test_every_image_ends_scored_or_with_the_right_reason(faulty, plan, folder) -> None:
    _, faults = faulty
    first = judge(plan, folder)
    check_accounts(plan, folder, first)
    # After one run: the first reply, or the failure of the last of three calls.
    for row in rows(plan, folder):
        names = faults.asked[row["sha256"]]
        assert outcome(row) == WAYS[names[-1]][2]
        assert row["attempt"] <= len(names)
        assert all(name in FAILED for name in names[:-1])
    failed = Counter(row["reason"] for row in rows(plan, folder) if is_transient(row["reason"]))
    assert len(failed) >= 3  # otherwise the next part proves nothing
    before = {sha256: len(names) for sha256, names in faults.asked.items()}
    final = {row["sha256"] for row in rows(plan, folder) if not is_transient(row["reason"])}
    done = judge_until_complete(plan, folder)[-1]
    check_accounts(plan, folder, done)
    for row in rows(plan, folder):
        (said,) = faults.said(row["sha256"])
        assert outcome(row) == SAID[said][2]
        assert (len(faults.asked[row["sha256"]]) == before[row["sha256"]]) == (
            row["sha256"] in final
        )
    reasons = {outcome(row) for row in rows(plan, folder)}
    assert reasons == {way[2] for way in SAID.values()}


DRIVER = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from judging import judge
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.judges import openai_judge
openai_judge.BACKOFF_SECONDS = 0.01
judge(make_plan(load_benchmark(sys.argv[1])), RunFolder(Path(sys.argv[2])))
"""


def killed_after(calls: int, faults: Faulty, benchmark: Path, folder: RunFolder) -> None:
    """Judge in a separate process, and kill it after so many more calls."""
    until = faults.total + calls
    command = [sys.executable, "-c", DRIVER, str(benchmark), str(folder.path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while faults.total < until:
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        threading.Event().wait(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_nothing_is_lost_if_the_run_is_killed_twice(faulty, benchmark, plan, folder) -> None:
    _, faults = faulty
    chosen = random.Random(3)
    settled: dict[str, Json] = {}  # rows on disk when the process was killed
    calls: dict[str, int] = {}  # and the number of calls for their images by then
    for _ in range(2):
        killed_after(chosen.randrange(40, 90), faults, benchmark, folder)
        standing = [row for row in rows(plan, folder) if not is_transient(row["reason"])]
        settled |= {row["sha256"]: row for row in standing}
        calls |= {sha256: len(faults.asked[sha256]) for sha256 in settled}
    assert 25 < len(settled) < N
    done = judge_until_complete(plan, folder)[-1]
    check_accounts(plan, folder, done)
    twice = 0
    for row in rows(plan, folder):
        said = faults.said(row["sha256"])
        # Only calls in progress when the process was killed can have been repeated.
        twice += len(said) - 1
        assert outcome(row) == SAID[said[-1]][2]
        if row["sha256"] in settled:
            assert row == settled[row["sha256"]]
            assert len(faults.asked[row["sha256"]]) == calls[row["sha256"]]
    assert twice <= 2 * 2 * CONCURRENCY
    for path in folder.path.rglob("*"):
        assert not (path.is_file() and SECRET.encode() in path.read_bytes()), path
