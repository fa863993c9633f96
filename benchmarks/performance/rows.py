"""Tables, comparisons and report of run folders with 10⁴, 10⁵ and 10⁶ images: time and memory.

    python -m benchmarks.performance.rows [--rows 10000 100000] [--shapes cells cell prompts]

The run has the 48 cells of the paper's Table 1 with one prompt, one of these cells only, or the 48
with 8 images per prompt. Features have 64 dimensions, and tiny pictures have many names. Each stage
runs in a process of its own. The exponent of a row is
log(t₂/t₁) / log(n₂/n₁), from the size before it to its own. Prints figures and fails no test. Aims:
exponents up to 1.05, and for a million images 60 s for the report and 1.5 GB for either stage.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.performance.measure import Row, show, spread

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

CELLS, SEEDS = 48, 8
# What is counted up, in the names of the rows.
SHAPES = {"cells": "rows", "cell": "rows of one cell", "prompts": f"rows, {SEEDS} per prompt"}
STAGES = ("tables", "report")


def build(path: Path, rows: int, shape: str) -> None:
    """Write the run folder up to its tables."""
    from report.table1_run import write_table1_inputs

    if shape == "cell":
        write_table1_inputs(path, rows, n_cells=1)
    elif shape == "prompts":
        write_table1_inputs(path, SEEDS, n_prompts=rows // CELLS // SEEDS)
    else:
        write_table1_inputs(path, rows // CELLS)


def tables(path: Path) -> None:
    """Write tables and comparisons."""
    from autolora_eval.analysis.tables import write_tables
    from autolora_eval.runs.folder import RunFolder, checksums

    folder = RunFolder(path)
    manifest = folder.read_manifest()
    counts = write_tables(manifest, folder)
    folder.update_manifest(counts=counts, checksums=checksums(folder, manifest))


def report(path: Path) -> None:
    """Draw figures, PDF and HTML."""
    from autolora_eval.report import write_report
    from autolora_eval.runs.folder import RunFolder

    write_report(RunFolder(path))


def measured(stage: Callable[[], None]) -> dict[str, float]:
    """Run a stage in this process, and return its seconds and the peak of its memory in MB."""
    start = time.perf_counter()
    stage()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak": peak / (1e6 if sys.platform == "darwin" else 1e3)}


def in_a_process(stage: str, path: Path, rows: int, shape: str) -> dict[str, float]:
    """Run a stage in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.performance.rows", "--rows", str(rows)]
    command += ["--shapes", shape, "--stage", stage, str(path.resolve())]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT)
    print(f"{stage}, {rows:,} {SHAPES[shape]}: {done.stdout.decode().strip()}", file=sys.stderr)
    return dict(json.loads(done.stdout))


def lines(place: Path, sizes: list[int], shape: str) -> Iterator[Row]:
    """Yield seconds, peak and exponent of each stage at each size."""
    before: dict[str, tuple[int, float]] = {}
    for rows in sizes:
        path = place / f"{shape}-{rows}"
        if not (path / "manifest.json").exists():
            in_a_process("build", path, rows, shape)
        for stage in STAGES:
            case = f"{stage} of {rows:,} {SHAPES[shape]}"
            found = in_a_process(stage, path, rows, shape)
            million = rows == 1_000_000
            goal = "≤ 60" if million and stage == "report" else ""
            yield spread(case, [found["seconds"]], "s", goal)
            yield spread(f"{case}, peak", [found["peak"]], "MB", "≤ 1500" if million else "")
            if stage in before:
                n, seconds = before[stage]
                exponent = math.log(found["seconds"] / seconds) / math.log(rows / n)
                yield spread(f"{case}, exponent", [exponent], "", "≤ 1.05")
            before[stage] = rows, found["seconds"]


def main() -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, help="write the run folders here, and use them again")
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    stated = parser.parse_args()
    if stated.stage:
        name, path = stated.stage[0], Path(stated.stage[1])
        built = partial(build, path, *stated.rows, *stated.shapes)
        stage = {"tables": partial(tables, path), "report": partial(report, path)}.get(name, built)
        print(json.dumps(measured(stage)))
        return
    with tempfile.TemporaryDirectory(prefix="autolora-eval-rows-") as scratch:
        place = stated.keep or Path(scratch)
        show([row for shape in stated.shapes for row in lines(place, stated.rows, shape)])


if __name__ == "__main__":
    main()
