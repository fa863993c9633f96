"""CFG in a limited interval: its passes, CFG within and the conditional prediction outside."""

from __future__ import annotations

import pytest
import torch

from autolora_eval.guidance.equations import classifier_free_guidance
from autolora_eval.guidance.method_registry import GUIDERS

pytestmark = pytest.mark.model

RULE, CFG = GUIDERS.find("cfg_interval"), GUIDERS.find("cfg")
INTERVALS = [(0.0, 1.0), (0.2, 0.8), (0.0, 0.5), (0.5, 1.0), (0.29, 0.57), (0.4, 0.4), (0.0, 0.0)]
AT_THE_EDGE = [(1.0 - 2**-53, 1.0), (1.0 - 2**-53, 1.0 - 2**-53)]


def predictions(given: dict[str, float], num_steps: int) -> list[tuple[int, torch.Tensor]]:
    """The passes and the combined prediction of every step, of made-up passes."""
    guider = RULE.build(RULE.parameters.model_validate(given).with_model_defaults(5.0))
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
    parameters = RULE.parameters.model_validate(given)
    for step, (passes, found) in enumerate(predictions(given, num_steps)):
        within = first <= step < last
        assert passes == RULE.nfe_per_step(parameters, step, num_steps) == (2 if within else 1)
        guided = classifier_free_guidance(uncond(step), cond(step), 3.0)
        assert torch.allclose(found, guided if within else cond(step), rtol=1e-12)


@pytest.mark.parametrize("w", [0.0, 1.0, 5.0])
def test_over_all_steps_it_is_cfg(w: float) -> None:
    own, plain = (method.parameters(guidance_scale=w) for method in (RULE, CFG))
    for num_steps in (1, 10, 50):
        assert RULE.nfe(own, num_steps) == CFG.nfe(plain, num_steps)


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
