"""What an extractor is and declares, and how one is found by name. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._files import Json
from autolora_eval.plugins.registry import Registry
from autolora_eval.plugins.signatures import (
    CallParameters,
    MethodParameters,
    parameters_model,
    signature_of,
)
from autolora_eval.plugins.third_party import code_of, dotted
from autolora_eval.runs.feature_file import Matrix

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from autolora_eval._sources import Source

DEFAULT = "transformers"
DEVICE = "device"


class Extractor(Protocol):
    """From images to feature vectors."""

    def __call__(self, images: Sequence[Image.Image]) -> Matrix:
        """Return the feature vectors of RGB images, float32 [N, D].

        An image's vector depends on nothing but the image.

        Args:
            images: at least one, at most as many as `features.batch_size` says.
        """
        ...

    def preprocessing(self) -> Json:
        """Return what is done to an image first, as plain data for the manifest."""
        ...


@dataclass(frozen=True)
class Loading:
    """What an extractor is loaded with.

    Attributes:
        source: the model; None for a kind that needs none.
        parameters: of the kind, as the benchmark states them.
        device: where it runs.
        dtype: of its weights.
        batch_size: images a forward pass.
    """

    source: Source | None
    parameters: Any
    device: torch.device
    dtype: torch.dtype
    batch_size: int


class NoParameters(MethodParameters):
    """A kind that has no parameters of its own."""


@dataclass(frozen=True, kw_only=True)
class ExtractorKind:
    """A way from images to feature vectors.

    Attributes:
        name: the word for it in a benchmark file, or its dotted path.
        summary: one line.
        source: paper or library.
        needs_model: whether `features.model` names what it loads.
        packages: optional packages that it imports, and the extra that each comes with.
        parameters: its own parameters, typed.
        load: loads it. Imports what it needs.
        code: what of other people's code decides its vectors: class, distribution and version,
            hash of the sources. Part of every feature's key; empty for what is built in.
    """

    name: str
    summary: str
    source: str
    needs_model: bool
    packages: Mapping[str, str] = field(default_factory=dict)
    parameters: type[MethodParameters] = NoParameters
    load: Callable[[Loading], Extractor]
    code: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassExtractor:
    """Somebody else's extractor, whose answers are looked at.

    Attributes:
        name: as the benchmark file has it.
        made: takes RGB images and returns an array [N, D].
    """

    name: str
    made: Callable[[Sequence[Image.Image]], Any]

    def __call__(self, images: Sequence[Image.Image]) -> Matrix:
        """Return the feature vectors of RGB images, float32 [N, D].

        Raises:
            AutoLoRAEvalError: it fails, or returns something else.
        """
        try:
            found = self.made(images)
            # NumPy knows no bfloat16.
            found = found.detach().cpu().float().numpy() if hasattr(found, "detach") else found
            vectors = np.asarray(found, dtype=np.float32)
        except (Exception, SystemExit) as error:
            told = " ".join(str(error).split())
            raise AutoLoRAEvalError(
                f"the extractor '{self.name}' fails: {type(error).__name__}: {told:.300}"
            ) from error
        if vectors.ndim != 2 or len(vectors) != len(images):
            raise AutoLoRAEvalError(
                f"the extractor '{self.name}' returned an array of shape {list(vectors.shape)} "
                f"for {len(images)} images: expected [{len(images)}, D]."
            )
        return vectors

    def preprocessing(self) -> Json:
        """Return what its own `preprocessing()` says; nothing where it has none.

        Raises:
            AutoLoRAEvalError: it fails, or returns what is no map of plain data.
        """
        stated = getattr(self.made, "preprocessing", None)
        if not callable(stated):
            return {}
        title = f"preprocessing() of the extractor '{self.name}'"
        try:
            found = stated()
        except (Exception, SystemExit) as error:
            told = " ".join(str(error).split())
            raise AutoLoRAEvalError(
                f"{title} fails: {type(error).__name__}: {told:.300}"
            ) from error
        try:
            if isinstance(found, Mapping):
                return dict(json.loads(json.dumps(dict(found), allow_nan=False)))
            told = f"a value of {type(found).__name__}"
        except (TypeError, ValueError) as error:
            told = str(error)
        raise AutoLoRAEvalError(
            f"{title} cannot be recorded: {told:.300}. Expected a map of finite numbers, texts, "
            "lists and maps."
        )


def _read(name: str, found: object, distribution: str) -> ExtractorKind:
    own = {"distribution": distribution} if distribution else {}
    if isinstance(found, ExtractorKind):
        code = {**own, **code_of(found.load)}
        load = partial(_made, name, found.load)
        return replace(found, name=name, load=load, code=code)
    is_called = isinstance(found, type) and any("__call__" in vars(c) for c in found.__mro__)
    if not (isinstance(found, type) and is_called):
        raise UsageError(
            f"'{name}' is no extractor: expected a class whose instances take a list of RGB "
            "images (PIL) and return an array [N, D]."
        )
    signature = signature_of(found)
    stated = {key: value for key, value in signature.parameters.items() if key != DEVICE}
    return ExtractorKind(
        name=name,
        summary=(found.__doc__ or "").strip().split("\n")[0],
        source=distribution or dotted(found),
        needs_model=False,
        parameters=parameters_model(replace(signature, parameters=stated)),
        load=partial(_made, name, partial(_of_class, found, DEVICE in signature.parameters)),
        code={**own, **code_of(found), "class": dotted(found)},
    )


def _of_class(cls: Callable[..., Any], takes_device: bool, loading: Loading) -> Any:  # noqa: ANN401
    parameters: CallParameters = loading.parameters
    arguments = parameters.arguments()
    if takes_device:
        arguments[DEVICE] = loading.device
    return cls(**arguments)


def _made(name: str, load: Callable[[Loading], Any], loading: Loading) -> ClassExtractor:
    try:
        made = load(loading)
    except AutoLoRAEvalError:  # of one that says itself what is wrong
        raise
    except (Exception, SystemExit) as error:
        told = " ".join(str(error).split())
        raise AutoLoRAEvalError(
            f"the extractor '{name}' cannot be made: {type(error).__name__}: {told:.300}"
        ) from error
    extractor = ClassExtractor(name, made)
    extractor.preprocessing()  # what is wrong with it is told before an hour of features is taken
    return extractor


EXTRACTORS = Registry(
    noun="extractor",
    package="autolora_eval.scoring.extractors",
    attribute="EXTRACTOR",
    group="autolora_eval.extractors",
    example="my_package.MyExtractor",
    read=_read,
)


@dataclass(frozen=True)
class ResolvedExtractor:
    """An extractor as a benchmark states it, not loaded.

    Attributes:
        kind: the kind.
        parameters: its own.
    """

    kind: ExtractorKind
    parameters: MethodParameters

    @classmethod
    def default(cls) -> ResolvedExtractor:
        """Return the kind of a benchmark that names none."""
        kind = EXTRACTORS.find(DEFAULT)
        return cls(kind, kind.parameters())

    def stated(self) -> Json:
        """Return what decides a vector beside model and precision, as plain data.

        It is empty for the default, whose features' keys are those of model and precision alone.
        """
        parameters = self.parameters.model_dump(mode="json")
        if self.kind.name == DEFAULT and not parameters:
            return {}
        return {"extractor": self.kind.name, "parameters": parameters, "code": dict(self.kind.code)}
