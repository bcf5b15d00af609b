"""Stepping the clock of one of the platform's processes with libfaketime, while all others keep the right time."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import pytest

Part = Literal["controller", "forwarder", "gateway"]
PARTS: tuple[Part, ...] = ("gateway", "controller", "forwarder")
HOUR_SECONDS = 3600
_LIBRARY = "libfaketime.so.1"

_SITE = '''
"""Put the platform's own processes, and nothing else, on clocks that a file moves."""
import os
import select
import sys
import time

known = {part: f"brinery_platform.{part}" for part in %(parts)r}
words = getattr(sys, "orig_argv", [])
part = next((part for part, module in known.items() if "-m" in words and module in words), None)
wanted = {"LD_PRELOAD": %(library)r, "FAKETIME_TIMESTAMP_FILE": f"%(folder)s/{part}"} if part else {}
names = ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE")
if {name: os.environ[name] for name in names if name in os.environ} != wanted:
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(wanted, FAKETIME_DONT_FAKE_MONOTONIC="1", FAKETIME_CACHE_DURATION="1", NO_FAKE_STAT="1")
    os.execv(sys.executable, [sys.executable, *words[1:]])
if part:
    # libfaketime 0.9.10 refuses Python's own way (clock_nanosleep to a point of the monotonic clock) with EINVAL.
    time.sleep = lambda seconds: select.select([], [], [], seconds) and None
'''
"""An execution in place keeps the process id and its start, by which the platform knows its processes."""


class Clocks:
    """One clock for each part of a platform.

    Args:
        folder: Where the files that move them are.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        for part in PARTS:
            self.step(part, 0)
        text = _SITE % {"parts": PARTS, "library": str(library()), "folder": folder}
        (folder / "sitecustomize.py").write_text(text)
        self.environment = {"PYTHONPATH": str(folder)}

    def step(self, part: Part, seconds: int) -> None:
        """Let the clock of a part differ from the machine's by so much, from a second from now at the latest."""
        file = self._folder / f"{part}.new"
        file.write_text(f"{seconds:+d}")
        file.rename(self._folder / part)


def library() -> Path:
    """Return the library; on Debian and Ubuntu it is installed where that is missing and this user may.

    A machine without it skips the test, which CI does not allow.
    """
    if not (found := _find()) and shutil.which("apt-get") and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "--no-install-recommends", "libfaketime"]
        for command in (install, ["apt-get", "update"], install):
            done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
            if command is install and done.returncode == 0:
                break
        found = _find()
    if not found:
        pytest.skip("libfaketime is not installed (Debian, Ubuntu: apt-get install libfaketime)")
    return found


def _find() -> Path | None:
    return next(iter(sorted(Path("/usr/lib").glob(f"**/faketime/{_LIBRARY}"))), None)
