"""The whole platform with workers in containers, as a user meets it: calls, tasks, new versions, zero, kills, ends."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator

import psutil
import pytest

from brinery_platform.runtimes.detached import home_mark
from brinery_platform.runtimes.docker import labels
from containers import cleared, everything_about
from stack import KIT, Stack, wait_until

GREEDY = """
import json
from brinery import endpoint

@endpoint(memory_mib=96)
def greedy(mib: int) -> int:
    return len(bytearray(b"x") * (mib * 2**20))

print(json.dumps(greedy.deploy().name))
"""
NUMBER = """
import json
from brinery import endpoint

@endpoint(idle_seconds={idle})
def number() -> int:
    return {number}

number.deploy()
print(json.dumps(number.remote()))
"""
BROKEN = """
import json
from brinery import endpoint
from brinery.errors import BrineryError

@endpoint(requirements=["no-such-package-brinery-xyz"])
def broken() -> None: ...

try:
    broken.deploy()
except BrineryError as error:
    print(json.dumps(error.message))
"""


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A platform whose workers run as containers, with the kit deployed."""
    stack = Stack(tmp_path_factory.mktemp("docker"))
    stack.environment["BRINERY_RUNTIME"] = "docker"
    (stack.desk / "kit.py").write_text(KIT)
    with cleared(stack.home) as engine:
        stack.engine = engine
        try:
            said = stack.brinery("up", "--detach").stdout
            assert "Workers run as containers" in said
            stack.brinery("deploy", "kit.py")
            yield stack
            stack.brinery("down")
            assert not containers(stack)
        finally:
            stack.kill_everything()


def containers(stack, **wanted):
    whose = {labels.HOME: home_mark(stack.home), labels.KIND: "worker"}
    return [
        facts
        for facts in stack.engine.containers(whose)
        if all(json.loads(facts["Labels"][labels.RUNNING])[name] == value for name, value in wanted.items())
    ]


def controller(stack):
    for process in stack.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "brinery_platform.controller" in process.cmdline():
                return process
    return None


def test_functions_classes_and_pairs_answer_from_containers(boxed):
    with boxed.http() as http:
        assert http.post("/v1/endpoints/add/predict", json={"a": 1, "b": 2}).json() == 3
        assert http.post("/v1/endpoints/counter/predict", json={"x": 1}).json() == 101
        assert http.post("/v1/endpoints/triple/predict", json={"x": 7}).json() == 21
        assert http.get("/v1/info").json()["runtime"] == "docker"
    assert len({facts["Image"] for facts in containers(boxed)}) >= 3
    assert all(facts["Image"].startswith("brinery/bundle:") for facts in containers(boxed))


def test_tasks_and_streams_run_in_containers_and_errors_come_back(boxed):
    with boxed.http() as http:
        task_id = http.post("/v1/endpoints/add/tasks", json={"a": 40, "b": 2}).json()["id"]
        assert http.get(f"/v1/tasks/{task_id}", params={"wait_seconds": 60}).json()["result"] == 42
        streamed = http.post(
            "/v1/endpoints/countdown/predict", json={"start": 2}, headers={"Accept": "text/event-stream"}
        ).text
        assert "data: 2" in streamed
        assert "event: done" in streamed
        failed = http.post("/v1/endpoints/fail/predict", json={"text": "on purpose"}).json()["error"]
        assert failed["context"]["exception_type"] == "LookupError"


def test_what_a_worker_prints_is_in_the_endpoints_log(boxed):
    with boxed.http() as http:
        http.post("/v1/endpoints/add/predict", json={"a": 5, "b": 6})
        assert "adding 5 and 6" in http.get("/v1/endpoints/add/logs").text


def test_what_a_worker_uses_is_shown_live(boxed):
    with boxed.http() as http:
        http.post("/v1/endpoints/add/predict", json={"a": 5, "b": 6}).raise_for_status()
    known = wait_until(
        lambda: [one for one in boxed.endpoint("add")["workers"] if one["cpus_used"] is not None],
        what="what the worker uses",
    )
    assert 5 < known[0]["memory_mib_used"] < 512
    assert known[0]["pids"] > 1


def test_a_new_version_takes_over_and_shares_the_environment(boxed):
    before = {image["Id"] for image in boxed.engine.images({labels.KIND: "environment"})}
    assert boxed.run(NUMBER.format(number=1, idle=300)) == 1
    assert boxed.run(NUMBER.format(number=2, idle=300)) == 2
    with boxed.http() as http:
        assert http.post("/v1/endpoints/number/predict", json={}).json() == 2
    assert {image["Id"] for image in boxed.engine.images({labels.KIND: "environment"})} == before


def test_an_idle_endpoint_goes_to_zero_and_comes_back_on_a_call(boxed):
    assert boxed.run(NUMBER.format(number=3, idle=0.5)) == 3
    endpoint_id = boxed.endpoint("number")["id"]
    wait_until(lambda: not containers(boxed, endpoint_id=endpoint_id), what="number without a container")
    assert boxed.endpoint("number")["status"] == "ready"
    with boxed.http() as http:
        assert http.post("/v1/endpoints/number/predict", json={}).json() == 3


def test_a_controller_killed_with_9_adopts_its_containers(boxed):
    with boxed.http() as http:
        http.post("/v1/endpoints/doze/predict", json={"seconds": 0.0})
        before = {facts["Id"] for facts in containers(boxed, endpoint_id=boxed.endpoint("doze")["id"])}
        killed = controller(boxed)
        log = boxed.home / "logs" / "platform" / "controller.log"
        led = log.read_text().count("controller.leads")
        killed.send_signal(signal.SIGKILL)
        wait_until(lambda: log.read_text().count("controller.leads") > led, what="a new controller to lead")
        http.post("/v1/endpoints/doze/predict", json={"seconds": 0.0}).raise_for_status()
    assert {facts["Id"] for facts in containers(boxed, endpoint_id=boxed.endpoint("doze")["id"])} == before


def test_a_killed_container_is_replaced_and_the_reason_told(boxed):
    with boxed.http() as http:
        http.post("/v1/endpoints/counter/predict", json={"x": 1}).raise_for_status()
        (victim,) = containers(boxed, endpoint_id=boxed.endpoint("counter")["id"])
        boxed.engine.kill(victim["Id"], "SIGKILL")
        wait_until(
            lambda: "killed by signal 9 (SIGKILL)" in http.get("/v1/endpoints/counter/events").text,
            what="the reason in the endpoint's events",
        )
        assert http.post("/v1/endpoints/counter/predict", json={"x": 1}).json() == 101


def test_a_container_killed_at_work_costs_an_attempt_and_not_the_task(boxed):
    with boxed.http() as http:
        http.post("/v1/endpoints/doze/predict", json={"seconds": 0.0}).raise_for_status()
        task_id = http.post("/v1/endpoints/doze/tasks", json={"seconds": 2.0}).json()["id"]
        wait_until(lambda: http.get(f"/v1/tasks/{task_id}").json()["status"] == "running", what="the task to run")
        for victim in containers(boxed, endpoint_id=boxed.endpoint("doze")["id"]):
            boxed.engine.kill(victim["Id"], "SIGKILL")
        task = http.get(f"/v1/tasks/{task_id}", params={"wait_seconds": 60}).json()
        assert (task["status"], task["attempt"]) == ("succeeded", 2)


def test_running_out_of_memory_is_named(boxed):
    assert boxed.run(GREEDY) == "greedy"
    with boxed.http() as http:
        assert http.post("/v1/endpoints/greedy/predict", json={"mib": 1}).json() == 2**20
        task_id = http.post("/v1/endpoints/greedy/tasks", json={"mib": 400}).json()["id"]
        task = http.get(f"/v1/tasks/{task_id}", params={"wait_seconds": 60}).json()
        assert task["status"] == "failed"
        assert "out of memory at 96 MiB" in json.dumps(task["error"])
        assert "out of memory at 96 MiB" in http.get("/v1/endpoints/greedy/logs").text
        assert http.post("/v1/endpoints/greedy/predict", json={"mib": 1}).json() == 2**20


def test_a_build_that_fails_says_why_and_leaves_nothing(boxed):
    whose = {labels.HOME: home_mark(boxed.home)}
    before = {image["Id"] for image in boxed.engine.images(whose)}
    assert "no-such-package-brinery-xyz" in boxed.run(BROKEN)
    assert {image["Id"] for image in boxed.engine.images(whose)} == before
    assert not boxed.engine.containers({**whose, labels.KIND: "build"}, ended_too=True)


def test_no_secret_of_the_platform_is_in_a_container_or_an_image(boxed):
    whose = {labels.HOME: home_mark(boxed.home)}
    secrets = {boxed.key()}
    for process in boxed.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            secrets.add(process.environ().get("BRINERY_REDIS_URL", ""))
    secrets.discard("")
    assert len(secrets) >= 2
    references = [facts["Id"] for facts in [*boxed.engine.containers(whose), *boxed.engine.images(whose)]]
    assert len(references) >= 4
    for reference in references:
        told = everything_about(reference)
        assert not [secret for secret in secrets if secret in told]
        assert "BRINERY_" not in told


def test_without_an_engine_up_says_so_and_what_to_do(other):
    other.environment |= {"BRINERY_RUNTIME": "docker", "DOCKER_HOST": f"unix://{other.home}/none.sock"}
    done = other.brinery("up", check=False)
    assert done.returncode == 1
    said = (
        "The Docker engine does not answer (No such file or directory); start it (in a container: mount its socket), "
    )
    said += "or set BRINERY_RUNTIME=process."
    assert done.stderr.strip() == f"Error: {said}"
    assert not other.processes()
