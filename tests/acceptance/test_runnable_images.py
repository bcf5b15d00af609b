"""Images that serve by themselves, as a user meets them: by SDK, CLI and plain HTTP, with all that can go wrong."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from brinery_platform.runtimes.detached import home_mark
from brinery_platform.runtimes.docker import labels
from containers import cleared, docker
from own_images import base_image, build
from stack import Stack, wait_until

TMP, SHM = "/tmp", "/dev/shm"  # noqa: S108 - a container's own
ROUTES = 'predict_route="/answer", ready_route="/ready", stream_route="/events"'
DEPLOY = """
import json
from brinery import BrineryError, Image

try:
    deployed = Image({image!r}, {more}).deploy({settings})
    print(json.dumps({{"version": deployed.version, "status": deployed.status}}))
except BrineryError as error:
    print(json.dumps({{"error": error.message}}))
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A platform whose workers run as containers, and an image ``mark:1`` that is deployed as ``served``."""
    stack = Stack(tmp_path_factory.mktemp("images"))
    stack.environment["BRINERY_RUNTIME"] = "docker"
    stack.folder = stack.home.parent
    stack.environment["BRINERY_HOST_VOLUMES"] = str(stack.folder / "shared")
    with cleared(stack.home) as engine:
        stack.engine = engine
        stack.repository = f"brinery-test-{home_mark(stack.home)}"
        stack.base = base_image(stack.home)
        build(f"{stack.repository}/server:1", stack.folder / "context", stack.base, "ENV VERSION=1")
        stack.image = f"{stack.repository}/server:1"
        try:
            stack.brinery("up", "--detach")
            assert deploy(stack, settings='name="served", concurrency=4, timeout_seconds=60')["version"] == 1
            yield stack
            stack.brinery("down")
            assert not containers(stack)
        finally:
            stack.kill_everything()
            for image in engine.ask(lambda client: client.images(name=f"{stack.repository}/*")):
                for name in image["RepoTags"]:
                    engine.remove_image(name)


def deploy(box, image="", more=ROUTES, settings=""):
    return box.run(DEPLOY.format(image=image or box.image, more=more, settings=settings))


def containers(box, name=""):
    whose = {labels.HOME: home_mark(box.home), labels.KIND: "worker"}
    found = box.engine.containers(whose)
    if not name:
        return found
    endpoint_id = box.endpoint(name)["id"]
    return [one for one in found if json.loads(one["Labels"][labels.RUNNING])["endpoint_id"] == endpoint_id]


def call(box, name="served", **order):
    with box.http() as http:
        return http.post(f"/v1/endpoints/{name}/predict", json=order)


def finished(box, name="served", headers=None, **order):
    with box.http() as http:
        task_id = http.post(f"/v1/endpoints/{name}/tasks", json=order, headers=headers).raise_for_status().json()["id"]
        task = http.get(f"/v1/tasks/{task_id}", params={"wait_seconds": 60}).json()
        return task, http.get(f"/v1/tasks/{task_id}/attempts").json()["attempts"]


def events(box, name="served"):
    with box.http() as http:
        return http.get(f"/v1/endpoints/{name}/events").text


def test_calls_tasks_and_logs_work_as_with_functions(box):
    assert call(box, x=1).json()["got"] == {"x": 1}
    script = 'import json; from brinery import Endpoint; e = Endpoint.from_name("served")\n'
    script += 'print(json.dumps([e.remote(x=2)["got"], e.submit(x=3).get()["got"], [r["got"]["x"] for r in e.starmap('
    script += '[{"x": 4}, {"x": 5}])]]))'
    assert box.run(script) == [{"x": 2}, {"x": 3}, [4, 5]]
    with box.http() as http:
        assert "asked to echo" in http.get("/v1/endpoints/served/logs").text


def test_describe_shows_what_is_run(box):
    image = box.json("describe", "served")["image"]
    assert (image["reference"], image["predict_route"], image["stream_route"]) == (box.image, "/answer", "/events")
    assert image["resolved"].startswith("sha256:")
    shown = box.brinery("describe", "served").stdout
    assert re.search(rf"image resolved +{image['resolved']}", shown)
    assert "image command" not in shown, "the image's own"


def test_streams_go_to_the_stream_route(box):
    with box.http() as http:
        reply = http.post("/v1/endpoints/served/predict", json={"count": 2}, headers={"Accept": "text/event-stream"})
    assert reply.headers["content-type"] == "text/event-stream"
    assert '"number": 1, "accept": "text/event-stream"' in reply.text
    script = "import json; from brinery import Endpoint\n"
    script += 'print(json.dumps([one["number"] for one in Endpoint.from_name("served").stream(count=3)]))'
    assert box.run(script) == [0, 1, 2]


def test_an_image_runs_in_the_sandbox_of_a_worker(box):
    found = call(box, do="try", folders=[TMP, SHM, "/srv", "/etc"]).json()
    assert (found["uid"], found["gid"], found["shm_mib"]) == (65534, 65534, 64)  # the image itself says nothing: root
    assert (found[TMP], found[SHM]) == ("written", "written")
    assert found["/srv"] == found["/etc"] == "Read-only file system"
    (container,) = containers(box, "served")
    host = box.engine.inspect(container["Id"])["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Memory"] == host["MemorySwap"] == 2048 * 2**20
    assert host["PidsLimit"] == 1024
    assert not host["PortBindings"]


def test_html_and_errors_come_back_as_the_image_says_them(box):
    page = call(box, do="html")
    assert (page.status_code, page.headers["content-type"]) == (200, "application/octet-stream")
    wrong = call(box, do="wrong")
    assert (wrong.status_code, wrong.json()) == (400, {"detail": "that is wrong"})
    said = box.brinery("call", "served", "do=wrong", check=False)
    assert said.returncode == 1
    assert 'The worker answered with status 400: {"detail": "that is wrong"}' in said.stderr
    task, _ = finished(box, do="wrong")
    assert task["status"] == "failed"
    assert "status 400" in task["error"]["message"]
    assert "that is wrong" in task["error"]["message"]


@pytest.mark.parametrize("status", [429, 503])
def test_an_image_that_is_busy_is_asked_again_and_no_attempt_is_lost(box, status):
    assert call(box, do="busy", times=2, status=status).json() == {"refusals": 2}
    task, attempts = finished(box, do="busy", times=2, status=status)
    assert (task["status"], task["attempt"], attempts) == ("succeeded", 1, [])


def test_a_call_past_its_time_is_stopped_by_replacing_the_worker(box):
    before = {one["Id"] for one in containers(box, "served")}
    with box.http() as http:
        order = {"do": "sleep", "seconds": 50}
        late = http.post("/v1/endpoints/served/predict", json=order, headers={"X-Brinery-Timeout-Seconds": "1"})
    assert late.status_code == 504
    wait_until(lambda: not before & {one["Id"] for one in containers(box, "served")}, what="the worker to be gone")
    assert "is replaced: nobody waits any more for call" in events(box)
    assert call(box, x=1).status_code == 200


def test_an_image_that_stops_calls_by_itself_is_left_alone(box):
    more = 'predict_route="/answer", ready_route="/ready", on_cancel="disconnect"'
    deploy(box, more=more, settings='name="patient", concurrency=2, timeout_seconds=1')
    before = {one["Id"] for one in containers(box, "patient")}
    assert call(box, "patient", do="sleep", seconds=20).status_code == 504
    task, _ = finished(box, "patient", headers={"X-Brinery-Max-Attempts": "1"}, do="sleep", seconds=20)
    assert (task["status"], task["error"]["type"]) == ("failed", "upstream_timeout")
    assert call(box, "patient", x=1).status_code == 200
    assert {one["Id"] for one in containers(box, "patient")} == before
    with box.http() as http:
        reply = http.post("/v1/endpoints/patient/predict", json={}, headers={"Accept": "text/event-stream"})
    assert reply.status_code == 422
    assert "has no stream route" in reply.json()["error"]["message"]


def test_a_task_past_its_time_is_tried_again_and_its_neighbours_are_spared(box):
    with box.http() as http:
        call(box, x=1).raise_for_status()
        neighbour = http.post("/v1/endpoints/served/tasks", json={"do": "sleep", "seconds": 4}).json()["id"]
        running = lambda: http.get(f"/v1/tasks/{neighbour}").json()["status"] == "running"  # noqa: E731 - said once
        wait_until(running, what="the neighbour to run")
        headers = {"X-Brinery-Timeout-Seconds": "1", "X-Brinery-Max-Attempts": "1"}
        late, attempts = finished(box, headers=headers, do="sleep", seconds=50)
        assert (late["status"], late["error"]["type"], len(attempts)) == ("failed", "upstream_timeout", 1)
        task = http.get(f"/v1/tasks/{neighbour}", params={"wait_seconds": 60}).json()
        assert task["status"] == "succeeded"
        spared = http.get(f"/v1/tasks/{neighbour}/attempts").json()["attempts"]
        assert [(one["reason"], one["charge"]) for one in spared] == [("neighbour", "spared")]


def test_a_cancelled_task_is_stopped(box):
    with box.http() as http:
        call(box, x=1).raise_for_status()
        before = {one["Id"] for one in containers(box, "served")}
        task_id = http.post("/v1/endpoints/served/tasks", json={"do": "sleep", "seconds": 50}).json()["id"]
        wait_until(lambda: http.get(f"/v1/tasks/{task_id}").json()["status"] == "running", what="the task to run")
        http.delete(f"/v1/tasks/{task_id}").raise_for_status()
        task = http.get(f"/v1/tasks/{task_id}", params={"wait_seconds": 30}).json()
        assert task["status"] == "cancelled"
        wait_until(lambda: not before & {one["Id"] for one in containers(box, "served")}, what="its worker to be gone")


def test_an_exit_is_named_and_costs_an_attempt(box):
    task, attempts = finished(box, headers={"X-Brinery-Max-Attempts": "1"}, do="exit", code=7)
    assert task["status"] == "failed"
    assert "exit code 7" in task["error"]["message"]
    assert "asked to exit" in attempts[0]["log_tail"]
    assert "exit code 7" in events(box)
    assert call(box, x=1).status_code == 200


def test_running_out_of_memory_is_named(box):
    deploy(box, settings='name="small", memory_mib=64')
    task, _ = finished(box, "small", headers={"X-Brinery-Max-Attempts": "1"}, do="eat", mib=200)
    assert task["status"] == "failed"
    assert "out of memory at 64 MiB" in task["error"]["message"]
    called = call(box, "small", do="eat", mib=200)
    assert (called.status_code, called.json()["error"]["type"]) == (502, "worker")
    assert "killed: out of memory at 64 MiB" in called.json()["error"]["message"]
    assert call(box, "small", do="eat", mib=1).json() == {"eaten": 2**20}


@pytest.mark.parametrize(
    ("image", "more", "settings", "said"),
    [
        ("127.0.0.1:1/none:1", ROUTES, "", "none:1 is not in this platform's Docker engine and cannot be fetched"),
        ("", "", "startup_timeout_seconds=2", "was not ready after 2 s: GET /readyz answers 404"),
        ("", f'{ROUTES}, port=81, command=["sleep", "60"]', "startup_timeout_seconds=2", "port 81 takes no connection"),
        ("", f'{ROUTES}, command=["/no/such/program"]', "", "/no/such/program"),
        ("", f'{ROUTES}, user="nobody-knows"', "", "The image knows no user 'nobody-knows'"),
        ("", f'{ROUTES}, volumes=["/etc:/data"]', "", "BRINERY_HOST_VOLUMES does not allow"),
    ],
    ids=["no image", "wrong route", "never ready", "no program", "no user", "host folder"],
)
def test_what_cannot_work_fails_the_deployment_with_one_clear_error(box, image, more, settings, said):
    failed = deploy(box, image, more, f'name="wrong", {settings}')
    assert said in failed["error"]
    with box.http() as http:
        assert http.get("/v1/endpoints/wrong").json()["status"] == "failed"
        http.delete("/v1/endpoints/wrong").raise_for_status()
        wait_until(lambda: http.get("/v1/endpoints/wrong").status_code == 404, what="the endpoint to be gone")


def test_a_version_keeps_its_image_whatever_its_tag_means_later(box):
    tag = f"{box.repository}/moving:1"
    build(tag, box.folder / "first", box.base, "ENV VERSION=first")
    assert deploy(box, tag, settings='name="moving"')["version"] == 1
    build(tag, box.folder / "second", box.base, "ENV VERSION=second")
    assert call(box, "moving").json()["version"] == "first"
    assert deploy(box, tag, settings='name="moving"')["version"] == 2
    assert call(box, "moving").json()["version"] == "second"
    docker("rmi", tag)
    box.brinery("images", "prune")  # what versions have is kept
    with box.http() as http:
        http.post("/v1/endpoints/moving/rollback", json={"version": 1}).raise_for_status()
        wait_until(lambda: http.get("/v1/endpoints/moving").json()["serving_version"] == 3, what="version 3 to serve")
    assert call(box, "moving").json()["version"] == "first"


def test_a_digest_again_is_no_new_version(box):
    image_id = box.engine.image(box.image)["Id"]
    settings = 'name="fixed"'
    assert deploy(box, image_id, settings=settings) == deploy(box, image_id, settings=settings)
    assert box.endpoint("fixed")["wanted_version"] == 1


def test_an_idle_image_goes_to_zero_and_a_call_is_held_for_it(box):
    deploy(box, settings='name="idle", idle_seconds=0.5')
    wait_until(lambda: not containers(box, "idle"), what="no container")
    assert call(box, "idle", x=1).json()["got"] == {"x": 1}


def test_a_controller_killed_with_9_adopts_images(box):
    call(box, x=1).raise_for_status()
    before = {one["Id"] for one in containers(box, "served")}
    log = box.home / "logs" / "platform" / "controller.log"
    led = log.read_text().count("controller.leads")
    for process in box.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "brinery_platform.controller" in process.cmdline():
                process.send_signal(signal.SIGKILL)
    wait_until(lambda: log.read_text().count("controller.leads") > led, what="a new controller to lead")
    assert call(box, x=2).json()["got"] == {"x": 2}
    assert {one["Id"] for one in containers(box, "served")} == before


def test_volumes_outlive_versions_and_belong_to_their_owner(box):
    (box.folder / "shared" / "models").mkdir(parents=True)
    (box.folder / "shared" / "models" / "a.txt").write_text("of the host")
    volumes = f'volumes=["data:/data", "{box.folder}/shared/models:/models:ro"]'
    more = f'{ROUTES}, {volumes}, scratch=["/var/cache"], shm_mib=32, user="1234:1235"'
    deploy(box, more=more, settings='name="keeps"')
    found = call(box, "keeps", do="try", folders=["/data", "/models", "/var/cache"], file="b", text="kept").json()
    assert (found["uid"], found["gid"], found["shm_mib"]) == (1234, 1235, 32)
    assert (found["/data"], found["/var/cache"]) == ("written", "written")
    assert found["/models"] == "Read-only file system"
    deploy(box, more=more, settings='name="keeps"')
    assert call(box, "keeps", do="read", file="/data/b").json() == {"text": "kept"}
    assert call(box, "keeps", do="read", file="/models/a.txt").json() == {"text": "of the host"}
    (volume,) = box.json("volumes", "list")
    assert volume["name"] == "data"
    used = box.brinery("volumes", "remove", "data", check=False)
    assert used.returncode == 1
    assert "Volume 'data' is in use: workers of an endpoint have it" in used.stderr
    box.brinery("delete", "keeps", "--yes")
    wait_until(lambda: not has(box, "keeps"), what="the endpoint to be gone")
    assert len(box.json("volumes", "list")) == 1  # its data is still there
    box.brinery("volumes", "remove", "data")
    assert box.json("volumes", "list") == []


def has(box, name):
    with box.http() as http:
        return http.get(f"/v1/endpoints/{name}").status_code == 200


def test_the_command_line_deploys_an_image_with_everything_overridden(box):
    image = f"{box.repository}/other:1"
    build(image, box.folder / "other", box.base, 'VOLUME ["/var/own"]', "USER 4321")
    arguments = ["--image", image, "--name", "by-hand", "--port", "8081", "--env", "READY=/up", "--ready-route", "/up"]
    arguments += ["--predict-route", "/answer", "--command", "python3 /srv/server.py 'a b'", "--setting", "cpus=0.5"]
    (deployed,) = box.json("deploy", *arguments)
    assert (deployed["name"], deployed["status"]) == ("by-hand", "ready")
    done = box.brinery("call", "by-hand", "x=1", "--json")
    assert json.loads(done.stdout)["argv"] == ["a b"]
    found = call(box, "by-hand", do="try", folders=["/var/own"]).json()
    assert (found["uid"], found["/var/own"]) == (4321, "written")
    (container,) = containers(box, "by-hand")
    assert not [mount for mount in box.engine.inspect(container["Id"])["Mounts"] if mount["Type"] == "volume"]


def test_the_example_is_built_and_deployed_as_it_says(box):
    image, folder = f"{box.repository}/shout", Path(__file__).parent.parent.parent / "examples" / "image"
    docker("build", "--quiet", "--build-arg", f"BASE={box.base}", "--tag", image, str(folder))
    box.brinery("deploy", "--image", image, "--predict-route", "/shout", "--stream-route", "/spell")
    assert json.loads(box.brinery("call", "shout", "text=hello", "--json").stdout) == {"text": "HELLO"}
    assert box.brinery("call", "shout", "text=hey", "--stream").stdout.split() == ['"h"', '"e"', '"y"']
    (kept,) = [name for name in names(box) if box.engine.image(image)["Id"][7:39] in name]
    box.brinery("delete", "shout", "--yes")
    wait_until(lambda: not has(box, "shout"), what="the endpoint to be gone")
    assert kept in box.brinery("images", "prune").stdout
    assert kept not in names(box)
    assert box.engine.image(image) is not None


def names(box):
    """The names of ours that images of users have."""
    found = box.engine.ask(lambda client: client.images(name="brinery/image"))
    return {name for image in found for name in image["RepoTags"]}
