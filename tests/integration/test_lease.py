"""Who leads, on a real Redis: one at a time, and nobody writes the routing table after losing the lead."""

from __future__ import annotations

import subprocess
import sys

import redis

from brinery.spec import EndpointSpec, EndpointStatus
from brinery_platform.controller.lease import LEASE, Lease
from brinery_platform.routes import ROUTING, EndpointRoute

ROUTE = EndpointRoute(
    id="end_1",
    owner="ada",
    status=EndpointStatus.READY,
    reason="",
    version=1,
    spec=EndpointSpec(name="digits", bundle_id="bun_1"),
)
DIES_WITH_THE_LEASE = """
import os, sys, redis
from brinery_platform.controller.lease import Lease
assert Lease(redis.Redis.from_url(sys.argv[1])).acquire()
os.kill(os.getpid(), 9)
"""


def test_only_one_leads_and_a_release_lets_the_next_one(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        first, second = Lease(client), Lease(client)
        assert first.acquire()
        assert not second.acquire()
        assert first.renew()
        first.release()
        assert second.acquire()
        assert not first.renew()


def test_whoever_lost_the_lead_cannot_write_the_routing_table(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        old, new = Lease(client), Lease(client)
        assert old.acquire()
        client.delete(LEASE)  # it slept for longer than its lease
        assert new.acquire()
        assert not old.publish("end_1", ROUTE)
        assert client.hgetall(ROUTING) == {}
        assert new.publish("end_1", ROUTE)
        assert EndpointRoute.loads(client.hget(ROUTING, "end_1")) == ROUTE
        old.release()
        assert new.renew(), "releasing a lost lease must not take the successor's"


def test_a_leader_killed_on_this_machine_is_succeeded_at_once(redis_url: str) -> None:
    killed = subprocess.run([sys.executable, "-c", DIES_WITH_THE_LEASE, redis_url], check=False)
    assert killed.returncode == -9
    with redis.Redis.from_url(redis_url) as client:
        assert client.pttl(LEASE) > 5000, "the lease itself would last for seconds more"
        assert Lease(client).acquire()


def test_the_lease_of_another_machine_is_waited_for(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set(LEASE, "7|pid:[1]|another-boot|1|1", px=10_000)
        assert not Lease(client).acquire()
