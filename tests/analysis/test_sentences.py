"""Comparisons in words: what is claimed, what is not, and what is said of the gaps."""

from __future__ import annotations

import numpy as np
import pytest

from autolora_eval.analysis.metric_columns import DIVERSITY, Measure, measures
from autolora_eval.analysis.sentences import about, is_told, sentence, verdict
from autolora_eval.scoring.rubric import Score

_, PC, DIV_PC = measures({"pc": Score(key="prompt", display_name="Prompt correspondence")})
_, BAD, _ = measures({"bad": Score(key="bad", display_name="Badness", higher_is_better=False)})


def row(difference: float, low: float, high: float, **more: object) -> dict[str, object]:
    """Return a row of comparisons.csv over 30 prompts, 27 of which the method is higher on."""
    found = {"difference": difference, "low": low, "high": high, "p_holm": 0.001}
    return found | {"win_rate": 0.9, "n_ties": 0, "n_units": 30, "unit": "prompt"} | more


@pytest.mark.parametrize(
    ("measure", "found", "said"),
    [
        (
            DIVERSITY,
            row(0.061, 0.048, 0.075),
            "AutoLoRA is more diverse than CFG by 0.061 [0.048, 0.075], on 27 of 30 prompts "
            "(p = 0.001).",
        ),
        (
            PC,
            row(-0.2, -0.3, -0.1, win_rate=0.25, n_ties=5, p_holm=0.0001),
            "AutoLoRA has lower Prompt correspondence than CFG by 0.200 [0.100, 0.300], on 20 of "
            "30 prompts and equal on 5 (p < 0.001).",
        ),
        (
            BAD,
            row(-0.2, -0.3, -0.1, n_units=1, win_rate=0.0, unit="seed"),
            "AutoLoRA has lower (better) Badness than CFG by 0.200 [0.100, 0.300], on 1 of 1 seed "
            "(p = 0.001).",
        ),
        (
            DIVERSITY,  # one image has none
            row(0.061, 0.048, 0.075, unit="seed"),
            "AutoLoRA is more diverse than CFG by 0.061 [0.048, 0.075] (p = 0.001).",
        ),
        (
            PC,  # an older run: nobody counted the ties
            row(0.2, 0.1, 0.3, n_ties=np.nan),
            "AutoLoRA has higher Prompt correspondence than CFG by 0.200 [0.100, 0.300] "
            "(p = 0.001).",
        ),
        (
            DIV_PC,  # a product has no value of its own for a prompt
            row(0.2, 0.1, 0.3, p_holm=0.31),
            "AutoLoRA has higher Diversity × Prompt correspondence than CFG by 0.200 [0.100, "
            "0.300]; after correction for the number of comparisons p = 0.310, so it may be "
            "chance.",
        ),
        (
            PC,
            row(0.01, -0.1, 0.12, p_holm=1.0, win_rate=0.5, n_ties=28, units_for_power_80=1234),
            "Prompt correspondence: no difference of AutoLoRA from CFG can be told: +0.010 "
            "[−0.100, +0.120], higher on 1 of 30 prompts and equal on 28; a difference of this "
            "size would need about 1,300 prompts.",
        ),
        (
            PC,
            row(0.01, -0.1, 0.12, p_holm=1.0, win_rate=0.5, n_ties=28, units_for_power_80=10_001),
            "Prompt correspondence: no difference of AutoLoRA from CFG can be told: +0.010 "
            "[−0.100, +0.120], higher on 1 of 30 prompts and equal on 28; a difference of this "
            "size would need more than 10,000 prompts.",
        ),
        (
            PC,
            row(0.01, np.nan, np.nan, p_holm=np.nan),
            "Prompt correspondence: AutoLoRA differs from CFG by +0.010; it has no interval.",
        ),
        (
            DIVERSITY,
            row(np.nan, np.nan, np.nan),
            "Diversity: AutoLoRA and CFG could not be compared.",
        ),
    ],
)
def test_the_sentence_of_a_comparison(
    measure: Measure, found: dict[str, object], said: str
) -> None:
    assert sentence(found, measure, "AutoLoRA", "CFG") == said
    assert sentence(found, measure, "AutoLoRA", "CFG", "SD3") == f"SD3: {said}"


def test_a_name_cannot_break_the_line() -> None:
    told = sentence(row(0.1, 0.05, 0.2), DIVERSITY, "a\nb\x00", "CFG")
    assert told.startswith("a b\ufffd is more diverse than CFG by")


@pytest.mark.parametrize(
    ("low", "high", "p", "said", "told"),
    [
        (0.1, 0.2, 0.049, "higher", True),
        (-0.2, -0.1, 0.05, "lower", False),
        (0.0, 0.2, 0.001, "not told", False),
        (np.nan, 0.2, 0.001, "no interval", False),
    ],
)
def test_a_difference_is_told_by_interval_and_corrected_p_value(
    low: float, high: float, p: float, said: str, told: bool
) -> None:
    found = row(0.15, low, high, p_holm=p)
    assert (verdict(found), is_told(found)) == (said, told)


@pytest.mark.parametrize(
    ("n", "rounded"), [(2, 2), (34, 34), (199, 200), (121, 130), (11201, 12000)]
)
def test_units_needed_are_rounded_up_to_two_digits(n: int, rounded: int) -> None:
    assert about(n) == rounded
