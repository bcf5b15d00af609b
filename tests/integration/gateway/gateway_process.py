"""The real gateway process that the tests talk to, and endpoints as the controller would write them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import redis
from stub_worker import StubWorker, wait_until

from brinery.spec import EndpointSpec, EndpointStatus, new_id
from brinery_platform.routes import ROUTING, EndpointRoute
from brinery_platform.settings import Settings
from brinery_platform.store import Store, Table


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class GatewayProcess:
    """``python -m brinery_platform.gateway`` with a home of its own.

    Args:
        home: Its home.
        redis_url: Its Redis.
        variables: More of its environment.
    """

    def __init__(self, home: Path, redis_url: str, **variables: str) -> None:
        home.mkdir(exist_ok=True)
        self.home = home
        self.settings = Settings(home=home, redis_url=redis_url, port=free_port())
        self.store = Store(self.settings.database)
        Table.metadata.create_all(self.store.engine)
        self.redis = redis.Redis.from_url(redis_url)
        _, self.key = self.store.create_key("ann", "test", admin=True)
        _, self.other_key = self.store.create_key("bob", "test")
        self.environment = {
            **os.environ,
            "BRINERY_HOME": str(home),
            "BRINERY_REDIS_URL": redis_url,
            "BRINERY_PORT": str(self.settings.port),
            **variables,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> None:
        with (self.home / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "brinery_platform.gateway"],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        assert b"listens on" in self.process.stdout.readline(), self.log()
        if ready:
            wait_until(lambda: httpx.get(f"{self.url}/readyz").status_code == 200)

    @property
    def url(self) -> str:
        return self.settings.url

    def inputs_of(self, task_id: str) -> list[Path]:
        """Return the files that the object store has of a task's large input."""
        return sorted(Path(urlsplit(self.settings.objects).path, "inputs").glob(f"{task_id}.*"))

    def log(self) -> str:
        return (self.home / "gateway.log").read_text()

    def client(self, key: str | None = None) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key or self.key}"}, timeout=60, trust_env=False
        )

    def stop(self, *, number: int = signal.SIGTERM) -> int:
        process = self.process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
        code = process.wait(40)
        if process.stdout is not None:
            process.stdout.close()
        self.process = None
        return code

    def close(self) -> None:
        self.stop()
        self.redis.close()
        self.store.close()


@dataclass
class Deployed:
    """One endpoint in the routing table, as the controller would keep it."""

    redis: redis.Redis
    name: str
    owner: str = "ann"
    id: str = field(default_factory=lambda: new_id("end"))

    def serve(
        self,
        *workers: StubWorker,
        status: EndpointStatus = EndpointStatus.READY,
        reason: str = "",
        schema: dict[str, object] | None = None,
        **spec: object,
    ) -> None:
        """Write the table and say so."""
        route = EndpointRoute(
            id=self.id,
            owner=self.owner,
            status=status,
            reason=reason,
            version=1,
            spec=EndpointSpec(name=self.name, bundle_id="bun_1", **spec),
            workers=tuple(worker.route for worker in workers),
            request_schema=schema,
        )
        self.redis.hset(ROUTING, self.id, route.dumps())
        self.redis.publish(ROUTING, self.id)

    def remove(self) -> None:
        self.redis.hdel(ROUTING, self.id)
        self.redis.publish(ROUTING, self.id)
