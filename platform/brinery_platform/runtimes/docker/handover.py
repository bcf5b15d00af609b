"""``python -m brinery_platform.runtimes.docker.handover MODULE …``: take the settings from stdin, and become MODULE.

The first program of a platform container. What comes by stdin stands in no configuration that the engine would show,
and in no file; the first line of it is a JSON object of variables.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Read the variables, and run the module that the command line names in this process's place."""
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit("The settings did not come: whoever started this container ended in the middle of it.")
    for name, value in json.loads(line).items():
        os.putenv(name, value)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])  # noqa: S606 - the list is the controller's


if __name__ == "__main__":
    main()
