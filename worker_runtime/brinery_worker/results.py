"""From the result of the user's function to JSON; what JSON cannot carry is refused with what to return instead."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import uuid
from collections.abc import Set
from typing import Any, Final


def encode_json(value: Any) -> bytes:
    """Encode a result.

    Pydantic models, dataclasses, numpy scalars and arrays (anything with ``tolist``), sets, enums, dates, UUIDs,
    paths and decimals are turned into what JSON has for them.

    Args:
        value: What user code returned or yielded.

    Returns:
        JSON, UTF-8.

    Raises:
        TypeError: It is not JSON; NaN and infinity are not either. The text says what to return instead.
    """
    try:
        return _ENCODER.encode(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(_advice(value, error)) from None


def _default(value: Any) -> Any:
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {found.name: getattr(value, found.name) for found in dataclasses.fields(value)}
    if callable(to_list := getattr(value, "tolist", None)):
        return to_list()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Set):
        return list(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, pathlib.PurePath, decimal.Decimal)):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default)


def _advice(value: Any, error: Exception) -> str:
    result = f"The result, a {type(value).__name__}, cannot be sent as JSON"
    if isinstance(error, ValueError) and "float" in str(error):
        return f"{result}: it holds NaN or infinity. Return None in their place, or call it with pickled=True."
    if isinstance(error, UnicodeEncodeError):
        return f"{result}: it holds half a surrogate pair. Return whole characters."
    if isinstance(error, (RecursionError, ValueError)):
        return f"{result}: it contains itself, or is nested too deeply. Return a plain tree of dicts and lists."
    return (
        f"{result}: {error}. Return dicts with string keys, lists, strings, numbers, booleans, None, dataclasses, "
        "pydantic models or numpy arrays; bytes as base64 text; or call it with pickled=True."
    )
