"""A real vLLM serves the miniature judge and scores generated images.

`make vllm` creates its environment, which is separate from the product's.
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
from dataclasses import dataclass, field
from pathlib import Path

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
from autolora_eval.config.stage_inputs import judge_settings
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.constraint import reply_pattern
from autolora_eval.scoring.judges.config import Request
from autolora_eval.scoring.judges.vllm_server import launched_server
from autolora_eval.scoring.judging import judge_images, open_judge
from autolora_eval.scoring.reply import parse_reply
from autolora_eval.scoring.rubric import read_rubric

LIMITS = (4, 3)  # prompts and seeds; with 4 methods 48 images
AGREE = 0.95
PYTHON = other_environment.PYTHON
# Settings of vLLM's CPU build for a small machine.
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
    """Skip these tests without vLLM, but never in CI."""
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
    """Judge all images; return the manifest's section on the judge, and the rows."""
    with closing(open_judge(judge_settings(plan), base_urls)) as judge:
        manifest = folder.read_manifest()
        section = judge_images(judge_settings(plan), manifest, folder, judge, Progress())
    rows = [row for cell in plan.cells for row in read_jsonl(folder.judgements(cell.id))]
    return section.model_dump(), rows


CHARACTER = {"rubric": "prompts/rubrics/character_miniature.yaml"}


def replies_about_creatures(
    plan: Plan, pictures: list[Path], base_urls: list[str] | None
) -> list[str]:
    """Return the replies to the character rubric about images of creatures."""
    rubric = plan.benchmark.rubric
    assert rubric is not None
    requests = [Request(path, rubric.question("Zib")) for path in pictures]
    with closing(open_judge(judge_settings(plan), base_urls)) as asked:
        asked.identity()  # detects the constraint
        replies = {
            request.image: reply for group in asked.replies(requests) for request, reply in group
        }
    return [str(replies[path].text) for path in pictures]


@dataclass
class Results:
    """The results of both judges, "in process" and "vLLM".

    Attributes:
        plan: the plan of the quick start.
        judges: the manifest's section on each judge.
        rows: the judgements of each judge.
        creatures: the replies of each judge about images of creatures.
        log: vLLM's log.
    """

    plan: Plan
    judges: dict[str, Json] = field(default_factory=dict)
    rows: dict[str, list[Json]] = field(default_factory=dict)
    creatures: dict[str, list[str]] = field(default_factory=dict)
    log: str = ""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Both judges score the quick start's images and images of creatures; vLLM starts once."""
    place = tmp_path_factory.mktemp("judged")
    here, there = plan_with({}, place / "here.yaml"), plan_with(SERVER, place / "there.yaml")
    folders = {name: RunFolder(place / name) for name in ("in process", "vLLM")}
    RunPipeline(here, folders["in process"], Progress(), "quickstart", LIMITS).generate()
    shutil.copytree(folders["in process"].path, folders["vLLM"].path)
    pictures = [path for path, _ in creatures(place, each=2, seed=4_103)]
    found, log = Results(there), place / "vllm.log"

    def judge_all(name: str, plan: Plan, settings: Json, urls: list[str] | None) -> None:
        found.judges[name], found.rows[name] = judged(plan, folders[name], urls)
        character = plan_with(settings | CHARACTER, place / "character.yaml")
        found.creatures[name] = replies_about_creatures(character, pictures, urls)

    judge_all("in process", here, {}, None)
    spec = there.benchmark.spec.judge
    assert spec is not None
    with launched_server(spec, log, print) as url:
        judge_all("vLLM", there, SERVER, [url])
    found.log = log.read_text()
    return found


def test_server_is_vllm_and_honours_structured_outputs(results: Results) -> None:
    served = results.judges["vLLM"]
    assert served["served_by"] == "vllm"
    assert re.match(r"\d+\.\d+", served["server_version"])
    assert served["constraint"] == "structured_outputs"
    assert served["settings"]["logprobs"]
    assert results.log.count("POST /v1/chat/completions") >= results.plan.n_images


def test_every_reply_follows_the_rubric(results: Results) -> None:
    rubric = results.plan.benchmark.rubric
    assert rubric is not None
    assert len(results.rows["vLLM"]) == results.plan.n_images == 48
    for row in results.rows["vLLM"]:
        assert re.fullmatch(reply_pattern(rubric), row["raw"]), row
        assert row["reason"] is None
    assert results.judges["vLLM"]["unscored"] == 0


def test_scores_agree_with_the_judge_in_this_process(results: Results) -> None:
    """Both run the same weights, in float32 here and in bfloat16 there."""
    here, there = (
        {row["sha256"]: row["scores"] for row in results.rows[name]}
        for name in ("in process", "vLLM")
    )
    assert here.keys() == there.keys()
    assert sum(here[image] == there[image] for image in here) >= AGREE * len(here)
    assert len({str(scores) for scores in here.values()}) > 3, "the judge ignores the images"


def test_expected_scores_are_close(results: Results) -> None:
    here = {row["sha256"]: row["expected"] for row in results.rows["in process"]}
    for row in results.rows["vLLM"]:
        assert row["expected"].keys() == row["scores"].keys()
        for column, value in row["expected"].items():
            assert 0.0 <= value <= 5.0
            assert value == pytest.approx(here[row["sha256"]][column], abs=0.1)


def test_scores_of_the_character_agree(results: Results) -> None:
    """At most one of twelve differs: bfloat16 can change a doubtful score."""
    rubric = read_rubric(shipped_root() / CHARACTER["rubric"])
    here, there = results.creatures["in process"], results.creatures["vLLM"]
    assert len(here) == len(there) == 12
    for text in there:
        assert re.fullmatch(reply_pattern(rubric), text), text
    scores = [[parse_reply(text, rubric).scores for text in texts] for texts in (here, there)]
    assert sum(a == b for a, b in zip(*scores, strict=True)) >= 11
    assert len({str(one) for one in scores[0]}) >= 4, "the judge ignores the images"


def smallest_benchmark(file: Path) -> Path:
    """Write the quick start with one method and vLLM as the judge."""
    data = yaml.safe_load(benchmark_with(SERVER, file).read_text())
    method = data["baseline"]
    data["methods"] = {method: data["methods"][method]}
    file.write_text(yaml.safe_dump(data))
    return file


def processes_of(pid: int, log: Path) -> list[psutil.Process]:
    """Wait until vLLM has started its engine, and return all descendants of the run."""
    end = time.monotonic() + 240
    while not (log.exists() and "EngineCore" in log.read_text(errors="replace")):
        assert psutil.pid_exists(pid)
        assert time.monotonic() < end, log.read_text() if log.exists() else "no log"
        time.sleep(0.1)
    return psutil.Process(pid).children(recursive=True)


def test_run_launches_vllm_and_leaves_no_process(tmp_path: Path) -> None:
    """The run is killed while vLLM starts; the same command then completes it."""
    benchmark = smallest_benchmark(tmp_path / "served.yaml")
    folder = RunFolder(tmp_path / "run")
    variables = os.environ | {"PYTHONPATH": str(other_environment.ROOT)}
    limits = ["--limit-prompts", "1", "--limit-seeds", "2", "--output", str(folder.path)]
    command = [sys.executable, "-m", "autolora_eval", "run", str(benchmark), *limits]
    with (tmp_path / "killed.txt").open("wb") as out:
        killed = subprocess.Popen(command, env=variables, stdout=out, stderr=out)
    processes = processes_of(killed.pid, folder.judge_log)
    assert len(processes) >= 3, "the supervisor, vLLM's server and its engine"
    killed.kill()
    killed.wait()
    _, left = psutil.wait_procs(processes, timeout=30)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []

    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    judge = folder.read_manifest().judge
    assert judge is not None
    assert (judge.served_by, judge.constraint) == ("vllm", "structured_outputs")
    assert (judge.done, judge.unscored) == (2, 0)
    assert folder.report_pdf.is_file()
    assert "Shutting down" in folder.judge_log.read_text()
