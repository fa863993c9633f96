"""docs/reference/run_folder.md against the tables that a run writes, as pandas reads them."""

import re

import pandas as pd
import pytest
from conftest import ROOT
from scored_run import scored

from autolora_eval.analysis.human_agreement import write_agreement
from autolora_eval.config.plan import Plan
from autolora_eval.runs.folder import RunFolder, open_run

DOCUMENT = ROOT / "docs" / "reference" / "run_folder.md"
FILES = (
    *("table.parquet", "scores.parquet", "comparisons.csv", "diversity.csv", "timings.csv"),
    *("reliability.csv", "unscored.csv", "agreement.csv"),
)
EXTRA = ["vendi", "coverage"]
ONLY_SOMETIMES = ("<score>_expected", "<metric>_published")


@pytest.fixture
def run(make) -> tuple[Plan, RunFolder]:
    """A run of two methods and a sweep, with one image missing, one unscored and ratings."""
    reference = {"diversity": EXTRA, "diversity_reference": "CFG"}
    seeds = {"start": 3, "count": 7}
    plan, folder = make("run", sweep={"lora_scale": [0.5, 1.0]}, seeds=seeds, **reference)
    lost = (plan.cells[0].id, 0, 3)
    scored(plan, folder, [lost], scores=lambda p: "no_json" if p[2] == 9 else {"pc": 3.0})
    ratings = folder.path.with_name("ratings.csv")
    pd.read_parquet(folder.scores)[["file"]].assign(pc=4).to_csv(ratings, index=False)
    write_agreement(open_run(folder.path), ratings)
    return plan, folder


def documented(file: str) -> dict[str, str]:
    """Return the type of each column that the document has for a file."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.split(f"## {file}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`) \| (\w+) \|", section, flags=re.MULTILINE)
    return {name: type_ for names, type_ in rows for name in re.findall(r"`(.+?)`", names)}


def expanded(columns: dict[str, str], plan: Plan) -> dict[str, str]:
    """Return the columns with the run's scores, metrics and parameters in place of <…>."""
    scores = list(plan.benchmark.rubric.scores)
    names = {
        "<score>": scores,
        "<metric>": ["diversity", *scores, *(f"div_{score}" for score in scores), *EXTRA],
        "<extra>": EXTRA,
        "<parameter>": list(dict.fromkeys(n for cell in plan.cells for n in cell.columns)),
    }
    found: dict[str, str] = {}
    for column, type_ in columns.items():
        placeholder = next((name for name in names if name in column), None)
        filled = [column.replace(placeholder, n) for n in names[placeholder]] if placeholder else []
        for name in filled or [column]:
            found.setdefault(name, type_)
    return found


def type_of(values: pd.Series) -> str:
    if pd.api.types.is_integer_dtype(values):
        return "integer"
    return "number" if pd.api.types.is_float_dtype(values) else "text"


@pytest.mark.parametrize("file", FILES)
def test_the_documented_columns_and_types_are_those_of_the_files(run, file):
    plan, folder = run
    path = folder.path / file
    frame = pd.read_parquet(path) if file.endswith("parquet") else pd.read_csv(path)
    given = expanded(documented(file), plan)
    assert [column for column in frame if column not in given] == []
    sometimes = expanded(dict.fromkeys(ONLY_SOMETIMES, ""), plan)
    assert [c for c in given if c not in frame and c not in sometimes] == []
    found = {column: type_of(frame[column]) for column in frame if frame[column].notna().any()}
    expected = {c: given[c] for c in found if given[c] != "any"}
    if file.endswith("csv"):  # which has no types: 1.0 is written as 1
        found |= {c: "number" for c in expected if (found[c], given[c]) == ("integer", "number")}
    # What a whole number lacks in some rows makes it a number for pandas.
    lacking = {c for c, kind in expected.items() if kind == "integer" and frame[c].isna().any()}
    assert {c: found[c] for c in expected if c not in lacking} == {
        c: kind for c, kind in expected.items() if c not in lacking
    }


def test_csv_and_parquet_have_the_same_values(run):
    _, folder = run
    parquet, csv = pd.read_parquet(folder.table("parquet")), pd.read_csv(folder.table("csv"))
    assert list(parquet) == list(csv)
    pd.testing.assert_frame_equal(parquet, csv, check_dtype=False, rtol=1e-11)
