"""Gateway and controller started alone, as in containers, with forwarders in containers of the platform's image."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest

from brinery_platform.runtimes.detached import home_mark
from brinery_platform.runtimes.docker import labels
from containers import cleared, everything_about, processes_of
from platform_image import platform_image
from servers import S3_KEYS, ValkeyProcess, rclone_s3
from stack import Stack, free_port, wait_until

CODE = """
import time
from brinery import endpoint

@endpoint
def talk(text: str, seconds: float = 0.0) -> str:
    print("said", text)
    time.sleep(seconds)
    if text == "fail":
        raise LookupError(text)
    return text
"""


class Alone(Stack):
    """Services, `brinery setup`, and the two processes with nothing but settings."""

    def __init__(self, folder, engine):
        super().__init__(folder)
        self.engine = engine
        self.desk_port = free_port()

    def start(self, name):
        """Start a process that is not a child of the test's, so that one test may start it and another one end it."""
        for left in (self.desk / f"{name}.pid", self.desk / f"{name}.exit"):
            left.unlink(missing_ok=True)
        run = f"{sys.executable} -m brinery_platform.{name} & echo $! >{name}.pid; wait $!; echo $? >{name}.exit"
        subprocess.run(["sh", "-c", f"({run}) >>{name}.log 2>&1 &"], env=self.environment, cwd=self.desk, check=True)
        self.number(f"{name}.pid")

    def end(self, name, number=signal.SIGTERM):
        os.kill(self.number(f"{name}.pid"), number)
        return self.number(f"{name}.exit")

    def number(self, file):
        wait_until(lambda: (self.desk / file).exists() and (self.desk / file).read_text(), seconds=120, what=file)
        return int((self.desk / file).read_text())

    def healthy(self, port, path="/readyz"):
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=30).status_code == 200
        return False

    def wait_ready(self):
        wait_until(lambda: self.healthy(self.desk_port), what="a controller that leads")
        wait_until(lambda: self.healthy(self.port), what="the gateway to be ready")

    def containers(self, kind):
        return {facts["Id"] for facts in self.engine.containers({labels.HOME: home_mark(self.home), labels.KIND: kind})}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    folder = tmp_path_factory.mktemp("alone")
    for name in ("valkey", "s3"):
        (folder / name).mkdir()
    valkey = ValkeyProcess(folder / "valkey")
    with cleared(folder / "home") as engine, rclone_s3(folder / "s3") as s3_url:
        valkey.start()
        stack = Alone(folder, engine)
        try:
            stack.environment |= {
                "BRINERY_RUNTIME": "docker",
                "BRINERY_REDIS_URL": valkey.url,
                "BRINERY_OBJECTS_URL": "s3://made-by-setup/brinery",
                "BRINERY_PLATFORM_IMAGE": platform_image(engine, stack.home),
                "BRINERY_DESK_PORT": str(stack.desk_port),
                "AWS_ENDPOINT_URL": s3_url,
                **S3_KEYS,
            }
            stack.brinery("setup")
            stack.start("controller")
            stack.start("gateway")
            stack.wait_ready()
            (stack.desk / "talk.py").write_text(CODE)
            stack.brinery("deploy", "talk.py")
            yield stack
        finally:
            stack.kill_everything()
            valkey.kill()


def submit(http, **arguments):
    return http.post("/v1/endpoints/talk/tasks", json=arguments).raise_for_status().json()["id"]


def result(http, task_id):
    return http.get(f"/v1/tasks/{task_id}", params={"wait_seconds": 60}).json()


def test_a_task_runs_through_a_forwarder_without_rights_and_its_failures_log_comes_from_the_desk(alone):
    with alone.http() as http:
        assert result(http, submit(http, text="hello"))["result"] == "hello"
        failed = result(http, submit(http, text="fail"))
    assert failed["status"] == "failed"
    (forwarder,) = alone.containers("platform")
    told = everything_about(forwarder)
    assert "secret@" not in told
    assert S3_KEYS["AWS_SECRET_ACCESS_KEY"] not in told
    assert "docker.sock" not in told
    assert {process.uids().real for process in processes_of(forwarder)} == {10001}
    detail = json.loads(alone.brinery("tasks", "show", failed["id"], "--json").stdout)
    assert "said fail" in json.dumps(detail)


def test_a_follower_and_a_task_outlive_the_controller_killed_with_9(alone):
    heard: list[str] = []
    over = threading.Event()

    def follow():
        asked = {"follow": "true", "tail": 0}
        with alone.http() as http, http.stream("GET", "/v1/endpoints/talk/logs", params=asked) as lines:
            for line in lines.iter_lines():
                heard.append(line.partition(" | ")[2])
                if over.is_set():
                    return

    def said(text):
        return [line for line in heard if line == f"said {text}"]

    with alone.http() as http:
        http.post("/v1/endpoints/talk/predict", json={"text": "zero"}).raise_for_status()
        reader = threading.Thread(target=follow)
        reader.start()
        call = {"text": "before"}
        wait_until(lambda: http.post("/v1/endpoints/talk/predict", json=call) and said("before"), what="a follower")
        forwarders, workers = alone.containers("platform"), alone.containers("worker")
        task_id = submit(http, text="across", seconds=3.0)
        wait_until(lambda: said("across"), what="the task to run")
        alone.end("controller", signal.SIGKILL)
        http.post("/v1/endpoints/talk/predict", json={"text": "headless"}).raise_for_status()
        alone.start("controller")
        wait_until(lambda: said("headless"), seconds=60, what="the line of the time without a controller")
        task = result(http, task_id)
        assert (task["status"], task["attempt"]) == ("succeeded", 1)
        assert (alone.containers("platform"), alone.containers("worker")) == (forwarders, workers)
        over.set()
        http.post("/v1/endpoints/talk/predict", json={"text": "over"}).raise_for_status()
        reader.join(60)
    assert not reader.is_alive()
    assert len(said("across")) == len(said("headless")) == 1


def test_without_a_controller_logs_have_a_note_and_calls_and_tasks_go_on(alone):
    with alone.http() as http:
        http.post("/v1/endpoints/talk/predict", json={"text": "warm"}).raise_for_status()
        alone.end("controller", signal.SIGKILL)
        assert "the controller does not answer" in http.get("/v1/endpoints/talk/logs").text
        assert result(http, submit(http, text="fail"))["status"] == "failed"
        assert result(http, submit(http, text="fine"))["result"] == "fine"
        alone.start("controller")
        wait_until(lambda: "said warm" in http.get("/v1/endpoints/talk/logs").text, what="the log to be back")


def test_forwarders_of_an_earlier_image_are_replaced_by_the_next_controller(alone):
    alone.wait_ready()
    with alone.http() as http:
        assert result(http, submit(http, text="old"))["result"] == "old"
        (before,) = alone.containers("platform")
        workers = alone.containers("worker")
        image = alone.environment["BRINERY_PLATFORM_IMAGE"]
        newer = subprocess.run(["docker", "commit", before, f"{image}-newer"], check=True, capture_output=True)
        assert newer.stdout
        alone.environment["BRINERY_PLATFORM_IMAGE"] = f"{image}-newer"
        try:
            alone.end("controller")
            alone.start("controller")
            wait_until(lambda: before not in alone.containers("platform"), seconds=60, what="the old one to end")
            assert result(http, submit(http, text="new"))["result"] == "new"
            (after,) = alone.containers("platform")
            assert alone.engine.inspect(after)["Config"]["Image"] == f"{image}-newer"
            assert alone.containers("worker") == workers
        finally:
            alone.environment["BRINERY_PLATFORM_IMAGE"] = image
            alone.end("controller")
            alone.start("controller")
            alone.wait_ready()
            wait_until(lambda: alone.engine.remove_image(f"{image}-newer"), seconds=60, what="the image to be free")


def test_a_controller_that_is_restarted_leaves_all_and_one_that_ends_with_the_stack_ends_all(alone):
    alone.wait_ready()
    with alone.http() as http:
        assert result(http, submit(http, text="once"))["result"] == "once"
    before = alone.containers("platform"), alone.containers("worker")
    assert all(before)
    assert alone.end("controller") == 0
    assert (alone.containers("platform"), alone.containers("worker")) == before
    alone.start("controller")
    alone.wait_ready()
    assert (alone.containers("platform"), alone.containers("worker")) == before
    assert alone.end("gateway") == 0
    assert alone.end("controller") == 0
    assert not alone.containers("platform")
    assert not alone.containers("worker")
    alone.start("controller")
    alone.start("gateway")
    alone.wait_ready()
    with alone.http() as http:
        assert http.post("/v1/endpoints/talk/predict", json={"text": "again"}).json() == "again"
