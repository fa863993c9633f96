"""An installed package with one plugin of each kind: each is found by its name, and used.

Its guider and its sampler are those of test_plugins.py.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from autolora_eval import FigureData
from autolora_eval.report.figures._base import draw_figures, figure_kinds
from autolora_eval.scoring.extractor import Loading

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("installed")]


def test_a_benchmark_uses_a_plugin_of_each_other_kind(planned, benchmark_data) -> None:
    benchmark_data["features"] = {"extractor": "brightness", "cells": 2}
    benchmark_data["diversity"] = ["spread"]
    benchmark_data["judge"]["rubric"] = "example_plugins:cosiness.yaml"
    loaded = planned().benchmark

    kind, parameters = loaded.extractor.kind, loaded.extractor.parameters
    extractor = kind.load(Loading(None, parameters, None, None, 8))  # type: ignore[arg-type]
    vectors = extractor([Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8))])
    assert vectors.tolist() == [[256.0] * 4, [1.0] * 4]
    assert kind.code["distribution"] == "example-plugins 0.3.1"

    assert loaded.diversity["spread"](np.eye(2)).value == pytest.approx(0.5**0.5)
    assert loaded.rubric is not None
    assert [score.display_name for score in loaded.rubric.scores.values()] == ["Cosiness"]


@pytest.mark.parametrize("name", ["example_plugins:cosy.yaml", "example_plugins:../bin/pip"])
def test_a_file_that_a_package_does_not_have_is_reported(problem, benchmark_data, name) -> None:
    benchmark_data["judge"]["rubric"] = name
    assert f"judge.rubric: no such rubric: '{name}'" in problem(benchmark_data)


def test_a_figure_is_drawn_and_a_broken_one_does_not_lose_the_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [kind for kind in figure_kinds() if kind.origin]
    assert [kind.name for kind in kinds] == ["bars", "broken_bars"], "after the built-in ones"
    monkeypatch.setattr("autolora_eval.report.figures._base.figure_kinds", lambda: kinds)
    table = pd.DataFrame({"cell": ["a", "b"], "diversity": [0.2, 0.3]})
    empty = pd.DataFrame()
    data = FigureData(table, [], {}, {}, empty, empty, empty)
    with caplog.at_level(logging.WARNING):
        (drawn,) = draw_figures(data, tmp_path)
    assert drawn.svg.is_file()
    assert drawn.png.is_file()
    assert "'broken_bars' of example-plugins 0.3.1 failed: RuntimeError: no such column" in (
        caplog.text
    )
