"""One stack for all of its tests; it is made once, and nothing of it is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from compose_stack import ComposeStack

from containers import needs_engine
from stack import KIT


@pytest.fixture(scope="session")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    """The stack, up and healthy, with the acceptance tests' kit deployed."""
    needs_engine()
    stack = ComposeStack(tmp_path_factory.mktemp("compose"))
    try:
        stack.up()
        (stack.desk / "kit.py").write_text(KIT)
        stack.brinery("deploy", "kit.py")
        yield stack
    finally:
        stack.remove()
