"""Hostile input of every kind: a documented error or success, no hang, no file outside touched.

`make fuzz` runs more cases, drawn at random.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fuzz_inputs import INPUTS
from hypothesis import HealthCheck, Phase, example, given, settings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
MAX_SECONDS = 10
CASES = int(os.environ.get("CASES", "100"))
SHARES = {"runs": 0.05, "archives": 0.4}  # their cases take longer


class Hang(BaseException):
    """A case took too long; no clause of the product catches this."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `Hang` if the block takes longer."""

    def ring(*_: object) -> None:
        raise Hang(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def listing(folder: Path, inside: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of what is in a folder beside another."""
    with os.scandir(folder) as found:
        stats = {entry.name: entry.stat(follow_symlinks=False) for entry in found}
    return {n: (s.st_size, s.st_mtime_ns) for n, s in stats.items() if n != inside.name}


@pytest.mark.parametrize("name", INPUTS)
def test_hostile_input_is_refused_with_a_documented_error_or_read(tmp_path, name) -> None:
    kind, place = INPUTS[name], tmp_path / "inside"
    place.mkdir()
    (tmp_path / "mine.png").write_bytes(b"my picture")
    kind.prepare(place)
    before = listing(tmp_path, place)

    @settings(
        max_examples=max(1, round(CASES * SHARES.get(name, 1))),
        derandomize="CASES" not in os.environ,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.values)
    def case(value: Any) -> None:
        with alarm(MAX_SECONDS), suppress(*kind.errors):
            kind.use(place, value)
        assert listing(tmp_path, place) == before, "a file outside was touched"

    for value in kind.examples:
        case = example(value)(case)
    case()
