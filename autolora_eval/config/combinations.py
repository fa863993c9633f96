"""Whether the parts of a benchmark go together: what none of them tells alone."""

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
    from autolora_eval.config.load import ResolvedMethod, ResolvedModel
    from autolora_eval.config.schema import Features
    from autolora_eval.plugins.signatures import MethodParameters
    from autolora_eval.scoring.diversity_metric import DiversityMetric
    from autolora_eval.scoring.extractor import ExtractorKind


def refusals(
    models: Mapping[str, ResolvedModel], methods: Mapping[str, ResolvedMethod], sweep: Sweep
) -> Iterator[tuple[str, str]]:
    """Yield the methods that cannot work on one of the models, each with the reason.

    Args:
        models: by name.
        methods: by name.
        sweep: whose values the methods take.
    """
    for method in methods.values():
        told: set[str] = set()
        for model in models.values():
            why = _refusal(method, model, sweep)
            if why is not None and why not in told:
                told.add(why)
                yield method.name, why


def _refusal(method: ResolvedMethod, model: ResolvedModel, sweep: Sweep) -> str | None:
    pipeline = _pipeline_class(model)
    for point in sweep.points():
        own = own_point(method.parameters, point)
        stated = at_point(method.parameters, own) if own else method.parameters
        values = stated.with_model_defaults(model.spec.guidance_scale)
        why = method.definition.refusal(values, pipeline)
        if why is not None:
            at = ", ".join(f"{name} {format_swept_value(value)}" for name, value in own.items())
            place = f" ({pipeline})" if pipeline else ""
            return f"on '{model.name}'{place}{f' at {at}' if at else ''}: {why}"
    return None


def _pipeline_class(model: ResolvedModel) -> str | None:
    """Return the class of a model's pipeline; None for one on the hub that is not here yet."""
    index = cached(model.pipeline, INDEX)
    try:
        return None if index is None else pipeline_class(index, model.pipeline.name)
    except UsageError:  # which is told of where pipelines are looked at
        return None


def clashing_columns(
    methods: Mapping[str, ResolvedMethod], scores: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Yield the methods with a parameter that is called as one of the rubric's scores is.

    Args:
        methods: by name.
        scores: the rubric's.
    """
    taken = set(scores)
    for method in methods.values():
        for name in _parameter_names(method):
            if parameter_column(name) in taken:
                yield (
                    method.name,
                    f"its parameter '{name}' and the rubric's score of that name would be one "
                    "column. Rename the score in the rubric.",
                )


def _parameter_names(method: ResolvedMethod) -> Iterable[str]:
    """Return the parameters of a method, those too that it takes by any name."""
    return (*type(method.parameters).model_fields, *(method.parameters.model_extra or ()))


def clashing_measures(
    diversity: Mapping[str, DiversityMetric],
    methods: Mapping[str, ResolvedMethod],
    scores: Iterable[str],
) -> Iterator[tuple[int, str]]:
    """Yield the measures of diversity that are called as a score or a parameter is, by place.

    Args:
        diversity: by what the benchmark file calls them.
        methods: by name.
        scores: the rubric's.
    """
    taken = dict.fromkeys(scores, "the rubric's score")
    for method in methods.values():
        for name in _parameter_names(method):
            taken.setdefault(parameter_column(name), f"the parameter of '{method.name}'")
    for place, (stated, measure) in enumerate(diversity.items()):
        if measure.name in taken:
            other = f"{taken[measure.name]} '{measure.name}'"
            yield place, f"'{stated}' and {other} would be one column: leave it out."


def parameters_of(
    stated: Features, kind: ExtractorKind
) -> tuple[dict[str, Any], type[MethodParameters]]:
    """Return the parameters that a benchmark states for a kind of extractor, and what may be.

    What a model is loaded by is no parameter of a kind that needs one; of another it is as any.

    Args:
        stated: the section of the benchmark file.
        kind: what it names.

    Returns:
        The values that the kind's own parameters are to be validated with, and a model of all
        keys that may stand there.
    """
    own = dict(stated.model_extra or {})
    shared = {"extractor", "batch_size"}
    if kind.needs_model:
        shared |= {"model", "revision", "dtype"}
    else:
        names = stated.model_fields_set - set(own) - shared
        own |= {name: getattr(stated, name) for name in names}
    keys: dict[str, Any] = dict.fromkeys(shared, (Any, None))
    return own, create_model("Features", __base__=kind.parameters, **keys)
