"""The program inside a build's container: has uv resolve requirements, or install a lock, and ends with its stdin.

It is sent through the container's stdin together with its order, so that neither an index's password nor a lock ever
stands in the container's configuration. It knows nothing but Python's own library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


def main(order: dict[str, Any]) -> None:
    """Carry out an order; ends the process with uv's exit code.

    Args:
        order: ``environment`` (all variables), ``given`` (uv's input), ``folder`` (for uv's cache; emptied in the end)
            and ``commands`` (lists of arguments, uv first; the last one gets ``given``).
    """
    threading.Thread(target=end_with_stdin, daemon=True).start()
    folder = Path(order["folder"])
    (folder / "tmp").mkdir()
    *first, last = order["commands"]
    code = 0
    for command in [*first, last]:
        given = order["given"].encode() if command is last else b""
        code = subprocess.run(command, input=given, env=order["environment"], cwd=folder, check=False).returncode
        if code:
            break
    for entry in folder.iterdir():
        shutil.rmtree(entry)
    sys.stdout.flush()
    os._exit(code % 256)


def end_with_stdin() -> None:
    """End this process, the container's first one, when whoever ordered the build is gone."""
    sys.stdin.read()
    os._exit(143)
