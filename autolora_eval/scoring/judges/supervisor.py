"""Supervisor process: runs a server, and stops it with all its children when its parent ends.

Run as `python supervisor.py PARENT GRACE COMMAND …`, with a pipe from the process PARENT as
standard input. GRACE is the number of seconds that the server gets to end by itself. A parent that
is killed cannot stop its server, but its end of the pipe closes. The server is stopped when that
happens, when the parent process changes, or on SIGTERM. This file imports only the standard
library, so it starts fast in any environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

POLL_SECONDS = 0.2
# Time for vLLM to release the GPU's memory.
GRACE_SECONDS = 15.0
KILL_SECONDS = 5.0
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux
_NOT_STARTED = 127


class _StopSignals:
    """Notes signals that ask for termination."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.received = True


def main(arguments: list[str]) -> int:
    """Run a command until it or its parent ends; return its exit code as a shell would."""
    parent, grace, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    signals = _StopSignals()
    _adopt_orphans()
    try:
        # A process group of its own, so that all workers can be signalled.
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"'{command[0]}' cannot be started: {error.strerror}", file=sys.stderr)
        return _NOT_STARTED
    while server.poll() is None and not signals.received and not _is_orphaned(parent):
        pass
    _stop(server, grace)
    _end_adopted()
    code = server.returncode or 0
    return code if code >= 0 else 128 - code


def _is_orphaned(parent: int) -> bool:
    """Wait for `POLL_SECONDS`, and return True if the parent has ended.

    Its end closes the pipe at once, unless a fork of it still holds the other end.
    """
    readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
    if readable and not os.read(sys.stdin.fileno(), 1024):
        return True
    return os.getppid() != parent


def _stop(server: subprocess.Popen[bytes], grace: float) -> None:
    """Stop the server's process group: with SIGTERM, then with SIGKILL."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_SECONDS)):
        if _is_empty(server):
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, number)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not _is_empty(server):
            time.sleep(0.05)


def _is_empty(server: subprocess.Popen[bytes]) -> bool:
    """Return True if the process group is empty, ignoring zombies."""
    if server.poll() is not None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-server.pid, os.WNOHANG)[0]:
                pass
    try:
        os.killpg(server.pid, 0)
    except (ProcessLookupError, PermissionError):  # macOS raises the latter for zombies
        return True
    return False


def _adopt_orphans() -> None:
    """Become the parent of workers that outlive the server (Linux only).

    In a container there may be no init process that reaps them, and the group would never be empty.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def _end_adopted() -> None:
    """Kill processes that the server started in other sessions, and that we inherited."""
    end = time.monotonic() + KILL_SECONDS
    while time.monotonic() < end and (adopted := _children()):
        for child in adopted:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _children() -> list[int]:
    """Return the child processes of this process (Linux only)."""
    try:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
        return [int(child) for child in listed.split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
