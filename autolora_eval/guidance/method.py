"""The methods by name: each is one file in `methods/` with one declaration."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval.plugins.signatures import MethodParameters

if TYPE_CHECKING:
    from diffusers.guiders import BaseGuidance


@dataclass(frozen=True, kw_only=True)
class Method:
    """What makes a method's images: how it is written, what it takes, where it is from.

    Attributes:
        name: the word for it in a benchmark file, or its dotted path.
        display_name: what it is commonly called, for lists; tables show the benchmark's names.
        summary: one line for `autolora-eval methods` and the report.
        equation: the rule, as text; empty where its author does not state it.
        source: paper or library.
        parameters: its parameters, typed.
        code: what of other people's code decides its images: class, distribution and version,
            hash of the sources. Part of every image's key; empty for what is built in.
    """

    name: str
    display_name: str
    summary: str
    equation: str = ""
    source: str
    parameters: type[MethodParameters]
    code: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """What tells it from all others, where its name does not."""
        return self.name

    def nfe(self, parameters: MethodParameters, num_steps: int) -> int | None:
        """Return the denoiser passes for one image; None if that is known once it has run."""
        return None

    @property
    def nfe_is_declared(self) -> bool:
        """Whether `nfe` is a promise: a run in which it is broken is stopped."""
        return False

    def refusal(self, parameters: MethodParameters, pipeline: str | None) -> str | None:
        """Return why these parameters cannot work on a model, and what to do; None if they can.

        Args:
            parameters: with what the model fills in.
            pipeline: class of the pipeline, as its model_index.json names it; None if unknown.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class GuiderMethod(Method):
    """A guidance rule.

    Attributes:
        predictions: (parameters, step, number of steps) → denoiser passes made at that step.
            None: they are counted while it runs.
        build: parameters → a fresh guider. Imports diffusers.
    """

    predictions: Callable[[Any, int, int], int] | None = None
    build: Callable[[Any], BaseGuidance]

    def nfe(self, parameters: MethodParameters, num_steps: int) -> int | None:
        """Return the denoiser passes for one image: the sum over steps of those really made."""
        if self.predictions is None:
            return None
        return sum(self.predictions(parameters, step, num_steps) for step in range(num_steps))

    @property
    def nfe_is_declared(self) -> bool:
        """Whether the method declares its passes."""
        return self.predictions is not None


@cache
def methods() -> dict[str, GuiderMethod]:
    """Return every method by name, in the order of their files' names.

    Raises:
        ValueError: two files declare one name.
    """
    package = importlib.import_module("autolora_eval.guidance.methods")
    found: dict[str, GuiderMethod] = {}
    files: dict[str, str] = {}
    for module in pkgutil.iter_modules(package.__path__):
        declared: GuiderMethod = importlib.import_module(f"{package.__name__}.{module.name}").METHOD
        if declared.name in found:
            raise ValueError(
                f"two methods are named '{declared.name}': {files[declared.name]}.py and "
                f"{module.name}.py"
            )
        found[declared.name], files[declared.name] = declared, module.name
    return found


def method(name: str) -> GuiderMethod:
    """Return the method of that name.

    Raises:
        UsageError: there is none; the nearest name is suggested.
    """
    known = methods()
    if name not in known:
        raise UsageError(f"unknown guider '{name}'.{did_you_mean(name, known)}")
    return known[name]


# --------------------
# A method whose images are there already: `images:` in the methods of a benchmark file.


class ImageSetParameters(MethodParameters):
    """What the benchmark says about existing images."""

    uses_the_model: ClassVar[bool] = False

    nfe: int | None = Field(default=None, ge=0)
    """The number of function evaluations per image. Default: unknown."""


@dataclass(frozen=True, kw_only=True)
class ImageSetMethod(Method):
    """Images of somebody else.

    Attributes:
        place: where they are.
        stated: the place, as the benchmark names it.
    """

    place: Path
    stated: str

    @property
    def identity(self) -> str:
        """The place, which tells two sets of one name apart."""
        return self.stated

    def nfe(self, parameters: MethodParameters, num_steps: int) -> int | None:
        """Return what their maker says of the passes; None if nothing."""
        assert isinstance(parameters, ImageSetParameters)
        return parameters.nfe


def image_set_method(stated: str, place: Path) -> ImageSetMethod:
    """Return the images at a place as a method.

    Tables show its path only within the benchmark's folder: the rest is somebody's machine.

    Args:
        stated: the place, as the benchmark names it.
        place: where that is.
    """
    path = Path(stated)
    is_within = not path.is_absolute() and not {"..", "~"} & set(path.parts)
    return ImageSetMethod(
        name=stated if is_within else place.name,
        stated=stated,
        display_name="Images made elsewhere",
        summary="Images that were not made here: only what they show is measured.",
        source="made elsewhere",
        parameters=ImageSetParameters,
        place=place,
    )
