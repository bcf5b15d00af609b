"""What a bundle, an endpoint and a task are: described once here, passed whole everywhere else.

Only the standard library and ``annotated_types`` (constraints as plain data) are imported, so that the worker
can use it too; `from_json` loads pydantic when it is first called.
"""

from __future__ import annotations

import dataclasses
import functools
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeVar, cast

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from brinery.checks import (
    check_egress,
    check_image_user,
    check_name,
    check_places,
    check_reference,
    check_retry_for,
    check_route,
    check_webhook_url,
)
from brinery.errors import InvalidRequestError

T = TypeVar("T")

# ---------------------------------------------------------------------------------------------- wire constants
CONTENT_JSON: Final = "application/json"
CONTENT_PICKLE: Final = "application/vnd.brinery.pickle"
"""A cloudpickle of ``(args, kwargs)`` as request, of the result as reply. Only workers and SDKs open it."""
CONTENT_EVENTS: Final = "text/event-stream"
CONTENT_BUNDLE: Final = "application/vnd.brinery.bundle+zip"

HEADER_REQUEST_ID: Final = "X-Brinery-Request-Id"
HEADER_TASK_ID: Final = "X-Brinery-Task-Id"
HEADER_ATTEMPT: Final = "X-Brinery-Attempt"
HEADER_TIMEOUT_SECONDS: Final = "X-Brinery-Timeout-Seconds"
HEADER_ANSWERED_BY: Final = "X-Brinery-Answered-By"
"""``worker`` on an error that a worker answered; what an image says there is in the image's own words."""
TASK_HEADERS: Final = {
    "priority": "X-Brinery-Priority",
    "max_attempts": "X-Brinery-Max-Attempts",
    "timeout_seconds": HEADER_TIMEOUT_SECONDS,
    "expires_in_seconds": "X-Brinery-Expires-In-Seconds",
    "result_ttl_seconds": "X-Brinery-Result-Ttl-Seconds",
    "retry_for": "X-Brinery-Retry-For",
    "webhook": "X-Brinery-Webhook",
    "idempotency_key": "Idempotency-Key",
}
"""Field of `TaskOptions` → its header: lists are comma-separated, a webhook is a URL or a `Webhook` as ASCII JSON."""

WORKER_PORT: Final = 5005
MAX_BODY_BYTES: Final = 32 * 1024 * 1024
MAX_OBJECT_BYTES: Final = 5 * 1024 * 1024 * 1024
INLINE_BYTES: Final = 64 * 1024
"""Inputs and results up to this size live in the task record; larger ones in the object store."""
MAX_HELD_REQUESTS: Final = 1_000
MAX_WAIT_SECONDS: Final = 60.0
"""The longest that one ``GET /v1/tasks/{id}?wait_seconds=`` may wait."""
MAX_LIFETIME_SECONDS: Final = 10 * 365 * 86_400.0
"""The longest that a task may wait, or its result be kept."""
LEASE_SECONDS: Final = 10.0

BUNDLE_FORMAT: Final = 1
BUNDLE_MANIFEST: Final = "manifest.json"
BUNDLE_PICKLE: Final = "function.pkl"
BUNDLE_SOURCES: Final = "sources/"
MAX_MANIFEST_BYTES: Final = 1024 * 1024


# ------------------------------------------------------------------------------------------------------ statuses
class EndpointStatus(StrEnum):
    """Where an endpoint is in its life; ``ready`` at ``min_workers=0`` means built, loaded once and answered."""

    BUILDING = "building"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    FAILED = "failed"
    DELETING = "deleting"


class TaskStatus(StrEnum):
    """Where a task is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether nothing can change it any more."""
        return self not in {TaskStatus.QUEUED, TaskStatus.RUNNING}


class BundleKind(StrEnum):
    """What is in a bundle; see `BundleManifest`."""

    FUNCTION = "function"
    CLASS = "class"
    LOAD_PREDICT = "load_predict"
    IMAGE = "image"


# --------------------------------------------------------------------------------------------------- descriptions
Name = Annotated[str, MinLen(1), MaxLen(63)]
"""Lower-case letters, digits and inner hyphens; see `check_name`."""


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """An image that serves by itself: what of it is run, and where it answers.

    Args:
        reference: Its name and tag, digest or id; what it means at the deployment is what the version runs for good.
        command: Run instead of the image's own entrypoint and command; empty leaves them.
        port: Where it listens.
        predict_route: Takes each call's body by POST.
        ready_route: Answers GET with 2xx as soon as it can serve.
        stream_route: What `predict_route` is, for callers that accept server-sent events; empty where it has none.
        on_cancel: How a call is stopped that nobody waits for any more: ``replace`` the worker, which ends its other
            calls, too, or ``disconnect`` and leave the rest to the server.
        shm_mib: Size of ``/dev/shm``, which counts as memory.
        volumes: ``name:/path`` or ``name:/path:ro`` each; what is in a volume outlives workers and versions.
        scratch: Folders besides ``/tmp`` that can be written; empty at each start, in memory.
        user: Name or id, perhaps with ``:group``, never root; empty takes the image's own, or 65534 where that is root.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads a plain class attribute

    reference: Annotated[str, MinLen(1), MaxLen(500)]
    command: Annotated[list[Annotated[str, MaxLen(10_000)]], MaxLen(200)] = field(default_factory=list)
    port: Annotated[int, Ge(1), Le(65_535)] = WORKER_PORT
    predict_route: str = "/predict"
    ready_route: str = "/readyz"
    stream_route: str = ""
    on_cancel: Literal["replace", "disconnect"] = "replace"
    shm_mib: Annotated[int, Ge(1), Le(1024 * 1024)] = 64
    volumes: Annotated[list[str], MaxLen(16)] = field(default_factory=list)
    scratch: Annotated[list[str], MaxLen(16)] = field(default_factory=list)
    user: str = ""

    def __post_init__(self) -> None:
        check_reference(self.reference)
        check_route(self.predict_route, "predict_route")
        check_route(self.ready_route, "ready_route")
        if self.stream_route:
            check_route(self.stream_route, "stream_route")
        check_places(self.volumes, self.scratch)
        check_image_user(self.user)


@dataclass(frozen=True, kw_only=True)
class BundleManifest:
    """What is in a bundle: the ``manifest.json`` at its root.

    Args:
        name: Name of the bundle; equal names are versions of one another.
        kind: What ``function.pkl`` holds: the callable, the class, or the dict
            ``{"load_model": callable, "load_predict": callable}``; of an image there is no such file.
        python: Python version that pickled it, ``3.11``; the worker runs the same minor. Empty of an image.
        cloudpickle: Version of cloudpickle that pickled it. Empty of an image.
        requirements: pip requirement lines, as the user gave them.
        env: Environment variables for the worker; not for secrets.
        request_schema: JSON Schema of the keyword arguments as one object, or None when unknown.
        response_schema: JSON Schema of the result, or None when unknown.
        streaming: Whether the callable is a generator.
        doc: The callable's docstring, first paragraph.
        metadata: Free for the user.
        image: The image, where the kind is that.
        format: Version of this layout.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads a plain class attribute

    name: Name
    kind: BundleKind
    python: str
    cloudpickle: str
    requirements: list[Annotated[str, MaxLen(2000)]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    request_schema: dict[str, Any] | None = None
    response_schema: dict[str, Any] | None = None
    streaming: bool = False
    doc: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    image: ImageSpec | None = None
    format: Literal[1] = BUNDLE_FORMAT

    def __post_init__(self) -> None:
        check_name(self.name, "bundle")
        if isinstance(self.image, dict):  # from a store's JSON, checked when it came
            object.__setattr__(self, "image", ImageSpec(**self.image))
        if (self.kind == BundleKind.IMAGE) != (self.image is not None):
            raise InvalidRequestError("A bundle's manifest names an image where its kind is 'image', and only there.")


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """Where the end of a task is told; see ``docs/architecture/webhooks.md``.

    Args:
        url: ``http://`` or ``https://``, without a user in it.
        username: For basic authentication; empty sends none.
        password: For basic authentication; never shown again.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads a plain class attribute

    url: Annotated[str, MaxLen(2000)]
    username: Annotated[str, MaxLen(200)] = ""
    password: Annotated[str, MaxLen(500)] = field(default="", repr=False)

    def __post_init__(self) -> None:
        check_webhook_url(self.url)
        if self.password and not self.username:
            raise InvalidRequestError("webhook: a password needs a username; both are sent together, or neither.")
        if ":" in self.username:
            raise InvalidRequestError("webhook: basic authentication has no way to send a user name with a colon.")

    def shown(self) -> dict[str, str]:
        """Return it as it may be shown, without the password."""
        return {"url": self.url, "username": self.username}


@dataclass(frozen=True, kw_only=True)
class EndpointSpec:
    """How a bundle is served: all that a user can choose about an endpoint, with its default.

    Args:
        name: Unique among the owner's endpoints; part of the URL.
        bundle_id: The bundle to serve, ``bun_…``.
        min_workers: Workers kept when idle; 0 lets the endpoint scale to zero.
        max_workers: Most workers at once.
        concurrency: Requests that one worker runs at the same time (threads).
        cpus: CPU cores for each worker.
        memory_mib: Memory of each worker.
        gpus: GPUs of each worker.
        idle_seconds: How long a surplus worker may be idle before it is stopped.
        timeout_seconds: Limit of one attempt, for requests and for tasks.
        startup_timeout_seconds: Limit from a worker's start to its readiness.
        drain_seconds: How long a stopping worker may finish its requests.
        max_attempts: Attempts that a task gets before it has failed.
        retry_for: Which errors of the function are tried again, see `check_retry_for`; the platform's always are.
        priority_age_seconds: After how long at the head of its queue a task is moved up by one priority.
        webhook: Where the end of each task is told.
        max_queued: Tasks that may be open at once; above it, 429.
        expires_in_seconds: How long a task may wait for a worker.
        result_ttl_seconds: How long a finished task's result is kept.
        egress: What workers may connect to: ``on``, ``off``, or a list of hosts, see `check_egress`.
        env: Environment variables on top of the bundle's; not for secrets.
        metadata: Free for the user.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012 - pydantic reads it as it is

    name: Name
    bundle_id: str
    min_workers: Annotated[int, Ge(0), Le(1000)] = 0
    max_workers: Annotated[int, Ge(1), Le(1000)] = 1
    concurrency: Annotated[int, Ge(1), Le(256)] = 1
    cpus: Annotated[float, Gt(0)] = 1.0
    memory_mib: Annotated[int, Ge(16)] = 2048
    gpus: Annotated[int, Ge(0)] = 0
    idle_seconds: Annotated[float, Ge(0)] = 300.0
    timeout_seconds: Annotated[float, Gt(0), Le(86_400)] = 300.0
    startup_timeout_seconds: Annotated[float, Gt(0), Le(86_400)] = 600.0
    drain_seconds: Annotated[float, Ge(0), Le(3600)] = 30.0
    max_attempts: Annotated[int, Ge(1), Le(100)] = 3
    retry_for: list[str] = field(default_factory=list)
    priority_age_seconds: Annotated[float, Gt(0)] = 60.0
    webhook: Webhook | None = None
    max_queued: Annotated[int, Ge(1)] = 100_000
    expires_in_seconds: Annotated[float, Gt(0), Le(MAX_LIFETIME_SECONDS)] = 86_400.0
    result_ttl_seconds: Annotated[float, Gt(0), Le(MAX_LIFETIME_SECONDS)] = 86_400.0
    egress: str | list[str] = "on"
    env: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, "endpoint")
        if self.max_workers < self.min_workers:
            raise InvalidRequestError(
                f"max_workers ({self.max_workers}) is below min_workers ({self.min_workers}); raise the one or "
                "lower the other."
            )
        check_retry_for(self.retry_for)
        check_egress(self.egress)
        if isinstance(self.webhook, dict):  # from a store's JSON, checked when it came
            object.__setattr__(self, "webhook", Webhook(**self.webhook))

    def shown(self) -> dict[str, Any]:
        """Return it as JSON data that may be shown, without the webhook's password."""
        return {**to_json(self), "webhook": self.webhook.shown() if self.webhook else None}


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What a caller can choose about one task; None takes the endpoint's value.

    Args:
        priority: 0 to 9, 9 most urgent.
        max_attempts: Attempts before the task has failed.
        timeout_seconds: Limit of one attempt.
        expires_in_seconds: How long it may wait for a worker.
        result_ttl_seconds: How long its result is kept.
        retry_for: Which errors of the function are tried again, see `check_retry_for`.
        webhook: Where its end is told.
        idempotency_key: A second submission with the same key returns the first one's task.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012 - pydantic reads it as it is

    priority: Annotated[int, Ge(0), Le(9)] = 4
    max_attempts: Annotated[int, Ge(1), Le(100)] | None = None
    timeout_seconds: Annotated[float, Gt(0), Le(86_400)] | None = None
    expires_in_seconds: Annotated[float, Gt(0), Le(MAX_LIFETIME_SECONDS)] | None = None
    result_ttl_seconds: Annotated[float, Gt(0), Le(MAX_LIFETIME_SECONDS)] | None = None
    retry_for: list[str] | None = None
    webhook: Webhook | None = None
    idempotency_key: Annotated[str, MinLen(1), MaxLen(200)] | None = None

    def __post_init__(self) -> None:
        check_retry_for(self.retry_for or [])


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task as it stands; the record in Redis is the truth (see ``docs/architecture/tasks.md``).

    Times are seconds since the epoch, UTC, by the clock of Redis. The phases of the last attempt are ``queued_at``,
    ``started_at`` (claimed), ``sent_at``, ``answered_at``, ``stored_at`` and ``finished_at``. ``input`` and ``result``
    are the bytes that travelled, or None when they lie in the object store under ``input_object`` /
    ``result_object``. ``error`` is the inner object of the wire's form: type, message, context. ``alone``: the next
    attempt is to have a worker for itself. ``webhook`` is a `Webhook` as JSON and holds its password: never show it.
    """

    id: str
    endpoint_id: str
    owner: str
    status: TaskStatus
    attempt: int
    max_attempts: int
    priority: int
    timeout_seconds: float
    result_ttl_seconds: float
    created_at: float
    expires_at: float
    not_before: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    queued_at: float | None = None
    sent_at: float | None = None
    answered_at: float | None = None
    stored_at: float | None = None
    incarnation: str | None = None
    alone: bool = False
    retry_for: list[str] = field(default_factory=list)
    priority_age_seconds: float = EndpointSpec.priority_age_seconds
    webhook: dict[str, Any] | None = field(default=None, repr=False)
    webhook_state: dict[str, Any] | None = None
    input_type: str = CONTENT_JSON
    input: bytes | None = None
    input_object: str | None = None
    result_type: str | None = None
    result: bytes | None = None
    result_object: str | None = None
    error: dict[str, Any] | None = None
    idempotency_key: str | None = None


# --------------------------------------------------------------------------------------------------------- helpers
def new_id(prefix: Literal["bun", "end", "ver", "wrk", "tsk", "key", "fwd", "obj", "req"]) -> str:
    """Return a fresh id such as ``tsk_6f0c…``: the prefix and 80 random bits in hex."""
    return f"{prefix}_{secrets.token_hex(10)}"


def to_json(value: Any) -> dict[str, Any]:
    """Return a description as plain JSON data, every field present."""
    return dataclasses.asdict(value)


def from_json(cls: type[T], data: Any, *, what: str) -> T:
    """Build a description from untrusted JSON data.

    Args:
        cls: One of the dataclasses above.
        data: Decoded JSON of any shape.
        what: How the text of an error calls it, such as ``endpoint``.

    Returns:
        A checked instance of `cls`.

    Raises:
        InvalidRequestError: Naming the first field that is wrong, and why.
    """
    from pydantic import ValidationError

    _refuse_grouped_digits(cls, data, what)
    try:
        checked: T = _adapter(cast(Any, cls)).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(f"{what}: {path + ': ' if path else ''}{first['msg']}", field=path) from None
    return checked


def _refuse_grouped_digits(cls: type[Any], data: Any, what: str) -> None:
    """Refuse ``1_0`` for a number: pydantic, as Python, would read it as 10."""
    for each in dataclasses.fields(cls) if isinstance(data, dict) else ():
        value, kind = data.get(each.name), str(each.type).removeprefix("Annotated[")
        if isinstance(value, str) and "_" in value and kind.startswith(("int", "float")):
            raise InvalidRequestError(
                f"{what}: {each.name}: {value!r} is no number; write its digits without '_'.", field=each.name
            )


@functools.cache
def _adapter(cls: type[Any]) -> Any:
    """Return what checks `cls`; making it takes a thousand times longer than using it."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)
