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
from autolora_eval.analysis.metrics import Metric, metrics_of
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
Points = Mapping[str, Mapping[str, str]]


def made_up(
    models: Sequence[str] = ("SDXL",),
    methods: Sequence[str] = METHODS,
    sweep: Mapping[str, Sequence[str]] | None = None,
    taken_by: Mapping[str, Sequence[str]] | None = None,
    n_prompts: int = 1,
    n_seeds: int = 6,
    scores: Mapping[str, Score] = SCORES,
) -> FigureData:
    """Return the tables of a run; the methods not in `taken_by` take no such swept parameter."""
    points: dict[str, dict[str, str]] = {}
    rows = []
    for model, method in itertools.product(models, methods):
        own = {k: v for k, v in (sweep or {}).items() if method in (taken_by or {}).get(k, methods)}
        for values in itertools.product(*own.values()):
            cell = "--".join([model, method, *values])
            points[cell] = dict(zip(own, values, strict=True))
            rows.append({"cell": cell, "model": model, "method": method})
    table = pd.DataFrame(rows)
    prompts = table.assign(place=np.arange(len(table)) / len(table)).merge(
        pd.DataFrame({"prompt_index": range(n_prompts)}), how="cross"
    )
    prompts["prompt"] = "prompt " + prompts["prompt_index"].astype(str)
    images = _images(prompts.merge(pd.DataFrame({"seed": range(n_seeds)}), how="cross"), scores)
    noise = 0.02 * np.random.default_rng(1).standard_normal(len(prompts))
    diversity = prompts.assign(n=n_seeds, diversity=0.4 - 0.25 * prompts["place"] + noise)
    diversity["reason"] = pd.array([None] * len(diversity), dtype="string")
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
    named = zip(table["cell"], table["method"], map(point_label, points.values()), strict=True)
    labels = {cell: f"{method} ({name})" if name else method for cell, method, name in named}
    unit = "prompt" if n_prompts > 1 else "seed"
    comparisons = _comparisons(table, points, methods[0], metrics, unit)
    return FigureData(table, metrics, points, labels, images, diversity, comparisons)


def _images(images: pd.DataFrame, scores: Mapping[str, Score]) -> pd.DataFrame:
    random = np.random.default_rng(0)
    for place, score in enumerate(scores):
        level = np.clip(0.35 + 0.5 * images["place"] + 0.06 * place, 0, 1)
        images[score] = random.binomial(5, level).astype(float)
    lost = random.random(len(images)) < 0.04
    images.loc[lost, list(scores)] = np.nan
    reasons = ["no_json" if one else None for one in lost]
    return images.assign(unscored_reason=pd.array(reasons, dtype="string"))


def _comparisons(
    table: pd.DataFrame, points: Points, baseline: str, metrics: Sequence[Metric], unit: str
) -> pd.DataFrame:
    rows = []
    records = table.to_dict("records")
    for row in (r for r in records if r["method"] != baseline):
        alike = [
            other
            for other in records
            if (other["model"], other["method"]) == (row["model"], baseline)
            and all(points[other["cell"]].get(k, v) == v for k, v in points[row["cell"]].items())
        ]
        head = {key: row[key] for key in ("cell", "model", "method")}
        head |= {"baseline": baseline, "unit": unit, "n_units": 6}
        for metric in metrics if len(alike) == 1 else ():
            difference = row[metric.column] - alike[0][metric.column]
            found = {"baseline_cell": alike[0]["cell"], "metric": metric.column}
            found |= {"difference": difference, "p_value": 0.01, "p_holm": 0.03, "win_rate": 0.8}
            rows.append(head | found | {"low": difference - 0.01, "high": difference + 0.013})
    return pd.DataFrame(rows)


def with_values(data: FigureData, **columns: Mapping[str, float | None]) -> FigureData:
    """Return the data with some values of the result table replaced: by column, then by cell."""
    table = data.table.copy()
    for column, values in columns.items():
        found = table[column].to_dict() if column in table else {}
        cells = table["cell"]
        table[column] = [values.get(cell, found.get(n, np.nan)) for n, cell in cells.items()]
    return dataclasses.replace(data, table=table)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of figure, by its name."""

    name: str

    def drawings(self, data: FigureData) -> list[Drawing]:
        """Return the figures of this kind that a run has."""
        return list(next(kind for kind in figure_kinds() if kind.name == self.name).drawings(data))

    def caption(self, data: FigureData, number: int = 0) -> str:
        return self.drawings(data)[number].caption

    def draw(self, data: FigureData, number: int = 0) -> Figure:
        """Draw a figure in the style of all."""
        with matplotlib.style.context([STYLE], after_reset=True):
            return self.drawings(data)[number].draw()

    def panels(self, data: FigureData, number: int = 0) -> list[Axes]:
        """Return the axes of a figure in which something is drawn."""
        return [axis for axis in self.draw(data, number).axes if axis.axison]


def curves(axis: Axes, label: str) -> list[np.ndarray]:
    """Return the points of the lines with a label, float64 [n, 2] each."""
    lines = [line for line in axis.lines if line.get_label() == label]
    lines += [c.lines[0] for c in axis.containers if c.get_label() == label]
    return [np.asarray(line.get_xydata()) for line in lines]
