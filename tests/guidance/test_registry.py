"""The methods: what each says it costs is what its guider makes, and no name stands twice."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from autolora_eval.guidance import methods as package
from autolora_eval.guidance.method_registry import GUIDERS

pytestmark = pytest.mark.model

SCALES = (0.0, 1.0, 5.0)
CASES = [
    *[("lora", {})],
    *[("cfg", {"guidance_scale": w}) for w in SCALES],
    *[
        ("autolora", {"autolora_scale": gamma, "guidance_scale": w2, "base_guidance_scale": w1})
        for gamma, w1, w2 in itertools.product((0.0, 1.0, 1.5), SCALES, SCALES)
    ],
    *[("autolora", {"start": a, "stop": b}) for a, b in ((0.2, 0.6), (0.0, 0.29), (0.5, 0.5))],
]


@pytest.mark.parametrize(("guider", "given"), CASES)
def test_the_declared_nfe_is_what_the_guider_evaluates(guider, given) -> None:
    rule = GUIDERS.find(guider)
    parameters = rule.parameters.model_validate(given).with_model_defaults(5.0)
    built = rule.build(parameters)
    prompt_embeds = (torch.ones(1, 2, 3), torch.zeros(1, 2, 3))
    for step, num_steps in [(step, n) for n in (1, 7, 10, 100) for step in range(n)]:
        built.set_state(step=step, num_inference_steps=num_steps, timestep=torch.tensor(step))
        made = len(built.prepare_inputs({"prompt_embeds": prompt_embeds}))
        assert rule.nfe_per_step(parameters, step, num_steps) == made


def test_every_shipped_method_is_described() -> None:
    for name, rule in GUIDERS.built_in().items():
        assert name == rule.name
        assert "" not in (rule.display_name, rule.summary, rule.equation, rule.source)
    shown = [rule.display_name for rule in GUIDERS.built_in().values()]
    assert len(set(shown)) == len(shown)


@pytest.fixture
def another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files are methods like those of the package."""
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    return tmp_path


COPY = """
from dataclasses import replace
from autolora_eval.guidance.methods.lora_only import METHOD as LORA

METHOD = replace(LORA, name={name!r})
"""


def test_a_file_added_is_a_method_added(another_folder: Path) -> None:
    (another_folder / "extra_for_test.py").write_text(COPY.format(name="extra"))
    assert GUIDERS.find("extra").display_name == "LoRA"


def test_a_second_method_of_one_name_is_refused_rather_than_replacing_the_first(
    another_folder: Path,
) -> None:
    (another_folder / "second_for_test.py").write_text(COPY.format(name="cfg"))
    with pytest.raises(
        ValueError, match=r"two guiders are named 'cfg': cfg\.py and second_for_test"
    ):
        GUIDERS.built_in()
