"""The one wiring: every process calls `connect` once and takes the parts it needs from what it returns."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from brinery_platform.routes import GATEWAY_CLIENT

if TYPE_CHECKING:
    import redis
    from celery import Celery
    from redis.asyncio import Redis as AsyncRedis

    from brinery_platform.environments import Environments
    from brinery_platform.objects import Objects
    from brinery_platform.runtimes.base import Runtime, Visible
    from brinery_platform.settings import Settings
    from brinery_platform.store import Store
    from brinery_platform.usage import Watch

REDIS_TIMEOUT_SECONDS: Final = 5.0
REDIS_OPTIONS: Final[dict[str, Any]] = {
    "socket_timeout": REDIS_TIMEOUT_SECONDS,
    "socket_connect_timeout": REDIS_TIMEOUT_SECONDS,
    "health_check_interval": 30,
}

T = TypeVar("T")


class Services:
    """The parts of the platform, each made when it is first asked for and shared by its process.

    A forwarder thus never opens the SQL database, and a gateway never makes a runtime.

    Args:
        settings: This process's settings.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def store(self) -> Store:
        """The metadata in SQL; for gateway and controller only."""
        from brinery_platform.store import Store

        return Store(self.settings.database)

    @cached_property
    def objects(self) -> Objects:
        """The object store."""
        from brinery_platform.objects import open_objects

        return open_objects(self.settings.objects)

    @cached_property
    def redis(self) -> redis.Redis:
        """A pooled, thread-safe Redis client; replies are bytes."""
        import redis as library
        from redis.retry import Retry

        return library.Redis.from_url(self.settings.redis, retry=_once_more(Retry), **REDIS_OPTIONS)

    @cached_property
    def watch(self) -> Watch:
        """What workers use at this moment; for gateways."""
        import redis as library
        from redis.retry import Retry

        from brinery_platform.usage import ANSWER_SECONDS, Watch

        limits = {"socket_timeout": ANSWER_SECONDS, "socket_connect_timeout": ANSWER_SECONDS}
        return Watch(library.Redis.from_url(self.settings.redis, retry=_once_more(Retry), **REDIS_OPTIONS | limits))

    @cached_property
    def aredis(self) -> AsyncRedis:
        """The same for asyncio, for gateways; belongs to the loop that first uses it."""
        import redis.asyncio as library
        from redis.asyncio.retry import Retry

        return library.Redis.from_url(
            self.settings.redis, retry=_once_more(Retry), client_name=GATEWAY_CLIENT, **REDIS_OPTIONS
        )

    @cached_property
    def celery(self) -> Celery:
        """The Celery application: queues in and results out."""
        from brinery_platform.broker import make_app

        return make_app(self.settings)

    @cached_property
    def environments(self) -> Environments:
        """The environments built here, of the kind that the runtime starts workers in."""
        from brinery_platform.settings import index_environment

        if self.settings.runtime == "docker":
            from brinery_platform.images.environments import open_environments

            return open_environments(self.settings, index_environment())
        from brinery_platform.environments import Environments

        return Environments(self.settings.home, index_environment())

    @cached_property
    def runtime(self) -> Runtime:
        """What runs workers here; for the controller."""
        from brinery_platform.runtimes import make_runtime

        return make_runtime(self.settings, self.environments)

    @cached_property
    def visible(self) -> Visible:
        """What runs here, to be looked at; for gateway and forwarder, which need no Docker socket for it."""
        if self.settings.runtime == "docker":
            from brinery_platform.runtimes.far import FarRuntime

            return FarRuntime(self.redis)
        return self.runtime


def _once_more(retry: Callable[..., T]) -> T:
    """Return a policy that repeats a command whose pooled connection turns out to be closed, as after a restart.

    Every command of ours may be repeated. One without an answer in time is not: whoever waits has waited enough.
    """
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as RedisConnectionError

    return retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))


def connect(settings: Settings) -> Services:
    """Return the parts of the platform for `settings`; nothing is opened until it is used."""
    return Services(settings)
