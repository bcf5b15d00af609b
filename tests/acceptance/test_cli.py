"""The command line: JSON where asked for, one clear line and exit 1 where something is wrong."""

import json
import re
import signal
import socket
import subprocess

import httpx
import pytest

from stack import BRINERY, wait_until


def one_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, text
    return lines[0]


def test_status_and_list_and_describe_speak_json(stack):
    status = stack.json("status")
    assert status["running"]
    assert status["url"] == stack.url
    assert {"gateway", "controller"} <= {process["kind"] for process in status["processes"]}
    listed = stack.json("list")
    assert "add" in [endpoint["name"] for endpoint in listed]
    described = stack.json("describe", "add")
    assert (described["name"], described["status"]) == ("add", "ready")


def test_status_and_describe_tell_what_each_worker_uses(stack):
    assert stack.json("call", "add", "a=1") == 2
    told = r"wrk_\w+ +\d+\.\d\d of 1 CPU, \d+ of \d+ MiB, \d+ threads"
    wait_until(lambda: re.search(told, stack.brinery("describe", "add").stdout), what="the worker's usage")
    wait_until(lambda: re.search(r"\d of 1 CPU", stack.brinery("status").stdout), what="the workers' usage in status")
    (worker,) = stack.json("describe", "add")["workers"]
    assert worker["memory_mib_used"] > 5
    assert worker["pids"] > 1


def test_call_and_submit_take_arguments_and_print_the_result(stack):
    assert stack.json("call", "add", "a=2", "b=3") == 5
    task = stack.json("submit", "add", "a=2")
    with stack.http() as http:
        assert http.get(f"/v1/tasks/{task['id']}", params={"wait_seconds": 30}).json()["result"] == 3


def test_what_user_code_prints_is_in_the_logs(stack):
    stack.json("call", "add", "a=1234567", "b=1")
    wait_until(lambda: "adding 1234567 and 1" in stack.brinery("logs", "add").stdout, what="the print in the logs")


def test_a_users_exception_makes_call_exit_1_with_its_traceback(stack):
    done = stack.brinery("call", "fail", "text=lost", check=False)
    assert done.returncode == 1
    assert "LookupError" in done.stderr
    assert "raise LookupError(text)" in done.stderr


def test_an_unknown_endpoint_is_one_line_and_exit_1(stack):
    done = stack.brinery("call", "nothing", check=False)
    assert done.returncode == 1
    assert "nothing" in one_line(done.stderr)


def test_a_second_up_says_what_runs_and_exits_0(stack):
    done = stack.brinery("up", "--detach")
    assert stack.url in done.stdout
    assert stack.brinery("up").stdout.count(stack.url) == 1


def test_without_a_platform_status_exits_1_and_down_does_no_harm(other):
    assert other.brinery("status", check=False).returncode == 1
    other.brinery("down")
    assert not other.processes()


def test_status_shows_the_platform_that_commands_go_to_where_none_was_started(stack, other):
    elsewhere = {"BRINERY_URL": stack.url, "BRINERY_API_KEY": stack.key()}
    stack.brinery("call", "add", "a=1")  # so that it has a worker
    said = other.brinery("status", **elsewhere).stdout
    assert f"`brinery up` runs nothing here; the platform at {stack.url} answers." in said
    assert re.search(r"^ ?wrk_\w+ +add +\d+\.\d\d of ", said, re.MULTILINE)
    assert re.search(r"^ ?add +ready +1 +1", said, re.MULTILINE)
    found = json.loads(other.brinery("status", "--json", **elsewhere).stdout)
    assert (found["running"], found["url"], found["pid"]) == (True, stack.url, None)
    wrong = other.brinery("status", BRINERY_URL=stack.url, BRINERY_API_KEY="brn_wrong", check=False)
    assert wrong.returncode == 1
    assert "API key" in one_line(wrong.stderr)


def test_without_a_platform_a_call_says_how_to_start_one(other):
    done = other.brinery("call", "add", "a=1", check=False)
    assert done.returncode == 1
    assert "brinery up" in one_line(done.stderr)


def test_a_taken_port_is_one_line_and_exit_1(other):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = other.brinery("up", "--detach", "--port", port, check=False)
    assert done.returncode == 1
    assert port in one_line(done.stderr)
    assert not other.processes()


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ([], "BRINERY_PORT", "banana"),
        ([], "BRINERY_RUNTIME", "quantum"),
        ([], "BRINERY_DATABASE_URL", "nonsense"),
        ([], "BRINERY_OBJECTS_URL", "ftp://somewhere"),
        ([], "BRINERY_REDIS_URL", "redis://127.0.0.1:1/0"),
        (["--detach"], "BRINERY_REDIS_URL", "redis://127.0.0.1:1/0"),
    ],
)
def test_a_setting_that_is_wrong_or_leads_nowhere_is_named_in_one_line(other, arguments, name, value):
    done = other.brinery("up", *arguments, check=False, **{name: value})
    assert done.returncode == 1
    assert name in one_line(done.stderr)
    assert not other.processes()


def test_ctrl_c_stops_a_foreground_platform_and_everything_it_started(other):
    with (other.desk / "up.log").open("w") as log:
        up = subprocess.Popen([BRINERY, "up"], env=other.environment, stdout=log, stderr=log, start_new_session=True)

    def ready():
        assert up.poll() is None, (other.desk / "up.log").read_text()
        try:
            return httpx.get(f"{other.url}/readyz", trust_env=False).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    wait_until(ready, what="the platform to be ready")
    up.send_signal(signal.SIGINT)
    assert up.wait(timeout=60) == 0
    assert not other.processes()
