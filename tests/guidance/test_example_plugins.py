"""An installed package with one plugin of each kind: each is found by its name, and used."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from autolora_eval import FigureData
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.report.figures._base import draw_figures, figure_kinds
from autolora_eval.scoring.extractor import Loading

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("installed")]


def test_a_benchmark_uses_a_plugin_of_each_kind(write_benchmark, benchmark_data) -> None:
    benchmark_data["methods"] |= {
        "Fading": {"guider": "fading", "last_scale": 2},
        "Clipped": {"sampler": "clipped_noise", "limit": 1.5},
    }
    benchmark_data["features"] = {"extractor": "brightness", "cells": 2}
    benchmark_data["diversity"] = ["spread"]
    benchmark_data["judge"]["rubric"] = "example_plugins:cosiness.yaml"
    loaded = load_benchmark(write_benchmark(benchmark_data))

    cells = {cell.method.name: cell for cell in make_plan(loaded).cells}
    assert cells["Fading"].nfe == 20
    assert cells["Clipped"].columns["limit"] == 1.5

    kind, parameters = loaded.extractor.kind, loaded.extractor.parameters
    extractor = kind.load(Loading(None, parameters, None, None, 8))  # type: ignore[arg-type]
    vectors = extractor([Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8))])
    assert vectors.tolist() == [[256.0] * 4, [1.0] * 4]
    assert kind.code["distribution"] == "example-plugins 0.3.1"

    assert loaded.diversity["spread"](np.eye(2)).value == pytest.approx(0.5**0.5)
    assert loaded.rubric is not None
    assert [score.display_name for score in loaded.rubric.scores.values()] == ["Cosiness"]


def test_a_missing_file_of_a_package_is_reported(problem, benchmark_data) -> None:
    benchmark_data["judge"]["rubric"] = "example_plugins:cosy.yaml"
    assert "judge.rubric: no such rubric: 'example_plugins:cosy.yaml'" in problem(benchmark_data)


def test_a_file_outside_the_package_is_not_found(problem, benchmark_data) -> None:
    benchmark_data["judge"]["rubric"] = "example_plugins:../bin/pip"
    assert "no such rubric" in problem(benchmark_data)


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
