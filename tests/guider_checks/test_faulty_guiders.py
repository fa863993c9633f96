"""Each faulty guider fails its check, good guiders pass all, and every check can fail."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from guiders import FAULTS, GOOD, Good

from autolora_eval.guider_checks import (
    ActiveInterval,
    CheckFailedError,
    CheckResult,
    GuiderSpec,
    check_guider,
    guider_checks_generator,
)
from autolora_eval.guider_checks.runner import all_checks

pytestmark = pytest.mark.model


def names(results: list[CheckResult], status: str) -> set[str]:
    return {result.name for result in results if result.status == status}


def check_of(guider: type, name: str, **options: object) -> Callable[[], CheckResult]:
    """One check of a guider, which first runs those that it requires."""
    return dict(guider_checks_generator(guider, model="sd3", **options))[name]


def test_a_good_guider_passes_all_checks() -> None:
    """On SDXL; the command and pytest's mark show it on SD3."""
    assert names(check_guider(Good, model="sdxl"), "passed") == set(all_checks())


@pytest.mark.parametrize("name", GOOD)
def test_an_unusual_good_guider_fails_no_check(name) -> None:
    check_guider(GOOD[name], model="sd3")


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_guider_fails_exactly_its_check(name) -> None:
    results = check_guider(FAULTS[name], model="sd3", on_fail=None)
    assert names(results, "failed") == {FAULTS[name].breaks}
    assert all(result.message for result in results if result.status != "passed")


def test_every_check_has_a_guider_that_fails_it() -> None:
    assert {guider.breaks for guider in FAULTS.values()} == set(all_checks())


def test_a_disabled_guider_fails_no_check() -> None:
    messages = {r.name: r.message for r in check_guider(Good, model="sd3", enabled=False)}
    skipped = ("check_guidance_has_effect", "check_scales_have_effect", "check_disabled")
    assert {messages[name] for name in skipped} == {
        "guidance is disabled (enabled=False); remove that argument"
    }


def test_an_inactive_step_inside_the_interval_can_be_declared() -> None:
    spec = GuiderSpec(active_intervals=(ActiveInterval(),))
    result = check_of(GOOD["RampInWindow"], "check_active_intervals", spec=spec)()
    assert "acts at [3, 4, 5]; expected [2, 3, 4, 5]" in result.message
    assert result.message.endswith("Or declare ActiveInterval(…, allow_inactive_steps=True).")


def test_the_error_lists_every_failed_check_and_how_to_fix_it() -> None:
    with pytest.raises(CheckFailedError) as caught:
        check_guider(FAULTS["WindowOffByOne"], model="sd3")
    first, second = str(caught.value).splitlines()
    assert first == f"WindowOffByOne fails 1 of {len(all_checks())} checks:"
    assert second.startswith("  check_active_intervals: with start=0.27, stop=0.68 of 10 steps")
    assert "it acts at [2, 3, 4, 5, 6]; expected [2, 3, 4, 5]" in second
    assert "Test `int(start * N) <= step < int(stop * N)`" in second
    assert names(caught.value.results, "failed") == {"check_active_intervals"}


def test_checks_change_neither_the_global_generator_nor_the_shared_model() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_guider(Good, model="sd3")
    assert torch.equal(torch.get_rng_state(), before)
    leaving = ("ForgottenHook", "LeavesLoraMerged", "LeavesAttributes", "LeavesHalfPrecision")
    for name in (*leaving, "ChangesInPlace"):
        check_guider(FAULTS[name], model="sd3", on_fail=None)
    check_guider(Good, model="sd3")


def test_the_message_of_an_exception_names_its_line() -> None:
    result = check_of(FAULTS["KnowsSomeTimestepsOnly"], "check_runs_in_pipeline")()
    assert re.search(r"it raised KeyError: .* \(faulty_predictions.py:\d+\)", result.message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without an accelerator")
def test_the_device_check_is_skipped_if_the_meta_device_cannot_run_the_guider() -> None:
    result = check_of(GOOD["CallsItem"], "check_output_device")()
    assert result.status == "skipped"
    assert result.message.startswith("there is no accelerator here, and it does not run on torch's")


def test_an_interval_passed_through_kwargs_is_checked() -> None:
    intervals = check_of(FAULTS["PassesOn"], "check_active_intervals", start=0.2)
    assert intervals().status == "passed"
    message = check_of(FAULTS["PassesOn"], "check_new_roundtrip", start=0.2)().message
    assert "Name every parameter in its __init__: diffusers' new() drops those" in message
