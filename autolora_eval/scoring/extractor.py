"""The interface and declaration of a feature extractor, and its lookup by name.

This module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._files import Json
from autolora_eval.plugins.registry import Origin, Registry
from autolora_eval.plugins.signatures import (
    CallParameters,
    MethodParameters,
    parameters_model,
    signature_of,
)
from autolora_eval.plugins.third_party import doc_summary, qualified_name, source_fingerprint
from autolora_eval.runs.feature_file import Matrix
from autolora_eval.sources.model_source import Source

if TYPE_CHECKING:
    import torch
    from PIL import Image

DEFAULT = "transformers"
DEVICE = "device"


class Extractor(Protocol):
    """Maps images to feature vectors."""

    def __call__(self, images: Sequence[Image.Image]) -> Matrix:
        """Return the feature vectors of RGB images, float32 [N, D].

        The vector of an image must not depend on the other images.

        Args:
            images: between one and `features.batch_size` images.
        """
        ...

    def preprocessing(self) -> Json:
        """Return the preprocessing of an image, as plain data for the manifest."""
        ...


@dataclass(frozen=True)
class Loading:
    """The arguments for loading an extractor.

    Attributes:
        source: the model; None if the kind needs none.
        parameters: the kind's parameters from the benchmark file.
        device: the device it runs on.
        dtype: the type of its weights.
        batch_size: images per forward pass.
    """

    source: Source | None
    parameters: Any
    device: torch.device
    dtype: torch.dtype
    batch_size: int


class NoParameters(MethodParameters):
    """The parameters of a kind that has none."""


@dataclass(frozen=True, kw_only=True)
class ExtractorKind:
    """A kind of feature extractor.

    Attributes:
        name: its name in a benchmark file, or its dotted path.
        summary: a one-line description.
        source: the paper or library.
        needs_model: whether it loads the model that `features.model` names.
        packages: optional packages that it imports, each with the extra that installs it.
        parameters: the typed model of its parameters.
        load: loads an extractor; imports the libraries that it needs.
        code: origin of third-party code: class, distribution and version, hash of the sources.
            Part of the content hash of every feature; empty if built in.
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
class ThirdPartyExtractor:
    """A third-party extractor whose results are validated."""

    name: str
    extractor: Callable[[Sequence[Image.Image]], Any]

    def __call__(self, images: Sequence[Image.Image]) -> Matrix:
        """Return the feature vectors of RGB images, float32 [N, D].

        Raises:
            AutoLoRAEvalError: if it fails or returns an array of another shape.
        """
        try:
            found = self.extractor(images)
            # NumPy does not support bfloat16.
            found = found.detach().cpu().float().numpy() if hasattr(found, "detach") else found
            vectors = np.asarray(found, dtype=np.float32)
        except (Exception, SystemExit) as error:
            raise _failed(f"the extractor '{self.name}'", "fails", error) from error
        if vectors.ndim != 2 or len(vectors) != len(images):
            raise AutoLoRAEvalError(
                f"the extractor '{self.name}' returned an array of shape {list(vectors.shape)} "
                f"for {len(images)} images: expected [{len(images)}, D]."
            )
        return vectors

    def preprocessing(self) -> Json:
        """Return the result of its own `preprocessing()`; empty if it has none.

        Raises:
            AutoLoRAEvalError: if that fails or does not return a dictionary of plain data.
        """
        function = getattr(self.extractor, "preprocessing", None)
        if not callable(function):
            return {}
        title = f"preprocessing() of the extractor '{self.name}'"
        try:
            found = function()
        except (Exception, SystemExit) as error:
            raise _failed(title, "fails", error) from error
        try:
            return dict(json.loads(json.dumps(dict(found), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise AutoLoRAEvalError(
                f"{title} cannot be recorded: {error!s:.300}. Expected a dictionary of finite "
                "numbers, texts, lists and dictionaries."
            ) from error


def _read(found: object, origin: Origin) -> ExtractorKind:
    name, distribution = origin.name, origin.distribution
    own = {"distribution": distribution} if distribution else {}
    if isinstance(found, ExtractorKind):
        code = {**own, **source_fingerprint(found.load)}
        load = partial(_made, name, found.load)
        return replace(found, name=name, load=load, code=code)
    is_called = isinstance(found, type) and any("__call__" in vars(c) for c in found.__mro__)
    if not (isinstance(found, type) and is_called):
        raise UsageError(
            f"'{name}' is not an extractor; expected a class whose instances take a list of RGB "
            "images (PIL) and return an array [N, D]."
        )
    signature = signature_of(found)
    parameters = {key: value for key, value in signature.parameters.items() if key != DEVICE}
    return ExtractorKind(
        name=name,
        summary=doc_summary(found),
        source=distribution or qualified_name(found),
        needs_model=False,
        parameters=parameters_model(replace(signature, parameters=parameters)),
        load=partial(_made, name, partial(_of_class, found, DEVICE in signature.parameters)),
        code={**own, **source_fingerprint(found), "class": qualified_name(found)},
    )


def _failed(what: str, how: str, error: BaseException) -> AutoLoRAEvalError:
    message = " ".join(str(error).split())
    return AutoLoRAEvalError(f"{what} {how}: {type(error).__name__}: {message:.300}")


def _of_class(cls: Callable[..., Any], takes_device: bool, loading: Loading) -> Any:  # noqa: ANN401
    parameters: CallParameters = loading.parameters
    arguments = parameters.arguments()
    if takes_device:
        arguments[DEVICE] = loading.device
    return cls(**arguments)


def _made(name: str, load: Callable[[Loading], Any], loading: Loading) -> ThirdPartyExtractor:
    try:
        made = load(loading)
    except AutoLoRAEvalError:  # has a message of its own
        raise
    except (Exception, SystemExit) as error:
        raise _failed(f"the extractor '{name}'", "cannot be created", error) from error
    extractor = ThirdPartyExtractor(name, made)
    extractor.preprocessing()  # report errors before the features are extracted, not after
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
    """The extractor of a benchmark, not yet loaded."""

    kind: ExtractorKind
    parameters: MethodParameters

    @classmethod
    def default(cls) -> ResolvedExtractor:
        """Return the extractor of a benchmark that names none."""
        kind = EXTRACTORS.find(DEFAULT)
        return cls(kind, kind.parameters())

    def to_json(self) -> Json:
        """Return what determines a vector apart from model and precision, as plain data.

        Empty for the default kind: its features are identified by model and precision alone.
        """
        parameters = self.parameters.model_dump(mode="json")
        if self.kind.name == DEFAULT and not parameters:
            return {}
        return {"extractor": self.kind.name, "parameters": parameters, "code": dict(self.kind.code)}
