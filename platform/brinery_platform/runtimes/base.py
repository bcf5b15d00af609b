"""What a runtime is: four verbs that start, watch, stop and find again what the controller wants to run.

Every verb is idempotent. What `Runtime.start` made outlives the process that called it, and `Runtime.list` finds it
again, so that a restarted controller adopts what runs instead of doubling it.
"""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Literal, Protocol

from brinery.errors import DeploymentError
from brinery.spec import ImageSpec

Kind = Literal["worker", "forwarder", "builder", "egress", "controller", "gateway"]

EGRESS_PROXY: Final = "egress"
"""Id of the egress proxy: a home has one."""
NO_EGRESS: Final = (
    "Workers run as plain processes here, whose connections cannot be limited: egress has to be 'on', or run the "
    "platform with BRINERY_RUNTIME=docker."
)


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """One worker to be started: a bundle in an environment, or an image that serves by itself, with its limits.

    Args:
        id: ``wrk_…``; starting the same id twice starts it once.
        endpoint_id: ``end_…``.
        version: Number of the endpoint's version.
        environment_id: Which environment it runs in; of an image, its id without ``sha256:``.
        bundle: The bundle's file on this machine; of an image there is none, and an empty path.
        sha256: Digest that the worker must find in it, hex.
        concurrency: Slots.
        cpus: CPU cores.
        memory_mib: Memory limit; the process runtime does not enforce it.
        gpus: GPUs.
        drain_seconds: How long it may finish requests after it is asked to stop.
        env: Environment variables of the user's code.
        egress: What it may reach: ``on``, ``off``, or the hosts; see `brinery.checks.check_egress`.
        image: How the image is run; None for a bundle.
        owner: Whose it is; an image's volumes are theirs.
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
    egress: str | tuple[str, ...] = "on"
    image: ImageSpec | None = None
    owner: str = ""
    kind: Literal["worker"] = "worker"


@dataclass(frozen=True, kw_only=True)
class PlatformSpec:
    """One process of the platform's own: a forwarder of an endpoint, a builder, the egress proxy, controller, gateway.

    Args:
        id: ``fwd_…``, or the kind itself where there is one only; starting the same id twice starts it once.
        kind: What it is.
        endpoint_id: The forwarder's endpoint, ``""`` for the others.
        module: Python module to run, in the platform's own interpreter.
        arguments: Its command line; no secrets, those travel in the environment.
    """

    id: str
    kind: Literal["forwarder", "builder", "egress", "controller", "gateway"]
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
        control_url: Base URL of the worker's supervisor; ``""`` for platform processes and images, which have none.
        started_at: Seconds since the epoch.
        ready_route: What an image answers when it can serve; ``""`` for all others.
    """

    id: str
    kind: Kind
    endpoint_id: str
    version: int = 0
    url: str = ""
    control_url: str = ""
    started_at: float = 0.0
    ready_route: str = ""


@dataclass(frozen=True)
class LogMark:
    """A moment in something's output.

    Args:
        at: Seconds since the epoch, by this machine's clock.
        size: Bytes in its log file then; 0 where its output lies elsewhere.
    """

    at: float
    size: int


class Stamped:
    """Lines of output, each with the second since the epoch at which it was written, as far as that is known.

    Args:
        lines: The lines.
        end: Makes `lines` end, from whatever thread; without it they end by themselves.
        close: Lets go of what they come from.
    """

    def __init__(
        self,
        lines: Iterator[tuple[float, str]],
        end: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._lines = lines
        self.end = end
        self.close = close

    def __iter__(self) -> Iterator[tuple[float, str]]:
        return self._lines


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a worker uses, all its processes together.

    Args:
        cpu_seconds: CPU time since its start.
        memory_bytes: Memory, without files that are only cached.
        memory_limit_bytes: Where it is killed for memory; 0 where nothing limits it.
        pids: Processes and threads.
    """

    cpu_seconds: float
    memory_bytes: int
    memory_limit_bytes: int
    pids: int


class Visible(Protocol):
    """What whoever only looks at what runs needs of a runtime; `far.FarRuntime` has no more."""

    def list(self) -> list[Running]:
        """See `Runtime.list`."""

    def logs(
        self, running_id: str, *, tail: int = 200, follow: bool = False, since: LogMark | None = None
    ) -> Iterator[str]:
        """See `Runtime.logs`."""

    def close(self) -> None:
        """See `Runtime.close`."""


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

    def stamped(self, running_id: str, *, tail: int, follow: bool, since: LogMark | None = None) -> Stamped:
        """Return what `logs` yields with the moment of each line; another thread may `end` it."""
        lines = self.logs(running_id, tail=tail, follow=follow, since=since)
        return Stamped((time.time(), line) for line in lines)

    def usage(self, running_ids: Sequence[str]) -> dict[str, Usage]:  # noqa: ARG002 - this one can tell of nobody
        """Return what workers use at this moment; whoever does not run, or cannot be told of, is left out."""
        return {}

    def why(self, running_id: str) -> str:
        """Return in a few words why it ended, such as ``exit code 3``; ask before it is stopped."""
        code = self.poll(running_id) or 0
        if code >= 0:
            return f"exit code {code}"
        names = {number.value: number.name for number in signal.Signals}
        return f"killed by signal {-code} ({names.get(-code, 'unnamed')})"

    def egress_proxy(self) -> PlatformSpec:
        """Return what has to run beside workers whose egress is a list of hosts; `start` of such a worker starts it.

        Raises:
            DeploymentError: This runtime has none, as it cannot keep a worker from connecting to anything.
        """
        raise DeploymentError(NO_EGRESS)

    def outdated(self, running_id: str) -> bool:  # noqa: ARG002 - processes do not know
        """Return whether something of the platform's own runs another image than would be started now."""
        return False

    def close(self) -> None:  # noqa: B027 - most runtimes have nothing to end
        """End the runtime's own threads; what it started goes on."""
