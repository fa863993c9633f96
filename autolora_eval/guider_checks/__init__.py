"""Checks of a guidance method, like scikit-learn's estimator checks.

    from autolora_eval.guider_checks import check_guider

    check_guider(MyGuider, strength=2.0)

The checks run in seconds on the CPU, on tiny random models that are made in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from autolora_eval.guidance.method import ActiveInterval, GuiderSpec, ModelName
from autolora_eval.guider_checks.runner import (
    CheckFailedError,
    CheckResult,
    CheckSkippedError,
    all_checks,
    run_with_required,
)

if TYPE_CHECKING:
    import pytest
    from diffusers.guiders import BaseGuidance

__all__ = [
    "ActiveInterval",
    "CheckFailedError",
    "CheckResult",
    "CheckSkippedError",
    "GuiderSpec",
    "check_guider",
    "guider_checks_generator",
    "parametrize_with_checks",
]


def check_guider(
    guider: type[BaseGuidance] | BaseGuidance,
    *,
    model: ModelName = "sdxl",
    spec: GuiderSpec | None = None,
    on_fail: Literal["raise"] | None = "raise",
    **parameters: Any,  # noqa: ANN401
) -> list[CheckResult]:
    """Run all checks on a guider.

    Args:
        guider: A guider class, or an instance. Fresh instances are made from an instance's config.
        model: Family of the tiny model that the guider runs on, `"sdxl"` or `"sd3"`.
        spec: What the guider promises. Defaults to its attribute `guider_spec`; without one, to
            what its constructor shows, or to what is known about diffusers' own guiders.
        on_fail: `None` returns the results even if checks failed, instead of raising an error.
        **parameters: Arguments of the constructor. Choose values at which the guider acts: many
            checks are skipped at its identity parameters.

    Returns:
        One result per check, in the order in which they ran.

    Raises:
        CheckFailedError: if a check fails. The message lists all failed checks.
        UsageError: if `guider` is not a guider, or cannot be made from the parameters.

    Example:
        ```python
        check_guider(MyGuider, strength=2.0)
        results = check_guider(MyGuider, model="sd3", on_fail=None, strength=2.0)
        ```
    """
    from autolora_eval.guider_checks.harness import guider_under_test

    tested = guider_under_test(guider, model=model, spec=spec, parameters=parameters)
    known: dict[str, CheckResult] = {}
    results = [run_with_required(name, tested, known) for name in all_checks()]
    failed = [result for result in results if result.status == "failed"]
    if failed and on_fail == "raise":
        lines = [f"{tested.cls.__name__} fails {len(failed)} of {len(results)} checks:"]
        lines += [f"  {result.name}: {result.message}" for result in failed]
        raise CheckFailedError("\n".join(lines), results)
    return results


def guider_checks_generator(
    guider: type[BaseGuidance] | BaseGuidance,
    *,
    model: ModelName = "sdxl",
    spec: GuiderSpec | None = None,
    **parameters: Any,  # noqa: ANN401
) -> Iterator[tuple[str, Callable[[], CheckResult]]]:
    """Yield the name of each check, and a function that runs it on the guider.

    The function first runs the checks that it requires, unless they already ran. Arguments are
    those of `check_guider`.
    """
    from autolora_eval.guider_checks.harness import guider_under_test

    tested = guider_under_test(guider, model=model, spec=spec, parameters=parameters)
    known: dict[str, CheckResult] = {}
    for name in all_checks():
        yield name, partial(run_with_required, name, tested, known)


def parametrize_with_checks(
    guider: type[BaseGuidance] | BaseGuidance,
    *,
    model: ModelName = "sdxl",
    spec: GuiderSpec | None = None,
    **parameters: Any,  # noqa: ANN401
) -> pytest.MarkDecorator:
    """Decorate a test so that pytest runs it once for each check.

    A failed check fails its test with the check's message, and a skipped check skips it. Arguments
    are those of `check_guider`.

    Example:
        ```python
        @parametrize_with_checks(MyGuider, strength=2.0)
        def test_my_guider(check):
            check()
        ```
    """
    import pytest

    def as_test(run: Callable[[], CheckResult]) -> Callable[[], None]:
        def test() -> None:
            result = run()
            if result.status == "skipped":
                pytest.skip(result.message)
            if result.status == "failed":
                pytest.fail(result.message, pytrace=False)

        return test

    checks = guider_checks_generator(guider, model=model, spec=spec, **parameters)
    return pytest.mark.parametrize(
        "check", [pytest.param(as_test(run), id=name) for name, run in checks]
    )
