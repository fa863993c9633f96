"""`make rehearsal`: everything but the judge, on the real architectures with random weights.

Each stage is a process of its own. Its seconds and its peak of resident memory are printed; the
pages of files that it maps are part of that. The first failure ends the rehearsal. A limit that is
exceeded fails it at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODELS = ROOT / "build" / "rehearsal"
BENCHMARK, RUN = str(HERE / "benchmark.yaml"), str(MODELS / "run")
AUTOLORA_EVAL = ["-m", "autolora_eval"]
FINISHED = "run, already finished"
GUIDER = "run with a third-party guider"
STAGES: dict[str, list[str]] = {
    "write the models": [str(HERE / "architectures.py"), str(MODELS)],
    "plan": [*AUTOLORA_EVAL, "plan", BENCHMARK],
    "count tensors, beside the plan's estimate": [str(HERE / "tensor_memory.py")],
    "generate": [*AUTOLORA_EVAL, "generate", BENCHMARK, "--output", RUN],
    "features and report": [*AUTOLORA_EVAL, "run", BENCHMARK, "--output", RUN],
    FINISHED: [*AUTOLORA_EVAL, "run", BENCHMARK, "--output", RUN],
    GUIDER: [*AUTOLORA_EVAL, "run", str(HERE / "guider.yaml"), "--output", f"{RUN}_guider"],
    "AutoLoRA against a loop by hand, float32": [str(HERE / "loop.py"), str(MODELS)],
}
FINISHED_SECONDS = 5.0
ALL_SECONDS, MEMORY_GB, DISK_GB = 1200.0, 16.0, 30.0
GIB = 2**30


def measured(arguments: list[str]) -> tuple[int, float, float, str, str]:
    """Run Python; return its exit code, seconds, peak memory in GiB, output and errors."""
    paths = (ROOT, HERE, ROOT / "tests", ROOT / "examples" / "own_guider")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    environment["AUTOLORA_EVAL_CACHE"] = str(MODELS / "cache")
    MODELS.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with (MODELS / "stage.out").open("w+") as output, (MODELS / "stage.err").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdout=output, stderr=errors, cwd=HERE
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        output.seek(0)
        errors.seek(0)
        printed = output.read(), errors.read()
    code = process.returncode = os.waitstatus_to_exitcode(status)
    kib = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return code, seconds, usage.ru_maxrss * kib / GIB, *printed


def main() -> None:
    """Run all stages, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=STAGES, default=list(STAGES))
    given = parser.parse_args()
    if "generate" in given.only:
        shutil.rmtree(RUN, ignore_errors=True)
    if GUIDER in given.only:
        shutil.rmtree(f"{RUN}_guider", ignore_errors=True)
    start, peak, exceeded = time.perf_counter(), 0.0, []
    for name in given.only:
        code, seconds, memory, text, errors = measured(STAGES[name])
        print(f"{name:44} {seconds:7.1f} s {memory:6.1f} GiB", flush=True)
        if code:
            sys.exit(f"{text}{errors[-4000:]}\n'{name}' failed with exit code {code}.")
        if name == FINISHED and seconds > FINISHED_SECONDS:
            exceeded.append(f"'{name}' took more than {FINISHED_SECONDS:g} s.")
        if STAGES[name][0] != "-m":
            print(text, end="")
        peak = max(peak, memory)
    seconds, memory = time.perf_counter() - start, peak * GIB / 1e9
    disk = sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file()) / 1e9
    print(f"{'all':44} {seconds:7.1f} s {peak:6.1f} GiB ({memory:.1f} GB), {disk:.1f} GB of disk")
    for what, found, limit, unit in (
        ("time", seconds, ALL_SECONDS, "s"),
        ("memory", memory, MEMORY_GB, "GB"),
        ("disk", disk, DISK_GB, "GB"),
    ):
        if found > limit:
            exceeded.append(f"The {what} is more than {limit:g} {unit}.")
    if exceeded:
        sys.exit("\n".join(exceeded))


if __name__ == "__main__":
    main()
