"""`make demo`: the main job from end to end. Starts the platform, deploys ``examples/``, uses them, stops it.

Workers are containers where a Docker engine can run them, else processes; a line says which.
Everything lies under ``.demo/``, on a port of its own, so a platform of yours is left alone; the second run finds
its environments there and takes seconds. Exits 1 when anything that came back is wrong.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
HOME = REPOSITORY / ".demo" / "home"
BRINERY = Path(sys.executable).with_name("brinery")
LEAST_ACCURACY = 0.97
GRACE_SECONDS = 5.0
"""How long a process that is ending may still be seen."""
TEXT = "A brinery turns pickles into services. Pickles go in; services come out!"

console = Console(highlight=False)
table = Table("call", "what came back", "time", title="What came back", title_justify="left")


class DemoError(Exception):
    """Something came back that is not right."""


def main() -> int:
    """Run the demo; return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the platform is stopped then, too
    isolate()
    status = 1
    try:
        start()
        deployed = deploy()
        call_text(deployed["text_stats"])
        call_pair(deployed["sentiment"])
        call_stream(deployed["square_root"])
        call_digits(deployed["Digits"], deployed["held_back"])
        status = 0
    except KeyboardInterrupt:
        console.print("[yellow]stopped by Ctrl-C[/]")
    except Exception as error:  # noqa: BLE001 - whatever went wrong is shown, and the platform stopped
        console.print(f"[red]FAILED[/] {type(error).__name__}: {error}", markup=True)
        show_logs()
    finally:
        status = stop() or status
    if status == 0:
        console.print(table)
        console.print("[green]Everything came back right, and nothing is left running.[/]")
    return status


# ----------------------------------------------------------------------------------------------- the platform
def isolate() -> None:
    """Point SDK and platform at the demo's own home and port, whatever this shell is set to."""
    for name in [name for name in os.environ if name.startswith("BRINERY_")]:
        del os.environ[name]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"BRINERY_HOME": str(HOME), "BRINERY_PORT": str(port)}
    sys.path.insert(0, str(REPOSITORY / "examples"))


def start() -> None:
    """Bring the platform up; one that a killed demo left behind is stopped first."""
    HOME.mkdir(parents=True, exist_ok=True)
    run("down", check=False)
    with step(f"brinery up --detach --port {os.environ['BRINERY_PORT']}"):
        said = run("up", "--detach").splitlines()
    console.print(f"  {next(line for line in said if line.startswith('Workers run as'))}", soft_wrap=True)


def stop() -> int:
    """Bring the platform down; return 1 if something of it is still there."""
    try:
        with step("brinery down"):
            run("down")
            deadline = time.monotonic() + GRACE_SECONDS
            while (left := left_over()) and time.monotonic() < deadline:
                time.sleep(0.05)
            expect(left, [])
    except Exception as error:  # noqa: BLE001 - the last thing this program does is to say so
        console.print(f"[red]FAILED[/] to stop: {error}", markup=True)
        return 1
    return 0


def run(*arguments: str, check: bool = True) -> str:
    """Run a ``brinery`` command.

    Raises:
        DemoError: It failed; carries its own words.
    """
    done = subprocess.run([BRINERY, *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise DemoError(f"`brinery {' '.join(arguments)}` exited {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def left_over() -> list[str]:
    """Return what still works in the demo's home or names it: command lines, and names of containers."""
    import psutil

    found = containers()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            places = [*process.cmdline(), process.cwd()]
            if any(str(HOME) in place for place in places):
                found.append(" ".join(process.cmdline()))
    return found


def containers() -> list[str]:
    """Return the names of the home's containers, ended ones included; none where no engine answers."""
    from brinery.errors import UnavailableError
    from brinery_platform.runtimes.auto import trial_engine
    from brinery_platform.runtimes.detached import home_mark
    from brinery_platform.runtimes.docker import labels

    engine = trial_engine()
    try:
        facts = engine.containers({labels.HOME: home_mark(HOME)}, ended_too=True)
    except UnavailableError:
        return []
    finally:
        engine.close()
    return [name for one in facts for name in one["Names"]]


def show_logs() -> None:
    """Print the last lines of the logs that were written to last."""
    logs = sorted(HOME.glob("**/*.log"), key=lambda path: path.stat().st_mtime)
    for log in logs[-3:]:
        console.rule(str(log.relative_to(REPOSITORY)))
        console.print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), markup=False)


# ----------------------------------------------------------------------------------------------- the examples
def deploy() -> dict[str, Any]:
    """Deploy every example; return them by name."""
    deployed = {}
    for module, names in {
        "text": ["text_stats"],
        "pair": ["sentiment"],
        "stream": ["square_root"],
        "digits": ["Digits", "held_back"],
    }.items():
        for name in names:
            deployed[name] = getattr(importlib.import_module(module), name)
            with step(f"deploy examples/{module}.py: {name}"):
                deployed[name].deploy()
    return deployed


def call_text(text_stats: Any) -> None:
    """Call a function here, there, later, and many times over."""
    with row("text_stats.remote(...)") as show:
        show(stats := text_stats.remote(TEXT))
    expect(stats, text_stats(TEXT))

    with row("Future.from_id(text_stats.submit(...).id).get()") as show:
        from brinery import Future

        show(stats := Future.from_id(text_stats.submit(TEXT).id).get(timeout=60))
    expect(stats, text_stats(TEXT))

    texts = ["word " * count for count in range(1, 21)]
    with row("text_stats.map(20 texts)") as show:
        counts = [stats["words"] for stats in text_stats.map(texts)]
        show(f"words: {counts[:3]} … {counts[-1]}, in order")
    expect(counts, list(range(1, 21)))


def call_pair(sentiment: Any) -> None:
    """Call the two-function form."""
    with row("sentiment.remote(...)") as show:
        show(answer := sentiment.remote(review="great quality and it works"))
    expect(answer["label"], "good")


def call_stream(square_root: Any) -> None:
    """Read a stream item by item."""
    with row("square_root.stream(number=2.0)") as show:
        items = list(square_root.stream(number=2.0))
        show(f"{len(items)} items, the last {items[-1]}")
    expect(items[-1]["guess"], 1.414213562373)


def call_digits(digits: Any, held_back: Any) -> None:
    """Ask the trained model for rows that it has never seen, now and later."""
    with row("held_back.remote(count=200)") as show:
        rows = held_back.remote(count=200)
        show(f"{len(rows)} rows of {len(rows[0]['pixels'])} pixels")
    expect(len(rows), 200)

    with row("Digits.remote(...) x 50") as show:
        answers, seconds = [], []
        for sample in rows[:50]:
            began = time.perf_counter()
            answers.append(digits.remote(pixels=sample["pixels"]))
            seconds.append(time.perf_counter() - began)
        show(f"{accuracy(answers, rows):.1%} right, {1000 * statistics.median(seconds):.1f} ms each (median)")
    expect(accuracy(answers, rows) >= LEAST_ACCURACY, True)

    with row("200 x Digits.submit(...), then get()") as show:
        futures = [digits.submit(pixels=sample["pixels"]) for sample in rows]
        answers = [future.get(timeout=120) for future in futures]
        show(f"{accuracy(answers, rows):.1%} right")
    expect(accuracy(answers, rows) >= LEAST_ACCURACY, True)


def accuracy(answers: list[int], rows: list[dict[str, int]]) -> float:
    """Return the share of `answers` that are right."""
    right = [answer == sample["digit"] for answer, sample in zip(answers, rows, strict=False)]
    return right.count(True) / len(answers)


# ------------------------------------------------------------------------------------------------ the telling
def expect(came: object, wanted: object) -> None:
    """Stop the demo if what came back is wrong."""
    if came != wanted:
        raise DemoError(f"came back: {came!r}; expected: {wanted!r}")


@contextmanager
def step(text: str) -> Iterator[None]:
    """Tell what is being done, then how long it took."""
    console.print(f"  {text} ... ", end="")
    began = time.perf_counter()
    try:
        yield
    except BaseException:
        console.print()
        raise
    console.print(f"[dim]{took(began)}[/]")


@contextmanager
def row(text: str) -> Iterator[Callable[[object], None]]:
    """Tell a call as a `step` and keep it for the table; the block shows what came back."""
    came: list[object] = []
    began = time.perf_counter()
    with step(text):
        yield came.append
    table.add_row(text, str(came[0]), took(began))


def took(began: float) -> str:
    """Return the time since `began` for people."""
    seconds = time.perf_counter() - began
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


if __name__ == "__main__":
    if shutil.get_terminal_size().columns < 100 and not console.is_terminal:
        console.width = 120  # a log file has no width of its own
    sys.exit(main())
