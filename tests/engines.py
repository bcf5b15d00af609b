"""Docker engines and registries that tests start for themselves, beside the one that the machine has."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from servers import wait_for

NO_REGISTRY = {"HTTP_PROXY": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1"}
"""For an engine: whatever is not on this machine is asked for at a port where nobody listens."""
STOP_SECONDS = 60.0
REGISTRY = """
version: 0.1
storage:
  filesystem: {{rootdirectory: {folder}/data}}
http:
  addr: 127.0.0.1:{port}
"""


@contextlib.contextmanager
def own_engine(*options: str) -> Iterator[str]:
    """Have a Docker engine of the test's own, without a registry outside; give what ``DOCKER_HOST`` says."""
    if shutil.which("dockerd") is None or os.geteuid():
        pytest.skip("needs dockerd, and root to start it")
    folder = Path(tempfile.mkdtemp(prefix="engine-"))  # a path of its own, for those of sockets are short
    host = f"unix://{folder}/sock"
    places = {"--data-root": "data", "--exec-root": "exec", "--pidfile": "pid"}
    command = ["dockerd", *(part for name, place in places.items() for part in (name, str(folder / place)))]
    # With no bridge at all it would take the machine's own engine's away.
    bridge = f"be{folder.name[-8:]}"
    command += ["--host", host, f"--bridge={bridge}", "--iptables=false", "--ip6tables=false", "--ip-masq=false"]
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    subprocess.run(["ip", "address", "add", "10.214.0.1/28", "dev", bridge], check=True)
    with (folder / "log").open("wb") as log:
        engine = subprocess.Popen([*command, *options], stdout=log, stderr=log, env={**os.environ, **NO_REGISTRY})
    try:
        wait_for(lambda: _answers(engine, host), seconds=STOP_SECONDS)
        yield host
        networks = docker_at(host, "network", "ls", "--quiet", "--filter", "type=custom").split()
        if networks:
            docker_at(host, "network", "rm", *networks)
    finally:
        engine.send_signal(signal.SIGTERM)
        engine.wait(STOP_SECONDS)
        wait_for(lambda: not _named(folder), seconds=STOP_SECONDS)  # its containerd ends after it
        subprocess.run(["ip", "link", "delete", bridge], check=True)
        shutil.rmtree(folder)


@contextlib.contextmanager
def own_registry(folder: Path, port: int) -> Iterator[Path]:
    """Have a registry on loopback for the length of a block; give the log of who asked it for what."""
    settings = folder / "registry.yml"
    settings.write_text(REGISTRY.format(folder=folder, port=port))
    log = folder / "registry.log"
    with log.open("wb") as file:
        registry = subprocess.Popen([_registry(folder), "serve", str(settings)], stdout=file, stderr=file)
    try:
        wait_for(lambda: _serves(port))
        yield log
    finally:
        registry.terminate()
        registry.wait(STOP_SECONDS)


def docker_at(host: str, *arguments: str) -> str:
    command = ["docker", "--host", host, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def _registry(folder: Path) -> str:
    """Return the path of Debian's registry, unpacked and not installed."""
    found = shutil.which("docker-registry")
    if found is not None:
        return found
    if shutil.which("apt-get") is None:
        pytest.skip("needs Debian's package docker-registry")
    for command in (["apt-get", "download", "docker-registry"], ["apt-get", "update"]) * 2:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        package = next(folder.glob("docker-registry_*.deb"), None)
        if package is not None:
            subprocess.run(["dpkg-deb", "-x", package, folder / "unpacked"], check=True, timeout=60)
            return str(folder / "unpacked/usr/bin/docker-registry")
    pytest.skip(f"Debian's package docker-registry cannot be had: {done.stderr}")


def _answers(engine: subprocess.Popen[bytes], host: str) -> bool:
    assert engine.poll() is None, Path(host.removeprefix("unix://")).with_name("log").read_text()
    with contextlib.suppress(subprocess.CalledProcessError):
        return bool(docker_at(host, "info", "--format", "{{.ServerVersion}}").strip())
    return False


def _serves(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/v2/", trust_env=False).is_success
    return False


def _named(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(str(folder) in part for part in process.cmdline()):
                found.append(process)
    return found
