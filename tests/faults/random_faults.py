"""Random faults at random times under a load that does not end; one seed is one schedule.

Run as ``make faults``, with ``SEED=…`` to repeat a schedule and ``MINUTES=…`` for another length. pytest takes it only
by its name, so it is no part of `make test`.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
import time
from collections.abc import Callable

import pytest
from fault_ledger import assert_nothing_lost, settle
from fault_load import Load
from fault_stack import FaultStack
from victims import drop_connections, fill, freeze_redis, frozen, kill, kill_everything_and_start, small_disk

SEED = int(os.environ.get("SEED") or secrets.randbelow(1_000_000))
MINUTES = float(os.environ.get("MINUTES") or "5")
MOST_FROZEN_SECONDS = 15.0
PATIENCE_SECONDS = 600.0


class Schedule:
    """Chooses what happens next.

    Args:
        stack: The platform.
        seed: Of every choice.
    """

    def __init__(self, stack: FaultStack, seed: int) -> None:
        self._stack = stack
        self._random = random.Random(seed)  # noqa: S311 - a schedule to be repeated, no secret
        self._filling = stack.home / "objects" / "filling"
        self._faults: dict[str, Callable[[], object]] = {
            "forwarder killed": lambda: kill(stack, "forwarder"),
            "worker killed": lambda: kill(stack, "worker"),
            "worker and forwarder killed": lambda: kill(stack, "worker", "forwarder"),
            "gateway killed": lambda: kill(stack, "gateway"),
            "controller killed": lambda: kill(stack, "controller"),
            "controller and forwarder killed": lambda: kill(stack, "controller", "forwarder"),
            "Redis killed": lambda: kill(stack, "redis"),
            "gateway, controller and Redis killed": lambda: kill(stack, "gateway", "controller", "redis"),
            "everything killed": lambda: kill_everything_and_start(stack),
            "Redis frozen": lambda: freeze_redis(stack, self._seconds()),
            "forwarder frozen": lambda: self._freeze("forwarder"),
            "controller frozen": lambda: self._freeze("controller"),
            "gateway frozen": lambda: self._freeze("gateway"),
            "worker frozen": lambda: self._freeze("worker"),
            "connections dropped": lambda: drop_connections(stack),
            "object folder full": self._fill,
        }

    def run(self, until: float) -> int:
        """Let faults happen until a moment of the monotonic clock, and return how many did."""
        count = 0
        while time.monotonic() < until:
            time.sleep(self._random.uniform(0.5, 8.0))
            name = self._random.choice(list(self._faults))
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {name}\n")
            self._faults[name]()
            count += 1
        return count

    def _seconds(self) -> float:
        return self._random.uniform(1.0, MOST_FROZEN_SECONDS)

    def _freeze(self, kind: str) -> None:
        with frozen(self._stack.one(kind)):
            time.sleep(self._seconds())

    def _fill(self) -> None:
        fill(self._filling)
        time.sleep(self._random.uniform(1.0, 10.0))
        self._filling.unlink()


@pytest.mark.timeout(MINUTES * 60 + PATIENCE_SECONDS + 300)
def test_random_faults(stack: FaultStack) -> None:
    """All mechanisms together: whatever happens in whatever order, nothing that was accepted is lost."""
    sys.stderr.write(f"SEED={SEED} MINUTES={MINUTES:g}\n")
    with small_disk(stack.home / "objects", mib=2048):
        load = Load(stack, count=sys.maxsize, pause_seconds=0.03, headers={"X-Brinery-Max-Attempts": "100"})
        load.start()
        faults = Schedule(stack, SEED).run(time.monotonic() + MINUTES * 60)
        at = time.time()
        load.stop()
        load.join()
        stack.brinery("up", "--detach")
        name = f"{faults} random faults in {MINUTES:g} minutes (SEED={SEED})"
        assert_nothing_lost(settle(load, name, at, patience_seconds=PATIENCE_SECONDS), recovers=False)
