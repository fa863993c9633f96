"""The laws in the order in which they are tried, and how they are tried."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import diffusers
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import autolora_eval
from autolora_eval.guider_checks import (
    denoising_checks,
    object_checks,
    prediction_checks,
    tensor_checks,
)
from autolora_eval.guider_checks.denoising_loop import ProtocolError, silence
from autolora_eval.guider_checks.guider_under_test import (
    CheckFailedError,
    CheckSkippedError,
    GuiderUnderTest,
)

_LIBRARIES = [Path(str(library.__file__)).parent for library in (autolora_eval, diffusers, torch)]
Status = Literal["passed", "failed", "not applicable"]


@dataclass(frozen=True)
class CheckResult:
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
class Check:
    """One law.

    Attributes:
        test: raises `CheckFailedError` or `CheckSkippedError`; its docstring states the law.
        needs: laws without which this one can tell nothing: if one fails, this is not applicable.
    """

    test: Callable[[GuiderUnderTest], None]
    needs: tuple[Callable[[GuiderUnderTest], None], ...] = ()

    @property
    def name(self) -> str:
        """The law's name, that of its function."""
        return self.test.__name__

    @property
    def statement(self) -> str:
        """The law in a sentence."""
        return (self.test.__doc__ or "").splitlines()[0]

    def of(self, subject: GuiderUnderTest, failed: Sequence[str] = ()) -> CheckResult:
        """Try it on a guider.

        Args:
            subject: the guider.
            failed: names of the laws that it has broken.
        """
        lacking = [law.__name__ for law in self.needs if law.__name__ in failed]
        if lacking:
            return CheckResult(
                self.name, "not applicable", f"cannot be told while {lacking[0]} fails"
            )
        try:
            with silence():
                self.test(subject)
        except (CheckFailedError, ProtocolError) as error:
            return CheckResult(self.name, "failed", f"{error}{_place(error.__cause__)}")
        except CheckSkippedError as error:
            return CheckResult(self.name, "not applicable", str(error))
        except (Exception, SystemExit) as error:
            told = " ".join(str(error).split())
            message = f"it raised {type(error).__name__}: {told:.300}{_place(error)}"
            return CheckResult(self.name, "failed", message)
        return CheckResult(self.name, "passed")


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


def _laws() -> Iterator[Check]:
    p, t, d, o = prediction_checks, tensor_checks, denoising_checks, object_checks
    yield Check(d.check_completes_image)
    runs = (d.check_completes_image,)
    yield Check(d.check_runs_in_pipeline, runs)
    yield Check(t.check_output_shape, runs)
    sound = (*runs, t.check_output_shape)
    yield Check(t.check_output_dtype, sound)
    yield Check(t.check_output_device, sound)
    yield Check(d.check_denoiser_restored, sound)
    clean = (*sound, d.check_denoiser_restored)
    yield Check(d.check_denoiser_restored_after_error, clean)
    yield Check(t.check_inputs_not_modified, sound)
    untouched = (*clean, t.check_inputs_not_modified)
    yield Check(t.check_deterministic, untouched)
    tellable = (*untouched, t.check_deterministic)
    yield Check(t.check_batch_independence, tellable)
    yield Check(o.check_no_state_between_images, (*tellable, d.check_runs_in_pipeline))
    yield Check(d.check_nfe, (*runs, d.check_runs_in_pipeline))
    yield Check(d.check_num_conditions_before_first_step, sound)
    yield Check(d.check_is_conditional, sound)
    yield Check(d.check_block_state_inputs, sound)
    yield Check(p.check_guidance_has_effect, tellable)
    acting = (*tellable, p.check_guidance_has_effect)
    yield Check(p.check_scales_have_effect, acting)
    yield Check(p.check_identity_params, acting)
    yield Check(p.check_active_intervals, acting)
    yield Check(p.check_disabled, acting)
    yield Check(p.check_linear_params, (*acting, p.check_scales_have_effect))
    yield Check(p.check_linear_in_predictions, acting)
    copied = (*tellable, d.check_runs_in_pipeline)
    yield Check(o.check_new_roundtrip, copied)
    yield Check(o.check_save_load_roundtrip, (*copied, o.check_new_roundtrip))


LAWS: tuple[Check, ...] = tuple(_laws())


def judge(subject: GuiderUnderTest, laws: Sequence[Check] = LAWS) -> Iterator[CheckResult]:
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


# --------------------
# What the laws say of a guider, on a terminal.


_MARKS = {
    "passed": ("passed", "green"),
    "failed": ("FAILED", "bold red"),
    "not applicable": ("–", "dim"),
}


def show_laws(name: str, results: Iterable[CheckResult], console: Console) -> None:
    """Print a row a law: its name, whether it is kept, and what is wrong or why it cannot tell."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("Law", overflow="fold", max_width=34)
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    counts: Counter[str] = Counter()
    for result in results:
        counts[result.status] += 1
        mark, style = _MARKS[result.status]
        shade = "dim" if result.status == "not applicable" else ""
        law = result.name.replace("_", " ")
        table.add_row(Text(law, shade), Text(mark, style), Text(result.message, shade))
    console.print(table)
    parts = [f"{counts[status]} {status}" for status in _MARKS if counts[status]]
    console.print(Text.assemble((name, "bold"), f": {', '.join(parts)}"), soft_wrap=True)
