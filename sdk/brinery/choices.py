"""What a caller chooses about a call or an endpoint: checked here, before anything is sent, and put into headers.

Limits stand in `brinery.spec` alone and are read from there, without pydantic, which workers do not have.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from brinery.checks import check_retry_for
from brinery.errors import InvalidRequestError
from brinery.spec import TASK_HEADERS, TaskOptions, Webhook, to_json

WebhookChoice = str | Mapping[str, str] | Webhook
"""A URL, or one with ``username`` and ``password``."""
RetryChoice = str | type[BaseException]
"""An exception's class or name, or a worker's status such as ``HTTP 503``."""

_KINDS: Final = {int: "a whole number", float: "a number", str: "a text"}


def check_names(given: Mapping[str, Any], known: type, what: str) -> None:
    """Refuse a keyword that the TypedDict `known` does not have.

    Raises:
        InvalidRequestError: Naming the keyword, and the one that was probably meant.
    """
    names = known.__annotations__
    for name in given:
        if name not in names:
            from difflib import get_close_matches

            near = get_close_matches(name, names, n=1)
            cure = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(names))}."
            raise InvalidRequestError(f"{what} has no setting {name!r}; {cure}", field=name)


def as_headers(choices: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers that carry a call's choices.

    Args:
        choices: Fields of `brinery.spec.TaskOptions`; others are passed over, and so is None, the endpoint's value.

    Raises:
        InvalidRequestError: A value is wrong; the text says which and what would be right.
    """
    return {
        TASK_HEADERS[name]: _as_header(name, value)
        for name, value in choices.items()
        if name in TASK_HEADERS and value is not None
    }


def _as_header(name: str, value: Any) -> str:
    if name == "retry_for":
        return ", ".join(retry_names(value))
    if name == "webhook":
        hook = webhook(value)
        return json.dumps(to_json(hook)) if hook.username or hook.password or not hook.url.isascii() else hook.url
    kind, limits = _fields()[name]
    fits = not isinstance(value, bool) and isinstance(value, (int, float) if kind is float else kind)
    if not fits or (kind is float and not math.isfinite(value)):
        raise InvalidRequestError(f"{name} is {_KINDS[kind]}, not {value!r}.", field=name)
    for limit in limits:
        if (wrong := _outside(value, limit)) is not None:
            raise InvalidRequestError(f"{name} is {value!r}, and must be {wrong}.", field=name)
    if isinstance(value, str) and not (value.isascii() and value.isprintable() and value == value.strip()):
        raise InvalidRequestError(
            f"{name} travels in a header, so it must be printable ASCII without blanks around it, not {value!r}.",
            field=name,
        )
    return str(value)


def retry_names(given: Any) -> list[str]:
    """Return what `brinery.checks.check_retry_for` takes, from names, statuses and exception classes.

    A class becomes its module and name. Built-in ones become their name alone, and so do those of ``__main__``, which
    is another module in a worker, and those made in a function, which have no place in a module.

    Raises:
        InvalidRequestError: It is no list of these.
    """
    if isinstance(given, str | type) or not isinstance(given, list | tuple | set | frozenset):
        raise InvalidRequestError(
            f"retry_for is a list, such as [ValueError, 'HTTP 503'], not {given!r}.", field="retry_for"
        )
    names = [_retry_name(entry) for entry in given]
    check_retry_for(names)
    return names


def _retry_name(entry: Any) -> str:
    if isinstance(entry, type) and issubclass(entry, BaseException):
        module, path = entry.__module__, entry.__qualname__
        return entry.__name__ if module in {"builtins", "__main__"} or "<" in path else f"{module}.{path}"
    if not isinstance(entry, str):
        raise InvalidRequestError(
            f"retry_for: {entry!r} is neither an exception class nor a text; give ValueError, 'ValueError' or "
            "'HTTP 503'.",
            field="retry_for",
        )
    return entry


def webhook(given: Any) -> Webhook:
    """Return a webhook from a URL, a mapping or itself.

    Raises:
        InvalidRequestError: It is none of these, or its address is wrong.
    """
    if isinstance(given, Webhook):
        return given
    fields = {"url": given} if isinstance(given, str) else given
    names = [field for field in Webhook.__dataclass_fields__ if not field.startswith("_")]
    if (
        not isinstance(fields, Mapping)
        or "url" not in fields
        or not all(name in names and isinstance(value, str) for name, value in fields.items())
    ):
        raise InvalidRequestError(
            f"webhook is a URL, or a dict of texts with url and perhaps {' and '.join(names[1:])}.", field="webhook"
        )
    hook = Webhook(**fields)
    for name, (_, limits) in _fields(Webhook).items():
        for limit in limits:
            if (wrong := _outside(getattr(hook, name), limit)) is not None:
                raise InvalidRequestError(f"webhook: {name} must be {wrong}.", field="webhook")
    return hook


@functools.cache
def _fields(cls: type = TaskOptions) -> dict[str, tuple[type, tuple[Any, ...]]]:
    """Return each plain field's type and limits."""
    found = dict[str, tuple[type, tuple[Any, ...]]]()
    for name, hint in get_type_hints(cls, include_extras=True).items():
        for part in (hint, *get_args(hint)):
            if get_origin(part) is Annotated:
                kind, *limits = get_args(part)
                found[name] = kind, tuple(limits)
                break
    return found


def _outside(value: Any, limit: Any) -> str | None:
    """Say what the value must be where it breaks the limit."""
    match limit:
        case Ge(ge=least) if value < least:
            return f"at least {least}"
        case Gt(gt=bound) if value <= bound:
            return f"above {bound}"
        case Le(le=most) if value > most:
            return f"at most {most}"
        case MinLen(min_length=least) if len(value) < least:
            return f"at least {least} characters long"
        case MaxLen(max_length=most) if len(value) > most:
            return f"at most {most} characters long"
    return None
