"""What ``@endpoint`` makes: one object that runs here when it is called, and there by its verbs once it is deployed."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, Unpack, overload

from brinery.calls import Calls
from brinery.choices import check_names
from brinery.definition import Definition, EndpointChoices, find
from brinery.errors import InvalidRequestError
from brinery.spec import BundleKind

if TYPE_CHECKING:
    from brinery.client import Client
    from brinery.deployment import Deployment, Progress

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Endpoint(Definition, Calls[P], Generic[P, R]):
    """A function or class that can be called here, deployed, and called there.

    A plain call is `local`. Made by `endpoint`; `Bundle` is the same for a pair of functions.

    Args:
        target: The function, the class, or the pair as ``{"load_model": …, "load_predict": …}``.
        kind: Which of the three.
        choices: As ``@endpoint`` takes them.
    """

    def __init__(self, target: Any, kind: BundleKind, choices: EndpointChoices) -> None:
        Definition.__init__(self, target, kind, choices)
        Calls.__init__(self, self.name)
        self._loaded: Callable[..., Any] | None = None
        self._loading = threading.Lock()
        if kind is not BundleKind.LOAD_PREDICT:
            self.__wrapped__ = target
            for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
                if (value := getattr(target, attribute, None)) is not None:
                    setattr(self, attribute, value)

    @staticmethod
    def from_name(name: str, *, client: Client | None = None) -> Calls[...]:
        """Return a deployed endpoint by its name, for calling it without its code; nothing is asked yet.

        Args:
            name: The endpoint's name; another owner's as ``owner/name``.
            client: None for the one that the environment and the profile name.
        """
        return Calls(name, client=client)

    lookup = from_name

    # ---------------------------------------------------------------------------------------------------- here
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it in this process; see `local`."""
        return self.local(*args, **kwargs)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the code in this process.

        A class is instantiated and ``load()`` called once, before the first call; of a pair, ``load_model`` and
        ``load_predict`` likewise.
        """
        run: Callable[P, R] = self._load()
        return run(*args, **kwargs)

    def _load(self) -> Callable[..., Any]:
        if self.kind is BundleKind.FUNCTION:
            run: Callable[..., Any] = self.target
            return run
        with self._loading:
            if self._loaded is None:
                if self.kind is BundleKind.LOAD_PREDICT:
                    self._loaded = self.target["load_predict"](self.target["load_model"]())
                else:
                    instance = self.target()
                    if callable(load := getattr(instance, "load", None)):
                        load()
                    self._loaded = instance.predict
            return self._loaded

    # --------------------------------------------------------------------------------------------------- there
    def deploy(
        self, *, wait: bool = True, progress: Progress | None = None, client: Client | None = None
    ) -> Deployment:
        """Pack the code, upload it, and make it the endpoint's new version.

        The version before it serves until this one is ready. The same code and settings again are no new version.

        Args:
            wait: Return only when the endpoint is ready; otherwise as soon as the platform has it.
            progress: Called with each event, ``{"at", "version", "kind", "text"}``, while it waits.
            client: None for the one that the environment and the profile name.

        Returns:
            Name, version, status and URL.

        Raises:
            PackingError: The code cannot be packed; the text names what it is in the way and the way out.
            DeploymentError: It cannot become ready; carries the reason.
            BrineryError: Another of its classes says what else went wrong.
        """
        gateway = client or self._client()
        from brinery.deployment import deploy

        return deploy(self, gateway, wait=wait, progress=progress)

    # ------------------------------------------------------------------------------------------------- pickling
    def __reduce__(self) -> tuple[Any, ...]:
        # An endpoint travels inside of functions that use it: as a reference where it can be imported there.
        module, path = getattr(self, "__module__", None), getattr(self, "__qualname__", None)
        if isinstance(path, str) and module in sys.modules and find(module, path) is self:
            return find, (module, path)
        return _blank, (type(self),), (self.target, self.kind, self.settings)

    def __setstate__(self, state: tuple[Any, BundleKind, EndpointChoices]) -> None:
        # The target may be half made: a function that uses its own endpoint is a circle.
        Endpoint.__init__(self, *state)


class Bundle(Endpoint[..., Any]):
    """A model's two functions as one endpoint: ``load_model() -> model``, then ``load_predict(model) -> predict``.

    Args:
        load_model: Loads whatever ``predict`` needs; once per worker.
        load_predict: Takes that, and returns the callable that serves.
        choices: As `endpoint` takes them; ``name`` is required.

    Raises:
        InvalidRequestError: A setting is wrong; the text says which and why.
    """

    def __init__(
        self,
        *,
        load_model: Callable[[], Any],
        load_predict: Callable[[Any], Callable[..., Any]],
        **choices: Unpack[EndpointChoices],
    ) -> None:
        for parameter, function in (("load_model", load_model), ("load_predict", load_predict)):
            if not callable(function):
                raise InvalidRequestError(f"Bundle: {parameter} is a {type(function).__name__}; give a function.")
        if not choices.get("name"):
            raise InvalidRequestError(
                "Bundle: give it a name, as in Bundle(name='iris', load_model=…, load_predict=…)."
            )
        super().__init__({"load_model": load_model, "load_predict": load_predict}, BundleKind.LOAD_PREDICT, choices)


class _Predictor(Protocol[P, R_co]):
    def predict(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _Decorator(Protocol):
    @overload
    def __call__(self, target: type[_Predictor[P, R]], /) -> Endpoint[P, R]: ...
    @overload
    def __call__(self, target: Callable[P, R], /) -> Endpoint[P, R]: ...


@overload
def endpoint(target: type[_Predictor[P, R]], /, **choices: Unpack[EndpointChoices]) -> Endpoint[P, R]: ...
@overload
def endpoint(target: Callable[P, R], /, **choices: Unpack[EndpointChoices]) -> Endpoint[P, R]: ...
@overload
def endpoint(**choices: Unpack[EndpointChoices]) -> _Decorator: ...


def endpoint(target: Any = None, /, **choices: Unpack[EndpointChoices]) -> Any:
    """Make a function or a class an endpoint, as ``@endpoint`` or ``@endpoint(max_workers=4, …)``.

    Args:
        target: A function, also async or a generator; or a class without constructor arguments that has ``predict``
            and may have ``load`` (once per worker, before the first call) and ``unload``.
        choices: ``requirements``, pip requirement lines, and any field of `brinery.spec.EndpointSpec`; the name is by
            default the function's or class's own (``IrisModel`` → ``iris-model``).

    Returns:
        An `Endpoint`; without a target, the decorator that makes one.

    Raises:
        InvalidRequestError: A setting is wrong; the text says which and why.
    """
    if target is None:
        check_names(choices, EndpointChoices, "endpoint()")
        return lambda decorated: endpoint(decorated, **choices)
    if isinstance(target, Endpoint):
        raise InvalidRequestError(f"{target.name!r} is an endpoint already; decorate it once.")
    if isinstance(target, type):
        return Endpoint(_checked_class(target), BundleKind.CLASS, choices)
    if not callable(target):
        raise InvalidRequestError(f"endpoint() was given a {type(target).__name__}; give a function or a class.")
    return Endpoint(target, BundleKind.FUNCTION, choices)


def _blank(cls: type[Endpoint[..., Any]]) -> Endpoint[..., Any]:
    """Return an endpoint without anything in it, for `Endpoint.__setstate__` to fill."""
    return cls.__new__(cls)


def _checked_class(cls: type) -> type:
    if not callable(getattr(cls, "predict", None)):
        raise InvalidRequestError(f"Class {cls.__name__} has no predict method; that is what an endpoint calls.")
    try:
        inspect.signature(cls).bind()
    except TypeError as error:
        raise InvalidRequestError(
            f"Class {cls.__name__} cannot be made without arguments ({error}); a worker does just that, so give them "
            "defaults, or read what it needs in load()."
        ) from None
    except ValueError:
        pass  # a class in C without a signature; making it in the worker will tell
    return cls
