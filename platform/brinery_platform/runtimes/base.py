"""What a runtime is: four verbs that start, watch, stop and find again what the controller wants to run.

Every verb is idempotent. What `Runtime.start` made outlives the process that called it, and `Runtime.list` finds it
again, so that a restarted controller adopts what runs instead of doubling it.
"""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

Kind = Literal["worker", "forwarder", "builder", "controller", "gateway"]


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """One worker to be started: a bundle in an environment, with its limits.

    Args:
        id: ``wrk_…``; starting the same id twice starts it once.
        endpoint_id: ``end_…``.
        version: Number of the endpoint's version.
        environment_id: Which environment it runs in.
        bundle: The bundle's file on this machine.
        sha256: Digest that the worker must find in it, hex.
        concurrency: Slots.
        cpus: CPU cores.
        memory_mib: Memory limit; the process runtime does not enforce it.
        gpus: GPUs.
        drain_seconds: How long it may finish requests after it is asked to stop.
        env: Environment variables of the user's code.
    """

    id: str
    endpoint_id: str
    version: int
    environment_id: str
    bundle: Path
    sha256: str
    concurrency: int
    cpus: float
    memory_mib: int
    gpus: int
    drain_seconds: float
    env: dict[str, str] = field(default_factory=dict)
    kind: Literal["worker"] = "worker"


@dataclass(frozen=True, kw_only=True)
class PlatformSpec:
    """One process of the platform's own: a forwarder of an endpoint, a builder, the controller or the gateway.

    Args:
        id: ``fwd_…``, or the kind itself where there is one only; starting the same id twice starts it once.
        kind: What it is.
        endpoint_id: The forwarder's endpoint, ``""`` for a builder.
        module: Python module to run, in the platform's own interpreter.
        arguments: Its command line; no secrets, those travel in the environment.
    """

    id: str
    kind: Literal["forwarder", "builder", "controller", "gateway"]
    module: str
    endpoint_id: str = ""
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Running:
    """Something that `Runtime.start` started, as it can be found again.

    Args:
        id: The spec's id.
        kind: The spec's kind.
        endpoint_id: The spec's endpoint, ``""`` where there is none.
        version: The worker's version, 0 for platform processes.
        url: The worker's base URL, not yet ready; ``""`` for platform processes.
        control_url: Base URL of the worker's supervisor; ``""`` for platform processes.
        started_at: Seconds since the epoch.
    """

    id: str
    kind: Kind
    endpoint_id: str
    version: int = 0
    url: str = ""
    control_url: str = ""
    started_at: float = 0.0


@dataclass(frozen=True)
class LogMark:
    """A moment in something's output.

    Args:
        at: Seconds since the epoch, by this machine's clock.
        size: Bytes in its log file then; 0 where its output lies elsewhere.
    """

    at: float
    size: int


class Runtime(ABC):
    """Runs workers and the platform's own processes somewhere."""

    notice: ClassVar[str] = ""
    """What whoever starts the platform should know of it, in a line."""
    on_exit: Callable[[str], None] | None = None
    """Called from a thread of the runtime's with the id of what has just ended, whoever started it."""

    @abstractmethod
    def start(self, spec: WorkerSpec | PlatformSpec) -> Running:
        """Start `spec`, or return what already runs under its id.

        Raises:
            DeploymentError: It cannot be started here; the text says why.
        """

    @abstractmethod
    def poll(self, running_id: str) -> int | None:
        """Return None while it runs, else its exit code: negative for a signal, 0 when it is unknown here."""

    @abstractmethod
    def stop(self, running_id: str, *, grace_seconds: float) -> None:
        """Ask it to end (SIGTERM), end it (SIGKILL) after `grace_seconds`, and return when it is gone.

        Whatever it started is gone as well. Its record is forgotten; its log stays.
        """

    @abstractmethod
    def list(self) -> list[Running]:
        """Return everything of ours that runs, whoever started it; what has ended is left out."""

    @abstractmethod
    def logs(
        self, running_id: str, *, tail: int = 200, follow: bool = False, since: LogMark | None = None
    ) -> Iterator[str]:
        """Yield the last `tail` lines of its output, then with `follow` each new one until it ends.

        With `since`, only what it has written after that moment.
        """

    def why(self, running_id: str) -> str:
        """Return in a few words why it ended, such as ``exit code 3``; ask before it is stopped."""
        code = self.poll(running_id) or 0
        if code >= 0:
            return f"exit code {code}"
        names = {number.value: number.name for number in signal.Signals}
        return f"killed by signal {-code} ({names.get(-code, 'unnamed')})"

    def close(self) -> None:  # noqa: B027 - most runtimes have nothing to end
        """End the runtime's own threads; what it started goes on."""
