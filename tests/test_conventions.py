"""The house's habits, as far as a machine can see them."""

import ast
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
MAX_FILE_LINES = 450
MAX_TEST_FILE_LINES = 600
MAX_FUNCTION_LINES = 75
BAD_MODULES = {"utils", "helpers", "common", "core", "manager", "base_service", "misc", "util", "helper"}
BAD_CLASS = re.compile(r"^Live[A-Z]|(Impl|UseCase|Manager)$")
# In pieces, or this file would be the first to break the rule.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("ghcr", "io"),
        ("quay", "io"),
        ("gcr", "io"),
        ("registry-1", "docker", "io"),
        ("index", "docker", "io"),
        ("registry", "hub", "docker", "com"),
    )
]
MACHINE_PATHS = ["/".join(parts) for parts in (("", "work", "main"), ("", "work", "shared"), ("", "opt", "wheels"))]


def tracked_files() -> list[Path]:
    """What git tracks or would track; without git or its folder, everything but what ``make`` and Python leave."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    if shutil.which("git") and (REPOSITORY / ".git").exists():
        output = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
        paths = [REPOSITORY / name for name in output.split("\0") if name]
    else:
        ignored = {line.rstrip("/") for line in (REPOSITORY / ".gitignore").read_text().splitlines()} | {".git"}
        paths = []
        for folder, folders, files in os.walk(REPOSITORY):
            folders[:] = [name for name in folders if not any(fnmatch(name, pattern) for pattern in ignored)]
            paths += [Path(folder, name) for name in files]
    return sorted(path for path in paths if path.is_file())


FILES = tracked_files()
PYTHON = [path for path in FILES if path.suffix == ".py"]
IMPORTABLE = [path for path in PYTHON if path.relative_to(REPOSITORY).parts[0] in {"sdk", "platform", "worker_runtime"}]


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(REPOSITORY)))


@each(PYTHON)
def test_files_and_functions_stay_short(path):
    source = path.read_text()
    of_tests = path.is_relative_to(REPOSITORY / "tests")
    assert len(source.splitlines()) <= (MAX_TEST_FILE_LINES if of_tests else MAX_FILE_LINES)
    if path.parent.name == "versions":
        return  # a migration is one list from top to bottom
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{node.name} is too long"


@each(PYTHON)
def test_every_module_says_its_one_idea_first(path):
    source = path.read_text()
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring or not source.strip(), "write a one-line docstring at the top"


@each(IMPORTABLE)
def test_names_say_what_a_thing_is(path):
    assert path.stem not in BAD_MODULES
    assert path.name == "__init__.py" or path.parent.name != path.stem
    classes = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    assert not [name for name in classes if BAD_CLASS.search(name)]


def test_no_top_level_module_hides_one_of_the_standard_library():
    roots = [REPOSITORY / root for root in ("sdk", "platform", "worker_runtime")]
    names = {path.stem for root in roots for path in root.glob("*")}
    assert not names & sys.stdlib_module_names
    assert not (REPOSITORY / "platform" / "__init__.py").exists()


@each(PYTHON)
def test_every_exception_to_a_rule_carries_its_reason(path):
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if match := re.search(r"#\s*(noqa|type:\s*ignore)(.*)", line):
            reasoned = re.match(r"(:\s*[A-Z0-9, ]+|\[[a-z-, ]+\])\s*(-|#)\s*\w+", match[2])
            assert reasoned, f"line {number}: name the rule, then the reason: {line.strip()}"


def test_no_file_names_a_package_registry_or_a_machine():
    found = []
    for path in FILES:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(REPOSITORY)}: {word}" for word in REGISTRIES + MACHINE_PATHS if word in text]
    assert not found


@each([path for path in FILES if path.name.startswith("conftest")])
def test_conftest_files_stay_small(path):
    assert len(path.read_text().splitlines()) < 200


def test_tests_find_one_another_by_names_of_their_own():
    tests = [path for path in PYTHON if path.is_relative_to(REPOSITORY / "tests") and path.name != "conftest.py"]
    names = [path.name for path in tests]
    assert not {name for name in names if names.count(name) > 1}, "pytest imports test files by their bare names"
    importers = [path for path in tests if re.search(r"^(from|import) conftest\b", path.read_text(), re.MULTILINE)]
    assert not importers, "there are several conftest modules; put what is shared into one with a name of its own"
