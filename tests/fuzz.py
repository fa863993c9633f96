"""Hostile input of every kind: a documented error or success, no hang, no file outside touched.

    python tests/fuzz.py --cases 100000 [--seed 0] [--only replies]

`tests/test_fuzz.py` runs a few hundred cases of each kind.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz_inputs import INPUTS
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from mutations import Input

MAX_SECONDS = 10


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


@dataclass
class Fuzzer:
    """Runs the cases of one kind of input in a folder of its own.

    Attributes:
        kind: the kind of input.
        outer: a folder with a file that nothing may touch; the cases run in a folder in it.
        counts: cases by how they ended.
    """

    kind: Input
    outer: Path
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        """Where the cases run."""
        return self.outer / "inside"

    def case(self, value: Any) -> None:
        """Run one case."""
        before = listing(self.outer, self.place)
        with alarm(MAX_SECONDS):
            try:
                self.kind.use(self.place, value)
                ended = "success"
            except self.kind.errors as error:
                ended = type(error).__name__
        assert listing(self.outer, self.place) == before, "a file outside was touched"
        self.counts[ended] = self.counts.get(ended, 0) + 1

    def run(self, cases: int, number: int) -> None:
        """Run the examples, and so many further cases."""
        (self.place).mkdir(parents=True, exist_ok=True)
        (self.outer / "mine.png").write_bytes(b"my picture")
        self.kind.prepare(self.place)

        def test(value: Any) -> None:
            self.case(value)

        tested: Callable[[], None] = given(self.kind.values)(test)
        for value in self.kind.examples:
            tested = example(value)(tested)
        phases = (Phase.explicit, Phase.generate, Phase.shrink)
        limits = settings(
            max_examples=cases,
            deadline=None,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        seed(number)(limits(tested))()


def main() -> None:
    """Read the command line and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--only", choices=INPUTS)
    given_ = parser.parse_args()
    warnings.filterwarnings("ignore", module="PIL")
    kinds = [INPUTS[given_.only]] if given_.only else list(INPUTS.values())
    whole = sum(kind.share for kind in kinds)
    for kind in kinds:
        outer = Path(tempfile.mkdtemp())
        fuzzer, started = Fuzzer(kind, outer), time.monotonic()
        try:
            fuzzer.run(max(1, given_.cases * kind.share // whole), given_.seed)
        finally:
            seconds = time.monotonic() - started
            n = sum(fuzzer.counts.values())
            print(f"{kind.name}: {n} cases, {seconds:.0f} s, {fuzzer.counts}", flush=True)
        shutil.rmtree(outer)


if __name__ == "__main__":
    main()
