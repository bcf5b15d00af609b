"""What callers may send and will get: JSON Schemas from type hints, through pydantic; what it cannot say stays open."""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter

from brinery.spec import BundleKind

if TYPE_CHECKING:
    from brinery.definition import Definition

_REF: typing.Final = "#/$defs/{model}"
_RESULT: typing.Final = "return"


def describe(endpoint: Definition) -> dict[str, Any]:
    """Return the fields of a `BundleManifest` that follow from the callable itself.

    Returns:
        ``request_schema``, ``response_schema``, ``streaming`` and ``doc``.
    """
    function = served_function(endpoint)
    signature = endpoint.parameters()
    doc = inspect.getdoc(endpoint.target) if function is not None else None
    if function is None or signature is None:
        return {"doc": _first_paragraph(doc)}
    unwrapped = inspect.unwrap(function)
    streaming = inspect.isgeneratorfunction(unwrapped) or inspect.isasyncgenfunction(unwrapped)
    return {
        "request_schema": request_schema(signature, unwrapped),
        "response_schema": None if streaming else response_schema(signature, unwrapped),
        "streaming": streaming,
        "doc": _first_paragraph(doc or inspect.getdoc(function)),
    }


def served_function(endpoint: Definition) -> Callable[..., Any] | None:
    """Return the function that callers call; None for a pair, where only ``load_predict`` makes it."""
    if endpoint.kind is BundleKind.LOAD_PREDICT:
        return None
    function = endpoint.target.predict if endpoint.kind is BundleKind.CLASS else endpoint.target
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    return typing.cast("Callable[..., Any]", function)


def request_schema(signature: inspect.Signature, function: Callable[..., Any]) -> dict[str, Any] | None:
    """Return the schema of the keyword arguments as one object.

    Args:
        signature: The parameters that callers see.
        function: Whose module the annotations are to be read in.

    Returns:
        None when a parameter cannot be passed by name, so that only pickled calls can reach it.
    """
    hints, properties, required = dict[str, Any](), dict[str, Any](), list[str]()
    open_ended = False
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            return None
        if parameter.kind is parameter.VAR_KEYWORD:
            open_ended = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            hints[name] = _hint(parameter.annotation, function)
            if parameter.default is parameter.empty:
                required.append(name)
    schemas, definitions = _schemas(hints, "validation")
    for name, schema in schemas.items():
        default = signature.parameters[name].default
        keeps_default = default is not inspect.Parameter.empty and _is_json(default)
        properties[name] = {**schema, "default": default} if keeps_default else schema
    schema = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": open_ended,
    }
    return {**schema, "$defs": definitions} if definitions else schema


def response_schema(signature: inspect.Signature, function: Callable[..., Any]) -> dict[str, Any] | None:
    """Return the schema of the result, or None when its hint says nothing."""
    schemas, definitions = _schemas({_RESULT: _hint(signature.return_annotation, function)}, "serialization")
    schema = schemas[_RESULT]
    if not schema:
        return None
    return {**schema, "$defs": definitions} if definitions else schema


def _hint(annotation: Any, function: Callable[..., Any]) -> Any:
    """Return the type behind an annotation that may be text, `Any` where it cannot be found."""
    if annotation is inspect.Signature.empty:
        return Any
    holder = SimpleNamespace(__annotations__={_RESULT: annotation})
    try:
        enclosing = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
        return typing.get_type_hints(
            holder, getattr(function, "__globals__", {}), dict(enclosing), include_extras=True
        )[_RESULT]
    except Exception:  # noqa: BLE001 - an annotation is user's code, and any of it may fail; then it says nothing
        return Any


def _schemas(
    hints: dict[str, Any], mode: Literal["validation", "serialization"]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return each hint's schema, ``{}`` where pydantic has none, and the definitions that they share."""
    adapters = {name: adapter for name, hint in hints.items() if (adapter := _adapter(hint, mode)) is not None}
    inputs = [(name, mode, adapter) for name, adapter in adapters.items()]
    found, shared = TypeAdapter.json_schemas(inputs, ref_template=_REF) if inputs else ({}, {})
    return {name: dict(found.get((name, mode), {})) for name in hints}, dict(shared.get("$defs", {}))


def _adapter(hint: Any, mode: Literal["validation", "serialization"]) -> TypeAdapter[Any] | None:
    try:
        adapter = TypeAdapter[Any](hint)
        adapter.json_schema(mode=mode, ref_template=_REF)
    except Exception:  # noqa: BLE001 - user's types take part in this, and what fails here has no schema
        return None
    return adapter


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _first_paragraph(doc: str | None) -> str:
    return " ".join((doc or "").partition("\n\n")[0].split())
