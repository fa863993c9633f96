"""A real vLLM serves the shipped miniature judge, and scores real images that were generated here.

`make vllm` makes the environment that it runs in, which the product does not share.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import other_environment
import psutil
import pytest
import yaml
from creatures import creatures

from autolora_eval._files import Json, read_jsonl
from autolora_eval._pipeline import RunPipeline
from autolora_eval._progress import Progress
from autolora_eval._resources import shipped_root
from autolora_eval.config.load import find_benchmark, load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.constraint import reply_pattern
from autolora_eval.scoring.judges.base import Request
from autolora_eval.scoring.judges.vllm_server import launched_server
from autolora_eval.scoring.judging import judge_images, open_judge
from autolora_eval.scoring.reply import parse_reply
from autolora_eval.scoring.rubric import read_rubric

LIMITS = (6, 4)  # of 4 methods: 96 images
AGREE = 0.95
PYTHON = other_environment.PYTHON
# What vLLM's CPU build needs to know on a small machine.
VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
SERVER = {
    "backend": "openai",
    "launch": True,
    "vllm_python": str(PYTHON),
    "launch_args": ["--dtype", "bfloat16", "--max-model-len", "1024", "--enforce-eager"],
    "launch_timeout": 300.0,
}

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """Leave these tests out where there is no vLLM, but never in CI."""
    other_environment.require()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        yield


def benchmark_with(judge: Json, file: Path) -> Path:
    """Write the quick start with another judge."""
    data = yaml.safe_load(find_benchmark("quickstart").read_text())
    data["judge"] |= {"logprobs": True, "cache": False} | judge
    file.write_text(yaml.safe_dump(data))
    return file


def plan_with(judge: Json, file: Path) -> Plan:
    return make_plan(load_benchmark(benchmark_with(judge, file)), *LIMITS)


def judged(plan: Plan, folder: RunFolder, base_urls: list[str] | None) -> tuple[Json, list[Json]]:
    """Judge all images and return what is told of the judge, and the rows."""
    told = judge_images(plan, folder, open_judge(plan, base_urls), Progress())
    rows = [row for cell in plan.cells for row in read_jsonl(folder.judgements(cell.id))]
    return told, rows


CHARACTER = {"rubric": "prompts/rubrics/character_miniature.yaml"}


def said_of_creatures(plan: Plan, pictures: list[Path], base_urls: list[str] | None) -> list[str]:
    """The replies to another rubric, about pictures of the miniatures' character."""
    rubric = plan.benchmark.rubric
    assert rubric is not None
    requests = [Request(path, rubric.question("Zib")) for path in pictures]
    with closing(open_judge(plan, base_urls)) as asked:
        asked.identity()  # how its replies are held to the rubric
        replies = {
            request.image: reply for group in asked.replies(requests) for request, reply in group
        }
    return [str(replies[path].text) for path in pictures]


# The plan, what is told of each judge, the rows by judge, and vLLM's log; then the replies about
# the character by judge.
Judged = tuple[Plan, dict[str, Json], dict[str, list[Json]], str]
Both = tuple[Judged, dict[str, list[str]]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """What both judges say of the quick start's images, and of creatures."""
    place = tmp_path_factory.mktemp("judged")
    plans = {
        "in process": plan_with({}, place / "in_process.yaml"),
        "vLLM": plan_with(SERVER, place / "served.yaml"),
    }
    folders = {name: RunFolder(place / name) for name in plans}
    limits = dict(zip(("limit_prompts", "limit_seeds"), LIMITS, strict=True))
    RunPipeline(
        plans["in process"], folders["in process"], Progress(), "quickstart", limits
    ).generate()
    shutil.copytree(folders["in process"].path, folders["vLLM"].path)

    told, rows = {}, {}
    told["in process"], rows["in process"] = judged(
        plans["in process"], folders["in process"], None
    )
    spec = plans["vLLM"].benchmark.spec.judge
    assert spec is not None
    log, said = place / "vllm.log", {}
    pictures = [path for path, _ in creatures(place, each=2, seed=4_103)]
    character = plan_with(CHARACTER, place / "character.yaml")
    said["in process"] = said_of_creatures(character, pictures, None)
    with launched_server(spec, log, print) as url:
        told["vLLM"], rows["vLLM"] = judged(plans["vLLM"], folders["vLLM"], [url])
        character = plan_with(SERVER | CHARACTER, place / "character_served.yaml")
        said["vLLM"] = said_of_creatures(character, pictures, [url])
    return (plans["vLLM"], told, rows, log.read_text()), said


@pytest.fixture(scope="module")
def both(served: Both) -> Judged:
    return served[0]


def test_it_is_vllm_and_it_obeys_the_schema(both: Judged) -> None:
    _, told, _, log = both
    served = told["vLLM"]
    assert served["served_by"] == "vllm"
    assert re.match(r"\d+\.\d+", served["server_version"])
    assert served["constraint"] == "structured_outputs"
    assert served["logprobs"]
    assert log.count("POST /v1/chat/completions") >= 96


def test_every_reply_is_one_that_the_rubric_allows(both: Judged) -> None:
    plan, told, rows, _ = both
    rubric = plan.benchmark.rubric
    assert rubric is not None
    assert len(rows["vLLM"]) == plan.n_images == 96
    for row in rows["vLLM"]:
        assert re.fullmatch(reply_pattern(rubric), row["raw"]), row
        assert row["reason"] is None
    assert told["vLLM"]["unscored"] == 0


def test_its_verdicts_are_those_of_the_judge_in_this_process(both: Judged, capsys: Any) -> None:
    """Both run the same weights, here in float32 and there in bfloat16."""
    _, _, rows, _ = both
    here, there = ({row["sha256"]: row for row in rows[name]} for name in ("in process", "vLLM"))
    assert here.keys() == there.keys()
    differing = [
        f"{row['image_id']}: in process {row['scores']}, vLLM {there[sha256]['scores']}"
        for sha256, row in here.items()
        if row["scores"] != there[sha256]["scores"]
    ]
    with capsys.disabled():
        equal = len(here) - len(differing)
        print(f"\n{equal} of {len(here)} verdicts are vLLM's too (bfloat16 against float32)")
        print("\n".join(differing))
    assert equal >= AGREE * len(here)
    assert len({str(row["scores"]) for row in here.values()}) > 3, "a judge that sees nothing"


def test_the_expected_scores_are_close(both: Judged) -> None:
    _, _, rows, _ = both
    here = {row["sha256"]: row["expected"] for row in rows["in process"]}
    for row in rows["vLLM"]:
        assert row["expected"].keys() == row["scores"].keys()
        for column, value in row["expected"].items():
            assert 0.0 <= value <= 5.0
            assert value == pytest.approx(here[row["sha256"]][column], abs=0.25)


def test_its_verdicts_about_the_character_are_those_in_this_process(served: Both) -> None:
    """Of twelve pictures at most one: bfloat16 can tip a score that is in doubt."""
    rubric = read_rubric(shipped_root() / CHARACTER["rubric"])
    here, there = served[1]["in process"], served[1]["vLLM"]
    assert len(here) == len(there) == 12
    for text in there:
        assert re.fullmatch(reply_pattern(rubric), text), text
    verdicts = [[parse_reply(text, rubric).scores for text in texts] for texts in (here, there)]
    assert sum(a == b for a, b in zip(*verdicts, strict=True)) >= 11
    assert len({str(scores) for scores in verdicts[0]}) >= 4, "a judge that sees nothing"


def command(benchmark: Path, output: Path) -> list[str]:
    limits = ["--limit-prompts", "1", "--limit-seeds", "2"]
    line = [sys.executable, "-m", "autolora_eval", "run", str(benchmark), *limits]
    return [*line, "--output", str(output)]


def everything_of(pid: int, log: Path) -> list[psutil.Process]:
    """Wait until vLLM has started its engine, and return all processes below the run's."""
    end = time.monotonic() + 240
    while not (log.exists() and "EngineCore" in log.read_text(errors="replace")):
        assert psutil.pid_exists(pid)
        assert time.monotonic() < end, log.read_text() if log.exists() else "no log"
        time.sleep(0.1)
    return psutil.Process(pid).children(recursive=True)


def test_a_run_launches_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The run is first killed outright while vLLM comes up; the same command then finishes it."""
    benchmark = benchmark_with(SERVER, tmp_path / "served.yaml")
    folder = RunFolder(tmp_path / "run")
    variables = os.environ | {"PYTHONPATH": str(other_environment.ROOT)}
    with (tmp_path / "killed.txt").open("wb") as out:
        line = command(benchmark, folder.path)
        killed = subprocess.Popen(line, env=variables, stdout=out, stderr=out)
    processes = everything_of(killed.pid, folder.judge_log)
    assert len(processes) >= 3, "the guard, vLLM's server and its engine"
    killed.kill()
    killed.wait()
    _, left = psutil.wait_procs(processes, timeout=30)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []

    line = command(benchmark, folder.path)
    done = subprocess.run(line, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = folder.read_manifest()["judge"]
    assert told["served_by"] == "vllm"
    assert told["constraint"] == "structured_outputs"
    assert (told["done"], told["unscored"]) == (8, 0)
    assert folder.report_pdf.is_file()
    assert "Shutting down" in folder.judge_log.read_text()
