"""Run the performance benchmarks one after another and write their table.

    python -m benchmarks.performance [--only CASE]... [--write]

`--write` replaces the tables in docs/performance.md and its JSON beside it. Each case is a module
here with a `main()`, and runs in a process of its own, on one thread if it does not set another
number.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.performance.measure import Row, table

CASES = ("startup", "guidance", "overhead", "extractor", "judging", "diversity", "rows")
TITLES = {
    "startup": "Start-up",
    "guidance": "Guidance, on two threads",
    "overhead": "Overhead of the evaluation",
    "extractor": "Features",
    "judging": "Judge's client",
    "diversity": "Diversity, equation (8)",
    "rows": "Tables and report",
}
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
MARK = "<!-- remade by `make performance` -->\n"
LIBRARIES = ("torch", "diffusers", "peft", "transformers", "torchmetrics", "scikit-learn")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def measured(case: str) -> list[Row]:
    """Run one case in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.performance.{case}", "--json"]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD
    )
    return [Row(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


def machine() -> str:
    """Return one line on the machine, the versions and the date."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d} on {platform.machine()} "
        f"({os.cpu_count()} cores), Python {platform.python_version()}, {libraries}."
    )


def main() -> None:
    """Run the cases and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", choices=CASES, help="Run only this case.")
    parser.add_argument("--write", action="store_true", help="Write docs/performance.md.")
    options = parser.parse_args()
    rows: dict[str, list[Row]] = {}
    for case in options.only or CASES:
        rows[case] = measured(case)
        print(section(case, rows[case]) + "\n", flush=True)
    if options.write:
        write({case: [vars(row) for row in those] for case, those in rows.items()})


def section(case: str, rows: list[Row]) -> str:
    """Return the title and the table of a case."""
    return f"### {TITLES[case]}\n\n{table(rows)}"


def write(found: dict[str, list[dict[str, Any]]]) -> None:
    """Write the page and its JSON. Cases that were not measured now stay as they are."""
    data = PAGE.with_suffix(".json")
    cases = json.loads(data.read_text(encoding="utf-8"))["cases"] | found
    parts = [machine(), *(section(case, [Row(**row) for row in cases[case]]) for case in cases)]
    before, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(before + MARK + "\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    text = json.dumps({"machine": parts[0], "cases": cases}, indent=2, ensure_ascii=False)
    data.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
