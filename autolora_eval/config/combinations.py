"""Checks whether the parts of a benchmark go together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from autolora_eval._errors import UsageError
from autolora_eval._sources import cached
from autolora_eval._text import format_swept_value
from autolora_eval.config.inputs import INDEX, pipeline_class
from autolora_eval.config.sweep_grid import Sweep, at_point, own_point
from autolora_eval.runs.columns import parameter_column

if TYPE_CHECKING:
    from autolora_eval.config.inputs import ResolvedMethod, ResolvedModel
    from autolora_eval.config.schema import Features
    from autolora_eval.plugins.signatures import MethodParameters
    from autolora_eval.scoring.diversity_metric import DiversityMetric
    from autolora_eval.scoring.extractor import ExtractorKind


def refusals(
    models: Mapping[str, ResolvedModel], methods: Mapping[str, ResolvedMethod], sweep: Sweep
) -> Iterator[tuple[str, str]]:
    """Yield (method, reason) for each method that cannot work on one of the models."""
    for method in methods.values():
        reasons: set[str] = set()
        for model in models.values():
            why = _refusal(method, model, sweep)
            if why is not None and why not in reasons:
                reasons.add(why)
                yield method.name, why


def _refusal(method: ResolvedMethod, model: ResolvedModel, sweep: Sweep) -> str | None:
    if method.definition.needs_lora and not model.spec.lora_scales:
        also = " beside those that are part of the base model" if model.spec.loras else ""
        return (
            f"on '{model.name}': '{method.definition.name}' compares the model with and without "
            f"its LoRA, and this model has none{also}. State one as 'lora', or remove the method."
        )
    pipeline = _pipeline_class(model)
    for point in sweep.points():
        own = own_point(method.parameters, point)
        parameters = at_point(method.parameters, own) if own else method.parameters
        values = parameters.with_model_defaults(model.spec.guidance_scale)
        why = method.definition.refusal(values, pipeline)
        if why is not None:
            at = ", ".join(f"{name} {format_swept_value(value)}" for name, value in own.items())
            of_class = f" ({pipeline})" if pipeline else ""
            return f"on '{model.name}'{of_class}{f' at {at}' if at else ''}: {why}"
    return None


def _pipeline_class(model: ResolvedModel) -> str | None:
    """Return the class of a model's pipeline; None if it has not been downloaded yet."""
    index = cached(model.layout, INDEX)
    try:
        return None if index is None else pipeline_class(index, model.layout.name)
    except UsageError:  # reported where pipelines are checked
        return None


def clashing_columns(
    methods: Mapping[str, ResolvedMethod], scores: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Yield (method, reason) for each parameter with the name of one of the rubric's scores."""
    taken = set(scores)
    for method in methods.values():
        for name in _parameter_names(method):
            if parameter_column(name) in taken:
                yield (
                    method.name,
                    f"its parameter '{name}' and the rubric's score of that name would share a "
                    "column. Rename the score in the rubric.",
                )


def _parameter_names(method: ResolvedMethod) -> Iterable[str]:
    """Return the names of a method's parameters, including those that `**kwargs` accepts."""
    return (*type(method.parameters).model_fields, *(method.parameters.model_extra or ()))


def clashing_metrics(
    diversity: Mapping[str, DiversityMetric],
    methods: Mapping[str, ResolvedMethod],
    scores: Iterable[str],
) -> Iterator[tuple[int, str]]:
    """Yield (index, reason) for each diversity metric with the name of a score or parameter."""
    taken = dict.fromkeys(scores, "the rubric's score")
    for method in methods.values():
        for name in _parameter_names(method):
            taken.setdefault(parameter_column(name), f"the parameter of '{method.name}'")
    for index, (name, metric) in enumerate(diversity.items()):
        if metric.name in taken:
            other = f"{taken[metric.name]} '{metric.name}'"
            yield index, f"'{name}' and {other} would share a column. Remove it."


def parameters_of(
    section: Features, kind: ExtractorKind
) -> tuple[dict[str, Any], type[MethodParameters]]:
    """Return the extractor's own parameters in a benchmark, and a model of all allowed keys.

    `model`, `revision` and `dtype` load the model of an extractor that needs one. Another
    extractor may use these names for its own parameters.
    """
    own = dict(section.model_extra or {})
    shared = {"extractor", "batch_size"}
    if kind.needs_model:
        shared |= {"model", "revision", "dtype"}
    else:
        names = section.model_fields_set - set(own) - shared
        own |= {name: getattr(section, name) for name in names}
    keys: dict[str, Any] = dict.fromkeys(shared, (Any, None))
    return own, create_model("Features", __base__=kind.parameters, **keys)
