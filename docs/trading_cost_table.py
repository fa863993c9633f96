"""Print the table of docs/trading_cost.md from a run folder.

Run: python docs/trading_cost_table.py reports/trading_cost_miniature

For each rule it gives the share of AutoLoRA+CFG's gain in presence over LoRA+CFG, and the
differences in diversity, over all LoRA scales together. Intervals are 95% intervals of the
jackknife over seeds, which all cells of a model share.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from autolora_eval.analysis.estimates import t_interval
from autolora_eval.runs.feature_file import read_features
from autolora_eval.scoring.diversity import Floats, diversity, leave_one_out, unit_vectors

BASELINE, FULL = "LoRA+CFG", "AutoLoRA+CFG"


@dataclass(frozen=True)
class Rule:
    """A method on a model, over all of its LoRA scales.

    Attributes:
        presence: score of each seed, the mean over the LoRA scales, float64 [N].
        diversity: equation (8), the mean over the LoRA scales.
        without: the same without each seed, float64 [N].
        nfe: function evaluations per image.
    """

    presence: Floats
    diversity: float
    without: Floats
    nfe: int


def share(rule: Floats, baseline: Floats, full: Floats) -> tuple[float, float, float]:
    """Return the share of the gain that a rule keeps, Σ (rule − baseline) / Σ (full − baseline).

    Args:
        rule: scores of each seed, float64 [N].
        baseline: those of the baseline on the same seeds.
        full: those of the method whose gain is the whole.

    Returns:
        The share, and its interval.
    """
    kept, gain = rule - baseline, full - baseline
    without = (kept.sum() - kept) / (gain.sum() - gain)
    value = float(kept.sum() / gain.sum())
    return value, *t_interval(value, without)


def difference(rule: Rule, other: Rule) -> tuple[float, float, float]:
    """Return the difference in diversity from another method, and its interval."""
    value = rule.diversity - other.diversity
    return value, *t_interval(value, rule.without - other.without)


def read_rules(run: Path, model: str) -> dict[str, Rule]:
    """Return the methods of a run folder on one model, by name."""
    scores = pd.read_parquet(run / "scores.parquet").query("model == @model")
    found = {}
    for name, images in scores.groupby("method", sort=False):
        images = images.sort_values("seed")
        units = [
            unit_vectors(_features(run, str(cell), one["image_id"]))
            for cell, one in images.groupby("cell")
        ]
        found[str(name)] = Rule(
            presence=images.groupby("seed")["cps"].mean().to_numpy(),
            diversity=float(np.mean([diversity(one).value for one in units])),
            without=np.mean([leave_one_out(one) for one in units], axis=0),
            nfe=int(images["nfe"].iloc[0]),
        )
    return found


def _features(run: Path, cell: str, ids: pd.Series[str]) -> Floats:
    found = read_features(run / "features" / f"{cell}.safetensors")
    by_id = dict(zip(found.ids, found.matrix, strict=True))
    return np.stack([by_id[one] for one in ids])


def _row(name: str, rules: dict[str, Rule]) -> str:
    rule, baseline, full = rules[name], rules[BASELINE], rules[FULL]
    kept = share(rule.presence, baseline.presence, full.presence)
    cells = [
        name,
        f"{rule.nfe / baseline.nfe:.2f}",
        f"{rule.presence.mean():.2f}",
        "" if name in (BASELINE, FULL) else "{:.0%} [{:.0%}, {:.0%}]".format(*kept),
        f"{rule.diversity:.3f}",
        *(
            "" if rule is other else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*difference(rule, other))
            for other in (baseline, full)
        ),
    ]
    return f"| {' | '.join(cells)} |"


def main(run: Path) -> None:
    """Print a table for each model of a run folder."""
    scores = pd.read_parquet(run / "scores.parquet", columns=["model", "seed"])
    for model in scores["model"].unique():
        print(f"\n{model}, {scores['seed'].nunique()} seeds\n")
        print("| variant | NFE | presence | share of the gain | diversity", end="")
        print(f" | against {BASELINE} | against {FULL} |\n|{' --- |' * 7}")
        rules = read_rules(run, model)
        for name in rules:
            print(_row(name, rules))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
