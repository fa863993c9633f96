"""The laws in the order in which they are tried, and how they are tried."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import diffusers
import torch

import autolora_eval
from autolora_eval.guidance.laws import (
    denoising_laws,
    object_laws,
    prediction_laws,
    tensor_laws,
)
from autolora_eval.guidance.laws.drive import ProtocolError, silence
from autolora_eval.guidance.laws.subject import LawBrokenError, NotApplicableError, Subject

_LIBRARIES = [Path(str(library.__file__)).parent for library in (autolora_eval, diffusers, torch)]
Status = Literal["passed", "failed", "not applicable"]


@dataclass(frozen=True)
class LawResult:
    """What one law says of a guider.

    Attributes:
        name: of the law.
        status: "passed", "failed" or "not applicable".
        message: what is wrong and what to do, or why the law cannot tell; empty if it passed.
    """

    name: str
    status: Status
    message: str = ""


@dataclass(frozen=True)
class Law:
    """One law.

    Attributes:
        test: raises `LawBrokenError` or `NotApplicableError`; its docstring states the law.
        needs: laws without which this one can tell nothing: if one fails, this is not applicable.
    """

    test: Callable[[Subject], None]
    needs: tuple[Callable[[Subject], None], ...] = ()

    @property
    def name(self) -> str:
        """The law's name, that of its function."""
        return self.test.__name__

    @property
    def statement(self) -> str:
        """The law in a sentence."""
        return (self.test.__doc__ or "").splitlines()[0]

    def of(self, subject: Subject, failed: Sequence[str] = ()) -> LawResult:
        """Try it on a guider.

        Args:
            subject: the guider.
            failed: names of the laws that it has broken.
        """
        lacking = [law.__name__ for law in self.needs if law.__name__ in failed]
        if lacking:
            return LawResult(
                self.name, "not applicable", f"cannot be told while {lacking[0]} fails"
            )
        try:
            with silence():
                self.test(subject)
        except (LawBrokenError, ProtocolError) as error:
            return LawResult(self.name, "failed", f"{error}{_place(error.__cause__)}")
        except NotApplicableError as error:
            return LawResult(self.name, "not applicable", str(error))
        except (Exception, SystemExit) as error:
            told = " ".join(str(error).split())
            message = f"it raised {type(error).__name__}: {told:.300}{_place(error)}"
            return LawResult(self.name, "failed", message)
        return LawResult(self.name, "passed")


def _place(error: BaseException | None) -> str:
    """Return as " (file:line)" the last line of a stranger's code that an error came through."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    own = [f for f in frames if _is_a_stranger_s(Path(f.filename))]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


def _is_a_stranger_s(file: Path) -> bool:
    of_python = file.is_relative_to(Path(traceback.__file__).parent)
    if of_python and "site-packages" not in file.parts:
        return False
    return not any(map(file.is_relative_to, _LIBRARIES))


def _laws() -> Iterator[Law]:
    p, t, d, o = prediction_laws, tensor_laws, denoising_laws, object_laws
    yield Law(d.completes_an_image)
    runs = (d.completes_an_image,)
    yield Law(d.runs_in_a_pipeline, runs)
    yield Law(t.keeps_the_shape, runs)
    sound = (*runs, t.keeps_the_shape)
    yield Law(t.keeps_the_dtype, sound)
    yield Law(t.keeps_the_device, sound)
    yield Law(d.leaves_the_denoiser_as_found, sound)
    clean = (*sound, d.leaves_the_denoiser_as_found)
    yield Law(d.leaves_the_denoiser_as_found_after_an_exception, clean)
    yield Law(t.leaves_its_inputs_alone, sound)
    untouched = (*clean, t.leaves_its_inputs_alone)
    yield Law(t.is_deterministic, untouched)
    tellable = (*untouched, t.is_deterministic)
    yield Law(t.rows_are_independent, tellable)
    yield Law(o.carries_no_state_between_images, (*tellable, d.runs_in_a_pipeline))
    yield Law(d.makes_the_passes_it_declares, (*runs, d.runs_in_a_pipeline))
    yield Law(d.announces_the_null_prompt, sound)
    yield Law(d.tells_conditional_from_unconditional, sound)
    yield Law(d.prepares_from_a_block_state_alike, sound)
    yield Law(p.guidance_acts, tellable)
    acting = (*tellable, p.guidance_acts)
    yield Law(p.every_scale_acts, acting)
    yield Law(p.neutral_parameters_change_nothing, acting)
    yield Law(p.nothing_changes_outside_its_window, acting)
    yield Law(p.nothing_changes_when_disabled, acting)
    yield Law(p.linear_parameters_are_linear, (*acting, p.every_scale_acts))
    yield Law(p.linear_in_predictions, acting)
    copied = (*tellable, d.runs_in_a_pipeline)
    yield Law(o.survives_new, copied)
    yield Law(o.survives_save_and_load, (*copied, o.survives_new))


LAWS: tuple[Law, ...] = tuple(_laws())


def judge(subject: Subject, laws: Sequence[Law] = LAWS) -> Iterator[LawResult]:
    """Try laws on a guider, one after the other.

    Args:
        subject: the guider.
        laws: which, in an order in which what they need comes first.
    """
    failed: list[str] = []
    for law in laws:
        result = law.of(subject, failed)
        if result.status == "failed":
            failed.append(law.name)
        yield result
