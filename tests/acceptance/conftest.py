"""The platform that all acceptance tests share, and an empty home for those that start one themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import KIT, Stack, wait_until
from standing_stack import standing


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The platform that most tests share, with the kit deployed."""
    folder = tmp_path_factory.mktemp("acceptance")
    if (stands := standing(folder)) is not None:
        (stands.desk / "kit.py").write_text(KIT)
        stands.brinery("deploy", "kit.py")
        yield stands
        return
    stack = Stack(folder)
    (stack.desk / "kit.py").write_text(KIT)
    try:
        stack.brinery("up", "--detach")
        stack.brinery("deploy", "kit.py")
        yield stack
        stack.brinery("down")
        wait_until(lambda: not stack.processes(), seconds=5, what="all processes to be gone after brinery down")
    finally:
        stack.kill_everything()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Stack]:
    """A second, empty home for tests about starting; nothing runs there yet."""
    other = Stack(tmp_path)
    try:
        yield other
    finally:
        other.kill_everything()
