"""A run that is killed outright at two stages, and run again, ends as an undisturbed one does."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from json_lines import read_jsonl
from torture import LIMIT, Torture, reach, stage

from autolora_eval._files import Json

pytestmark = pytest.mark.e2e


def judgements(folder: Path) -> dict[str, list[Json]]:
    return {path.name: read_jsonl(path) for path in (folder / "judgements").glob("*.jsonl")}


def test_killed_while_generating_and_while_judging(tmp_path: Path) -> None:
    torture, folder = Torture(tmp_path), tmp_path / "killed"
    torture.finish(torture.whole)
    assert len(list(torture.whole.glob("images/*/*/*.png"))) == 4 * 1 * 2
    for until in ("images", "judging"):
        child = torture.start(folder)
        reach(child, folder, until)
        child.kill()
        child.join(LIMIT)
        assert (child.exitcode, stage(folder)) == (-signal.SIGKILL, until), torture.log(folder)
    judged = judgements(folder)
    torture.finish(folder)
    # No finished call was made again: its row, latency included, is the one written first.
    after = judgements(folder)
    assert all(row in after[name] for name, rows in judged.items() for row in rows)
    torture.check(folder)
