"""One model at a time is in memory, whatever failed; and the message if it does not fit."""

import gc
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from tiny_models import TinyModel, tiny_plan

from autolora_eval._devices import is_out_of_memory
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._progress import Progress
from autolora_eval.config.plan import Plan
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.generation.stage import generate

pytestmark = pytest.mark.model

FAULTY = '''
import torch
from diffusers.guiders import ClassifierFreeGuidance


class Raises(ClassifierFreeGuidance):
    """Fails in the middle of a pass."""

    def prepare_models(self, denoiser):
        raise ValueError("this guider fails")


class Lost(ClassifierFreeGuidance):
    """Fails in a kernel of the GPU."""

    def prepare_models(self, denoiser):
        lost("", 0, None)


def lost(prompt, seed, model):
    torch.cuda.is_initialized = lambda: True
    raise RuntimeError("CUDA error: device-side assert triggered\\nMore.")


def sampler(prompt, seed, model):
    pipeline = model.pipeline
    raise ValueError(f"this sampler fails with {type(pipeline).__name__}")
'''


def plan_of(tiny: TinyModel, folder: Path, methods: dict, **changes: object) -> Plan:
    """The plan of two models, one step each."""
    model = {"pipeline": str(tiny.pipeline), "num_inference_steps": 1}
    models = {
        name: model | {"lora": {"path": str(tiny.lora), "scale": scale}}
        for name, scale in {"first": 1.0, "second": 0.5}.items()
    }
    return tiny_plan(folder, tiny, methods, models=models, **changes)


def test_a_model_is_freed_before_the_next_is_loaded_though_errors_of_it_are_kept(
    one_lora, run, tmp_path, monkeypatch
):
    (tmp_path / "faulty_memory.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    methods = {
        "CFG": {"guider": "cfg"},
        "Raises": {"guider": "faulty_memory.Raises"},
        "Sampler": {"sampler": "faulty_memory.sampler"},
    }
    load, loaded, alive = LoraPipeline.load, [], []

    def watched(*args) -> LoraPipeline:
        alive.append(sum(one() is not None for one in loaded))
        pipeline = load(*args)
        loaded.extend(
            weakref.ref(part) for part in (pipeline, pipeline.denoiser, pipeline.pipe.vae)
        )
        return pipeline

    monkeypatch.setattr(LoraPipeline, "load", watched)
    with pytest.raises(AutoLoRAEvalError, match="this guider fails") as caught:
        generate(plan_of(one_lora, tmp_path, methods), run, Progress())
    assert alive == [0, 0, 0, 0]  # a sampler and the guiders, of two models
    assert "this sampler fails" in str(caught.value)
    gc.collect()
    assert not any(one() is not None for one in loaded)


@pytest.mark.parametrize("third_party", [False, True])
def test_out_of_memory_is_one_message_for_a_model_and_other_models_finish(
    one_lora, run, tmp_path, monkeypatch, third_party
):
    (tmp_path / "own_memory.py").write_text(
        "from diffusers.guiders import ClassifierFreeGuidance\n\n\n"
        'class Own(ClassifierFreeGuidance):\n    """CFG."""\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    methods = {"CFG": {"guider": "own_memory.Own" if third_party else "cfg"}}
    sample, made, trials = LoraPipeline.sample, [], 3 * third_party

    def too_large(self, prompts, *args, **kwargs):
        made.append(len(prompts))
        if len(prompts) == 2 and made.count(2) == trials + 2:  # the second batch of the first model
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
        return sample(self, prompts, *args, **kwargs)

    monkeypatch.setattr(LoraPipeline, "sample", too_large)
    plan = plan_of(one_lora, tmp_path, methods, prompts=["a red cat", "two dogs"])
    with pytest.raises(AutoLoRAEvalError) as caught:
        generate(plan, run, Progress())
    assert str(caught.value) == (
        "the model 'first' ran out of memory on 'cpu': 32 × 32 pixels, batch_size 2, float32, "
        "offload none (this takes an estimated 0.0 GiB). Try 'offload: auto' for the model. "
        "offload changes no image; another batch_size or guidance_batching makes all images again. "
        "Finished images are "
        "kept.\n"
        "Everything else finished. Fix the problem and run the same command again."
    )
    counts = [len(list(run.images(cell.id).rglob("*.png"))) for cell in plan.cells]
    assert counts == [2, 4]
    assert generate(plan, run, Progress()).made == 2


@pytest.mark.parametrize("method", [{"guider": "faulty_gpu.Lost"}, {"sampler": "faulty_gpu.lost"}])
def test_a_method_that_leaves_the_gpu_unusable_stops_the_run_by_its_name(
    one_lora, run, tmp_path, monkeypatch, method
):
    (tmp_path / "faulty_gpu.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    plan = plan_of(one_lora, tmp_path, {"Lost": method, "CFG": {"guider": "cfg"}})

    def fails(device):
        assert device == 1, "only GPUs that this process uses"
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)  # until the method fails
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: device)
    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    with pytest.raises(AutoLoRAEvalError) as caught:
        generate(plan, run, Progress())
    kind, path = next(iter(method.items()))
    assert str(caught.value).startswith(
        f"the {kind} '{path}' left the GPU in an error state, so this process cannot continue: "
        "CUDA error: device-side assert triggered. Finished work is kept"
    )
    assert not list(run.path.rglob("failed_images/*"))


def test_what_other_devices_and_cuda_libraries_say_is_out_of_memory_too():
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


FAULTS = """
import resource, torch
from autolora_eval._devices import keep_freed_memory

def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

before = faults()
keep_freed_memory()
faults()  # the heap grows until the largest gap is large enough
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_large_tensors_reuse_memory_that_others_freed():
    """A tensor of 64 MiB has 16,384 pages of 4 KiB, or 32 of 2 MiB."""
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True)
    anew, reused = map(int, done.stdout.split())
    assert anew >= 20 * 32
    assert reused < 20
