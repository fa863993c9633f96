"""The laws in the order in which they are tried, and how they are tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from autolora_eval.guidance.laws import (
    denoising_laws,
    object_laws,
    prediction_laws,
    tensor_laws,
)
from autolora_eval.guidance.laws.drive import silence
from autolora_eval.guidance.laws.subject import LawBrokenError, NotApplicableError, Subject

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
        except LawBrokenError as error:
            return LawResult(self.name, "failed", str(error))
        except NotApplicableError as error:
            return LawResult(self.name, "not applicable", str(error))
        except Exception as error:
            told = " ".join(str(error).split())
            return LawResult(self.name, "failed", f"it raised {type(error).__name__}: {told:.300}")
        return LawResult(self.name, "passed")


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
    yield Law(o.survives_new, tellable)
    yield Law(o.survives_save_and_load, (*tellable, o.survives_new))


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
