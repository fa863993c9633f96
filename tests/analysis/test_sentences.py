"""Comparisons in words: what is claimed, what is not, and how missing values are described."""

import numpy as np
import pytest

from autolora_eval.analysis.comparisons import read_comparison, round_up, say
from autolora_eval.analysis.metrics import DIVERSITY, metrics_of
from autolora_eval.runs.records import DiversityMetricRecord
from autolora_eval.scoring.rubric import Score

_, PC, DIV_PC = metrics_of({"pc": Score(key="prompt", display_name="Prompt correspondence")})
_, BAD = metrics_of({"bad": Score(key="bad", display_name="Badness", higher_is_better=False)})

RECORD = DiversityMetricRecord(
    name="vendi", display_name="Vendi score", label="Vendi", higher_is_better=True
)
_, VENDI = metrics_of({}, [RECORD])


def row(difference: float, low: float, high: float, **more: object) -> dict[str, object]:
    """Return a row of comparisons.csv over 30 prompts, 27 of which the method is higher on."""
    found = {"difference": difference, "low": low, "high": high, "p_holm": 0.001}
    return found | {"win_rate": 0.9, "n_ties": 0, "n_units": 30, "unit": "prompt"} | more


CASES = {
    "more diverse": (
        DIVERSITY,
        row(0.061, 0.048, 0.075),
        "AutoLoRA is more diverse than CFG by 0.061 [0.048, 0.075], on 27 of 30 prompts "
        "(p = 0.001).",
    ),
    "lower, with ties": (
        PC,
        row(-0.2, -0.3, -0.1, win_rate=0.25, n_ties=5, p_holm=0.0001),
        "AutoLoRA has lower Prompt correspondence than CFG by 0.200 [0.100, 0.300], on 20 of "
        "30 prompts and equal on 5 (p < 0.001).",
    ),
    "lower is better": (
        BAD,
        row(-0.2, -0.3, -0.1, n_units=1, win_rate=0.0, unit="seed"),
        "AutoLoRA has lower (better) Badness than CFG by 0.200 [0.100, 0.300], on 1 of 1 seed "
        "(p = 0.001).",
    ),
    "a single image has no diversity": (
        DIVERSITY,
        row(0.061, 0.048, 0.075, unit="seed"),
        "AutoLoRA is more diverse than CFG by 0.061 [0.048, 0.075] (p = 0.001).",
    ),
    "a group of seeds has no value of its own": (
        VENDI,
        row(-1.0, -2.0, 0.5, p_holm=0.4, n_units=64, win_rate=0.3, unit="seed group"),
        "AutoLoRA and CFG do not differ significantly in Vendi score (−1.000 [−2.000, +0.500]).",
    ),
    "a prompt has no product of cell means": (
        DIV_PC,
        row(0.2, 0.1, 0.3, p_holm=0.31),
        "AutoLoRA has higher Diversity × Prompt correspondence than CFG by 0.200 [0.100, "
        "0.300], which is not significant after correction for multiple comparisons (p = 0.310).",
    ),
    "unclear": (
        PC,
        row(0.01, -0.1, 0.12, p_holm=1.0, win_rate=0.5, n_ties=28, units_for_power_80=1234),
        "AutoLoRA and CFG do not differ significantly in Prompt correspondence (+0.010 [−0.100, "
        "+0.120], higher on 1 of 30 prompts and equal on 28). To detect a difference of this "
        "size, use about 1,300 prompts.",
    ),
    "unclear, and out of reach": (
        PC,
        row(0.01, -0.1, 0.12, p_holm=1.0, win_rate=0.5, n_ties=28, units_for_power_80=10_001),
        "AutoLoRA and CFG do not differ significantly in Prompt correspondence (+0.010 [−0.100, "
        "+0.120], higher on 1 of 30 prompts and equal on 28). To detect a difference of this "
        "size, use more than 10,000 prompts.",
    ),
    "no interval": (
        PC,
        row(0.01, np.nan, np.nan, p_holm=np.nan),
        "AutoLoRA differs from CFG by +0.010 in Prompt correspondence, without an interval.",
    ),
    "not compared": (
        DIVERSITY,
        row(np.nan, np.nan, np.nan),
        "AutoLoRA and CFG could not be compared in Diversity.",
    ),
}


@pytest.mark.parametrize(("metric", "found", "expected"), CASES.values(), ids=CASES)
def test_the_sentence_of_a_comparison(metric, found, expected):
    comparison = read_comparison(found, metric, "AutoLoRA", "CFG")
    assert say.sentence(comparison, "") == expected
    assert say.sentence(comparison, "SD3") == f"SD3: {expected}"


def test_names_stay_on_one_line_and_are_never_template_code():
    comparison = read_comparison(row(0.1, 0.05, 0.2), DIVERSITY, "a\nb\x00{{ 7*7 }}", "CFG")
    text = say.sentence(comparison, "")
    assert text.startswith("a b\ufffd{{ 7*7 }} is more diverse than CFG by")


@pytest.mark.parametrize(
    ("low", "high", "p", "outcome", "is_significant"),
    [
        (0.1, 0.2, 0.049, "higher", True),
        (-0.2, -0.1, 0.05, "lower", False),
        (0.0, 0.2, 0.001, "unclear", False),
        (np.nan, 0.2, 0.001, "no interval", False),
    ],
)
def test_a_difference_is_significant_by_interval_and_corrected_p_value(
    low, high, p, outcome, is_significant
):
    found = read_comparison(row(0.15, low, high, p_holm=p), DIVERSITY, "a", "b")
    assert (found.outcome, found.is_significant) == (outcome, is_significant)


@pytest.mark.parametrize(
    ("n", "rounded"), [(2, 2), (34, 34), (199, 200), (121, 130), (11201, 12000)]
)
def test_sample_sizes_are_rounded_up_to_two_significant_digits(n, rounded):
    assert round_up(n) == rounded


def test_only_scores_with_a_clear_direction_are_multiplied_by_diversity():
    """Of a score of −1, more diversity makes the product lower; of an error rate, also worse."""
    scores = {
        "pc": Score(key="pc", display_name="Prompt correspondence", max=7.0),
        "er": Score(key="er", display_name="Errors", higher_is_better=False),
        "nice": Score(key="nice", display_name="Niceness", min=-2.0, max=2.0),
    }
    metrics = metrics_of(scores)
    assert [metric.column for metric in metrics] == ["diversity", *scores, "div_pc"]
    product = metrics[-1]
    # Diversity is at most 2, for two opposite vectors.
    assert (product.low, product.high, product.arrow) == (0.0, 14.0, "↑")
