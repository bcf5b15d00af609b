"""`scripts/test` in CI: what fails beside others is run once more by itself, and what fails then has failed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "test"
ALONE = ("integration/docker", "acceptance", "hostile", "faults")
FAILS = """
import pathlib

import pytest


@pytest.mark.parametrize("number", range({tests}))
def test_it(number):
    tries = pathlib.Path({tries!r}, f"{{number}}")
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    assert len(tries.read_text()) > {failures}
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout with this script, this Python and no tests."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    for folder in (".venv/bin", "tries", "tests/unit", *(f"tests/{name}" for name in ALONE)):
        (tmp_path / folder).mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return tmp_path


def run(checkout, *, ci="true"):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI"))}
    return subprocess.run(
        [checkout / "scripts" / "test", "-q"],
        env=environment | {"CI": ci, "TEST_JOBS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def write(checkout, folder, *, tests=1, failures):
    tries = str(checkout / "tries")
    (checkout / "tests" / folder / "test_some.py").write_text(FAILS.format(tests=tests, tries=tries, failures=failures))


def tries(checkout):
    return {path.name: len(path.read_text()) for path in (checkout / "tries").iterdir()}


def test_a_few_that_fail_once_are_told_and_do_not_fail_the_run(checkout):
    write(checkout, "unit", tests=3, failures=1)
    done = run(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = (line for line in done.stdout.splitlines() if "PASSED ALONE" in line)
    assert "tests/unit/test_some.py::test_it[2]" in told
    assert tries(checkout) == {"0": 2, "1": 2, "2": 2}


@pytest.mark.parametrize(
    ("folder", "tests", "failures", "ci", "most_tries"),
    [
        pytest.param("unit", 1, 2, "true", 2, id="twice"),
        pytest.param("unit", 4, 1, "true", 1, id="many"),
        pytest.param("unit", 1, 1, "", 1, id="at a desk"),
        pytest.param("faults", 1, 1, "true", 1, id="a fault"),
    ],
)
def test_all_others_fail_it(checkout, folder, tests, failures, ci, most_tries):
    write(checkout, folder, tests=tests, failures=failures)
    done = run(checkout, ci=ci)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "PASSED ALONE" not in done.stdout
    assert set(tries(checkout).values()) == {most_tries}
