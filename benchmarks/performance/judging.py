"""The judge's client against a server of fixed latency: rate, and memory by number of images."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from benchmarks.performance.measure import show, spread

HERE = Path(__file__).resolve().parent
PROMPTS = 10
DISTINCT = 200
SETTINGS_KEY = "0" * 16


@contextmanager
def server(latency: float) -> Iterator[str]:
    """Run the server in a separate process, and yield its address."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "latency_server.py"), str(latency)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


def make_run(folder: Path, images: int, url: str, concurrency: int) -> Path:
    """Write a benchmark of one cell, and its images: hard links to a few files."""
    judge = {"backend": "openai", "model": "some-vlm", "base_url": url, "constraint": "plain"}
    judge |= {"rubric": "prompts/rubrics/pixel_art.yaml", "concurrency": concurrency}
    benchmark = {
        "name": "throughput",
        "prompts": [f"prompt number {n}" for n in range(PROMPTS)],
        "seeds": {"count": images // PROMPTS},
        "models": {
            "SDXL miniature": {
                "pipeline": "miniature:sdxl",
                "lora": {"path": "miniature:pixel_art_lora"},
            }
        },
        "methods": {"LoRA": {"guider": "lora"}},
        "features": {"model": "miniature:dinov2"},
        "judge": {**judge, "cache": False},
    }
    path = folder / "throughput.yaml"
    path.write_text(yaml.safe_dump(benchmark))
    write_images(path, folder / "run")
    return path


def write_images(benchmark: Path, output: Path) -> None:
    """Write the images of a benchmark's only cell: hard links to a few files."""
    from autolora_eval._files import sha256_file
    from autolora_eval.config.load import load_benchmark
    from autolora_eval.config.plan import make_plan
    from autolora_eval.runs.folder import RunFolder

    plan = make_plan(load_benchmark(benchmark))
    folder, (cell,) = RunFolder(output), plan.cells
    rng = np.random.default_rng(0)
    originals = [output / "originals" / f"{n}.png" for n in range(DISTINCT)]
    originals[0].parent.mkdir(parents=True)
    for path in originals:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    hashes = [sha256_file(path) for path in originals]
    with folder_of(folder.metadata(cell.id)).open("w") as metadata:
        for n, job in enumerate(plan.jobs):
            path = folder_of(folder.images(cell.id) / job.file)
            os.link(originals[n % DISTINCT], path)
            row = {"file_name": job.file, "prompt": job.prompt, "seed": job.seed, "nfe": 1}
            row["settings_key"] = SETTINGS_KEY
            row["sha256"] = hashes[n % DISTINCT]
            metadata.write(json.dumps(row) + "\n")


def folder_of(path: Path) -> Path:
    """Make the folder of a file, and return the file's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def judge(benchmark: Path, output: Path) -> dict[str, float]:
    """Judge a run in this process; return seconds and peak resident memory in MB."""
    from autolora_eval._progress import Progress
    from autolora_eval.config.load import load_benchmark
    from autolora_eval.config.plan import make_plan
    from autolora_eval.config.stage_inputs import judge_settings, planned_manifest
    from autolora_eval.runs.folder import RunFolder
    from autolora_eval.scoring.judging import judge_images, open_judge

    plan, folder = make_plan(load_benchmark(benchmark)), RunFolder(output)
    manifest, settings = planned_manifest(plan, folder), judge_settings(plan)
    cells = [cell.model_copy(update={"settings_key": SETTINGS_KEY}) for cell in manifest.cells]
    manifest = manifest.model_copy(update={"cells": cells})
    with closing(open_judge(settings)) as asked:
        asked.identity()
        start = time.monotonic()
        done = judge_images(settings, manifest, folder, asked, Progress())
        seconds = time.monotonic() - start
    assert done.done == plan.n_images
    assert done.unscored == 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_mb": peak / (1e6 if sys.platform == "darwin" else 1e3)}


def measured(images: int, latency: float, concurrency: int) -> dict[str, float]:
    """Judge so many images in a separate process."""
    with tempfile.TemporaryDirectory() as place, server(latency) as url:
        benchmark = make_run(Path(place), images, url, concurrency)
        command = [
            sys.executable,
            "-m",
            "benchmarks.performance.judging",
            "--judge",
            str(benchmark),
            str(Path(place) / "run"),
        ]
        environment = os.environ | {"NO_PROXY": "127.0.0.1"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure the client beside the least that the server's latency allows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--judge", nargs=2, metavar=("BENCHMARK", "RUN"), help=argparse.SUPPRESS)
    parser.add_argument("--calls", type=int, default=4096)
    parser.add_argument("--latency", type=float, default=2.0, help="seconds")
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--images", type=int, default=20_000, help="for memory; 0 skips it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.judge:
        print(json.dumps(judge(*map(Path, options.judge))))
        return
    least = options.calls * options.latency / options.concurrency
    took = [
        measured(options.calls, options.latency, options.concurrency)["seconds"] for _ in range(2)
    ]
    case = f"rate at a latency of {options.latency:g} s and concurrency {options.concurrency}"
    rows = [spread(f"{case}, share of the limit", [least / s for s in took], "", "≥ 0.95")]
    if options.images:
        few, many = (measured(n, 0.0, options.concurrency) for n in (1000, options.images))
        rates = [options.images / many["seconds"]]
        rows.append(spread("rate of a server without latency", rates, "calls/s"))
        more = [many["peak_mb"] - few["peak_mb"]]
        rows.append(spread(f"memory of {options.images:,} images beyond 1,000", more, "MB"))
    show(rows)


if __name__ == "__main__":
    main()
