"""What the performance benchmarks share: contestants in turns, ratios with their spread."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        case: What was measured.
        value: The median over the rounds.
        low: The lowest round.
        high: The highest round.
        unit: The unit. `"×"` is a ratio of processor seconds.
        goal: The goal, such as `"≤ 1.00"`, or an empty text.
    """

    case: str
    value: float
    low: float
    high: float
    unit: str = "×"
    goal: str = ""


def in_turns(
    contestants: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Return the processor seconds of each contestant in each round.

    Each one runs once before, unmeasured. Within a round they follow each other, so that a slow
    moment of the machine hits all of them.
    """
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return seconds


def ratio(case: str, ours: Sequence[float], theirs: Sequence[float], goal: str = "") -> Row:
    """Return the ratio of two contestants of the same rounds."""
    return spread(case, [a / b for a, b in zip(ours, theirs, strict=True)], goal=goal)


def spread(case: str, values: Sequence[float], unit: str = "×", goal: str = "") -> Row:
    """Return the median, the lowest and the highest of some values."""
    return Row(case, statistics.median(values), min(values), max(values), unit, goal)


def wall_seconds(command: Sequence[str], rounds: int) -> list[float]:
    """Return the seconds that a command takes, started anew each round."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return seconds


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a Markdown table, or as JSON lines if the command ends with --json."""
    if "--json" in sys.argv:
        for row in rows:
            print(json.dumps(asdict(row)))
    else:
        print(table(rows))


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| case | value | range | goal |", "| --- | ---: | ---: | ---: |"]
    for row in rows:
        value, low, high = map(_number, (row.value, row.low, row.high))
        lines.append(f"| {row.case} | {value} {row.unit} | {low} – {high} | {row.goal} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
