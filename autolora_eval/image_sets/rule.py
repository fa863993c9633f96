"""A method whose images are there already: `images:` in the methods of a benchmark file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from autolora_eval.guidance.registry import MethodParameters, Rule


class ImageSetParameters(MethodParameters):
    """What is known of images that were made elsewhere.

    Attributes:
        nfe: denoiser passes that one of them took, as their maker says; not known where not said.
    """

    uses_the_model: ClassVar[bool] = False

    nfe: int | None = Field(default=None, ge=0)


@dataclass(frozen=True, kw_only=True)
class ImageSetMethod(Rule):
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
