"""The tutorial is true: every block of it runs, in its order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "how_to" / "method.md"
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def command(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line)
    assert words[0] == "autolora-eval"
    environment = os.environ | {"AUTOLORA_EVAL_CACHE": str(folder / "cache"), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", "autolora_eval", *words[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_block_of_the_tutorial_runs(tmp_path: Path) -> None:
    ran = []
    for kind, options, text in _BLOCK.findall(TUTORIAL.read_text(encoding="utf-8")):
        told = dict(option.split("=") for option in options.split())
        if "file" in told:
            (tmp_path / told["file"]).write_text(text, encoding="utf-8")
        elif "add" in told:
            file = tmp_path / told["add"]
            under = f"\n{told['under']}:\n"
            before = file.read_text(encoding="utf-8")
            assert before.count(under) == 1
            file.write_text(before.replace(under, under + text), encoding="utf-8")
        elif kind == "console":
            for line in text.splitlines():
                done = command(line, tmp_path)
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
                ran.append(line.split()[1])
    assert ran == ["check", "init", "plan", "run", "explain", "explain", "score", "compare"]
    mine = pd.read_parquet(tmp_path / "reports" / "mine" / "table.parquet")
    assert mine["method"].tolist()[0] == "Norm-keeping CFG"
    both = pd.read_csv(tmp_path / "reports" / "both" / "table.csv")
    assert set(both["method"]) == {*mine["method"], "Private method"}
    assert both["diversity"].notna().all()
