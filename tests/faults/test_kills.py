"""`kill -9` of every part of the platform, alone and together, in the middle of 300 tasks."""

import subprocess
import sys
import time

import pytest
from fault_ledger import assert_nothing_lost, settle
from fault_load import Load
from victims import kill, kill_everything_and_start, kill_with_a_message_in_its_hands, until_led

from stack import wait_until

LOCAL_SECONDS = 3.0
"""How soon the platform has to run again when one of its processes was killed; see `local_seconds`."""
IMPORTS = 2.5
"""How many times what a gateway's imports take that may be, on a machine that is slow just now."""
BEFORE = 60
"""Tasks that have run when the fault happens."""


@pytest.fixture
def load(stack):
    load = Load(stack)
    load.start()
    load.until_ended(BEFORE)
    return load


def local_seconds():
    """Return the limit: three seconds, or more where a process that only imports takes more than one."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import brinery_platform.gateway.__main__"], check=True, timeout=60)
    return max(LOCAL_SECONDS, IMPORTS * (time.monotonic() - began))


def test_forwarder(stack, load):
    """The controller sees the exit, requeues what the forwarder ran as attempts that count, and starts another one."""
    at = kill(stack, "forwarder")
    load.join()
    assert_nothing_lost(settle(load, "forwarder killed", at), within_seconds=local_seconds())


def test_forwarder_with_a_popped_message(stack):
    """The sweep publishes a message again whose task waits ahead of the message that is now at the queue's head."""
    load = Load(stack)
    for count in (100, 100, 100):
        at = kill_with_a_message_in_its_hands(stack, load, count)
    assert_nothing_lost(settle(load, "forwarder frozen, sent a message, killed (3 times)", at), twice_allowed=False)


def test_worker(stack, load):
    """A connection that ends is an attempt that counts; the forwarder requeues it, the controller starts a worker."""
    at = kill(stack, "worker")
    load.join()
    assert_nothing_lost(settle(load, "worker killed", at), within_seconds=local_seconds())


def test_worker_and_forwarder(stack, load):
    """Nobody is left who saw the attempt; the record says who held it, and that one is known to be dead."""
    at = kill(stack, "worker", "forwarder")
    load.join()
    assert_nothing_lost(settle(load, "worker and forwarder killed", at))


def test_gateway(stack, load):
    """Accepted means that the record is written: the gateway holds nothing; `up` starts it again."""
    at = kill(stack, "gateway")
    wait_until(lambda: max(load.accepted.values()) > at, what="a submission to be accepted again")
    again = min(moment for moment in load.accepted.values() if moment > at) - at
    load.join()
    ledger = settle(load, "gateway killed", at)
    ledger.recovery_seconds = again
    assert_nothing_lost(ledger, twice_allowed=False, within_seconds=local_seconds())


def test_controller(stack, load):
    """Its memory is worth nothing: the next one takes the lease of a dead process over and adopts what runs."""
    at = kill(stack, "controller")
    until_led(stack)
    again = time.time() - at
    load.join()
    ledger = settle(load, "controller killed", at)
    ledger.recovery_seconds = again
    assert_nothing_lost(ledger, twice_allowed=False, within_seconds=local_seconds())


def test_controller_and_forwarder(stack, load):
    """The next controller requeues what forwarders of this machine ran that died while nobody looked."""
    at = kill(stack, "controller", "forwarder")
    load.join()
    assert_nothing_lost(settle(load, "controller and forwarder killed", at))


def test_redis(stack, load):
    """Every accepted write is on the disk before it is answered; all others wait for the server to be back."""
    at = kill(stack, "redis")
    load.join()
    assert_nothing_lost(settle(load, "Redis killed", at), twice_allowed=False, within_seconds=local_seconds())


def test_everything(stack, load):
    """`brinery up` finds the records on the disk, and what the forwarder ran that died with all the rest."""
    at = kill_everything_and_start(stack)
    load.join()
    assert_nothing_lost(settle(load, "everything killed, then `brinery up`", at))
