"""A platform that something else has started: the acceptance tests run against it where the environment names one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from brinery_platform.runtimes.docker import labels
from stack import Stack

URL_VARIABLE = "ACCEPTANCE_URL"
KEY_VARIABLE = "ACCEPTANCE_KEY"
MARK_VARIABLE = "ACCEPTANCE_MARK"


class StandingStack(Stack):
    """A user beside a platform whose workers are containers of this machine's engine.

    Args:
        folder: The user's.
        url: The gateway's.
        key: An administrator's.
        mark: On the platform's containers and images; see `labels.HOME`.
    """

    def __init__(self, folder: Path, url: str, key: str, mark: str) -> None:
        super().__init__(folder)
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.mark = mark
        self._key = key
        for name in ("BRINERY_PORT", "BRINERY_RUNTIME"):
            self.environment.pop(name, None)
        self.environment |= {"BRINERY_URL": url, "BRINERY_API_KEY": key}

    def key(self) -> str:
        return self._key

    def environments(self) -> set[str]:
        return set(self._ours("image", f"--filter=label={labels.KIND}=environment", "--format={{.ID}}"))

    def serves(self, endpoint_id: str) -> bool:
        return any(endpoint_id in line for line in self._ours("container", "--no-trunc", "--format={{.Labels}}"))

    def containers(self, *, kind: str = "", ended_too: bool = True) -> list[str]:
        """Names of the platform's own containers: workers, forwarders, and what prepares them."""
        options = [f"--filter=label={labels.KIND}={kind}"] * bool(kind) + ["--all"] * ended_too
        return self._ours("container", "--format={{.Names}}", *options)

    def _ours(self, what: str, *options: str) -> list[str]:
        command = ["docker", what, "ls", f"--filter=label={labels.HOME}={self.mark}", *options]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()


def standing(folder: Path) -> StandingStack | None:
    """Return the platform that the environment names, for a user in `folder`; None where it names none."""
    if URL_VARIABLE not in os.environ:
        return None
    url, key, mark = (os.environ[name] for name in (URL_VARIABLE, KEY_VARIABLE, MARK_VARIABLE))
    return StandingStack(folder, url, key, mark)
