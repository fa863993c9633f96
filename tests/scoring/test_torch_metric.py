"""The torchmetrics metric gives equation (8) for any batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autolora_eval import PairwiseCosineDiversity, diversity

pytestmark = pytest.mark.model


def features(n: int = 12, dim: int = 9) -> torch.Tensor:
    rng = np.random.default_rng(n)
    return torch.from_numpy(rng.normal(size=dim) + rng.normal(size=(n, dim)))


def measured(metric: PairwiseCosineDiversity, *batches: torch.Tensor) -> float:
    for batch in batches:
        metric.update(batch)
    return float(metric.compute())


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 7], [11, 1], [0, 12, 0]])
@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e300])
def test_any_batches_of_any_length_give_equation_8(sizes: list[int], scale: float) -> None:
    x = features()
    found = measured(PairwiseCosineDiversity(9), *(x * scale).split(sizes))
    assert found == pytest.approx(diversity(x.numpy()).value, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_features_are_summed_in_float64(dtype: torch.dtype) -> None:
    x = (features(64) * 300).to(dtype)
    exact = diversity(x.double().numpy()).value
    assert measured(PairwiseCosineDiversity(9), *x.split(10)) == pytest.approx(exact, abs=1e-12)


def test_forward_returns_the_batch_value_and_compute_the_total() -> None:
    x = features()
    metric = PairwiseCosineDiversity(9)
    for batch in x.split(4):
        own = diversity(batch.numpy()).value
        assert float(metric(batch)) == pytest.approx(own, abs=1e-12)
    assert float(metric.compute()) == pytest.approx(diversity(x.numpy()).value, abs=1e-12)


def test_reset_clears_the_state() -> None:
    metric = PairwiseCosineDiversity(9)
    metric.update(features(5) * -1)
    metric.reset()
    assert torch.isnan(metric.compute())
    x = features()
    assert measured(metric, x) == pytest.approx(diversity(x.numpy()).value, abs=1e-12)


def test_states_of_two_processes_are_summed() -> None:
    x = features()
    parts = [PairwiseCosineDiversity(9) for _ in range(2)]
    for part, batch in zip(parts, x.split(6), strict=True):
        part.update(batch)
    whole = PairwiseCosineDiversity(9)
    whole.total = parts[0].total + parts[1].total
    whole.count = parts[0].count + parts[1].count
    assert float(whole.compute()) == pytest.approx(diversity(x.numpy()).value, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 16, 512])
def test_identical_images_have_none(n: int) -> None:
    value = measured(PairwiseCosineDiversity(9), features(1).repeat(n, 1))
    assert value == pytest.approx(0.0, abs=1e-12)
    assert value >= 0.0, "a set cannot be less diverse than one image repeated, even by rounding"


def spoilt(bad: float) -> torch.Tensor:
    x = features()
    x[3] = bad
    return x


UNDEFINED = [features(0), features(1), *map(spoilt, (0.0, np.nan, np.inf))]


@pytest.mark.parametrize("x", UNDEFINED, ids=["none", "one", "zero", "nan", "inf"])
def test_too_few_images_and_zero_or_non_finite_vectors_give_nan(x: torch.Tensor) -> None:
    assert diversity(x.numpy()).value is None
    assert np.isnan(measured(PairwiseCosineDiversity(9), *x.split(5)))


def test_metric_is_differentiable() -> None:
    x = features().requires_grad_()
    PairwiseCosineDiversity(9)(x).backward()
    step = 1e-6
    changed = x.detach().clone()
    changed[2, 4] += step
    slope = (diversity(changed.numpy()).value - diversity(x.detach().numpy()).value) / step
    assert float(x.grad[2, 4]) == pytest.approx(slope, abs=1e-5)


def test_wrong_type_or_shape_is_reported() -> None:
    metric = PairwiseCosineDiversity(3)
    with pytest.raises(ValueError, match=r"expected features of shape \[B, 3\], got \[2, 4\]"):
        metric.update(torch.ones(2, 4))
    with pytest.raises(TypeError, match=r"got list: use torch\.as_tensor"):
        metric.update([[1.0, 2.0, 3.0]])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_function_accepts_tensors(dtype: torch.dtype) -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=dtype, requires_grad=True)
    assert diversity(features).value == 1.0  # type: ignore[arg-type]
