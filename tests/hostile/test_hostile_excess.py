"""Hostile code that takes what it can get: processes, memory, disk, the log; and what it answers."""

import contextlib
import json
import socket
from pathlib import Path

import httpx
import pytest
from hostile_arena import MEMORY_MIB
from hostile_table import ROWS, Row

from brinery.spec import HEADER_REQUEST_ID
from containers import docker
from stack import wait_until

PROCESSES = 2000
LOG_MIB = 64
OK = "HTTP/1.1 200 OK\r\n"


def test_a_fork_bomb_ends_at_the_limit_of_processes(arena):
    row = arena.try_both("start 2,000 processes", f"fork_bomb({PROCESSES})")
    assert "unavailable" in row.ours, row


def test_memory_ends_at_the_limit_and_the_endpoint_says_so(arena):
    got = arena.control("fill_memory(1024)")
    stopped = arena.attempt("fill_memory(1024)")
    said = f"out of memory at {MEMORY_MIB} MiB"
    assert said in stopped
    wait_until(lambda: said in arena.said("hostile"), what="the endpoint to say why")
    ROWS.append(Row("hold 1 GiB of memory", got, stopped, f"killed: {said}"))


def test_disk_ends_at_the_size_of_the_scratch(arena):
    for folder in ("/tmp", "/home/worker"):  # noqa: S108 - the container's own
        row = arena.try_both(f"write 256 MiB to {folder}", f"fill_disk({folder!r}, 256)")
        assert row.ours == "No space left on device"


def test_the_log_is_cut_off(arena):
    name = arena.beside("/opt/brinery/environment/bin/python", "-c", _printing(LOG_MIB))
    docker("wait", name)
    control = _log_mib(name)
    assert control >= LOG_MIB
    answer = arena.call("hostile", code=_arsenal(), call=f"fill_log({LOG_MIB})")
    assert answer == {"got": f"{LOG_MIB} MiB"}
    ours = _log_mib(arena.worker("hostile")["Id"])
    assert ours <= 17
    ROWS.append(Row(f"print {LOG_MIB} MiB", f"{control:.0f} MiB on disk", f"{ours:.0f} MiB on disk", "the last lines"))


def _arsenal():
    return Path(__file__).with_name("arsenal.py").read_text()


def _printing(mib):
    return f"{_arsenal()}\nfill_log({mib})"


def _log_mib(container):
    (facts,) = json.loads(docker("inspect", container))
    path = Path(facts["LogPath"])
    return sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*")) / 2**20


@pytest.mark.parametrize(
    ("attempt", "how", "most", "answer", "says"),
    [
        (
            "announce 2 GiB",
            {"head": f"{OK}Content-Length: {2**31}\r\n\r\n", "mib": 300},
            300 * 2**20,
            502,
            "larger than 256 MiB",
        ),
        (
            "send without an end",
            {"head": f"{OK}Content-Type: text/plain\r\n\r\n", "mib": 300},
            300 * 2**20,
            200,
            "cut off",
        ),
        ("never answer", {"head": "", "then": "wait"}, 0, 504, "6 s"),
        ("answer byte by byte", {"head": OK, "slow": "X-A: 1\r\n" * 20}, 25, 504, "6 s"),
        ("answer in broken HTTP", {"head": "HTTP/9.9 banana\r\n\r\n"}, 19, 502, "broke"),
        ("hang up in the middle", {"head": f"{OK}Content-Length: 100\r\n\r\nhalf"}, 40, 502, "broke"),
        (
            "exit in the middle",
            {"head": f"{OK}Content-Length: 100\r\n\r\nhalf", "then": "exit"},
            40,
            502,
            "exit code 7",
        ),
    ],
)
def test_an_answer_that_is_none_becomes_an_error_in_time(arena, attempt, how, most, answer, says):
    got = _raw(arena, how, most=most)
    assert len(got) >= most, got[:200]
    wait_until(lambda: _is_idle(arena), what="the worker to be ready again", seconds=60)
    with arena.http() as http:
        code, text = _answer(http, how)
    assert (code, says in text) == (answer, True), text
    seen = ""
    if how.get("then") == "exit":
        seen = "the serving process ended by itself with exit code 7"
        wait_until(lambda: seen in arena.said("raw"), what="the endpoint to say how it ended")
    ROWS.append(Row(attempt, f"read raw: {len(got):,} bytes", f"{code}: {text}", seen))


def test_headers_of_a_worker_stay_with_it_and_html_is_no_html(arena):
    head = f"{OK}Content-Type: text/html\r\nSet-Cookie: session=stolen\r\nContent-Length: 25\r\n\r\n"
    head += "<script>alert(1)</script>"
    got = _raw(arena, {"head": head}, most=len(head))
    assert b"Set-Cookie: session=stolen" in got
    assert b"text/html" in got
    with arena.http() as http:
        answer = http.post("/v1/endpoints/raw/predict", json={"head": head})
    assert "set-cookie" not in answer.headers
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    ROWS.append(Row("answer with Set-Cookie", "the cookie", "no cookie"))
    ROWS.append(Row("answer with HTML", "text/html", "application/octet-stream, nosniff"))


def test_a_task_that_exits_in_the_middle_says_how(arena):
    with arena.http() as http:
        wait_until(lambda: _is_idle(arena), what="the worker to be back")
        task_id = http.post("/v1/endpoints/raw/tasks", json={"head": "", "then": "exit"}).json()["id"]
        task = http.get(f"/v1/tasks/{task_id}", params={"wait_seconds": 60}).json()
    assert task["status"] == "failed"
    said = json.dumps(task["error"])
    assert "exit code 7" in said, said
    ROWS.append(Row("exit in the middle of a task", "exit code 7", f"failed: {task['error']['message']}"))


def _answer(http, how):
    """Return status and text of a call; a reply that breaks off is cut off."""
    with http.stream("POST", "/v1/endpoints/raw/predict", json=how) as reply:
        size, kept = 0, b""
        try:
            for piece in reply.iter_bytes():
                size += len(piece)
                kept = (kept + piece)[:2000]
        except httpx.RemoteProtocolError:
            return reply.status_code, "cut off"
        if reply.status_code == 200:
            return 200, f"{size} bytes"
        return reply.status_code, json.loads(kept)["error"]["message"]


def _is_idle(arena):
    with contextlib.suppress(OSError, ValueError):
        return b'"state":"ready"' in _control(arena, "GET", "/status").replace(b" ", b"")
    with arena.http() as http:  # it went to zero, or away
        http.post("/v1/endpoints/raw/predict", json={"head": f"{OK}Content-Length: 0\r\n\r\n"})
    return False


def _control(arena, method, path):
    with socket.create_connection((arena.address("raw"), 5006), 30) as asked:
        asked.sendall(f"{method} {path} HTTP/1.1\r\nHost: w\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
        return asked.recv(4096)


def _raw(arena, how, *, most):
    """Call the worker itself, and read what comes, at most so many bytes."""
    wait_until(lambda: _is_idle(arena), what="the worker to be ready", seconds=60)
    body = json.dumps(how).encode()
    head = "POST /predict HTTP/1.1\r\nHost: w\r\nContent-Type: application/json\r\n"
    head += f"{HEADER_REQUEST_ID}: req_raw\r\nContent-Length: {len(body)}\r\n\r\n"
    got = bytearray()
    with socket.create_connection((arena.address("raw"), 5005), timeout=4) as asked:
        asked.sendall(head.encode() + body)
        with contextlib.suppress(OSError):
            while len(got) < max(most, 1) and (piece := asked.recv(2**20)):
                got += piece
    _control(arena, "POST", "/cancel?request_id=req_raw")
    return bytes(got)
