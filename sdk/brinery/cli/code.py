"""The endpoints in a user's file: it is imported as the module that it is, so that it travels as source."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from brinery.endpoint import Endpoint
from brinery.errors import BrineryError, InvalidRequestError, NotFoundError
from brinery.spec import BundleKind


def endpoints_in(target: str) -> list[Endpoint[..., Any]]:
    """Import a file and return the endpoints that it defines, in their order.

    Args:
        target: ``FILE`` or ``FILE:NAME``, where NAME is an endpoint's name or the variable that holds it.

    Raises:
        InvalidRequestError: The file cannot be imported, or defines none.
        NotFoundError: It has none of that name.
    """
    file, colon, name = target.rpartition(":")
    if not colon or Path(target).exists():
        file, name = target, ""
    module = _import(Path(file))
    found = dict[int, tuple[str, Endpoint[..., Any]]]()
    for variable, value in vars(module).items():
        if isinstance(value, Endpoint) and (variable == name or _defined_in(value, module.__name__)):
            found.setdefault(id(value), (variable, value))
    if not found:
        raise InvalidRequestError(f"{file} defines no endpoint; put @endpoint on a function or a class in it.")
    _refuse_equal_names(file, found.values())
    chosen = [value for variable, value in found.values() if not name or name in {variable, value.name}]
    if not chosen:
        known = ", ".join(value.name for _, value in found.values())
        raise NotFoundError(f"{file} has no endpoint {name!r}; it has {known}.")
    return chosen


def _refuse_equal_names(file: str, found: Iterable[tuple[str, Endpoint[..., Any]]]) -> None:
    variables: dict[str, str] = {}
    for variable, endpoint in found:
        other = variables.setdefault(endpoint.name, variable)
        if other != variable:
            raise InvalidRequestError(
                f"{file} defines {endpoint.name!r} twice ({other}, {variable}); give one of them another name=."
            )


def _defined_in(endpoint: Endpoint[..., Any], module: str) -> bool:
    """Whether the endpoint is the module's own, and not imported from another; a pair belongs to whoever made it."""
    return endpoint.kind is BundleKind.LOAD_PREDICT or getattr(endpoint, "__module__", module) == module


def _import(path: Path) -> Any:
    if not path.is_file():
        raise InvalidRequestError(f"There is no file {path}; give the Python file that defines the endpoint.")
    path = path.resolve()
    parts = [] if path.name == "__init__.py" else [path.stem]
    root = path.parent
    while (root / "__init__.py").exists():
        parts.insert(0, root.name)
        root = root.parent
    name = ".".join(parts)
    if path.suffix != ".py" or any("." in part for part in parts):
        raise InvalidRequestError(f"{path} cannot be imported by its name; call it something like app.py.")
    if name in sys.modules or parts[0] in sys.stdlib_module_names:
        raise InvalidRequestError(f"{path} has the name of another module, {name!r}; rename it.")
    sys.path.insert(0, str(root))
    try:
        return importlib.import_module(name)
    except BrineryError:
        raise
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
        where = f"{path}, line {line}" if line else str(path)
        raise InvalidRequestError(f"{where}: {type(error).__name__}: {error}; the file cannot be imported.") from error
