"""The paper's equations, their algebraic properties, and the predictions they need."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from autolora_eval.guidance.equations import (
    autolora_guidance,
    autolora_predictions,
    cfg_terms,
    classifier_free_guidance,
    in_interval,
)

NAMES = ("base_cond", "base_uncond", "lora_cond", "lora_uncond")
SCALES = (0.0, 0.5, 1.0, 1.5, 5.0)
TRIPLES = list(itertools.product(SCALES, SCALES, SCALES))


def draw(seed: int, count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(count, 2, 4, 8, 8)))


def equation_7(base_cond, base_uncond, lora_cond, lora_uncond, gamma, w1, w2):
    base = classifier_free_guidance(base_uncond, base_cond, w1)
    return autolora_guidance(base, classifier_free_guidance(lora_uncond, lora_cond, w2), gamma)


def test_equations_4_6_and_7_by_hand() -> None:
    # 2 + 5 (3 − 2) = 7 and −1 + 5 (1 − (−1)) = 9.
    uncond, cond = np.array([2.0, -1.0]), np.array([3.0, 1.0])
    np.testing.assert_array_equal(classifier_free_guidance(uncond, cond, 5.0), [7.0, 9.0])
    # 2 + 1.5 (4 − 2) = 5 and 1 + 1.5 (0 − 1) = −0.5.
    base, lora = np.array([2.0, 1.0]), np.array([4.0, 0.0])
    np.testing.assert_array_equal(autolora_guidance(base, lora, 1.5), [5.0, -0.5])
    # ε^{w1} = 1 + 3 (2 − 1) = 4; ε_LoRA^{w2} = 3 + 2 (5 − 3) = 7; 4 + 1.5 (7 − 4) = 8.5.
    assert equation_7(2.0, 1.0, 5.0, 3.0, gamma=1.5, w1=3.0, w2=2.0) == 8.5


@pytest.mark.parametrize("seed", range(5))
def test_scales_one_and_zero_give_a_single_branch(seed: int) -> None:
    first, second = draw(seed, 2)
    for equation in (classifier_free_guidance, autolora_guidance):
        np.testing.assert_allclose(equation(first, second, 1.0), second, atol=1e-14)
        np.testing.assert_array_equal(equation(first, second, 0.0), first)


def test_equation_7_is_linear_in_the_predictions() -> None:
    first, second = draw(1, 4), draw(2, 4)
    joint = [2.0 * a - 3.0 * b for a, b in zip(first, second, strict=True)]
    for scales in itertools.product((0.0, 1.5), (1.0, 4.0), (0.5,)):
        apart = 2.0 * equation_7(*first, *scales) - 3.0 * equation_7(*second, *scales)
        np.testing.assert_allclose(equation_7(*joint, *scales), apart, atol=1e-12)


def test_equation_7_of_equal_predictions_returns_them() -> None:
    """Its coefficients sum to 1."""
    (prediction,) = draw(3, 1)
    for scales in TRIPLES:
        np.testing.assert_array_equal(equation_7(*[prediction] * 4, *scales), prediction)


def test_only_predictions_with_a_nonzero_coefficient_are_needed() -> None:
    """The coefficient of each prediction is equation (7) of its unit vector, in exact fractions."""
    units = [[Fraction(int(i == j)) for j in range(4)] for i in range(4)]
    for scales in TRIPLES:
        coefficients = [equation_7(*unit, *map(Fraction, scales)) for unit in units]
        needed = tuple(name for name, c in zip(NAMES, coefficients, strict=True) if c != 0)
        assert autolora_predictions(*scales) == needed, scales


def test_scales_are_compared_up_to_rounding() -> None:
    assert sum([0.1] * 10) != 1.0
    assert autolora_predictions(sum([0.1] * 10), 5.0, 5.0) == ("lora_cond", "lora_uncond")
    assert cfg_terms(sum([0.1] * 10)) == ("cond",)
    assert cfg_terms(1.001) == ("cond", "uncond")


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 28, 50, 100, 999])
def test_two_adjacent_intervals_cover_each_step_once(num_steps: int) -> None:
    for percent in range(101):
        edge = percent / 100
        for step in range(num_steps):
            before = in_interval(step, num_steps, 0.0, edge)
            assert before != in_interval(step, num_steps, edge, 1.0), (edge, step)


@pytest.mark.parametrize("num_steps", [7, 10, 50, 100])
def test_interval_edges_equal_those_of_exact_arithmetic(num_steps: int) -> None:
    """In floating point 0.29 · 100 is 28.999…96; the first guided step is 29 all the same."""
    for percent in range(101):
        first = Fraction(percent, 100) * num_steps // 1
        guided = [s for s in range(num_steps) if in_interval(s, num_steps, percent / 100, 1.0)]
        assert guided == list(range(first, num_steps)), percent


def test_the_interval_includes_start_and_excludes_stop() -> None:
    assert [s for s in range(10) if in_interval(s, 10, 0.2, 0.6)] == [2, 3, 4, 5]
    assert [s for s in range(7) if in_interval(s, 7, 0.2, 0.6)] == [1, 2, 3]  # ⌊1.4⌋ … ⌊4.2⌋ − 1
    assert not any(in_interval(s, 10, 0.3, 0.3) for s in range(10))
