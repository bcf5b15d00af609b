"""The command line of ``bench/run``: which scenario, how long, and into which document."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from harness import BenchmarkError, warn_if_busy

SCENARIOS = ("sync", "async", "async-s3", "cost", "load", "frozen", "redeploy", "containers", "memory")


def main() -> None:
    """Run what the command line names; exit 1 with one clear text when it cannot be done."""
    parser = argparse.ArgumentParser(prog="bench/run", description="Measure Brinery beside its peers, on loopback.")
    parser.add_argument("scenario", nargs="?", default="all", choices=(*SCENARIOS, "all", "publish"))
    parser.add_argument("--rounds", type=int, default=5, help="runs of each (sync, async, containers)")
    parser.add_argument("--seconds", type=int, default=3, help="length of one run (sync)")
    parser.add_argument("--changes", type=int, default=20, help="deployments (redeploy)")
    given = parser.parse_args()
    if min(given.rounds, given.seconds, given.changes) < 1:
        parser.error("--rounds, --seconds and --changes are at least 1.")
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # what was started is stopped
    if given.scenario != "publish":
        warn_if_busy()
    failed = 0
    for scenario in SCENARIOS if given.scenario == "all" else (given.scenario,):
        started = time.monotonic()
        try:
            run(scenario, given)
        except BenchmarkError as error:
            failed += 1
            print(f"{scenario}: {error}", file=sys.stderr)
        else:
            print(f"{scenario}: done in {time.monotonic() - started:.0f} s", flush=True)
    sys.exit(1 if failed else 0)


def run(scenario: str, given: argparse.Namespace) -> None:
    """Run one scenario; each is imported late, so that it needs only what it uses itself."""
    match scenario:
        case "sync":
            import sync_calls

            sync_calls.run(rounds=given.rounds, seconds=given.seconds)
        case "async":
            import async_tasks

            async_tasks.run(rounds=given.rounds)
        case "async-s3":
            import async_tasks

            async_tasks.run(rounds=given.rounds, on_s3=True)
        case "cost":
            import task_cost

            task_cost.run()
        case "load":
            import queue_load

            queue_load.run(seconds=given.seconds)
        case "frozen":
            import frozen_redis

            frozen_redis.run(rounds=min(given.rounds, 3))
        case "redeploy":
            import redeploy

            redeploy.run(changes=given.changes)
        case "containers":
            import containers

            containers.run(rounds=given.rounds)
        case "memory":
            import memory

            memory.run()
        case "publish":
            import publish

            publish.run()
