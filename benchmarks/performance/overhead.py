"""What generation takes beside denoiser, text encoders and decoder, as a share of all.

From the generation stage of the quick start: prompts, guiders, schedulers, noise, PNG files,
hashes and records. The loading of libraries and models is left out: a real run pays it once.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from benchmarks.performance.measure import show, spread

ROUNDS = 3
SEEDS = 4


@dataclass
class Clock:
    """Processor seconds spent inside, entered at most once at a time."""

    seconds: float = 0.0
    depth: int = field(default=0, repr=False)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count the time of the block."""
        self.depth += 1
        start = time.process_time()
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                self.seconds += time.process_time() - start

    def counted(self, function: Callable[..., object]) -> Callable[..., object]:
        """Return the function with its time counted."""

        def call(*args: object, **kwargs: object) -> object:
            with self.inside():
                return function(*args, **kwargs)

        return call


def share() -> tuple[float, float]:
    """Generate anew; return the evaluator's share of the time, and seconds per image."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

    from autolora_eval._progress import Progress
    from autolora_eval.config.load import load_benchmark
    from autolora_eval.config.plan import make_plan
    from autolora_eval.generation.diffusion_pipeline import LoraPipeline
    from autolora_eval.generation.stage import generate
    from autolora_eval.runs.folder import RunFolder

    models, loading, all_of_it = Clock(), Clock(), Clock()
    classes = (UNet2DConditionModel, SD3Transformer2DModel, CLIPTextModel)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for kind in (*classes, CLIPTextModelWithProjection, T5EncoderModel):
            stack.enter_context(patch.object(kind, "forward", models.counted(kind.forward)))
        decode = models.counted(AutoencoderKL.decode)
        stack.enter_context(patch.object(AutoencoderKL, "decode", decode))
        load = staticmethod(loading.counted(LoraPipeline.load))
        stack.enter_context(patch.object(LoraPipeline, "load", load))
        plan = make_plan(load_benchmark("quickstart"), limit_seeds=SEEDS)
        with all_of_it.inside():
            made = generate(plan, RunFolder(Path(folder)), Progress()).made
    whole = all_of_it.seconds - loading.seconds
    return 1 - models.seconds / whole, whole / made


def main() -> None:
    """Measure some rounds, the first of which pays the imports."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = [share() for _ in range(ROUNDS + 1)][1:]
    show(
        [
            spread("evaluator's share of generation", [a for a, _ in found], "", "≤ 0.05"),
            spread("processor seconds per image", [b for _, b in found], "s"),
        ]
    )


if __name__ == "__main__":
    main()
