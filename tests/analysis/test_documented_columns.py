"""docs/reference/run_folder.md against the tables that a run writes, as pandas reads them."""

import re
from pathlib import Path

import pandas as pd
import pytest
from scored_run import (
    tables,
    vector,
    write_features,
    write_images,
    write_judgements,
    write_manifest,
)

from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.runs.folder import RunFolder

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "run_folder.md"
METHODS = {"CFG": {"guider": "cfg"}, "AutoLoRA": {"guider": "autolora"}}
FILES = ("table.parquet", "scores.parquet", "comparisons.csv", "diversity.csv", "timings.csv")
EXTRA = ["vendi", "coverage"]
ONLY_SOMETIMES = ("<score>_expected", "<metric>_published")


@pytest.fixture
def run(write_benchmark, benchmark_data, tmp_path) -> tuple[Plan, RunFolder]:
    """A run of two methods and a sweep, with one image missing and one unscored."""
    data = benchmark_data | {"methods": METHODS, "sweep": {"lora_scale": [0.5, 1.0]}}
    data |= {"diversity": EXTRA, "diversity_reference": "CFG", "seeds": {"start": 3, "count": 7}}
    plan, folder = make_plan(load_benchmark(write_benchmark(data))), RunFolder(tmp_path / "run")
    assert plan.benchmark.rubric is not None
    keys = [score.key for score in plan.benchmark.rubric.scores.values()]
    write_manifest(plan, folder)
    lost = (plan.cells[0].id, 0, plan.jobs[0].seed)
    write_images(plan, folder, missing=[lost])
    write_features(plan, folder, vector)
    write_judgements(
        plan,
        folder,
        lambda p: "no_json" if p[2] == plan.jobs[-1].seed else dict.fromkeys(keys, 3.0),
    )
    tables(plan, folder)
    return plan, folder


def documented(file: str) -> dict[str, str]:
    """Return the type of each column that the document has for a file."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.split(f"## {file}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`) \| (\w+) \|", section, flags=re.MULTILINE)
    return {name: type_ for names, type_ in rows for name in re.findall(r"`(.+?)`", names)}


def expanded(columns: dict[str, str], plan: Plan) -> dict[str, str]:
    """Return the columns with the run's scores, metrics and parameters in place of <…>."""
    assert plan.benchmark.rubric is not None
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
