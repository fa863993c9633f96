"""The paper's Table 1 and its twin: 48 cells, LoRA scales down and methods across."""

import csv
from pathlib import Path

import pandas as pd
import pytest
from scored_run import scored

from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.runs.folder import RunFolder

METHODS = ["LoRA", "AutoLoRA", "LoRA+CFG", "AutoLoRA+CFG"]
SCALES = ["0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1", "1.1", "1.2", "1.3"]
METRICS = {"Div": "diversity", "CPS": "cps", "Div-CPS": "div_cps"}


def blocks(markdown: str) -> dict[str, list[list[str]]]:
    """The tables of a Markdown file by their heading: the head, then the rows, bare of bold."""
    found: dict[str, list[list[str]]] = {}
    name = ""
    for line in markdown.replace("**", "").splitlines():
        if line.startswith("### "):
            name = line.removeprefix("### ").removesuffix(" ↑")
        elif line.startswith("| ") and not line.startswith("| --- "):
            found.setdefault(name, []).append(line.strip("| ").split(" | "))
    return found


def check_published(found: dict[str, list[list[str]]], file: Path) -> None:
    """The paper's 48 values stand below ours."""
    with file.open(encoding="utf-8", newline="") as stream:
        published = list(csv.DictReader(stream))
    assert len(published) == 48
    for heading, metric in METRICS.items():
        rows = [row[-4:] for row in found[heading] if "published" in row]
        assert [text for row in rows for text in row] == [line[metric] for line in published]
        assert len([row for row in found[heading] if "difference" in row]) == len(SCALES)


@pytest.mark.parametrize("name", ["disney_princess", "disney_princess_miniature"])
def test_table_1_has_its_48_cells_where_the_paper_has_them(tmp_path, name):
    plan = make_plan(load_benchmark(name), limit_seeds=2)
    folder = scored(plan, RunFolder(tmp_path / "run"))
    table = pd.read_parquet(folder.table("parquet"))
    assert len(table) == 48
    found = blocks(folder.table("md").read_text(encoding="utf-8"))
    assert list(found) == [*METRICS, "NFE", "Images"]
    for heading, metric in METRICS.items():
        head, *rows = found[heading]
        assert head == ["Model", "LoRA scale", *METHODS]
        ours = [row for row in rows if row[1] in SCALES]
        assert [row[1] for row in ours] == SCALES
        values = table.set_index(["lora_scale", "method"])[metric]
        for _, scale, *texts in ours:
            without = [text.split(" [")[0] for text in texts]
            assert without == [f"{values[float(scale), method]:.3f}" for method in METHODS]
    if plan.benchmark.published is not None:
        check_published(found, plan.benchmark.published)
    latex = folder.table("tex").read_text(encoding="utf-8")
    assert latex.count(r"\begin{tabular}{llrrrr}") == len(found)
