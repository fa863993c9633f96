"""Values are checked against annotations, and signatures become parameters."""

from __future__ import annotations

import enum
import math
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from diffusers.guiders import AutoGuidance, ClassifierFreeGuidance
from diffusers.hooks import LayerSkipConfig
from pydantic import ValidationError

from autolora_eval._errors import UsageError
from autolora_eval.plugins.signatures import (
    CoercionError,
    MethodParameters,
    coerce,
    parameters_model,
    signature_of,
)

pytestmark = pytest.mark.model


class Mode(enum.Enum):
    SOFT = "soft"
    HARD = "hard"


@dataclass
class Layer:
    index: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.index < 0:
            raise ValueError("index must not be negative")


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (2, float, 2.0),
        (2.5, float, 2.5),
        (2, int, 2),
        (True, bool, True),
        ("x", str, "x"),
        (None, Optional[int], None),  # noqa: UP045
        (2, int | float, 2),
        (2, float | int | None, 2),
        (2.5, Union[int, float], 2.5),  # noqa: UP007
        ([1, 2], list[int], [1, 2]),
        ([1, 2], Sequence[float], [1.0, 2.0]),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, "a"], tuple[int, str], (1, "a")),
        ([1, 1], set[int], {1}),
        ([1, "a"], list, [1, "a"]),
        (3, int | tuple[int, ...] | None, 3),
        ([3], int | tuple[int, ...] | None, (3,)),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ({"a": 1}, Mapping[str, Any], {"a": 1}),
        ("soft", Mode, Mode.SOFT),
        ("a", Literal["a", "b"], "a"),
        ("x/y", pathlib.Path, pathlib.Path("x/y")),
        (1, Annotated[float, "in (0, 1)"], 1.0),
        ({"index": 2}, Layer, Layer(2)),
        ([{"index": 2}], Layer | list[Layer] | None, [Layer(2)]),
        ({"index": 2}, Layer | dict[str, Any], Layer(2)),
        ({"indices": [0]}, LayerSkipConfig, LayerSkipConfig([0])),
        ({"any": [1]}, Any, {"any": [1]}),
        ("x", "a forward reference", "x"),
    ],
)
def test_a_value_becomes_an_object_of_the_annotated_type(value, annotation, expected) -> None:
    made = coerce(value, annotation)
    assert made == expected
    assert type(made) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("two", float, "expected a valid number"),
        ("1e-3", float, "expected a valid number"),
        (True, float, "expected a valid number"),
        (True, int, "expected a valid integer"),
        (2.5, int, "expected a valid integer"),
        (1, bool, "expected a valid boolean"),
        (1, str, "expected a valid string"),
        (None, float, "expected a valid number"),
        (5, None, "expected nothing"),
        ("x", float | None, "expected a valid number"),
        ("x", list[int] | int, "expected a valid list or a valid integer"),
        ([1, "x"], list[int], "[1]: expected a valid integer (got 'x')"),
        ([1, 2, 3], tuple[int, int], "should have at most 2 items"),
        ([0.1], tuple[float, float], "item 2 is missing"),
        ({"a": "x"}, dict[str, int], "a: expected a valid integer (got 'x')"),
        ("firm", Mode, "expected 'soft' or 'hard'"),
        ("c", Literal["a", "b"], "expected 'a' or 'b'"),
        ({"indx": 1}, Layer, "Layer has no parameter 'indx'. Did you mean 'index'?"),
        ({"weight": 1}, Layer, "Layer needs 'index'"),
        ({"index": "x"}, Layer, "index: expected a valid integer"),
        ({"index": -1}, Layer, "Layer refuses it: index must not be negative"),
        ({"indx": 1}, Layer | dict[str, Any] | None, "Did you mean 'index'?"),
        (3, Layer, "expected a map of Layer's parameters"),
        ([{"index": 0}, {}], list[Layer], "[1]: Layer needs 'index'"),
        (math.nan, Any, "expected a finite number"),
        (math.inf, float, "expected a finite number"),
        ({1: 2}, Any, "expected a finite number, text, a list or a map"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_path(value, annotation, message) -> None:
    with pytest.raises(CoercionError) as caught:
        coerce(value, annotation)
    assert message in str(caught.value)


class Base:
    def __init__(self, start: float = 0.0, stop: float = 1.0) -> None: ...


class Passing(Base):
    def __init__(self, strength: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Inheriting(Passing):
    """Has no constructor of its own."""


class Open:
    def __init__(self, **kwargs: Any) -> None: ...


@pytest.mark.parametrize("cls", [Passing, Inheriting])
def test_parameters_passed_on_to_a_parent_are_accepted_and_no_others(cls: type) -> None:
    signature = signature_of(cls)
    assert list(signature.parameters) == ["strength", "start", "stop"]
    assert (signature.required, signature.is_open) == (["strength"], False)
    model = parameters_model(signature)
    assert model.model_validate({"strength": 1, "stop": 0}).arguments() == {
        "strength": 1.0,
        "stop": 0.0,
    }
    with pytest.raises(ValidationError, match="extra_forbidden"):
        model.model_validate({"strength": 1, "stp": 0.5})


def test_a_callable_with_kwargs_accepts_any_name() -> None:
    model = parameters_model(signature_of(Open))
    assert model.model_validate({"whatever": 3}).arguments() == {"whatever": 3}


def test_parameters_that_are_not_set_keep_the_defaults() -> None:
    model = parameters_model(signature_of(ClassifierFreeGuidance))
    given = model.model_validate({"stop": 1})
    assert given.arguments() == {"stop": 1.0}
    assert given.model_dump()["start"] == 0.0, "and yet recorded"
    assert given.with_model_defaults(4.0).arguments() == {"stop": 1.0, "guidance_scale": 4.0}
    own = model.model_validate({"guidance_scale": 2})
    assert own.with_model_defaults(4.0).arguments() == {"guidance_scale": 2.0}


def test_values_stay_plain_data_that_can_be_recorded() -> None:
    model = parameters_model(signature_of(AutoGuidance))
    given = {"auto_guidance_config": [{"indices": [0], "fqn": "blocks"}]}
    parameters = model.model_validate(given)
    assert parameters.model_dump(exclude_unset=True) == given
    assert parameters.arguments()["auto_guidance_config"] == [LayerSkipConfig([0], "blocks")]


def test_1_and_1_0_are_the_same_setting() -> None:
    model = parameters_model(signature_of(Base))
    whole, decimal = (model.model_validate({"stop": stop}) for stop in (1, 1.0))
    assert repr(whole.model_dump()) == repr(decimal.model_dump())


class Awkward:
    """Names that mean something to the class that holds a method's parameters."""

    def __init__(
        self,
        copy: int = 1,
        model_name: str = "m",
        schema: str = "s",
        _hidden: int = 0,
        *args: int,
        odd: Any = object,
    ) -> None: ...


def test_parameters_with_unusable_names_keep_their_defaults() -> None:
    signature = signature_of(Awkward)
    model = parameters_model(signature)
    free = [name for name in signature.parameters if not hasattr(MethodParameters, name)]
    assert list(model.model_fields) == [name for name in free if not name.startswith("_")]
    assert model().model_dump() == {"model_name": "m", "odd": None}

    class Needs:
        def __init__(self, copy: int) -> None: ...

    with pytest.raises(UsageError, match="needs a parameter called 'copy'"):
        parameters_model(signature_of(Needs))


def test_an_annotation_that_cannot_be_evaluated_accepts_anything() -> None:
    def sampler(prompt: str, seed: int, model: Missing, *, w: float, x: Missing = 1): ...  # noqa: F821

    signature = signature_of(sampler, skip=3)
    assert list(signature.parameters) == ["w", "x"]
    model = parameters_model(signature)
    assert model.model_validate({"w": 1, "x": "y"}).arguments() == {"w": 1.0, "x": "y"}
    with pytest.raises(ValidationError, match="expected a valid number"):
        model.model_validate({"w": "y"})
