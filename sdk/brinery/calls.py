"""The verbs that call a deployed endpoint: `Calls` has a name, perhaps a signature, and the choices of `options`.

Arguments are bound to their names here, so that what travels is a JSON object of keyword arguments, or a pickle when
the caller opts in.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypedDict, Unpack

from brinery.default import chosen_client
from brinery.errors import BrineryError, InvalidRequestError, PayloadTooLargeError
from brinery.payload import bind, check_choices, decode, encode
from brinery.spec import (
    CONTENT_JSON,
    CONTENT_PICKLE,
    HEADER_IDEMPOTENCY_KEY,
    HEADER_PRIORITY,
    HEADER_TIMEOUT_SECONDS,
    MAX_BODY_BYTES,
    new_id,
)

if TYPE_CHECKING:
    from brinery.client import Client, Request
    from brinery.future import Future

P = ParamSpec("P")

MAP_AHEAD: Final = 64
"""How many tasks `map` keeps open ahead of the result that it yields next."""
HEADERS: Final = {
    "priority": HEADER_PRIORITY,
    "timeout_seconds": HEADER_TIMEOUT_SECONDS,
    "idempotency_key": HEADER_IDEMPOTENCY_KEY,
    "max_attempts": "X-Brinery-Max-Attempts",
    "expires_in_seconds": "X-Brinery-Expires-In-Seconds",
}


class CallChoices(TypedDict, total=False):
    """What `Calls.options` takes: `spec.TaskOptions`' fields, and ``pickled``."""

    pickled: bool
    priority: int
    max_attempts: int
    timeout_seconds: float
    expires_in_seconds: float
    idempotency_key: str


class Calls(Generic[P]):
    """A deployed endpoint as its callers see it.

    Args:
        name: The endpoint's name; another owner's as ``owner/name``.
        signature: For binding positional arguments; None when it is unknown here.
        choices: As `options` takes them.
        client: None for the one that the environment and the profile name.
    """

    def __init__(
        self,
        name: str,
        *,
        signature: inspect.Signature | None = None,
        choices: CallChoices | None = None,
        client: Client | None = None,
    ) -> None:
        self.name = name
        self._signature = signature
        self._choices: CallChoices = choices or {}
        self._chosen_client = client

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def options(self, **choices: Unpack[CallChoices]) -> Calls[P]:
        """Return the same endpoint with other choices for the calls that follow.

        Args:
            choices: ``pickled`` sends and returns any Python objects instead of JSON; the others are those of
                `brinery.spec.TaskOptions`. ``timeout_seconds`` holds for `remote` and `stream`, too.

        Raises:
            InvalidRequestError: There is no such option.
        """
        check_choices(choices, CallChoices, "options()")
        merged: CallChoices = {**self._choices, **choices}
        return Calls(self.name, signature=self.parameters(), choices=merged, client=self._chosen_client)

    # ------------------------------------------------------------------------------------------------------- now
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the endpoint and wait for its result.

        Returns:
            The result as JSON carries it (a tuple comes back as a list), or the object itself with ``pickled``.

        Raises:
            RemoteError: The function raised; carries type, message and traceback.
            InvalidRequestError: The arguments do not fit.
            BrineryError: Another of its classes says what else went wrong.
        """
        response = self._client().send(self._predict(args, kwargs))
        return decode(response.content, response.headers.get("content-type"), pickled=self._pickled)

    async def aremote(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Do what `remote` does, on the running event loop."""
        response = await self._client().asend(self._predict(args, kwargs))
        return decode(response.content, response.headers.get("content-type"), pickled=self._pickled)

    def stream(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
        """Call the endpoint and yield each item as it comes; a plain function yields its one result.

        Raises:
            RemoteError: The function raised; the items before it have been yielded.
            BrineryError: As `remote`.
        """
        from brinery.stream import stream

        return stream(self._client(), self._predict(args, kwargs))

    # ----------------------------------------------------------------------------------------------------- later
    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future:
        """Hand the call to the endpoint's queue and return at once.

        The task's id is made here and the request can be repeated without harm, so a lost connection is tried again.

        Returns:
            The task's future.

        Raises:
            OverloadedError: The queue is full.
            BrineryError: As `remote`, but for what the function itself raises.
        """
        return self._submit(args, kwargs)

    async def asubmit(self, *args: P.args, **kwargs: P.kwargs) -> Future:
        """Do what `submit` does, on the running event loop."""
        from brinery.future import SUBMIT_PATIENCE_SECONDS, Future

        client = self._client()
        request = self._task(args, kwargs)
        record = (await client.asend_patiently(lambda: request, SUBMIT_PATIENCE_SECONDS)).json()
        return Future(record["id"], client=client, pickled=self._pickled)

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the result for each item, in their order.

        Items are taken as results are consumed, with at most `MAP_AHEAD` tasks open, so `items` may be endless. When
        a call fails its error is raised; then, and when the iterator is closed, the open tasks are cancelled.

        Args:
            items: Each becomes the one argument of a call.
        """
        return self._map(((item,), {}) for item in items)

    def starmap(self, items: Iterable[Iterable[Any] | Mapping[str, Any]]) -> Iterator[Any]:
        """Do what `map` does, with each item a call's positional arguments, or a mapping of its keyword arguments."""
        return self._map(((), dict(item)) if isinstance(item, Mapping) else (tuple(item), {}) for item in items)

    def _map(self, calls: Iterator[tuple[tuple[Any, ...], dict[str, Any]]]) -> Iterator[Any]:
        if "idempotency_key" in self._choices:
            raise InvalidRequestError("One idempotency_key would make all calls of a map the same task; leave it out.")
        return self._in_order(calls)

    def _in_order(self, calls: Iterator[tuple[tuple[Any, ...], dict[str, Any]]]) -> Iterator[Any]:
        open_futures: deque[Future] = deque()
        try:
            for args, kwargs in calls:
                open_futures.append(self._submit(args, kwargs))
                if len(open_futures) >= MAP_AHEAD:
                    yield open_futures.popleft().get()
            while open_futures:
                yield open_futures.popleft().get()
        finally:
            for future in open_futures:
                _cancel_quietly(future)

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future:
        from brinery.future import SUBMIT_PATIENCE_SECONDS, Future

        client = self._client()
        request = self._task(args, kwargs)
        record = client.send_patiently(lambda: request, SUBMIT_PATIENCE_SECONDS).json()
        return Future(record["id"], client=client, pickled=self._pickled)

    # --------------------------------------------------------------------------------------------------- requests
    @property
    def _pickled(self) -> bool:
        return self._choices.get("pickled", False)

    def parameters(self) -> inspect.Signature | None:
        """Return the signature that callers see; None where it is not known here."""
        return self._signature

    def _client(self) -> Client:
        return chosen_client(self._chosen_client, repr(self.name))

    def _predict(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Request:
        from brinery.client import Request, endpoint_path

        content, headers = self._payload(args, kwargs)
        path = endpoint_path(self.name, "predict")
        return Request(method="POST", path=path, content=content, headers=headers, read_timeout_seconds=None)

    def _task(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Request:
        from brinery.client import Request, endpoint_path

        content, headers = self._payload(args, kwargs)
        path = endpoint_path(self.name, "tasks", new_id("tsk"))
        return Request(method="PUT", path=path, content=content, headers=headers)

    def _payload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
        headers = {HEADERS[name]: str(value) for name, value in self._choices.items() if name in HEADERS}
        if self._pickled:
            import cloudpickle

            headers["Accept"] = f"{CONTENT_PICKLE}, {CONTENT_JSON}"
            content, content_type = cloudpickle.dumps((args, kwargs)), CONTENT_PICKLE
        else:
            content, content_type = encode(self.name, bind(self.name, self.parameters(), args, kwargs)), CONTENT_JSON
        if len(content) > MAX_BODY_BYTES:
            raise PayloadTooLargeError(
                f"The arguments for {self.name!r} are {len(content) / 2**20:.1f} MiB, and a body takes at most "
                f"{MAX_BODY_BYTES // 2**20} MiB; pass a URL or a path that the worker can read instead."
            )
        return content, {**headers, "Content-Type": content_type}


def _cancel_quietly(future: Future) -> None:
    try:
        future.cancel()
    except BrineryError:
        return  # the map is over already; a task that cannot be cancelled now ends by itself
