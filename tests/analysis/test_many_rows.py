"""Tables of very many images: made cell by cell, and the same as if they were made at once."""

import gc
import weakref
from typing import Any

import numpy as np
import pandas as pd
from scored_run import scored

from autolora_eval.analysis import tables
from autolora_eval.analysis.reliability import ordinal_alpha
from autolora_eval.analysis.scores import stacked
from autolora_eval.runs.feature_file import CellFeatures


def test_tables_of_cells_become_the_table_of_their_rows():
    """Whatever a cell lacks: a parameter, every number, every text."""
    common = {"prompt": "a", "nothing": None}
    parts = [
        [common | {"scale": 1, "nfe": 20, "file": "x", "pc": 1.5, "kind": "text"}] * 2,
        [common | {"scale": 0.5, "nfe": None, "file": None, "pc": None, "own": 3, "kind": 7}] * 2,
        [common | {"nfe": 10, "file": "y", "pc": None}, common | {"nfe": None, "file": None}],
    ]
    found = stacked([pd.DataFrame(rows) for rows in parts])
    expected = pd.DataFrame([row for rows in parts for row in rows])
    pd.testing.assert_frame_equal(found, expected)


def test_the_features_of_few_cells_are_in_memory_at_a_time(make, monkeypatch):
    plan, folder = make("run", sweep={"lora_scale": [0.1, 0.2, 0.3, 0.4]})
    read, alive, original = [], [], tables.scored_features

    def counted(*arguments: Any) -> CellFeatures:
        found = original(*arguments)
        read.append(weakref.ref(found))
        gc.collect()
        alive.append(sum(one() is not None for one in read))
        return found

    monkeypatch.setattr(tables, "scored_features", counted)
    scored(plan, folder)
    assert len(read) == len(plan.cells) == 8
    assert max(alive) <= 3  # the cell's, its reference's, and those that are about to leave


def test_many_images_have_an_interval_of_alpha(monkeypatch):
    """Without each of 200,000 images anew: this would take hours."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 6, 200_000).astype(np.float64)
    ratings = np.stack([first, np.where(rng.random(len(first)) < 0.7, first, 5.0 - first)])
    monkeypatch.setattr("autolora_eval.analysis.estimates.N_RESAMPLES", 99)
    value, found = ordinal_alpha(ratings, pd.DataFrame({"prompt_index": 0 * first}))
    assert found.low < value < found.high
    assert found.high - found.low < 0.02
