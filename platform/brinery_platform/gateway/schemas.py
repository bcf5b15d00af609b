"""Arguments checked against an endpoint's JSON Schema on acceptance, by a compiled validator that trusts no schema.

The worker checks the whole schema before user code. Here only the part is used that cannot harm the gateway: no regular
expressions (they can take for ever), no references to other documents (they would be fetched), and nothing under which
leaving these out could refuse what the whole schema allows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import fastjsonschema
import orjson

from brinery.errors import InvalidRequestError

MAX_SCHEMA_BYTES: Final = 64 * 1024
MAX_CHECKED_BYTES: Final = 1024 * 1024
"""Larger bodies are checked by the worker only; here they would hold up everybody else."""

_NAMED: Final = frozenset({"properties", "$defs", "definitions"})
_PLAIN: Final = frozenset({"type", "enum", "const", "required"})
_BOUNDS: Final = frozenset(
    {
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
    }
)
_NESTED: Final = frozenset({"items", "additionalProperties", "anyOf", "allOf"})


def check_arguments(schema: dict[str, Any] | None, body: bytes) -> None:
    """Refuse a JSON body that the endpoint's function cannot take.

    Args:
        schema: JSON Schema of the keyword arguments; None checks only that they are a JSON object.
        body: JSON as it came; above `MAX_CHECKED_BYTES` nothing is checked.

    Raises:
        InvalidRequestError: Naming the argument that is wrong.
    """
    if len(body) > MAX_CHECKED_BYTES:
        return
    try:
        arguments = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"The body is not JSON: {error}.") from None
    if not isinstance(arguments, dict):
        raise InvalidRequestError('The body must be a JSON object of keyword arguments, such as {"x": 1}.')
    if schema is None:
        return
    validate = _compiled(orjson.dumps(schema, option=orjson.OPT_SORT_KEYS))
    try:
        validate(arguments)
    except fastjsonschema.JsonSchemaValueException as error:
        raise _refusal(error) from None
    except RecursionError:
        return  # deeper than Python goes; the worker answers for it


def _refusal(error: fastjsonschema.JsonSchemaValueException) -> InvalidRequestError:
    path, text = [str(part) for part in error.path[1:]], error.message.removeprefix("data.")
    known = list((error.definition or {}).get("properties", ()))
    if error.rule == "additionalProperties" and isinstance(error.value, dict) and error.rule_definition is False:
        unknown = next(name for name in error.value if name not in known)
        place = f" in {'.'.join(path)}" if path else ""
        there_are = f"there are {', '.join(known)}" if known else "there are none"
        path, text = [*path, unknown], f"there is no {unknown!r}{place}; {there_are}."
    elif error.rule == "required" and isinstance(error.value, dict):
        path = [*path, next(name for name in error.rule_definition if name not in error.value)]
        text = f"{'.'.join(path)} is missing."
    return InvalidRequestError(f"arguments: {text}", field=".".join(path))


@lru_cache(maxsize=1024)
def _compiled(raw: bytes) -> Callable[[Any], Any]:
    if len(raw) > MAX_SCHEMA_BYTES:
        return _accept
    try:
        validator: Callable[[Any], Any] = fastjsonschema.compile(_lenient(orjson.loads(raw)), use_default=False)
    except (fastjsonschema.JsonSchemaDefinitionException, RecursionError):
        return _accept  # the worker's check of the whole schema stands
    return validator


def _accept(arguments: Any) -> Any:
    return arguments


def _lenient(schema: Any) -> Any:
    """Return `schema` with only what is safe to compile; whatever the original accepts, this accepts."""
    if not isinstance(schema, dict):
        return schema if isinstance(schema, bool) else {}
    reference = schema.get("$ref")
    kept: dict[str, Any] = {}
    if isinstance(reference, str) and reference.startswith("#/"):
        kept["$ref"] = reference
    for word, value in schema.items():
        if word in _PLAIN or word in _BOUNDS:
            kept[word] = value
        elif word in _NAMED and isinstance(value, dict):
            kept[word] = {name: _lenient(part) for name, part in value.items()}
        elif word in _NESTED:
            kept[word] = [_lenient(part) for part in value] if isinstance(value, list) else _lenient(value)
        elif word == "oneOf" and isinstance(value, list) and "anyOf" not in schema:
            kept["anyOf"] = [_lenient(part) for part in value]
    if "patternProperties" in schema:
        kept.pop("additionalProperties", None)
    if "prefixItems" in schema:
        kept.pop("items", None)
    return kept
