"""Proof that each fault test can fail: each mechanism is taken out of a copy of the platform, and its test must see it.

Run as ``make faults-proof``, ``PYTEST_ARGS='-k name'`` for some of them; pytest takes it only by its name, so it is no
part of `make test`. The platform under test imports from the copy, which stands first on ``PYTHONPATH``; nothing in the
sources themselves can be switched off.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_ledger import PATIENCE_VARIABLE
from fault_stack import SOURCES_VARIABLE
from fault_table import PAGE_VARIABLE, PROOFS

REPOSITORY = Path(__file__).parents[2]
ROOTS = {"brinery": "sdk", "brinery_platform": "platform", "brinery_worker": "worker_runtime"}
PATIENCE_SECONDS = 25
LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Change:
    """One replacement in a file of the platform; the old text is there exactly once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Sabotage:
    """A mechanism that is taken out, and what its test then has to see.

    Args:
        test: The test, as pytest names it.
        without: The mechanism, for the table.
        sees: Pattern of the violation.
        changes: What takes it out.
        patience_seconds: How long the test waits for the tasks; longer than the mechanism would take.
    """

    test: str
    without: str
    sees: str
    changes: tuple[Change, ...]
    patience_seconds: int = PATIENCE_SECONDS


NOBODY_IS_JUDGED = Change(
    "lua/sweep_incarnations.lua",
    "if at < tonumber(redis.call('GET', 'sweep:judge_after') or '0') then",
    "if true then",
)
NO_DEATH_IS_TOLD = Change("tasks.py", 'if raw.decode().startswith(f"{running_id}:")]', "if False]")
NO_PATIENCE = Change("forwarder/work.py", "if unless is not None and unless():", "if True:")

SABOTAGES = {
    "forwarder": Sabotage(
        "test_kills.py::test_forwarder",
        "requeueing what a dead forwarder ran",
        r"^\d+ lost",
        (NO_DEATH_IS_TOLD, NOBODY_IS_JUDGED),
    ),
    "popped": Sabotage(
        "test_kills.py::test_forwarder_with_a_popped_message",
        "the sweep for lost messages",
        r"^3 lost",
        (
            Change(
                "lua/sweep_lost.lua",
                "local at = now()\nlocal published = 0",
                "local at = now()\ndo return 0 end\nlocal published = 0",
            ),
        ),
    ),
    "worker": Sabotage(
        "test_kills.py::test_worker",
        "requeueing an attempt whose connection ended",
        r"^\d+ lost",
        (Change("forwarder/work.py", "report = None  # what never began was no attempt", "return None"),),
    ),
    "worker-forwarder": Sabotage(
        "test_kills.py::test_worker_and_forwarder",
        "requeueing what a dead forwarder ran",
        r"^\d+ lost",
        (NO_DEATH_IS_TOLD, NOBODY_IS_JUDGED),
    ),
    "gateway": Sabotage(
        "test_kills.py::test_gateway",
        "`up` starting a dead gateway again",
        r"not within 30 s",
        (
            Change(
                "up.py",
                'for name in ("controller", "gateway"):\n                code =',
                'for name in ("controller",):\n                code =',
            ),
        ),
    ),
    "controller": Sabotage(
        "test_kills.py::test_controller",
        "taking the lease of a dead process over at once",
        r"running again only after",
        (
            Change(
                "controller/lease.py",
                "if isinstance(holder, bytes) and _is_gone(holder.decode()):",
                "if isinstance(holder, bytes) and not holder:",
            ),
        ),
    ),
    "controller-forwarder": Sabotage(
        "test_kills.py::test_controller_and_forwarder",
        "the new leader's look for orphans, and the sweep for dead leases",
        r"^\d+ lost",
        (
            Change("controller/reconcile.py", "if host == socket.gethostname() and", "if not host and"),
            NOBODY_IS_JUDGED,
        ),
    ),
    "redis": Sabotage(
        "test_kills.py::test_redis",
        "the append-only file",
        r"^\d+ lost",
        (Change("embedded_redis.py", "appendonly yes", "appendonly no"),),
    ),
    "everything": Sabotage(
        "test_kills.py::test_everything",
        "the new leader's look for orphans, and the sweep for dead leases",
        r"^\d+ lost",
        (
            Change("controller/reconcile.py", "if host == socket.gethostname() and", "if not host and"),
            NOBODY_IS_JUDGED,
        ),
    ),
    "frozen-redis": Sabotage(
        "test_outages.py::test_redis_stands_still_for_30_seconds",
        "judging nobody for a lease after a gap",
        r"executed twice although nothing died",
        (Change("lua/sweep_incarnations.lua", "if at - last > lease / 2 then", "if false then"),),
    ),
    "dropped": Sabotage(
        "test_outages.py::test_redis_drops_every_connection",
        "our bookkeeping of messages, and the record's no to a second claim",
        r"executed twice although nothing died",
        (
            Change("broker.py", 'app.steps["consumer"].add(_OwnBookkeeping)', "_ = _OwnBookkeeping"),
            Change("lua/claim.lua", "if alive(holder) then", "if false then"),
            Change(
                "forwarder/work.py", "if self._running.setdefault(task_id, running) is not running:", "if not running:"
            ),
        ),
    ),
    "own-redis": Sabotage(
        "test_outages.py::test_a_redis_of_the_settings_is_killed_and_comes_back_from_its_file",
        "the forwarder's patience with Redis",
        r"^\d+ lost",
        (NO_PATIENCE,),
    ),
    "s3": Sabotage(
        "test_outages.py::test_s3_answers_500_is_slow_and_refuses",
        "the forwarder's patience with the store",
        r"^\d+ executed twice although nothing died",
        (NO_PATIENCE,),
    ),
    "full": Sabotage(
        "test_outages.py::test_the_object_folder_is_full",
        "the forwarder's patience with the store",
        r"^\d+ lost",
        (NO_PATIENCE,),
    ),
    "clock": Sabotage(
        "test_outages.py::test_a_clock_steps_by_an_hour_in_each_part",
        "Redis' own clock in the sweep for expired tasks (the controller's instead)",
        r"is expired instead of succeeded",
        (
            Change("lua/sweep_times.lua", "local at = now()", "local at = tonumber(ARGV[2])"),
            Change(
                "transitions.py",
                'name="sweep_times", arguments=(BATCH,)',
                'name="sweep_times", arguments=(BATCH, __import__("time").time())',
            ),
        ),
    ),
    "poison": Sabotage(
        "test_misbehaving.py::test_a_task_that_kills_its_worker_every_time",
        "charging an attempt that crashed",
        r"^\d+ lost",
        (Change("forwarder/outcomes.py", 'charge: Charge = "full"', 'charge: Charge = "spared"'),),
    ),
    "silent": Sabotage(
        "test_misbehaving.py::test_a_consumer_gone_silent",
        "comparing the attempt when it finishes",
        r"ended 2 times",
        (
            Change(
                "lua/finish.lua",
                "if status ~= 'running' or attempt ~= ARGV[2] or incarnation ~= ARGV[3] or claim ~= ARGV[4] then",
                "if false then",
            ),
        ),
    ),
    "silent for good": Sabotage(
        "test_misbehaving.py::test_a_consumer_gone_silent_for_good",
        "replacing a forwarder that nobody hears of",
        r"^\d+ lost",
        (Change("controller/forwarder.py", "now - self._heard_at < SILENT_SECONDS:", "True:"),),
        patience_seconds=60,
    ),
}


def copy_sources(target: Path, changes: tuple[Change, ...]) -> None:
    """Copy the three packages side by side, with the changes made in the platform."""
    for package, root in ROOTS.items():
        shutil.copytree(REPOSITORY / root / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    for change in changes:
        file = target / "brinery_platform" / change.file
        text = file.read_text()
        found = text.count(change.old)
        if found != 1:
            pytest.fail(f"{change.file} has {change.old!r} {found} times; put the sabotage right.")
        file.write_text(text.replace(change.old, change.new))


@pytest.mark.timeout(LIMIT_SECONDS + 60)
@pytest.mark.parametrize("sabotage", SABOTAGES.values(), ids=SABOTAGES.keys())
def test_without_its_mechanism_the_fault_is_seen(sabotage: Sabotage, tmp_path: Path) -> None:
    """Run the fault's own test on the copy, and hold what it complains of against what it should see."""
    sources = tmp_path / "sources"
    copy_sources(sources, sabotage.changes)
    environment = {name: value for name, value in os.environ.items() if name not in {PAGE_VARIABLE, "PYTEST_ADDOPTS"}}
    environment |= {SOURCES_VARIABLE: str(sources), PATIENCE_VARIABLE: str(sabotage.patience_seconds)}
    test = f"tests/faults/{sabotage.test}"
    command = [sys.executable, "-m", "pytest", "-q", test, "--basetemp", str(tmp_path / "inner")]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    said = [line.removeprefix("AssertionError: ") for line in re.findall(r"^E\s+(.+)$", done.stdout, re.MULTILINE)]
    seen = next((line for line in said if re.search(sabotage.sees, line)), None)
    assert done.returncode == 1, done.stdout
    assert seen is not None, f"it failed for another reason:\n{done.stdout}"
    PROOFS.append((sabotage.test.partition("::")[2], sabotage.without, seen))
