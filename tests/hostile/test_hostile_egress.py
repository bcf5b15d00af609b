"""An endpoint whose egress is a list of hosts: what its workers reach, by which way, and what outlives what."""

import json
import signal

import psutil
from hostile_arena import ARSENAL, METADATA, bridge, metadata_service
from hostile_table import ROWS, Row

from stack import wait_until

HERE = "here is what was listed"


def ask(arena, host, port, *, tunnel=True, permit=""):
    call = f"through_proxy({host!r}, {port}, tunnel={tunnel}, permit={permit!r})"
    answer = arena.call("listed", code=ARSENAL, call=call)
    return answer.get("got") or answer.get("stopped") or answer["error"]["message"]


def processes(arena, module):
    found = []
    for process in arena.processes():
        try:
            if module in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_what_is_listed_is_reached_and_nothing_else(arena):
    port = arena.listed.port
    assert HERE in ask(arena, "localhost", port)
    assert HERE in ask(arena, "localhost", port, tunnel=False)
    got = arena.control(f"reach({arena.host!r}, {arena.port}, 'GET /healthz HTTP/1.0\\r\\n\\r\\n')")
    refused = ask(arena, arena.host, arena.port)
    assert "is not in the egress list of this endpoint" in refused
    ROWS.append(Row("reach a host that is not listed", got, refused))
    assert "elsewhere.example:443 is not in the egress list" in ask(arena, "elsewhere.example", 443)
    for other in (arena.port, port + 1 if port < 65535 else 1):
        assert "not in the egress list" in ask(arena, "localhost", other)
    assert "407" in ask(arena, "localhost", port, permit="W10:forged")
    assert "has no address" in ask(arena, "name.invalid", 80)


def test_there_is_no_way_around_the_proxy(arena):
    with metadata_service([arena.bridge, bridge(arena.network("listed"))]):
        call = f"reach({METADATA!r}, 80)"
        ROWS.append(Row("go around the proxy", arena.control(call), arena.attempt(call, "listed")))
    assert "resolution" in arena.attempt("socket.gethostbyname('localhost.invalid')", "listed")
    port = arena.listed.port
    assert "refused" in arena.attempt(f"reach({arena.host!r}, {port})", "listed")


def test_a_proxy_killed_with_9_comes_back_for_the_workers_that_run(arena):
    (killed,) = processes(arena, "brinery_platform.egress")
    worker = arena.worker("listed")["Id"]
    killed.send_signal(signal.SIGKILL)
    wait_until(lambda: HERE in ask(arena, "localhost", arena.listed.port), what="the proxy to be back", seconds=60)
    assert arena.worker("listed")["Id"] == worker
    assert [one for one in json.loads(arena.brinery("status", "--json").stdout)["processes"] if one["id"] == "egress"]


def test_the_proxy_outlives_the_controller_and_the_next_one_keeps_it(arena):
    (proxy,) = processes(arena, "brinery_platform.egress")
    (controller,) = processes(arena, "brinery_platform.controller")
    log = arena.home / "logs" / "platform" / "controller.log"
    led = log.read_text().count("controller.leads")
    controller.send_signal(signal.SIGKILL)
    assert HERE in ask(arena, "localhost", arena.listed.port)
    wait_until(lambda: log.read_text().count("controller.leads") > led, what="a new controller", seconds=60)
    assert [one.pid for one in processes(arena, "brinery_platform.egress")] == [proxy.pid]
    proxy.send_signal(signal.SIGKILL)
    wait_until(lambda: HERE in ask(arena, "localhost", arena.listed.port), what="the proxy to be back", seconds=60)


def test_refusals_are_in_the_proxys_log_and_do_not_fill_it(arena):
    for _ in range(3):
        arena.call("listed", code=ARSENAL + BURST, call="burst()")
    log = (arena.home / "logs" / "platform" / "egress.log").read_text()
    lines = [line for line in log.splitlines() if "burst.example" in line]
    assert arena.endpoint("listed")["id"] in lines[0]
    assert 1 <= len(lines) <= 60  # 20 a minute, and the minute may change twice


BURST = """

def burst():
    for number in range(100):
        try:
            through_proxy("burst.example", 443, tunnel=True)
        except OSError:
            pass
"""
