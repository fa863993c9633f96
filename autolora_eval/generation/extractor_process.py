"""Extracts features of finished images in another process while more images are made."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from autolora_eval._devices import choose_device, choose_dtype
from autolora_eval.config.gpu_memory import RESERVE, model_memory
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.config.stage_inputs import feature_settings
from autolora_eval.generation.model_on_device import ModelOnDevice
from autolora_eval.scoring.features import Batch, Extracted, FeatureMaker


class ExtractorProcess:
    """Extracts features in a new process, which ends with this one, however this one ends.

    A process of `multiprocessing` would run the user's script a second time.

    Args:
        benchmark: the benchmark file.
        key: the extractor's.
        gpu_share: the share of a CUDA device's memory that it may take, at most 1.
    """

    def __init__(self, benchmark: Path, key: str, gpu_share: float) -> None:
        code = f"import sys; from {__name__} import serve; serve(*sys.argv[1:])"
        self._process = subprocess.Popen(
            # -P: no module of the working folder takes the place of a library
            [sys.executable, "-P", "-c", code, str(benchmark.resolve()), key, str(gpu_share)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # Ctrl-C is for this process
        )

    def __call__(self, batch: Batch) -> Extracted:
        """Return what became of a batch.

        Raises:
            EOFError, OSError: if the process has failed or was cancelled.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(batch, self._process.stdin)
        self._process.stdin.flush()
        extracted: Extracted = pickle.load(self._process.stdout)
        return extracted

    def cancel(self) -> None:
        """End the process from another thread, in which a call then raises."""
        self._process.kill()

    def close(self) -> None:
        """End the process."""
        self.cancel()
        with suppress(OSError), self._process:  # waits for it, and closes the pipes
            pass


def serve(benchmark: str, key: str, gpu_share: str) -> None:
    """Extract the batches of the process that started this one, until it closes the pipe."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is not a result
    settings = feature_settings(make_plan(load_benchmark(benchmark)))
    if settings.key != key:
        return  # a file was changed meanwhile
    if (device := choose_device(settings.device)).startswith("cuda"):
        import torch

        torch.cuda.set_per_process_memory_fraction(float(gpu_share), device)
    extract = FeatureMaker(settings)
    with suppress(EOFError, BrokenPipeError):
        while True:
            pickle.dump(extract(pickle.load(sys.stdin.buffer)), out)
            out.flush()


def start_extractor(plan: Plan, key: str) -> ExtractorProcess | None:
    """Start the extractor of a key beside generation.

    Returns:
        None on a CPU, where it would only slow generation down, or if a GPU has no memory left.
    """
    share = free_gpu_share(plan)
    return ExtractorProcess(plan.benchmark.file, key, share) if share else None


def free_gpu_share(plan: Plan) -> float:
    """Return the share of the GPU's memory that generation leaves free; 0 if it is not known.

    It is known for guiders on a CUDA device whose models stay there. A judge's server may use a
    part of the same device.
    """
    spec = plan.benchmark.spec
    device = choose_device(spec.device)
    if not device.startswith("cuda") or any(cell.method.kind == "sampler" for cell in plan.cells):
        return 0.0
    import torch

    dtype = choose_dtype(spec.dtype, device)
    free, card = torch.cuda.mem_get_info(device)
    without_ours = free + torch.cuda.memory_reserved(device)
    peak = 0
    for model in plan.benchmark.models.values():
        memory = model_memory(model, dtype)
        if memory is None or model.spec.offload != "none":
            return 0.0
        batching = ModelOnDevice.of(plan, model, device, dtype).guidance_batching
        peak = max(peak, memory.batched(batching).peak(spec.batch_size))
    return max(0.0, (without_ours - peak - 2 * RESERVE) / card)  # one for each process
