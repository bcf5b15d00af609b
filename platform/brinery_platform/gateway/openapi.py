"""``/openapi.json``: what FastAPI knows, and by hand what it cannot know: raw bodies, streams and the hot path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from starlette.responses import Response

from brinery.checks import MAX_EGRESS_HOSTS
from brinery.spec import (
    CONTENT_BUNDLE,
    CONTENT_EVENTS,
    CONTENT_JSON,
    CONTENT_PICKLE,
    HEADER_TIMEOUT_SECONDS,
    MAX_WAIT_SECONDS,
    TASK_HEADERS,
    EndpointSpec,
    TaskOptions,
    Webhook,
)
from brinery_platform.gateway.parts import AnyCaller
from brinery_platform.gateway.predict import PREDICT_PATH
from brinery_platform.gateway.replies import JsonResponse
from brinery_platform.gateway.task_front import SUBMIT_AS_PATH, SUBMIT_PATH, TASK_PATH

_REFERENCE: Final = "#/components/schemas/{model}"
_ERROR: Final = {"$ref": _REFERENCE.format(model="Error")}
_BYTES: Final = {"type": "string", "format": "binary"}
_ARGUMENTS: Final = {
    "required": True,
    "description": "Keyword arguments as one JSON object, or a pickle of (args, kwargs).",
    "content": {CONTENT_JSON: {"schema": {"type": "object"}}, CONTENT_PICKLE: {"schema": _BYTES}},
}
_TASK_REPLY: Final = {"description": "A task", "content": {CONTENT_JSON: {"schema": {"type": "object"}}}}
_EGRESS: Final = {
    "default": "on",
    "description": "What workers may connect to: hosts such as api.example.com, *.example.com or api.example.com:8443.",
    "anyOf": [
        {"enum": ["on", "off"]},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_EGRESS_HOSTS},
    ],
}
_OPEN: Final = ("/healthz", "/readyz", "/metrics")
_STREAMS: Final = (
    ("/v1/endpoints/{name}/events", "get", CONTENT_EVENTS),
    ("/v1/endpoints/{name}/logs", "get", "text/plain"),
    ("/v1/tasks/{task_id}/events", "get", CONTENT_EVENTS),
    ("/v1/tasks/events", "post", CONTENT_EVENTS),
    ("/v1/tasks/{task_id}/input", "get", "application/octet-stream"),
    ("/v1/tasks/{task_id}/result", "get", "application/octet-stream"),
    ("/metrics", "get", "text/plain"),
)

router = APIRouter(tags=["operations"])


@router.get("/openapi.json")
async def get_description(request: Request, caller: AnyCaller) -> Response:  # noqa: ARG001 - authorizes
    """Return this description of the API."""
    return JsonResponse(describe(request.app.routes, request.app.version))


def describe(routes: Any, version: str) -> dict[str, Any]:
    """Return the OpenAPI document of the gateway.

    Args:
        routes: The application's.
        version: Of Brinery.
    """
    document = get_openapi(title="Brinery", version=version, routes=routes)
    paths = document["paths"]
    for path, method, operation in _in_front():
        paths.setdefault(path, {})[method] = operation
    paths["/v1/bundles"]["post"]["requestBody"] = {
        "required": True,
        "content": {CONTENT_BUNDLE: {"schema": _BYTES}},
    }
    paths["/v1/endpoints/{name}"]["put"]["requestBody"] = {
        "required": True,
        "content": {CONTENT_JSON: {"schema": _endpoint_schema()}},
    }
    for path, method, content_type in _STREAMS:
        paths[path][method]["responses"]["200"]["content"] = {content_type: {"schema": {"type": "string"}}}
    for path, operations in paths.items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own shape, which nothing here answers
            operation["responses"]["default"] = {
                "description": "What went wrong",
                "content": {CONTENT_JSON: {"schema": _ERROR}},
            }
            if path in _OPEN:
                operation["security"] = []
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"] = _error_schema()
    schemas["Webhook"] = TypeAdapter(Webhook).json_schema()
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "basic": {"type": "http", "scheme": "basic", "description": "The key as user name."},
    }
    document["security"] = [{"bearer": []}, {"basic": []}]
    return document


def _in_front() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield path, method and operation of what is served in front of FastAPI."""
    yield PREDICT_PATH, "post", _predict()
    name, task_id = _in_path("name"), _in_path("task_id")
    for path, method, operation_id, own in (
        (SUBMIT_PATH, "post", "submit", []),
        (SUBMIT_AS_PATH, "put", "submit_as", [task_id]),
    ):
        as_one = " under this id; repeating it returns the same task" if own else ""
        yield (
            path,
            method,
            {
                "tags": ["tasks"],
                "summary": "Submit As" if own else "Submit",
                "description": f"Accept a call as a task{as_one}; the body is what predict takes.",
                "operationId": operation_id,
                "parameters": [name, *own, *_option_parameters()],
                "requestBody": _ARGUMENTS,
                "responses": {"202": _TASK_REPLY},
            },
        )
    wait = {"type": "number", "minimum": 0, "maximum": MAX_WAIT_SECONDS, "default": 0}
    yield (
        TASK_PATH,
        "get",
        {
            "tags": ["tasks"],
            "summary": "Get Task",
            "description": "Return a task, at once or when it is final, whichever comes first within wait_seconds.",
            "operationId": "get_task",
            "parameters": [task_id, {"name": "wait_seconds", "in": "query", "required": False, "schema": wait}],
            "responses": {"200": _TASK_REPLY},
        },
    )


def _predict() -> dict[str, Any]:
    reply = {
        CONTENT_JSON: {"schema": {}},
        CONTENT_PICKLE: {"schema": _BYTES},
        CONTENT_EVENTS: {"schema": {"type": "string"}},
    }
    return {
        "tags": ["endpoints"],
        "summary": "Predict",
        "description": "Call the endpoint's function and answer what it returns, nothing wrapped.",
        "operationId": "predict",
        "parameters": [
            _in_path("name"),
            _header("Accept", {"type": "string"}, f"{CONTENT_EVENTS} streams."),
            _header("Prefer", {"type": "string"}, "respond-async answers 202 and a task."),
            _header(
                HEADER_TIMEOUT_SECONDS,
                {"type": "number", "exclusiveMinimum": 0},
                "Less than the endpoint's own limit, waiting included.",
            ),
        ],
        "requestBody": _ARGUMENTS,
        "responses": {
            "200": {"description": "The result", "content": reply},
            "202": _TASK_REPLY,
        },
    }


def _option_parameters() -> list[dict[str, Any]]:
    fields = TypeAdapter(TaskOptions).json_schema(ref_template=_REFERENCE)["properties"]
    text = {"type": "string"}
    as_sent = {
        "retry_for": (text, "Comma-separated: exceptions' names, or statuses such as HTTP 503."),
        "webhook": (text, "A URL, or JSON in ASCII: an object with url, username and password."),
    }
    return [_header(name, *as_sent.get(field, (fields[field], ""))) for field, name in TASK_HEADERS.items()]


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


def _endpoint_schema() -> dict[str, Any]:
    schema = TypeAdapter(EndpointSpec).json_schema(ref_template=_REFERENCE)
    del schema["properties"]["name"], schema["$defs"]
    schema["properties"]["egress"] = _EGRESS
    return {**schema, "required": ["bundle_id"]}


def _error_schema() -> dict[str, Any]:
    error = {
        "type": "object",
        "required": ["type", "message", "context"],
        "properties": {
            "type": {"type": "string"},
            "message": {"type": "string"},
            "context": {"type": "object"},
        },
    }
    return {"type": "object", "required": ["error"], "properties": {"error": error}}
