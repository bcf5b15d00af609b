"""The stack of ``compose/`` for real: what users do, what is broken under them, what is left, what is open to whom."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from compose_load import CODE, FUNCTION, Load
from compose_stack import REPOSITORY, SERVICES, docker

from containers import processes_of
from stack import wait_until
from standing_stack import KEY_VARIABLE, MARK_VARIABLE, URL_VARIABLE

ACCEPTANCE = ("test_calling.py", "test_deploying.py", "test_tasks_cli.py")
"""Those that are about using a platform; the others are about `brinery up`."""
SOCKET = "docker.sock"
BRIEF = """
from brinery import endpoint


@endpoint(idle_seconds=0.5)
def brief() -> int:
    return 1
"""

pytestmark = pytest.mark.timeout(900)  # the first one builds the images, too


@pytest.fixture(scope="module")
def counted(compose):
    """The endpoint that the load is put on."""
    (compose.desk / "counted.py").write_text(CODE)
    compose.brinery("deploy", "counted.py")
    return compose


def test_the_acceptance_tests_pass_through_the_published_port(compose, tmp_path):
    names = {URL_VARIABLE: compose.url, KEY_VARIABLE: compose.key(), MARK_VARIABLE: compose.mark}
    tests = [str(REPOSITORY / "tests" / "acceptance" / name) for name in ACCEPTANCE]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'run'}", *tests],
        env=os.environ | names,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    assert re.search(r"\b[3-9]\d passed", done.stdout), done.stdout[-500:]


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_is_restarted_under_load_and_nothing_is_lost(counted, service):
    counted.healthy()
    before = counted.inspect(service)["State"]["StartedAt"]
    workers = counted.containers(kind="worker")
    with Load(counted) as load:
        counted.restart(service)
        load.more(20)
    load.assert_nothing_lost()
    assert counted.inspect(service)["State"]["StartedAt"] != before
    assert set(workers) <= set(counted.containers(kind="worker")), "the workers go on"
    if service != "gateway":
        assert not load.unanswered, "calls need none of the others"


@pytest.mark.parametrize("service", ["gateway", "controller"])
def test_a_process_of_the_platform_is_killed_under_load_and_comes_back_by_itself(counted, service):
    counted.healthy()
    before = counted.inspect(service)["State"]["StartedAt"]
    with Load(counted) as load:
        counted.kill(service)
        wait_until(lambda: counted.inspect(service)["State"]["StartedAt"] != before, what=f"the {service} to be back")
        load.more(20)
    load.assert_nothing_lost()
    if service != "gateway":
        assert not load.unanswered


def test_a_killed_forwarder_is_replaced_under_load(counted):
    endpoint_id = counted.endpoint(FUNCTION)["id"]

    def forwarders():
        found = []
        for name in counted.containers(kind="platform", ended_too=False):
            facts = json.loads(docker("inspect", name, check=False) or "[]")
            if facts and endpoint_id in facts[0]["Config"]["Labels"]["brinery.running"]:
                found.append(facts[0])
        return found

    with Load(counted) as load:
        victim = wait_until(forwarders, what="a forwarder")[0]
        for process in processes_of(victim["Id"]):
            process.kill()
        load.more(20)
        wait_until(
            lambda: [one for one in forwarders() if one["Id"] != victim["Id"]], seconds=60, what="another forwarder"
        )
    load.assert_nothing_lost()
    assert not load.unanswered


def test_every_query_of_the_dashboard_has_an_answer(counted):
    """From the Prometheus of the stack, which has seen calls, failures, cold starts, tasks and a webhook."""
    board = json.loads((REPOSITORY / "compose" / "grafana" / "boards" / "brinery.json").read_text())
    queries = {target["expr"] for panel in board["panels"] for target in panel["targets"]}
    assert len(queries) > 20
    (counted.desk / "brief.py").write_text(BRIEF)
    counted.brinery("deploy", "brief.py")
    wait_until(lambda: not counted.endpoint("brief")["workers"], what="its worker to be idle for too long")
    with counted.http() as http:
        assert http.post("/v1/endpoints/brief/predict", json={}).json() == 1, "from zero"
        http.post("/v1/endpoints/fail/predict", json={"text": "x"})
        hook = {"X-Brinery-Webhook": f"{counted.url}/healthz"}
        task = http.post("/v1/endpoints/add/tasks", json={"a": 1}, headers=hook)
        assert task.status_code == httpx.codes.ACCEPTED, task.text
    prometheus = f"http://127.0.0.1:{counted.ports['PROMETHEUS']}/api/v1/query"

    def silent(query):
        asked = query.replace("$__rate_interval", "5m").replace("$endpoint", ".*")
        reply = httpx.get(prometheus, params={"query": asked}, timeout=10, trust_env=False)
        assert reply.status_code == httpx.codes.OK, f"{query}: {reply.text}"
        return not reply.json()["data"]["result"]

    deadline = time.monotonic() + 60
    while (queries := {query for query in queries if silent(query)}) and time.monotonic() < deadline:
        time.sleep(1)
    assert not queries, "these have no answer"
    reply = httpx.get(prometheus, params={"query": 'up{job="gateway"}'}, timeout=10, trust_env=False).json()
    assert [one["value"][1] for one in reply["data"]["result"]] == ["1"]


def test_nothing_listens_on_more_than_loopback(compose):
    """Nothing of the machine's network; what listens in a network of its own is published on loopback alone."""
    of_the_host = [compose.inspect(name) for name in SERVICES]
    of_the_host += [
        json.loads(docker("inspect", name))[0] for name in compose.containers(kind="platform", ended_too=False)
    ]
    looked_at = 0
    for facts in of_the_host:
        for bindings in (facts["NetworkSettings"]["Ports"] or {}).values():
            assert {binding["HostIp"] for binding in bindings or []} <= {"127.0.0.1"}
        if facts["HostConfig"]["NetworkMode"] == "host":
            for process in processes_of(facts["Id"]):
                for socket in process.net_connections(kind="inet"):
                    if socket.status == psutil.CONN_LISTEN or not (socket.raddr or socket.type == 1):
                        looked_at += 1
                        assert socket.laddr.ip in {"127.0.0.1", "::1"}, f"{facts['Name']}: {socket}"
    assert looked_at >= 3, "gateway, desk and Prometheus listen"


def test_the_socket_is_in_the_controller_alone_and_rights_are_few(compose):
    ours = {name: compose.inspect(name) for name in (*SERVICES, "setup")}
    ours |= {name: json.loads(docker("inspect", name))[0] for name in compose.containers(ended_too=False)}
    assert len(ours) > len(SERVICES) + 2, "workers and forwarders run as well"
    with_socket = [name for name, facts in ours.items() if any(SOCKET in mount["Source"] for mount in facts["Mounts"])]
    assert with_socket == ["controller"]
    for name, facts in ours.items():
        assert facts["Config"]["User"].partition(":")[0] not in {"", "0", "root"}, name
        assert facts["HostConfig"]["CapDrop"] == ["ALL"], name
        assert "no-new-privileges" in facts["HostConfig"]["SecurityOpt"][0], name
        assert facts["HostConfig"]["ReadonlyRootfs"], name
        assert not facts["HostConfig"]["Privileged"], name
        assert facts["HostConfig"]["LogConfig"]["Config"]["max-size"], name
    workers = [facts for name, facts in ours.items() if "-wrk_" in name]
    passwords = _passwords(compose)
    assert workers
    assert not [text for text in passwords if text in json.dumps(workers)], "no secret of the platform is at a worker"


def test_no_secret_is_in_an_image(compose):
    told = ""
    ids = set(docker("image", "ls", "-q", "--no-trunc", "--filter", f"label=brinery.home={compose.mark}").split())
    for image in [*compose.images.values(), *ids]:
        told += docker("image", "inspect", image) + docker("history", "--no-trunc", image)
    assert len(ids) >= 3, "base, environment, bundles"
    secret = [*_passwords(compose), *re.findall(r"//[^/@\s]+:([^/@\s]+)@", os.environ.get("PIP_INDEX_URL", ""))]
    assert not [text for text in secret if text in told]
    assert not re.search(r"https?://[^/\s\"]+:[^/\s\"]+@", told), "the address of an index with its password"


def test_endpoints_results_and_keys_survive_down_and_up_and_down_leaves_no_container(counted):
    with counted.http() as http:
        key = http.post("/v1/keys", json={"owner": "ann", "name": "laptop"}).raise_for_status().json()["key"]
        task = http.post(f"/v1/endpoints/{FUNCTION}/tasks", json={"number": 7, "size": 200_000}).json()
        done = http.get(f"/v1/tasks/{task['id']}", params={"wait_seconds": 60}).json()
        assert done["status"] == "succeeded"
        waiting = [
            http.post(f"/v1/endpoints/{FUNCTION}/tasks", json={"number": number, "seconds": 0.2}).json()["id"]
            for number in range(40)
        ]
    assert counted.containers(kind="worker")
    assert counted.containers(kind="platform")
    counted.down()
    label = f"label=com.docker.compose.project={counted.project}"
    assert not docker("ps", "-aq", "--filter", label)
    assert not counted.containers(), "workers and forwarders end with the stack"
    counted.up()
    with counted.http() as http:
        assert http.post("/v1/endpoints/add/predict", json={"a": 2, "b": 3}).json() == 5
        assert len(http.get(f"/v1/tasks/{task['id']}/result").raise_for_status().json()["filling"]) == 200_000
        for task_id in waiting:
            ended = wait_until(
                lambda: _final(http.get(f"/v1/tasks/{task_id}", params={"wait_seconds": 10}).json()),  # noqa: B023 - called in this turn
                seconds=90,
                what=f"{task_id} to end",
            )
            assert ended["status"] == "succeeded"
        assert http.get("/v1/info", headers={"Authorization": f"Bearer {key}"}).status_code == httpx.codes.OK


@pytest.mark.parametrize(
    "name", ["POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_SECRET_KEY", "BRINERY_ADMIN_KEY", "GRAFANA_PASSWORD"]
)
def test_an_empty_password_stops_the_start_and_says_what_to_do(compose, name, tmp_path):
    text = re.sub(rf"^{name}=.*$", f"{name}=", compose.settings.read_text(), flags=re.MULTILINE)
    settings = Path(tmp_path, "env")
    settings.write_text(text)
    kept, compose.settings = compose.settings, settings
    try:
        said = compose.script("config", check=False)
    finally:
        compose.settings = kept
    assert f"{name}" in said
    assert "run compose/make-env" in said
    assert len(said.splitlines()) < 4


def _final(task):
    return task if task["finished_at"] else None


def _passwords(stack):
    names = [name for name in stack.variables if re.search(r"PASSWORD|SECRET|ADMIN_KEY", name)]
    assert len(names) >= 5
    return [stack.variables[name] for name in names]
