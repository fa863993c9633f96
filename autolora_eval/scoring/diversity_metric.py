"""What a measure of diversity beside equation (8) declares, and how one is found by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autolora_eval._errors import UsageError
from autolora_eval._files import Json
from autolora_eval._text import pluralize
from autolora_eval.plugins.registry import Registry
from autolora_eval.plugins.third_party import code_of
from autolora_eval.runs.columns import is_no_measure
from autolora_eval.scoring.diversity import Diversity, Floats, as_array, unit_vectors

_KEYS = {"name", "display_name", "label", "higher_is_better", "source"}
_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,39}")
_WANTS_REFERENCE = (
    "compares with a reference set: name the method whose images are it, 'diversity_reference: …', "
    "beside 'diversity'. Images made elsewhere may be one."
)


@dataclass(frozen=True, kw_only=True)
class DiversityMetric:
    """A number for how much one prompt's images differ.

    Attributes:
        name: the word for it in a benchmark file, and its column: lower case, digits and `_`.
        display_name: in figures and reports.
        label: short form for table heads.
        function: features, float64 [N, D], finite, one row an image, in any order → the measure;
            where it is taken against a reference, (features, those of the reference, float64
            [M, D]) → the measure.
        higher_is_better: direction.
        low: least possible value.
        high: greatest possible value.
        equation: the formula, as text.
        source: paper or library.
        least_images: below so many it is undefined.
        against_reference: whether it compares with a reference set, the images of the method that
            the benchmark calls `diversity_reference`, of the same prompt.
        least_reference: below so many images of the reference it is undefined.
        code: what of other people's code it is: distribution, hash of the sources; empty for what
            is built in.
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
        """Return the measure of a set of feature vectors.

        Args:
            features: float [N, D], one row an image.
            reference: float [M, D], those of the reference, for a measure that compares with one.

        Returns:
            The value without a standard error; None with a reason where it is undefined: too few
            images, a vector that is zero or not finite, or a function that fails or returns
            something else than a finite number.

        Raises:
            ValueError: `features` or `reference` is not a matrix.
        """
        given = [_matrix(features)]
        n = len(given[0])
        if self.against_reference:
            given.append(_matrix(np.zeros((0, 1)) if reference is None else reference))
        reason = self._undefined(*given)
        if reason is not None:
            return Diversity(None, None, n, reason)
        try:
            value = float(self.function(*given))
        except (Exception, SystemExit) as error:  # of somebody else: nothing else is lost
            told = " ".join(str(error).split())
            return Diversity(None, None, n, f"{self.name}: {type(error).__name__}: {told:.200}")
        if not math.isfinite(value):
            return Diversity(None, None, n, f"{self.name} is {value}")
        return Diversity(value, None, n)

    def _undefined(self, matrix: Floats, reference: Floats | None = None) -> str | None:
        """Return why there is no value of these features; None if there may be one."""
        if len(matrix) < self.least_images:
            return f"needs at least {pluralize(self.least_images, 'image')}, has {len(matrix)}"
        if reference is not None and len(reference) < self.least_reference:
            least = pluralize(self.least_reference, "image")
            return f"needs at least {least} of the reference, which has {len(reference)}"
        known = [matrix] if reference is None else [matrix, reference]
        if not all(one.shape[1] and np.isfinite(unit_vectors(one)).all() for one in known):
            return "a feature vector is zero or not finite"
        return None

    def stated(self) -> dict[str, Any]:
        """Return the declaration as plain data, for the manifest; an infinite end is null."""
        ends = {"low": self.low, "high": self.high}
        return {
            "name": self.name,
            "display_name": self.display_name,
            "label": self.label,
            "higher_is_better": self.higher_is_better,
            **{name: end if math.isfinite(end) else None for name, end in ends.items()},
            "equation": self.equation,
            "source": self.source,
            "least_images": self.least_images,
            "against_reference": self.against_reference,
            "code": dict(self.code),
        }


def _matrix(features: npt.ArrayLike) -> Floats:
    matrix = np.asarray(as_array(features), dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"expected features of shape [N, D], got {list(matrix.shape)}")
    return matrix


def _read(name: str, found: object, distribution: str) -> DiversityMetric:
    if not isinstance(found, DiversityMetric):
        raise UsageError(
            f"'{name}' is no diversity measure but {type(found).__name__}: expected an instance "
            "of autolora_eval.scoring.diversity_metric.DiversityMetric."
        )
    _refuse_name(found.name)
    _refuse_values(found)
    own = {"distribution": distribution} if distribution else {}
    return replace(found, code={**own, **code_of(found.function)})


def _refuse_name(name: str) -> None:
    if not isinstance(name, str) or not _COLUMN.fullmatch(name):
        raise UsageError(
            f"a diversity measure cannot be called {name!r}, which would be a column of the "
            "tables: expected up to 40 lower-case letters, digits and '_', the first a letter."
        )
    if is_no_measure(name):
        raise UsageError(
            f"a diversity measure cannot be called '{name}': the tables have a column of that "
            "name, or may have it beside another's. Choose one that is none of theirs and neither "
            "begins with 'div_' nor ends in '_low', '_high', '_reason' or '_published'."
        )


def _refuse_values(measure: DiversityMetric) -> None:
    """Refuse a declaration whose numbers are none, before anything is generated."""
    title = f"the diversity measure '{measure.name}'"
    if not callable(measure.function):
        got = type(measure.function).__name__
        raise UsageError(f"{title} has function={got}: expected what is called with features.")
    for key in ("low", "high"):
        end = getattr(measure, key)
        if isinstance(end, bool) or not isinstance(end, int | float) or math.isnan(end):
            raise UsageError(f"{title} has {key}={end!r:.80}: expected a number.")
    if measure.low >= measure.high:
        raise UsageError(
            f"{title} has low={measure.low} and high={measure.high}: expected low below high."
        )
    for key in ("least_images", "least_reference"):
        least = getattr(measure, key)
        if isinstance(least, bool) or not isinstance(least, int) or least < 1:
            raise UsageError(f"{title} has {key}={least!r:.80}: expected a whole number from 1.")
    for key in ("display_name", "label", "equation", "source"):
        if not isinstance(getattr(measure, key), str):
            got = repr(getattr(measure, key))
            raise UsageError(f"{title} has {key}={got:.80}: expected text.")


METRICS = Registry(
    noun="diversity measure",
    package="autolora_eval.scoring.metrics",
    attribute="METRIC",
    group="autolora_eval.diversity_metrics",
    example="my_package.METRIC",
    read=_read,
)


def find_metrics(
    stated: Sequence[str], folders: Sequence[Path] = (), has_reference: bool = False
) -> tuple[dict[str, DiversityMetric], list[tuple[int, str]]]:
    """Return the measures that a benchmark file names, and what is wrong with the others.

    Args:
        stated: names or dotted paths.
        folders: where a module that is not installed is looked for.
        has_reference: whether it names a method whose images others can be compared with.

    Returns:
        The measures by what they are stated as; the place of each that is wrong, with a message.
    """
    found: dict[str, DiversityMetric] = {}
    problems = []
    for place, name in enumerate(stated):
        try:
            measure = METRICS.find(name, folders)
        except UsageError as error:
            problems.append((place, str(error)))
            continue
        twice = [other for other, known in found.items() if known.name == measure.name]
        if twice:
            problems.append((place, f"'{name}' and '{twice[0]}' would be one column: remove one."))
        elif measure.against_reference and not has_reference:
            problems.append((place, f"'{name}' {_WANTS_REFERENCE}"))
        else:
            found[name] = measure
    return found, problems


def installed_metric(stated: str) -> DiversityMetric | None:
    """Return the measure that a manifest names, if it is built in or installed."""
    try:
        return METRICS.find(stated)
    except UsageError:
        return None


def needs_reference(stated: object) -> bool:
    """Return whether a declaration of a manifest is of a measure against a reference set."""
    return isinstance(stated, dict) and bool(stated.get("against_reference"))


def metrics_from_manifest(manifest: Mapping[str, Any], columns: Container[str]) -> list[Json]:
    """Return the declarations that a manifest has of measures that the table has too.

    Args:
        manifest: of a run; any part of it may be missing.
        columns: of its table.
    """
    section = manifest.get("diversity_metrics")
    stated = section.values() if isinstance(section, dict) else ()
    known = [one for one in stated if isinstance(one, dict) and one.keys() >= _KEYS]
    return [one for one in known if one["name"] in columns]
