"""All checks on every guider of diffusers, and what is declared about these guiders.

`CASES` lists the checks that do not pass. Each failure is a defect of diffusers.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import diffusers.guiders
import pytest
import torch
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance
from guider_parameters import CONFIGS, LAYERS

from autolora_eval.guidance import diffusers_defects
from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.guidance.diffusers_defects import SD3, SDXL
from autolora_eval.guidance.diffusers_guiders import DIFFUSERS_GUIDERS, diffusers_guider
from autolora_eval.guider_checks import check_guider

pytestmark = pytest.mark.model

MID, SD3_LAYER = LAYERS[SDXL], LAYERS[SD3]
NO_CLAIM = {"check_linear_in_predictions": "linearity is not declared"}
# diffusers tests `start < step` for the perturbed prediction instead of `start <= step`.
LATE = {"check_active_intervals": "_scale=0.0, it acts at [3, 4, 5]; expected"}


@dataclass(frozen=True)
class Case:
    """A guider with parameters, and its failed and skipped checks with part of the message."""

    guider: type[BaseGuidance]
    parameters: dict[str, Any] = field(default_factory=dict)
    fails: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    model: str = "sd3"


g = diffusers.guiders
ALL_OTHERS = "requires check_completes_image, which failed"
CASES = {
    "AutoLoRA": Case(
        AutoLoRAGuidance,
        {"autolora_scale": 0.5, "guidance_scale": 4.0, "base_guidance_scale": 2.0},
        model="sdxl",
    ),
    "AutoLoRA without CFG": Case(
        AutoLoRAGuidance,
        skipped={"check_num_conditions_before_first_step": "no prediction at these parameters"},
    ),
    "AutoLoRA with a reused base": Case(AutoLoRAGuidance, {"guidance_scale": 4.0, "base_every": 3}),
    "LoRA": Case(
        ClassifierFreeGuidance,
        {"guidance_scale": 1.0},
        skipped={
            "check_num_conditions_before_first_step": "no prediction at these parameters",
            "check_guidance_has_effect": "the parameters are its identity",
            "check_identity_params": "the parameters are its identity",
            "check_active_intervals": "the parameters are its identity",
            "check_disabled": "the parameters are its identity",
        },
    ),
    "CFG": Case(ClassifierFreeGuidance),
    "CFG, original": Case(ClassifierFreeGuidance, {"use_original_formulation": True}),
    "APG": Case(g.AdaptiveProjectedGuidance, skipped=NO_CLAIM),
    "APG with momentum": Case(
        g.AdaptiveProjectedGuidance,
        {"adaptive_projected_guidance_momentum": -0.5, "eta": 0.0},
        skipped=NO_CLAIM,
    ),
    "APG-mix": Case(g.AdaptiveProjectedMixGuidance, skipped=NO_CLAIM),
    "AutoGuidance": Case(g.AutoGuidance, {"auto_guidance_config": SD3_LAYER}),
    "CFG-Zero*": Case(
        g.ClassifierFreeZeroStarGuidance,
        # zero_init_steps ignores start and stop.
        fails={"check_active_intervals": "it acts at [0, 2, 3, 4, 5]"},
        skipped=NO_CLAIM,
    ),
    "FDG": Case(
        g.FrequencyDecoupledGuidance,
        skipped={
            "check_scales_have_effect": "no numeric parameter",
            "check_linear_params": "no parameter is declared linear",
        },
    ),
    "LTX-2": Case(
        g.LTX2Guidance,
        {"guidance_scale": 4.0},
        fails={"check_is_conditional": "is_conditional is True, but the batch"},
    ),
    "MAMBO-G": Case(
        g.MagnitudeAwareGuidance,
        fails={"check_completes_image": "dim must be a 2-tuple"},
        skipped={"": ALL_OTHERS},
    ),
    "PAG": Case(
        g.PerturbedAttentionGuidance, {"perturbed_guidance_config": MID}, fails=LATE, model="sdxl"
    ),
    "PAG on SD3": Case(
        g.PerturbedAttentionGuidance,
        {"perturbed_guidance_config": SD3_LAYER},
        fails={"check_completes_image": "JointAttnProcessor2_0"},
        skipped={"": ALL_OTHERS},
    ),
    "PAG without CFG": Case(
        g.PerturbedAttentionGuidance,
        {"perturbed_guidance_config": MID, "guidance_scale": 1.0},
        model="sdxl",
        # The perturbed prediction has the null prompt, and no layer is perturbed.
        fails={
            "check_active_intervals": "it acts at none of 10 steps",
            "check_linear_params": "declared linear in guidance_scale",
        },
    ),
    "SLG": Case(g.SkipLayerGuidance, {"skip_layer_config": SD3_LAYER}, fails=LATE, model="sd3"),
    "SLG of a whole layer": Case(
        g.SkipLayerGuidance,
        {"skip_layer_config": {**SD3_LAYER, "skip_attention": True}},
        fails={"check_completes_image": "is invalid for input of size"},
        skipped={"": ALL_OTHERS},
    ),
    "SEG": Case(
        g.SmoothedEnergyGuidance,
        {"seg_guidance_config": MID},
        model="sdxl",
        fails={
            "check_is_conditional": "Call super().prepare_models(denoiser)",
            "check_scales_have_effect": "seg_guidance_scale changes nothing",
            "check_active_intervals": "seg_guidance_scale=0.0, it acts at none",
        },
        skipped={"check_linear_params": "requires check_scales_have_effect"},
    ),
    "TCFG": Case(
        g.TangentialClassifierFreeGuidance,
        fails={"check_is_conditional": "has no attribute 'is_conditional'"},
        skipped=NO_CLAIM,
    ),
    "AutoGuidance with dropout": Case(
        g.AutoGuidance,
        {"auto_guidance_config": {**SD3_LAYER, "dropout": 0.5}},
        fails={"check_deterministic": "two runs on the same inputs differ"},
        skipped={"": "requires check_deterministic, which failed"},
    ),
}


SHIPPED: dict[str, type[BaseGuidance]] = {
    name: found
    for name, found in vars(g).items()
    if isinstance(found, type) and issubclass(found, BaseGuidance) and found is not BaseGuidance
}


def test_every_guider_of_diffusers_has_a_case_and_a_declaration() -> None:
    tested = {case.guider.__name__ for case in CASES.values()}
    assert tested - {"AutoLoRAGuidance"} == set(SHIPPED) == set(DIFFUSERS_GUIDERS)


@pytest.mark.parametrize("name", CASES)
def test_the_checks_find_the_known_defects_and_no_others(name) -> None:
    case = CASES[name]
    results = check_guider(case.guider, model=case.model, on_fail=None, **case.parameters)
    found = {r.name: r.message for r in results if r.status == "failed"}
    assert set(found) == set(case.fails), found
    assert all(reason in found[check] for check, reason in case.fails.items()), found
    skipped = {r.name: r.message for r in results if r.status == "skipped"}
    if "" in case.skipped:
        assert skipped
        assert all(case.skipped[""] in m or n in NO_CLAIM for n, m in skipped.items()), skipped
    else:
        assert set(skipped) == set(case.skipped), skipped
        assert all(reason in skipped[check] for check, reason in case.skipped.items()), skipped


@pytest.mark.parametrize("name", DIFFUSERS_GUIDERS)
def test_defaults_are_those_of_the_constructor(name) -> None:
    parameters = inspect.signature(SHIPPED[name].__init__).parameters.values()
    with_default = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert DIFFUSERS_GUIDERS[name].defaults == with_default


GRID: dict[str, list[dict[str, Any]]] = {
    name: [{}, {"start": 0.2, "stop": 0.6}, {"enabled": False}, {"start": 0.0, "stop": 0.29}]
    for name in DIFFUSERS_GUIDERS
}
for name, config in CONFIGS.items():
    GRID[name] = [{**one, config: MID} for one in GRID[name]]
for name in set(DIFFUSERS_GUIDERS) - {"FrequencyDecoupledGuidance"}:
    first = GRID[name][0]
    GRID[name] += [{**first, "guidance_scale": 1.0}]
    if name != "LTX2Guidance":
        GRID[name] += [{**first, "guidance_scale": 0.0, "use_original_formulation": True}]
for name, prefix in {
    "PerturbedAttentionGuidance": "perturbed_guidance",
    "SkipLayerGuidance": "skip_layer_guidance",
    "SmoothedEnergyGuidance": "seg_guidance",
}.items():
    first = GRID[name][0]
    GRID[name] += [
        {**first, f"{prefix}_scale": 0.0},
        {**first, f"{prefix}_start": 0.3, f"{prefix}_stop": 0.7},
    ]
GRID["LTX2Guidance"] += [{"guidance_scale": 3.0, "stg_scale": 1.0, "modality_scale": 2.0}]
GRID["FrequencyDecoupledGuidance"] += [
    {"guidance_scales": [1.0, 1.0]},
    {"guidance_scales": [3.0, 1.0]},
    {"start": [0.0, 0.5], "stop": [0.25, 1.0]},
]


@pytest.mark.parametrize("name", DIFFUSERS_GUIDERS)
def test_the_declared_nfe_equals_num_conditions(name) -> None:
    steps = [(step, num_steps) for num_steps in (1, 7, 10, 28) for step in range(num_steps)]
    for parameters in GRID[name]:
        guider = SHIPPED[name](**parameters)
        for step, num_steps in steps:
            guider.set_state(step, num_steps, torch.tensor(1.0))
            declared = DIFFUSERS_GUIDERS[name].nfe_per_step(parameters, step, num_steps)
            assert declared == guider.num_conditions, (parameters, step, num_steps)


REFUSED = [
    ("MagnitudeAwareGuidance", {}, None, "fails on image latents"),
    ("SmoothedEnergyGuidance", {}, SDXL, "equals the plain one"),
    ("LTX2Guidance", {"stg_scale": 1.0}, SDXL, "only LTX-2's denoising loop"),
    ("PerturbedAttentionGuidance", {"perturbed_guidance_config": MID}, SD3, "works on SDXL"),
    ("PerturbedAttentionGuidance", {"perturbed_guidance_layers": [0]}, SDXL, "in a UNet"),
    (
        "PerturbedAttentionGuidance",
        {"perturbed_guidance_config": MID, "guidance_scale": 1.0},
        SDXL,
        "guidance_scale other than 1.0",
    ),
    ("SkipLayerGuidance", {"skip_layer_guidance_layers": [0]}, SD3, "each number for a list"),
    ("SkipLayerGuidance", {"skip_layer_config": {"indices": [0]}}, SDXL, f"fqn: {MID['fqn']}"),
    ("SkipLayerGuidance", {"skip_layer_config": {"indices": [0]}}, SD3, "skip_attention: false"),
    ("AutoGuidance", {"auto_guidance_config": [{**MID, "dropout": 0.5}]}, SDXL, "global random"),
    ("ClassifierFreeZeroStarGuidance", {"guidance_rescale": 0.5}, SDXL, "NaN"),
    ("FrequencyDecoupledGuidance", {"guidance_scales": [5.0, 1.0]}, SDXL, "scale of exactly 1.0"),
    ("FrequencyDecoupledGuidance", {"start": [0.0, 0.5]}, SDXL, "one start and one stop"),
    ("FrequencyDecoupledGuidance", {"start": 0}, SDXL, "write 0.0 for 0"),
]


@pytest.mark.parametrize(("name", "parameters", "pipeline", "why"), REFUSED)
def test_parameters_that_cannot_work_are_refused_with_a_way_out(
    name, parameters, pipeline, why
) -> None:
    message = diffusers_guider(f"diffusers.guiders.{name}").refusal(parameters, pipeline)
    assert message is not None
    assert message.startswith(f"diffusers.guiders.{name}: ")
    assert why in message


def test_fdg_without_kornia_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(diffusers_defects, "find_spec", lambda name: None)
    message = DIFFUSERS_GUIDERS["FrequencyDecoupledGuidance"].refusal({}, SDXL)
    assert message is not None
    assert message.endswith("pip install kornia")


WORKING = [
    (name, case)
    for name, case in CASES.items()
    if case.guider in SHIPPED.values() and "check_completes_image" not in case.fails
]


@pytest.mark.parametrize(("name", "case"), WORKING, ids=[name for name, _ in WORKING])
def test_parameters_that_work_are_not_refused(name, case) -> None:
    refused = {"SEG", "PAG without CFG", "AutoGuidance with dropout"}
    declared = DIFFUSERS_GUIDERS[case.guider.__name__]
    message = declared.refusal(case.parameters, {"sdxl": SDXL, "sd3": SD3}[case.model])
    assert (message is not None) == (name in refused), message


def test_a_third_party_guider_has_no_declaration() -> None:
    assert diffusers_guider("my_package.ClassifierFreeGuidance") is None
    assert diffusers_guider("diffusers.guiders.Unknown") is None
