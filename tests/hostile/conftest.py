"""One platform for everything hostile, and the table of what was tried at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hostile_arena import Arena
from hostile_table import ROWS, write_page

from containers import cleared


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """Start it once."""
    folder = tmp_path_factory.mktemp("hostile")
    with cleared(folder / "home") as engine:
        arena = Arena(folder, engine)
        try:
            arena.start()
            yield arena
            arena.brinery("down")
            assert not arena.processes()
        finally:
            arena.kill_everything()
            arena.clear()


@pytest.fixture
def arena(shared: Arena) -> Iterator[Arena]:
    """The platform; after each test it and the other owner's endpoint have to answer as before."""
    yield shared
    shared.peace()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Print the row of each attempt, and write them into the page where one is named."""
    if ROWS:
        terminalreporter.section("hostile code: without protection / in a worker / what the endpoint says")
    for row in ROWS:
        terminalreporter.write_line(str(row))
    if exitstatus == pytest.ExitCode.OK:
        write_page()
