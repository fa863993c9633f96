"""`explain` shows the inputs of a number, and reports files that no longer give that number."""

import io
import json
import shlex

import numpy as np
import pandas as pd
import pytest
from json_lines import read_jsonl
from rich.console import Console
from scored_run import Place, accept_tables, scored, vector
from typer.testing import CliRunner

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._files import sha256_file, write_jsonl
from autolora_eval.analysis.explain import Explanation, explain, print_explanation
from autolora_eval.cli import app
from autolora_eval.runs.folder import RunFolder, open_run

CELL = "A--AutoLoRA"
UNSCORED = (CELL, 1, 3)
MISSING = (CELL, 2, 4)


def score(place: Place) -> dict[str, float] | str:
    cell, prompt_index, seed = place
    if place == UNSCORED:
        return "no_json"
    return {"pc": float((len(cell) + 2 * prompt_index + seed) % 6)}


@pytest.fixture
def folder(make) -> RunFolder:
    """Two cells, three prompts, two seeds; one image is unscored, another is missing."""
    return scored(*make("run"), [MISSING], scores=score)


def rows(explanation: Explanation, title: str) -> list[dict[str, str]]:
    return next(s.rows for s in explanation.sections if s.title == title)


def values(explanation: Explanation, title: str) -> dict[str, str]:
    return next(s.values for s in explanation.sections if s.title == title)


def text(explanation: Explanation, title: str) -> str | None:
    return next(s.text for s in explanation.sections if s.title == title)


def test_every_metric_of_every_cell_is_recomputed_from_the_files(folder):
    assert explain(folder.path, "AutoLoRA") == explain(folder.path, CELL)
    table = open_run(folder.path).table.set_index("cell")
    for cell in table.index:
        metrics = {row["metric"]: row for row in rows(explain(folder.path, cell), "Metrics")}
        assert list(metrics) == ["diversity", "pc", "div_pc"]
        for column, row in metrics.items():
            assert row["table"] == f"{table.loc[cell, column]:.4f}"
            assert row["recomputed from the files"] == f"{row['table']}, same"


def test_a_run_whose_nfe_is_unknown_can_be_explained(folder):
    """Images made elsewhere have none: the column of a run of such images alone has no type."""
    path = folder.table("parquet")
    pd.read_parquet(path).assign(nfe=None).to_parquet(path)
    accept_tables(folder)
    assert values(explain(folder.path, CELL), "Summary")["NFE per image"] == "not recorded"


def test_a_judge_on_a_server_is_named(folder):
    assert values(explain(folder.path, CELL), "Inputs")["judge"].startswith("someone on a server, ")


@pytest.mark.parametrize("changed", [["pc", "div_pc"], ["diversity"]])
def test_a_table_value_that_the_files_do_not_give_is_reported(folder, changed):
    path = folder.table("parquet")
    table = pd.read_parquet(path)
    table.loc[table["cell"] == CELL, changed] += 0.01
    table.to_parquet(path)
    accept_tables(folder)
    metrics = rows(explain(folder.path, CELL), "Metrics")
    recomputed = {row["metric"]: row["recomputed from the files"] for row in metrics}
    assert [name for name in recomputed if recomputed[name].endswith("DIFFERENT")] == changed


def test_missing_images_and_scores_are_shown_with_their_reason(folder):
    prompts = {row["index"]: row for row in rows(explain(folder.path, CELL), "Prompts")}
    assert prompts["1"]["unscored"] == "1"
    assert prompts["2"]["diversity"] == "undefined: needs at least 2 images, has 1"
    images = {row["seed"]: row for row in rows(explain(folder.path, CELL, 2), "Images")}
    assert images["4"]["missing"] == "missing_image, missing_image"
    assert images["4"]["nearest (cosine)"] == "–"
    missing = values(explain(folder.path, CELL, "2", 4), "Summary")
    assert (missing["now"], missing["SHA-256"]) == ("missing", "not recorded")
    (other,) = rows(explain(folder.path, "A--CFG", "2", 4), "Same prompt and seed, other methods")
    assert (other["cosine"], other["file"]) == ("–", "missing")
    unscored = explain(folder.path, CELL, "1", 3)
    assert values(unscored, "Summary")["unscored"] == "no_json"
    assert values(unscored, "Judge reply")["scores"] == "none"


def test_an_image_that_changed_after_scoring_is_reported(folder):
    file = folder.path / open_run(folder.path).scores.query("cell == @CELL")["file"].iloc[0]
    before = values(explain(folder.path, CELL, "0", 3), "Summary")
    assert before["now"] == "unchanged, 16 × 16 pixels"
    assert before["SHA-256"] == sha256_file(file)
    file.write_bytes(file.read_bytes() + b" ")
    after = values(explain(folder.path, CELL, "0", 3), "Summary")
    assert after["now"] == "changed since it was scored"


def test_the_reply_and_the_question_are_quoted(folder):
    explanation = explain(folder.path, CELL, "a dog", 4)
    assert json.loads(text(explanation, "Text of the reply") or "") == score((CELL, 1, 4))
    assert values(explanation, "Judge reply")["model"] == "someone"
    question = text(explanation, "Question to the judge")
    assert question == "Look:[image]Does it show a dog?"


def test_neighbours_are_ranked_by_the_cosine_of_their_features(folder):
    here, other, twin = (vector(p) for p in ((CELL, 0, 3), (CELL, 0, 4), ("A--CFG", 0, 3)))

    def cosine(a: np.ndarray, b: np.ndarray) -> str:
        return f"{float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)):.3f}"

    explanation = explain(folder.path, CELL, "0", 3)
    near = rows(explanation, "Nearest images of the prompt")
    assert [(row["image"], row["cosine"]) for row in near] == [("seed 4", cosine(here, other))]
    same = rows(explanation, "Same prompt and seed, other methods")
    assert [(row["cell"], row["cosine"]) for row in same] == [("A--CFG", cosine(here, twin))]


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        (("AutoLora2", None, None), "no cell or method 'AutoLora2'. Did you mean 'AutoLoRA'?"),
        ((CELL, "9", None), "The run has no prompt 9: indices are 0 to 2."),
        ((CELL, "a dot", None), "The run has no prompt 'a dot'. Did you mean 'a dog'?"),
        ((CELL, None, 3), "Seed 3 is ambiguous: the run has 3 prompts. Also pass PROMPT."),
        ((CELL, "0", 7), "no image with seed 7. Its 2 seeds are between 3 and 4."),
    ],
)
def test_a_selector_without_a_match_is_a_usage_error(folder, selectors, message):
    with pytest.raises(UsageError) as raised:
        explain(folder.path, *selectors)
    assert message in str(raised.value)


def test_a_method_with_several_cells_is_a_usage_error(folder):
    path = folder.table("parquet")
    pd.read_parquet(path).assign(method="CFG").to_parquet(path)
    accept_tables(folder)
    with pytest.raises(UsageError, match=r"'CFG' matches 2 cells\. .*'A--CFG' and 'A--AutoLoRA'"):
        explain(folder.path, "CFG")


def test_the_command_prints_the_same_as_data(folder):
    result = CliRunner().invoke(app, ["explain", str(folder.path), CELL, "1", "4", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output) == explain(folder.path, CELL, "1", 4).as_data()


def test_foreign_texts_cannot_control_the_terminal(folder):
    hostile = "\x1b[31m[bold]red[/]\x07\u202e"
    rubric = json.loads(folder.manifest.read_text(encoding="utf-8"))["rubric"]
    folder.update_manifest(rubric=rubric | {"text": f"{hostile} <I> <P>"})
    explanation = explain(folder.path, CELL, "1", 4)
    scores = pd.read_parquet(folder.scores)
    scores.assign(prompt=hostile).to_parquet(folder.scores)
    accept_tables(folder)
    for found in (explanation, explain(folder.path, CELL, "1", 4)):
        stream = io.StringIO()
        print_explanation(found, Console(file=stream, width=200, force_terminal=False))
        shown = stream.getvalue()
        assert "[bold]red[/]" in shown
        assert not {"\x1b", "\x07", "\u202e"} & set(shown)


def test_the_next_command_is_quoted_for_a_shell(folder):
    odd = folder.path.rename(folder.path.with_name("my run; $(echo x)"))
    command = ["autolora-eval", "explain", str(odd), CELL, "0"]
    assert shlex.split(explain(odd, CELL).next_command) == command
    assert shlex.split(explain(odd, CELL, "0").next_command) == [*command, "3"]


def test_a_broken_feature_file_is_an_error_that_names_the_next_step(folder):
    folder.features(CELL).write_bytes(b"torn")
    accept_tables(folder)
    message = r"Cannot read features from '.*AutoLoRA\.safetensors'.*autolora-eval score"
    with pytest.raises(AutoLoRAEvalError, match=message):
        explain(folder.path, CELL)


def test_an_imported_image_names_its_source(folder):
    imported = [
        {**row, "source": "theirs/3.png", "source_sha256": "5" * 64}
        for row in read_jsonl(folder.metadata(CELL))
    ]
    write_jsonl(folder.metadata(CELL), imported)
    accept_tables(folder)
    summary = values(explain(folder.path, CELL, "0", 3), "Summary")
    assert summary["imported from"] == f"theirs/3.png, SHA-256 {'5' * 64}"
