"""CFG and AutoLoRA in an interval, and AutoLoRA with a reused base: passes and predictions."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers.guiders import BaseGuidance

from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.guidance.equations import (
    autolora_guidance,
    classifier_free_guidance,
    reused_autolora_guidance,
)
from autolora_eval.guidance.method import announced_nfe
from autolora_eval.guidance.method_registry import GUIDERS

pytestmark = pytest.mark.model

CFG, CFG_INTERVAL = GUIDERS.find("cfg"), GUIDERS.find("cfg_interval")
REUSE, INTERVAL = GUIDERS.find("autolora_reuse"), GUIDERS.find("autolora_interval")
SPANS = [(0.0, 1.0), (0.0, 0.25), (0.2, 0.8), (0.29, 0.57), (0.4, 0.4)]
N = 10


def test_with_its_own_difference_it_is_equation_7() -> None:
    base, lora = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64).unbind()
    found = reused_autolora_guidance(lora, lora - base, 1.5)
    torch.testing.assert_close(found, autolora_guidance(base, lora, 1.5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("start", "stop"), SPANS)
def test_it_takes_cfgs_passes_and_two_at_every_kth_step(start, stop) -> None:
    span = {"start": start, "stop": stop}
    interval = INTERVAL.parameters(**span).with_model_defaults(3.0)
    for steps, every in itertools.product((1, 7, 20, 28), (1, 2, 5, 40)):
        # Hundredths of the steps in whole numbers, which have no rounding.
        first, last = (round(100 * edge) * steps // 100 for edge in (start, stop))
        reuse = REUSE.parameters(**span, base_every=every).with_model_defaults(3.0)
        assert REUSE.nfe(reuse, steps) == 2 * steps + 2 * -(-(last - first) // every)
        assert announced_nfe(REUSE.build(reuse), steps) == REUSE.nfe_of_steps(reuse, steps)
        assert INTERVAL.nfe(interval, steps) == 2 * steps + 2 * (last - first)


def test_a_base_branch_without_cfg_takes_one_pass_and_no_pass_at_gamma_one() -> None:
    def nfe(**given: float) -> int | None:
        return REUSE.nfe(REUSE.parameters(**given).with_model_defaults(3.0), N)

    assert nfe(base_guidance_scale=1.0, base_every=2) == 2 * N + N // 2
    assert nfe(guidance_scale=1.0, base_every=2) == N + N // 2
    assert nfe(autolora_scale=1.0, base_every=2) == 2 * N


def ask(guider: BaseGuidance, step: int) -> torch.Tensor:
    """The prediction at a step, of made-up passes: ε = (step + 1)², ε_LoRA = 100 (step + 1)."""
    guider.set_state(step=step, num_inference_steps=N, timestep=torch.tensor(step))
    made = [name for name in guider.predictions if name.endswith("_cond")]
    guider.prepare_inputs({"prompt_embeds": (torch.ones(1, 2, 3), torch.zeros(1, 2, 3))})
    values = {"base_cond": (step + 1.0) ** 2, "lora_cond": 100.0 * (step + 1)}
    return guider.forward(**{name: torch.full((1, 4, 2, 2), values[name]) for name in made}).pred


@pytest.mark.parametrize(("start", "stop", "every"), [(0.0, 1.0, 3), (0.3, 0.8, 2), (0.2, 0.9, 9)])
def test_between_it_takes_the_difference_of_the_last_kth_step(start, stop, every) -> None:
    guider = AutoLoRAGuidance(2.5, start=start, stop=stop, base_every=every)
    first, last = round(start * N), round(stop * N)
    for step in range(N):
        found = ask(guider, step).flatten()[0].item()
        kept = first + (step - first) // every * every
        difference = 100.0 * (kept + 1) - (kept + 1.0) ** 2
        within = first <= step < last
        assert found == 100.0 * (step + 1) + (1.5 * difference if within else 0.0)


def test_a_difference_of_another_image_is_never_taken() -> None:
    guider = AutoLoRAGuidance(1.5, start=0.4, base_every=3)
    for step in range(5):
        ask(guider, step)
    ask(guider, 0)
    says = "step 5 reuses the base prediction of step 4, which was not made. Run all steps in order"
    with pytest.raises(ValueError, match=says):
        ask(guider, 5)


def test_reuse_at_gamma_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="autolora_scale 0 is the base model alone"):
        AutoLoRAGuidance(0.0, base_every=2)
    with pytest.raises(ValueError, match="base_every is 0; it must be at least 1"):
        AutoLoRAGuidance(1.5, base_every=0)


def test_a_benchmark_refuses_gamma_zero_before_a_model_is_loaded(problem, benchmark_data) -> None:
    for given in ({"autolora_scale": 0.0}, {"base_every": 0}):
        method = {"guider": "autolora_reuse"} | given
        message = problem(benchmark_data | {"methods": {"CFG": method}})
        assert next(iter(given)) in message
        assert "greater than" in message


def test_in_a_benchmark_they_have_rows_of_their_own(planned) -> None:
    methods = {"CFG": {"guider": "cfg"}, "AutoLoRA": {"guider": "autolora"}}
    methods |= {"Interval": {"guider": "autolora_interval", "stop": 0.3}}
    methods |= {"Reuse": {"guider": "autolora_reuse", "stop": 0.5}}
    plan = planned(methods=methods, sweep={"base_every": [1, 5]})
    assert [cell.nfe for cell in plan.cells] == [20, 40, 26, 30, 22]


# CFG in an interval.

INTERVALS = [(0.0, 1.0), (0.2, 0.8), (0.0, 0.5), (0.5, 1.0), (0.29, 0.57), (0.4, 0.4), (0.0, 0.0)]
AT_THE_EDGE = [(1.0 - 2**-53, 1.0), (1.0 - 2**-53, 1.0 - 2**-53)]


def predictions(given: dict[str, float], num_steps: int) -> list[tuple[int, torch.Tensor]]:
    """The passes and the combined prediction of every step, of made-up passes."""
    guider = CFG_INTERVAL.build(
        CFG_INTERVAL.parameters.model_validate(given).with_model_defaults(5.0)
    )
    embeds = (torch.ones(1, 2, 3), torch.zeros(1, 2, 3))
    found = []
    for step in range(num_steps):
        guider.set_state(step=step, num_inference_steps=num_steps, timestep=torch.tensor(step))
        made = guider.prepare_inputs({"prompt_embeds": embeds})
        passes = [cond(step), uncond(step)][: len(made)]
        found.append((len(made), guider.forward(*passes).pred))
    return found


def cond(step: int) -> torch.Tensor:
    return torch.full((1, 4, 2, 2), float(step + 1), dtype=torch.float64)


def uncond(step: int) -> torch.Tensor:
    return -2.0 * cond(step)


@pytest.mark.parametrize(("start", "stop"), INTERVALS)
@pytest.mark.parametrize("num_steps", [1, 7, 28, 100])
def test_it_is_cfg_within_and_the_conditional_prediction_outside(start, stop, num_steps) -> None:
    # Hundredths of the steps in whole numbers, which have no rounding.
    first, last = (round(100 * edge) * num_steps // 100 for edge in (start, stop))
    given = {"guidance_scale": 3.0, "start": start, "stop": stop}
    parameters = CFG_INTERVAL.parameters.model_validate(given)
    for step, (passes, found) in enumerate(predictions(given, num_steps)):
        within = first <= step < last
        assert (
            passes == CFG_INTERVAL.nfe_per_step(parameters, step, num_steps) == (2 if within else 1)
        )
        guided = classifier_free_guidance(uncond(step), cond(step), 3.0)
        assert torch.allclose(found, guided if within else cond(step), rtol=1e-12)


@pytest.mark.parametrize("w", [0.0, 1.0, 5.0])
def test_over_all_steps_it_is_cfg(w: float) -> None:
    own, plain = (method.parameters(guidance_scale=w) for method in (CFG_INTERVAL, CFG))
    for num_steps in (1, 10, 50):
        assert CFG_INTERVAL.nfe(own, num_steps) == CFG.nfe(plain, num_steps)


@pytest.mark.parametrize(("start", "stop"), AT_THE_EDGE)
def test_an_interval_after_the_last_step_contains_no_step(start: float, stop: float) -> None:
    found = predictions({"guidance_scale": 3.0, "start": start, "stop": stop}, 10)
    assert [passes for passes, _ in found] == [1] * 10


def test_the_default_scale_is_the_models() -> None:
    assert [p.item() for p in predictions({}, 1)[0][1].flatten()[:1]] == [-2.0 + 5.0 * 3.0]


def test_in_a_benchmark_it_takes_a_swept_interval(planned) -> None:
    methods = {"CFG": {"guider": "cfg"}, "Limited": {"guider": "cfg_interval"}}
    plan = planned(methods=methods, sweep={"interval": [[0.0, 1.0], [0.2, 0.5]]})
    nfe = {cell.title: cell.nfe for cell in plan.cells}
    assert sorted(nfe.values()) == [13, 20, 20]  # of 10 steps 3, and all, with two passes
    assert len(plan.cells) == 3, "CFG, which takes no interval, stands there once"


def test_a_reversed_interval_is_refused(problem, benchmark_data) -> None:
    given = {"guider": "cfg_interval", "start": 0.6, "stop": 0.5}
    message = problem(benchmark_data | {"methods": {"CFG": given}})
    assert "stop (0.5) must not be less than start (0.6)" in message
