"""The controller's desk and its readers: a real HTTP server, a real Redis, and a runtime that the test speaks for."""

import contextlib
import itertools
import queue
import socket
import threading
import time

import httpx
import pytest

from brinery.errors import ConflictError, UnavailableError
from brinery_platform.controller import desk as desks
from brinery_platform.controller.desk import Desk
from brinery_platform.routes import DESK, DeskAddress
from brinery_platform.runtimes import far as readers
from brinery_platform.runtimes.base import Running, Stamped
from brinery_platform.runtimes.far import AWAY, NO_LOG, FarRuntime
from idle_runtime import IdleRuntime
from servers import free_port, wait_for

ENDED = None


class SaidRuntime(IdleRuntime):
    """A runtime that runs nothing; a worker's lines are what the test says, and stay as an engine keeps them."""

    def __init__(self):
        self.lines = []
        self.readers = []
        self.clock = itertools.count(1_800_000_000)
        self.trouble = None

    def list(self):
        if self.trouble:
            raise self.trouble
        return [Running(id="wrk_1", kind="worker", endpoint_id="end_1", url="http://10.1.1.1:5005", started_at=1.5)]

    def say(self, *lines):
        for line in lines:
            self.lines.append((float(next(self.clock)), line))
            for reader in self.readers:
                reader.put(self.lines[-1])

    def end(self):
        for reader in self.readers:
            reader.put(ENDED)

    def stamped(self, _running_id, *, tail, follow, since=None):
        if since is not None:
            past = [entry for entry in self.lines if entry[0] >= since.at]
        else:
            past = self.lines[-tail:] if tail else []
        if not follow:
            return Stamped(iter(past))
        reader = queue.Queue()
        self.readers.append(reader)
        return Stamped(itertools.chain(past, iter(reader.get, ENDED)), lambda: reader.put(ENDED))


@pytest.fixture
def said():
    return SaidRuntime()


@pytest.fixture
def opened(said, redis_client):
    """Open a desk, and announce it as its controller does."""
    with contextlib.ExitStack() as stack:

        def open_one(**given):
            desk = Desk(said, **{"healthy": lambda: "", "ready": lambda: "", **given})
            stack.callback(desk.close)
            redis_client.set(DESK, desk.address.dumps())
            return desk

        yield open_one


@pytest.fixture
def far(redis_client):
    far = FarRuntime(redis_client)
    yield far
    far.close()


@pytest.fixture
def quick(monkeypatch):
    """Signs of life and notes come faster than for people."""
    monkeypatch.setattr(desks, "DESK_BEAT_SECONDS", 0.1)
    monkeypatch.setattr(readers, "PATIENT_SECONDS", 0.2)


class Follower:
    """A thread that follows the worker's log."""

    def __init__(self, far, **given):
        self.heard = []
        self.ended = threading.Event()
        self._lines = far.logs("wrk_1", follow=True, **given)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        for line in self._lines:
            self.heard.append(line)
        self.ended.set()

    def hears(self, *lines):
        wait_for(lambda: [line for line in self.heard if line != AWAY] == list(lines))


def test_what_runs_and_what_it_said_comes_whole(said, opened, far):
    opened()
    said.say("one", 'zwölf\tand "more"', "three")
    assert far.list() == said.list()
    assert list(far.logs("wrk_1", tail=2)) == ['zwölf\tand "more"', "three"]
    assert list(far.logs("wrk_1", tail=0)) == []


def test_the_connection_of_a_log_is_said_to_close(said, opened):
    desk = opened()
    said.say("one")
    headers = {"Authorization": f"Bearer {desk.address.token}"}
    reply = httpx.get(f"{desk.address.url}/v1/logs/wrk_1?tail=5", headers=headers, timeout=30)
    assert reply.headers["connection"] == "close"
    assert "connection" not in httpx.get(f"{desk.address.url}/v1/running", headers=headers, timeout=30).headers


def test_without_its_token_nobody_reads_anything(said, opened):
    desk = opened()
    said.say("secret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": desk.address.token}):
        for path in ("/v1/running", "/v1/logs/wrk_1?tail=5", "/v1/other"):
            reply = httpx.get(desk.address.url + path, headers=headers, timeout=30)
            assert reply.status_code == 401
            assert "secret" not in reply.text
    assert desk.address.token not in repr(desk.address)
    assert desk.address.url.startswith("http://127.0.0.1:")


def test_whoever_asks_for_nonsense_is_told_so(opened):
    desk = opened()
    headers = {"Authorization": f"Bearer {desk.address.token}"}
    get = [
        httpx.get(f"{desk.address.url}{path}", headers=headers, timeout=30) for path in ("/v1/no", "/v1/logs/x?tail=a")
    ]
    assert [reply.status_code for reply in get] == [404, 400]


def test_health_and_readiness_say_what_is_wrong_to_everybody(opened):
    wrong = {"healthy": "", "ready": "Redis does not answer"}
    desk = opened(healthy=lambda: wrong["healthy"], ready=lambda: wrong["ready"])

    def ask(path):
        reply = httpx.get(desk.address.url + path, timeout=30)
        return reply.status_code, reply.json()["status"]

    assert ask("/healthz") == (200, "ok")
    assert ask("/readyz") == (503, "Redis does not answer")
    wrong["ready"] = ""
    assert ask("/readyz") == (200, "ok")
    wrong["healthy"] = "stuck"
    assert [ask("/healthz"), ask("/readyz")] == [(503, "stuck")] * 2


def test_a_follower_hears_the_past_new_lines_and_the_end(said, opened, far):
    opened()
    said.say("old", "older")
    follower = Follower(far, tail=1)
    follower.hears("older")
    said.say("new")
    follower.hears("older", "new")
    said.end()
    assert follower.ended.wait(30)


def test_a_follower_goes_on_with_the_next_leaders_desk_and_misses_and_repeats_nothing(said, opened, far, redis_client):
    first = opened()
    said.say("old")
    follower = Follower(far, tail=10)
    follower.hears("old")
    said.say("one")
    follower.hears("old", "one")
    redis_client.delete(DESK)
    first.close()
    said.say("two", "three")  # while nobody leads
    opened()
    follower.hears("old", "one", "two", "three")
    said.say("four")
    follower.hears("old", "one", "two", "three", "four")
    said.end()
    assert follower.ended.wait(30)


@pytest.mark.usefixtures("quick")
def test_a_follower_whose_desk_stays_away_is_told_once_and_hears_the_rest_when_it_is_back(said, opened, far):
    first = opened()
    said.say("old")
    follower = Follower(far, tail=10)
    follower.hears("old")
    first.close()
    wait_for(lambda: AWAY in follower.heard)
    said.say("meanwhile")
    opened()
    follower.hears("old", "meanwhile")
    assert follower.heard.count(AWAY) == 1
    said.end()
    assert follower.ended.wait(30)


def test_a_desk_that_is_away_means_a_note_and_no_trouble(far, redis_client):
    redis_client.delete(DESK)
    assert list(far.logs("wrk_1")) == [NO_LOG]
    redis_client.set(DESK, DeskAddress(f"http://127.0.0.1:{free_port()}", "token").dumps())
    assert list(far.logs("wrk_1")) == [NO_LOG]
    with pytest.raises(UnavailableError):
        far.list()


def test_a_desk_that_never_answers_is_given_up(far, redis_client, monkeypatch):
    monkeypatch.setattr(readers, "READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        redis_client.set(DESK, DeskAddress(f"http://127.0.0.1:{silent.getsockname()[1]}", "token").dumps())
        assert list(far.logs("wrk_1")) == [NO_LOG]


def test_an_engine_that_is_away_is_told_as_such(said, opened, far):
    opened()
    said.trouble = UnavailableError("The Docker engine does not answer.")
    with pytest.raises(UnavailableError, match="The Docker engine does not answer"):
        far.list()


@pytest.mark.usefixtures("quick")
def test_a_follower_that_has_gone_is_noticed_although_nothing_is_said(opened):
    desk = opened()
    with socket.create_connection(("127.0.0.1", int(desk.address.url.rpartition(":")[2]))) as connection:
        request = (
            f"GET /v1/logs/wrk_1?follow=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {desk.address.token}\r\n\r\n"
        )
        connection.sendall(request.encode())
        assert b"200 OK" in connection.recv(4096)
        wait_for(lambda: len(desk._followers) == 1)
    wait_for(lambda: not desk._followers)


def test_there_are_so_many_followers_and_no_more(said, opened, far, monkeypatch):
    monkeypatch.setattr(desks, "MOST_FOLLOWERS", 1)
    desk = opened()
    follower = Follower(far)
    wait_for(lambda: len(desk._followers) == 1)
    headers = {"Authorization": f"Bearer {desk.address.token}"}
    reply = httpx.get(f"{desk.address.url}/v1/logs/wrk_1?follow=1", headers=headers, timeout=30)
    assert reply.status_code == 503
    said.end()
    assert follower.ended.wait(30)


def test_connections_are_bounded_and_free_again_when_they_end(opened, monkeypatch):
    monkeypatch.setattr(desks, "MOST_CONNECTIONS", 2)
    desk = opened()
    port = int(desk.address.url.rpartition(":")[2])
    held = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(2)]
    for connection in held:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in connection.recv(4096)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as third:
        assert third.recv(1) == b""
    for connection in held:
        connection.close()

    def answers():
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{desk.address.url}/healthz", timeout=30).status_code == 200

    wait_for(answers)


def test_a_line_without_an_end_is_cut(said, opened, far):
    opened()
    said.say("x" * 1_000_000)
    (line,) = far.logs("wrk_1")
    assert len(line) == desks.MOST_LINE_CHARACTERS + 1


def test_a_taken_port_names_the_setting(said):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConflictError, match="BRINERY_DESK_PORT"):
        Desk(said, healthy=str, ready=str, port=taken.getsockname()[1])


def test_closing_ends_the_desks_threads(said):
    before = set(threading.enumerate())
    Desk(said, healthy=str, ready=str).close()
    deadline = time.monotonic() + 30
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
