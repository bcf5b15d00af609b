"""The Docker engine as this platform uses it: plain data in and out, and its errors in our words.

The only module that knows Docker's library. What is gone already is no error anywhere here.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException, NotFound
from docker.utils.socket import frames_iter_no_tty
from docker.utils.utils import kwargs_from_env

from brinery.errors import ConflictError, DeploymentError, UnavailableError
from brinery_platform.runtimes.docker import unanswered

TIMEOUT_SECONDS: Final = 60.0
PATIENT_SECONDS: Final = 1800.0
"""Layers are gigabytes at times."""
PULL_LINE_SECONDS: Final = 10.0
"""How often a layer that is being fetched is told of."""
CONNECTIONS: Final = 32
DEFAULT_URL: Final = "unix:///var/run/docker.sock"
_STDERR: Final = 2

Facts = dict[str, Any]
"""One JSON object of Docker's API."""


class Engine:
    """One Docker engine: the one that ``DOCKER_HOST`` names, else the socket of this machine.

    Nothing is opened before the first call. Every method raises `UnavailableError` when the engine does not answer
    and `DeploymentError` with its words when it refuses.

    Args:
        timeout_seconds: Limit of one ordinary call.
        patient_seconds: Limit of a call that moves layers.
    """

    def __init__(self, *, timeout_seconds: float = TIMEOUT_SECONDS, patient_seconds: float = PATIENT_SECONDS) -> None:
        self._timeout_seconds = timeout_seconds
        self._patient_seconds = patient_seconds
        self._clients: dict[float, Any] = {}
        self._lock = threading.Lock()

    @property
    def _client(self) -> Any:
        return self._connected(self._timeout_seconds)

    @property
    def _patient(self) -> Any:
        return self._connected(self._patient_seconds)

    def _connected(self, timeout_seconds: float) -> Any:
        with self._lock:
            if timeout_seconds not in self._clients:
                options = {**kwargs_from_env(), "timeout": timeout_seconds, "max_pool_size": CONNECTIONS}
                _knock(options.get("base_url", DEFAULT_URL), self._timeout_seconds)
                self._clients[timeout_seconds] = docker.APIClient(**options, version="auto")
            return self._clients[timeout_seconds]

    def close(self) -> None:
        """Close the connections; what runs goes on."""
        with self._lock:
            while self._clients:
                self._clients.popitem()[1].close()

    def version(self) -> str:
        """Return the engine's version, such as ``20.10.24``."""
        with _our_errors():
            return str(self._client.version()["Version"])

    def ask(self, call: Callable[[Any], Any]) -> Any:
        """Return what `call` gets from Docker's own client, with its errors as ours; None for what is not there."""
        with _our_errors(), contextlib.suppress(NotFound):
            return call(self._client)
        return None

    # ------------------------------------------------------------------------------------------------- containers
    def containers(self, labels: Mapping[str, str], *, ended_too: bool = False) -> list[Facts]:
        """Return the containers that carry all these labels."""
        with _our_errors():
            found: list[Facts] = self._client.containers(all=ended_too, filters={"label": _pairs(labels)})
            return found

    def inspect(self, container: str) -> Facts | None:
        """Return everything about a container, named by id or name; None when there is none."""
        with _our_errors(), contextlib.suppress(NotFound):
            facts: Facts = self._client.inspect_container(container)
            return facts
        return None

    def written_bytes(self, container: str) -> int:
        """Return what a container has written into its own layer: the engine walks it; 0 when it is gone."""
        with _our_errors():
            found = self._client.containers(all=True, size=True, filters={"id": container})
        return sum(int(one.get("SizeRw") or 0) for one in found)

    def create(self, name: str, config: Facts) -> str:
        """Make a container that does not run yet, and return its id.

        Args:
            name: No other container may have it.
            config: The body of Docker's ``POST /containers/create``.

        Raises:
            ConflictError: The name is taken.
        """
        with _our_errors():
            return str(self._client.create_container_from_config(config, name)["Id"])

    def start(self, container: str) -> None:
        """Start a container that was created; one that runs already is left alone."""
        with _our_errors():
            self._client.start(container)

    def kill(self, container: str, signal: str) -> bool:
        """Send a signal to a container's first process; return False when nothing runs there."""
        with _our_errors(), contextlib.suppress(NotFound):
            try:
                self._client.kill(container, signal)
            except APIError as error:
                if error.status_code != 409:  # it is there and does not run
                    raise
                return False
            return True
        return False

    def wait(self, container: str, *, timeout_seconds: float) -> bool:
        """Wait until a container has ended; return False when it has not within `timeout_seconds`."""
        with _our_errors(), contextlib.suppress(NotFound):
            try:
                self._client.wait(container, timeout=max(0.01, timeout_seconds))
            except (requests.Timeout, requests.ConnectionError) as error:
                if not _is_timeout(error):
                    raise
                return False
        return True

    def remove(self, container: str) -> None:
        """End a container at once and remove it with its log and its own volumes."""
        with _our_errors(), contextlib.suppress(NotFound):
            try:
                self._client.remove_container(container, force=True, v=True)
            except APIError as error:
                if error.status_code != 409:  # somebody else removes it at this moment
                    raise

    def put(self, container: str, folder: str, archive: BinaryIO) -> None:
        """Unpack a tar archive into a container that is not read-only."""
        with _our_errors():
            self._patient.put_archive(container, folder, archive)

    def logs(
        self, container: str, *, tail: int, follow: bool, since: float | None = None, stamped: bool = False
    ) -> EngineStream:
        """Return a container's output in pieces as they come, both streams in one; `missing` when it is gone, or going.

        Args:
            container: Its id or name.
            tail: Lines of the past; -1 for all.
            follow: Go on until it ends.
            since: Only what it has written since then, seconds since the epoch.
            stamped: Begin each piece with the time at which the engine got it, and a space.
        """
        with _our_errors(), contextlib.suppress(NotFound):
            try:
                return EngineStream(
                    self._client.logs(container, stream=True, follow=follow, tail=tail, since=since, timestamps=stamped)
                )
            except APIError as error:
                if error.status_code != 409:  # it is being removed at this moment
                    raise
        return EngineStream(iter(()), missing=True)

    def events(self, labels: Mapping[str, str], *, event: str) -> EngineStream:
        """Begin to listen to events of containers that carry these labels.

        Args:
            labels: See `containers`.
            event: Docker's name of it, such as ``die``.
        """
        with _our_errors():
            filters = {"type": "container", "event": event, "label": _pairs(labels)}
            return EngineStream(self._client.events(filters=filters, decode=True))

    @contextlib.contextmanager
    def conversation(self, container: str) -> Iterator[Conversation]:
        """Be attached to a container that was created with an open stdin and is not started yet.

        Its stdin ends when this does, also when this process is killed.
        """
        with _our_errors():
            attached = self._client.attach_socket(container, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
        try:
            yield Conversation(attached)
        finally:
            # The library keeps the reply alive on the socket's own file object; closing it closes both.
            with contextlib.suppress(OSError):
                getattr(attached, "_sock", attached).shutdown(socket.SHUT_RDWR)
            getattr(attached, "_response", attached).close()

    # ----------------------------------------------------------------------------------------------------- images
    def image(self, reference: str) -> Facts | None:
        """Return everything about an image, named by tag or id; None when there is none."""
        with _our_errors(), contextlib.suppress(NotFound):
            facts: Facts = self._client.inspect_image(reference)
            return facts
        return None

    def images(self, labels: Mapping[str, str]) -> list[Facts]:
        """Return the images that carry all these labels, tagged or not, newest first."""
        with _our_errors():
            found: list[Facts] = self._client.images(filters={"label": _pairs(labels)})
            return sorted(found, key=lambda one: (-one["Created"], one["Id"]))

    def load_root(self, archive: Path, repository: str, tag: str, changes: Sequence[str]) -> None:
        """Make an image of one layer out of a tar archive of a whole file system.

        Args:
            archive: The archive.
            repository: The image's name.
            tag: The image's tag.
            changes: Lines of a Dockerfile: ``ENV``, ``LABEL`` and the like.
        """
        with _our_errors(), archive.open("rb") as data:
            said = self._patient.import_image_from_data(data, repository=repository, tag=tag, changes=list(changes))
        last = json.loads(said.strip().splitlines()[-1])
        if "error" in last:
            raise DeploymentError(f"The Docker engine did not take the image {repository}:{tag}: {last['error']}.")

    def commit(self, container: str, repository: str, tag: str, config: Facts) -> None:
        """Make an image of a container, with a configuration of its own.

        Args:
            container: Its changes become the image's last layer.
            repository: The image's name.
            tag: The image's tag.
            config: ``Cmd``, ``Entrypoint``, ``Labels`` …; what it leaves out is the container's.
        """
        with _our_errors():
            self._patient.commit(container, repository, tag, pause=False, conf=config)

    def pull(
        self,
        reference: str,
        emit: Callable[[str], None],
        *,
        silent_seconds: float = PATIENT_SECONDS,
        limit_seconds: float = PATIENT_SECONDS,
    ) -> None:
        """Fetch an image from its registry, and tell how it goes.

        Args:
            reference: The image's name and tag.
            emit: Takes each line of output.
            silent_seconds: For how long nothing may be heard of it, its registry's first answer included.
            limit_seconds: How long it may take in all.

        Raises:
            DeploymentError: It cannot be had, or not in this time.
        """
        deadline = time.monotonic() + limit_seconds
        said_at = time.monotonic()
        late = f"The image {reference} cannot be fetched: nothing was heard of it for {silent_seconds:g} s."
        with _our_errors():
            try:
                for step in self._connected(silent_seconds).pull(reference, stream=True, decode=True):
                    if "error" in step:
                        raise DeploymentError(f"The image {reference} cannot be fetched: {step['error']}.")
                    if time.monotonic() > deadline:
                        raise DeploymentError(f"The image {reference} was not fetched within {limit_seconds:g} s.")
                    if "progress" not in step or time.monotonic() - said_at > PULL_LINE_SECONDS:
                        said_at = time.monotonic()
                        emit(" ".join(str(step[name]) for name in ("id", "status", "progress") if name in step))
            except (requests.Timeout, requests.ConnectionError) as error:
                if not _is_timeout(error):
                    raise
                raise DeploymentError(late) from error

    def remove_image(self, reference: str) -> bool:
        """Remove an image; return False when something still needs it."""
        with _our_errors(), contextlib.suppress(NotFound):
            try:
                self._client.remove_image(reference)
            except APIError as error:
                if error.status_code != 409:
                    raise
                return False
        return True

    # --------------------------------------------------------------------------------------------------- networks
    def networks(self, labels: Mapping[str, str]) -> list[Facts]:
        """Return the networks that carry all these labels."""
        with _our_errors():
            found: list[Facts] = self._client.networks(filters={"label": _pairs(labels)})
            return found

    def create_network(
        self,
        name: str,
        *,
        subnet: str,
        gateway: str,
        internal: bool,
        labels: Mapping[str, str],
        options: Mapping[str, str],
    ) -> str:
        """Make a bridge network and return its id.

        Args:
            name: No other network may have it.
            subnet: Its addresses, such as ``10.213.0.0/22``.
            gateway: The one of this machine among them.
            internal: Whether no way leads out of it.
            labels: See `containers`.
            options: The bridge driver's.

        Raises:
            ConflictError: Its addresses, or its name, are another network's.
        """
        with _our_errors():
            made = self._client.create_network(
                name,
                driver="bridge",
                check_duplicate=True,
                labels=dict(labels),
                options=dict(options),
                internal=internal,
                ipam={"Driver": "default", "Config": [{"Subnet": subnet, "Gateway": gateway}]},
            )
            return str(made["Id"])

    def remove_network(self, network: str) -> bool:
        """Remove a network; return False while containers are connected to it."""
        with _our_errors(), contextlib.suppress(NotFound):
            try:
                self._client.remove_network(network)
            except APIError as error:
                if error.status_code not in {403, 409}:
                    raise
                return False
        return True


class EngineStream:
    """What the engine tells, as it comes; another thread may `end` it. It closes itself after its last piece.

    Args:
        stream: From Docker's library.
        missing: Whether there is nothing of which it could tell.
    """

    def __init__(self, stream: Any, *, missing: bool = False) -> None:
        self._stream = stream
        self.missing = missing

    def __iter__(self) -> Iterator[Any]:
        try:
            with _our_errors():
                yield from self._stream
        finally:
            self.close()

    def end(self) -> None:
        """End the iteration, in whatever thread it runs."""
        _shut(self._stream)

    def close(self) -> None:
        """Close the connection, after the iteration."""
        _shut(self._stream)
        with contextlib.suppress(AttributeError):  # there was nothing to open
            self._stream._response.close()


class Conversation:
    """A container's stdin, and its output in pieces."""

    def __init__(self, attached: Any) -> None:
        self._attached = attached
        self._socket: socket.socket = getattr(attached, "_sock", attached)
        self._socket.settimeout(None)

    def say(self, text: str) -> None:
        """Send `text` to its stdin."""
        with _our_errors():
            self._socket.sendall(text.encode())

    def listen(self) -> Iterator[tuple[bool, bytes]]:
        """Yield its output until it ends: whether a piece comes from stderr, and the piece."""
        with _our_errors():
            for stream, piece in frames_iter_no_tty(self._attached):
                yield stream == _STDERR, piece


@contextlib.contextmanager
def _our_errors() -> Iterator[None]:
    """Turn the library's errors into ours."""
    try:
        yield
    except APIError as error:  # first: it is an OSError too
        said = str(error.explanation or error).strip().rstrip(".")
        if error.status_code == 409 or "overlaps" in said:
            raise ConflictError(f"The Docker engine says: {said}.") from error
        raise DeploymentError(f"The Docker engine refused: {said}.") from error
    except (DockerException, urllib3.exceptions.HTTPError, OSError) as error:
        raise UnavailableError(unanswered.explain(error)) from error


def _knock(url: str, timeout_seconds: float) -> None:
    """Fail at once, and cleanly, where no engine listens: the library would leave a socket open."""
    if url.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(timeout_seconds)
            probe.connect(url.removeprefix("unix://"))


def _shut(stream: Any) -> None:
    with contextlib.suppress(OSError, AttributeError, ValueError):  # it has ended by itself
        stream.close()


def _is_timeout(error: Exception) -> bool:
    # What came too late while the reply's head was awaited is a Timeout; docker-py's sockets also say it in words.
    return isinstance(error, requests.Timeout) or "timed out" in str(error).lower()


def _pairs(labels: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" if value else name for name, value in labels.items()]
