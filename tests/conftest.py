"""What every test has to keep to: it leaves no process, thread or variable behind, and in CI it is not skipped."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
import pytest

GRACE_SECONDS = 5.0
"""How long what a test has already stopped may take to be gone."""


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves something running; what wider fixtures started before it is theirs to stop."""
    children, threads, variables = set(_children()), set(_threads()), _variables()
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    folder = request.node.funcargs.get("tmp_path")
    while True:
        left = [_describe(child) for child in _children() if child not in children]
        left += [f"orphan {_describe(orphan)}" for orphan in _at_work_in(folder)]
        left += [f"thread {thread.name}" for thread in _threads() if thread not in threads]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    now = _variables()
    left += [f"variable {name}" for name in variables.keys() | now.keys() if variables.get(name) != now.get(name)]
    if left:
        pytest.fail("left behind: " + "; ".join(sorted(left)), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With ``CI`` set, let a test that was skipped fail: what it needs has to be there."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI does not allow: {report.longrepr}"
    return report


def _children() -> list[psutil.Process]:
    """Processes that this one started and that still run; what they started in turn hangs below them."""
    return [child for child in psutil.Process().children() if _runs(child)]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _at_work_in(folder: Path | None) -> list[psutil.Process]:
    """Processes of any parent that work in the test's own folder or name it: daemons that outlived their starter."""
    if folder is None:
        return []
    found = []
    for process in psutil.process_iter():
        try:
            places = [*process.cmdline(), process.cwd()]
            if process.pid != os.getpid() and any(str(folder) in place for place in places):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if not thread.daemon]


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def _describe(process: psutil.Process) -> str:
    try:
        return f"process {process.pid} ({' '.join(process.cmdline())[:160]})"
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return f"process {process.pid} (just gone)"
