"""The shipped copies of the paper's tables satisfy Div-X = Diversity × X."""

import csv

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
