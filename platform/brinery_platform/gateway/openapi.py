"""``/openapi.json``: what FastAPI knows, and by hand what it cannot know: raw bodies, streams and the hot path."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from starlette.responses import Response

from brinery.spec import (
    CONTENT_BUNDLE,
    CONTENT_EVENTS,
    CONTENT_JSON,
    CONTENT_PICKLE,
    HEADER_TIMEOUT_SECONDS,
    EndpointSpec,
    TaskOptions,
)
from brinery_platform.gateway.parts import AnyCaller
from brinery_platform.gateway.predict import PREFIX, SUFFIX
from brinery_platform.gateway.replies import JsonResponse
from brinery_platform.gateway.submit import OPTIONS

_ERROR: Final = {"$ref": "#/components/schemas/Error"}
_BYTES: Final = {"type": "string", "format": "binary"}
_ARGUMENTS: Final = {
    "required": True,
    "description": "Keyword arguments as one JSON object, or a pickle of (args, kwargs).",
    "content": {CONTENT_JSON: {"schema": {"type": "object"}}, CONTENT_PICKLE: {"schema": _BYTES}},
}
_OPEN: Final = ("/healthz", "/readyz", "/metrics")
_STREAMS: Final = (
    ("/v1/endpoints/{name}/events", CONTENT_EVENTS),
    ("/v1/endpoints/{name}/logs", "text/plain"),
    ("/v1/tasks/{task_id}/events", CONTENT_EVENTS),
    ("/v1/tasks/{task_id}/result", "application/octet-stream"),
    ("/metrics", "text/plain"),
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
    paths[f"{PREFIX}{{name}}{SUFFIX}"] = {"post": _predict()}
    options = _option_parameters()
    for path, method in (("/v1/endpoints/{name}/tasks", "post"), ("/v1/endpoints/{name}/tasks/{task_id}", "put")):
        paths[path][method]["requestBody"] = _ARGUMENTS
        paths[path][method]["parameters"] += options
    paths["/v1/bundles"]["post"]["requestBody"] = {
        "required": True,
        "content": {CONTENT_BUNDLE: {"schema": _BYTES}},
    }
    paths["/v1/endpoints/{name}"]["put"]["requestBody"] = {
        "required": True,
        "content": {CONTENT_JSON: {"schema": _endpoint_schema()}},
    }
    for path, content_type in _STREAMS:
        paths[path]["get"]["responses"]["200"]["content"] = {content_type: {"schema": {"type": "string"}}}
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
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "basic": {"type": "http", "scheme": "basic", "description": "The key as user name."},
    }
    document["security"] = [{"bearer": []}, {"basic": []}]
    return document


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
            {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}},
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
            "202": {"description": "A task", "content": {CONTENT_JSON: {"schema": {"type": "object"}}}},
        },
    }


def _option_parameters() -> list[dict[str, Any]]:
    fields = TypeAdapter(TaskOptions).json_schema()["properties"]
    return [_header(name, fields[field], "") for name, field in OPTIONS.items()]


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


def _endpoint_schema() -> dict[str, Any]:
    schema = TypeAdapter(EndpointSpec).json_schema()
    del schema["properties"]["name"]
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
