"""The verbs that call a deployed endpoint: `Calls` has a name, perhaps a signature, and the choices of `options`.

Arguments are bound to their names here, so that what travels is a JSON object of keyword arguments, or a pickle when
the caller opts in.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypedDict, Unpack

from brinery.choices import RetryChoice, WebhookChoice, as_headers, check_names
from brinery.default import chosen_client
from brinery.errors import InvalidRequestError, PayloadTooLargeError
from brinery.payload import bind, decode, encode
from brinery.spec import CONTENT_JSON, CONTENT_PICKLE, MAX_BODY_BYTES, new_id

if TYPE_CHECKING:
    from brinery.client import Client
    from brinery.future import Future
    from brinery.routes import Request

P = ParamSpec("P")

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class CallChoices(TypedDict, total=False):
    """What `Calls.options` takes: `spec.TaskOptions`' fields, None for the endpoint's value, and ``pickled``."""

    pickled: bool
    priority: int | None
    max_attempts: int | None
    timeout_seconds: float | None
    expires_in_seconds: float | None
    result_ttl_seconds: float | None
    retry_for: Sequence[RetryChoice] | None
    webhook: WebhookChoice | None
    idempotency_key: str | None


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
        self._headers = as_headers(self._choices)
        self._chosen_client = client

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def options(self, **choices: Unpack[CallChoices]) -> Calls[P]:
        """Return the same endpoint with other choices for the calls that follow.

        Args:
            choices: ``pickled`` sends and returns any Python objects instead of JSON; the others are those of
                `brinery.spec.TaskOptions`. ``timeout_seconds`` holds for `remote` and `stream`, too. ``retry_for``
                takes exception classes as well as names, and ``webhook`` a URL as well as a dict.

        Raises:
            InvalidRequestError: There is no such option, or its value is wrong; the text says which and why.
        """
        check_names(choices, CallChoices, "options()")
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
        from brinery.future import SUBMIT_PATIENCE_SECONDS, Future

        client = self._client()
        request = self._task(args, kwargs)
        record = client.send_patiently(lambda: request, SUBMIT_PATIENCE_SECONDS).json()
        return Future(record["id"], client=client, pickled=self._pickled)

    async def asubmit(self, *args: P.args, **kwargs: P.kwargs) -> Future:
        """Do what `submit` does, on the running event loop."""
        return await self._asubmit(self._task(args, kwargs))

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the result for each item, in their order.

        Items are taken as results are consumed, with at most 64 tasks open, so `items` may be endless and memory stays
        bounded. Where the endpoint's queue takes fewer, calls wait until it has room. When a call fails its error is
        raised; then, and when the iterator is closed, the open tasks are cancelled.

        Args:
            items: Each becomes the one argument of a call.
        """
        return self._map(((item,), {}) for item in items)

    def starmap(self, items: Iterable[Iterable[Any] | Mapping[str, Any]]) -> Iterator[Any]:
        """Do what `map` does, with each item a call's positional arguments, or a mapping of its keyword arguments."""
        return self._map(_spread(item) for item in items)

    def amap(self, items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
        """Do what `map` does, on the running event loop, for ``async for``; `items` may be an async iterable, too."""
        from brinery.mapping import each

        return self._amap(((item,), {}) async for item in each(items))

    def astarmap(
        self, items: Iterable[Iterable[Any] | Mapping[str, Any]] | AsyncIterable[Iterable[Any] | Mapping[str, Any]]
    ) -> AsyncIterator[Any]:
        """Do what `starmap` does, as `amap` does it."""
        from brinery.mapping import each

        return self._amap(_spread(item) async for item in each(items))

    def _map(self, calls: Iterator[_Arguments]) -> Iterator[Any]:
        from brinery.mapping import in_order

        self._refuse_one_key()
        return in_order(partial(self._asubmit, self._task(args, kwargs)) for args, kwargs in calls)

    def _amap(self, calls: AsyncIterator[_Arguments]) -> AsyncIterator[Any]:
        from brinery.mapping import ain_order

        self._refuse_one_key()
        return ain_order(partial(self._asubmit, self._task(args, kwargs)) async for args, kwargs in calls)

    def _refuse_one_key(self) -> None:
        if self._choices.get("idempotency_key") is not None:
            raise InvalidRequestError("One idempotency_key would make all calls of a map the same task; leave it out.")

    async def _asubmit(self, request: Request) -> Future:
        from brinery.future import SUBMIT_PATIENCE_SECONDS, Future

        client = self._client()
        record = (await client.asend_patiently(lambda: request, SUBMIT_PATIENCE_SECONDS)).json()
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
        from brinery.routes import Request, endpoint_path

        content, headers = self._payload(args, kwargs)
        path = endpoint_path(self.name, "predict")
        return Request(method="POST", path=path, content=content, headers=headers, read_timeout_seconds=None)

    def _task(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Request:
        from brinery.routes import Request, endpoint_path

        content, headers = self._payload(args, kwargs)
        path = endpoint_path(self.name, "tasks", new_id("tsk"))
        return Request(method="PUT", path=path, content=content, headers=headers, brief=True)

    def _payload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
        headers = dict(self._headers)
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


def _spread(item: Iterable[Any] | Mapping[str, Any]) -> _Arguments:
    return ((), dict(item)) if isinstance(item, Mapping) else (tuple(item), {})
