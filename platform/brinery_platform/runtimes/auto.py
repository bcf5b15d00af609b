"""What ``BRINERY_RUNTIME=auto`` comes to: containers where one really runs and can be reached, else processes.

`brinery up` asks once, before it starts anything.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from brinery.errors import BrineryError, DeploymentError, UnavailableError
from brinery.spec import WORKER_PORT
from brinery_platform.runtimes import detached
from brinery_platform.runtimes.choice import Choice
from brinery_platform.runtimes.docker import labels, sandbox
from brinery_platform.runtimes.docker.engine import Engine
from brinery_platform.runtimes.docker.network import WorkerNetwork, merged

if TYPE_CHECKING:
    from brinery_platform.settings import Settings

ANSWER_SECONDS: Final = 20.0
"""Limit of one ordinary call to an engine that is being tried."""
LAYER_SECONDS: Final = 180.0
"""Limit of a call to it that moves a base image."""
TRIAL_SECONDS: Final = 30.0
"""By then a container must have been reached; a busy machine needs ten."""
TRIAL_MEMORY_MIB: Final = 64
REASON_CHARACTERS: Final = 300
GREETING: Final = b"brinery"
_GREETER: Final = (
    "import socket\n"
    f"listener = socket.create_server(('0.0.0.0', {WORKER_PORT}))\n"
    f"listener.accept()[0].sendall({GREETING!r})"
)


def trial_engine() -> Engine:
    """Return the engine, with limits that nobody has to wait long for."""
    return Engine(timeout_seconds=ANSWER_SECONDS, patient_seconds=LAYER_SECONDS)


def choose(engine: Engine, settings: Settings, base: Callable[[], str]) -> Choice:
    """Try whether workers can be containers here; no outcome is an error.

    Args:
        engine: Where they would run; its limits bound each step.
        settings: This platform's.
        base: Returns the id of a base image, made where there is none; asked only once an engine answers.
    """
    try:
        version = engine.version()
        try_container(engine, settings, base())
    except UnavailableError as error:
        return Choice("process", _short(error.message.partition(";")[0]))
    except BrineryError as error:
        return Choice("process", _short(error.message))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with an engine, nobody is stranded by it
        return Choice("process", _short(f"{type(error).__name__}: {error}"))
    else:
        return Choice("docker", f"of the Docker engine {version}")


def try_container(engine: Engine, settings: Settings, image: str) -> None:
    """Run a container as workers run, and reach it as they are reached.

    Args:
        engine: Where.
        settings: This platform's.
        image: Id of a base image.

    Raises:
        DeploymentError: It does not run, or is not reached; the text says why.
    """
    mark = detached.home_mark(settings.home)
    name = f"brinery-{mark}-trial"
    config = {
        "Image": image,
        "Entrypoint": [""],
        "Cmd": ["python3", "-I", "-c", _GREETER],
        "User": f"{sandbox.WORKER}:{sandbox.WORKER}",
        "Labels": {labels.HOME: mark, labels.KIND: "trial"},
        "HostConfig": sandbox.limits(memory_mib=TRIAL_MEMORY_MIB, cpus=1.0, read_only=True),
    }
    network = WorkerNetwork(engine, mark, settings.worker_network)
    engine.remove(name)  # what an `up` that was killed has left
    container = engine.create(name, merged(config, network.joined()))
    try:
        engine.start(container)
        _reach(engine, container)
    finally:
        with contextlib.suppress(BrineryError):  # an engine that has just gone takes it along
            engine.remove(container)


def _reach(engine: Engine, container: str) -> None:
    deadline = time.monotonic() + TRIAL_SECONDS
    address = ""
    while time.monotonic() < deadline:
        facts = engine.inspect(container)
        if facts is None or not facts["State"]["Running"]:
            said = b"".join(engine.logs(container, tail=3, follow=False)).decode(errors="replace")
            raise DeploymentError(f"A container of the base image ends at once: {said.strip() or 'it says nothing'}")
        networks = facts["NetworkSettings"]["Networks"].values()
        address = next((one["IPAddress"] for one in networks if one["IPAddress"]), "")
        if address and _greets(address):
            return
        time.sleep(0.02)
    raise DeploymentError(f"A container's port is not reached from this machine (at {address or 'no address'}).")


def _greets(address: str) -> bool:
    try:
        with socket.create_connection((address, WORKER_PORT), timeout=5.0) as connection:
            return connection.recv(len(GREETING)) == GREETING
    except OSError:
        return False


def _short(reason: str) -> str:
    text = " ".join(reason.split()).rstrip(".")
    return text if len(text) <= REASON_CHARACTERS else f"{text[: REASON_CHARACTERS - 1]}…"
