"""Tables of runs that never were, consistent in themselves, with numbers that a test can state."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from autolora_eval._text import point_label
from autolora_eval.analysis.sentences import metrics_of
from autolora_eval.report.figures._base import Drawing, FigureData, figure_kinds
from autolora_eval.report.figures._style import STYLE
from autolora_eval.scoring.rubric import Score

METHODS = ("LoRA", "AutoLoRA", "LoRA+CFG", "AutoLoRA+CFG")
SCORES = {
    "pc": Score(key="prompt_correspondence", display_name="Prompt correspondence"),
    "sa": Score(key="style_adherence", display_name="Style adherence"),
}
LORA_SCALES = [f"{n / 10:g}" for n in range(2, 14)]
INTERVALS = ["0–1", "0–0.5", "0.25–0.75", "0.5–1"]


def made_up(
    models: Sequence[str] = ("SDXL",),
    methods: Sequence[str] = METHODS,
    sweep: Mapping[str, Sequence[str]] | None = None,
    taken_by: Mapping[str, Sequence[str]] | None = None,
    n_prompts: int = 1,
    n_seeds: int = 6,
    scores: Mapping[str, Score] = SCORES,
    baseline: str | None = None,
) -> FigureData:
    """Return the tables of a run.

    Args:
        models: their names.
        methods: their names.
        sweep: swept parameters with their values.
        taken_by: the methods that take a swept parameter; all where it is not listed.
        n_prompts: number of prompts.
        n_seeds: number of seeds.
        scores: the rubric's.
        baseline: the method that others are compared with; the first if not given.
    """
    sweep, taken_by = sweep or {}, taken_by or {}
    points: dict[str, dict[str, str]] = {}
    rows = []
    for model, method in itertools.product(models, methods):
        own = {k: v for k, v in sweep.items() if method in taken_by.get(k, methods)}
        for values in itertools.product(*own.values()):
            cell = "--".join([model, method, *values])
            points[cell] = dict(zip(own, values, strict=True))
            rows.append({"cell": cell, "model": model, "method": method})
    table = pd.DataFrame(rows)
    images = _images(table, n_prompts, n_seeds, list(scores))
    diversity = _diversities(table, n_prompts, n_seeds)
    metrics = metrics_of(scores)
    means = images.groupby("cell", sort=False)[list(scores)].mean()
    table["n_images"] = n_prompts * n_seeds
    table["nfe"] = [20 * (1 + list(methods).index(m)) for m in table["method"]]
    table["diversity"] = diversity.groupby("cell", sort=False)["diversity"].mean().to_numpy()
    for score in scores:
        table[score] = means[score].to_numpy()
        table[f"div_{score}"] = table["diversity"] * table[score]
    for metric in metrics:
        table[f"{metric.column}_low"] = table[metric.column] * 0.96
        table[f"{metric.column}_high"] = table[metric.column] * 1.05
    names = [point_label(point) for point in points.values()]
    labels = {
        row.cell: f"{row.method} ({name})" if name else row.method
        for row, name in zip(table.itertuples(), names, strict=True)
    }
    return FigureData(
        table=table,
        metrics=metrics,
        points=points,
        labels=labels,
        scores=images,
        diversity=diversity,
        comparisons=_comparisons(table, points, baseline or methods[0], metrics, n_prompts),
    )


def _images(table: pd.DataFrame, n_prompts: int, n_seeds: int, scores: list[str]) -> pd.DataFrame:
    random = np.random.default_rng(0)
    n, each = len(table), n_prompts * n_seeds
    places = np.repeat(np.arange(n), each)
    frame = pd.DataFrame(
        {
            "cell": table["cell"].to_numpy()[places],
            "model": table["model"].to_numpy()[places],
            "method": table["method"].to_numpy()[places],
            "prompt_index": np.tile(np.repeat(np.arange(n_prompts), n_seeds), n),
            "seed": np.tile(np.arange(n_seeds), n * n_prompts),
        }
    )
    frame["prompt"] = "prompt " + frame["prompt_index"].astype(str)
    for place, score in enumerate(scores):
        level = 0.35 + 0.5 * places / n + 0.06 * place
        frame[score] = random.binomial(5, np.clip(level, 0, 1)).astype(float)
    frame["unscored_reason"] = pd.array([None] * len(frame), dtype="string")
    lost = random.random(len(frame)) < 0.04
    frame.loc[lost, scores] = np.nan
    frame.loc[lost, "unscored_reason"] = "no_json"
    return frame


def _diversities(table: pd.DataFrame, n_prompts: int, n_seeds: int) -> pd.DataFrame:
    random = np.random.default_rng(1)
    n = len(table)
    places = np.repeat(np.arange(n), n_prompts)
    return pd.DataFrame(
        {
            "cell": table["cell"].to_numpy()[places],
            "prompt_index": np.tile(np.arange(n_prompts), n),
            "prompt": [f"prompt {p}" for p in np.tile(np.arange(n_prompts), n)],
            "n": n_seeds,
            "diversity": 0.4 - 0.25 * places / n + 0.02 * random.standard_normal(n * n_prompts),
            "reason": pd.array([None] * (n * n_prompts), dtype="string"),
        }
    )


def _comparisons(
    table: pd.DataFrame,
    points: Mapping[str, Mapping[str, str]],
    baseline: str,
    metrics: Sequence,
    n_prompts: int,
) -> pd.DataFrame:
    rows = []
    cells = table.set_index("cell")
    for row in table.itertuples():
        alike = [
            other.cell
            for other in table.itertuples()
            if (other.model, other.method) == (row.model, baseline)
            and all(points[other.cell].get(k, v) == v for k, v in points[row.cell].items())
        ]
        if row.method == baseline or len(alike) != 1:
            continue
        for metric in metrics:
            column = metric.column
            difference = cells.at[row.cell, column] - cells.at[alike[0], column]
            rows.append(
                {
                    "cell": row.cell,
                    "model": row.model,
                    "method": row.method,
                    "baseline": baseline,
                    "baseline_cell": alike[0],
                    "metric": column,
                    "unit": "prompt" if n_prompts > 1 else "seed",
                    "n_units": 6,
                    "difference": difference,
                    "low": difference - 0.01,
                    "high": difference + 0.013,
                    "p_value": 0.01,
                    "p_holm": 0.03,
                    "win_rate": 0.8,
                }
            )
    return pd.DataFrame(rows)


def with_values(data: FigureData, **columns: Mapping[str, float | None]) -> FigureData:
    """Return the data with some values of the result table replaced.

    Args:
        data: what to change.
        columns: for each column the new value of some cells.
    """
    table = data.table.copy()
    for column, values in columns.items():
        found = table[column].to_dict() if column in table else {}
        cells = table["cell"]
        table[column] = [values.get(cell, found.get(n, np.nan)) for n, cell in cells.items()]
    return dataclasses.replace(data, table=table)


def drawings(kind: str, data: FigureData) -> list[Drawing]:
    """Return the figures of a kind that a run has."""
    return list(next(k for k in figure_kinds() if k.name == kind).drawings(data))


def draw(kind: str, data: FigureData, number: int = 0) -> Figure:
    """Draw a figure in the style of all."""
    with matplotlib.style.context([STYLE], after_reset=True):
        return drawings(kind, data)[number].draw()


def panels(figure: Figure) -> list[Axes]:
    """Return the axes in which something is drawn."""
    return [axis for axis in figure.axes if axis.axison]


def curves(axis: Axes, label: str) -> list[np.ndarray]:
    """Return the points of the lines with a label, float64 [n, 2] each."""
    lines = [line for line in axis.lines if line.get_label() == label]
    lines += [c.lines[0] for c in axis.containers if c.get_label() == label]
    return [np.asarray(line.get_xydata()) for line in lines]
