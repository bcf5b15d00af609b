"""From a JSON object to the arguments of the user's function: names, schema, and the types its hints ask for."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import inspect
import json
import pathlib
import types
import typing
import uuid
from collections.abc import Callable, Hashable
from typing import Any, Final, NoReturn

import cloudpickle
import fastjsonschema

from brinery.errors import InvalidRequestError

Convert = Callable[[Any], Any]

_POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY
_BY_NAME: Final = {
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
}
_LEAVES: Final[dict[Any, Convert]] = {
    datetime.datetime: datetime.datetime.fromisoformat,
    datetime.date: datetime.date.fromisoformat,
    datetime.time: datetime.time.fromisoformat,
    pathlib.Path: pathlib.Path,
    uuid.UUID: uuid.UUID,
}
_CONTAINERS: Final[dict[Any, Convert]] = {
    list: list,
    set: set,
    frozenset: frozenset,
}


class Arguments:
    """How the arguments of one function are read.

    Args:
        function: The user's function, or the bound method.
        schema: JSON Schema of its keyword arguments, or None when unknown.

    Raises:
        InvalidRequestError: `schema` is not a JSON Schema.
    """

    def __init__(self, function: Callable[..., Any], schema: dict[str, Any] | None) -> None:
        try:
            self._signature = inspect.signature(function)
        except (TypeError, ValueError):  # some callables of C extensions do not tell
            self._signature = inspect.signature(lambda *args, **kwargs: None)  # noqa: ARG005 - takes whatever comes
        parameters = self._signature.parameters.values()
        named = [found for found in parameters if found.kind in _BY_NAME]
        self._names = frozenset(found.name for found in named)
        self._required = frozenset(found.name for found in named if found.default is found.empty)
        self._open = any(found.kind is inspect.Parameter.VAR_KEYWORD for found in parameters)
        self._positional = tuple(found.name for found in named if found.kind is _POSITIONAL_ONLY)
        self._converts = _converts(function, self._names)
        self._check = _compile(schema)

    def check(self, body: bytes) -> dict[str, Any]:
        """Decode a request's body and check it, without running user code.

        Args:
            body: JSON text; nothing at all means no arguments.

        Returns:
            The arguments as plain JSON data, by name.

        Raises:
            InvalidRequestError: It is not a JSON object, or an argument is missing, unexpected or not valid.
        """
        given = _decode(body) if body else {}
        if not isinstance(given, dict):
            raise InvalidRequestError(
                f"The body is a JSON {_json_type(given)}; send an object of the function's keyword arguments, such as "
                f'{{"{next(iter(sorted(self._names)), "x")}": …}}.'
            )
        names = given.keys()
        if not self._required <= names:
            missing = min(self._required - names)
            raise InvalidRequestError(f"Argument {missing!r} is missing.", field=missing)
        if not self._open and not names <= self._names:
            unexpected = min(names - self._names)
            takes = ", ".join(sorted(self._names)) or "no arguments"
            raise InvalidRequestError(f"Argument {unexpected!r} is unexpected; takes {takes}.", field=unexpected)
        if self._check is not None:
            try:
                self._check(given)
            except fastjsonschema.JsonSchemaValueException as error:
                raise _schema_error(error) from None
        return given

    def bind(self, given: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Turn checked arguments into those to call with; code of the user's own types may run.

        Args:
            given: From `check`.

        Returns:
            Positional and keyword arguments.

        Raises:
            InvalidRequestError: A value does not fit its parameter's type.
        """
        for name, convert in self._converts.items():
            if name in given:
                try:
                    given[name] = convert(given[name])
                except Exception as error:
                    raise InvalidRequestError(f"Argument {name!r} is not valid: {error}", field=name) from error
        positional = [given.pop(name) for name in self._positional if name in given]
        return positional, given

    def unpickle(self, body: bytes) -> tuple[Any, dict[str, Any]]:
        """Read pickled arguments; code of the user's own types runs.

        Args:
            body: A pickle of ``(args, kwargs)``.

        Returns:
            Positional and keyword arguments.

        Raises:
            InvalidRequestError: It cannot be read, or does not fit the function's signature.
        """
        try:
            args, kwargs = cloudpickle.loads(body)
            self._signature.bind(*args, **kwargs)
        except Exception as error:
            kind = type(error).__name__
            raise InvalidRequestError(f"The pickled arguments cannot be used: {kind}: {error}") from error
        return args, kwargs


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def _decode(body: bytes) -> Any:
    try:
        return _DECODER.decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"The body is not JSON: {error}.") from None


def _json_type(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return "array"
    return "string" if isinstance(value, str) else "number"


def _no_remote_references(uri: str) -> NoReturn:
    raise InvalidRequestError(f"The bundle's request_schema refers to {uri}; keep it in one piece.")


def _compile(schema: dict[str, Any] | None) -> Callable[[Any], Any] | None:
    if schema is None:
        return None
    try:
        compiled: Callable[[Any], Any] = fastjsonschema.compile(
            schema,
            handlers={"http": _no_remote_references, "https": _no_remote_references, "file": _no_remote_references},
            use_default=False,  # the function's own defaults are the truth
            use_formats=False,  # the types that read such strings say better what is wrong with them
        )
    except fastjsonschema.JsonSchemaDefinitionException as error:
        raise InvalidRequestError(f"The bundle's request_schema is not a JSON Schema: {error}") from None
    return compiled


def _schema_error(error: fastjsonschema.JsonSchemaValueException) -> InvalidRequestError:
    path = [str(part) for part in error.path[1:]]
    name = path[0] if path else ""
    text = str(error.message).replace("data.", "", 1) if path else str(error.message)
    return InvalidRequestError(f"Argument {name!r}: {text}." if name else f"{text}.", field=".".join(path))


# --------------------------------------------------------------------------------------------- types from type hints
def _converts(function: Callable[..., Any], names: frozenset[str]) -> dict[str, Convert]:
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - hints are user code, and may name what exists only for a type checker
        hints = {}
    found = {name: _convert_for(hint) for name, hint in hints.items() if name in names}
    return {name: convert for name, convert in found.items() if convert is not None}


def _convert_for(hint: Any) -> Convert | None:
    """Return what turns JSON data into an instance of `hint`, or None where it already is one."""
    if isinstance(hint, Hashable) and hint in _LEAVES:
        return _LEAVES[hint]
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        if callable(getattr(hint, "model_validate", None)):
            validate: Convert = getattr(hint, "model_validate")  # noqa: B009 - a plain type has none
            return validate
        if dataclasses.is_dataclass(hint):
            return _Dataclass(hint)
        if issubclass(hint, enum.Enum):
            return hint
        return _container(_CONTAINERS[hint], None) if hint in _CONTAINERS else None
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _convert_for(parameters[0])
    if origin in {typing.Union, types.UnionType}:
        members = [member for member in parameters if member is not type(None)]
        inner = _convert_for(members[0]) if len(members) == 1 else None
        return functools.partial(_optional, inner) if inner is not None else None
    if origin in _CONTAINERS:
        return _container(_CONTAINERS[origin], _convert_for(parameters[0]))
    if origin is tuple:
        inner = _convert_for(parameters[0]) if len(parameters) == 2 and parameters[1] is Ellipsis else None
        return functools.partial(_items, tuple, inner)
    if origin is dict:
        inner = _convert_for(parameters[1])
        return functools.partial(_values, inner) if inner is not None else None
    return None


class _Dataclass:
    """Builds a dataclass from a JSON object, its fields in turn; made when first used, as it may contain itself."""

    def __init__(self, cls: type[Any]) -> None:
        self._cls = cls

    @functools.cached_property
    def _fields(self) -> dict[str, Convert]:
        return _converts(self._cls, frozenset(found.name for found in dataclasses.fields(self._cls)))

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise TypeError(f"takes an object of {self._cls.__name__}'s fields")
        return self._cls(**{name: self._field(name, item) for name, item in value.items()})

    def _field(self, name: str, value: Any) -> Any:
        convert = self._fields.get(name)
        return value if convert is None else convert(value)


def _optional(inner: Convert, value: Any) -> Any:
    return None if value is None else inner(value)


def _items(container: Convert, inner: Convert | None, value: Any) -> Any:
    return container(value) if inner is None else container(inner(item) for item in value)


def _values(inner: Convert, value: Any) -> Any:
    return {key: inner(item) for key, item in value.items()}


def _container(container: Convert, inner: Convert | None) -> Convert | None:
    if container is list and inner is None:
        return None
    return functools.partial(_items, container, inner)
