"""Keeps one serving process alive, answers for it, and ends requests that will not end.

One thread, one selector, no user code. While no serving process is ready the supervisor answers on the serving port
itself, so that a caller gets its 503 at once, whatever user code does with the GIL while it loads.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

from brinery_worker.board import MAX_REQUEST_ID_BYTES, Occupied
from brinery_worker.child import Child
from brinery_worker.control import Exchange, HttpPort, error_body
from brinery_worker.exits import Exit
from brinery_worker.fates import Fate, Fates
from brinery_worker.lineage import adopt_orphans, end_children, shut_out_others

EXIT_STOPPED: Final = 0
EXIT_REFUSED: Final = 3

STOP_GRACE_SECONDS: Final = 1.0
STUCK_SECONDS: Final = 5.0
END_SECONDS: Final = 8.0
"""What a drained serving process gets for its last replies and the user's ``unload`` before it is killed."""
LINGER_SECONDS: Final = 0.5
"""How long a stopped worker stays to tell the callers of requests that it cut off whose fault that was."""
MAX_LOAD_CRASHES: Final = 3
QUICK_CRASH_SECONDS: Final = 30.0
MAX_BACKOFF_SECONDS: Final = 30.0
_TICK_SECONDS: Final = 0.5
_SHORT_TICK_SECONDS: Final = 0.01


class Options(NamedTuple):
    """What the command line says about the serving process.

    Args:
        bundle: Path of the bundle.
        sha256: Digest to find in it, lower-case hex.
        concurrency: Slots.
        drain_seconds: How long a stopping worker may finish its requests.
    """

    bundle: str
    sha256: str
    concurrency: int
    drain_seconds: float


class Stop:
    """A request that is being stopped, and who waits to hear of it."""

    def __init__(self, request_id: bytes, description: str) -> None:
        self.request_id = request_id
        self.description = description
        self.kill_at = time.monotonic() + STOP_GRACE_SECONDS
        self.exchanges: list[Exchange] = []

    def answer(self, how: str) -> None:
        """Tell everyone who waits how it ended: ``exception`` or ``killed``."""
        for exchange in self.exchanges:
            exchange.reply(200, {"cancelled": True, "how": how})


class Supervisor:
    """The worker's parent process.

    Args:
        options: What to serve.
        serving: Listening socket of the serving port.
        control: Listening socket of the control port.
    """

    def __init__(self, options: Options, serving: socket.socket, control: socket.socket) -> None:
        self._options = options
        self._listener = serving
        self._selector = selectors.DefaultSelector()
        self._control = HttpPort(self._selector, control, self._answer_control)
        self._stand_in = HttpPort(self._selector, serving, self._answer_serving)
        self._child: Child | None = None
        self._stops: dict[tuple[int, int], Stop] = {}
        self._fates = Fates()
        self._restarts = -1
        self._restart_at: float | None = time.monotonic()
        self._quick_crashes = 0
        self._load_crashes = 0
        self._exit: Exit | None = None
        self._error: dict[str, Any] | None = None
        self._draining = False
        self._stopping = False
        self._end_at: float | None = None
        self._kill_at: float | None = None
        self._leave_at: float | None = None
        self._exit_code: int | None = None

    def run(self) -> int:
        """Supervise until told to stop.

        Returns:
            The exit code of the worker: 0 stopped, 3 bundle refused.
        """
        adopt_orphans()
        shut_out_others()
        self._watch_signals()
        self._control.open()
        self._stand_in.open()
        while self._exit_code is None:
            self._tick(time.monotonic())
            if self._exit_code is None:
                for key, mask in self._selector.select(self._wait_seconds()):
                    key.data(mask)
        end_children()
        self._stand_in.close()
        self._control.close()
        return self._exit_code

    # ------------------------------------------------------------------------------------------------------- the loop
    def _watch_signals(self) -> None:
        woken, wakes = socket.socketpair()
        woken.setblocking(False)
        wakes.setblocking(False)
        self._signals = (woken, wakes)
        self._selector.register(woken, selectors.EVENT_READ, self._on_signal)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)

    def _on_signal(self, _mask: int) -> None:
        numbers = self._signals[0].recv(4096)
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._stop()
        self._reap()

    def _wait_seconds(self) -> float:
        if self._stops or self._end_at is not None:
            return _SHORT_TICK_SECONDS
        timers = [at for at in (self._restart_at, self._kill_at, self._leave_at) if at is not None]
        return max(0.0, min([_TICK_SECONDS, *(at - time.monotonic() for at in timers)]))

    def _tick(self, now: float) -> None:
        self._control.expire(now)
        self._stand_in.expire(now)
        if self._leave_at is not None and now >= self._leave_at:
            self._exit_code = EXIT_STOPPED
        if self._restart_at is not None and now >= self._restart_at:
            self._start_child()
        if self._child is None:
            return
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            _say(f"the serving process did not end within {END_SECONDS:g} s after its drain; killing it")
            self._child.kill("it did not end in time when the worker was stopped")
        running = self._child.board.occupied()
        if self._end_at is not None and (not running or now >= self._end_at):
            self._end_child(self._child, now)
        for request in running:
            if now >= request.deadline and (request.slot, request.sequence) not in self._stops:
                self._begin_stop(request.slot, request.sequence, request.request_id, "timeout")
        for key, stop in list(self._stops.items()):
            if self._child.board.sequence(key[0]) != key[1]:
                del self._stops[key]
                stop.answer("exception")
            elif now >= stop.kill_at and self._child.killed_because is None:
                _say(f"request {stop.description} and did not end within {STOP_GRACE_SECONDS:g} s; restarting")
                self._child.kill(f"ended by us: request {stop.description} and did not stop when asked")

    # ------------------------------------------------------------------------------------------- the serving process
    def _start_child(self) -> None:
        self._restart_at = None
        self._restarts += 1
        self._child = Child(
            bundle=self._options.bundle,
            sha256=self._options.sha256,
            concurrency=self._options.concurrency,
            listener=self._listener,
            draining=self._draining,
        )
        self._selector.register(self._child.channel, selectors.EVENT_READ, self._on_message)

    def _on_message(self, _mask: int) -> None:
        assert self._child is not None  # noqa: S101 - the channel is watched only while there is a child
        messages = self._child.receive()
        if not messages:  # the other end is closed: its exit follows
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._child.channel)
        for message in messages:
            if "ready" in message:
                self._child.ready = True
                self._load_crashes = 0
                self._stand_in.pause()
            elif "failed" in message:
                self._error = message["failed"]
            elif "refused" in message:
                _say(f"bundle refused: {message['refused']}")
                self._exit_code = EXIT_REFUSED

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._child is not None and pid == self._child.pid:
                self._child_ended(self._child, status)

    def _child_ended(self, child: Child, status: int) -> None:
        self._on_message(0)  # its last words may still be unread
        with contextlib.suppress(KeyError):
            self._selector.unregister(child.channel)
        self._child = None
        running = child.board.occupied()
        self._exit = child.ended(status)
        stopped = {stop.request_id for stop in self._stops.values()}
        ours = child.killed_because is not None or child.told_to_end
        self._fates.note(running, self._exit, ours=ours, stopped=stopped)
        for stop in self._stops.values():
            stop.answer("killed")
        self._stops.clear()
        end_children()
        if self._exit_code is not None:
            return
        if self._stopping and not running:
            self._exit_code = EXIT_STOPPED
            return
        self._stand_in.open()
        if self._stopping:
            self._leave_at = time.monotonic() + LINGER_SECONDS
            return
        if self._error is None:
            self._plan_restart(child)

    def _plan_restart(self, child: Child) -> None:
        assert self._exit is not None  # noqa: S101 - called when one has ended
        now = time.monotonic()
        wanted = child.killed_because is not None
        if not child.ready and not wanted:
            self._load_crashes += 1
        if self._load_crashes >= MAX_LOAD_CRASHES:
            text = f"The worker could not load its bundle: {self._exit.reason} ({self._load_crashes} times)."
            self._error = error_body("worker", text)
            _say(text)
            return
        if wanted or now - child.started_at > QUICK_CRASH_SECONDS:
            self._quick_crashes = 0
        else:
            self._quick_crashes += 1
        delay = 0.0 if self._quick_crashes < 2 else min(MAX_BACKOFF_SECONDS, 2.0 ** (self._quick_crashes - 2))
        self._restart_at = now + delay
        _say(f"{self._exit.reason}; starting it again{f' in {delay:g} s' if delay else ''}")

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._drain()
        self._restart_at = None
        if self._child is None:
            self._exit_code = EXIT_STOPPED
        elif self._child.ready:
            self._end_at = time.monotonic() + self._options.drain_seconds
        else:
            self._child.kill("the worker was stopped while it loaded its bundle")

    def _end_child(self, child: Child, now: float) -> None:
        self._end_at = None
        self._kill_at = now + END_SECONDS
        child.end()
        # From now on it accepts no connections; who comes meanwhile is answered instead of left in the backlog.
        self._stand_in.open()

    def _drain(self) -> None:
        self._draining = True
        if self._child is not None:
            self._child.board.draining = True

    def _begin_stop(self, index: int, sequence: int, request_id: bytes, reason: str) -> Stop:
        assert self._child is not None  # noqa: S101 - the request was found on its board
        what = "was cancelled" if reason == "cancelled" else "ran out of time"
        stop = Stop(request_id, f"{request_id.decode(errors='replace')} {what}")
        self._stops[index, sequence] = stop
        self._child.stop_request(index, sequence, reason)
        return stop

    # ----------------------------------------------------------------------------------------------------- the answers
    def _state(self) -> str:
        if self._stopping or self._draining:
            return "stopping"
        if self._error is not None:
            return "failed"
        if self._child is None or not self._child.ready:
            return "loading"
        if self._child.board.silent_seconds() > STUCK_SECONDS:
            return "stuck"
        return "busy" if len(self._child.board.occupied()) >= self._options.concurrency else "ready"

    def _answer_control(self, exchange: Exchange) -> None:
        route = (exchange.method, exchange.path)
        if route == ("GET", "/status"):
            exchange.reply(
                200,
                {
                    "state": self._state(),
                    "slots": self._options.concurrency,
                    "busy": len(self._child.board.occupied()) if self._child is not None else 0,
                    "restarts": max(0, self._restarts),
                    "exit": self._exit._asdict() if self._exit is not None else None,
                    "error": self._error,
                },
            )
        elif route == ("POST", "/cancel"):
            self._cancel(exchange)
        elif route == ("GET", "/fate"):
            self._tell_fate(exchange)
        elif route == ("POST", "/drain"):
            self._drain()
            exchange.reply(202, {"state": self._state()})
        else:
            text = (
                "The control port has GET /status, GET /fate?request_id=, POST /cancel?request_id= (&reason=timeout), "
                "POST /drain."
            )
            exchange.reply(404, error_body("not_found", text))

    def _tell_fate(self, exchange: Exchange) -> None:
        wanted = _request_id(exchange)
        if self._find(wanted) is None:
            exchange.reply(200, self._fates.find(wanted))
        else:
            exchange.reply(200, Fate("running")._asdict())

    def _find(self, request_id: bytes) -> Occupied | None:
        """Return the request of that name if it runs, or ran in a process whose end is not noticed yet."""
        running = self._child.board.occupied() if self._child is not None else []
        return next((found for found in running if found.request_id == request_id), None)

    def _cancel(self, exchange: Exchange) -> None:
        wanted = _request_id(exchange)
        if not wanted:
            exchange.reply(422, error_body("invalid_request", "Name the request: POST /cancel?request_id=…"))
            return
        request = self._find(wanted)
        if request is None:
            exchange.reply(200, {"cancelled": False, "how": "gone"})
            return
        stop = self._stops.get((request.slot, request.sequence))
        if stop is None:
            # A caller that counts the time as we do may ask a moment before we would have noticed it ourselves.
            late = "timeout" in parse_qs(exchange.query).get("reason", []) or time.monotonic() >= request.deadline
            stop = self._begin_stop(request.slot, request.sequence, wanted, "timeout" if late else "cancelled")
        exchange.hold(STOP_GRACE_SECONDS + END_SECONDS)
        stop.exchanges.append(exchange)

    def _answer_serving(self, exchange: Exchange) -> None:
        """Answer on the serving port in place of a serving process that is not ready."""
        if self._stopping and exchange.path not in {"/readyz", "/healthz"}:
            exchange.reply(429, error_body("worker_busy", "The worker is stopping; call another one."))
        elif self._error is not None and exchange.path in {"/readyz", "/healthz"}:
            exchange.reply(503, self._error)
        elif exchange.path in {"/readyz", "/healthz"}:
            exchange.reply(503, {"status": self._state()})
        elif self._error is not None:
            cause = self._error["error"]["message"]
            exchange.reply(503, error_body("unavailable", f"The worker could not load its bundle: {cause}"))
        else:
            text = "The worker is still loading its bundle; wait until GET /readyz answers 200."
            exchange.reply(503, error_body("unavailable", text))


def _request_id(exchange: Exchange) -> bytes:
    return parse_qs(exchange.query).get("request_id", [""])[0].encode()[:MAX_REQUEST_ID_BYTES]


def _say(text: str) -> None:
    sys.stderr.write(f"brinery-worker: {text}\n")
    sys.stderr.flush()
