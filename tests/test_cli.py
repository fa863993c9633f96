"""The command line: what it imports, prints and returns, and that errors have no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command import Finished, run_command

import autolora_eval
from autolora_eval import load_benchmark, make_plan
from autolora_eval.config.stage_inputs import planned_manifest
from autolora_eval.runs.folder import RunFolder
from autolora_eval.sources.lookup import shipped_benchmarks

pytestmark = pytest.mark.e2e

MODELS = {"torch", "diffusers", "transformers", "peft"}
HEAVY = MODELS | {"pandas", "matplotlib", "scipy", "huggingface_hub"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("autolora_eval.scoring.judges.doctor.cached", lambda *_: None)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, on a machine without GPU, hub and judge."""
    env = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(Path.cwd().parent / "no-cache"),
        "CUDA_VISIBLE_DEVICES": "",
        "AUTOLORA_EVAL_JUDGE_URL": "http://127.0.0.1:9/v1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(autolora_eval.__file__).parent.parent),
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
    }
    line = [sys.executable, *arguments]
    return subprocess.run(line, env=env, capture_output=True, text=True, check=False)


def commands_without(forbidden: set[str], *commands: list[str]) -> str:
    """Return a program that runs commands, and fails once a forbidden module is imported."""
    return f"""
import sys
import autolora_eval
dir(autolora_eval), autolora_eval.UsageError, autolora_eval.Method
from autolora_eval.cli import main
for command in {commands!r}:
    sys.argv = ["autolora-eval", *command]
    try:
        main()
    except SystemExit as error:
        assert not error.code, (command, error.code)
    assert not {forbidden!r} & set(sys.modules), (command, {forbidden!r} & set(sys.modules))
"""


def test_help_imports_nothing_heavy() -> None:
    program = commands_without(HEAVY, ["--version"], ["--help"], ["run", "--help"])
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"autolora-eval {autolora_eval.__version__}\n")


def test_plans_methods_checks_and_doctor_import_no_model_library(
    write_benchmark, benchmark_data
) -> None:
    benchmark_data["models"]["A"]["scheduler"] = {"class": "UniPCMultistepScheduler"}
    plan = commands_without(
        HEAVY - {"huggingface_hub"}, ["plan", str(write_benchmark(benchmark_data))]
    )
    others = commands_without(MODELS, ["methods"], ["doctor", "quickstart"])
    code = "import autolora_eval.guider_checks, autolora_eval.guidance.diffusers_guiders\n"
    done = run_python("-c", plan + code + others)
    assert done.returncode == 0, done.stderr
    assert "can run  'quickstart': miniature:judge in this process" in done.stdout


def test_a_run_that_cannot_finish_here_lists_what_is_missing_and_writes_nothing() -> None:
    """A benchmark of the paper needs a GPU, the hub, a judge's server and a LoRA: none is here."""
    done = run_python("-m", "autolora_eval", "run", "disney_princess")
    assert done.returncode == 1
    assert "'disney_princess' cannot run here; nothing was generated." in done.stderr
    assert "sees 0 CUDA device(s)" in done.stderr
    for model in ("stabilityai/stable-diffusion-xl-base-1.0", "facebook/dinov2-giant"):
        assert f"hf download {model}" in done.stderr
    assert "http://127.0.0.1:9/v1 does not answer" in done.stderr
    assert "'loras/all_disney_princess_xl.safetensors'" in done.stderr
    assert "Log in at https://civitai.com/models/" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(Path.cwd().iterdir()) == []


def test_every_command_is_in_a_group_of_the_help() -> None:
    done = run_command("--help")
    for heading in ("Run a benchmark", "Analyze finished runs", "Methods and judges"):
        assert heading in done.stdout
    assert " Commands " not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "pixelart"], "no such benchmark: 'pixelart'"),
        (["plan", "pixelart"], "Did you mean 'pixel_art'?"),
        (["run"], "Missing argument"),
        (["walk"], "No such command"),
        (
            ["run", "pixel_art", "--limit-seeds", "0"],
            "'--limit-seeds': expected a number greater than or equal to 1 (got '0').",
        ),
        (
            ["run", "pixel_art", "--limit-seeds", "many"],
            "'--limit-seeds': expected a valid integer (got 'many').",
        ),
        (["run", "pixel_art", "--engine", "x"], "'--engine': 'x' is not one of 'local', 'ray'."),
        (["run", "pixel_art", "--limt-seeds", "2"], "No such option"),
        (["run", "broken.yaml"], "broken.yaml:2: nme: unknown key. Did you mean 'name'?"),
        (["report", "nowhere"], "'nowhere' is neither a file nor a shipped name"),
        (["score", "pixel_art"], "has no images yet"),
        (["score", "pixel_art", "--name", "X"], "--name 'X' describes --images: add --images"),
        (["score", "pixel_art", "--images", "file:///x"], "(got the URL 'file:///x')"),
        (["plan", "."], "'.' is a folder without a manifest.json."),
        (["agreement", ".", "h.csv"], "is not a run folder"),
    ],
)
def test_wrong_usage_exits_with_2_and_no_traceback(arguments: list[str], message: str) -> None:
    Path("broken.yaml").write_text("# a benchmark\nnme: x\n")
    done = run_command(*arguments)
    assert done.code == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr + done.stdout
    assert [path.name for path in Path.cwd().iterdir()] == ["broken.yaml"]


def test_all_shipped_benchmarks_are_suggested() -> None:
    done = run_command("plan", "zzz")
    assert done.code == 2
    assert all(name in done.stderr for name in shipped_benchmarks())


def printed_plan(text: str) -> tuple[list[list[str]], dict[str, str]]:
    """Return the numbers at the end of each method's line, and the facts below the table."""
    lines = text.splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("Model"))
    end = next(n for n, line in enumerate(lines) if line.startswith("Images"))
    cells = [line.split()[-3:] for line in lines[head + 1 : end] if line.strip()]
    pairs = [line.split("  ", 1) for line in lines[end:] if "  " in line.strip()]
    return cells, {name.strip(): value.strip() for name, value in pairs}


@pytest.mark.parametrize(
    ("name", "limits"), [("pixel_art", ()), ("quickstart", ()), ("pixel_art", (2, 3))]
)
def test_plan_prints_the_numbers_of_the_plan(name: str, limits: tuple[int, ...]) -> None:
    plan = make_plan(load_benchmark(name), *limits)
    options = ["--limit-prompts", "2", "--limit-seeds", "3"] if limits else []
    done = run_command("plan", name, *options)
    assert done.code == 0, done.stderr
    cells, facts = printed_plan(done.stdout)
    count = len(plan.jobs)
    assert cells == [[f"{n:,}" for n in (c.nfe, count, c.nfe * count)] for c in plan.cells]
    assert facts["Images"].split()[0] == f"{plan.n_images:,}"
    assert facts["NFE"].split()[0] == f"{plan.nfe:,}"
    assert facts["Judge calls"] == f"{plan.n_judge_calls:,}"
    for cell in plan.cells:
        assert cell.method.name in done.stdout


def test_a_dry_run_and_the_plan_of_a_run_folder_print_the_plan(tmp_path: Path) -> None:
    limits = ["--limit-prompts", "2", "--limit-seeds", "3"]
    limited = run_command("plan", "pixel_art", *limits)
    assert run_command("run", "pixel_art", "--dry-run", *limits) == limited
    assert list(tmp_path.iterdir()) == []
    plan = make_plan(load_benchmark("pixel_art"), 2, 3)
    folder = RunFolder(tmp_path / "a-run")
    folder.write_manifest(planned_manifest(plan, folder, "pixel_art", 2, 3))
    assert run_command("plan", "a-run") == limited
    assert run_command("run", "a-run", "--dry-run") == limited


@pytest.mark.parametrize("width", [80, 200])
def test_the_plan_of_a_sweep_prints_totals_and_what_is_missing(width: int) -> None:
    done = run_command("plan", "disney_princess", width=width)
    assert done.code == 0, done.stderr
    assert all(len(line) <= width for line in done.stdout.splitlines())
    for expected in (
        "Images 24,576 (48 cells × 1 prompt × 512 seeds)",
        "NFE 2,764,800 function evaluations",
        "Disk about 41",
        "stabilityai/stable-diffusion-xl-base-1.0 (to be downloaded from the hub)",
        "loras/all_disney_princess_xl.safetensors (not found)",
        "To do Log in at https://civitai.com/models/",
        "set AUTOLORA_EVAL_DISNEY_LORA to its path.",
        "Sweep lora_scale: 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3",
        "Samples 1024 × 1024 pixels in 50 steps",
        "Device cuda",
        "Server must be running when the run starts",
    ):
        assert expected in done.text


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"base_url": ["http://a/v1", "http://b/v1"]}, "m at http://a/v1, http://b/v1, rubric"),
        ({"launch": True, "vllm_python": "python"}, "m at a server that the run launches, rubric"),
    ],
)
def test_the_plan_names_the_judges_server(settings, where, write_benchmark, benchmark_data) -> None:
    judge = benchmark_data["judge"] | {"backend": "openai", "model": "m"} | settings
    done = run_command("plan", write_benchmark(benchmark_data | {"judge": judge}))
    assert where in done.text, done.stderr


def test_a_rubric_that_does_not_name_its_key_is_shown(write_benchmark, benchmark_data) -> None:
    """The rubric of these tests asks only whether the picture shows the prompt."""
    file = write_benchmark(benchmark_data)
    caveat = "the text of the rubric 'r' does not mention 'pc', which the judge's reply must"
    assert f"Caveat {caveat}" in run_command("plan", file).text
    assert f"caveat: {caveat}" in run_command("run", file).text
    assert "aveat" not in run_command("plan", "pixel_art").text


@pytest.mark.parametrize("name", ["[/red]", "[bold]x", "a[/b]", "\\", "[link=http://x]y"])
def test_names_are_not_read_as_markup(name, write_benchmark, benchmark_data) -> None:
    benchmark_data["models"] = {name: benchmark_data["models"]["A"]}
    benchmark_data["methods"] = {name: {"guider": "cfg"}, "other": {"guider": "lora"}}
    benchmark_data["baseline"] = name
    lines = run_command("plan", write_benchmark(yaml.safe_dump(benchmark_data))).stdout.splitlines()
    assert len([line for line in lines if line.startswith(name)]) == 3  # two cells, one model


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """A function that runs `autolora-eval methods`, which fails with the given error."""
    monkeypatch.setenv("AUTOLORA_EVAL_DEBUG", "")  # undoes what --debug sets

    def run(error: BaseException, *options: str) -> Finished:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr("autolora_eval.guidance.catalogue.show_list", fail)
        return run_command(*options, "methods")

    return run


def test_debug_shows_the_traceback_and_keeps_the_exit_code(failing) -> None:
    done = failing(ZeroDivisionError("division by zero"), "--debug")
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.stderr
    usage = run_command("--debug", "run", "pixelart")
    assert usage.code == 2
    assert "Traceback" in usage.stderr
    assert "no such benchmark: 'pixelart'" in usage.stderr


def test_ctrl_c_exits_with_130_and_says_how_to_resume(failing) -> None:
    done = failing(KeyboardInterrupt())
    assert done.code == 130
    assert "interrupted. Finished work is kept: run the same command to resume." in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_in_a_destructor_is_not_ignored(monkeypatch) -> None:
    class Interrupted:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def show(*_: object) -> None:
        Interrupted()
        for _ in range(500):
            time.sleep(0.01)

    monkeypatch.setattr("autolora_eval.guidance.catalogue.show_list", show)
    # A shell lets its background processes ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = run_command("methods")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.code, "interrupted. Finished work is kept" in done.stderr) == (130, True)
