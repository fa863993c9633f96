"""Equation (8): its definition, known values, invariances and undefined cases."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from autolora_eval.scoring.diversity import diversity, jackknife_standard_error


def features(seed: int, n: int, d: int) -> np.ndarray:
    """Vectors around a common one, as those of one prompt's images are."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=d) + rng.normal(size=(n, d))


def definition(matrix: np.ndarray) -> float:
    """Equation (8) as it is written: a sum over pairs of cosines."""
    x = np.asarray(matrix, dtype=np.float64)
    n = len(x)
    cosines = [
        float(x[i] @ x[j] / (np.linalg.norm(x[i]) * np.linalg.norm(x[j])))
        for i, j in itertools.combinations(range(n), 2)
    ]
    return 1.0 - 2.0 / (n * (n - 1)) * float(np.sum(cosines))


SHAPES = [(2, 1), (2, 8), (3, 2), (5, 1), (16, 48), (33, 7), (60, 1536)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_closed_form_equals_the_definition(seed: int, n: int, d: int) -> None:
    matrix = features(seed, n, d)
    result = diversity(matrix)
    assert result.value == pytest.approx(definition(matrix), abs=1e-10)
    assert (result.n, result.reason) == (n, None)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        *((np.tile(features(0, 1, 1536), (n, 1)), 0.0) for n in (2, 3, 16, 512)),
        *((np.eye(n) * 7.0, 1.0) for n in (2, 3, 16)),
        (np.outer([1.0, -3.0], np.arange(1.0, 21.0)), 2.0),
        # A simplex has the maximum: all cosines are −1/(N−1).
        *((np.eye(n) - 1.0 / n, 1.0 + 1.0 / (n - 1)) for n in (3, 4, 9)),
    ],
)
def test_identical_orthogonal_opposite_and_simplex_sets(matrix, expected) -> None:
    value = diversity(matrix).value
    assert value == pytest.approx(expected, abs=1e-12)
    assert value >= 0.0, "a set cannot be less diverse than one image repeated, even by rounding"


def test_invariant_to_order_and_length_of_rows() -> None:
    matrix = features(4, 12, 30)
    rng = np.random.default_rng(5)
    lengths = 10.0 ** rng.uniform(-6, 6, size=(12, 1))
    changed = diversity((matrix * lengths)[rng.permutation(12)])
    assert changed.value == pytest.approx(diversity(matrix).value, abs=1e-12)
    assert changed.standard_error == pytest.approx(diversity(matrix).standard_error, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e170, 1e300])
def test_very_large_and_small_vectors_do_not_overflow(scale: float) -> None:
    matrix = features(4, 6, 30)
    expected = diversity(matrix).value
    assert diversity(matrix * scale).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_low_precision_features_are_summed_in_float64(dtype: type) -> None:
    """The squares of these overflow float16, and their sum loses digits in float32."""
    low = (features(6, 64, 1536) * 300.0).astype(dtype)
    result = diversity(low)
    exact = diversity(low.astype(np.float64))
    assert result == exact
    assert result.value == pytest.approx(definition(low), abs=1e-10)


def spoilt(bad: list[float]) -> np.ndarray:
    matrix = features(0, 5, 4)
    matrix[3] = bad
    return matrix


BAD = ([0.0] * 4, [np.nan] * 4, [1.0, np.inf, 1.0, 1.0], [-np.inf] * 4)
UNDEFINED = [
    *((np.ones((n, 5)), f"needs at least 2 images, has {n}") for n in (0, 1)),
    *((spoilt(bad), "a feature vector is zero or not finite") for bad in BAD),
    (np.ones((4, 0)), "a feature vector is zero or not finite"),
]


@pytest.mark.parametrize(("matrix", "reason"), UNDEFINED)
def test_undefined_values_have_a_reason(matrix: np.ndarray, reason: str) -> None:
    result = diversity(matrix)
    assert (result.value, result.standard_error, result.n) == (None, None, len(matrix))
    assert result.reason == reason


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_other_shapes_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \[N, D\]"):
        diversity(np.ones(shape))


@pytest.mark.parametrize(("n", "d"), [(3, 1), (3, 8), (4, 2), (16, 48), (40, 300)])
def test_leave_one_out_values_equal_recomputation(n: int, d: int) -> None:
    matrix = features(n, n, d)
    without = np.array([definition(np.delete(matrix, i, axis=0)) for i in range(n)])
    expected = np.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2))
    assert diversity(matrix).standard_error == pytest.approx(expected, abs=1e-10)


def test_two_images_have_no_standard_error() -> None:
    result = diversity(features(0, 2, 4))
    assert result.standard_error is None
    assert result.value is not None


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    """Leaving out x_i moves a mean by (x̄ − x_i)/(n−1), so the jackknife is s/√n exactly."""
    x = np.random.default_rng(0).normal(size=30)
    without = (x.sum() - x) / 29
    assert jackknife_standard_error(without) == pytest.approx(
        x.std(ddof=1) / np.sqrt(30), rel=1e-12
    )


@pytest.mark.parametrize("block", [1, 7 * 48, 10**9])
def test_the_size_of_a_block_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one row, of seven rows and a rest, and of all."""
    matrix = features(3, 16, 48)
    expected = diversity(matrix)
    monkeypatch.setattr("autolora_eval.scoring.diversity.BLOCK", block)
    found = diversity(matrix)
    assert (found.value, found.standard_error) == pytest.approx(
        (expected.value, expected.standard_error), rel=1e-10
    )


def test_memory_besides_the_features_does_not_grow_with_their_dimension() -> None:
    """Blocks, and a few numbers an image: less than the features themselves."""

    def peak(n: int, d: int) -> int:
        matrix = np.ones((n, d), dtype=np.float32)
        tracemalloc.start()
        try:
            diversity(matrix)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(4000, 64), peak(4000, 1024)
    assert large < 4000 * 1024 * 4 / 4
    assert large < small + 200_000
