"""Two processes never write into one run folder."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import writing
from autolora_eval.pipeline.run_pipeline import RunPipeline

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="keeps nobody out there")
HOLD = """
import sys, time
from pathlib import Path
from autolora_eval._files import writing
with writing(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(30)
"""


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Let another process write into a folder, until it is killed at the end of the block."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        try:
            yield other.pid
        finally:
            other.kill()


def test_a_second_run_is_refused_before_it_does_anything(
    write_benchmark: Callable[[object], Path], benchmark_data: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    pipeline = RunPipeline(write_benchmark(benchmark_data), folder)
    with held(folder) as pid:
        message = (
            f"process {pid} on {socket.gethostname()} is writing into '{folder}'. Wait until it "
            "ends, then run the same command again."
        )
        with pytest.raises(AutoLoRAEvalError, match=f"^{re.escape(message)}$"):
            pipeline.run()
    assert [path.name for path in folder.iterdir()] == [".lock"]
    # What the killed process left is in nobody's way.
    with writing(folder), writing(folder):
        pass
    assert list(folder.iterdir()) == []


def test_a_new_folder_is_removed_if_nothing_was_written(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "new" / "run"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    refused = pytest.raises(AutoLoRAEvalError, match=r"cannot be written: .*name another --output")
    with refused, writing(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
