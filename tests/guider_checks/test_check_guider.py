"""The public face of the laws: check_guider, pytest, and the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from faulty_guiders import FAULTS, Good
from object_faults import NoConfig

from autolora_eval import cli
from autolora_eval._errors import UsageError
from autolora_eval.guider_checks import (
    ActiveInterval,
    GuiderSpec,
    check_guider,
    guider_checks_generator,
    parametrize_with_checks,
)
from autolora_eval.guider_checks.runner import LAWS


class Needing(Good):
    guider_spec = GuiderSpec()

    @register_to_config
    def __init__(self, strength: float, mode: Literal["a", "b"] = "a") -> None:
        super().__init__(guidance_scale=strength)


class Leaving(Good):
    guider_spec = GuiderSpec()

    def __init__(self) -> None:
        sys.exit(3)


@parametrize_with_checks(Good, model="sd3", guidance_scale=3.0)
def test_a_good_guider_in_pytest(law) -> None:
    law()


def test_a_broken_law_fails_its_test_with_the_message(tmp_path: Path) -> None:
    file = tmp_path / "test_mine.py"
    file.write_text(
        "from faulty_guiders import FAULTS\n"
        "from autolora_eval.guider_checks import parametrize_with_checks\n\n\n"
        "@parametrize_with_checks(FAULTS['WindowOffByOne'], model='sd3')\n"
        "def test_mine(law):\n    law()\n"
    )
    chosen = "check_active_intervals or check_output_dtype"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(file), "-k", chosen, "-rs", "-p", "no:cacheprovider"],
        env={"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "test_mine[check_active_intervals]" in done.stdout
    assert "it acts at [2, 3, 4, 5, 6], where it should at [2, 3, 4, 5]" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
    assert "Traceback" not in done.stdout


def test_one_law_alone_is_tried_after_those_that_it_needs() -> None:
    trials = dict(guider_checks_generator(FAULTS["Draws"], model="sd3"))
    assert list(trials) == [law.name for law in LAWS]
    assert trials["check_deterministic"]().status == "failed"
    assert trials["check_batch_independence"]().status == "not applicable"
    assert trials["check_output_shape"]().status == "passed"


def test_an_instance_stands_for_its_class_and_config() -> None:
    results = check_guider(Good(guidance_scale=1.0), model="sd3")
    acts = next(result for result in results if result.name == "check_guidance_has_effect")
    assert (
        acts.message == "the given parameters are the neutral ones, guidance_scale=1.0: give others"
    )


def test_a_declaration_given_stands_before_the_class_s_own() -> None:
    spec = GuiderSpec(identity_params={"guidance_scale": 2.0}, active_intervals=(ActiveInterval(),))
    results = check_guider(Good, model="sd3", spec=spec, on_fail=None)
    assert {r.name for r in results if r.status == "failed"} == {"check_identity_params"}


@pytest.mark.parametrize(
    ("guider", "arguments", "told"),
    [
        (int, {}, "builtins.int is no guider: it does not inherit from"),
        (Good, {"guidance_scal": 2.0}, "no parameter 'guidance_scal'. Did you mean 'guidance_sc"),
        (
            Good,
            {"start": 2.0},
            "cannot be made from these parameters: ValueError: Expected `start`",
        ),
        (Good, {"model": "sd4"}, "no tiny model 'sd4'. Did you mean 'sd3'?"),
        (
            Good,
            {"spec": GuiderSpec(linear_params=("guidance_scal",))},
            "GuiderSpec.linear_params of Good",
        ),
        (
            Good,
            {"spec": GuiderSpec(required_effect=("guidance_scal",))},
            "Did you mean 'guidance_scale",
        ),
        (
            Good,
            {"spec": GuiderSpec(identity_params={"scale": 1.0})},
            "names 'scale', which is no para",
        ),
        (
            Good,
            {"spec": GuiderSpec(active_intervals=(ActiveInterval("begin"),))},
            "active_intervals of Good names 'begin'",
        ),
        (Good, {"spec": GuiderSpec(baseline_prediction="cgf")}, "'cgf'. Did you mean 'cfg'?"),
        (Good, {"spec": {"linear": ()}}, "the spec of Good is a dict. Write it as GuiderSpec"),
        (NoConfig(), {}, "Decorate its __init__ with @register_to_config; or give the class"),
        (BaseGuidance, {}, "BaseGuidance is abstract: give a guider that inherits from it."),
        (
            Needing,
            {},
            "Needing needs 'strength'. Give it: check_guider(Needing, strength=…), or on",
        ),
        (Leaving, {}, "cannot be made from these parameters: SystemExit: 3"),
    ],
)
def test_what_is_no_guider_is_refused(guider, arguments, told) -> None:
    with pytest.raises(UsageError) as caught:
        check_guider(guider, **arguments)
    assert told in str(caught.value)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    """Run `autolora-eval check` in an empty folder: exit code, and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["autolora-eval", "check", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out + printed.err

    return run


def test_the_command_of_a_good_guider(command) -> None:
    code, shown = command(
        "faulty_guiders.Good", "--model", "sd3", "--parameter", "guidance_scale=3.0"
    )
    assert code == 0, shown
    assert f"faulty_guiders.Good on a tiny SD3: {len(LAWS)} passed" in shown


def test_the_command_of_a_method_goes_by_its_name(command) -> None:
    """Parameters are the method's own, and what it leaves to the model is 5."""
    words = ("--model", "sd3", "--parameter", "stop=0.6")
    code, shown = command("cfg_interval", *words)
    assert code == 0, shown
    assert f"cfg_interval on a tiny SD3: {len(LAWS)} passed" in shown
    assert "experimental" not in shown, "diffusers' warning at every guider"
    assert command("cfg_interval", *words, "--parameter", "guidance_scale=5.0") == (code, shown)
    neutral = command("cfg_interval", *words, "--parameter", "guidance_scale=1.0")[1]
    assert "the given parameters are the neutral ones" in " ".join(neutral.split())


def test_the_command_of_a_faulty_guider_in_a_file_beside_it(command, tmp_path) -> None:
    (tmp_path / "my_guider_for_test.py").write_text(
        "from diffusers.guiders import ClassifierFreeGuidance\n\n\n"
        "class Mine(ClassifierFreeGuidance):\n"
        "    def forward(self, pred_cond, pred_uncond=None):\n"
        "        output = super().forward(pred_cond, pred_uncond)\n"
        "        output.pred = output.pred.float()\n"
        "        return output\n"
    )
    code, shown = command("my_guider_for_test.Mine", "--model", "sd3")
    assert code == 1
    assert "bfloat16 predictions became float32" in shown
    assert "1 failed" in shown


def test_a_name_that_a_file_has_not_is_answered_with_its_own_and_not_its_imports(
    command, tmp_path
) -> None:
    (tmp_path / "my_names_for_test.py").write_text(
        "from diffusers.guiders import ClassifierFreeGuidance\n\n\n"
        "class Mine(ClassifierFreeGuidance):\n    pass\n"
    )
    code, shown = command("my_names_for_test.Xyz")
    assert code == 2
    assert "has no 'Xyz'. Known: Mine." in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["diffusers.guiders.ClassifierFreGuidance"], "Did you mean 'ClassifierFreeGuidance'?"),
        (["no_such_package_here.Guider"], "no module 'no_such_package_here'"),
        (["diffusers.guiders"], "'diffusers.guiders' is a module, and no guider class."),
        (["autolor"], "unknown guider 'autolor'. Did you mean 'autolora'?"),
        (["autolora", "--parameter", "autolora_scal=2"], "Did you mean 'autolora_scale'?"),
        (
            ["autolora", "--parameter", "autolora_scale=-1.0"],
            "'autolora': autolora_scale: Input should be greater than or equal to 0.",
        ),
        (["cfg_interval", "--parameter", "start=two"], "'cfg_interval': start: Input should be"),
        (
            ["faulty_guiders.Good", "--parameter", "guidance_scale=abc"],
            "Good: guidance_scale: expected a number, and it is given 'abc'.",
        ),
        (["faulty_guiders.Good", "--parameter", "3.0"], "write --parameter name=value"),
        (["faulty_guiders.Good", "--parameter", "scale=3"], "Good has no parameter 'scale'."),
        (["faulty_guiders.Good", "--model", "sd4"], "sd4"),
    ],
)
def test_what_the_command_refuses_exits_with_two(command, words, told) -> None:
    code, shown = command(*words)
    assert code == 2, shown
    assert told in " ".join(shown.split())
    assert "Traceback" not in shown
