"""Which of the user's own modules a bundle needs, and their files: found by reading import statements, not by luck.

A module is the user's own when it is a file that neither Python nor an installed package brought. Of a package, all of
it travels; every file's imports are followed, also those inside functions.
"""

from __future__ import annotations

import ast
import dis
import importlib.util
import os
import pkgutil
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.machinery import FileFinder, ModuleSpec, all_suffixes
from pathlib import Path
from types import CodeType
from typing import Final

from brinery.errors import PackingError

MAX_SOURCES_BYTES: Final = 32 * 1024 * 1024
_OURS: Final = {"brinery", "brinery_worker", "brinery_platform"}
_LEFT_OUT: Final = {"__pycache__", "node_modules", "site-packages"}


def collect(modules: Iterable[str]) -> dict[str, bytes]:
    """Return the source files behind `modules` and behind all that they import.

    Args:
        modules: Names of modules; those that are not the user's own, or do not exist, are passed over.

    Returns:
        Path below ``sources/`` → content.

    Raises:
        PackingError: They are more than `MAX_SOURCES_BYTES`, or one is named like a module of Python's own.
    """
    files = dict[str, bytes]()
    seen = set[str]()
    todo = sorted(set(modules), reverse=True)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for archive_path, path in _unit(name):
            if archive_path in files:
                continue
            files[archive_path] = path.read_bytes()
            if sum(map(len, files.values())) > MAX_SOURCES_BYTES:
                raise _too_large(files)
            if archive_path.endswith(".py"):
                todo.extend(sorted(set(_imports_of_file(archive_path, files[archive_path])) - seen, reverse=True))
    return files


def is_local(name: str) -> bool:
    """Whether `name` is a module of the user's own, and not of Python's or of an installed package."""
    return any(True for _ in _unit(name))


def imports_of_code(code: CodeType, package: str) -> set[str]:
    """Return what the import statements inside a function name.

    Args:
        code: The function's code; functions inside of it are read, too.
        package: What relative imports start from.
    """
    found = set[str]()
    instructions = list(dis.get_instructions(code))
    for index, instruction in enumerate(instructions):
        if instruction.opname == "IMPORT_NAME" and index >= 2:
            level, names = instructions[index - 2].argval, instructions[index - 1].argval
            found.update(_targets(str(instruction.argval), names or (), int(level or 0), package))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= imports_of_code(constant, package)
    return found


def _imports_of_file(archive_path: str, content: bytes) -> set[str]:
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return set()  # whoever imports it will hear of it; a template that nobody imports does no harm
    package = archive_path.rpartition("/")[0].replace("/", ".")
    found = set[str]()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                found.update(alias.name for alias in node.names)
            case ast.ImportFrom():
                names = [alias.name for alias in node.names]
                found.update(_targets(node.module or "", names, node.level, package))
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                module = name.lstrip(".")
                found.update(_targets(module, (), len(name) - len(module), package))
    return found


def _targets(module: str, names: Iterable[str], level: int, package: str) -> Iterator[str]:
    """Yield every module that an import statement may mean: of ``from a import b`` both ``a`` and ``a.b``."""
    if level:
        parents = package.split(".")
        base = ".".join(parents[: len(parents) - level + 1])
        module = f"{base}.{module}" if base and module else base or module
    if module:
        yield module
        yield from (f"{module}.{name}" for name in names if name != "*")


def _unit(name: str) -> Iterator[tuple[str, Path]]:
    """Yield archive path and file of what must travel for `name`: its outermost regular package, or its one file."""
    parts = name.split(".")
    if parts[0] in _OURS or parts[0] == "__main__":
        return
    for depth in range(1, len(parts) + 1):
        prefix = ".".join(parts[:depth])
        spec = _find(prefix)
        if spec is None:
            return
        if not spec.has_location or spec.origin is None:
            if spec.submodule_search_locations is None:
                return  # built in, frozen, or made by a program
            continue  # a namespace package has no file of its own; what is in it may have
        path = Path(spec.origin)
        if not path.is_file() or _installed(path):
            return
        if parts[0] in sys.stdlib_module_names:
            raise PackingError(
                f"{path} is named like Python's own module {parts[0]!r}, and a worker would import that one; rename it."
            )
        folder = prefix.replace(".", "/")
        if spec.submodule_search_locations is None:
            suffix = next((s for s in sorted(all_suffixes(), key=len, reverse=True) if path.name.endswith(s)), ".py")
            yield folder + suffix, path
        else:
            for file in _walk(path.parent):
                yield f"{folder}/{file.relative_to(path.parent).as_posix()}", file
        return


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        folders[:] = sorted(
            name
            for name in folders
            if name not in _LEFT_OUT
            and not name.startswith(".")
            and not name.endswith(".egg-info")
            and not (here / name / "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            if not name.startswith(".") and not name.endswith((".pyc", ".pyo")) and (here / name).is_file():
                yield here / name


def _find(name: str) -> ModuleSpec | None:
    """Find a module without importing anything, its parents neither."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if isinstance(spec, ModuleSpec):
        return spec
    parent, _, _ = name.rpartition(".")
    try:
        if not parent:
            return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    parent_spec = _find(parent)
    return _find_in(name, (parent_spec.submodule_search_locations if parent_spec else None) or [])


def _find_in(name: str, folders: Iterable[str]) -> ModuleSpec | None:
    """Find a submodule; `PathFinder` would want its parents imported where they are namespace packages."""
    portions = list[str]()
    for folder in folders:
        finder = pkgutil.get_importer(folder)
        spec = finder.find_spec(name) if isinstance(finder, FileFinder) else None
        if spec is not None and spec.loader is not None:
            return spec
        portions += (spec.submodule_search_locations if spec else None) or []
    if not portions:
        return None
    namespace = ModuleSpec(name, None, is_package=True)
    namespace.submodule_search_locations = portions
    return namespace


def _installed(path: Path) -> bool:
    resolved = path.resolve()
    parents = {*path.parents, *resolved.parents}
    return not parents.isdisjoint(_installed_roots()) or any(
        parent.name in {"site-packages", "dist-packages"} for parent in parents
    )


@lru_cache(maxsize=1)
def _installed_roots() -> frozenset[Path]:
    paths = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    roots = [Path(path) for path in [*paths, *site.getsitepackages(), site.getusersitepackages()] if path]
    return frozenset([*roots, *(root.resolve() for root in roots)])


def _too_large(files: dict[str, bytes]) -> PackingError:
    largest = sorted(files, key=lambda path: len(files[path]), reverse=True)[:3]
    listed = ", ".join(f"{path} ({len(files[path]) / 2**20:.1f} MiB)" for path in largest)
    return PackingError(
        f"The modules that travel along are more than {MAX_SOURCES_BYTES // 2**20} MiB; the largest are {listed}. "
        "Move data out of the package, and read it in load() from where the worker can reach it."
    )
