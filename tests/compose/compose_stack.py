"""The stack of ``compose/`` under a name and on ports of its own, with the images that need no registry."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

import httpx
import psutil

from brinery_platform.runtimes.detached import home_mark
from stack import free_port, wait_until
from standing_stack import StandingStack

REPOSITORY = Path(__file__).parent.parent.parent
COMPOSE = REPOSITORY / "scripts" / "compose"
SERVICES = ("redis", "postgres", "seaweedfs", "controller", "gateway", "prometheus")
"""Those that stay up; Grafana is in no package that could be installed without a registry."""
PORTS = ("BRINERY", "BRINERY_DESK", "GRAFANA", "PROMETHEUS", "REDIS", "POSTGRES", "S3")
CIDR = "10.219.0.0/16"
BUILD_SECONDS = 600
COMMAND_SECONDS = 300


class ComposeStack(StandingStack):
    """One stack, from its settings to its last volume.

    Args:
        folder: Of its settings and of the user beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.project = f"brinery-test-{secrets.token_hex(4)}"
        self.settings = folder / "env"
        self.ports = {name: free_port() for name in PORTS}
        self.variables = _settings(self.settings, self.project, self.ports)
        url = f"http://127.0.0.1:{self.ports['BRINERY']}"
        mark = home_mark(Path("/var/lib/brinery", self.project))
        super().__init__(folder, url, self.variables["BRINERY_ADMIN_KEY"], mark)
        self.images = dict(line.split("=", 1) for line in self.script("images", seconds=BUILD_SECONDS).splitlines())

    def script(self, *arguments: str, seconds: float = COMMAND_SECONDS, check: bool = True) -> str:
        """Run scripts/compose for this stack; return all that it said."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("BRINERY_", "COMPOSE_"))
        }
        done = subprocess.run(
            [COMPOSE, "--ci", *(() if arguments == ("images",) else ("--env-file", self.settings)), *arguments],
            env=environment | getattr(self, "images", {}),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        said = f"scripts/compose {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0 or not check, f"{said}\n{self.last_words()}"
        return done.stdout if check else done.stdout + done.stderr

    # ------------------------------------------------------------------------------------------------------- its life
    def up(self) -> None:
        """Bring it up, or what is missing of it, and wait until it is healthy."""
        self.script("up", "--detach")
        self.healthy()

    def healthy(self) -> None:
        """Wait until every service says that it is well."""

        def ill() -> list[str]:
            states = {name: self.inspect(name)["State"] for name in SERVICES}
            return [name for name, state in states.items() if state.get("Health", {}).get("Status") != "healthy"]

        wait_until(lambda: not ill(), seconds=120, what=f"every service to be healthy; {ill()} are not")

    def down(self, *arguments: str) -> None:
        self.script("down", *arguments)

    def remove(self) -> None:
        """Leave nothing: no container, network, volume or image of this stack."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.script("down", "--volumes", "--timeout", "10")
        label = f"label=com.docker.compose.project={self.project}"
        for name in [*docker("ps", "-aq", "--filter", label).split(), *self.containers()]:
            docker("rm", "--force", name, check=False)
        for mark in (label, f"label=brinery.home={self.mark}"):
            for network in docker("network", "ls", "-q", "--filter", mark).split():
                docker("network", "rm", network, check=False)
            for volume in docker("volume", "ls", "-q", "--filter", mark).split():
                docker("volume", "rm", "--force", volume, check=False)
        for kind in ("bundle", "environment", "base"):
            for image in self._ours(
                "image", f"--filter=label=brinery.kind={kind}", "--format={{.Repository}}:{{.Tag}}"
            ):
                docker("image", "rm", image, check=False)

    # ---------------------------------------------------------------------------------------- watching it, breaking it
    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine knows of a service's container, a finished one too."""
        labels = [f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}"]
        found = docker("ps", "-aq", *(part for label in labels for part in ("--filter", f"label={label}"))).split()
        assert len(found) == 1, f"{service}: {found}"
        facts: dict[str, Any] = json.loads(docker("inspect", found[0]))[0]
        return facts

    def restart(self, service: str) -> None:
        self.script("restart", service)

    def kill(self, service: str) -> None:
        """``kill -9`` its process: what its init started, so that the engine sees it end as by itself."""
        init = psutil.Process(self.inspect(service)["State"]["Pid"])
        for process in init.children(recursive=True) or [init]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).status_code == httpx.codes.OK
        return False

    def last_words(self) -> str:
        label = f"label=com.docker.compose.project={self.project}"
        names = docker("ps", "-a", "--filter", label, "--format={{.Names}}").split()
        names += self.containers() if hasattr(self, "mark") else []
        return "\n".join(f"--- {name}\n{docker('logs', '--tail', '15', name, check=False)}" for name in names)


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 or not check, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout + (done.stderr if arguments[0] == "logs" else "")


def _settings(file: Path, project: str, ports: dict[str, int]) -> dict[str, str]:
    """Write a stack's settings by compose/make-env, with names, ports and networks that are free; return them."""
    subprocess.run([REPOSITORY / "compose" / "make-env", file], check=True, capture_output=True, timeout=30)
    ours = {
        "COMPOSE_PROJECT_NAME": project,
        "BRINERY_WORKER_CIDR": CIDR,
        # For the row of the webhooks in the dashboard: one goes to this machine.
        "BRINERY_WEBHOOK_NETWORKS": "127.0.0.0/8",
        **{f"{name}_PORT": str(port) for name, port in ports.items()},
    }
    lines = [line for line in file.read_text().splitlines() if line.partition("=")[0] not in ours]
    lines += [f"{name}={value}" for name, value in ours.items()]
    file.write_text("\n".join(lines) + "\n")
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
