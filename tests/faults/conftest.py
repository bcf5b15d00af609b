"""The platform that most faults happen to, and the table of what they did at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fault_ledger import LEDGERS
from fault_stack import FaultStack
from fault_table import PROOFS, write_page


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStack]:
    """Start it once."""
    stack = FaultStack(tmp_path_factory.mktemp("faults"))
    try:
        stack.start()
        yield stack
    finally:
        stack.kill_everything()


@pytest.fixture
def stack(shared: FaultStack) -> FaultStack:
    """The platform that most faults share, whole again before each."""
    shared.brinery("up", "--detach")
    shared.ready()
    return shared


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Print the row of each fault, and write them into the page where one is named."""
    if LEDGERS:
        terminalreporter.section("faults")
    for ledger in LEDGERS:
        terminalreporter.write_line(str(ledger))
    for test, without, seen in PROOFS:
        terminalreporter.write_line(f"{test} without {without}: {seen}")
    if exitstatus == pytest.ExitCode.OK:
        write_page()
