"""Who dies with whom: ties a process to its parent, adopts orphans, and ends what a dead child left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

# The numbers are those of Linux, in its header uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however that happens.

    Args:
        parent_pid: The parent as it was when it started us; if it is gone already, this process ends now.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that `end_children` finds it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def shut_out_others() -> None:
    """Let no process of the same user trace a container's first process: user code shall not answer in its place."""
    if os.getpid() == 1:
        _prctl(_PR_SET_DUMPABLE, 0)


def end_children(*, spare: int | None = None) -> None:
    """Kill and reap every child of this process, and in turn what they leave behind.

    Args:
        spare: A child to leave alone.
    """
    # Each pass can bring up the next generation; the bound is for user code that forks faster than it is killed.
    for _ in range(100):
        children = [pid for pid in _children() if pid != spare]
        if not children:
            return
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _children() -> list[int]:
    pid = os.getpid()
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:  # a kernel without that file: orphans are then left to whoever ends our process group
        return []
