"""Runs a server and takes it down, with all that it started, when whoever started it is gone.

Called as `python guard.py PARENT GRACE COMMAND …`, with a pipe from the process PARENT as standard
input; GRACE are the seconds that the server has to end by itself. A killed parent can stop nothing
any more, but its end of the pipe closes: that, another parent than PARENT, and SIGTERM each mean
the end. Only the standard library is imported, so that this starts at once, whatever environment it
is called in.
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
# vLLM gives back the GPU's memory by itself when it is asked to stop.
GRACE_SECONDS = 15.0
KILL_SECONDS = 5.0
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux
_NOT_STARTED = 127


class _Asked:
    """Whether a signal has asked for the end."""

    def __init__(self) -> None:
        self.by_signal = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.by_signal = True


def main(arguments: list[str]) -> int:
    """Run a command until it ends or its parent does; return its exit code as a shell's."""
    parent, grace, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    asked = _Asked()
    _adopt_orphans()
    try:
        # A group of its own, which its workers stay in, so that all of them can be signalled.
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"'{command[0]}' cannot be started: {error.strerror}", file=sys.stderr)
        return _NOT_STARTED
    while server.poll() is None and not asked.by_signal and not _left_alone(parent):
        pass
    _stop(server, grace)
    _end_adopted()
    code = server.returncode or 0
    return code if code >= 0 else 128 - code


def _left_alone(parent: int) -> bool:
    """Wait a moment, and tell whether the parent is gone.

    Its death closes the pipe at once, unless a fork of it still holds the other end.
    """
    readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
    if readable and not os.read(sys.stdin.fileno(), 1024):
        return True
    return os.getppid() != parent


def _stop(server: subprocess.Popen[bytes], grace: float) -> None:
    """End the server's whole group: politely, and then for certain."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_SECONDS)):
        if _is_empty(server):
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, number)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not _is_empty(server):
            time.sleep(0.05)


def _is_empty(server: subprocess.Popen[bytes]) -> bool:
    """Tell whether nothing of the server's group is left, dead ones that nobody buried apart."""
    if server.poll() is not None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-server.pid, os.WNOHANG)[0]:
                pass
    try:
        os.killpg(server.pid, 0)
    except (ProcessLookupError, PermissionError):  # the latter is macOS's word for dead ones
        return True
    return False


def _adopt_orphans() -> None:
    """Become the parent of workers that outlive the server, where the system allows it.

    In a container often nobody else would bury them, and the group would never look empty.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def _end_adopted() -> None:
    """Kill what the server started in a session of its own, which its end has left to us."""
    end = time.monotonic() + KILL_SECONDS
    while time.monotonic() < end and (adopted := _children()):
        for child in adopted:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _children() -> list[int]:
    """Return the processes whose parent is this one, where the system tells."""
    try:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
        return [int(child) for child in listed.split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
