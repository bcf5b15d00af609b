"""How many workers an endpoint should have: signals in, a number and its reason out. No clock, no I/O.

The rules, until a richer policy stands: whoever waits with no worker there starts one; while something waits and all
slots are busy, one more, up to ``max_workers``; idle for ``idle_seconds``, one less, down to ``min_workers``.
"""

from __future__ import annotations

from dataclasses import dataclass

from brinery.spec import EndpointSpec


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What is known of one endpoint at one moment.

    Args:
        ready: Workers that take requests.
        starting: Workers that do not yet.
        in_flight: Requests and tasks that workers run.
        waiting: Requests held by gateways, and queued tasks.
        idle_seconds: For how long one worker less would have been enough.
    """

    ready: int
    starting: int
    in_flight: int
    waiting: int
    idle_seconds: float


@dataclass(frozen=True)
class Decision:
    """How many workers there should be, and why, in a sentence for the scaling log."""

    workers: int
    reason: str


def decide(spec: EndpointSpec, signals: Signals) -> Decision:
    """Return the wanted number of workers."""
    have = signals.ready + signals.starting
    if have < spec.min_workers:
        return Decision(spec.min_workers, f"{have} of at least {spec.min_workers} workers run")
    if have > spec.max_workers:
        return Decision(spec.max_workers, f"{have} workers run, at most {spec.max_workers} are allowed")
    if signals.waiting and not have:
        return Decision(1, f"{signals.waiting} waiting and no worker")
    busy = signals.in_flight >= signals.ready * spec.concurrency
    if signals.waiting and busy and not signals.starting and have < spec.max_workers:
        return Decision(have + 1, f"{signals.waiting} waiting and all {signals.ready * spec.concurrency} slots busy")
    if have > spec.min_workers and not signals.starting and signals.idle_seconds >= spec.idle_seconds:
        return Decision(have - 1, f"not needed for {signals.idle_seconds:.0f} s")
    return Decision(have, "enough")


def surplus(spec: EndpointSpec, signals: Signals) -> bool:
    """Whether one worker less would be enough for what is asked right now."""
    demand = signals.in_flight + signals.waiting
    return signals.ready > 0 and demand <= (signals.ready - 1) * spec.concurrency
