"""Loads a benchmark file: finds every input it names, and reports all problems at once."""

from __future__ import annotations

import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError, create_model

from autolora_eval._errors import UsageError, did_you_mean, validation_message
from autolora_eval._yaml import KeyPath, YamlFile, explained, explained_at, read_yaml
from autolora_eval.config.inputs import (
    METHOD_KINDS,
    LoadedBenchmark,
    MethodKind,
    ResolvedMethod,
    ResolvedModel,
    known_class,
    listed_prompts,
    read_prompts,
)
from autolora_eval.config.model_section import read_model
from autolora_eval.config.schema import Benchmark, Features, Model
from autolora_eval.config.sweep_grid import (
    Sweep,
    SweepReader,
    at_point,
    describe,
    first_swept,
    own_point,
    validated_but_for,
)
from autolora_eval.guidance.method import Method, image_set_method
from autolora_eval.guidance.method_registry import resolve_method
from autolora_eval.plugins.signatures import MethodParameters
from autolora_eval.runs.columns import parameter_column
from autolora_eval.scoring.diversity_metric import DiversityMetric, find_metrics
from autolora_eval.scoring.extractor import EXTRACTORS, ExtractorKind, ResolvedExtractor
from autolora_eval.scoring.judges.config import JudgeConfig, judge_problems
from autolora_eval.scoring.rubric import Rubric, read_rubric
from autolora_eval.sources.lookup import Lookup, shipped_benchmarks
from autolora_eval.sources.model_source import Source, find_model

T = TypeVar("T")


def load_benchmark(benchmark: str | Path, *, needs_loras: bool = True) -> LoadedBenchmark:
    """Read and check a benchmark file, without loading a model or using the network.

    Args:
        benchmark: the path of a YAML file, or the name of a shipped benchmark.
        needs_loras: whether the file of a LoRA must be here.

    Raises:
        UsageError: if anything is wrong. Each line of the message is one problem, with the file,
            line, key, value, and the expected value.
    """
    document, spec = read_spec(find_benchmark(benchmark))
    if not needs_loras:
        models = {name: _with_obtain(model) for name, model in spec.models.items()}
        spec = spec.model_copy(update={"models": models})
    return _Resolver(document, spec).resolve()


def _with_obtain(model: Model) -> Model:
    """Return a model with `obtain` in every LoRA, so that a missing file is not an error."""
    note = {"obtain": "It is only needed to generate images."}
    loras = [one if one.obtain else one.model_copy(update=note) for one in model.loras]
    lora = loras if isinstance(model.lora, list) else next(iter(loras), None)
    return model.model_copy(update={"lora": lora})


def read_spec(file: Path) -> tuple[YamlFile, Benchmark]:
    """Read a benchmark file without looking up what it names."""
    document = read_yaml(file)
    if not isinstance(document.data, dict):
        raise UsageError(f"{document.path}: expected 'key: value' lines such as 'name: my_run'.")
    try:
        return document, Benchmark.model_validate(document.data)
    except ValidationError as error:
        raise UsageError("\n".join(explained(error, document, Benchmark))) from error


def find_benchmark(benchmark: str | Path) -> Path:
    """Return the file of a benchmark, given its path or the name of a shipped one."""
    path = Path(benchmark)
    shipped = shipped_benchmarks()
    is_folder = False
    try:
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except OSError:  # not a file name, such as one that is too long
        pass
    if str(benchmark) in shipped:
        return shipped[str(benchmark)]
    if is_folder:
        raise UsageError(
            f"'{benchmark}' is a folder without a manifest.json. Name a benchmark file or a run "
            "folder."
        )
    near = did_you_mean(path.stem, shipped)
    raise UsageError(
        f"no such benchmark: '{benchmark}' is neither a file nor a shipped name.{near}"
    )


class _Resolver:
    """Finds every input that a benchmark names, and collects the problems."""

    def __init__(self, document: YamlFile, spec: Benchmark) -> None:
        self.document, self.spec = document, spec
        self.lookup = Lookup.beside(document.path)
        self.problems: list[str] = []

    def resolve(self) -> LoadedBenchmark:
        spec = self.spec
        prompts = self._try(("prompts",), self._prompts) or {}
        models = {
            name: read_model(name, model, self.lookup, self._try)
            for name, model in spec.models.items()
        }
        methods = {name: self._method(name, section) for name, section in spec.methods.items()}
        sweep = self._sweep(methods)
        extractor, features = self._features()
        diversity = self._diversity()
        rubric, judge = self._judge()
        published = None
        if file := spec.published:
            find = partial(self.lookup.file, file, "published table")
            published = self._try(("published",), find)
        self._check_named_methods()
        self._stop_at_problems()
        loaded = LoadedBenchmark(
            file=self.document.path.resolve(),
            spec=spec,
            prompts=tuple(prompts),
            negative_prompts={key: own for key, own in prompts.items() if own is not None},
            models=typing.cast("dict[str, ResolvedModel]", models),
            methods=typing.cast("dict[str, ResolvedMethod]", methods),
            features=features,
            extractor=typing.cast("ResolvedExtractor", extractor),
            rubric=rubric,
            judge=judge,
            published=published,
            sweep=sweep,
            diversity=diversity,
        )
        self._check_combinations(loaded)
        self._stop_at_problems()
        return loaded

    def _stop_at_problems(self) -> None:
        if self.problems:
            raise UsageError("\n".join(self.problems))

    def _note(self, keys: KeyPath, problem: object) -> None:
        self.problems.append(f"{self.document.where(keys)}: {problem}")

    def _try(self, keys: KeyPath, action: Callable[[], T]) -> T | None:
        """Run an action; on an error note the problem and return None."""
        try:
            return action()
        except UsageError as error:
            self._note(keys, error)
            return None

    def _prompts(self) -> dict[str, str | None]:
        if isinstance(self.spec.prompts, list):
            return listed_prompts(self.spec.prompts, "the list")
        return read_prompts(self.lookup.file(self.spec.prompts, "prompt file"))

    def _method(self, name: str, section: Mapping[str, Any]) -> ResolvedMethod | None:
        at = ("methods", name)
        kinds = [kind for kind in METHOD_KINDS if kind in section]
        if len(kinds) > 1:
            both = f"'{kinds[0]}' and '{kinds[1]}'"
            self._note((*at, kinds[1]), f"a method cannot have both {both}. Remove one.")
            return None
        kind = kinds[0] if kinds else "guider"
        definition = self._try(
            (*at, kind), lambda: self._definition(kind, section.get(kind), section)
        )
        if definition is None:
            return None
        parameters = {key: value for key, value in section.items() if key != kind}
        swept = first_swept(definition.parameters, parameters, self.spec.sweep)
        try:
            values = validated_but_for(definition.parameters, parameters, swept)
            return ResolvedMethod(name, definition, values, kind)
        except ValidationError as error:
            wrong = {item["loc"][0] for item in error.errors() if item["loc"]}
            for one, (key, _) in swept.items():
                self.problems += explained_at(error, self.document, ("sweep", key, 0), (one,))
            if not swept.keys() & wrong:
                self.problems += explained(error, self.document, definition.parameters, at)
            return None

    def _definition(self, kind: MethodKind, name: object, keys: Iterable[str]) -> Method:
        if name is None:
            near = (
                f" Is '{k}' a misspelling of it?"
                for k in keys
                if k != kind and get_close_matches(k, METHOD_KINDS)
            )
            raise UsageError(f"missing; name a guider, such as 'guider: autolora'.{next(near, '')}")
        if kind == "images":
            return image_set_method(str(name), self._images(str(name)))
        return resolve_method(kind, str(name), self.lookup.folders)

    def _images(self, name: str) -> Path:
        path = self.lookup.find(name)
        if path is None:
            folders = ", ".join(str(folder) for folder in self.lookup.folders)
            raise UsageError(f"no images at '{name:.300}' (looked in {folders}).")
        return path

    def _sweep(self, methods: Mapping[str, ResolvedMethod | None]) -> Sweep:
        known = {name: method.parameters for name, method in methods.items() if method is not None}
        if len(known) < len(methods):
            return Sweep()  # which methods take part is not known yet
        reader = SweepReader(self.document, self.spec.sweep, known, self.spec.models)
        sweep = reader.read()
        self.problems += reader.problems
        return sweep

    def _check_combinations(self, loaded: LoadedBenchmark) -> None:
        methods = list(loaded.methods.values())
        scores = () if loaded.rubric is None else loaded.rubric.scores
        for name, why in (*_refusals(loaded), *_clashing_columns(methods, scores)):
            self._note(("methods", name), why)
        for index, why in _clashing_metrics(loaded.diversity, methods, scores):
            self._note(("diversity", str(index)), why)

    def _features(self) -> tuple[ResolvedExtractor | None, Source | None]:
        features = self.spec.features
        kind = self._try(
            ("features", "extractor"),
            lambda: EXTRACTORS.find(features.extractor, self.lookup.folders),
        )
        if kind is None:
            return None, None
        parameters = self._extractor_parameters(kind)
        source = None
        if kind.needs_model:
            source = self._try(
                ("features", "model"),
                lambda: find_model(features.model, features.revision, self.lookup, "config.json"),
            )
        return (None if parameters is None else ResolvedExtractor(kind, parameters)), source

    def _extractor_parameters(self, kind: ExtractorKind) -> MethodParameters | None:
        own, known = _parameters_of(self.spec.features, kind)
        try:
            return kind.parameters.model_validate(own, strict=True)
        except ValidationError as error:
            self.problems += explained(error, self.document, known, ("features",))
            return None

    def _diversity(self) -> dict[str, DiversityMetric]:
        has_reference = self.spec.diversity_reference is not None
        found, problems = find_metrics(self.spec.diversity, self.lookup.folders, has_reference)
        for index, problem in problems:
            self._note(("diversity", str(index)), problem)
        return found

    def _judge(self) -> tuple[Rubric | None, Source | None]:
        judge = self.spec.judge
        if judge is None:
            return None, None
        for keys, problem in judge_problems(judge):
            self.problems.append(f"{self.document.where(('judge', *keys))}: {problem}")
        rubric = self._rubric(judge)
        if judge.backend == "openai":
            return rubric, None
        source = self._try(
            ("judge", "model"),
            lambda: find_model(judge.model, judge.revision, self.lookup, "config.json"),
        )
        return rubric, source

    def _rubric(self, judge: JudgeConfig) -> Rubric | None:
        rubric = self._try(
            ("judge", "rubric"), lambda: read_rubric(self.lookup.file(judge.rubric, "rubric"))
        )
        if rubric is None:
            return None
        return self._try(
            ("judge", "rubric_values"), lambda: rubric.with_values(judge.rubric_values)
        )

    def _check_named_methods(self) -> None:
        for key in ("baseline", "diversity_reference"):
            name = getattr(self.spec, key)
            if name is not None and name not in self.spec.methods:
                near = did_you_mean(name, self.spec.methods)
                self._note((key,), f"unknown method '{name}'.{near}")


# --------------------
# Whether the parts of a benchmark go together.


def _refusals(loaded: LoadedBenchmark) -> Iterator[tuple[str, str]]:
    """Yield (method, reason) for each method that cannot work on one of the models."""
    for method in loaded.methods.values():
        reasons = [_refusal(method, model, loaded.sweep) for model in loaded.models.values()]
        for why in dict.fromkeys(reasons):
            if why is not None:
                yield method.name, why


def _refusal(method: ResolvedMethod, model: ResolvedModel, sweep: Sweep) -> str | None:
    if method.definition.needs_lora and not model.spec.lora_scales:
        also = " beside those that are part of the base model" if model.spec.loras else ""
        return (
            f"on '{model.name}': '{method.definition.name}' compares the model with and without "
            f"its LoRA, and this model has none{also}. Add a LoRA, or remove the method."
        )
    pipeline = known_class(model.layout)
    for point in sweep.points():
        own = own_point(method.parameters, point)
        parameters = at_point(method.parameters, own) if own else method.parameters
        try:
            values = parameters.with_model_defaults(model.spec.guidance_scale)
        except ValidationError as error:
            found = validation_message(error.errors()[0]).rstrip(".")
            return (
                f"the guidance_scale of '{model.name}', {model.spec.guidance_scale:g}, does not "
                f"fit: {found}. Set the method's own guidance_scale."
            )
        why = method.definition.refuse(values, pipeline)
        if why is not None:
            of_class = f" ({pipeline})" if pipeline else ""
            return f"on '{model.name}'{of_class}{f' at {describe(own)}' if own else ''}: {why}"
    return None


def _clashing_columns(
    methods: Sequence[ResolvedMethod], scores: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield (method, reason) for each parameter with the name of one of the rubric's scores."""
    for method in methods:
        for name in _parameter_names(method):
            if parameter_column(name) in scores:
                yield (
                    method.name,
                    f"its parameter '{name}' and the rubric's score of that name would share a "
                    "column. Rename the score in the rubric.",
                )


def _parameter_names(method: ResolvedMethod) -> Iterable[str]:
    """Return the names of a method's parameters, including those that `**kwargs` accepts."""
    return (*type(method.parameters).model_fields, *(method.parameters.model_extra or ()))


def _clashing_metrics(
    diversity: Mapping[str, DiversityMetric],
    methods: Sequence[ResolvedMethod],
    scores: Collection[str],
) -> Iterator[tuple[int, str]]:
    """Yield (index, reason) for each diversity metric with the name of a score or parameter."""
    taken = dict.fromkeys(scores, "the rubric's score")
    for method in methods:
        for name in _parameter_names(method):
            taken.setdefault(parameter_column(name), f"the parameter of '{method.name}'")
    for index, (name, metric) in enumerate(diversity.items()):
        if metric.name in taken:
            other = f"{taken[metric.name]} '{metric.name}'"
            yield index, f"'{name}' and {other} would share a column. Remove it."


def _parameters_of(
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
    return own, _with_keys(kind.parameters, frozenset(shared))


@lru_cache(maxsize=16)
def _with_keys(model: type[MethodParameters], names: frozenset[str]) -> type[MethodParameters]:
    """Return a model that has further keys. To make one takes a tenth of a second."""
    keys: dict[str, Any] = dict.fromkeys(names, (Any, None))
    return create_model("Features", __base__=model, **keys)
