"""A run that is killed outright at each stage, and run again, ends with the same table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import autolora_eval
from autolora_eval._files import read_jsonl, sha256_file

pytestmark = pytest.mark.e2e

LIMITS = {"limit_prompts": 1, "limit_seeds": 2}
TIMEOUT = 300.0


def start(output: Path) -> subprocess.Popen[bytes]:
    """Start the quick start in a process of its own."""
    limits = ["--limit-prompts", "1", "--limit-seeds", "2"]
    command = [sys.executable, "-m", "autolora_eval", "run", "quickstart"]
    return subprocess.Popen(
        [*command, *limits, "--output", str(output)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_once_there(process: subprocess.Popen[bytes], folder: Path, pattern: str) -> None:
    """Kill a process as soon as a file of that pattern is there."""
    deadline = time.monotonic() + TIMEOUT
    while not list(folder.glob(pattern)):
        assert process.poll() is None, f"ended before {pattern} was written"
        assert time.monotonic() < deadline, f"no {pattern} in time"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> autolora_eval.runs.folder.Run:
    return autolora_eval.run("quickstart", tmp_path_factory.mktemp("whole"), **LIMITS)


def test_killed_while_generating_and_while_judging(uninterrupted, tmp_path) -> None:
    folder = tmp_path / "killed"
    kill_once_there(start(folder), folder, "images/*/metadata.jsonl")
    assert not (folder / "table.csv").exists()
    kill_once_there(start(folder), folder, "judgements/*.jsonl")
    assert not (folder / "table.csv").exists()
    judged = {path.name: read_jsonl(path) for path in (folder / "judgements").glob("*.jsonl")}
    resumed = autolora_eval.run("quickstart", folder, **LIMITS)
    whole = uninterrupted.folder
    for name in ("table.csv", "comparisons.csv", "diversity.csv"):
        assert (folder / name).read_bytes() == (whole.path / name).read_bytes(), name
    images = [path.relative_to(whole.path) for path in whole.path.glob("images/*/*/*.png")]
    assert len(images) == 4 * 1 * 2
    for image in images:
        assert sha256_file(folder / image) == sha256_file(whole.path / image), image
    # No finished call was made again: its row, latency included, is the one written first.
    for name, rows in judged.items():
        assert all(row in read_jsonl(resumed.folder.path / "judgements" / name) for row in rows)
