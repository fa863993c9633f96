"""`make gpu-check`: what only a GPU can show.

On the miniatures: float16 and bfloat16 on the GPU against float32 on the CPU, whether all methods
start from the same noise, and whether an image depends on its neighbours in a batch. On SDXL's real
architecture with random weights at 1024 × 1024: the plan's estimate of memory against the measured
peak, and the seconds of an image.

`--device cpu` runs the first part on the CPU, to show that the script works.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import architectures
import torch
from diffusers.guiders import BaseGuidance

from autolora_eval._devices import free_memory
from autolora_eval._progress import quiet_libraries
from autolora_eval.config.gpu_memory import GIB, model_memory
from autolora_eval.config.inputs import ResolvedModel
from autolora_eval.config.load import load_benchmark
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.method_registry import GUIDERS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODELS = ROOT / "build" / "rehearsal"
STEPS, PROMPTS, SEEDS = 8, ["a red heart", "a green star"], [3, 5]
# Largest difference of latents from float32 on the CPU, relative to their norm.
TOLERANCES = {torch.float16: 0.02, torch.bfloat16: 0.1}
MEMORY_TOLERANCE = 0.15


def guiders() -> dict[str, BaseGuidance]:
    """Return a new guider of every built-in method."""
    return {
        name: one.build(one.parameters().with_model_defaults(3.0))
        for name, one in GUIDERS.built_in().items()
    }


@contextmanager
def first_samples(pipeline: LoraPipeline) -> Iterator[list[torch.Tensor]]:
    """Note what the scheduler's steps are given."""
    step, seen = pipeline.pipe.scheduler.step, []

    def noted(prediction: object, t: object, sample: torch.Tensor, **options: object) -> object:
        seen.append(sample.float().cpu())
        return step(prediction, t, sample, **options)

    pipeline.pipe.scheduler.step = noted
    try:
        yield seen
    finally:
        del pipeline.pipe.scheduler.step


def sampled(
    model: ResolvedModel, device: torch.device, dtype: torch.dtype
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return (initial noise, latents) of every method."""
    found = {}
    with quiet_libraries():
        pipeline = LoraPipeline.load(model, device, dtype)
        for name, guider in guiders().items():
            with first_samples(pipeline) as seen:
                latents = pipeline.sample(
                    PROMPTS,
                    SEEDS,
                    guider,
                    num_inference_steps=STEPS,
                    size=model.size,
                    output="latents",
                )
            found[name] = seen[0], latents.float().cpu()
        print(f"{dtype} on {device}, same image in other batches: {in_batches(pipeline, model)}")
    return found


def in_batches(pipeline: LoraPipeline, model: ResolvedModel) -> str:
    """Return by how much an image's latents differ in another row and beside another image."""
    options = {"num_inference_steps": STEPS, "size": model.size, "output": "latents"}
    made = {}
    for order in ((0, 1), (1, 0), (0, 0)):
        prompts, seeds = zip(*((PROMPTS[n], SEEDS[n]) for n in order), strict=True)
        latents = pipeline.sample(prompts, seeds, guiders()["autolora"], **options)
        made[order] = latents[order.index(0)].double()
    differences = [float((one - made[0, 1]).abs().max()) for one in made.values()]
    return f"off by {max(differences):.1e} of {float(made[0, 1].abs().max()):.1e}"


def check_miniatures(device: torch.device) -> list[str]:
    """Compare precisions and noise on the miniatures; return what failed."""
    failed = []
    models = load_benchmark(ROOT / "benchmarks" / "pixel_art_miniature.yaml").models
    for title, model in models.items():
        exact = sampled(model, torch.device("cpu"), torch.float32)
        for dtype, tolerance in TOLERANCES.items():
            found = sampled(model, device, dtype)
            noises = [noise for noise, _ in found.values()]
            same = all(torch.equal(noises[0], noise) for noise in noises)
            of_cpu = torch.allclose(noises[0], exact["cfg"][0], rtol=1e-2, atol=1e-2)
            errors = {
                name: float((latents - exact[name][1]).norm() / exact[name][1].norm())
                for name, (_, latents) in found.items()
            }
            said = ", ".join(f"{name} {error:.4f}" for name, error in errors.items())
            case = f"{title}, {str(dtype).removeprefix('torch.')} on {device}"
            print(f"{case}: off float32 by {said}; noise equal: {same and of_cpu}", flush=True)
            if not same or not of_cpu or not max(errors.values()) <= tolerance:
                failed.append(case)
    return failed


def check_real_size(device: torch.device, batch_size: int) -> list[str]:
    """Measure memory and time of SDXL at 1024 × 1024 on a GPU; return what failed."""
    architectures.main(MODELS)
    torch.set_default_dtype(torch.float32)
    model = replace(load_benchmark(HERE / "benchmark.yaml").models["SDXL"], size=(1024, 1024))
    memory = model_memory(model, "float16")
    assert memory is not None
    with quiet_libraries():
        pipeline = LoraPipeline.load(model, device, torch.float16)
        guider = guiders()["autolora"]
        options = {"num_inference_steps": STEPS, "size": model.size, "output": "latents"}
        prompts, seeds = ["a red cat"] * batch_size, list(range(batch_size))
        pipeline.encode(prompts, [""] * batch_size)
        pipeline.release_text_encoders()
        free_memory()
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(2):  # the first call compiles and tunes kernels
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            latents = pipeline.sample(prompts, seeds, guider.new(), **options)
            torch.cuda.synchronize(device)
            seconds = (time.perf_counter() - start) / STEPS / batch_size
        pipeline.pipe.vae.float().decode(latents.float() / pipeline.pipe.vae.config.scaling_factor)
    peak = torch.cuda.max_memory_allocated(device)
    planned = memory.batched(pipeline.guidance_batching).peak(batch_size)
    print(f"SDXL, 1024 × 1024, batch {batch_size}: peak {peak / GIB:.2f} GiB", end=", ")
    print(f"plan {planned / GIB:.2f} GiB ({planned / peak - 1:+.0%})")
    print(f"SDXL, AutoLoRA+CFG: {seconds:.2f} s a step; {50 * seconds:.0f} s an image of 50 steps")
    return [] if abs(planned / peak - 1) <= MEMORY_TOLERANCE else ["estimate of memory"]


def main() -> None:
    """Run the checks; the exit code is 1 if one fails, and 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch-size", type=int, default=4)
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            f"torch {torch.__version__} sees no CUDA GPU here. Run 'make gpu-check' on a machine "
            "with one, or try the script with: python tests/rehearsal/gpu_check.py --device cpu",
            file=sys.stderr,
        )
        sys.exit(2)
    failed = check_miniatures(device)
    if device.type == "cuda":
        with torch.no_grad():
            failed += check_real_size(device, given.batch_size)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
