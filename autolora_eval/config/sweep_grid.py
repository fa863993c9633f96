"""The sweep: parameters with several values, crossed with models and the methods that take them.

A method takes a swept parameter if it has it and does not set it itself. `lora_scale` belongs to
the model, so every method takes it, on every model with a LoRA. `interval` sets `start` and `stop`
together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from autolora_eval._errors import did_you_mean
from autolora_eval._text import format_swept_value
from autolora_eval._yaml import KeyPath, YamlFile, explained_at
from autolora_eval.config.schema import Lora, Model
from autolora_eval.plugins.signatures import MethodParameters

Value = float | tuple[float, float]
Point = dict[str, Value]
P = TypeVar("P", bound=MethodParameters)

LORA_SCALE, INTERVAL = "lora_scale", "interval"
MAX_CELLS = 5_000


@dataclass(frozen=True)
class Sweep:
    """The swept parameters, each with its values, in the order of the file."""

    values: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def points(self) -> Iterator[Point]:
        """Yield every combination of values; the last parameter varies fastest."""
        for combination in itertools.product(*self.values.values()):
            yield dict(zip(self.values, combination, strict=True))


def fields_of(name: str) -> tuple[str, ...]:
    """Return the parameters of a method that a swept parameter sets."""
    return ("start", "stop") if name == INTERVAL else (name,)


def takes(parameters: MethodParameters, name: str) -> bool:
    """Return whether a method takes a swept parameter."""
    if name == LORA_SCALE:
        return parameters.uses_the_model
    configured = parameters.model_fields_set
    return _has(parameters, name) and not configured.intersection(fields_of(name))


def _has(parameters: MethodParameters, name: str) -> bool:
    return set(fields_of(name)) <= type(parameters).model_fields.keys()


def own_point(parameters: MethodParameters, point: Point) -> Point:
    """Return the part of a point that a method takes."""
    return {name: value for name, value in point.items() if takes(parameters, name)}


def describe(point: Point) -> str:
    """Return a point as text, such as `lora_scale 0.5, autolora_scale 2`."""
    return ", ".join(f"{name} {format_swept_value(value)}" for name, value in point.items())


def at_point(parameters: P, point: Point) -> P:
    """Return a method's parameters at a point; a ValidationError is the method's refusal."""
    changes = {
        key: value
        for name, swept in point.items()
        if name != LORA_SCALE
        for key, value in zip(
            fields_of(name), swept if isinstance(swept, tuple) else (swept,), strict=True
        )
    }
    configured = parameters.model_dump(exclude_unset=True)
    return type(parameters).model_validate(configured | changes, strict=True)


def first_swept(
    model: type[MethodParameters], configured: Mapping[str, Any], sweep: Mapping[str, list[Any]]
) -> dict[str, tuple[str, Any]]:
    """Return the required parameters that only the sweep sets: name → (sweep key, first value)."""
    found: dict[str, tuple[str, Any]] = {}
    for key, listed in sweep.items():
        first = listed[0] if listed else None
        values = first if key == INTERVAL and isinstance(first, list) else [first]
        for name, value in zip(fields_of(key), values, strict=False):
            needed = name in model.model_fields and model.model_fields[name].is_required()
            if listed and needed and name not in configured:
                found[name] = (key, value)
    return found


def validated_but_for(
    model: type[P], configured: Mapping[str, Any], swept: Mapping[str, tuple[str, Any]]
) -> P:
    """Return a method's parameters, with those that are swept marked as not set."""
    values = {name: value for name, (_, value) in swept.items()}
    found = model.model_validate({**configured, **values}, strict=True)
    found.model_fields_set.difference_update(values)
    return found


class SweepReader:
    """Reads the sweep of a benchmark file, and collects the problems."""

    def __init__(
        self,
        document: YamlFile,
        configured: Mapping[str, list[Any]],
        methods: Mapping[str, MethodParameters],
        models: Mapping[str, Model],
    ) -> None:
        self.document, self.configured, self.methods = document, configured, methods
        self.models = models
        self.problems: list[str] = []

    def read(self) -> Sweep:
        """Return the sweep. It is valid only if there are no `problems`."""
        values = {
            name: tuple(self._values(name, listed))
            for name, listed in self.configured.items()
            if self._is_taken(name)
        }
        self._refuse_two_of_one()
        sweep = Sweep(values)
        if not self.problems and not self._too_many(sweep):
            self._check_combinations(sweep)
        return sweep

    def _refuse(self, problem: str, *at: str | int) -> None:
        self.problems.append(f"{self.document.where(('sweep', *at))}: {problem}")

    def _is_taken(self, name: str) -> bool:
        if name == LORA_SCALE and not any(model.lora_scales for model in self.models.values()):
            self._refuse("has no effect: no model has a LoRA whose scale can change.", name)
            return False
        if any(takes(parameters, name) for parameters in self.methods.values()):
            return True
        stating = [method for method, p in self.methods.items() if _has(p, name)]
        if stating:
            self._refuse(
                f"has no effect: every method with this parameter sets it ({', '.join(stating)}). "
                "Remove it there or here.",
                name,
            )
        else:
            self._refuse(f"no method has this parameter.{self._nearest(name)}", name)
        return False

    def _nearest(self, name: str) -> str:
        fields = dict.fromkeys(f for p in self.methods.values() for f in type(p).model_fields)
        with_interval = any(_has(p, INTERVAL) for p in self.methods.values())
        known = [LORA_SCALE, *fields, *([INTERVAL] if with_interval else [])]
        return did_you_mean(name, known)

    def _values(self, name: str, listed: Sequence[Any]) -> Iterator[Value]:
        if not listed:
            self._refuse(
                f"lists no value. Expected values such as '{name}: {_example(name)}'.", name
            )
        first: dict[Value, int] = {}
        for index, raw in enumerate(listed):
            value = _number(raw) if name != INTERVAL else _interval(raw)
            if value is None:
                what = "a number" if name != INTERVAL else "two numbers such as [0.25, 0.75]"
                self._refuse(f"expected {what} (got {raw!r:.80}).", name, index)
            elif value in first:
                self._refuse(
                    f"{format_swept_value(value)} is already value {first[value] + 1}. Remove one.",
                    name,
                    index,
                )
            elif self._in_range(name, value, ("sweep", name, index)):
                first[value] = index
                yield value

    def _in_range(self, name: str, value: Value, at: KeyPath) -> bool:
        """Check a single value against every method that takes it."""
        problems: dict[str, None] = {}
        if name == LORA_SCALE:
            try:
                Lora.model_validate({"path": "any", "scale": value})
            except ValidationError as error:
                problems |= dict.fromkeys(explained_at(error, self.document, at, ("scale",)))
            self.problems += problems
            return not problems
        for parameters in self.methods.values():
            if takes(parameters, name):
                try:
                    at_point(parameters, {name: value})
                except ValidationError as error:
                    # None stands for a check of both ends together.
                    fields = fields_of(name) if name != INTERVAL else (*fields_of(name), None)
                    problems |= dict.fromkeys(explained_at(error, self.document, at, fields))
        self.problems += problems
        return not problems

    def _refuse_two_of_one(self) -> None:
        for end in fields_of(INTERVAL):
            if INTERVAL in self.configured and end in self.configured:
                self._refuse(f"'{INTERVAL}' already sets it. Remove one of the two.", end)

    def _too_many(self, sweep: Sweep) -> bool:
        n_points = math.prod(len(values) for values in sweep.values.values())
        n_cells = n_points * len(self.models) * len(self.methods)
        if n_cells > MAX_CELLS:
            self._refuse(
                f"{n_points:,} combinations with {len(self.models)} × {len(self.methods)} models "
                f"and methods; at most {MAX_CELLS:,} cells are allowed. Sweep fewer values at once."
            )
        return n_cells > MAX_CELLS

    def _check_combinations(self, sweep: Sweep) -> None:
        """Check combinations of values, such as a swept start and stop."""
        problems: dict[str, None] = {}
        for point, (name, parameters) in itertools.product(sweep.points(), self.methods.items()):
            own = own_point(parameters, point)
            try:
                at_point(parameters, own)
            except ValidationError as error:
                for line in explained_at(error, self.document, ("sweep",)):
                    problems[f"{line} Method '{name}' at {describe(own)}."] = None
        self.problems += list(problems)[:5]


def _number(raw: object) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    try:
        return raw if math.isfinite(raw) else None
    except OverflowError:  # a whole number too large for a float
        return None


def _interval(raw: object) -> tuple[float, float] | None:
    if not isinstance(raw, list) or len(raw) != 2:
        return None
    start, stop = (_number(end) for end in raw)
    return None if start is None or stop is None else (start, stop)


def _example(name: str) -> str:
    return "[[0.0, 1.0], [0.25, 0.75]]" if name == INTERVAL else "[0.5, 1.0]"
