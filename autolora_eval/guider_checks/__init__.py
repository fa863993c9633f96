"""Test a guidance method against the laws that every one should keep.

    from autolora_eval.guider_checks import check_guider

    check_guider(MyGuider, strength=2.0)

The laws run on tiny random models on the CPU, in seconds, with no model hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.guidance.spec import ActiveInterval, GuiderSpec, ModelName

if TYPE_CHECKING:
    import pytest
    from diffusers.guiders import BaseGuidance

    from autolora_eval.guider_checks.guider_under_test import GuiderUnderTest
    from autolora_eval.guider_checks.runner import Check, CheckResult

__all__ = [
    "ActiveInterval",
    "CheckFailedError",
    "GuiderSpec",
    "check_guider",
    "guider_checks_generator",
    "parametrize_with_checks",
]


class CheckFailedError(AutoLoRAEvalError):
    """A guider breaks laws; the message names each and says what to do.

    Attributes:
        results: what every law said.
    """

    def __init__(self, name: str, results: Sequence[CheckResult]) -> None:
        self.results = list(results)
        broken = [result for result in results if result.status == "failed"]
        lines = [f"{name} breaks {len(broken)} of {len(results)} laws:"]
        lines += [f"  {result.name}: {result.message}" for result in broken]
        super().__init__("\n".join(lines))


def check_guider(
    guider: type[BaseGuidance] | BaseGuidance,
    *,
    model: ModelName = "sdxl",
    spec: GuiderSpec | None = None,
    on_fail: Literal["raise"] | None = "raise",
    **parameters: Any,  # noqa: ANN401
) -> list[CheckResult]:
    """Test a guider against all laws.

    Args:
        guider: a class, or an instance, of which fresh ones are made from its config.
        model: the family of the tiny model that it is tried on.
        spec: what the guider claims; by default its attribute `guider_spec`, or what its
            constructor tells.
        on_fail: None returns the results of broken laws too, in place of raising.
        parameters: of the constructor. They should be such that the guider acts: at its neutral
            parameters many laws can tell nothing.

    Returns:
        One result a law: "passed", "failed" or "not applicable", the last two with the reason.

    Raises:
        CheckFailedError: it breaks at least one law.
        UsageError: it is no guider, or cannot be made from these parameters.
    """
    from autolora_eval.guider_checks.guider_under_test import subject_of
    from autolora_eval.guider_checks.runner import judge

    subject = subject_of(guider, model=model, spec=spec, parameters=parameters)
    results = list(judge(subject))
    if on_fail == "raise" and any(result.status == "failed" for result in results):
        raise CheckFailedError(subject.cls.__name__, results)
    return results


def guider_checks_generator(
    guider: type[BaseGuidance] | BaseGuidance,
    *,
    model: ModelName = "sdxl",
    spec: GuiderSpec | None = None,
    **parameters: Any,  # noqa: ANN401
) -> list[tuple[str, Callable[[], CheckResult]]]:
    """Return each law's name, and a function that tries it on the guider.

    Arguments are those of `check_guider`.
    """
    from autolora_eval.guider_checks.guider_under_test import subject_of
    from autolora_eval.guider_checks.runner import LAWS

    subject = subject_of(guider, model=model, spec=spec, parameters=parameters)
    known: dict[str, CheckResult] = {}
    return [(law.name, _trial(law, subject, known)) for law in LAWS]


def parametrize_with_checks(
    guider: type[BaseGuidance] | BaseGuidance,
    *,
    model: ModelName = "sdxl",
    spec: GuiderSpec | None = None,
    **parameters: Any,  # noqa: ANN401
) -> pytest.MarkDecorator:
    """Decorate a test so that pytest runs it once for each law.

        @parametrize_with_checks(MyGuider, strength=2.0)
        def test_my_guider(law):
            law()

    A broken law fails its test with the law's message; one that cannot tell anything is skipped
    with its reason. Arguments are those of `check_guider`.
    """
    import pytest

    def tested(trial: Callable[[], CheckResult]) -> Callable[[], None]:
        def test() -> None:
            result = trial()
            if result.status == "not applicable":
                pytest.skip(result.message)
            if result.status == "failed":
                pytest.fail(result.message, pytrace=False)

        return test

    trials = guider_checks_generator(guider, model=model, spec=spec, **parameters)
    return pytest.mark.parametrize(
        "law", [pytest.param(tested(trial), id=name) for name, trial in trials]
    )


def _trial(
    law: Check, subject: GuiderUnderTest, known: dict[str, CheckResult]
) -> Callable[[], CheckResult]:
    """Return a function that tries one law after those that it needs, each of them once."""
    from autolora_eval.guider_checks.runner import LAWS

    needed = {test.__name__ for test in law.needs}
    wanted = [*(other for other in LAWS if other.name in needed), law]

    def run() -> CheckResult:
        for one in wanted:
            if one.name not in known:
                failed = [name for name, result in known.items() if result.status == "failed"]
                known[one.name] = one.of(subject, failed)
        return known[law.name]

    return run
