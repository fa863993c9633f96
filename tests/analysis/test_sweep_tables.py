"""A sweep's tables: what is compared with what, and which published values stand beside it."""

import csv
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from report.figures.made_up import Kind
from report.readers import content_of, first_page_text, text_of
from rich.console import Console
from scored_run import scored

from autolora_eval import _display as display
from autolora_eval._errors import UsageError
from autolora_eval.analysis.comparisons import baseline_cells
from autolora_eval.analysis.tables import read_published
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.config.stage_inputs import planned_manifest
from autolora_eval.report.figures._marks import sweep_lines
from autolora_eval.report.provenance import methods
from autolora_eval.report.run_view import read_run_view
from autolora_eval.runs.folder import RunFolder, open_run
from autolora_eval.runs.records import CellRecord
from autolora_eval.sources.lookup import shipped_root

TRADE_OFF = Kind("diversity_vs_scores")
METHODS = {"LoRA": {"guider": "lora"}, "CFG": {"guider": "cfg"}, "AutoLoRA": {"guider": "autolora"}}


@pytest.fixture
def planned(planned) -> Callable[..., Plan]:
    """A function that plans a benchmark with a sweep."""
    return lambda sweep, **changes: planned(**{"methods": METHODS, "sweep": sweep} | changes)


def records(plan: Plan) -> list[CellRecord]:
    return planned_manifest(plan, RunFolder(Path("run"))).cells


def compared(plan: Plan, baseline: str = "CFG") -> dict[str, str]:
    found = baseline_cells(records(plan), baseline)
    return {a.removeprefix("A--"): b.removeprefix("A--") for a, b in found.items()}


def test_cells_are_compared_at_their_own_sweep_point(planned):
    plan = planned({"lora_scale": [0.4, 1.0]})
    assert compared(plan) == {
        f"{method}--lora_scale={scale}": f"CFG--lora_scale={scale}"
        for method in ("LoRA", "AutoLoRA")
        for scale in ("0.4", "1")
    }


def test_the_sentence_of_a_comparison_says_where_on_the_sweep_it_is(planned, tmp_path):
    plan = planned({"lora_scale": [0.4, 1.0], "interval": [[0, 1], [0, 0.5]]})
    found = open_run(scored(plan, RunFolder(tmp_path)).path).comparisons
    assert (found["sentence"].str.len() > 0).all()
    place = ("A--AutoLoRA--lora_scale=0.4--interval=0-0.5", "diversity")
    message = found.set_index(["cell", "metric"]).loc[place, "sentence"]
    assert message.startswith("LoRA scale 0.4: ")
    assert "AutoLoRA (interval 0–0.5)" in message
    assert "CFG" in message
    assert "CFG (" not in message


def test_a_baseline_without_the_parameter_is_the_same_for_all(planned):
    plan = planned({"lora_scale": [0.4, 1.0], "interval": [[0, 1], [0, 0.5]]})
    assert compared(plan) == {
        f"LoRA--lora_scale={scale}": f"CFG--lora_scale={scale}" for scale in ("0.4", "1")
    } | {
        f"AutoLoRA--lora_scale={scale}--interval={interval}": f"CFG--lora_scale={scale}"
        for scale in ("0.4", "1")
        for interval in ("0-1", "0-0.5")
    }


def test_a_cell_without_the_baselines_parameter_is_compared_with_none(planned):
    """LoRA has no CFG scale, so that no one of the baseline's is its own."""
    many = planned({"guidance_scale": [3.0, 5.0]})
    assert compared(many) == {
        f"AutoLoRA--guidance_scale={w}": f"CFG--guidance_scale={w}" for w in (3, 5)
    }
    assert compared(planned({"guidance_scale": [3.0]})) == {
        "LoRA": "CFG--guidance_scale=3",
        "AutoLoRA--guidance_scale=3": "CFG--guidance_scale=3",
    }


def test_models_are_not_compared_with_each_other(planned, benchmark_data):
    model = benchmark_data["models"]["A"]
    plan = planned({"lora_scale": [0.4]}, models={"A": model, "B": {**model, "guidance_scale": 2}})
    found = baseline_cells(records(plan), "CFG")
    assert len(found) == 2 * 2
    assert all(a.split("--")[0] == b.split("--")[0] for a, b in found.items())


def test_the_difference_is_that_of_the_two_rows(planned, tmp_path):
    folder = scored(planned({"lora_scale": [0.4, 1.0]}), RunFolder(tmp_path / "run"))
    run = open_run(folder.path)
    table = run.table.set_index("cell")
    assert len(run.comparisons) == 4 * 3
    for row in run.comparisons.to_dict("records"):
        a, b = (table.loc[row[key]] for key in ("cell", "baseline_cell"))
        assert a["lora_scale"] == b["lora_scale"]
        assert (b["method"], b["model"]) == ("CFG", a["model"])
        difference = a[row["metric"]] - b[row["metric"]]
        assert row["difference"] == pytest.approx(difference, abs=1e-9)


def test_parameters_are_columns(planned, tmp_path):
    plan = planned({"lora_scale": [0.4, 1.0], "interval": [[0, 1], [0.25, 0.75]]})
    folder = scored(plan, RunFolder(tmp_path / "run"))
    table = pd.read_parquet(folder.table("parquet"))
    assert table["cell"].tolist() == [cell.id for cell in plan.cells]
    assert set(table["lora_scale"]) == {0.4, 1.0}
    swept = table[table["method"] == "AutoLoRA"]
    assert [*zip(swept["start"], swept["stop"], strict=True)] == [(0, 1), (0.25, 0.75)] * 2
    scores = pd.read_parquet(folder.scores)
    assert scores.groupby("cell")["lora_scale"].nunique().eq(1).all()
    lines = folder.table("md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "### Div ↑"
    assert lines[2] == "| Model | LoRA scale | interval | LoRA | CFG | AutoLoRA |"
    assert [line.split(" | ")[:3] for line in lines[4:8]] == [
        ["| A", scale, interval] for scale in ("0.4", "1") for interval in ("0–1", "0.25–0.75")
    ]
    headings = [line for line in lines if line.startswith("#")]
    assert headings[1:] == ["### PC ↑", "### Div-PC ↑", "### NFE", "### Images"]


def test_every_cell_has_a_unique_name_in_the_report(planned, tmp_path):
    plan = planned({"lora_scale": [0.4, 1.0], "interval": [[0, 1], [0.25, 0.75]]})
    folder = scored(plan, RunFolder(tmp_path / "run"))
    said, figures = text_of(content_of(folder).sections), read_run_view(folder).figure_data
    labels = [text.get_text() for text in TRADE_OFF.panels(figures)[0].texts]
    for scale in ("0.4", "1"):
        assert f"LoRA (LoRA scale {scale})" in said
        for interval in ("0–1", "0.25–0.75"):
            assert f"AutoLoRA (LoRA scale {scale}, interval {interval})" in said
            assert f"{scale}, {interval}" in labels
    assert "The label next to a mark is its LoRA scale and interval." in TRADE_OFF.caption(figures)


def test_one_swept_value_tells_nothing_apart(planned, tmp_path):
    folder = scored(planned({"lora_scale": [0.4]}), RunFolder(tmp_path / "run"))
    assert "AutoLoRA against CFG:" in first_page_text(folder)
    assert "next to a mark" not in TRADE_OFF.caption(read_run_view(folder).figure_data)


@pytest.fixture
def beside(planned, workplace) -> Callable[..., Plan]:
    """A function that plans a sweep with published values."""

    def plan(content: str, sweep: object, **changes: object) -> Plan:
        (workplace / "published.csv").write_text(content, encoding="utf-8")
        return planned(sweep, published="published.csv", **changes)

    return plan


def test_published_values_are_beside_their_own_point(beside, tmp_path):
    content = (
        "method,lora_scale,start,stop,pc\n"
        "CFG,0.4,,,1\nCFG,1,,,2\nAutoLoRA,0.4,0,1,3\nAutoLoRA,1.0,0.25,0.75,4\n"
    )
    plan = beside(content, {"lora_scale": [0.4, 1.0], "interval": [[0, 1], [0.25, 0.75]]})
    table = pd.read_parquet(scored(plan, RunFolder(tmp_path / "run")).table("parquet"))
    found = dict(zip(table["cell"], table["pc_published"], strict=True))
    assert {cell: value for cell, value in found.items() if value == value} == {
        "A--CFG--lora_scale=0.4": 1,
        "A--CFG--lora_scale=1": 2,
        "A--AutoLoRA--lora_scale=0.4--interval=0-1": 3,
        "A--AutoLoRA--lora_scale=1--interval=0.25-0.75": 4,
    }
    assert len(found) == len(plan.cells)


def check_published(plan: Plan) -> None:
    read_published(plan.benchmark.published, planned_manifest(plan, RunFolder(Path("run"))))


def test_one_published_value_is_not_that_of_a_whole_sweep(beside):
    plan = beside("method,pc\nCFG,1\n", {"lora_scale": [0.4, 1.0]})
    with pytest.raises(UsageError, match=r"no column 'lora_scale', so that one row would stand"):
        check_published(plan)
    check_published(beside("method,pc\nCFG,1\n", {"lora_scale": [0.4]}))
    plan = beside("method,start,pc\nCFG,,1\n", {"interval": [[0, 1], [0, 0.5]]})
    with pytest.raises(UsageError, match=r"no column 'stop', .* every value of sweep\.interval"):
        check_published(plan)


@pytest.mark.parametrize(
    ("name", "n_published"),
    [
        ("disney_princess_cfg", 4 * 2),  # at CFG scale 5
        ("disney_princess_autolora_scale", 4 * 4),  # at AutoLoRA scale 1.5
        ("limited_interval", 2),  # without AutoLoRA, and at every step
        ("pixel_art", 4),
    ],
)
def test_the_papers_values_are_beside_the_shipped_benchmarks(tmp_path, name, n_published):
    """The 48 of Table 1 are read in test_paper_tables.py."""
    plan = make_plan(load_benchmark(name), 1, 1)
    folder = RunFolder(tmp_path / "run")
    table = pd.read_parquet(scored(plan, folder).table("parquet"))
    with plan.benchmark.published.open(encoding="utf-8", newline="") as stream:
        published = list(csv.DictReader(stream))
    found = table[table["diversity_published"].notna()]
    assert len(found) == n_published
    same = ("method", "lora_scale", "model")
    for row in found.to_dict("records"):
        (line,) = (
            one for one in published if all(one.get(key) in (None, str(row[key])) for key in same)
        )
        for metric in set(line) & {"diversity", "cps", "pc", "sa", "div_cps", "div_pc", "div_sa"}:
            assert row[f"{metric}_published"] == float(line[metric])
        assert row["guidance_scale"] in (5.0, 7.0) or row["method"] in ("LoRA", "AutoLoRA")
        assert row.get("autolora_scale", 1.5) == 1.5 or row["method"] in ("LoRA", "LoRA+CFG", "CFG")


def test_the_published_tables_state_what_the_paper_varies():
    """Of Table 1, a CFG scale is stated where there is CFG, an AutoLoRA scale for AutoLoRA."""
    path = shipped_root() / "benchmarks" / "published" / "paper_table1.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        given = {
            row["method"]: (row["guidance_scale"], row["autolora_scale"])
            for row in csv.DictReader(stream)
        }
    assert given == {
        "LoRA": ("", ""),
        "AutoLoRA": ("1.0", "1.5"),
        "LoRA+CFG": ("5.0", ""),
        "AutoLoRA+CFG": ("5.0", "1.5"),
    }


def test_lines_join_what_differs_in_the_last_number_alone():
    cells = ["a", "b", "c", "d", "e"]
    table = pd.DataFrame({"cell": cells, "model": "m", "method": ["x"] * 4 + ["y"]})
    points = {
        "a": {"lora_scale": "0.4", "guidance_scale": "3"},
        "b": {"lora_scale": "0.4", "guidance_scale": "5"},
        "c": {"lora_scale": "1", "guidance_scale": "3"},
        "d": {"lora_scale": "1", "guidance_scale": "5"},
        "e": {},
    }
    joined = [[row["cell"] for row in line] for line in sweep_lines(table, points)]
    assert joined == [["a", "b"], ["c", "d"]]
    intervals = {"a": {"interval": "0–1"}, "b": {"interval": "0–0.5"}}
    assert [len(line) for line in sweep_lines(table, intervals)] == [1, 1]


def test_the_printed_table_fits_80_columns_whole(planned, tmp_path, monkeypatch):
    given = {"LoRA+CFG": {"guider": "cfg"}, "AutoLoRA+CFG": {"guider": "autolora"}}
    plan = planned(
        {"interval": [[0, 1], [0.25, 0.75]]},
        methods=given,
        baseline="LoRA+CFG",
        judge={"rubric": "prompts/rubrics/pixel_art.yaml", "model": "some-vlm"},
    )
    folder = scored(plan, RunFolder(tmp_path / "run"))
    console = Console(width=80, record=True)
    monkeypatch.setattr(display, "console", console)
    display.show_run(open_run(folder.path))
    lines = console.export_text().splitlines()
    assert lines[0].split()[:3] == ["Model", "Method", "interval"]
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["A", "LoRA+CFG", "–"],
        ["A", "AutoLoRA+CFG", "0–1"],
        ["A", "AutoLoRA+CFG", "0.25–0.75"],
    ]
    assert [line.split()[-1] for line in lines[:4]] == ["NFE", "20", "40", "30"]


def test_the_report_tells_a_sweeps_settings_in_one_line(planned, tmp_path):
    plan = planned({"lora_scale": [0.4, 1.0], "interval": [[0, 1], [0.25, 0.75]]})
    folder = scored(plan, RunFolder(tmp_path / "run"))
    said = {method.name: method.settings for method in methods(read_run_view(folder))}
    assert said["LoRA"] == ["lora_scale = 0.4 / 1.0, num_inference_steps = 10; NFE per image: 10"]
    assert said["AutoLoRA"] == [
        "lora_scale = 0.4 / 1.0, num_inference_steps = 10, autolora_scale = 1.5, "
        "guidance_scale = 5.0, base_guidance_scale = 5.0, interval = 0–1 / 0.25–0.75; "
        "NFE per image: 40 / 30"
    ]
