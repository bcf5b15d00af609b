"""Every setting of the platform, read once at a process's start; the only module that reads the environment."""

from __future__ import annotations

import os
import re
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from brinery.errors import InvalidRequestError

ADMIN_KEY: Final = re.compile(r"brn_[A-Za-z0-9_-]{32,200}")


class Settings(BaseSettings):
    """What ``BRINERY_*`` variables say; argument > environment > default.

    Frozen: a process reads it once and passes it down.
    """

    model_config = SettingsConfigDict(env_prefix="BRINERY_", frozen=True, extra="ignore")

    home: Path = Field(Path("~/.brinery"), description="Folder of everything embedded: data, environments, logs.")
    host: str = Field("127.0.0.1", description="Address that the gateway listens on.")
    port: int = Field(5050, ge=1, le=65535, description="Port that the gateway listens on.")
    database_url: SecretStr = Field(SecretStr(""), description="postgresql:// URL; empty: SQLite in the home.")
    redis_url: SecretStr = Field(SecretStr(""), description="redis:// URL; empty: an embedded Redis in the home.")
    objects_url: str = Field("", description="file:///… or s3://bucket/prefix; empty: a folder in the home.")
    runtime: Literal["auto", "process", "docker"] = Field(
        "auto", description="What runs the workers; auto: containers where an engine runs them, else processes."
    )
    worker_cidr: str = Field("10.213.0.0/16", description="Private addresses that networks of containers are cut from.")
    base_image: str = Field(
        "", description="Image that environments are built upon; machine: this machine's Python; empty: a public one."
    )
    trust_all_owners: bool = Field(
        default=False, description="Let keys of several owners share the process runtime, which does not isolate."
    )
    host_volumes: str = Field(
        "", description="Folders of the host, comma-separated, below which images may have theirs as volumes."
    )
    image_registries: str = Field(
        "", description="Registries, comma-separated, that users' images may be fetched from; empty: any."
    )
    webhook_networks: str = Field(
        "", description="Networks that webhooks may reach although they are not public, such as 10.1.0.0/16,fd00::/8."
    )
    desk_port: int = Field(
        0, ge=0, le=65535, description="Port on loopback where the controller says how it is; 0: any that is free."
    )
    admin_key: SecretStr = Field(
        SecretStr(""), description="An administrator's key, brn_ and 32 characters or more; empty: one is made."
    )
    platform_image: str = Field(
        "", description="Image that forwarders run in as containers; empty: they are processes beside the controller."
    )
    egress_networks: str = Field(
        "", description="Networks that workers whose egress is a list may reach although they are not public."
    )
    workers_may_call: bool = Field(
        default=False, description="Let workers in containers connect to the gateway where it listens for them."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    @field_validator("home")
    @classmethod
    def _expand(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("admin_key")
    @classmethod
    def _check_admin_key(cls, key: SecretStr) -> SecretStr:
        if key.get_secret_value() and not ADMIN_KEY.fullmatch(key.get_secret_value()):
            raise ValueError(
                "an administrator's key is brn_ with 32 to 200 letters, digits, '-' or '_' behind it; "
                "make one: python3 -c \"import secrets; print('brn_' + secrets.token_urlsafe(32))\""
            )
        return key

    @field_validator("webhook_networks", "egress_networks")
    @classmethod
    def _check_networks(cls, text: str) -> str:
        _networks(text)
        return text

    @field_validator("worker_cidr")
    @classmethod
    def _check_worker_cidr(cls, text: str) -> str:
        network = IPv4Network(text)
        if not network.is_private or network.prefixlen > 28:
            raise ValueError("needs private IPv4 addresses, at least sixteen, such as 10.213.0.0/16")
        return text

    @cached_property
    def worker_network(self) -> IPv4Network:
        """The addresses that networks of containers are cut from."""
        return IPv4Network(self.worker_cidr)

    @cached_property
    def host_folders(self) -> tuple[str, ...]:
        """The folders of the host that `host_volumes` names."""
        return tuple(_parts(self.host_volumes))

    @cached_property
    def registries(self) -> tuple[str, ...]:
        """The registries that `image_registries` names, perhaps with the start of a path; empty: any."""
        return tuple(part.strip("/").lower() for part in _parts(self.image_registries))

    @cached_property
    def webhooks_allowed(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks that webhooks may reach although they are not public."""
        return _networks(self.webhook_networks)

    @cached_property
    def egress_allowed(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks that the egress proxy may reach although they are not public."""
        return _networks(self.egress_networks)

    @cached_property
    def database(self) -> str:
        """The SQLAlchemy URL in force, password included; never log it."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.home / 'brinery.db'}"

    @cached_property
    def redis(self) -> str:
        """The Redis URL in force, password included; never log it."""
        given = self.redis_url.get_secret_value()
        if given:
            return given
        from brinery_platform.embedded_redis import embedded_url

        return embedded_url(self.home)

    @cached_property
    def objects(self) -> str:
        """The object store's URL in force."""
        return self.objects_url or f"file://{self.home / 'objects'}"

    @property
    def url(self) -> str:
        """The gateway's URL as a client on this machine uses it."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104 - compared, not bound
        return f"http://{host}:{self.port}"


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the networks of a comma-separated list; `ValueError` names the one that is none."""
    return tuple(map(ip_network, _parts(text)))


def _parts(text: str) -> list[str]:
    """Return the parts of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def read_settings(**given: object) -> Settings:
    """Read the settings of this process.

    Args:
        given: Values that win over the environment; None is left out.

    Raises:
        InvalidRequestError: Names the variable whose value is wrong.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type] # pydantic checks
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "BRINERY_" + "_".join(str(part) for part in first["loc"]).upper()
        secret = Settings.model_fields[str(first["loc"][0])].annotation is SecretStr
        got = "" if secret else f" (got {first['input']!r})"
        raise InvalidRequestError(f"{name}: {first['msg']}{got}.") from None


def platform_environment(settings: Settings) -> dict[str, str]:
    """Return the environment for the platform's own processes: this one's, with every setting said.

    It holds secrets (the Redis password, S3 keys), but not the administrator's key; workers never get it.
    """
    said = {
        "BRINERY_HOME": str(settings.home),
        "BRINERY_HOST": settings.host,
        "BRINERY_PORT": str(settings.port),
        "BRINERY_DATABASE_URL": settings.database,
        "BRINERY_REDIS_URL": settings.redis,
        "BRINERY_OBJECTS_URL": settings.objects,
        "BRINERY_RUNTIME": settings.runtime,
        "BRINERY_WORKER_CIDR": settings.worker_cidr,
        "BRINERY_BASE_IMAGE": settings.base_image,
        "BRINERY_TRUST_ALL_OWNERS": str(settings.trust_all_owners).lower(),
        "BRINERY_HOST_VOLUMES": settings.host_volumes,
        "BRINERY_IMAGE_REGISTRIES": settings.image_registries,
        "BRINERY_WEBHOOK_NETWORKS": settings.webhook_networks,
        "BRINERY_PLATFORM_IMAGE": settings.platform_image,
        "BRINERY_EGRESS_NETWORKS": settings.egress_networks,
        "BRINERY_WORKERS_MAY_CALL": str(settings.workers_may_call).lower(),
        "BRINERY_DESK_PORT": str(settings.desk_port),
        "BRINERY_LOG_LEVEL": settings.log_level,
    }
    return {name: value for name, value in os.environ.items() if name != "BRINERY_ADMIN_KEY"} | said


INDEX_VARIABLES: Final = frozenset(
    {
        "ALL_PROXY",
        "CC",
        "CXX",
        "HOME",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "LANG",
        "LC_ALL",
        "NETRC",
        "NO_PROXY",
        "PATH",
        "PIP_CERT",
        "PIP_DEFAULT_TIMEOUT",
        "PIP_EXTRA_INDEX_URL",
        "PIP_FIND_LINKS",
        "PIP_INDEX_URL",
        "PIP_NO_INDEX",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
    }
)


def index_environment() -> dict[str, str]:
    """Return what this process's environment says about where packages come from: pip's and uv's variables.

    It may hold passwords of package indexes.
    """
    return {
        name: value for name, value in os.environ.items() if name.upper() in INDEX_VARIABLES or name.startswith("UV_")
    }
