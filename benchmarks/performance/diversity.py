"""Equation (8): ours with its jackknife beside the cosines of torchmetrics and scikit-learn.

    python -m benchmarks.performance.diversity [--images 1024 16384] [--dim 1536] [--json]

Each runs in a process of its own, on one thread, three times. Memory is the peak of the process
above what it had with the features. Matrices of all pairs are skipped above
20,000 images. Aims: 30 times torchmetrics' speed at 16,384 images, memory below the features' own
size, and below 2 GB at 100,000.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from benchmarks.performance.measure import Row, show, spread

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Features = npt.NDArray[np.float32]

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ALL_PAIRS = 20_000


def ours() -> Callable[[Features], float | None]:
    """Equation (8) with its standard error."""
    from autolora_eval.scoring.diversity import diversity

    return lambda features: diversity(features).value


def torchmetrics() -> Callable[[Features], float]:
    """One minus the mean of the cosines of all pairs, without a standard error."""
    import torch
    from torchmetrics.functional import pairwise_cosine_similarity

    def value(features: Features) -> float:
        n = len(features)
        cosines = pairwise_cosine_similarity(torch.from_numpy(features))  # its diagonal is 0
        return float(1.0 - cosines.sum() / (n * (n - 1)))

    return value


def scikit_learn() -> Callable[[Features], float]:
    """The same by scikit-learn."""
    from sklearn.metrics.pairwise import cosine_similarity

    def value(features: Features) -> float:
        n = len(features)
        return float(1.0 - (cosine_similarity(features).sum() - n) / (n * (n - 1)))

    return value


WAYS = {"ours": ours, "torchmetrics": torchmetrics, "scikit-learn": scikit_learn}


def peak_mb() -> float:
    """Return the peak of this process's memory so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def measure(way: str, n: int, dim: int) -> dict[str, Any]:
    """Return processor seconds and memory of one way in this process."""
    import numpy as np

    function = WAYS[way]()
    rng = np.random.default_rng(0)
    function(rng.normal(size=(8, dim)).astype(np.float32))
    features = np.empty((n, dim), dtype=np.float32)
    for row in features:
        row[:] = 0.5 + rng.standard_normal(dim, dtype=np.float32)
    before, times = peak_mb(), []
    for _ in range(3):
        start = time.process_time()
        function(features)
        times.append(time.process_time() - start)
    return {"seconds": times, "extra": max(0.0, peak_mb() - before)}


def in_a_process(way: str, n: int, dim: int) -> dict[str, Any]:
    """Measure one way in a process of its own, on one thread."""
    command = [sys.executable, "-m", "benchmarks.performance.diversity", "--way", way]
    command += ["--images", str(n), "--dim", str(dim)]
    environment = os.environ | dict.fromkeys(THREADS, "1")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return dict(json.loads(done.stdout))


def lines(n: int, dim: int) -> Iterator[Row]:
    """Yield seconds and memory of ours, and how many times longer the others take."""
    case, size = f"{n:,} images of {dim:,}", n * dim * 4 / 1e6
    ours = in_a_process("ours", n, dim)
    limit = 2000 if n == 100_000 else size
    yield spread(f"{case}, ours", ours["seconds"], "s")
    yield spread(f"{case}, ours, extra memory", [ours["extra"]], "MB", f"≤ {limit:.0f}")
    for way in ("torchmetrics", "scikit-learn") if n <= ALL_PAIRS else ():
        other = in_a_process(way, n, dim)
        times = [b / a for a, b in zip(ours["seconds"], other["seconds"], strict=True)]
        goal = "≥ 30" if (way, n) == ("torchmetrics", 16_384) else ""
        yield spread(f"{case}, {way} / ours", times, goal=goal)
        yield spread(f"{case}, {way}, extra memory", [other["extra"]], "MB")


def main() -> None:
    """Measure all ways at all sizes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1024, 8192, 16384, 65536, 100000])
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    stated = parser.parse_args()
    if stated.way:
        print(json.dumps(measure(stated.way, *stated.images, stated.dim)))
        return
    show([row for n in stated.images for row in lines(n, stated.dim)])


if __name__ == "__main__":
    main()
