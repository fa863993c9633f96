"""The paper's tables: the shipped copies are consistent, and Table 1 is laid out as printed."""

import csv

import pandas as pd
import pytest
from scored_run import scored

from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.runs.folder import RunFolder
from autolora_eval.sources.lookup import shipped_root

HALF = 0.0005  # The tables are rounded to three decimals: each entry is off by at most half of one.


def rows(table: str) -> list[dict[str, str]]:
    path = shipped_root() / "benchmarks" / "published" / f"paper_table{table}.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def products() -> list[tuple[str, float, float, float]]:
    found = []
    for table, scores in (("1", ("cps",)), ("2", ("pc", "sa"))):
        for row in rows(table):
            name = f"table {table}: {row.get('model') or row.get('lora_scale')} {row['method']}"
            for score in scores:
                values = (row["diversity"], row[score], row[f"div_{score}"])
                found.append((f"{name} {score}", *map(float, values)))
    return found


def test_each_product_is_diversity_times_score():
    """(D + δ)(S + σ) − DS = Dσ + Sδ + δσ, with |δ|, |σ| ≤ ½·10⁻³; the product is rounded too."""
    for name, diversity, score, product in products():
        tolerance = HALF * (diversity + score) + HALF**2 + HALF
        assert abs(diversity * score - product) <= tolerance, name


def test_each_cell_appears_once():
    """12 LoRA scales × 4 methods in Table 1, 2 models × 2 methods in Table 2."""
    for table, keys, n in (("1", ("lora_scale", "method"), 48), ("2", ("model", "method"), 4)):
        cells = [tuple(row[key] for key in keys) for row in rows(table)]
        assert len(set(cells)) == len(cells) == n


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


def check_published(found: dict[str, list[list[str]]]) -> None:
    """The paper's 48 values stand below ours."""
    published = rows("1")
    for heading, metric in METRICS.items():
        below = [row[-4:] for row in found[heading] if "published" in row]
        assert [text for row in below for text in row] == [line[metric] for line in published]
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
        head, *lines = found[heading]
        assert head == ["Model", "LoRA scale", *METHODS]
        ours = [row for row in lines if row[1] in SCALES]
        assert [row[1] for row in ours] == SCALES
        values = table.set_index(["lora_scale", "method"])[metric]
        for _, scale, *texts in ours:
            without = [text.split(" [")[0] for text in texts]
            assert without == [f"{values[float(scale), method]:.3f}" for method in METHODS]
    if plan.benchmark.published is not None:
        check_published(found)
    latex = folder.table("tex").read_text(encoding="utf-8")
    assert latex.count(r"\begin{tabular}{llrrrr}") == len(found)
