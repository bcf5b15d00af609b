"""Processes that outlive whoever started them: start, recognise, find again and end them, by Linux's ``/proc``.

A process is recognised by its id together with its start time and the machine's boot, so that a reused process id is
never mistaken for it. Whoever starts one puts ``BRINERY_MARK=<home's mark>/<id>`` into its environment. Everything
that it starts inherits that, so that a starter which was killed before it could write anything down still leaves a
process that its successor finds.
"""

from __future__ import annotations

import functools
import hashlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

MARK_VARIABLE: Final = "BRINERY_MARK"
KILL_SECONDS: Final = 10.0
"""How long the kernel may take to remove a process that was sent SIGKILL (it may be waiting for a disk)."""

_PROC: Final = Path("/proc")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One process for good, where a bare process id may be given to another one later.

    Args:
        pid: Process id.
        started_ticks: Start time in clock ticks since the boot.
        boot: The kernel's id of this boot.
    """

    pid: int
    started_ticks: int
    boot: str


@dataclass(frozen=True, kw_only=True)
class ProcessState:
    """What ``/proc`` says of a process at one moment.

    Args:
        identity: Which process.
        session: Id of its session; equal to its process id in the session's leader.
        ended: Whether it is only waiting for its parent to read its exit code.
    """

    identity: Identity
    session: int
    ended: bool


def home_mark(home: Path) -> str:
    """Return what distinguishes the processes of this home from those of any other, a copy of it included."""
    return hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]


@functools.cache
def boot_id() -> str:
    """Return the kernel's id of the running boot."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def state_of(pid: int) -> ProcessState | None:
    """Return the state of process `pid`, or None when there is none."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, a closing parenthesis included; the fields start after the last one.
    fields = raw[raw.rindex(b")") + 2 :].split()
    return ProcessState(
        identity=Identity(pid=pid, started_ticks=int(fields[19]), boot=boot_id()),
        session=int(fields[3]),
        ended=fields[0] in {b"Z", b"X"},
    )


def is_alive(identity: Identity) -> bool:
    """Return whether exactly this process still runs."""
    state = state_of(identity.pid)
    return state is not None and not state.ended and state.identity == identity


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment that process `pid` was started with; empty when it is gone or not ours to read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, separator, value in pairs if separator}


def scan() -> Iterator[ProcessState]:
    """Yield every living process of this user."""
    user = os.geteuid()
    for entry in os.scandir(_PROC):
        if not entry.name.isdigit():
            continue
        try:
            if entry.stat().st_uid != user:
                continue
        except (FileNotFoundError, ProcessLookupError):
            continue
        state = state_of(int(entry.name))
        if state is not None and not state.ended:
            yield state


def find_marked(mark: str, *, known: Container[Identity] = ()) -> list[tuple[Identity, dict[str, str]]]:
    """Return the session leaders whose environment carries a mark that starts with `mark`, oldest first.

    A process that a marked one started in a session of its own is found as well; it is younger.

    Args:
        mark: `home_mark`, and as much of the id as matters.
        known: Processes that need not be looked at.
    """
    found = []
    for state in scan():
        if state.session == state.identity.pid and state.identity not in known:
            environment = environment_of(state.identity.pid)
            if environment.get(MARK_VARIABLE, "").startswith(mark):
                found.append((state.identity, environment))
    return sorted(found, key=lambda pair: pair[0].started_ticks)


def spawn(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process that shares nothing with this one: own session, no input, output appended to a file.

    Args:
        command: Program and arguments; no secrets, everybody on the machine can read them.
        environment: Its whole environment.
        folder: Its working folder.
        log: File for its stdout and stderr, readable for this user alone.
        pass_fds: File descriptors that it inherits under the same numbers; every other one is closed.

    Raises:
        OSError: The program, the folder or the log cannot be opened.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    finally:
        os.close(output)


def let_go(child: subprocess.Popen[bytes]) -> None:
    """Forget a child that is meant to go on without us."""
    if child.poll() is None:
        child.returncode = 0  # or `Popen.__del__` warns that it still runs, which is the point of it


def open_pidfd(identity: Identity) -> int | None:
    """Return a file descriptor that becomes readable when the process ends, or None when it has ended already.

    Raises:
        OSError: The kernel has no pidfd_open (Linux before 5.3).
    """
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    # Asked after the opening: from here on the descriptor stands for this process, whoever gets its id next.
    if is_alive(identity):
        return pidfd
    os.close(pidfd)
    return None


def send_signal(identity: Identity, number: signal.Signals) -> bool:
    """Send a signal to exactly this process; return False when it is gone."""
    pidfd = open_pidfd(identity)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def wait_gone(identity: Identity, *, timeout_seconds: float) -> bool:
    """Wait until the process has ended; return False when it has not within `timeout_seconds`."""
    pidfd = open_pidfd(identity)
    if pidfd is None:
        return True
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(max(0.0, timeout_seconds) * 1000))
    finally:
        os.close(pidfd)


def end(identity: Identity, *, grace_seconds: float) -> None:
    """Send SIGTERM, after `grace_seconds` SIGKILL, and return when the process is gone."""
    send_signal(identity, signal.SIGTERM)
    if not wait_gone(identity, timeout_seconds=grace_seconds):
        send_signal(identity, signal.SIGKILL)
        wait_gone(identity, timeout_seconds=KILL_SECONDS)


def kill_leftovers(mark: str, *, session: int | None) -> None:
    """Kill whatever carries exactly this mark, or belongs to that session, until nothing of it is left.

    Args:
        mark: The value of ``BRINERY_MARK`` that its processes inherited.
        session: Id of its session where that id cannot have been given to another one yet, else None.
    """
    deadline = time.monotonic() + KILL_SECONDS
    while members := _members(mark, session):
        for member in members:
            send_signal(member, signal.SIGKILL)
        if time.monotonic() > deadline:
            _log.warning("processes do not end", mark=mark, pids=[member.pid for member in members])
            return
        wait_gone(members[0], timeout_seconds=0.1)


def _members(mark: str, session: int | None) -> list[Identity]:
    return [
        state.identity
        for state in scan()
        if state.identity.pid != os.getpid()
        and (state.session == session or environment_of(state.identity.pid).get(MARK_VARIABLE) == mark)
    ]
