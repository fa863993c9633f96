"""Laws of tensors: shape, dtype, device, rows of a batch, and what is not to be touched."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from autolora_eval.guider_checks.denoising_loop import Step, denoised, is_blind, normal, recorded
from autolora_eval.guider_checks.guider_under_test import (
    CheckFailedError,
    CheckSkippedError,
    GuiderUnderTest,
    distance,
    first_difference,
)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_REAL = (2, 4, 128, 128)  # the latents of two images of 1024 × 1024
_ROUNDINGS = 12  # that a rule may make, each of half of the dtype's epsilon of the largest value


def check_output_shape(subject: GuiderUnderTest) -> None:
    """The result has the predictions' shape, square or not, for one image or several."""
    for shape in ((2, 4, 8, 8), (1, 4, 8, 12), (3, 4, 12, 8)):
        for number, step, where in _replayed(subject, partial(_like, shape=shape)):
            if step.prediction.shape != shape:
                raise CheckFailedError(
                    f"predictions of shape {list(shape)} became one of "
                    f"{list(step.prediction.shape)} at step {number}{where}. Return [B, C, H, W] "
                    "as it came in; use keepdim=True where you reduce."
                )


def check_output_dtype(subject: GuiderUnderTest) -> None:
    """The result of float32, bfloat16 and float16 predictions is of the same dtype, and finite."""
    for dtype in _DTYPES:
        for number, step, where in _replayed(subject, partial(torch.Tensor.to, dtype=dtype)):
            if step.prediction.dtype != dtype:
                raise CheckFailedError(
                    f"{_short(dtype)} predictions became {_short(step.prediction.dtype)} at step "
                    f"{number}{where}. Compute in float32 if you must, and return "
                    "`result.to(pred_cond.dtype)`."
                )
            if not step.prediction.isfinite().all():
                raise CheckFailedError(
                    f"{_short(dtype)} predictions became infinite or NaN at step {number}{where}. "
                    "Compute norms and exponentials in float32."
                )
    for dtype in _DTYPES[1:]:
        _keeps_numbers(subject, dtype)


def _keeps_numbers(subject: GuiderUnderTest, dtype: torch.dtype) -> None:
    """Compare with float32 at a real latent's size, where a sum of squares leaves float16."""
    noise, tolerance = normal(_REAL), _ROUNDINGS * torch.finfo(dtype).eps / 2
    made = subject.drive(subject.build(), predict=lambda *which: noise(*which).to(dtype))
    full = subject.drive(subject.build(), predict=lambda *which: noise(*which).to(dtype).float())
    pairs = zip(made, full, strict=True)
    gaps = [distance(a.prediction, b.prediction) for a, b in pairs]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    if gaps[worst] > tolerance:
        raise CheckFailedError(
            f"of {_short(dtype)} predictions of a real size, {list(_REAL)}, the result is "
            f"{gaps[worst]:.1%} off that of the same numbers in float32 (step {worst}), where "
            f"rounding explains {tolerance:.1%}. Compute norms, sums and exponentials in float32."
        )


def check_output_device(subject: GuiderUnderTest) -> None:
    """The result lies where the predictions lie.

    Where there is no accelerator, torch's `meta` device stands for one: it computes nothing, and
    refuses to mix with the CPU as an accelerator does.
    """
    device = _second_device()
    try:
        steps = list(_replayed(subject, lambda part: part.to(device)))
    except NotImplementedError as error:
        if device != "meta":
            raise
        told = str(error).splitlines()[0]
        raise CheckSkippedError(
            f"there is no accelerator here, and it cannot run on torch's meta device: {told:.120}"
        ) from error
    except RuntimeError as error:
        told = str(error).splitlines()[0]
        if device == "meta" and ".item()" in told:
            raise CheckSkippedError(
                "there is no accelerator here, and it takes numbers out of tensors, which torch's "
                "meta device has none of"
            ) from error
        raise CheckFailedError(
            f"with predictions on {device} it failed: {told:.160}. Make its own tensors with "
            "`device=pred_cond.device`."
        ) from error
    for number, step, where in steps:
        if step.prediction.device.type != device:
            raise CheckFailedError(
                f"predictions on {device} became one on {step.prediction.device} at step {number}"
                f"{where}. Make its own tensors with `device=pred_cond.device`."
            )


def check_batch_independence(subject: GuiderUnderTest) -> None:
    """An image does not depend on its neighbours in the batch, nor on its place among them."""
    noise = normal(_REAL)
    large = [step.prediction for step in subject.drive(subject.build(), predict=noise)]
    for order, what in (([1], "alone"), ([1, 0], "in another place")):
        inputs = subject.inputs.rows(order)
        _same_rows(subject.predictions(), order, what, subject.drive(subject.build(), inputs))

        def rows(*which: Any, order: list[int] = order) -> torch.Tensor:  # noqa: ANN401
            return noise(*which)[order]

        apart = subject.drive(subject.build(), inputs, predict=rows)
        _same_rows(large, order, f"{what}, of real size {list(_REAL)},", apart)


def _same_rows(
    together: Sequence[torch.Tensor], order: list[int], what: str, apart: Sequence[Step]
) -> None:
    made = [step.prediction for step in apart]
    step = first_difference(made, [prediction[order] for prediction in together])
    if step is not None:
        raise CheckFailedError(
            f"an image made {what} differs from the same image in a batch (step {step}). Reduce "
            "over all dimensions but the first, `dim=tuple(range(1, pred.ndim))`; and draw noise "
            "of its own for one image, [1, C, H, W], for all of them."
        )


def check_inputs_not_modified(subject: GuiderUnderTest) -> None:
    """Neither the predictions nor what the denoiser is conditioned on are changed in place."""
    inputs = subject.inputs
    kept = [tensor.clone() for tensor in inputs.tensors()]
    handed: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def hand_out(number: int, name: str, batch: Any) -> torch.Tensor:  # noqa: ANN401
        part = subject.guided[number].parts[name].clone()
        handed.append((f"{name} of step {number}", part, part.clone()))
        return part

    try:
        subject.drive(subject.build(), predict=hand_out)
        changed = [name for name, part, copy in handed if distance(part, copy) > 0]
        same = all(map(torch.equal, inputs.tensors(), kept))
    finally:
        for tensor, copy in zip(inputs.tensors(), kept, strict=True):
            tensor.copy_(copy)
    if changed or not same:
        what = changed[0] if changed else "a prompt's embeddings or the latents"
        raise CheckFailedError(
            f"it changes {what} in place. Work on a copy: `x = x + …` in place of `x += …`."
        )


def check_deterministic(subject: GuiderUnderTest) -> None:
    """The same inputs give the same bits, and the global random generators are left alone."""
    guider = subject.build()
    # What a guider sets on the denoiser may draw: its passes are really made a second time.
    remember = is_blind(guider)
    predict = denoised(guider, subject.model, subject.inputs, remember=remember)
    with _generators_kept() as stand:
        torch.manual_seed(torch.initial_seed() % 2**31 + 1)
        before = stand()
        again = subject.drive(guider, predict=predict)
        moved = [name for name, state in stand().items() if state != before[name]]
    for number, (a, b) in enumerate(zip(subject.guided, again, strict=True)):
        if not torch.equal(a.prediction, b.prediction):
            raise CheckFailedError(
                f"two runs on the same inputs differ at step {number}. Draw no random numbers, or "
                "draw them from a generator of its own that is seeded anew at step 0; read no "
                "clock, and keep nothing on the class or the denoiser."
            )
    if moved:
        raise CheckFailedError(
            f"it draws from {moved[0]}'s global random generator, or seeds it: what is drawn after "
            "it, the next image's noise too, is then another. Use a torch.Generator of its own."
        )


@contextmanager
def _generators_kept() -> Iterator[Callable[[], dict[str, object]]]:
    """Put the global random generators back; yield a function that tells how they stand."""
    python, numpy_state = random.getstate(), np.random.get_state()

    def stand() -> dict[str, object]:
        return {
            "torch": torch.get_rng_state().numpy().tobytes(),
            "numpy": pickle.dumps(np.random.get_state()),
            "random": random.getstate(),
        }

    with torch.random.fork_rng(devices=[]):
        try:
            yield stand
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


def _replayed(
    subject: GuiderUnderTest, change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[tuple[int, Step, str]]:
    """Drive fresh guiders on the recorded predictions, each changed; no pass is made.

    Yields:
        A step's number, the step, and at what parameters; also where the guider does not act.
    """
    for changes, where in subject.settings:
        predict = recorded(subject.steps(**changes), change)
        for number, step in enumerate(subject.drive(subject.build(**changes), predict=predict)):
            yield number, step, where


def _like(part: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a prediction's own numbers in another shape."""
    flat = part.flatten()
    times = -(-torch.Size(shape).numel() // flat.numel())
    return flat.repeat(times)[: torch.Size(shape).numel()].reshape(shape).clone()


def _second_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "meta"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
