"""A benchmark from someone else: what it would do, and which variables it may read and send."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import run_command
from scored_run import scored

from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.openai_judge import OpenAIJudge
from autolora_eval.scoring.judges.vllm_command import server_command
from autolora_eval.sources.lookup import expanded


def test_a_third_party_benchmark_is_listed_and_not_run(
    write_benchmark: Callable[[object], Path], benchmark_data: dict[str, Any], workplace: Path
) -> None:
    ran = workplace / "ran"
    code = f"open({str(ran)!r}, 'w')\nclass Mine: ...\n"
    (workplace / "theirs_no_code.py").write_text(code)
    benchmark_data["methods"]["Mine"] = {"guider": "theirs_no_code.Mine", "strength": 2}
    benchmark_data["features"] = {"extractor": "theirs_no_code:Extractor"}
    benchmark_data["diversity"] = ["vendi", "theirs_no_code.metric"]
    benchmark_data["models"]["A"]["pipeline"] = "owner/model"
    benchmark_data["models"]["A"]["lora"]["path"] = "${HOME}/lora.safetensors"
    benchmark_data["judge"] |= {"base_url": "http://there/v1"}
    file = write_benchmark(benchmark_data)
    listed = run_command("plan", file, "--no-code")
    beside = "beside the file or installed"
    assert (listed.code, listed.stdout.splitlines()) == (
        0,
        [
            f"import: the Python code 'theirs_no_code.Mine', {beside} (methods.Mine)",
            f"import: the Python code 'theirs_no_code:Extractor', {beside} (features.extractor)",
            f"import: the Python code 'theirs_no_code.metric', {beside} (diversity)",
            "read: prompts.txt",
            "read: rubric.yaml",
            "fetch: 'owner/model' from the hub, unless a folder is called so",
            "read: ${HOME}/lora.safetensors",
            "send: images, prompts, the rubric and the key in AUTOLORA_EVAL_JUDGE_API_KEY, if it "
            "is set, to http://there/v1",
            "read: the variable HOME",
            "write: reports/small, or what --output names",
        ],
    )
    benchmark_data["judge"] |= {"launch": True, "launch_command": ["sh", "-c", f"touch {ran}"]}
    listed = run_command("plan", write_benchmark(benchmark_data), "--no-code")
    assert f"start: sh -c touch {ran}" in listed.stdout
    assert not ran.exists()


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("AUTOLORA_EVAL_MINE", True),
        ("HOME", True),
        ("ALLOWED_BY_ME", True),
        ("AWS_SECRET_ACCESS_KEY", False),
        ("PATH", False),
        ("HF_TOKEN", False),
        ("AUTOLORA_EVAL_JUDGE_API_KEY", False),
    ],
)
def test_only_some_variables_are_read(problem, benchmark_data, monkeypatch, name, allowed) -> None:
    monkeypatch.setenv(name, "/the/value")
    monkeypatch.setenv("AUTOLORA_EVAL_ALLOW", "ALLOWED_BY_ME, HF_TOKEN")
    if allowed:
        assert expanded(f"${{{name}}}/x") == "/the/value/x"
        return
    benchmark_data["judge"]["base_url"] = f"http://evil/${{{name}}}"
    message = problem(benchmark_data)
    assert f"judge.base_url: the environment variable {name} may not be read" in message
    assert "/the/value" not in message


def test_values_reach_neither_prompts_nor_the_run_folder(
    planned, benchmark_data, workplace, monkeypatch
) -> None:
    (workplace / "sdxl").rename(workplace / "sentinel")
    monkeypatch.setenv("AUTOLORA_EVAL_DIR", "sentinel")
    monkeypatch.setenv("AUTOLORA_EVAL_URL", "http://sentinel/v1")
    benchmark_data["models"]["A"]["pipeline"] = "${AUTOLORA_EVAL_DIR}"
    benchmark_data["prompts"] = ["a ${AUTOLORA_EVAL_DIR}", "a dog"]
    benchmark_data["description"] = "${AUTOLORA_EVAL_DIR}"
    benchmark_data["judge"]["base_url"] = "${AUTOLORA_EVAL_URL}"
    plan = planned()
    assert plan.jobs[0].prompt == "a ${AUTOLORA_EVAL_DIR}"
    model = plan.benchmark.models["A"]
    assert (model.pipeline.name, model.pipeline.path.name) == ("${AUTOLORA_EVAL_DIR}", "sentinel")
    folder = scored(plan, RunFolder(workplace / "run"))
    for file in folder.path.rglob("*"):
        assert file.is_dir() or b"sentinel" not in file.read_bytes(), file
    judge = plan.benchmark.spec.judge
    assert judge is not None
    assert judge.base_urls == ["http://sentinel/v1"]
    assert plan.benchmark.rubric is not None
    asked = OpenAIJudge(judge, plan.benchmark.rubric)
    assert asked.facts()["base_urls"] == ["${AUTOLORA_EVAL_URL}"]
    asked.close()


def test_a_launched_command_gets_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOLORA_EVAL_IMAGE", "vllm:1")
    spec = JudgeConfig(
        rubric="r",
        model="owner/name",
        launch=True,
        launch_command=["docker", "${AUTOLORA_EVAL_IMAGE}", "{model}", "{port}"],
        launch_args=["--chat-template", "${HOME}/t.jinja"],
    )
    monkeypatch.setenv("HOME", "/home/me")
    command = ["docker", "vllm:1", "owner/name", "8", "--chat-template", "/home/me/t.jinja"]
    assert server_command(spec, 8) == command


@pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY"])
def test_a_key_is_taken_only_from_a_variable_that_is_so_named_or_allowed(
    problem, planned, benchmark_data, monkeypatch, name
) -> None:
    benchmark_data["judge"]["api_key_env"] = name
    message = problem(benchmark_data)
    assert f": judge.api_key_env: {'HF_TOKEN is never' if name == 'HF_TOKEN' else 'the'}" in message
    monkeypatch.setenv("AUTOLORA_EVAL_ALLOW", "HF_TOKEN,OPENAI_API_KEY")
    if name == "HF_TOKEN":
        assert "HF_TOKEN is never sent" in problem(benchmark_data)
    else:
        planned()
