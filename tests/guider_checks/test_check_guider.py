"""The public functions of the guider checks, and the command `autolora-eval check`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Literal

import pytest
from command import run_command
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from guiders import FAULTS, Good
from guiders.faulty_interface import NoConfig
from packages import CLASS

from autolora_eval._errors import UsageError
from autolora_eval.guider_checks import (
    ActiveInterval,
    GuiderSpec,
    check_guider,
    guider_checks_generator,
    parametrize_with_checks,
)
from autolora_eval.guider_checks.runner import all_checks

pytestmark = pytest.mark.model


class Needing(Good):
    guider_spec = GuiderSpec()

    @register_to_config
    def __init__(self, strength: float, mode: Literal["a", "b"] = "a") -> None:
        super().__init__(guidance_scale=strength)


class Exiting(Good):
    guider_spec = GuiderSpec()

    def __init__(self) -> None:
        sys.exit(3)


@parametrize_with_checks(Good, model="sd3", guidance_scale=3.0)
def test_a_good_guider_in_pytest(check) -> None:
    check()


def test_a_failed_check_fails_its_test_and_a_skipped_one_skips_it() -> None:
    mark = parametrize_with_checks(FAULTS["WindowOffByOne"], model="sd3")
    tests = {parameter.id: parameter.values[0] for parameter in mark.args[1]}
    expected = re.escape("acts at [2, 3, 4, 5, 6]; expected [2, 3, 4, 5]")
    with pytest.raises(pytest.fail.Exception, match=expected) as failed:
        tests["check_active_intervals"]()
    assert failed.value.pytrace is False
    tests["check_output_dtype"]()
    mark = parametrize_with_checks(Good, model="sd3", enabled=False)
    tests = {parameter.id: parameter.values[0] for parameter in mark.args[1]}
    with pytest.raises(pytest.skip.Exception, match="guidance is disabled"):
        tests["check_disabled"]()


def test_a_single_check_runs_after_those_that_it_requires() -> None:
    checks = dict(guider_checks_generator(FAULTS["Draws"], model="sd3"))
    assert list(checks) == list(all_checks())
    assert checks["check_deterministic"]().status == "failed"
    skipped = checks["check_batch_independence"]()
    assert skipped.status == "skipped"
    assert skipped.message == "requires check_deterministic, which failed"
    assert checks["check_output_shape"]().status == "passed"


def test_an_instance_is_used_by_its_class_and_config() -> None:
    results = check_guider(Good(guidance_scale=1.0), model="sd3")
    acts = next(result for result in results if result.name == "check_guidance_has_effect")
    assert acts.message == (
        "the parameters are its identity parameters, guidance_scale=1.0: give others"
    )


def test_a_given_spec_replaces_that_of_the_class() -> None:
    spec = GuiderSpec(identity_params={"guidance_scale": 2.0}, active_intervals=(ActiveInterval(),))
    results = check_guider(Good, model="sd3", spec=spec, on_fail=None)
    assert {r.name for r in results if r.status == "failed"} == {"check_identity_params"}


def spec(**fields: object) -> dict[str, GuiderSpec]:
    return {"spec": GuiderSpec(**fields)}


@pytest.mark.parametrize(
    ("guider", "arguments", "message"),
    [
        (int, {}, "builtins.int is not a guider: it does not inherit from"),
        (Good, {"guidance_scal": 2.0}, "no parameter 'guidance_scal'. Did you mean 'guidance_sc"),
        (Good, {"start": 2.0}, "made from these parameters: ValueError: Expected `start`"),
        (Good, {"model": "sd4"}, "no tiny model 'sd4'. Did you mean 'sd3'?"),
        (Good, spec(linear_params=("guidance_scal",)), "GuiderSpec.linear_params of Good"),
        (Good, spec(required_effect=("guidance_scal",)), "Did you mean 'guidance_scale"),
        (Good, spec(identity_params={"scale": 1.0}), "names 'scale', which is not a p"),
        (
            Good,
            spec(active_intervals=(ActiveInterval("begin"),)),
            "active_intervals of Good names 'begin'",
        ),
        (Good, spec(baseline_prediction="cgf"), "'cgf'. Did you mean 'cfg'?"),
        (Good, {"spec": {"linear": ()}}, "the spec of Good is a dict. Write it as GuiderSpec"),
        (NoConfig(), {}, "with @register_to_config, or pass the class and its parameters by name"),
        (BaseGuidance, {}, "BaseGuidance is abstract: give a guider that inherits from it."),
        (
            Needing,
            {},
            "Needing needs 'strength'. Pass it: check_guider(Needing, strength=…), or on",
        ),
        (Exiting, {}, "cannot be made from these parameters: SystemExit: 3"),
    ],
)
def test_an_invalid_guider_or_argument_is_refused(guider, arguments, message) -> None:
    with pytest.raises(UsageError) as caught:
        check_guider(guider, **arguments)
    assert message in str(caught.value)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checked(*words: str) -> tuple[int, str]:
    """Run `autolora-eval check`: exit code, and all that it printed, without line breaks."""
    done = run_command("check", *words)
    return done.code, " ".join((done.stdout + done.stderr).split())


def test_the_command_passes_a_good_guider() -> None:
    code, shown = checked("guiders.Good", "--model", "sd3", "--parameter", "guidance_scale=3.0")
    assert code == 0, shown
    assert f"guiders.Good on a tiny SD3: {len(all_checks())} passed" in shown


def test_names_of_checks_are_whole_in_80_columns() -> None:
    done = run_command("check", "guiders.faulty_predictions.ReturnsATensor", width=80)
    assert [name for name in all_checks() if f"{name} " not in done.stdout] == []


def test_the_command_finds_a_method_by_name() -> None:
    """Its parameters are those of a benchmark file, and the model's CFG scale is 5."""
    words = ("--model", "sd3", "--parameter", "stop=0.6")
    code, shown = checked("cfg_interval", *words)
    assert code == 0, shown
    assert f"cfg_interval on a tiny SD3: {len(all_checks())} passed" in shown
    assert "experimental" not in shown, "diffusers' warning at every guider"
    assert checked("cfg_interval", *words, "--parameter", "guidance_scale=5.0") == (code, shown)
    _, identity = checked("cfg_interval", *words, "--parameter", "guidance_scale=1.0")
    assert "the parameters are its identity parameters" in identity


def test_the_command_finds_the_guiders_of_a_file_in_the_working_folder(tmp_path) -> None:
    (tmp_path / "my_guider_for_test.py").write_text(
        CLASS.format(name="Mine", doc="CFG in float32.")
        + "    def forward(self, pred_cond, pred_uncond=None):\n"
        "        output = super().forward(pred_cond, pred_uncond)\n"
        "        output.pred = output.pred.float()\n"
        "        return output\n"
    )
    code, shown = checked("my_guider_for_test.Mine", "--model", "sd3")
    assert code == 1
    assert "bfloat16 predictions became float32" in shown
    assert "1 failed" in shown
    code, shown = checked("my_guider_for_test.Xyz")
    assert code == 2
    assert "has no 'Xyz'. Known: Mine." in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["diffusers.guiders.ClassifierFreGuidance"], "Did you mean 'ClassifierFreeGuidance'?"),
        (["no_such_package_here.Guider"], "no module 'no_such_package_here'"),
        (["diffusers.guiders"], "'diffusers.guiders' is a module; expected a guider class."),
        (["autolor"], "unknown guider 'autolor'. Did you mean 'autolora'?"),
        (["autolora", "--parameter", "autolora_scal=2"], "Did you mean 'autolora_scale'?"),
        (
            ["autolora", "--parameter", "autolora_scale=-1.0"],
            "'autolora': autolora_scale: Input should be greater than or equal to 0.",
        ),
        (["cfg_interval", "--parameter", "start=two"], "'cfg_interval': start: Input should be"),
        (["guiders.Good", "--parameter", "guidance_scale=abc"], "(got 'abc')."),
        (["guiders.Good", "--parameter", "3.0"], "write --parameter name=value"),
        (["guiders.Good", "--parameter", "scale=3"], "Good has no parameter 'scale'."),
        (["guiders.Good", "--model", "sd4"], "sd4"),
    ],
)
def test_a_wrong_argument_exits_with_2(words, message) -> None:
    code, shown = checked(*words)
    assert code == 2, shown
    assert message in shown
    assert "Traceback" not in shown
