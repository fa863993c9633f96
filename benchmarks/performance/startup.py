"""Seconds of the commands that need no model, each started anew, and of `check`.

Each command runs once before, unmeasured, and leaves Python's bytecode: an installation has it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from benchmarks.performance.measure import Row, show, spread, wall_seconds

PROGRAM = [sys.executable, "-m", "autolora_eval"]
FINISHED = "quick start, 1 prompt × 2 seeds, finished, run again"


def main() -> None:
    """Measure the commands."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{folder}/bytecode"
        run = [*PROGRAM, "run", "quickstart", "--limit-prompts", "1", "--limit-seeds", "2"]
        run += ["--output", f"{folder}/run"]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        check = [*PROGRAM, "check", "diffusers.guiders.ClassifierFreeGuidance"]
        show(
            [
                seconds("python alone", [sys.executable, "-c", "pass"], 5, ""),
                seconds("import autolora_eval", [sys.executable, "-c", "import autolora_eval"], 5),
                seconds("autolora-eval --help", [*PROGRAM, "--help"], 5),
                seconds("autolora-eval plan quickstart", [*PROGRAM, "plan", "quickstart"], 3, ""),
                seconds(FINISHED, run, 3, "≤ 2"),
                seconds("check diffusers.guiders.ClassifierFreeGuidance", check, 3, "≤ 6"),
            ]
        )


def seconds(case: str, command: list[str], rounds: int, goal: str = "≤ 0.1") -> Row:
    """Measure one command."""
    return spread(case, wall_seconds(command, 1 + rounds)[1:], "s", goal)


if __name__ == "__main__":
    main()
