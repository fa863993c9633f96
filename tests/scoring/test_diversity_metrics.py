"""Diversity metrics other than equation (8): closed forms, invariances, invalid declarations."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packages import write_package

from autolora_eval._errors import UsageError
from autolora_eval.scoring.diversity import diversity
from autolora_eval.scoring.diversity_metric import METRICS, DiversityMetric, find_metrics
from autolora_eval.scoring.metrics.coverage import K, coverage

BUILT_IN = METRICS.built_in()
NAMES = ("vendi", "vendi_2", "mean_distance", "coverage")
VENDI, VENDI_2, DISTANCE, COVERAGE = (BUILT_IN[name] for name in NAMES)
ALONE = [metric for metric in BUILT_IN.values() if not metric.against_reference]


def drawn(n: int = 7, dim: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)) + 0.5


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b))


def value(metric: DiversityMetric, features: object) -> float:
    found = metric(features)
    assert found.value is not None, found.reason
    return found.value


# The Vendi scores of order 1 and 2.


@pytest.mark.parametrize("sizes", [(2,), (9,), (1, 1), (1,) * 16, (5, 5), (5, 3, 2)])
def test_vendi_of_clusters_is_the_effective_number_of_clusters(sizes: tuple[int, ...]) -> None:
    """1 for equal images, and their number for orthogonal ones."""
    features = np.repeat(np.eye(len(sizes), len(sizes) + 3), sizes, axis=0)
    shares = [size / sum(sizes) for size in sizes]
    entropy = -sum(p * math.log(p) for p in shares)
    assert value(VENDI, features) == pytest.approx(math.exp(entropy), abs=1e-9)
    assert value(VENDI_2, features) == pytest.approx(1 / sum(p * p for p in shares))


@pytest.mark.parametrize(("n", "dim"), [(7, 5), (5, 7), (2, 5)])
def test_vendi_equals_its_definition_by_the_kernel_matrix(n: int, dim: int) -> None:
    features = drawn(n, dim)
    kernel = np.asarray([[cosine(a, b) / n for b in features] for a in features])
    # exp(−tr(K log K)) by its eigenvalues as those of a general matrix, not of a symmetric one.
    found = [max(e.real, 0.0) for e in np.linalg.eigvals(kernel)]
    expected = math.exp(-sum(e * math.log(e) for e in found if e > 1e-15))
    assert value(VENDI, features) == pytest.approx(expected, rel=1e-9)
    second = value(VENDI_2, features)
    assert second == pytest.approx(1 / math.fsum((kernel**2).flatten()), rel=1e-12)
    assert second < value(VENDI, features) - 1e-3, "equal only where all shares are"


def test_vendi_does_not_change_if_every_image_is_repeated() -> None:
    assert value(VENDI, np.repeat(drawn(), 2, axis=0)) == pytest.approx(value(VENDI, drawn()))


# The mean distance.


def test_mean_distance_of_equal_orthogonal_and_opposite_images() -> None:
    assert value(DISTANCE, np.tile(drawn(1), (5, 1))) == pytest.approx(0.0, abs=1e-7)
    assert value(DISTANCE, np.eye(5)) == pytest.approx(math.sqrt(2.0))
    assert value(DISTANCE, [[1.0, 2.0], [-2.0, -4.0]]) == pytest.approx(2.0)


def test_mean_distance_equals_its_definition_over_pairs() -> None:
    units = [row / math.sqrt(math.fsum(row * row)) for row in drawn()]
    pairs = [math.dist(a, b) for a, b in itertools.combinations(units, 2)]
    assert value(DISTANCE, drawn()) == pytest.approx(math.fsum(pairs) / len(pairs), rel=1e-9)


def test_half_the_squared_mean_distance_is_at_most_equation_8() -> None:
    found = diversity(drawn()).value
    assert found is not None
    assert value(DISTANCE, drawn()) ** 2 / 2 < found - 1e-6
    equally_far = diversity(np.eye(6)).value
    assert value(DISTANCE, np.eye(6)) ** 2 / 2 == pytest.approx(equally_far)


# Properties of each shipped metric without reference images.


@pytest.mark.parametrize("metric", ALONE, ids=lambda m: m.name)
class TestShipped:
    def test_declaration_is_complete(self, metric: DiversityMetric) -> None:
        texts = (metric.display_name, metric.label, metric.equation, metric.source)
        assert all(texts)
        assert metric.low < metric.high

    def test_invariant_to_order_and_vector_length(self, metric: DiversityMetric) -> None:
        features = drawn()
        expected = value(metric, features)
        for seed in range(5):
            rng = np.random.default_rng(seed)
            changed = rng.permutation(features) * rng.uniform(1e-3, 1e3, size=(len(features), 1))
            assert value(metric, changed) == pytest.approx(expected, rel=1e-9)

    def test_invariant_to_rotation(self, metric: DiversityMetric) -> None:
        turn = np.linalg.qr(drawn(5, 5, seed=3))[0]
        assert value(metric, drawn() @ turn) == pytest.approx(value(metric, drawn()), rel=1e-9)

    def test_increases_with_spread(self, metric: DiversityMetric) -> None:
        centre = np.ones(5)
        found = [value(metric, centre + s * (drawn() - drawn().mean(0))) for s in (0.1, 0.5, 2.0)]
        assert (found == sorted(found)) == metric.higher_is_better
        assert len(set(found)) == 3

    def test_values_lie_in_the_declared_range(self, metric: DiversityMetric) -> None:
        alike, apart = np.ones((4, 3)), np.eye(4)
        for features in (drawn(), alike, apart, [[1.0, 0.0], [-1.0, 0.0]]):
            assert metric.low - 1e-9 <= value(metric, features) <= metric.high + 1e-9

    def test_undefined_for_one_image_and_for_zero_vectors(self, metric: DiversityMetric) -> None:
        few = metric(drawn(1))
        assert (few.value, few.reason) == (None, "needs at least 2 images, has 1")
        for wrong in (0.0, np.nan, np.inf):
            features = drawn()
            features[2] = wrong
            found = metric(features)
            assert found.reason == "a feature vector is zero or not finite"
            assert found.value is None

    def test_features_must_be_a_matrix(self, metric: DiversityMetric) -> None:
        with pytest.raises(ValueError, match=r"shape \[N, D\], got \[5\]"):
            metric(np.ones(5))


# Coverage of reference images.


def written_out(features: np.ndarray, reference: np.ndarray, k: int) -> float:
    """The definition, distance by distance."""
    unit = [[row / math.sqrt(math.fsum(row * row)) for row in m] for m in (features, reference)]
    images, others = unit
    covered = 0
    for place, other in enumerate(others):
        rest = [one for index, one in enumerate(others) if index != place]
        radius = sorted(math.dist(other, one) for one in rest)[k - 1]
        covered += min(math.dist(other, image) for image in images) <= radius
    return covered / len(others)


@pytest.mark.parametrize(("n", "m", "k"), [(3, 9, 2), (12, 8, 5), (1, 6, 5), (7, 7, 1)])
def test_coverage_equals_its_definition(n: int, m: int, k: int) -> None:
    for seed in range(10):
        features, reference = drawn(n, 4, seed), drawn(m, 4, seed + 100)
        assert coverage(features, reference, k) == written_out(features, reference, k)


def test_set_with_repeated_images_covers_itself() -> None:
    reference = np.repeat(drawn(4, 4), 3, axis=0)
    assert COVERAGE(reference, reference).value == 1.0
    assert coverage(drawn(4, 4), reference, k=2) == 1.0  # whose neighbourhoods are single points


def test_one_of_two_distant_clusters_covers_half() -> None:
    rng = np.random.default_rng(0)
    clusters = [centre + 0.01 * rng.normal(size=(8, 3)) for centre in np.eye(3)[:2]]
    assert COVERAGE(clusters[0], np.concatenate(clusters)).value == 0.5
    assert COVERAGE(np.eye(3)[2:], np.concatenate(clusters)).value == 0.0


@pytest.mark.parametrize(("n", "m", "k"), [(8, 12, 3), (16, 16, 5), (6, 20, 5)])
@pytest.mark.parametrize("dim", [3, 40])
def test_expected_coverage_for_equal_distributions_matches_the_paper(n, m, k, dim) -> None:
    rng = np.random.default_rng(n * m + dim)
    trials = 800
    found = [coverage(rng.normal(size=(n, dim)), rng.normal(size=(m, dim)), k) for _ in range(800)]
    expected = 1 - math.prod((m - i) / (m + n - i) for i in range(1, k + 1))
    error = np.std(found, ddof=1) / math.sqrt(trials)
    assert abs(np.mean(found) - expected) < 4 * error
    assert error < 0.01


def test_coverage_does_not_decrease_with_more_images() -> None:
    reference, features = drawn(20, 4, 1), drawn(30, 4, 2)
    found = [coverage(features[:n], reference) for n in range(1, 31)]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_coverage_is_invariant_to_order_length_and_rotation() -> None:
    features, reference = drawn(6, 4, 1), drawn(12, 4, 2)
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    lengths = rng.uniform(1e-3, 1e3, size=(18, 1))
    changed = [rng.permutation(features) * lengths[:6] @ turn, rng.permutation(reference) @ turn]
    assert coverage(changed[0], changed[1] * lengths[6:]) == coverage(features, reference)


def test_coverage_is_undefined_for_too_few_reference_images() -> None:
    few = COVERAGE(drawn(3, 4), drawn(K, 4))
    assert few.value is None
    assert few.reason == f"needs at least {K + 1} images of the reference, which has {K}"
    none = COVERAGE(drawn(3, 4))
    assert none.reason == f"needs at least {K + 1} images of the reference, which has 0"
    assert COVERAGE(np.zeros((0, 4)), drawn(9, 4)).reason == "needs at least 1 image, has 0"
    broken = drawn(9, 4)
    broken[4] = 0.0
    assert COVERAGE(drawn(3, 4), broken).reason == "a feature vector is zero or not finite"


# Third-party metrics.

OWN = """
import numpy as np
from autolora_eval.scoring.diversity_metric import DiversityMetric


def widest(features):
    return {body}


METRIC = DiversityMetric(
    name={name!r}, display_name="Widest", label="Wide", function=widest, low=0.0,
    equation="max", source="ours",
)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that modules are found in, as installed packages are."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(folder: Path, module: str, name: str = "widest", body: str = "1.0") -> str:
    (folder / f"{module}.py").write_text(OWN.format(name=name, body=body))
    return f"{module}.METRIC"


def test_third_party_metric_is_found_by_dotted_path_and_hashed(site) -> None:
    metric = METRICS.find(write(site, "metric_a", body="np.ptp(features)"))
    assert value(metric, [[1.0, 0.0], [0.0, 4.0]]) == 4.0
    assert len(metric.code["sha256"]) == 64
    other = METRICS.find(write(site, "metric_b", body="np.ptp(features) + 1"))
    assert other.code["sha256"] != metric.code["sha256"]


def test_package_registers_a_metric_by_entry_point(site: Path) -> None:
    entry = "[autolora_eval.diversity_metrics]\nwide = metric_c:METRIC\nbad = metric_d:METRIC\n"
    write_package(site, "wide-metrics", entry, metric_c=OWN.format(name="wide", body="1.0"))
    assert METRICS.find("wide").code["distribution"] == "wide-metrics 1.0"
    with pytest.raises(UsageError, match=r"'bad' of wide-metrics 1\.0 .* is broken: .*metric_d"):
        METRICS.find("bad")
    assert list(METRICS.built_in()) == list(BUILT_IN), "a broken one takes no other down"
    with pytest.raises(UsageError, match=r"unknown diversity metric 'wid'\. Did you mean 'wide'?"):
        METRICS.find("wid")


TABLES = ("diversity", "n_images", "n_undefined_prompts", "lora_scale", "nfe", "method", "guider")
PROMPTS = ("n", "reason", "standard_error", "reference_cell", "prompt_index")
BESIDE = ("diversity_low", "widest_high", "widest_reason", "pc_published", "pc_prompt_mean")


@pytest.mark.parametrize("name", ["Widest", "div_pc", "a b", "", *TABLES, *PROMPTS, *BESIDE])
def test_invalid_name_is_rejected(site: Path, name: str) -> None:
    module = f"metric_named_{len(name)}_{name.encode().hex()}"
    with pytest.raises(UsageError, match="cannot be the name"):
        METRICS.find(write(site, module, name=name))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("low=0.0, function=None", "has function=None; expected a callable"),
        ("low='x'", "has low='x'; expected a number"),
        ("low=1.0, high=1.0", "expected low < high"),
        ("low=0.0, least_images='3'", "has least_images='3'; expected a whole number from 1"),
        ("low=0.0, least_reference=0", "has least_reference=0; expected a whole number from 1"),
    ],
)
def test_invalid_value_is_rejected(site: Path, given: str, message: str) -> None:
    path = write(site, f"metric_g{len(given)}")
    file = site / f"{path.split('.')[0]}.py"
    text = file.read_text().replace("low=0.0", given)
    file.write_text(text.replace("function=widest, ", "") if "function" in given else text)
    with pytest.raises(UsageError, match=message):
        METRICS.find(path)


def test_other_object_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"'math\.pi' is float, not a diversity metric"):
        METRICS.find("math.pi")


FAILING = {
    "1 / 0": "widest: ZeroDivisionError: division by zero",
    "np.nan": "widest is nan",
    "exit(0)": "widest: SystemExit: 0",
}


@pytest.mark.parametrize(("body", "reason"), FAILING.items())
def test_failing_function_gives_no_value_but_a_reason(site: Path, body: str, reason: str) -> None:
    found = METRICS.find(write(site, f"metric_e{len(body)}", body=body))(drawn())
    assert (found.value, found.reason) == (None, reason)


@pytest.mark.parametrize("given", [1.5, -0.25, 1.00001])
def test_value_outside_the_declared_range_gives_no_value_but_a_reason(given: float) -> None:
    found = replace(DISTANCE, function=lambda _: given, high=1.0)(drawn())
    assert found.value is None
    assert found.reason == (
        f"mean_distance is {given}; expected a value from 0 to 1, its declared range. "
        "Correct low and high of the metric, or its function"
    )


@pytest.mark.parametrize("given", [-1e-7, 0.0, 1.0, 1.0 + 1e-7])
def test_rounding_at_the_ends_of_the_range_keeps_the_value(given: float) -> None:
    rounded = replace(DISTANCE, function=lambda _: given, high=1.0)
    assert value(rounded, drawn()) == given


def test_two_metrics_with_one_column_are_rejected(site: Path) -> None:
    path = write(site, "metric_f", name="vendi")
    found, problems = find_metrics(["vendi", path, "vendi"])
    assert list(found) == ["vendi"]
    assert [place for place, _ in problems] == [1, 2]
    assert "have the same column" in problems[0][1]


# In a benchmark file.


def test_misspelt_metric_is_rejected_at_load(problem, benchmark_data) -> None:
    message = problem(benchmark_data | {"diversity": ["mean_distance", "vendy"]})
    assert "diversity.1: unknown diversity metric 'vendy'. Did you mean 'vendi'?" in message


def test_metric_with_the_name_of_a_score_is_rejected(problem, benchmark_data, workplace) -> None:
    path = write(workplace, "metric_beside", name="pc")
    message = problem(benchmark_data | {"diversity": [path]})
    assert f"'{path}' and the rubric's score 'pc' would share a column" in message


def test_module_beside_the_benchmark_is_found(planned, workplace) -> None:
    path = write(workplace, "metric_beside_too")
    found = planned(diversity=["vendi", path]).benchmark.diversity
    assert {given: metric.name for given, metric in found.items()} == {
        "vendi": "vendi",
        path: "widest",
    }
