"""A little gateway, and a desk on which a user's files lie and run in interpreters of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from little_gateway import KEY, LittleGateway

from brinery import endpoint
from brinery.calls import Calls
from brinery.client import Client

OPEN = """
import io, json, pickle, sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
archive.extractall("opened")
sys.path.insert(0, "opened/sources")
value = pickle.loads(archive.read("function.pkl"))
manifest = json.loads(archive.read("manifest.json"))
"""


class Desk:
    """A folder of a user's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir(parents=True)

    def write(self, path: str, text: str) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
        return file

    def run(
        self, *command: str, cwd: Path | None = None, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run Python, or what else `command` says, without a setting of ours from outside."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("BRINERY_", "PYTHON"))}
        own |= {"BRINERY_HOME": str(self.folder / "home"), **environment}
        done = subprocess.run(
            command, cwd=cwd or self.folder, env=own, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def python(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, *command, **options)

    def pack(self, script: str, expression: str, **environment: str) -> Path:
        """Run a script that packs `expression` in the end; return the zip."""
        ending = f"\nfrom brinery.bundle import pack\nopen('bundle.zip', 'wb').write(pack({expression}).data)\n"
        self.python(str(self.write("script.py", dedent(script) + ending)), **environment)
        return self.folder / "bundle.zip"

    def open(self, bundle: Path, code: str) -> Any:
        """Open a bundle as ``value`` in an interpreter that has nothing of the desk but what travelled."""
        done = self.python("-c", OPEN + dedent(code), str(bundle), cwd=self.elsewhere)
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "desk")


@pytest.fixture
def gateway() -> Iterator[LittleGateway]:
    little = LittleGateway()
    little.start()
    yield little
    little.stop()


@pytest.fixture
def client(gateway: LittleGateway) -> Iterator[Client]:
    client = Client(gateway.url, KEY)
    yield client
    client.close()


@pytest.fixture
def double(gateway, client):
    gateway.functions["double"] = lambda x: 2 * x
    signature = endpoint(lambda x: x, name="double").parameters()
    return Calls("double", signature=signature, client=client)


@pytest.fixture
def held(gateway, double):
    """Tasks of this endpoint run when the test says so."""
    gateway.held.add("double")
    return double
