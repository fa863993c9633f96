"""The models that score the images are tried before the first image is made."""

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from judge_server import MODEL, Http, JudgeServer, judge_server
from pretended_gpu import pretended_gpu
from torch._inductor.utils import fresh_cache

from autolora_eval.config.load import find_benchmark, load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.config.stage_inputs import planned_manifest
from autolora_eval.generation.model_on_device import ModelOnDevice
from autolora_eval.generation.preflight import missing
from autolora_eval.runs.folder import RunFolder
from autolora_eval.sources.lookup import miniatures

pytestmark = pytest.mark.model

JUDGE = {"backend": "transformers", "rubric": "prompts/rubrics/pixel_art.yaml", "max_tokens": 32}
FAILING = """
class Squares:
    def __call__(self, images):
        raise MemoryError(f"{len(images)} images of {images[0].size}")
"""


def planned(folder: Path, **sections: Any) -> Plan:
    """Return the plan of one image of the quick start, with other sections."""
    file = folder / "benchmark.yaml"
    file.write_text(
        yaml.safe_dump(yaml.safe_load(find_benchmark("quickstart").read_text()) | sections)
    )
    return make_plan(load_benchmark(file), 1, 1)


@pytest.fixture
def mute(tmp_path: Path) -> str:
    """A judge without a chat template."""
    folder = tmp_path / "mute"
    shutil.copytree(miniatures()["judge"], folder)
    (folder / "chat_template.jinja").unlink()
    return str(folder)


def test_a_judge_that_cannot_answer_is_refused_before_the_first_image(mute, tmp_path):
    plan, out = planned(tmp_path, judge=JUDGE | {"model": mute}), tmp_path / "run"
    (line,) = missing(plan, out)
    assert line.startswith("the judge '")
    assert "cannot answer a question about an image" in line
    assert missing(plan, out, judged=False) == []
    # An earlier run began with these images: it tried both, and nothing is generated anew.
    folder = RunFolder(out)
    manifest = planned_manifest(plan, folder)
    cells = [cell.model_copy(update={"settings_key": "made"}) for cell in manifest.cells]
    folder.write_manifest(manifest.model_copy(update={"cells": cells}))
    assert missing(plan, out) == []


def test_a_server_that_refuses_images_is_refused_before_the_first_image(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    said = Http(400, b'{"error": {"message": "some-vlm is not a multimodal model"}}')
    with judge_server(JudgeServer(answer=lambda call, n: said)) as server:
        judge = {"model": MODEL, "base_url": server.url, "rubric": JUDGE["rubric"]}
        (line,) = missing(planned(tmp_path, judge=judge), tmp_path / "run")
    assert line == (
        "the judge's server has 'some-vlm', but a trial call fails: http_400 "
        "(some-vlm is not a multimodal model)."
    )


REFUSED = {
    401: (b"", "http_401. If it needs an API key, set AUTOLORA_EVAL_JUDGE_API_KEY."),
    400: (
        b'{"error": {"message": "the maximum context length is 2048 tokens"}}',
        "http_400 (the maximum context length is 2048 tokens). Lower judge.max_tokens (4096), or "
        "serve the model with a longer context.",
    ),
    500: (b"", None),  # this may pass
}


@pytest.mark.parametrize("status", REFUSED)
def test_a_stated_constraint_is_tried_before_the_first_image(status, tmp_path, monkeypatch):
    """OpenRouter, for example, lists its models without a key."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    body, said = REFUSED[status]
    with judge_server(JudgeServer(answer=lambda call, n: Http(status, body))) as server:
        judge = {"model": MODEL, "base_url": server.url, "rubric": JUDGE["rubric"]}
        judge |= {"constraint": "plain", "max_retries": 0}
        lines = missing(planned(tmp_path, judge=judge), tmp_path / "run")
    trial = "the judge's server has 'some-vlm', but a trial call fails: "
    assert lines == ([trial + said] if said else [])
    assert len(server.calls) == 1


def test_a_compiler_is_tried_before_the_first_image(tmp_path):
    models = yaml.safe_load(find_benchmark("quickstart").read_text())["models"]
    models["SDXL miniature"]["compile"] = True
    own = {"models": models, "judge": None, "features": {"extractor": "colours"}}
    no_compiler = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with fresh_cache(), no_compiler:
        (line,) = missing(planned(tmp_path, **own), tmp_path / "run")
    assert line.startswith(
        "the model 'SDXL miniature' has 'compile: true', but torch.compile fails on this machine: "
        "InvalidCxxCompiler: No working C++ compiler found"
    )


def test_a_package_that_asking_a_server_needs_is_named(tmp_path, monkeypatch):
    """Before the module that imports it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "aiohttp" else find(name)
    )
    monkeypatch.setitem(sys.modules, "autolora_eval.scoring.judges.openai_judge", None)
    judge = {"model": MODEL, "rubric": JUDGE["rubric"]}
    (line,) = missing(planned(tmp_path, judge=judge), tmp_path / "run")
    assert line.endswith("Install it with: pip install 'autolora-eval[openai]'")


def test_an_extractor_that_fails_on_a_batch_is_refused_before_the_first_image(
    tmp_path, monkeypatch
):
    """It is tried with images of the model's size, two on a CPU."""
    (tmp_path / "failing.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    plan = planned(tmp_path, features={"extractor": "failing.Squares", "batch_size": 3})
    size = plan.cells[0].model.size
    assert missing(plan, tmp_path / "run", judged=False) == [
        f"the extractor 'failing.Squares' fails: MemoryError: 2 images of {size}"
    ]


def test_a_gpu_that_other_processes_fill_is_named_before_and_after_the_first_image(tmp_path):
    plan = planned(tmp_path, device="cuda", judge=None, features={"extractor": "colours"})
    (model,) = plan.benchmark.models.values()
    here = ModelOnDevice.of(plan, model, "cuda", "float16", "conditions")
    held = "has 8.0 GiB, of which other processes hold 8.0 GiB"
    end_them = "End these processes, or limit a vLLM server with --gpu-memory-utilization."
    with pretended_gpu(free=2**20):
        (line,) = missing(plan, tmp_path / "run")
        assert line.endswith(f" GiB, but 'cuda' {held}. {end_them}")
        full = str(here.out_of_memory("guider"))
    assert f"'cuda' {held}). {end_them} Try 'offload: auto' for the model. " in full
    with pretended_gpu():
        assert missing(plan, tmp_path / "run") == []
        alone = str(here.out_of_memory("guider"))
    assert "'cuda' has 8.0 GiB). Try 'guidance_batching: separate', or " in alone
    assert [here.memory(kind)[0].encoders_stay for kind in ("guider", "sampler")] == [False, True]
