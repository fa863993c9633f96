"""A run of the paper's Table 1 without any model: features and verdicts drawn from its values."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scored_run import SETTINGS, tables, write_features, write_judgements, write_manifest

from autolora_eval._files import sha256_file, write_jsonl
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Cell, Plan, make_plan
from autolora_eval.runs import images
from autolora_eval.runs.folder import RunFolder
from autolora_eval.sources.lookup import shipped_root

DIM = 64
DISTINCT_IMAGES = 8
NAMES_OF_A_FILE = 50_000  # a file of ext4 has 65,000 at most


def write_table1_run(path: Path, n_seeds: int, benchmark: str = "disney_princess") -> RunFolder:
    """Write the run folder of a benchmark of the Disney Princess LoRA up to its tables."""
    plan, folder = write_table1_inputs(path, n_seeds, benchmark)
    tables(plan, folder)
    return folder


def write_table1_inputs(
    path: Path,
    n_seeds: int,
    benchmark: str = "disney_princess",
    n_prompts: int | None = None,
    n_cells: int | None = None,
) -> tuple[Plan, RunFolder]:
    """Write all that its tables are made of, a few distinct images linked many times.

    Args:
        path: the run folder.
        n_seeds: images of a cell and prompt; the paper has 512.
        benchmark: name of a shipped benchmark with published values, or with cells near them.
        n_prompts: as many made-up prompts. Default: those of the benchmark.
        n_cells: its first cells only.
    """
    loaded = load_benchmark(benchmark)
    if n_prompts is not None:
        loaded = replace(loaded, prompts=tuple(f"Anna {n}" for n in range(n_prompts)))
    seeds = loaded.spec.seeds
    seeds = seeds.model_copy(update={"count": max(n_seeds, seeds.count)})
    loaded = replace(loaded, spec=loaded.spec.model_copy(update={"seeds": seeds}))
    plan, folder = make_plan(loaded, None, n_seeds), RunFolder(path)
    plan = replace(plan, cells=plan.cells[:n_cells])
    write_manifest(plan, folder)
    distinct = max(DISTINCT_IMAGES, plan.n_images // NAMES_OF_A_FILE)
    files = [_picture(path / "distinct" / f"{n}.png", n) for n in range(distinct)]
    hashes = {file.stat().st_ino: sha256_file(file) for file in files}
    truth = {cell.id: _published(cell) for cell in plan.cells}
    for cell in plan.cells:
        _link(plan, folder, cell, files, hashes)
    rng = np.random.default_rng(0)
    middle = rng.normal(size=DIM)
    middle /= np.linalg.norm(middle)

    def vector(place: tuple[str, int, int]) -> object:
        diversity = truth[place[0]][0]
        # Of unit vectors about `middle` with this spread the mean cosine is 1 − diversity.
        spread = np.sqrt(diversity / (1.0 - diversity) / DIM)
        return middle + spread * rng.normal(size=DIM)

    def verdict(place: tuple[str, int, int]) -> dict[str, float] | str:
        if rng.random() < 0.004:
            return "no_json"
        return {key: float(rng.binomial(5, min(truth[place[0]][1] / 5.0, 1.0)))}

    assert plan.benchmark.rubric is not None
    (key,) = (score.key for score in plan.benchmark.rubric.scores.values())
    # A run hashes its images, gigabytes of them, before there is anything to report.
    original, images.sha256_file = images.sha256_file, lambda file: hashes[file.stat().st_ino]
    try:
        write_features(plan, folder, vector)
        write_judgements(plan, folder, verdict)
        write_manifest(plan, folder)
    finally:
        images.sha256_file = original
    return plan, folder


def _published(cell: Cell) -> tuple[float, float]:
    """Return diversity and score of the published cell that is nearest in LoRA scale."""
    table = _table1()
    rows = table[table["method"] == cell.method.name]
    row = rows.iloc[(rows["lora_scale"] - cell.columns["lora_scale"]).abs().argmin()]
    return float(row["diversity"]), float(row["cps"])


@cache
def _table1() -> pd.DataFrame:
    return pd.read_csv(shipped_root() / "benchmarks" / "published" / "paper_table1.csv")


def _link(
    plan: Plan, folder: RunFolder, cell: Cell, files: list[Path], hashes: dict[int, str]
) -> None:
    place = folder.images(cell.id)
    rows = []
    for n, job in enumerate(plan.jobs):
        target = place / job.file
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(files[n % len(files)], target)
        row = {"file_name": job.file, "prompt": job.prompt, "seed": job.seed, "nfe": cell.nfe}
        rows.append(row | {"settings_key": SETTINGS, "sha256": hashes[target.stat().st_ino]})
    write_jsonl(folder.metadata(cell.id), rows)


def _picture(file: Path, n: int) -> Path:
    """Write a picture that PNG shrinks about as well as a photograph."""
    rng = np.random.default_rng(n)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((16, 16), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + rng.normal(0.0, 6.0, smooth.shape).astype(np.int16)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file)
    return file
