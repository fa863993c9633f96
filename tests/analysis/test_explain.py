"""An explanation names what a number is made of, and notices when the files say otherwise."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scored_run import KEY, Place, vector, write_features, write_images, write_judgements
from typer.testing import CliRunner

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._files import read_jsonl, sha256_file, write_json, write_jsonl
from autolora_eval.analysis import explanation as terminal
from autolora_eval.analysis.explain import explain
from autolora_eval.analysis.explain_reader import _ranges
from autolora_eval.analysis.explanation import Explanation, Facts, Listing, Quote
from autolora_eval.analysis.tables import write_tables
from autolora_eval.cli import app
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.runs.folder import RunFolder, open_run
from autolora_eval.runs.manifest import state_plan, update_manifest

CELL = "A--AutoLoRA"
UNSCORED = (CELL, 1, 3)
MISSING = (CELL, 2, 4)


def score(place: Place) -> dict[str, float] | str:
    cell, prompt_index, seed = place
    if place == UNSCORED:
        return "no_json"
    return {"pc": float((len(cell) + 2 * prompt_index + seed) % 6)}


@pytest.fixture
def plan(write_benchmark: Callable[[object], Path], benchmark_data: dict[str, Any]) -> Plan:
    return make_plan(load_benchmark(write_benchmark(benchmark_data)))


@pytest.fixture
def folder(plan: Plan, tmp_path: Path) -> RunFolder:
    """Two cells, three prompts, two seeds; one image unscored, another missing."""
    folder = RunFolder(tmp_path / "run")
    write_images(plan, folder, [MISSING])
    write_features(plan, folder, vector)
    write_judgements(plan, folder, score)
    state_plan(plan, folder, "small.yaml", {"limit_prompts": None, "limit_seeds": None})
    update_manifest(folder, judge={"key": KEY, "repeats": 1, "rubric_name": "r"})
    write_tables(plan, folder, KEY)
    return folder


def listing(account: Explanation, title: str) -> list[dict[str, str]]:
    part = next(p for p in account.parts if isinstance(p, Listing) and p.title == title)
    return [dict(zip(part.heads, row, strict=True)) for row in part.rows]


def facts(account: Explanation, title: str) -> dict[str, str]:
    return dict(next(p for p in account.parts if isinstance(p, Facts) and p.title == title).facts)


def quotes(account: Explanation) -> dict[str, str]:
    return {part.title: part.text for part in account.parts if isinstance(part, Quote)}


def test_every_number_of_every_cell_is_made_again_from_the_files(folder: RunFolder) -> None:
    table = open_run(folder.path).table.set_index("cell")
    for cell in table.index:
        rows = {row[""]: row for row in listing(explain(folder.path, cell), "Its numbers")}
        assert list(rows) == ["diversity", "pc", "div_pc"]
        for column, row in rows.items():
            assert row["table"] == f"{table.loc[cell, column]:.4f}"
            assert row["made again from the files"] == f"{row['table']}, the same"


@pytest.mark.parametrize(
    ("column", "differing"), [("pc", ["pc", "div_pc"]), ("diversity", ["diversity"])]
)
def test_a_number_that_the_files_do_not_give_is_told(
    folder: RunFolder, column: str, differing: list[str]
) -> None:
    path = folder.table("parquet")
    table = pd.read_parquet(path)
    table.loc[table["cell"] == CELL, differing] += 0.01
    table.to_parquet(path)
    rows = listing(explain(folder.path, CELL), "Its numbers")
    told = [row[""] for row in rows if "NOT the same" in row["made again from the files"]]
    assert told == differing


def test_what_is_missing_is_named_with_its_reason(folder: RunFolder) -> None:
    prompts = {row[""]: row for row in listing(explain(folder.path, CELL), "Its prompts")}
    assert prompts["1"]["unscored"] == "1"
    assert prompts["2"]["diversity"] == "needs at least two images, has 1"
    images = {row["seed"]: row for row in listing(explain(folder.path, CELL, "2"), "Its images")}
    assert images["4"]["missing"] == "missing_image; missing_image"
    assert images["4"]["nearest (cosine)"] == "–"
    assert facts(explain(folder.path, CELL, "2", 4), "What it is")["now"] == "not there"


def test_an_image_that_was_changed_is_told(folder: RunFolder) -> None:
    file = folder.path / open_run(folder.path).scores.query("cell == @CELL")["file"].iloc[0]
    before = facts(explain(folder.path, CELL, "0", 3), "What it is")
    assert before["now"] == "as it was scored, 16 × 16"
    assert before["SHA-256"] == sha256_file(file)
    file.write_bytes(file.read_bytes() + b" ")
    after = facts(explain(folder.path, CELL, "0", 3), "What it is")
    assert after["now"] == "changed since it was scored"


def test_the_reply_stands_there_word_for_word(folder: RunFolder) -> None:
    account = explain(folder.path, CELL, "a dog", 4)
    assert json.loads(quotes(account)["Its reply, word for word"]) == score((CELL, 1, 4))
    assert facts(account, "The judge's reply")["model"] == "someone"
    assert quotes(account)["What it was asked"] == "Look:[the image]Does it show a dog?"


def test_an_unscored_image_says_why(folder: RunFolder) -> None:
    account = explain(folder.path, CELL, "1", 3)
    assert facts(account, "What it is")["unscored"] == "no_json"
    assert facts(account, "The judge's reply")["scores"] == "none"


def test_neighbours_are_those_of_the_features(folder: RunFolder) -> None:
    here, other, twin = (vector(p) for p in ((CELL, 0, 3), (CELL, 0, 4), ("A--CFG", 0, 3)))

    def cosine(a: np.ndarray, b: np.ndarray) -> str:
        return f"{float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)):.3f}"

    account = explain(folder.path, CELL, "0", 3)
    near = listing(account, "Nearest in the cell, same prompt")
    assert [(row[""], row["cosine"]) for row in near] == [("seed 4", cosine(here, other))]
    same = listing(account, "The same prompt and seed by the other methods")
    assert [(row[""], row["cosine"]) for row in same] == [("A--CFG", cosine(here, twin))]


@pytest.mark.parametrize("wanted", [CELL, "AutoLoRA", "autolora", "--auto"])
def test_a_cell_is_found_by_id_method_or_part(folder: RunFolder, wanted: str) -> None:
    assert explain(folder.path, wanted).title.endswith(f"({CELL})")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("AutoLora2", None, None), "no cell 'AutoLora2' in this run. Did you mean 'AutoLoRA'?"),
        (("A--", None, None), "'A--' may be any of 2 cells: A--CFG, A--AutoLoRA."),
        ((CELL, "9", None), "no prompt 9: their places are 0 to 2."),
        ((CELL, "a", None), "'a' is in 3 prompts"),
        ((CELL, "a dot", None), "no prompt 'a dot'. Did you mean 'a dog'?"),
        ((CELL, None, 3), "seed 3 of which of the 3 prompts?"),
        ((CELL, "0", 7), "no image has seed 7. Known: 3 to 4."),
    ],
)
def test_a_place_that_is_not_there_is_answered(
    folder: RunFolder, words: tuple[str, str | None, int | None], message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        explain(folder.path, *words)
    assert message in str(raised.value)


def test_numbers_in_words() -> None:
    assert _ranges([0, 1, 2, 9]) == "0 to 2, 9"
    assert _ranges([4]) == "4"


def test_the_command_prints_the_same_as_data(folder: RunFolder) -> None:
    done = CliRunner().invoke(app, ["explain", str(folder.path), CELL, "1", "4", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.output) == json.loads(
        json.dumps(explain(folder.path, CELL, "1", 4).as_data())
    )


def test_texts_of_others_are_no_commands_to_the_terminal() -> None:
    hostile = "\x1b[31m[bold]red[/]\x07\u202e"
    account = Explanation(
        hostile,
        [
            Facts(hostile, [(hostile, hostile)]),
            Listing("l", ["h"], [[hostile]]),
            Quote("q", hostile),
        ],
    )
    stream = io.StringIO()
    terminal.show(account, Console(file=stream, width=200, force_terminal=False))
    shown = stream.getvalue()
    assert shown.count("[bold]red[/]") == 6
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)


def test_the_command_for_more_is_one_that_a_shell_takes(plan: Plan, folder: RunFolder) -> None:
    odd = folder.path.rename(folder.path.with_name("my run; $(echo x)"))
    deeper = explain(odd, CELL).further[0]
    assert shlex.split(deeper) == ["autolora-eval", "explain", str(odd), CELL, "0"]
    deeper = explain(odd, CELL, "0").further[0]
    assert shlex.split(deeper) == ["autolora-eval", "explain", str(odd), CELL, "0", "3"]


def test_features_that_are_none_are_named_with_what_to_do(folder: RunFolder) -> None:
    folder.features(CELL).write_bytes(b"torn")
    with pytest.raises(AutoLoRAEvalError, match=r"AutoLoRA\.safetensors' cannot be read.*score"):
        explain(folder.path, CELL)


def test_what_an_old_run_did_not_record_is_said_to_be_so(folder: RunFolder) -> None:
    write_json(folder.manifest, {"benchmark_file": "small.yaml"})
    made = facts(explain(folder.path, CELL), "Made with")
    assert not any("None" in value for value in made.values())
    names = ("prompts", "software", "hardware", "extractor")
    assert [made[name] for name in names] == ["not recorded"] * 4


def test_an_image_made_elsewhere_says_which_it_was(folder: RunFolder) -> None:
    rows = [
        {**row, "source": "theirs/3.png", "source_sha256": "5" * 64}
        for row in read_jsonl(folder.metadata(CELL))
    ]
    write_jsonl(folder.metadata(CELL), rows)
    told = facts(explain(folder.path, CELL, "0", 3), "What it is")
    assert told["made elsewhere"] == f"theirs/3.png, SHA-256 {'5' * 64}"
