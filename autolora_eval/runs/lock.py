"""Keeps a second process from writing into a run folder."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import remove_partial, removed_on_failure

LOCK = ".lock"
_held: set[tuple[str, int]] = set()


@contextmanager
def writing(folder: Path, lock: Path | None = None) -> Iterator[None]:
    """Keep other processes from writing into a run folder during the block.

    Blocks of one thread may be nested. The system gives the lock back when a process dies, so the
    lock file of a killed one is harmless, and its temporary files are removed. Windows and file
    systems without locks are not protected.

    Args:
        folder: the run folder. If it is new and the block fails, it is removed if it is empty.
        lock: the file to lock. Default: `.lock` in the folder.

    Raises:
        AutoLoRAEvalError: if another process writes into the folder, or it cannot be written.
    """
    lock = lock or folder / LOCK
    key = os.path.realpath(lock), threading.get_ident()
    if key in _held or sys.platform == "win32":
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(removed_on_failure(lock.parent))
            handle = _locked(folder, lock)
            remove_partial(folder)
        except OSError as error:
            raise AutoLoRAEvalError(
                f"'{folder}' cannot be written: {error.strerror}. Fix that, or name another "
                "--output."
            ) from error
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)
            lock.unlink(missing_ok=True)  # before the lock is given back
            os.close(handle)


def _locked(folder: Path, lock: Path) -> int:
    """Open and lock the file, and write into it who holds it."""
    import fcntl

    while True:
        # A link could lead to another file, which the note would replace.
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            with suppress(OSError):  # a file system without locks
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder = os.pread(handle, 300, 0).decode(errors="replace")
                    raise AutoLoRAEvalError(
                        f"{holder or 'another process'} is writing into '{folder}'. Wait until it "
                        "ends, then run the same command again."
                    ) from None
            if lock.exists() and os.path.samestat(os.fstat(handle), lock.stat()):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder has just removed it
