"""Laws of the guider as an object: its state from image to image, its copies, its file."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from diffusers.guiders import BaseGuidance

from autolora_eval.guidance.denoiser_state import restored
from autolora_eval.guider_checks.denoising_loop import normal, recorded, stepped
from autolora_eval.guider_checks.guider_under_test import (
    EQUAL,
    CheckFailedError,
    GuiderUnderTest,
    distance,
    first_difference,
)
from autolora_eval.guider_checks.tiny_models import SIDE, ModelInputs

_RESET = (
    "Reset what it remembers in prepare_inputs, when `self._step == 0`: also where it does not act."
)
_NAME_ALL = "Name every parameter in its __init__: diffusers' new() drops those of `**kwargs`. "


def check_no_state_between_images(subject: GuiderUnderTest) -> None:
    """A guider's next image is that of a fresh one, after a whole image or a broken-off one."""
    for changes, where in subject.settings:
        _starts_afresh(subject, changes, where)
    _shares_nothing(subject)
    second = subject.sample(subject.sampled.guider)
    if distance(second.latents, subject.sampled.latents) > EQUAL:
        raise CheckFailedError(
            "in the pipeline, the same prompts and seeds give other latents the second time. "
            f"{_RESET}"
        )


def _starts_afresh(subject: GuiderUnderTest, changes: Mapping[str, Any], where: str) -> None:
    fresh = [s.prediction for s in subject.drive(subject.build(**changes), subject.other_inputs)]
    same = {"predict": recorded(subject.steps(**changes), torch.Tensor.clone)}
    shape, steps = (3, 4, SIDE, 12), 7
    other = ModelInputs.random(3, rows=shape[0], steps=steps, width=shape[3])
    unlike = {"inputs": other, "predict": normal(shape)}
    for how, what in (
        (same, "another image"),
        ({**same, "stop_after": 3}, "an image broken off"),
        (unlike, f"images of {steps} steps and another size"),
    ):
        guider = subject.build(**changes)
        subject.drive(guider, **how)
        again = [s.prediction for s in subject.drive(guider, subject.other_inputs)]
        step = first_difference(again, fresh)
        if step is not None:
            raise CheckFailedError(
                f"after {what} it makes another prediction than a fresh guider does (step {step}"
                f"{where}). {_RESET}"
            )


def _shares_nothing(subject: GuiderUnderTest) -> None:
    """Take two guiders through an image each, in turns."""
    one, other, inputs = subject.build(), subject.build(), subject.other_inputs
    first = recorded(subject.guided, torch.Tensor.clone)
    with restored(subject.model.denoiser, weights=True):
        turns = zip(
            stepped(one, subject.model, subject.inputs, predict=first),
            stepped(other, subject.model, inputs),
            strict=True,
        )
        beside = [step.prediction for _, step in turns]
    step = first_difference(beside, [s.prediction for s in subject.guided_elsewhere])
    if step is not None:
        raise CheckFailedError(
            f"while another of its class makes an image, it makes another prediction (step {step})."
            " Keep what it remembers on the instance, not on the class or in the module."
        )


def check_new_roundtrip(subject: GuiderUnderTest) -> None:
    """`new()` gives a guider of the same parameters, and `new(name=value)` of the changed one."""
    parameters = _unusual(subject)
    guider = subject.build(**parameters)
    _require_config(subject, guider, {**subject.full, **parameters})
    _require_same(subject, guider.new(), "new()")
    for name, value in _others(subject).items():
        changed, kept = guider.new(**{name: value}), subject.build(**{name: value}).new()
        for copied, how in ((changed, f"new({name}={value})"), (kept, f"new() of {name}={value}")):
            if copied.config.get(name) != value:
                own = _NAME_ALL if _takes_any(subject) else ""
                raise CheckFailedError(
                    f"{how} has {name}={copied.config.get(name)}. {own}Decorate __init__ with "
                    "@register_to_config, let it change none of its arguments, and hand each on "
                    f"by name to super().__init__({name}={name})."
                )
    _keeps_its_config(subject)


def _keeps_its_config(subject: GuiderUnderTest) -> None:
    guider = subject.build()
    before = dict(guider.config)
    subject.drive(guider)
    changed = [name for name in before if not _same(before[name], guider.config.get(name))]
    if changed:
        name = changed[0]
        raise CheckFailedError(
            f"making an image changes its config: {name}={before[name]} became "
            f"{guider.config.get(name)}. Keep what changes in attributes of its own."
        )


def check_save_load_roundtrip(subject: GuiderUnderTest) -> None:
    """`save_pretrained` and `from_pretrained` give a guider of the same parameters."""
    guider = subject.build(**_unusual(subject))
    with tempfile.TemporaryDirectory() as folder:
        try:
            guider.save_pretrained(folder)
            loaded = subject.cls.from_pretrained(folder)
        except Exception as error:
            raise CheckFailedError(
                f"it cannot be saved and loaded: {type(error).__name__}: {error!s:.160}. Let its "
                "parameters be numbers, texts, lists and maps, or objects with a to_dict."
            ) from error
    lost = [n for n in subject.signature if not _same(guider.config.get(n), loaded.config.get(n))]
    if lost:
        raise CheckFailedError(
            f"{', '.join(lost)} is not what it was after save_pretrained and from_pretrained: "
            f"{guider.config.get(lost[0])} became {loaded.config.get(lost[0])}."
        )
    _require_same(subject, loaded, "save_pretrained and from_pretrained")


def _others(subject: GuiderUnderTest) -> dict[str, Any]:
    """Return another value of each number and flag that the constructor takes alone."""
    numbers = [
        name for name in subject.signature if isinstance(subject.full.get(name), int | float)
    ]
    others = {name: subject.other(name) for name in numbers}
    return {name: value for name, value in others.items() if value is not None}


def _unusual(subject: GuiderUnderTest) -> dict[str, Any]:
    """Return other values than the defaults for scales and windows, so that a lost one shows."""
    scales = {n: v for n, v in _others(subject).items() if n in subject.acting}
    together = {**subject.edges, **scales}
    return next((some for some in (together, scales) if subject.builds(**some)), {})


def _require_config(
    subject: GuiderUnderTest, guider: BaseGuidance, expected: Mapping[str, Any]
) -> None:
    config = guider.config
    missing = [name for name in subject.signature if name not in config]
    if missing:
        raise CheckFailedError(
            f"its config lacks {', '.join(missing)}, which new() then sets to the default. "
            "Decorate __init__ with @register_to_config."
        )
    other = [n for n in subject.signature if n in expected and not _same(config[n], expected[n])]
    if other:
        name = other[0]
        raise CheckFailedError(
            f"its config says {name}={config[name]}, and it was made with {expected[name]}. "
            "Decorate its own __init__ with @register_to_config, not only its parent's."
        )


def _require_same(subject: GuiderUnderTest, copied: BaseGuidance, how: str) -> None:
    before = subject.predictions(**_unusual(subject))
    after = [step.prediction for step in subject.drive(copied)]
    step = first_difference(after, before)
    if step is not None:
        own = _NAME_ALL if _takes_any(subject) else ""
        raise CheckFailedError(
            f"after {how} it makes another prediction (step {step}). {own}Keep in its config all "
            "that it is made of, and hand parameters on by name, `super().__init__(start=start)`: "
            "what is handed on by position diffusers takes for a default, which new() leaves out."
        )


def _takes_any(subject: GuiderUnderTest) -> bool:
    kinds = [p.kind for p in inspect.signature(subject.cls.__init__).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def _as_json(value: Any) -> Any:  # noqa: ANN401
    """Return what stands for an object in JSON: its own map, or what it holds."""
    for way in ("to_dict", "tolist"):
        if hasattr(value, way):
            return getattr(value, way)()
    if isinstance(value, Enum):
        return value.value
    held = getattr(value, "__dict__", None)
    return [type(value).__qualname__, held] if held else str(value)


def _same(a: Any, b: Any) -> bool:  # noqa: ANN401
    """Tell whether two parameters are one as JSON keeps them: tuples as lists, NaN as itself."""
    kept = (json.dumps(one, default=_as_json, sort_keys=True, skipkeys=True) for one in (a, b))
    return next(kept) == next(kept)
