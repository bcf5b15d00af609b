"""Arguments and results as bytes: bound to their names, as JSON by default, as a pickle where the caller opts in."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections import deque
from datetime import date, time
from enum import Enum
from typing import Any

from brinery.errors import BrineryError, InvalidRequestError
from brinery.spec import CONTENT_JSON, CONTENT_PICKLE


def bind(
    name: str, signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return all arguments by name, defaults left out.

    Raises:
        InvalidRequestError: They do not fit the signature, or have no name to travel under.
    """
    if signature is None:
        if args:
            raise InvalidRequestError(
                f"The parameters of {name!r} are not known here; pass its arguments by keyword, or use "
                ".options(pickled=True)."
            )
        return kwargs
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InvalidRequestError(f"{name}{signature}: {error}.") from None
    named = dict[str, Any]()
    for parameter in signature.parameters.values():
        if parameter.name not in bound.arguments:
            continue
        value = bound.arguments[parameter.name]
        if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL}:
            raise InvalidRequestError(
                f"{name}: parameter {str(parameter)!r} cannot be passed by name, as JSON needs it; make it an ordinary "
                "parameter, or use .options(pickled=True)."
            )
        if parameter.kind is parameter.VAR_KEYWORD:
            named.update(value)
        else:
            named[parameter.name] = value
    return named


def encode(name: str, arguments: dict[str, Any]) -> bytes:
    """Return the arguments as a JSON object.

    Dataclasses, pydantic models, enums, dates, sets and whatever has ``tolist`` (NumPy) become the obvious JSON.

    Raises:
        InvalidRequestError: Naming the argument that JSON cannot carry.
    """
    try:
        return json.dumps(arguments, default=_plain, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        argument = next(argument for argument, value in arguments.items() if not _travels(value))
        raise InvalidRequestError(
            f"{name}: argument {argument!r} cannot travel as JSON ({error}); pass plain JSON types, or use "
            ".options(pickled=True) for any Python object.",
            field=argument,
        ) from None


def decode(content: bytes, content_type: str | None, *, pickled: bool) -> Any:
    """Return a result from its bytes.

    Raises:
        BrineryError: It is not JSON.
        InvalidRequestError: It is a pickle, which the caller has not asked for; opening one runs code of its author.
    """
    if (content_type or CONTENT_JSON).partition(";")[0].strip() != CONTENT_PICKLE:
        try:
            return json.loads(content)
        except ValueError:
            raise BrineryError(
                "The reply is not JSON, so it is not the function's result; `brinery logs` may show what went wrong."
            ) from None
    if not pickled:
        raise InvalidRequestError(
            "The result is a pickle, and opening one runs code of whoever made it. If you trust the endpoint, ask "
            "for it: .options(pickled=True), or Future.from_id(id, pickled=True)."
        )
    import cloudpickle

    return cloudpickle.loads(content)


def _travels(value: Any) -> bool:
    try:
        json.dumps(value, default=_plain, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _plain(value: Any) -> Any:
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, set | frozenset | deque):
        return list(value)
    if callable(tolist := getattr(value, "tolist", None)):
        return tolist()
    raise TypeError(f"{type(value).__name__} is no JSON type")
