"""Names what cannot be pickled: which variable, default or attribute of the user's code, and the way out."""

from __future__ import annotations

import dis
import threading
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

from brinery.definition import Definition

_MAX_DEPTH: Final = 12
_MAX_CHILDREN: Final = 1000
_THREADING: Final = ("threading", "_thread", "multiprocessing", "asyncio", "concurrent", "queue", "_queue")


def explain(value: Any, error: BaseException, pickles: Callable[[Any], bool]) -> str:
    """Return an error text for `value`, which could not be pickled.

    Args:
        value: What was to be pickled: a function, a class, or a dict of functions.
        error: What the pickler said.
        pickles: Whether a part of it can be pickled.

    Returns:
        One sentence on what is in the way, and one on what to do.
    """
    path, culprit = _find(value, pickles, [], set())
    if not path:
        return f"{_title(value)} cannot be packed ({type(error).__name__}: {error}). {_cure(value)}"
    where = " → ".join(path)
    kind = f"{type(culprit).__module__}.{type(culprit).__qualname__}".removeprefix("builtins.")
    return f"{_title(value)} cannot be packed: {where} is a {kind}, which cannot be pickled. {_cure(culprit)}"


def _find(value: Any, pickles: Callable[[Any], bool], path: list[str], seen: set[int]) -> tuple[list[str], Any]:
    """Go down into whatever cannot be pickled, until it has no part to blame."""
    seen.add(id(value))
    if len(path) < _MAX_DEPTH:
        for number, (name, child) in enumerate(_children(value)):
            if number >= _MAX_CHILDREN:
                break
            if id(child) not in seen and not pickles(child):
                return _find(child, pickles, [*path, name], seen)
    return path, value


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case Definition():
            yield f"the code of endpoint {value.name!r}", value.target
        case FunctionType():
            yield from _parts_of_function(value)
        case MethodType():
            yield f"the object of {value.__name__!r}", value.__self__
        case staticmethod() | classmethod():
            yield "its function", value.__func__
        case property():
            for accessor in (value.fget, value.fset, value.fdel):
                if isinstance(accessor, FunctionType):
                    yield from _parts_of_function(accessor)
        case type():
            for name, attribute in list(vars(value).items()):
                if isinstance(attribute, FunctionType | staticmethod | classmethod | property):
                    yield f"method {name!r}", attribute
                elif not name.startswith("__"):
                    yield f"class attribute {name!r}", attribute
            yield from ((f"base class {base.__name__!r}", base) for base in value.__bases__ if base is not object)
        case Mapping():
            yield from ((f"item {key!r}", item) for key, item in value.items())
        case list() | tuple() | set() | frozenset():
            yield from ((f"item {index}", item) for index, item in enumerate(value))
        case ModuleType():
            return
        case _:
            attributes = getattr(value, "__dict__", {})
            yield from ((f"attribute {name!r}", attribute) for name, attribute in list(attributes.items()))


def _parts_of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what travels with a function: globals that it uses, enclosing variables, defaults, attributes."""
    for name in sorted(_global_names(function.__code__)):
        if name in function.__globals__:
            yield f"global variable {name!r}", function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"variable {name!r} of the enclosing function", cell.cell_contents
        except ValueError:
            continue  # not bound yet
    parameters = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    for name, default in zip(parameters[len(parameters) - len(defaults) :], defaults, strict=True):
        yield f"default of parameter {name!r}", default
    for name, default in (function.__kwdefaults__ or {}).items():
        yield f"default of parameter {name!r}", default
    for name, attribute in vars(function).items():
        yield f"attribute {name!r} of the function", attribute


def _global_names(code: CodeType) -> set[str]:
    names = {
        str(instruction.argval) for instruction in dis.get_instructions(code) if instruction.opname == "LOAD_GLOBAL"
    }
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _global_names(constant)
    return names


def _title(value: Any) -> str:
    if isinstance(value, dict):
        return "The pair of load_model and load_predict"
    return repr(getattr(value, "__name__", type(value).__name__))


def _cure(culprit: Any) -> str:
    module = type(culprit).__module__
    if module.partition(".")[0] in _THREADING or isinstance(culprit, threading.Thread):
        return "Create it inside the function, or in load() of a class endpoint: each worker needs its own."
    if any(hasattr(culprit, name) for name in ("close", "cursor", "fileno", "send", "connect")):
        return "Open it in load() of a class endpoint (once per worker), or inside the function."
    return (
        "Make it in load() of a class endpoint or inside the function; or keep it in a module of your own beside the "
        "script, which travels as source."
    )
