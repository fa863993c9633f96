"""The command line: what it loads, prints, returns and never shows."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import autolora_eval
from autolora_eval import cli, load_benchmark, make_plan
from autolora_eval._resources import shipped_benchmarks
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import state_plan

HEAVY = ("torch", "diffusers", "transformers", "pandas", "matplotlib", "scipy", "huggingface_hub")
MODELS = ("torch", "diffusers", "transformers")


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine without GPU, hub and judge, and a folder of its own to be in."""
    monkeypatch.chdir(tmp_path)
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path.parent / "no-cache"),
        "CUDA_VISIBLE_DEVICES": "",
        "AUTOLORA_EVAL_JUDGE_URL": "http://127.0.0.1:9/v1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(autolora_eval.__file__).parent.parent),
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def command(env: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs `python -m autolora_eval …` in a process of its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "autolora_eval", *arguments]
        return subprocess.run(line, env=env, capture_output=True, text=True, check=False)

    return run


def loaded_by(code: str, env: dict[str, str]) -> set[str]:
    """Run code in a process of its own and return the top-level modules that it loaded."""
    tail = "\nimport sys, json\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code + tail], env=env, capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def calling(*arguments: str) -> str:
    return (
        "import sys\nfrom autolora_eval.cli import main\n"
        f"sys.argv = {['autolora-eval', *arguments]!r}\n"
        "try:\n    main()\nexcept SystemExit as error:\n    assert not error.code, error.code"
    )


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("run", "--help")])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...], env: dict[str, str]) -> None:
    loaded = loaded_by(calling(*arguments), env)
    assert "typer" in loaded
    assert loaded & set(HEAVY) == set()


def test_importing_the_package_loads_nothing_heavy(env: dict[str, str]) -> None:
    assert loaded_by("import autolora_eval\ndir(autolora_eval)", env) & set(HEAVY) == set()


@pytest.mark.parametrize("name", ["pixel_art", "methods"])
def test_plans_and_methods_load_no_model_library(name: str, env: dict[str, str]) -> None:
    arguments = ("methods",) if name == "methods" else ("plan", name)
    assert loaded_by(calling(*arguments), env) & set(MODELS) == set()


def test_the_public_names_are_there_and_stay_what_they_are() -> None:
    assert dir(autolora_eval) == sorted(autolora_eval.__all__)
    for name in autolora_eval.__all__:
        first = getattr(autolora_eval, name)
        assert getattr(autolora_eval, name) is first
        assert isinstance(first, str) or callable(first)
        assert isinstance(first, str) or first.__doc__
    # A module of that name would take its place as soon as it is imported.
    modules = {module.name for module in pkgutil.iter_modules(autolora_eval.__path__)}
    assert modules & set(autolora_eval.__all__) == set()
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        autolora_eval.nonsense  # noqa: B018


def test_version(command) -> None:
    done = command("--version")
    assert (done.returncode, done.stdout.strip()) == (
        0,
        f"autolora-eval {autolora_eval.__version__}",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "pixelart"], "no such benchmark: 'pixelart'"),
        (["plan", "pixelart"], "Did you mean 'pixel_art'?"),
        (["run"], "Missing argument"),
        (["walk"], "No such command"),
        (["run", "pixel_art", "--limit-seeds", "0"], "greater than or equal to 1"),
        (["run", "pixel_art", "--limit-seeds", "many"], "valid integer"),
        (["run", "pixel_art", "--limt-seeds", "2"], "No such option"),
        (["run", "broken.yaml"], "broken.yaml:2: nme: unknown key. Did you mean 'name'?"),
        (["report", "nowhere"], "'nowhere' is neither a file nor a shipped name"),
        (["score", "pixel_art"], "has no images yet"),
    ],
)
def test_usage_errors_are_two_and_have_no_traceback(
    arguments: list[str], message: str, command, tmp_path: Path
) -> None:
    (tmp_path / "broken.yaml").write_text("# a benchmark\nnme: x\n")
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["broken.yaml"]


def test_a_run_that_cannot_be_finished_here_writes_nothing(command, tmp_path: Path) -> None:
    """The benchmark of Table 2 needs a GPU, the hub and a judge's server; here is none of them."""
    done = command("run", "pixel_art")
    assert done.returncode == 1
    assert "'pixel_art' cannot run here; nothing was generated." in done.stderr
    problems = [line for line in done.stderr.splitlines() if line.startswith("  - ")]
    gpu, hub, judge = problems
    assert "sees 0 CUDA device(s)" in gpu
    for model in ("stabilityai/stable-diffusion-xl-base-1.0", "facebook/dinov2-giant"):
        assert f"hf download {model}" in hub
    assert "http://127.0.0.1:9/v1 does not answer" in judge
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback_and_keeps_the_exit_code(command) -> None:
    done = command("--debug", "run", "pixelart")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "no such benchmark: 'pixelart'" in done.stderr


def printed_plan(text: str) -> tuple[list[list[str]], dict[str, str]]:
    """Return the numbers at the end of each cell's line, and the facts below the table."""
    lines = text.splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("Model"))
    end = next(n for n, line in enumerate(lines) if line.startswith("Images"))
    cells = [line.split()[-3:] for line in lines[head + 1 : end] if line.strip()]
    pairs = [line.split("  ", 1) for line in lines[end:] if "  " in line.strip()]
    return cells, {name.strip(): value.strip() for name, value in pairs}


@pytest.mark.parametrize(
    ("name", "limits"), [("pixel_art", ()), ("quickstart", ()), ("pixel_art", (2, 3))]
)
def test_the_plan_prints_its_numbers(name: str, limits: tuple[int, ...], command) -> None:
    plan = make_plan(load_benchmark(name), *limits)
    options = ["--limit-prompts", "2", "--limit-seeds", "3"] if limits else []
    done = command("plan", name, *options)
    assert done.returncode == 0, done.stderr
    cells, facts = printed_plan(done.stdout)
    count = len(plan.jobs)
    assert cells == [[f"{n:,}" for n in (c.nfe, count, c.nfe * count)] for c in plan.cells]
    assert facts["Images"].split()[0] == f"{plan.n_images:,}"
    assert facts["NFE"].split()[0] == f"{plan.nfe:,}"
    assert facts["Judge calls"] == f"{plan.n_judge_calls:,}"
    for cell in plan.cells:
        assert cell.method.name in done.stdout
    if name == "pixel_art":
        # Table 2: 2 models × 2 methods × 30 prompts × 16 seeds; SDXL takes 50 steps, SD3 28, CFG
        # two passes a step, AutoLoRA with CFG four.
        images = count * 4
        assert plan.n_images == images == (24 if limits else 1920)
        assert plan.nfe == count * (50 + 28) * (2 + 4)


def test_the_plan_of_a_run_folder_is_that_of_its_benchmark_and_limits(
    command, tmp_path: Path
) -> None:
    plan = make_plan(load_benchmark("pixel_art"), 2, 3)
    limits = {"limit_prompts": 2, "limit_seeds": 3}
    state_plan(plan, RunFolder(tmp_path / "a-run"), "pixel_art", limits)
    done = command("plan", str(tmp_path / "a-run"))
    limited = command("plan", "pixel_art", "--limit-prompts", "2", "--limit-seeds", "3")
    assert (done.returncode, done.stdout) == (0, limited.stdout)
    assert command("run", str(tmp_path / "a-run"), "--dry-run").stdout == limited.stdout


@pytest.mark.parametrize("columns", ["80", "200"])
def test_the_plan_of_a_sweep_prints_its_totals_and_what_to_get(
    command, env: dict[str, str], tmp_path: Path, columns: str
) -> None:
    env["COLUMNS"] = columns
    done = command("plan", "disney_princess")
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= int(columns) for line in done.stdout.splitlines())
    text = " ".join(done.stdout.split())
    assert "Images 24,576 (48 cells × 1 prompt × 512 seeds)" in text
    assert "NFE 2,764,800 denoiser passes" in text  # 12 × (1 + 2 + 2 + 4) × 50 × 512
    assert "Judge calls 24,576" in text
    assert "Disk about 41" in text
    assert "stabilityai/stable-diffusion-xl-base-1.0 (to be fetched from the hub)" in text
    assert "loras/all_disney_princess_xl.safetensors (not here)" in text
    assert "To do Log in at https://civitai.com/models/" in text
    assert "loras/all_disney_princess_xl.safetensors below" in text
    assert "set AUTOLORA_EVAL_DISNEY_LORA to where it is." in text
    assert "Sweep lora_scale: 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3" in text
    assert "Samples 1024 × 1024 pixels in 50 steps" in text
    assert "Device cuda" in text
    assert "Server must answer when the run begins" in text


def test_a_run_says_what_to_get_before_anything_is_generated(command, tmp_path: Path) -> None:
    done = command("run", "disney_princess")
    assert done.returncode == 1
    assert "the LoRA 'loras/all_disney_princess_xl.safetensors' is not here. Log in" in done.stderr
    assert not (tmp_path / "reports").exists()


def test_a_dry_run_is_the_plan(command, tmp_path: Path) -> None:
    dry = command("run", "pixel_art", "--dry-run", "--limit-seeds", "2")
    assert (dry.returncode, dry.stdout) == (
        0,
        command("plan", "pixel_art", "--limit-seeds", "2").stdout,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stated", "where"),
    [
        ({"base_url": ["http://a/v1", "http://b/v1"]}, "m at http://a/v1, http://b/v1, rubric"),
        ({"launch": True, "vllm_python": "python"}, "m at a server that the run launches, rubric"),
    ],
)
def test_the_plan_says_where_the_judge_is(
    stated: dict[str, Any],
    where: str,
    write_benchmark: Any,
    benchmark_data: dict[str, Any],
    command,
) -> None:
    judge = benchmark_data["judge"] | {"backend": "openai", "model": "m"} | stated
    benchmark_data["judge"] = judge
    done = command("plan", str(write_benchmark(benchmark_data)))
    assert where in " ".join(done.stdout.split()), done.stderr


@pytest.mark.parametrize("name", ["[/red]", "[bold]x", "a[/b]", "\\", "[link=http://x]y"])
def test_names_are_no_markup(
    name: str, write_benchmark: Any, benchmark_data: dict[str, Any], capsys
) -> None:
    benchmark_data["models"] = {name: benchmark_data["models"]["A"]}
    benchmark_data["methods"] = {name: {"guider": "cfg"}, "other": {"guider": "lora"}}
    benchmark_data["baseline"] = name
    path = write_benchmark(yaml.safe_dump(benchmark_data))
    cli.plan(str(path))
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith(name)]) == 3  # two cells, one model


def test_shipped_benchmarks_are_suggested(command) -> None:
    done = command("plan", "zzz")
    assert done.returncode == 2
    assert all(name in done.stderr for name in shipped_benchmarks())


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A function that calls `autolora-eval methods` in this process, failing in its midst."""
    monkeypatch.delenv("AUTOLORA_EVAL_DEBUG", raising=False)

    def call(error: BaseException, *options: str) -> int:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr("autolora_eval._display.show_list", fail)
        monkeypatch.setattr(sys, "argv", ["autolora-eval", *options, "methods"])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0)

    return call


def test_an_unexpected_failure_is_one_line_and_one(failing, capsys) -> None:
    assert failing(ZeroDivisionError("by nothing")) == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines()[0] == "error: ZeroDivisionError: by nothing"
    assert shown.err.splitlines()[1:] == ["For the traceback: autolora-eval --debug …"]
    assert "Traceback" not in shown.out + shown.err


def test_an_unexpected_failure_has_a_traceback_on_demand(failing, capsys, monkeypatch) -> None:
    monkeypatch.setenv("AUTOLORA_EVAL_DEBUG", "")  # so that what --debug sets is undone
    assert failing(ZeroDivisionError("by nothing"), "--debug") == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_ctrl_c_is_130_and_says_how_to_go_on(failing, capsys) -> None:
    assert failing(KeyboardInterrupt()) == 130
    shown = capsys.readouterr()
    assert "interrupted. What was made is kept: run the same command to go on." in shown.err
    assert "Traceback" not in shown.err
