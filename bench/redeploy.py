"""Redeploying: a changed function with unchanged requirements, from ``deploy()`` to its first answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from brinery_stack import running_stack
from harness import BenchmarkError, keep, percentile, table

import brinery

NAME: Final = "changing"
REQUIREMENTS: Final = ["orjson"]
"""Really installed, so that an environment stands behind the endpoint; the first deployment builds it."""
ANSWER_TIMEOUT_SECONDS: Final = 60.0


def version(number: int) -> Callable[[], int]:
    """Return the function as it is after `number` changes."""

    def answer() -> int:
        return number

    return answer


def run(*, changes: int) -> None:
    """Deploy a function again and again, and keep how long each change took.

    Args:
        changes: Deployments after the first; each has new code.

    Raises:
        BenchmarkError: The new code did not answer within 60 s of its deployment.
    """
    samples = []
    with running_stack():
        first = deploy_and_call(0)
        print(f"first deployment, environment built: {first['answer_seconds']:.2f} s", flush=True)
        for number in range(1, changes + 1):
            samples.append(deploy_and_call(number))
            print(f"change {number}: {samples[-1]}", flush=True)
    keep("redeploy", {"first": first, "samples": samples}, report(samples))


def deploy_and_call(number: int) -> dict[str, float]:
    """Deploy change `number` and call it until the new code answers.

    Returns:
        Seconds from the start of ``deploy()`` to its return and to the first new answer, and how many answers
        of older code came after ``deploy()`` had returned.
    """
    function = brinery.endpoint(name=NAME, requirements=REQUIREMENTS)(version(number))
    started = time.monotonic()
    function.deploy()
    deployed = time.monotonic()
    old_answers = 0
    while (answer := function.remote()) != number:
        old_answers += 1
        if time.monotonic() - deployed > ANSWER_TIMEOUT_SECONDS:
            raise BenchmarkError(f"Change {number} is deployed, but version {answer} still answers.")
    return {
        "deploy_seconds": deployed - started,
        "answer_seconds": time.monotonic() - started,
        "old_answers": old_answers,
    }


def report(samples: list[dict[str, float]]) -> str:
    """Return the Markdown table."""
    header = ("from `deploy()` to", "p50 s", "p95 s", "slowest s")
    rows = []
    for label, name in (
        ("its return", "deploy_seconds"),
        ("the first answer of the new code", "answer_seconds"),
    ):
        values = [sample[name] for sample in samples]
        rows.append(
            (
                label,
                *(f"{value:.2f}" for value in (percentile(values, 50), percentile(values, 95), max(values))),
            )
        )
    old = sum(sample["old_answers"] for sample in samples)
    summary = f"{len(samples)} changes; {old:.0f} answers of old code after `deploy()` had returned."
    return f"{table(header, rows)}\n\n{summary}"
