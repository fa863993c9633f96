"""Runs that are killed, filled up, locked out and set back in time end as an undisturbed one does.

    python tests/torture.py --folder build/torture --kills 40 --seed 0 [--engine ray] [--only kills]

Each child is forked from a server that has imported the libraries: a start takes no time.
With `--engine ray` a kill hits the command, its whole process group, or one of the processes that
work for it, and the undisturbed run is one of the local engine. `tests/test_killed.py` has a small
one in the suite.
"""

from __future__ import annotations

import argparse
import errno
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from autolora_eval._files import sha256_file
from autolora_eval.analysis.archive import verify
from autolora_eval.sources.lookup import shipped_benchmarks

LIMIT = 300.0  # seconds for one child
PATIENCE = 20.0  # seconds for what a killed child has started
# Files that are the same in every run: all but those with times in them.
SAME = (
    *("table.*", "comparisons.csv", "diversity.csv", "reliability.csv", "unscored.csv"),
    *("scores.parquet", "features/*", "images/*/*/*.png"),
)
# How far a run has come, by the last of these files.
STAGES = (
    ("loading", "manifest.json"),
    ("images", "images/*/*/*.png"),
    ("features", "features/*.safetensors"),
    ("judging", "judgements/*.jsonl"),
    ("tables", "scores.parquet"),
    ("report", "figures/*"),
    ("end", "report.html"),
)
ORDER = ("start", *(name for name, _ in STAGES))
# The quick start with fewer steps: most of its time is spent on images.
STEPS = 4
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("autolora_eval.cli", "autolora_eval.report", "autolora_eval.generation.guider_backend"),
        "autolora_eval.scoring.judges.transformers_judge",
        "autolora_eval.scoring.extractors.transformers",
    ]
)


@dataclass(frozen=True)
class Disturbance:
    """What happens to a child."""

    max_bytes: int = 0  # no file may grow beyond them; 0 for no limit
    clock_back: float = 0.0  # seconds by which the clock jumps back at each reading

    def begin(self) -> None:
        """Disturb this process."""
        if self.max_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.max_bytes, self.max_bytes))
        if self.clock_back:
            self._set_clock_back()

    def _set_clock_back(self) -> None:
        from autolora_eval.pipeline import run_pipeline

        real, jumps = time.time, iter(range(1_000_000_000))

        def now() -> float:
            return real() - self.clock_back * next(jumps)

        class Jumping(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.fromtimestamp(now(), tz)

        time.time, time.time_ns = now, lambda: int(now() * 1e9)
        run_pipeline.datetime = Jumping


UNDISTURBED = Disturbance()


def _child(arguments: list[str], cache: Path, log: Path, disturbance: Disturbance) -> None:
    from autolora_eval import cli

    os.setsid()  # what it starts is found by its session
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ["AUTOLORA_EVAL_CACHE"] = str(cache)
    disturbance.begin()
    sys.argv = ["autolora-eval", *arguments]
    cli.main()


@dataclass(frozen=True)
class Torture:
    """Small runs in processes of their own."""

    base: Path  # of logs, caches and runs
    engine: str | None = None  # `--engine` of every run

    @property
    def whole(self) -> Path:
        """The undisturbed run."""
        return self.base / "whole"

    def benchmark(self) -> Path:
        """Return the file of a small benchmark."""
        file = self.base / "small.yaml"
        if not file.exists():
            self.base.mkdir(parents=True, exist_ok=True)
            text = shipped_benchmarks()["quickstart"].read_text(encoding="utf-8")
            steps = "num_inference_steps: "
            file.write_text(text.replace(f"{steps}20", f"{steps}{STEPS}"))
        return file

    def log(self, folder: Path) -> str:
        """Return what the last child of a run printed."""
        return (self.base / f"{folder.name}.log").read_text(errors="replace")

    def start(self, folder: Path, disturbance: Disturbance = UNDISTURBED) -> BaseProcess:
        """Start a small run; its cache of replies is its own."""
        engine = ["--engine", self.engine] if self.engine else []
        limits = ["--limit-prompts", "1", "--limit-seeds", "2"]
        arguments = ["run", str(self.benchmark()), *limits, "--output", str(folder), *engine]
        places = (self.base / f"{folder.name}.cache", self.base / f"{folder.name}.log")
        child = SERVER.Process(target=_child, args=(arguments, *places, disturbance))
        child.start()
        return child

    def run(self, folder: Path, disturbance: Disturbance = UNDISTURBED) -> int | None:
        """Run to the end and return the exit code."""
        (child := self.start(folder, disturbance)).join(LIMIT)
        return child.exitcode

    def finish(self, folder: Path) -> float:
        """Run to the end, which must be a good one, and return the seconds it took."""
        started = time.monotonic()
        code = self.run(folder)
        assert code == 0, (code, self.log(folder))
        return time.monotonic() - started

    def check(self, folder: Path) -> None:
        """Check that a finished run is as the undisturbed one, and remove it."""
        found = differences(folder, self.whole)
        assert not found, (folder, found)
        shutil.rmtree(folder)
        shutil.rmtree(self.base / f"{folder.name}.cache", ignore_errors=True)

    def finish_and_check(self, folder: Path, what: str) -> None:
        """Finish a disturbed run, and check it."""
        self.finish(folder)
        self.check(folder)
        print(f"{what}: at last as undisturbed", flush=True)


def stage(folder: Path) -> str:
    """Return how far a run has come."""
    return next((n for n, pattern in STAGES[::-1] if any(folder.glob(pattern))), "start")


def reach(child: BaseProcess, folder: Path, until: str) -> None:
    """Wait until a run has reached a stage or ended."""
    while child.is_alive() and ORDER.index(stage(folder)) < ORDER.index(until):
        time.sleep(0.005)


def started_by(child: BaseProcess) -> dict[int, str]:
    """Return the command lines of the living processes of a child's session."""
    found = {}
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):  # it has just ended
            if os.getsid(pid) == child.pid and (line := psutil.Process(pid).cmdline()):
                found[pid] = " ".join(line)
    return found


def nothing_left(children: Sequence[BaseProcess]) -> None:
    """Check that nothing lives on that ended children have started.

    Two agents of Ray, which know nothing of a run, wait minutes for a killed cluster: they are
    ended here.
    """
    deadline = time.monotonic() + PATIENCE
    for child in children:
        while left := {p: line for p, line in started_by(child).items() if "Agent" not in line}:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
        for pid in started_by(child):
            os.kill(pid, signal.SIGKILL)


def differences(folder: Path, whole: Path) -> list[str]:
    """Return in what a run differs from an undisturbed one: tables, images, files left behind."""
    here, there = (
        {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
        for run in (folder, whole)
    )
    same = [path for pattern in SAME for path in whole.glob(pattern)]
    found = [f"only one has {name}" for name in sorted(here ^ there)]
    for path in same:
        other = folder / path.relative_to(whole)
        if other.is_file() and sha256_file(path) != sha256_file(other):
            found.append(f"{other} differs")
    return found + [" ".join(finding) for finding in verify(folder)]


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """Mount an empty file system at a folder while the block runs; PermissionError if forbidden."""
    place.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        raise PermissionError(errno.EPERM, done.stderr.decode().strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def strike(child: BaseProcess, whom: str, chance: random.Random) -> str | None:
    """Kill a child, its process group or a process that works for it; None if it had ended."""
    workers = [pid for pid, line in started_by(child).items() if "MapWorker" in line]
    with suppress(ProcessLookupError):
        if whom == "worker" and workers:
            os.kill(chance.choice(workers), signal.SIGKILL)
            return whom
        (os.killpg if whom == "group" else os.kill)(child.pid, signal.SIGKILL)
    child.join(LIMIT)
    whom = "command" if whom == "worker" else whom
    return whom if child.exitcode == -signal.SIGKILL else None


def kill(torture: Torture, seconds: float, n: int, seed: int) -> None:
    """Kill runs at random moments of random stages and resume them, until so many have hit."""
    chance, hit, runs = random.Random(seed), Counter[str](), 0
    victims = ("command", "group", "worker") if torture.engine == "ray" else ("command",)
    while hit.total() < n:
        folder = torture.base / f"killed-{seed}-{runs}"
        children = [torture.start(folder)]
        while hit.total() < n:
            if children[-1].exitcode == -signal.SIGKILL:
                children.append(torture.start(folder))
            later = ORDER[ORDER.index(stage(folder)) :]
            until = chance.choice(later[:3])
            reach(children[-1], folder, until)
            children[-1].join(chance.uniform(0.0, seconds / 2 if until == later[0] else 0.5))
            at, whom = stage(folder), strike(children[-1], chance.choice(victims), chance)
            if whom is None:
                break
            hit[f"{at}, {whom}"] += 1
        children[-1].join(LIMIT)
        assert children[-1].exitcode in (0, -signal.SIGKILL), torture.log(folder)
        # Either engine goes on where the other was killed.
        replace(torture, engine=chance.choice((torture.engine, None))).finish(folder)
        nothing_left(children)
        torture.check(folder)
        runs += 1
        print(f"{hit.total()} kills in {runs} runs, all at last as undisturbed", flush=True)
    print(dict(hit))


def signals(torture: Torture, seconds: float) -> None:
    """End runs with the signals of a scheduler and of a closed terminal."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        folder = torture.base / number.name
        child = torture.start(folder)
        child.join(seconds / 2)
        at = stage(folder)
        if child.is_alive():
            os.kill(child.pid, number)
        child.join(LIMIT)
        assert child.exitcode in (0, -number), (child.exitcode, torture.log(folder))
        torture.finish_and_check(folder, f"{number.name} while {at}")
        nothing_left([child])


def fill(disk: Path) -> None:
    """Leave no room on a file system, on which others may write meanwhile."""
    with (disk / "ballast").open("wb") as ballast:
        for _ in range(1000):
            state, size = os.statvfs(disk), os.fstat(ballast.fileno()).st_size
            if not state.f_bavail:
                return
            with suppress(OSError):
                os.posix_fallocate(ballast.fileno(), size, state.f_bavail * state.f_frsize)


def full_disk(
    torture: Torture, stages: Sequence[str] = ("loading", "images", "features", "judging")
) -> None:
    """Fill the disk of a run while it is in a stage, and go on elsewhere with what was written."""
    for until in stages:
        name = f"full-{until}"
        with mounted(torture.base / "disk", "size=200m") as disk:
            child = torture.start(disk / name)
            reach(child, disk / name, until)
            fill(disk)
            child.join(LIMIT)
            text = torture.log(disk / name)
            assert child.exitcode in (0, 1), (child.exitcode, text)
            assert "an unexpected" not in text, text
            shutil.copytree(disk / name, torture.base / name)
        what = f"disk full while {until}, exit code {child.exitcode}"
        torture.finish_and_check(torture.base / name, what)


def file_limit(torture: Torture) -> None:
    """Run where no file may be larger than a limit, as under a quota."""
    folder = torture.base / "quota"
    code = torture.run(folder, Disturbance(max_bytes=20_000))
    assert code == 1, (code, torture.log(folder))
    assert "an unexpected" not in torture.log(folder), torture.log(folder)
    torture.finish_and_check(folder, f"files of at most 20 kB while {stage(folder)}")


def read_only(torture: Torture) -> None:
    """Run in a folder that cannot be written, and then with leave to write."""
    with mounted(torture.base / "disk", "ro") as disk:
        code, text = torture.run(disk / "read-only"), torture.log(disk / "read-only")
    assert code in (1, 2), (code, text)
    assert "an unexpected" not in text, text
    torture.finish_and_check(torture.base / "read-only", "read-only folder")


def clock(torture: Torture) -> None:
    """Run while the clock jumps back by an hour at each reading."""
    folder = torture.base / "clock"
    code = torture.run(folder, Disturbance(clock_back=3600.0))
    assert code == 0, (code, torture.log(folder))
    torture.finish_and_check(folder, "clock set back")


def two_processes(torture: Torture) -> None:
    """Start a run twice at once: one ends well, and the other too or with a message."""
    folder = torture.base / "two"
    children = [torture.start(folder) for _ in range(2)]
    for child in children:
        child.join(LIMIT)
    codes = sorted(str(child.exitcode) for child in children)
    assert "0" in codes, (codes, torture.log(folder))
    torture.finish_and_check(folder, f"two processes, exit codes {codes}")


def main() -> None:
    """Read the command line and torture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/torture"))
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine")
    parser.add_argument("--only", choices=["kills", "others"])
    given = parser.parse_args()
    torture = Torture(given.folder.resolve(), given.engine)
    shutil.rmtree(torture.base, ignore_errors=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray has it: other sums differ in their last bits
    replace(torture, engine=None).finish(torture.whole)
    timed = torture.base / "timed"  # the server has started
    seconds = torture.finish(timed)
    torture.check(timed)
    print(f"undisturbed: {seconds:.1f} s", flush=True)
    if given.only != "others":
        kill(torture, seconds, given.kills, given.seed)
    if given.only == "kills":
        return
    signals(torture, seconds)
    for disturb in (full_disk, file_limit, read_only, clock, two_processes):
        try:
            disturb(torture)
        except PermissionError as error:
            print(f"{disturb.__name__}: skipped, mounting is not allowed: {error}", flush=True)


if __name__ == "__main__":
    main()
