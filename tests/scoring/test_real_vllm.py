"""A real vLLM, which a run launches, serves the miniature judge and scores generated images.

`make vllm` creates its environment, which is separate from the product's.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import other_environment
import psutil
import pytest
import yaml
from command import run_command
from creatures import creatures
from json_lines import read_jsonl
from rubrics import shipped

from autolora_eval._files import Json
from autolora_eval._progress import Progress
from autolora_eval.config.load import find_benchmark, load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.config.stage_inputs import judge_settings
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.constraint import reply_pattern
from autolora_eval.scoring.judge import Request
from autolora_eval.scoring.judges.vllm_server import launched_server
from autolora_eval.scoring.judging import judge_images, open_judge
from autolora_eval.scoring.reply import parse_reply

LIMITS = (4, 3)  # prompts and seeds
N_IMAGES = 4 * 4 * 3  # of 4 methods
STEPS = 10
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
CHARACTER = {"rubric": "prompts/rubrics/character_miniature.yaml"}

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
    """Write the quick start with another judge and fewer steps."""
    data = yaml.safe_load(find_benchmark("quickstart").read_text())
    data["judge"] |= {"logprobs": True, "cache": False} | judge
    data["models"]["SDXL miniature"]["num_inference_steps"] = STEPS
    file.write_text(yaml.safe_dump(data))
    return file


def plan_with(judge: Json, file: Path) -> Plan:
    return make_plan(load_benchmark(benchmark_with(judge, file)), *LIMITS)


def rows(folder: RunFolder) -> list[Json]:
    return [row for path in folder.path.glob("judgements/*.jsonl") for row in read_jsonl(path)]


def replies_about_creatures(
    plan: Plan, pictures: list[Path], base_urls: list[str] | None
) -> list[str]:
    """Return the replies to the character rubric about images of creatures."""
    question = shipped("character_miniature").question("Zib")
    requests = [Request(path, question) for path in pictures]
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
        folder: the run whose judge is vLLM.
        left: processes that this run left.
        rows: the judgements of each judge.
        creatures: the replies of each judge about images of creatures.
    """

    folder: RunFolder
    left: list[psutil.Process] = field(default_factory=list)
    rows: dict[str, list[Json]] = field(default_factory=dict)
    creatures: dict[str, list[str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The judge in this process scores the images of a run whose judge is vLLM.

    Both see images of creatures too.
    """
    place = tmp_path_factory.mktemp("judged")
    pictures = [path for path, _ in creatures(place, each=2, seed=4_103)]
    there, here = RunFolder(place / "there"), RunFolder(place / "here")
    found, before = Results(there), psutil.Process().children(recursive=True)

    @contextmanager
    def and_asked_about_creatures(*given: Any) -> Iterator[str]:
        with launched_server(*given) as url:
            yield url
            character = plan_with(SERVER | CHARACTER, place / "character.yaml")
            found.creatures["vLLM"] = replies_about_creatures(character, pictures, [url])
        after = psutil.Process().children(recursive=True)
        found.left = [process for process in after if process not in before]

    limits = ["--limit-prompts", "4", "--limit-seeds", "3", "--output", str(there.path)]
    with pytest.MonkeyPatch.context() as patch:
        launch = "autolora_eval.scoring.judges.vllm_server.launched_server"
        patch.setattr(launch, and_asked_about_creatures)
        finished = run_command("run", str(benchmark_with(SERVER, place / "there.yaml")), *limits)
    assert finished.code == 0, finished.stderr

    shutil.copytree(there.path, here.path, ignore=lambda *_: ["judgements"])
    settings = judge_settings(plan_with({}, place / "here.yaml"))
    with closing(open_judge(settings)) as judge:
        judge_images(settings, here.read_manifest(), here, judge, Progress())
    character = plan_with(CHARACTER, place / "character.yaml")
    found.creatures["in process"] = replies_about_creatures(character, pictures, None)
    found.rows = {"in process": rows(here), "vLLM": rows(there)}
    return found


def test_a_run_launches_vllm_and_leaves_no_process(results: Results) -> None:
    assert results.left == []
    assert results.folder.report_pdf.is_file()
    assert "Shutting down" in results.folder.judge_log.read_text()


def test_server_is_vllm_and_honours_structured_outputs(results: Results) -> None:
    judge = results.folder.read_manifest().judge
    assert judge is not None
    assert (judge.served_by, judge.constraint) == ("vllm", "structured_outputs")
    assert re.match(r"\d+\.\d+", judge.server_version)
    assert judge.settings["logprobs"]
    assert (judge.done, judge.unscored) == (N_IMAGES, 0)
    log = results.folder.judge_log.read_text()
    assert log.count("POST /v1/chat/completions") >= N_IMAGES


def test_every_reply_follows_the_rubric(results: Results) -> None:
    pattern = reply_pattern(shipped("pixel_art"))
    assert len(results.rows["vLLM"]) == N_IMAGES
    for row in results.rows["vLLM"]:
        assert re.fullmatch(pattern, row["raw"]), row
        assert row["reason"] is None


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
    asked = shipped("character_miniature")
    here, there = results.creatures["in process"], results.creatures["vLLM"]
    assert len(here) == len(there) == 12
    for text in there:
        assert re.fullmatch(reply_pattern(asked), text), text
    scores = [[parse_reply(text, asked).scores for text in texts] for texts in (here, there)]
    assert sum(a == b for a, b in zip(*scores, strict=True)) >= 11
    assert len({str(one) for one in scores[0]}) >= 4, "the judge ignores the images"
