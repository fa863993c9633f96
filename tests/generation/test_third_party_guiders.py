"""Third-party guiders in a run: their NFE and code, and what bad ones cannot change."""

import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from json_lines import read_jsonl
from rich.console import Console
from tiny_models import TinyModel, tiny_plan

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._progress import Progress
from autolora_eval.config.plan import Plan
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.generation.guider_backend import ModelDriftCheck
from autolora_eval.generation.stage import generate
from autolora_eval.pipeline import run_pipeline as stages
from autolora_eval.runs.folder import RunFolder

pytestmark = pytest.mark.model

FEW = 2  # steps
CODE = """
import os
import random
import numpy as np
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput

class Nan(ClassifierFreeGuidance):
    def forward(self, pred_cond, pred_uncond=None):
        factor = float("nan") if self._step == 1 else 1.0
        return GuiderOutput(pred=factor * pred_cond, pred_cond=pred_cond)

class ReturnsATensor(ClassifierFreeGuidance):
    def forward(self, pred_cond, pred_uncond=None):
        return pred_cond

class ReturnsANumber(ClassifierFreeGuidance):
    def forward(self, pred_cond, pred_uncond=None):
        return GuiderOutput(pred=0.0, pred_cond=pred_cond)

class Cuts(ClassifierFreeGuidance):
    def forward(self, pred_cond, pred_uncond=None):
        return GuiderOutput(pred=pred_cond[:1], pred_cond=pred_cond)

class Damages(ClassifierFreeGuidance):
    "Does something to the denoiser and does not undo it."
    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        self.damage(denoiser)

class Weights(Damages):
    def damage(self, denoiser):
        with torch.no_grad():
            denoiser.conv_in.weight.mul_(0.99)

class Fuses(Damages):
    def damage(self, denoiser):
        if self._step == 0 and self._count_prepared == 1:
            denoiser.fuse_lora(0.5)

class DamagesAndFails(Weights):
    def forward(self, pred_cond, pred_uncond=None):
        raise ValueError("no")

class Halves(Damages):
    def damage(self, denoiser):
        denoiser.to(torch.bfloat16).to(torch.float32)

class Patches(Damages):
    def damage(self, denoiser):
        from diffusers.models.attention import BasicTransformerBlock as Block
        if not hasattr(Block, "was"):
            Block.was = Block.forward
            Block.forward = lambda block, *a, **k: 0.9 * Block.was(block, *a, **k)

class Draws(ClassifierFreeGuidance):
    "Adds noise of the global generators."
    def forward(self, pred_cond, pred_uncond=None):
        noise = torch.randn_like(pred_cond) + random.random() + np.random.rand()
        return GuiderOutput(pred=pred_cond + noise, pred_cond=pred_cond)

class Mixes(ClassifierFreeGuidance):
    "Scales by a norm over the whole batch."
    def forward(self, pred_cond, pred_uncond=None):
        guided = super().forward(pred_cond, pred_uncond).pred
        factor = 40 * pred_cond.norm() / guided.norm()
        return GuiderOutput(pred=factor * guided, pred_cond=pred_cond)

class MixesPrompts(ClassifierFreeGuidance):
    "Adds a mean over the whole batch to the prompts' embeddings."
    def prepare_inputs(self, data):
        batches = super().prepare_inputs(data)
        for batch in batches:
            batch.prompt_embeds = batch.prompt_embeds + 90 * batch.prompt_embeds.mean()
        return batches

class Remembers(ClassifierFreeGuidance):
    "Adds what it predicted last, which it keeps on the class."
    last = 0.0
    def forward(self, pred_cond, pred_uncond=None):
        out = super().forward(pred_cond, pred_uncond)
        out.pred = out.pred + 0.5 * Remembers.last
        Remembers.last = out.pred[:1]
        return out

class Late(ClassifierFreeGuidance):
    "Guides while there is much noise, which it sees by the timestep alone."

    def _is_cfg_enabled(self):
        return self._timestep is None or float(self._timestep.max()) > 500

class Once(ClassifierFreeGuidance):
    "Can be used for one batch of two steps."
    calls = 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        if self.calls > 2:
            raise AssertionError("used again")
        return super().forward(*args, **kwargs)

class Failing(ClassifierFreeGuidance):
    def forward(self, pred_cond, pred_uncond=None):
        return self.not_there(pred_cond)

class Wanders(ClassifierFreeGuidance):
    def forward(self, pred_cond, pred_uncond=None):
        os.chdir(os.path.dirname(os.path.abspath(__file__)))
        return super().forward(pred_cond, pred_uncond)
"""


@pytest.fixture
def plan_of(tmp_path: Path, one_lora: TinyModel, module: Path) -> Callable[..., Plan]:
    """A function from bad guiders to the plan of them, and of CFG after them; two batches each."""

    def plan(*bad: str, **changes: Any) -> Plan:
        methods = {name: {"guider": f"{module.stem}.{name}"} for name in bad}
        methods["CFG"] = {"guider": "cfg"}
        steps = {"num_inference_steps": FEW}
        changes = {"seeds": {"count": 3}, "baseline": "CFG", **changes}
        return tiny_plan(tmp_path, one_lora, methods, steps, **changes)

    return plan


def hashes(run: RunFolder, method: str) -> dict[str, str]:
    rows = read_jsonl(run.metadata(f"T--{method}"))
    return {row["file_name"]: row["sha256"] for row in rows}


@pytest.fixture(scope="module")
def clean(one_lora: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of CFG's images in a run of CFG alone."""
    folder = tmp_path_factory.mktemp("clean")
    run = RunFolder(folder / "run")
    steps, methods = {"num_inference_steps": FEW}, {"CFG": {"guider": "cfg"}}
    plan = tiny_plan(folder, one_lora, methods, steps, seeds={"count": 3})
    generate(plan, run, Progress())
    return hashes(run, "CFG")


def failure(plan: Plan, run: RunFolder) -> str:
    with pytest.raises(AutoLoRAEvalError) as caught:
        generate(plan, run, Progress())
    return str(caught.value)


BAD_PREDICTIONS = {
    "Nan": f"the prediction is NaN or infinite at step 1 of {FEW}",
    "ReturnsATensor": "forward returned a Tensor: expected GuiderOutput(pred=…)",
    "ReturnsANumber": "forward returned a GuiderOutput: expected GuiderOutput(pred=…)",
    "Cuts": "a prediction of shape [1, 4, 16, 16] for predictions of shape [2, 4, 16, 16]",
}


@pytest.mark.parametrize(
    "bad",
    [
        BAD_PREDICTIONS,
        {"Weights": "changed the model: its weights, or code that it runs"},
        {"Fuses": "changed the model"},
        {"Halves": "changed the model"},
        {"DamagesAndFails": "failed: ValueError: no"},
        {"Remembers": "makes different images from the same prompt and seed"},
    ],
    ids=" ".join,
)
def test_bad_guiders_are_named_make_no_image_and_change_no_other_image(
    bad, plan_of, clean, run, module
):
    *lines, last = failure(plan_of(*bad), run).splitlines()
    for (name, expected), line in zip(bad.items(), lines, strict=True):
        assert line.startswith(f"cell 'T--{name}': the guider '{module.stem}.{name}' ")
        assert expected in line
        assert hashes(run, name) == {}
    assert last == "Everything else finished. Fix the problem and run the same command again."
    assert hashes(run, "CFG") == clean
    assert len(clean) == 3


def test_a_changed_pipeline_is_freed_before_the_model_is_loaded_again(plan_of, run, monkeypatch):
    """Neither the kept errors nor a snapshot keep a second copy of the model alive."""
    load = LoraPipeline.load
    denoisers: list[weakref.ref[torch.nn.Module]] = []
    alive: list[int] = []

    def recorded_load(*args: Any) -> LoraPipeline:
        gc.collect()
        alive.append(sum(denoiser() is not None for denoiser in denoisers))
        pipeline = load(*args)
        denoisers.append(weakref.ref(pipeline.denoiser))
        return pipeline

    monkeypatch.setattr(LoraPipeline, "load", recorded_load)
    failure(plan_of("DamagesAndFails", "Weights"), run)
    assert alive == [0, 0, 0]


def test_the_same_command_makes_the_missing_images_of_a_fixed_guider(plan_of, run, module):
    failure(plan_of("Nan"), run)
    module.write_text(CODE.replace('float("nan")', "1.0"))
    sys.modules.pop(module.stem)
    done = generate(plan_of("Nan"), run, Progress())
    assert (done.made, done.reused) == (3, 3)


MIXING = ("Draws", "Mixes", "MixesPrompts")


def test_a_guider_that_mixes_a_batch_makes_its_images_one_at_a_time(
    plan_of, clean, tmp_path, capsys
):
    """Its images are those of batches of 1, also if one of them is made later."""
    run, alone = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "alone")
    prompts = ["a red cat", "a blue dog"]
    generate(plan_of(*MIXING, prompts=prompts, batch_size=1), alone, Progress())
    plan = plan_of(*MIXING, prompts=prompts)
    generate(plan, run, Progress(Console(width=200)))
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert [note.split("'")[1] for note in notes] == [f"T--{name}" for name in MIXING]
    for name in MIXING:
        assert hashes(run, name) == hashes(alone, name)
        rows = read_jsonl(run.metadata(f"T--{name}"))
        assert all(row["made_alone"] for row in rows)
        (run.images(f"T--{name}") / rows[1]["file_name"]).unlink()
    assert clean.items() <= hashes(run, "CFG").items()
    assert not any("made_alone" in row for row in read_jsonl(run.metadata("T--CFG")))
    assert generate(plan, run, Progress()).made == len(MIXING)
    for name in MIXING:
        assert hashes(run, name) == hashes(alone, name)


def test_a_guider_that_changes_a_library_stops_the_run(plan_of, run):
    try:
        message = failure(plan_of("Patches"), run)
    finally:
        BasicTransformerBlock.forward = BasicTransformerBlock.was
        del BasicTransformerBlock.was
    assert "It also changed library code" in message
    assert hashes(run, "Patches") == hashes(run, "CFG") == {}


def test_a_guider_that_changes_the_working_folder_does_not_move_the_run(
    plan_of, tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    plan = plan_of("Wanders")
    monkeypatch.chdir(tmp_path / "elsewhere")
    generate(plan, RunFolder(Path("run")), Progress())
    assert Path.cwd() == tmp_path / "elsewhere"
    assert len(hashes(RunFolder(tmp_path / "elsewhere" / "run"), "CFG")) == 3


def test_drift_is_measured_against_how_well_the_device_repeats_itself():
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = ModelDriftCheck(lambda: latents.clone())
    assert not exact.has_drifted(lambda: latents.clone())
    assert exact.has_drifted(lambda: latents + 1e-6)
    assert exact.has_drifted(lambda: latents * torch.nan)
    # The two runs of the unchanged model differ by 1e-4, so a change of that size proves nothing.
    runs = iter([latents, latents + 1e-4])
    inexact = ModelDriftCheck(lambda: next(runs))
    assert not inexact.has_drifted(lambda: latents - 1e-4)
    assert inexact.has_drifted(lambda: latents + 1e-2)


def test_a_model_that_no_longer_runs_has_drifted():
    def broken() -> torch.Tensor:
        raise RuntimeError

    assert ModelDriftCheck(lambda: torch.zeros(1)).has_drifted(broken)


def test_a_device_without_memory_says_nothing_of_the_model():
    def full() -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        ModelDriftCheck(lambda: torch.zeros(1)).has_drifted(full)


@pytest.mark.usefixtures("no_report")
def test_the_measured_nfe_is_recorded_instead_of_the_announced_one(plan_of, tmp_path):
    plan = plan_of("Late")
    assert plan.cells[0].nfe == FEW, "away from a pipeline the timestep is 0"
    run = stages.run(plan.benchmark.file, tmp_path / "run")
    (passes,) = {row["nfe"] for row in read_jsonl(run.folder.metadata("T--Late"))}
    assert FEW < passes < 2 * FEW
    assert run.table.set_index("method")["nfe"].to_dict() == {"CFG": 2 * FEW, "Late": passes}


def test_a_failing_guider_is_reported_with_its_line_and_other_images_are_kept(plan_of, run, module):
    with pytest.raises(AutoLoRAEvalError) as caught:
        generate(plan_of("Failing"), run, Progress())
    line = CODE.splitlines().index("        return self.not_there(pred_cond)") + 1
    message = str(caught.value)
    assert message.startswith(f"cell 'T--Failing': the guider '{module.stem}.Failing' failed: ")
    assert "AttributeError: 'Failing' object has no attribute 'not_there'" in message
    assert f"({module.name}, line {line})" in message
    assert len(read_jsonl(run.metadata("T--CFG"))) == 3


def test_every_batch_gets_a_new_guider_and_an_edited_one_makes_its_images_again(
    plan_of, run, module
):
    plan = plan_of("Once")
    assert generate(plan, run, Progress()).made == 6
    assert generate(plan_of("Once"), run, Progress()).made == 0
    module.write_text(module.read_text() + "\nFACTOR = 2\n")
    sys.modules.pop(module.stem)
    edited = plan_of("Once")
    assert generate(edited, run, Progress()).made == 3, "its own, and none of CFG's"
    before, after = (one.cells[0].method.definition.code["sha256"] for one in (plan, edited))
    assert before != after
