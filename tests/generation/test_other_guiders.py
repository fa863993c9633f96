"""Third-party guiders in a run: their NFE, their source code as part of the key, their failures."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from json_lines import read_jsonl
from tiny_models import STEPS, TinyModel, tiny_plan

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._progress import Progress
from autolora_eval.config.plan import Plan
from autolora_eval.generation.stage import generate
from autolora_eval.pipeline import run_pipeline as stages

pytestmark = pytest.mark.model

CODE = f"""
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
        if self.calls > {STEPS}:
            raise AssertionError("used again")
        return super().forward(*args, **kwargs)

class Failing(ClassifierFreeGuidance):
    def forward(self, pred_cond, pred_uncond=None):
        return self.not_there(pred_cond)
"""


@pytest.fixture
def plan_of(tmp_path: Path, one_lora: TinyModel, module: Path) -> Callable[..., Plan]:
    """A function from classes of the module to the plan of them, two batches each."""

    def plan(*classes: str) -> Plan:
        methods = {"CFG": {"guider": "cfg"}}
        methods |= {name: {"guider": f"{module.stem}.{name}"} for name in classes}
        return tiny_plan(tmp_path, one_lora, methods, seeds={"count": 4})

    return plan


@pytest.mark.usefixtures("no_report")
def test_the_measured_nfe_is_recorded_instead_of_the_announced_one(plan_of, tmp_path):
    plan = plan_of("Late")
    assert plan.cells[1].nfe == STEPS, "away from a pipeline the timestep is 0"
    run = stages.run(plan.benchmark.file, tmp_path / "run")
    made = {row["nfe"] for row in read_jsonl(run.folder.metadata("T--Late"))}
    (passes,) = made
    assert STEPS < passes < 2 * STEPS
    assert run.table.set_index("method")["nfe"].to_dict() == {"CFG": 2 * STEPS, "Late": passes}


def test_every_batch_gets_a_new_guider(plan_of, run):
    generate(plan_of("Once"), run, Progress())


def test_a_failing_guider_is_reported_with_its_line_and_other_images_are_kept(plan_of, run, module):
    with pytest.raises(AutoLoRAEvalError) as caught:
        generate(plan_of("Failing"), run, Progress())
    line = CODE.splitlines().index("        return self.not_there(pred_cond)") + 1
    message = str(caught.value)
    assert message.startswith(f"cell 'T--Failing': the guider '{module.stem}.Failing' failed: ")
    assert "AttributeError: 'Failing' object has no attribute 'not_there'" in message
    assert f"({module.name}, line {line})" in message
    assert len(read_jsonl(run.metadata("T--CFG"))) == 4


def test_an_edited_guider_does_not_reuse_its_earlier_images(plan_of, run, module):
    plan = plan_of("Once")
    assert generate(plan, run, Progress()).made == 8
    assert generate(plan_of("Once"), run, Progress()).made == 0
    module.write_text(module.read_text() + "\nFACTOR = 2\n")
    sys.modules.pop(module.stem)
    edited = plan_of("Once")
    assert generate(edited, run, Progress()).made == 4, "its own, and none of CFG's"
    before, after = (one.cells[1].method.definition.code["sha256"] for one in (plan, edited))
    assert before != after
