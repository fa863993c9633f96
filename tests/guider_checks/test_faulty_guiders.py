"""Each faulty guider breaks exactly its law, a good one none, and every law can be broken."""

from __future__ import annotations

import re

import more_faulty_guiders
import object_faults
import pytest
import torch
import window_faults
from faulty_guiders import FAULTS, Good
from good_guiders import GOOD

from autolora_eval.guider_checks import ActiveInterval, CheckFailedError, GuiderSpec, check_guider
from autolora_eval.guider_checks.prediction_checks import check_linear_in_predictions
from autolora_eval.guider_checks.runner import LAWS

# Each of these files enters its own.
assert {window_faults.DoubleOutside, object_faults.Reseeds} <= set(FAULTS.values())
assert more_faulty_guiders.HiddenForward in FAULTS.values()


def by_status(results, status: str) -> set[str]:
    return {result.name for result in results if result.status == status}


@pytest.mark.parametrize("model", ["sdxl", "sd3"])
def test_a_good_guider_keeps_every_law(model) -> None:
    results = check_guider(Good, model=model)
    assert by_status(results, "passed") == {law.name for law in LAWS}


@pytest.mark.parametrize("name", GOOD)
def test_an_unusual_guider_keeps_every_law(name) -> None:
    check_guider(GOOD[name], model="sd3")


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_guider_breaks_exactly_its_law(name) -> None:
    results = check_guider(FAULTS[name], model="sd3", on_fail=None)
    assert by_status(results, "failed") == FAULTS[name].broken
    assert all(result.message for result in results if result.status != "passed")


def test_every_law_is_broken_by_a_guider_made_to_break_it() -> None:
    assert set().union(*(cls.broken for cls in FAULTS.values())) == {law.name for law in LAWS}


def test_what_cannot_be_told_is_not_passed() -> None:
    """At its neutral parameters a guider is a plain conditional prediction."""
    results = check_guider(Good, model="sd3", guidance_scale=1.0, spec=GuiderSpec())
    assert by_status(results, "not applicable") == {
        "check_num_conditions_before_first_step",
        "check_guidance_has_effect",
        "check_identity_params",
        "check_active_intervals",
        "check_disabled",
        "check_linear_params",
        "check_linear_in_predictions",
    }


def test_a_guider_given_off_breaks_no_law() -> None:
    told = {r.name: r.message for r in check_guider(Good, model="sd3", enabled=False)}
    acting = ("check_guidance_has_effect", "check_scales_have_effect", "check_disabled")
    assert {told[law] for law in acting} == {"it is given enabled=False: leave that out"}


def test_a_scale_that_rests_at_its_window_s_edge_is_told_how_to_say_so() -> None:
    spec = GuiderSpec(active_intervals=(ActiveInterval(),))
    with pytest.raises(CheckFailedError) as caught:
        check_guider(GOOD["RampInWindow"], model="sd3", spec=spec)
    assert "acts at [3, 4, 5], where it should at [2, 3, 4, 5]" in str(caught.value)
    assert "Or declare ActiveInterval(…, allow_inactive_steps=True)." in str(caught.value)


def test_laws_that_need_a_broken_one_say_so() -> None:
    results = check_guider(FAULTS["Draws"], model="sd3", on_fail=None)
    rows = next(result for result in results if result.name == "check_batch_independence")
    assert rows.status == "not applicable"
    assert rows.message == "cannot be told while check_deterministic fails"


def test_the_error_names_every_broken_law_and_what_to_do() -> None:
    with pytest.raises(CheckFailedError) as caught:
        check_guider(FAULTS["WindowOffByOne"], model="sd3")
    first, second = str(caught.value).splitlines()
    assert first == f"WindowOffByOne breaks 1 of {len(LAWS)} laws:"
    assert second.startswith("  check_active_intervals: with start=0.27, stop=0.68 of 10")
    assert "it acts at [2, 3, 4, 5, 6], where it should at [2, 3, 4, 5]" in second
    assert "Test `int(start * N) <= step < int(stop * N)`" in second


def test_no_law_draws_from_the_global_generator_or_keeps_a_trace_of_the_guider() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_guider(Good, model="sd3")
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("ForgottenHook", "LeavesLoraMerged", "LeavesAttributes", "LeavesHalfPrecision"):
        check_guider(FAULTS[name], model="sd3", on_fail=None)
    assert by_status(check_guider(Good, model="sd3"), "failed") == set()


def test_what_a_guider_raises_is_told_with_its_place() -> None:
    with pytest.raises(CheckFailedError) as caught:
        check_guider(FAULTS["KnowsSomeTimestepsOnly"], model="sd3")
    assert re.search(r"it raised KeyError: .* \(faulty_guiders.py:\d+\)", str(caught.value))


def test_numbers_out_of_a_tensor_can_be_told_on_an_accelerator_only() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    results = check_guider(GOOD["TakesNumbersOut"], model="sd3")
    told = {r.name: r.message for r in results}["check_output_device"]
    assert told.startswith("there is no accelerator here, and it takes numbers out of tensors")


def test_a_window_through_kwargs_is_a_window() -> None:
    results = check_guider(FAULTS["PassesOn"], model="sd3", start=0.2, on_fail=None)
    assert "check_active_intervals" in by_status(results, "passed")
    told = {r.name: r.message for r in results}["check_new_roundtrip"]
    assert "Name every parameter in its __init__: diffusers' new() drops those" in told


def test_every_law_states_itself() -> None:
    for law in LAWS:
        assert law.statement.endswith("."), law.name
    assert check_linear_in_predictions.__name__ in {law.name for law in LAWS}
