"""Images of tests' own: the bootstrap base with a server on top, built as a user builds one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from brinery_platform.environments import PLATFORM_PYTHON
from brinery_platform.images.environments import open_environments
from brinery_platform.settings import read_settings

SERVER = Path(__file__).parent / "image_server.py"


def base_image(home: Path) -> str:
    """Return the name of a base that needs no registry, made where there is none."""
    environments = open_environments(read_settings(home=home, base_image="machine"), {})
    try:
        return environments.base(PLATFORM_PYTHON, print).name
    finally:
        environments.close()


def build(tag: str, folder: Path, base: str, *lines: str) -> str:
    """Build an image of the test server, with more lines in its Dockerfile; return its id."""
    folder.mkdir(exist_ok=True)
    shutil.copy(SERVER, folder / "server.py")
    dockerfile = [f"FROM {base}", "COPY server.py /srv/server.py", 'CMD ["python3", "/srv/server.py"]', *lines]
    (folder / "Dockerfile").write_text("\n".join(dockerfile) + "\n")
    command = ["docker", "build", "--quiet", "--tag", tag, str(folder)]
    environment = os.environ | {"DOCKER_BUILDKIT": "0"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout.strip()
