"""The user's code: loaded once from its bundle, called for each request, unloaded at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final

import cloudpickle

from brinery.errors import InvalidRequestError
from brinery.spec import BundleKind
from brinery_worker.arguments import Arguments
from brinery_worker.bundle import Bundle
from brinery_worker.coroutines import Coroutines
from brinery_worker.settings import set_missing
from brinery_worker.slots import Running


class Predictor:
    """A loaded bundle.

    Args:
        function: What a request calls.
        schema: JSON Schema of its arguments, or None.
        unload: What runs when the worker stops, or None.
        coroutines: The loop for its coroutines.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        schema: dict[str, Any] | None,
        unload: Callable[[], Any] | None,
        coroutines: Coroutines,
    ) -> None:
        self.arguments = Arguments(function, schema)
        self._function = function
        self._unload = unload
        self._coroutines = coroutines

    def call(self, args: list[Any], kwargs: dict[str, Any], running: Running) -> Any:
        """Call the function and return its result; that of a generator, of whatever kind, is the list of its items.

        Args:
            args: Positional arguments.
            kwargs: Keyword arguments.
            running: The request that calls.
        """
        value = self._settled(self._function(*args, **kwargs), running)
        items = self._items(value, running)
        return value if items is None else list(items)

    def stream(self, args: list[Any], kwargs: dict[str, Any], running: Running) -> Iterator[Any]:
        """Call the function and return its items as they come; a plain function's result is the only one."""
        value = self._settled(self._function(*args, **kwargs), running)
        items = self._items(value, running)
        return iter((value,)) if items is None else items

    def unload(self) -> None:
        """Run the user's ``unload``, if there is one."""
        if self._unload is not None:
            self._settled(self._unload(), None)

    def _settled(self, value: Any, running: Running | None) -> Any:
        return self._coroutines.run(value, running) if isinstance(value, CoroutineType) else value

    def _items(self, value: Any, running: Running) -> Iterator[Any] | None:
        if isinstance(value, GeneratorType):
            return value
        if isinstance(value, AsyncGeneratorType):
            return self._coroutines.iterate(value, running)
        return None


def load(bundle: Bundle) -> Predictor:
    """Load the user's code, in this thread.

    Args:
        bundle: Its sources are put on ``sys.path``, its environment variables are set where they are not yet.

    Raises:
        BaseException: Whatever user code raised.
        InvalidRequestError: The pickle is not what the manifest says.
    """
    set_missing(bundle.manifest.env)
    if bundle.sources is not None:
        sys.path.insert(0, str(bundle.sources.path))
    coroutines = Coroutines()
    loaded = cloudpickle.loads(bundle.pickle)
    function, unload = _LOADERS[bundle.manifest.kind](loaded, coroutines)
    return Predictor(function, bundle.manifest.request_schema, unload, coroutines)


_Loaded = tuple[Callable[..., Any], Callable[[], Any] | None]


def _load_function(loaded: Any, _coroutines: Coroutines) -> _Loaded:
    if not callable(loaded):
        raise InvalidRequestError(f"The bundle's function is a {type(loaded).__name__}, which cannot be called.")
    return loaded, None


def _load_class(loaded: Any, coroutines: Coroutines) -> _Loaded:
    instance = loaded()
    predict = getattr(instance, "predict", None)
    if not callable(predict):
        raise InvalidRequestError(f"Class {type(instance).__name__} has no method `predict`; add one.")
    prepare = getattr(instance, "load", None)
    if callable(prepare):
        _wait(prepare(), coroutines)
    unload = getattr(instance, "unload", None)
    return predict, unload if callable(unload) else None


def _load_pair(loaded: Any, coroutines: Coroutines) -> _Loaded:
    if not isinstance(loaded, dict) or not {"load_model", "load_predict"} <= loaded.keys():
        raise InvalidRequestError("The bundle does not hold `load_model` and `load_predict`; pack it again.")
    model = _wait(loaded["load_model"](), coroutines)
    predict = _wait(loaded["load_predict"](model), coroutines)
    if not callable(predict):
        raise InvalidRequestError(f"`load_predict` returned a {type(predict).__name__}; return a function.")
    return predict, None


def _wait(value: Any, coroutines: Coroutines) -> Any:
    return coroutines.run(value, None) if isinstance(value, CoroutineType) else value


_LOADERS: Final[dict[BundleKind, Callable[[Any, Coroutines], _Loaded]]] = {
    BundleKind.FUNCTION: _load_function,
    BundleKind.CLASS: _load_class,
    BundleKind.LOAD_PREDICT: _load_pair,
}
