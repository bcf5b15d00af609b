"""A call's items as server-sent events: one ``data:`` each, then ``event: done``, or ``event: error``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from brinery.errors import BrineryError, InvalidRequestError
from brinery.request import set_current_request
from brinery_worker.call import Call
from brinery_worker.predictor import Predictor
from brinery_worker.results import encode_json
from brinery_worker.slots import RequestStopped, Running, Slots


class EventStream:
    """The body of a streamed reply; holds its slot until it is read to its end or closed.

    Args:
        predictor: The user's code.
        call: The request.
        running: Its slot.
        slots: Where the slot goes back to.
    """

    def __init__(self, predictor: Predictor, call: Call, running: Running, slots: Slots) -> None:
        self._predictor = predictor
        self._call = call
        self._running = running
        self._slots = slots
        self._items: Iterator[Any] | None = None
        self._open = True

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> bytes:
        if not self._open:
            raise StopIteration
        try:
            event = self._running.run(self._step)
        except RequestStopped:
            event = self._last(self._running.error())
        except InvalidRequestError as error:
            event = self._last(error)
        except BaseException as error:  # noqa: BLE001 - also SystemExit: user code ends its request, not the worker
            event = self._last(self._call.failed(error))
        if event is None:
            self.close()
            return b"event: done\ndata: {}\n\n"
        return event

    def close(self) -> None:
        """End the user's generator and give the slot back; the server calls it too when the client has gone."""
        if not self._open:
            return
        self._open = False
        try:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
        except BaseException as error:  # noqa: BLE001 - nobody is left to answer; the log tells
            self._call.failed(error)
        finally:
            self._slots.leave(self._running)

    def _step(self) -> bytes | None:
        if self._items is None:
            set_current_request(self._call.context)
            args, kwargs = self._call.bind()
            self._items = self._predictor.stream(args, kwargs, self._running)
        for item in self._items:
            return b"data: " + encode_json(item) + b"\n\n"
        return None

    def _last(self, error: BrineryError) -> bytes:
        self.close()
        return b"event: error\ndata: " + json.dumps(error.to_json()).encode() + b"\n\n"
