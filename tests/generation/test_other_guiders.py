"""Third-party guiders in a run: their NFE, their source code as part of the key, their failures."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import STEPS, TinyModel, make_lora

from autolora_eval import _pipeline as stages
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import read_jsonl
from autolora_eval._progress import Progress
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.generation.stage import generate
from autolora_eval.runs.folder import RunFolder

pytestmark = pytest.mark.model

CODE = """
from diffusers.guiders import ClassifierFreeGuidance

class Late(ClassifierFreeGuidance):
    "Guides while there is much noise, which it sees by the timestep alone."

    def _is_cfg_enabled(self):
        return self._timestep is None or float(self._timestep.max()) > 500

class Once(ClassifierFreeGuidance):
    "Can be used for one batch."
    calls = 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        if self.calls > STEPS:
            raise AssertionError("used again")
        return super().forward(*args, **kwargs)

class Failing(ClassifierFreeGuidance):
    def forward(self, pred_cond, pred_uncond=None):
        return self.not_there(pred_cond)
"""
_numbers = itertools.count()


@pytest.fixture(scope="module")
def tiny(sdxl: Path) -> TinyModel:
    file = sdxl.parent / "guided.safetensors"
    return TinyModel(sdxl, file, make_lora(sdxl, file, kohya=False, text_encoders=False))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of guiders that lies beside the benchmark."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / f"guiders_for_test_{next(_numbers)}.py"
    file.write_text(CODE.replace("STEPS", str(STEPS)))
    yield file
    sys.modules.pop(file.stem, None)


@pytest.fixture
def plan_of(tmp_path: Path, tiny: TinyModel, module: Path) -> Callable[..., Plan]:
    """A function from classes of the module to the plan of them, two batches each."""

    def plan(*classes: str) -> Plan:
        model = {
            "pipeline": str(tiny.pipeline),
            "lora": {"path": str(tiny.lora)},
            "num_inference_steps": STEPS,
        }
        content: dict[str, Any] = {
            "name": "guided",
            "prompts": ["a red cat"],
            "seeds": {"count": 4},
            "models": {"T": model},
            "methods": {
                "CFG": {"guider": "cfg"},
                **{name: {"guider": f"{module.stem}.{name}"} for name in classes},
            },
            "features": {"model": "miniature:dinov2"},
            "batch_size": 2,
        }
        path = tmp_path / "benchmark.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return make_plan(load_benchmark(path))

    return plan


@pytest.mark.usefixtures("no_report")
def test_the_measured_nfe_is_recorded_instead_of_the_announced_one(plan_of, tmp_path) -> None:
    plan = plan_of("Late")
    assert plan.cells[1].nfe == STEPS, "away from a pipeline the timestep is 0"
    run = stages.run(plan.benchmark.file, tmp_path / "run")
    made = {row["nfe"] for row in read_jsonl(run.folder.metadata("T--Late"))}
    (passes,) = made
    assert STEPS < passes < 2 * STEPS
    assert run.table.set_index("method")["nfe"].to_dict() == {"CFG": 2 * STEPS, "Late": passes}


def test_every_batch_gets_a_new_guider(plan_of, tmp_path) -> None:
    generate(plan_of("Once"), RunFolder(tmp_path / "run"), Progress())


def test_a_failing_guider_is_reported_with_its_line_and_other_images_are_kept(
    plan_of, tmp_path, module: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(AutoLoRAEvalError) as caught:
        generate(plan_of("Failing"), run, Progress())
    line = CODE.splitlines().index("        return self.not_there(pred_cond)") + 1
    message = str(caught.value)
    assert message.startswith(f"cell 'T--Failing': the guider '{module.stem}.Failing' failed: ")
    assert "AttributeError: 'Failing' object has no attribute 'not_there'" in message
    assert f"({module.name}, line {line})" in message
    assert len(read_jsonl(run.metadata("T--CFG"))) == 4


def test_an_edited_guider_does_not_reuse_its_earlier_images(
    plan_of, tmp_path, module: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    plan = plan_of("Once")
    assert generate(plan, run, Progress()).made == 8
    assert generate(plan_of("Once"), run, Progress()).made == 0
    module.write_text(module.read_text() + "\nFACTOR = 2\n")
    sys.modules.pop(module.stem)
    edited = plan_of("Once")
    assert generate(edited, run, Progress()).made == 4, "its own, and none of CFG's"
    before, after = (one.cells[1].method.definition.code["sha256"] for one in (plan, edited))
    assert before != after
