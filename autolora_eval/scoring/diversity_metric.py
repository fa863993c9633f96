"""The declaration of a diversity metric in addition to equation (8), and its lookup by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autolora_eval._errors import UsageError
from autolora_eval._text import pluralize
from autolora_eval.plugins.registry import Origin, Registry
from autolora_eval.plugins.third_party import source_fingerprint
from autolora_eval.runs.columns import is_taken_in_diversity
from autolora_eval.runs.records import DiversityMetricRecord
from autolora_eval.scoring.diversity import Diversity, Floats, as_matrix, sum_of_units

# A function may compute in float32: 1 − cos of two equal vectors can be −1e-7.
_ROUNDING = 1e-6
_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,39}")
_NEEDS_REFERENCE = (
    "compares with a reference image set. Name the method that makes it: add "
    "'diversity_reference: …' beside 'diversity'. Imported images can be such a method."
)


@dataclass(frozen=True, kw_only=True)
class DiversityMetric:
    """A metric of how much the images of one prompt differ.

    Attributes:
        name: the name in a benchmark file and of the column: lower-case letters, digits and `_`.
        display_name: the name in figures and reports.
        label: a short name for table heads.
        function: maps the features of one prompt's images, float64 [N, D], finite, in any order, to
            a float. With `against_reference` it gets the features of the reference images,
            float64 [M, D], as a second argument.
        higher_is_better: the direction of the metric.
        low: lower bound of its values.
        high: upper bound of its values; infinite by default.
        equation: the formula as text.
        source: the paper or library.
        least_images: the metric is undefined for fewer images.
        against_reference: whether it compares with reference images: those of the same prompt, of
            the method that the benchmark names as `diversity_reference`.
        least_reference: the metric is undefined for fewer reference images.
        code: origin of third-party code: distribution and hash of the sources; empty if built in.
    """

    name: str
    display_name: str
    label: str
    function: Callable[..., float]
    higher_is_better: bool = True
    low: float
    high: float = math.inf
    equation: str
    source: str
    least_images: int = 2
    against_reference: bool = False
    least_reference: int = 1
    code: Mapping[str, str] = field(default_factory=dict)

    def __call__(
        self, features: npt.ArrayLike, reference: npt.ArrayLike | None = None
    ) -> Diversity:
        """Return the metric of a set of feature vectors.

        Args:
            features: float [N, D], one row for each image.
            reference: float [M, D], features of the reference images; used only by metrics with
                `against_reference`.

        Returns:
            The value, without a standard error. `value` is None, with a reason, if there are too
            few images, if a vector is zero or not finite, or if `function` fails or returns
            anything but a finite number from `low` to `high`. Rounding may exceed them by 1e-6.

        Raises:
            ValueError: if `features` or `reference` is not a matrix.
        """
        arguments = [np.asarray(as_matrix(features), dtype=np.float64)]
        n = len(arguments[0])
        if self.against_reference:
            others = np.zeros((0, 1)) if reference is None else reference
            arguments.append(np.asarray(as_matrix(others), dtype=np.float64))
        reason = self._undefined_reason(*arguments)
        if reason is not None:
            return Diversity(None, None, n, reason)
        try:
            value = float(self.function(*arguments))
        except (Exception, SystemExit) as error:  # third-party code must not stop the run
            message = " ".join(str(error).split())
            return Diversity(None, None, n, f"{self.name}: {type(error).__name__}: {message:.200}")
        reason = self._invalid_reason(value)
        return Diversity(value if reason is None else None, None, n, reason)

    def _invalid_reason(self, value: float) -> str | None:
        """Return why a value of the function cannot be used; None if it can."""
        if not math.isfinite(value):
            return f"{self.name} is {value}"
        ends = (self.low, self.high)
        close = (math.isclose(value, end, rel_tol=_ROUNDING, abs_tol=_ROUNDING) for end in ends)
        if self.low <= value <= self.high or any(close):
            return None
        return (
            f"{self.name} is {value:.10g}; expected a value from {self.low:g} to {self.high:g}, "
            "its declared range. Correct low and high of the metric, or its function"
        )

    def _undefined_reason(self, matrix: Floats, reference: Floats | None = None) -> str | None:
        """Return why the metric is undefined for these features; None if it is defined."""
        if len(matrix) < self.least_images:
            return f"needs at least {pluralize(self.least_images, 'image')}, has {len(matrix)}"
        if reference is not None and len(reference) < self.least_reference:
            least = pluralize(self.least_reference, "image")
            return f"needs at least {least} of the reference, which has {len(reference)}"
        matrices = [matrix] if reference is None else [matrix, reference]
        if not all(one.shape[1] and np.isfinite(sum_of_units(one)).all() for one in matrices):
            return "a feature vector is zero or not finite"
        return None

    def record(self) -> DiversityMetricRecord:
        """Return the declaration for the manifest; an infinite bound is None."""
        values = {name: getattr(self, name) for name in DiversityMetricRecord.model_fields}
        for bound in ("low", "high"):
            values[bound] = values[bound] if math.isfinite(values[bound]) else None
        return DiversityMetricRecord(**values | {"code": dict(self.code)})


def _read(found: object, origin: Origin) -> DiversityMetric:
    name, distribution = origin.name, origin.distribution
    if not isinstance(found, DiversityMetric):
        raise UsageError(
            f"'{name}' is {type(found).__name__}, not a diversity metric; expected an instance "
            "of autolora_eval.scoring.diversity_metric.DiversityMetric."
        )
    _check_name(found.name)
    _check_values(found)
    own = {"distribution": distribution} if distribution else {}
    return replace(found, code={**own, **source_fingerprint(found.function)})


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _COLUMN.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a diversity metric, since it names a column of the "
            "tables: expected up to 40 lower-case letters, digits and '_', the first a letter."
        )
    if is_taken_in_diversity(name):
        raise UsageError(
            f"'{name}' cannot be the name of a diversity metric: the tables use that column name. "
            "Choose another one that does not begin with 'div_' or end in '_low', '_high', "
            "'_reason' or '_published'."
        )


def _check_values(metric: DiversityMetric) -> None:
    """Check the types and ranges of the declaration before anything is generated."""
    expected = {"function": "a callable", "low": "a number", "high": "a number"}
    expected |= dict.fromkeys(("least_images", "least_reference"), "a whole number from 1")
    expected |= dict.fromkeys(("display_name", "label", "equation", "source"), "text")
    valid: dict[str, Callable[[Any], bool]] = {
        "a callable": callable,
        "a number": lambda v: type(v) in (int, float) and not math.isnan(v),
        "a whole number from 1": lambda v: type(v) is int and v >= 1,
        "text": lambda v: isinstance(v, str),
    }
    title = f"the diversity metric '{metric.name}'"
    for key, wanted in expected.items():
        value = getattr(metric, key)
        if not valid[wanted](value):
            raise UsageError(f"{title} has {key}={value!r:.80}; expected {wanted}.")
    if metric.low >= metric.high:
        raise UsageError(
            f"{title} has low={metric.low} and high={metric.high}; expected low < high."
        )


METRICS = Registry(
    noun="diversity metric",
    package="autolora_eval.scoring.metrics",
    attribute="METRIC",
    group="autolora_eval.diversity_metrics",
    example="my_package.METRIC",
    read=_read,
)


def find_metrics(
    names: Sequence[str], folders: Sequence[Path] = (), has_reference: bool = False
) -> tuple[dict[str, DiversityMetric], list[tuple[int, str]]]:
    """Return the metrics that a benchmark file names, and the problems with the others.

    Args:
        names: names or dotted paths.
        folders: folders that are searched for modules that are not installed.
        has_reference: whether the benchmark names a `diversity_reference`.

    Returns:
        The metrics by the given name; the index of each invalid name with a message.
    """
    found: dict[str, DiversityMetric] = {}
    problems = []
    for index, name in enumerate(names):
        try:
            metric = METRICS.find(name, folders)
        except UsageError as error:
            problems.append((index, str(error)))
            continue
        twice = [other for other, known in found.items() if known.name == metric.name]
        if twice:
            problems.append((index, f"'{name}' and '{twice[0]}' have the same column; remove one."))
        elif metric.against_reference and not has_reference:
            problems.append((index, f"'{name}' {_NEEDS_REFERENCE}"))
        else:
            found[name] = metric
    return found, problems


def installed_metric(name: str) -> DiversityMetric | None:
    """Return the metric that a manifest names if it is built in or installed, else None."""
    try:
        return METRICS.find(name)
    except UsageError:
        return None
