"""What is done to the platform: killing, freezing, cutting off. Each returns the moment from which recovery counts."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import psutil
import pytest
from fault_load import Load
from fault_stack import FaultStack, executions

from servers import wait_for
from stack import wait_until

FREEZE_SECONDS = 30.0


def kill(stack: FaultStack, *kinds: str) -> float:
    """``kill -9`` one process of each kind while tasks run, and return when they were gone."""
    victims = [stack.one(kind) for kind in kinds]
    with frozen(at_work(stack)):
        for victim in victims:
            victim.kill()
        psutil.wait_procs(victims, timeout=5)
        return time.time()


def at_work(stack: FaultStack, least: int = 2) -> psutil.Process:
    """Stop the platform's own forwarder in a moment in which so many of its tasks are in the function; return it."""
    with stack.redis() as client:
        for _ in range(200):
            running_id, forwarder = wait_until(lambda: stack.running("forwarder"), what="a forwarder")[0]
            forwarder.suspend()
            time.sleep(0.005)  # what it sent before is with Redis by now
            names = list(client.scan_iter(f"running:{running_id}:*"))
            running = {raw.decode() for name in names for raw in cast("set[bytes]", client.smembers(name))}
            ran = executions(stack.executions)
            if sum([entry["what"] for entry in ran.get(task_id, [])][-1:] == ["begun"] for task_id in running) >= least:
                return forwarder
            forwarder.resume()
            time.sleep(0.02)
    raise AssertionError(f"the forwarder never ran {least} tasks at once")


@contextlib.contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    """Stop a process by SIGSTOP, and let it go on at the end if it still lives."""
    process.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def freeze_redis(stack: FaultStack, seconds: float = FREEZE_SECONDS) -> float:
    """Let Redis stand still, longer than every lease.

    The forwarder comes back 2 s later than Redis, as it may on another machine: every sweep before that finds its
    lease over.
    """
    with frozen(stack.one("forwarder")):
        with frozen(stack.one("redis")):
            stack.one("forwarder").resume()
            time.sleep(seconds)
            stack.one("forwarder").suspend()
        at = time.time()
        time.sleep(2.0)
    return at


def drop_connections(stack: FaultStack, times: int = 5) -> float:
    """Let Redis close every connection that it has, again and again while tasks run."""
    with stack.redis() as client:
        for _ in range(times):
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            time.sleep(0.3)
    return time.time()


def kill_everything_and_start(stack: FaultStack) -> float:
    """``kill -9`` whatever runs in this home at once, then ``brinery up``."""
    at_work(stack)
    stack.kill_everything()
    at = time.time()
    stack.brinery("up", "--detach")
    return at


def kill_with_a_message_in_its_hands(stack: FaultStack, load: Load, count: int) -> float:
    """Freeze the forwarder while it waits for messages, submit `count` tasks, and kill it with the one it was sent."""
    with stack.redis() as client:

        def idle() -> bool:
            return not client.zcard(f"open:{stack.endpoint_id}")

        for _ in range(20):
            with contextlib.suppress(AssertionError):
                wait_until(idle, seconds=20, what="every task to be final")
            forwarder = stack.one("forwarder")
            with frozen(forwarder):
                waiting = stack.messages(client)
                load.submit(1)
                time.sleep(0.1)
                if stack.messages(client) == waiting:  # Redis gave the message to the process that sleeps
                    load.submit(count - 1)
                    forwarder.kill()
                    psutil.wait_procs([forwarder], timeout=5)
                    return time.time()
    raise AssertionError("no message was ever popped by a frozen forwarder")


@contextlib.contextmanager
def small_disk(folder: Path, mib: int = 32) -> Iterator[Path]:
    """Put a disk of so many MiB over a folder, and yield the name of a file that may fill it up; root only."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr}")
    try:
        yield folder / "filling"
    finally:
        # What is still open goes on until it is closed; the folder is what it was at once.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path) -> None:
    """Write to a file until its disk is full."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1024 * 1024))


@contextlib.contextmanager
def second_forwarder(stack: FaultStack) -> Iterator[None]:
    """Run another forwarder of the same endpoint, as another machine would."""
    command = [sys.executable, "-m", "brinery_platform.forwarder", "--endpoint", stack.endpoint_id]
    command += ["--id", f"fwd_{secrets.token_hex(10)}"]
    environment = stack.one("forwarder").environ()
    for name in ("BRINERY_MARK", "BRINERY_RUNNING"):  # or the platform would take it for its own
        del environment[name]
    with (stack.home / "second-forwarder.log").open("ab") as log, stack.redis() as client:
        known = client.scard("incarnations")
        process = subprocess.Popen(command, env=environment, cwd=stack.desk, stdout=log, stderr=log)
        try:
            wait_until(lambda: client.scard("incarnations") > known, what="a second forwarder")
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            finally:
                process.kill()
                process.wait()


def until_led(stack: FaultStack) -> None:
    """Wait for a controller that leads."""
    wait_for(lambda: any(stack.leads(process) for _, process in stack.running("controller")))
