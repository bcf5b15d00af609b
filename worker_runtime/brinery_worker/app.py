"""The routes of the serving port: reads a request, takes a slot, runs user code in it, answers."""

from __future__ import annotations

import json
import os
from typing import Final

import cloudpickle
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from brinery.errors import BrineryError, InvalidRequestError, NotFoundError
from brinery.request import set_current_request
from brinery.spec import CONTENT_EVENTS, CONTENT_JSON, CONTENT_PICKLE
from brinery_worker.call import Call
from brinery_worker.events import EventStream
from brinery_worker.predictor import Predictor
from brinery_worker.results import encode_json
from brinery_worker.slots import RequestStopped, Running, Slots

_NOSNIFF: Final = ("X-Content-Type-Options", "nosniff")
_JSON_HEADERS: Final = [("Content-Type", CONTENT_JSON), _NOSNIFF]
_PICKLE_HEADERS: Final = [("Content-Type", CONTENT_PICKLE), _NOSNIFF]
_EVENT_HEADERS: Final = [("Content-Type", CONTENT_EVENTS), _NOSNIFF, ("Cache-Control", "no-store")]


def create_app(predictor: Predictor, slots: Slots) -> Flask:
    """Build the WSGI application.

    Args:
        predictor: The user's code, loaded.
        slots: Where it may run.
    """
    app = Flask("brinery_worker", static_folder=None)
    serving_pid = os.getpid()

    @app.get("/readyz")
    def readyz() -> Response:
        return _reply(200, b'{"status": "ready"}')

    @app.get("/healthz")
    def healthz() -> Response:
        return _reply(200, b'{"status": "ok"}')

    @app.post("/predict")
    def predict() -> Response:
        call = Call(predictor, request.environ)
        running = slots.enter(call.context.request_id, call.timeout_seconds)
        try:
            set_current_request(call.context)
            return running.run(lambda: _predict(predictor, call, running))
        except RequestStopped:
            return _error(running.error())
        except InvalidRequestError as error:
            return _error(error)
        except BaseException as error:  # noqa: BLE001 - also SystemExit: user code ends its request, not the worker
            return _error(call.failed(error))
        finally:
            if os.getpid() != serving_pid:
                os._exit(0)  # a fork of user code came back; only the process that was asked may answer
            slots.leave(running)

    @app.post("/stream")
    def stream() -> Response:
        call = Call(predictor, request.environ)
        running = slots.enter(call.context.request_id, call.timeout_seconds)
        running.connection = request.environ.get("gunicorn.socket")
        events = EventStream(predictor, call, running, slots)
        return Response(events, 200, _EVENT_HEADERS, direct_passthrough=True)

    app.register_error_handler(BrineryError, _error)
    app.register_error_handler(HTTPException, _http_error)
    return app


def _predict(predictor: Predictor, call: Call, running: Running) -> Response:
    args, kwargs = call.bind()
    value = predictor.call(args, kwargs, running)
    if call.pickled:
        return Response(cloudpickle.dumps(value), 200, _PICKLE_HEADERS)
    return Response(encode_json(value), 200, _JSON_HEADERS)


def _reply(status: int, body: bytes) -> Response:
    return Response(body, status, _JSON_HEADERS)


def _error(error: BrineryError) -> Response:
    return _reply(error.status, json.dumps(error.to_json()).encode())


def _http_error(error: HTTPException) -> Response:
    """Answer what Flask itself refuses."""
    if error.code in {404, 405}:
        return _error(NotFoundError("The worker has POST /predict, POST /stream, GET /readyz and GET /healthz."))
    return _reply(error.code or 500, json.dumps(BrineryError(error.description).to_json()).encode())
