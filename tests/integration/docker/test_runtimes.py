"""What every runtime promises of workers, tried on each with real ones: processes, and containers of a real engine."""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest

from brinery.errors import DeploymentError
from brinery.spec import BundleManifest
from brinery_platform.runtimes import RUNTIMES
from brinery_platform.runtimes.base import PlatformSpec, WorkerSpec
from brinery_platform.runtimes.detached import home_mark
from brinery_platform.services import connect
from brinery_platform.settings import read_settings
from containers import cleared, processes_of

ACTS = """
import os
import subprocess
import sys

from brinery import endpoint

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@endpoint
def act(what: str, number: int = 0) -> dict:
    if what == "talk":
        for line in range(number):
            print("line", line)
    if what == "spawn":
        for _ in range(number):
            subprocess.Popen(SLEEP, start_new_session=True)
    return {"env": dict(os.environ), "cwd": os.getcwd(), "path": sys.path}
"""
PACKS = """
import json
from pathlib import Path
from brinery.bundle import pack
from brinery.spec import to_json
from acts import act

packed = pack(act)
Path("bundle.zip").write_bytes(packed.data)
print(json.dumps(to_json(packed.manifest)))
"""
STARTS_AND_IS_KILLED = """
import json, os, signal, sys
from pathlib import Path
from brinery_platform.runtimes.base import WorkerSpec
from brinery_platform.services import connect
from brinery_platform.settings import read_settings

fields = json.loads(sys.argv[3])
runtime = connect(read_settings(home=sys.argv[1], runtime=sys.argv[2])).runtime
runtime.start(WorkerSpec(**{**fields, "bundle": Path(fields["bundle"])}))
os.kill(os.getpid(), signal.SIGKILL)
"""


class Place:
    """A home with a built environment and a packed bundle, and runtimes that are closed in the end."""

    def __init__(self, kind, folder, engine):
        self.kind, self.home, self.engine = kind, folder / "home", engine
        (folder / "acts.py").write_text(ACTS)
        packed = subprocess.run(
            [sys.executable, "-c", PACKS], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
        )
        bundle = folder / "bundle.zip"
        services = self.services()
        built = services.environments.build(BundleManifest(**json.loads(packed.stdout)), print)
        self.spec = WorkerSpec(
            id="wrk_1",
            endpoint_id="end_1",
            version=3,
            environment_id=built.environment_id,
            bundle=bundle,
            sha256=hashlib.sha256(bundle.read_bytes()).hexdigest(),
            concurrency=1,
            cpus=1.5,
            memory_mib=512,
            gpus=0,
            drain_seconds=1.0,
        )
        self.runtimes = []
        self.ended = []

    def services(self):
        return connect(read_settings(home=self.home, runtime=self.kind, redis_url="redis://:hush@127.0.0.1:1/0"))

    def runtime(self):
        runtime = self.services().runtime
        runtime.on_exit = self.ended.append
        self.runtimes.append(runtime)
        return runtime

    def signal(self, running_id, number):
        """Send a signal from outside to the worker's first process."""
        if self.kind == "docker":
            self.engine.kill(self._container(running_id), number.name)
        else:
            os.kill(self._record(running_id)["identity"]["pid"], number)

    def members(self, running_id):
        """Every process of a worker, as this machine sees them."""
        if self.kind == "docker":
            return processes_of(self.engine.inspect(self._container(running_id))["Id"])
        return psutil.Process(self._record(running_id)["identity"]["pid"]).children(recursive=True)

    def clear(self):
        runtime = self.runtime()
        for running in runtime.list():
            runtime.stop(running.id, grace_seconds=0)
        for one in self.runtimes:
            one.close()
        self.runtimes.clear()
        self.ended.clear()

    def _container(self, running_id):
        return f"brinery-{home_mark(self.home)}-{running_id}"

    def _record(self, running_id):
        return json.loads((self.home / "run" / "processes" / f"{running_id}.json").read_text())


@pytest.fixture(scope="module", params=sorted(RUNTIMES))
def built_place(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with cleared(folder / "home") if request.param == "docker" else contextlib.nullcontext() as engine:
        yield Place(request.param, folder, engine)


@pytest.fixture
def place(built_place):
    yield built_place
    built_place.clear()


def wait_until(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while (answer := true()) is None or answer is False:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return answer


def wait_ready(running):
    def ready():
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{running.url}/readyz", timeout=30).status_code == 200
        return False

    assert wait_until(ready)


def call(running, **arguments):
    return httpx.post(f"{running.url}/predict", json=arguments, timeout=60).raise_for_status().json()


def test_what_was_started_is_listed_until_it_is_stopped(place):
    runtime = place.runtime()
    running = runtime.start(place.spec)
    assert (running.id, running.kind, running.endpoint_id, running.version) == ("wrk_1", "worker", "end_1", 3)
    assert runtime.list() == [running]
    assert runtime.poll("wrk_1") is None
    runtime.stop("wrk_1", grace_seconds=10)
    assert runtime.list() == []
    assert runtime.poll("wrk_1") == 0


def test_a_worker_serves_and_sees_none_of_the_platforms_secrets(place):
    runtime = place.runtime()
    running = runtime.start(dataclasses.replace(place.spec, env={"USERS_OWN": "yes", "PYTHONPATH": "/theirs"}))
    wait_ready(running)
    seen = call(running, what="look")
    assert httpx.get(f"{running.control_url}/status", timeout=30).json()["state"] in {"ready", "busy"}
    assert seen["env"]["USERS_OWN"] == "yes"
    assert seen["env"]["OMP_NUM_THREADS"] == "2"
    assert seen["env"]["HOME"] == seen["cwd"]
    assert "/theirs" in seen["path"]
    assert not [value for value in seen["env"].values() if "hush" in value]
    assert {name for name in seen["env"] if name.startswith("BRINERY_")} <= {"BRINERY_MARK", "BRINERY_RUNNING"}


def test_what_a_worker_uses_is_known_while_it_runs(place):
    runtime = place.runtime()
    running = runtime.start(place.spec)
    wait_ready(running)
    used = runtime.usage(["wrk_1", "wrk_unknown"])
    assert used.keys() == {"wrk_1"}
    before = used["wrk_1"]
    assert 8 * 2**20 < before.memory_bytes < 512 * 2**20
    assert before.memory_limit_bytes == (512 * 2**20 if place.kind == "docker" else 0)
    assert before.pids > 1

    def grown():
        call(running, what="look")
        now = runtime.usage(["wrk_1"])["wrk_1"]
        return now.cpu_seconds > before.cpu_seconds

    assert wait_until(grown)
    other = place.runtime()
    other.list()
    assert other.usage(["wrk_1"]).keys() == {"wrk_1"}
    runtime.stop("wrk_1", grace_seconds=20)
    assert runtime.usage(["wrk_1"]) == {}


def test_starting_an_id_twice_starts_it_once(place):
    runtime, other = place.runtime(), place.runtime()
    first = runtime.start(place.spec)
    assert runtime.start(place.spec) == first
    assert other.start(place.spec) == first
    assert len(runtime.list()) == 1


def test_runtimes_that_start_one_id_at_the_same_moment_start_it_once(place):
    started = []
    runtimes = [place.runtime() for _ in range(4)]
    threads = [
        threading.Thread(target=lambda one=runtime: started.append(one.start(place.spec))) for runtime in runtimes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 4
    assert len({running.url for running in started}) == 1
    assert len(runtimes[0].list()) == 1


def test_a_bundle_that_is_not_the_expected_one_ends_its_worker_with_exit_code_3(place):
    runtime = place.runtime()
    runtime.start(dataclasses.replace(place.spec, sha256="0" * 64))
    assert wait_until(lambda: runtime.poll("wrk_1")) == 3
    assert runtime.why("wrk_1") == "exit code 3"
    assert runtime.list() == []
    assert [line for line in runtime.logs("wrk_1") if "refused" in line]


def test_death_by_a_signal_is_a_negative_exit_code(place):
    runtime = place.runtime()
    runtime.start(place.spec)
    place.signal("wrk_1", signal.SIGKILL)
    assert wait_until(lambda: runtime.poll("wrk_1")) == -signal.SIGKILL
    assert runtime.why("wrk_1") == "killed by signal 9 (SIGKILL)"


def test_an_id_can_be_started_again_after_its_end(place):
    runtime = place.runtime()
    runtime.start(place.spec)
    place.signal("wrk_1", signal.SIGKILL)
    wait_until(lambda: runtime.poll("wrk_1"))
    wait_ready(runtime.start(place.spec))
    assert runtime.poll("wrk_1") is None


def test_an_end_is_told_at_once_for_own_and_for_adopted_workers(place):
    first, second = place.runtime(), place.runtime()
    first.start(place.spec)
    second.list()
    place.signal("wrk_1", signal.SIGKILL)
    wait_until(lambda: len(place.ended) >= 2)
    assert set(place.ended) == {"wrk_1"}


def test_stopping_what_is_gone_or_never_was_is_success(place):
    runtime = place.runtime()
    runtime.start(place.spec)
    place.signal("wrk_1", signal.SIGKILL)
    wait_until(lambda: runtime.poll("wrk_1"))
    for _ in range(2):
        runtime.stop("wrk_1", grace_seconds=1)
        runtime.stop("wrk_unknown", grace_seconds=1)
    assert runtime.poll("wrk_unknown") == 0


def test_a_worker_can_be_stopped_from_several_sides_at_once(place):
    runtimes = [place.runtime() for _ in range(3)]
    wait_ready(runtimes[0].start(place.spec))
    threads = [threading.Thread(target=one.stop, args=["wrk_1"], kwargs={"grace_seconds": 20}) for one in runtimes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.list() for one in runtimes] == [[], [], []]


def test_a_frozen_worker_can_be_stopped(place):
    runtime = place.runtime()
    wait_ready(runtime.start(place.spec))
    place.signal("wrk_1", signal.SIGSTOP)
    runtime.stop("wrk_1", grace_seconds=0.1)
    assert runtime.list() == []


def test_stopping_ends_all_that_user_code_started(place):
    runtime = place.runtime()
    running = runtime.start(place.spec)
    wait_ready(running)
    call(running, what="spawn", number=2)
    members = place.members("wrk_1")
    assert len(members) >= 3
    runtime.stop("wrk_1", grace_seconds=20)
    assert not [member for member in members if member.is_running() and member.status() != psutil.STATUS_ZOMBIE]


def test_a_second_runtime_adopts_what_the_first_one_started(place):
    first = place.runtime()
    running = first.start(place.spec)
    first.close()
    place.runtimes.remove(first)
    second = place.runtime()
    assert second.list() == [running]
    assert second.start(place.spec) == running
    assert second.poll("wrk_1") is None
    second.stop("wrk_1", grace_seconds=10)
    assert second.list() == []


def test_a_controller_killed_after_a_start_leaves_nothing_unknown(place):
    fields = json.dumps({**dataclasses.asdict(place.spec), "bundle": str(place.spec.bundle)})
    command = [sys.executable, "-c", STARTS_AND_IS_KILLED, str(place.home), place.kind, fields]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    runtime = place.runtime()
    (running,) = runtime.list()
    assert (running.id, running.endpoint_id, running.version) == ("wrk_1", "end_1", 3)
    wait_ready(running)


def test_logs_are_followed_to_the_end_and_stay(place):
    runtime = place.runtime()
    running = runtime.start(place.spec)
    wait_ready(running)
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(runtime.logs("wrk_1", tail=0, follow=True)))
    reader.start()
    wait_until(lambda: call(running, what="talk", number=50) and len(seen) >= 50)
    assert {"line 0", "line 49"} <= set(runtime.logs("wrk_1", tail=50))
    runtime.stop("wrk_1", grace_seconds=20)
    reader.join(30)
    assert not reader.is_alive()
    assert "line 49" in seen
    assert "line 49" in list(runtime.logs("wrk_1", tail=20))


def test_the_log_of_what_never_ran_is_empty(place):
    assert list(place.runtime().logs("wrk_unknown", follow=True)) == []


def test_a_follower_may_go_before_the_end(place):
    runtime = place.runtime()
    runtime.start(place.spec)
    lines = runtime.logs("wrk_1", follow=True)
    assert next(lines)
    lines.close()


def test_what_cannot_be_started_says_why_and_leaves_nothing(place):
    runtime = place.runtime()
    with pytest.raises(DeploymentError, match="not built on this machine"):
        runtime.start(dataclasses.replace(place.spec, environment_id="0" * 16))
    with pytest.raises(DeploymentError, match="cannot be started"):
        runtime.start(dataclasses.replace(place.spec, env={"NAME": "a\0b"}))
    assert runtime.list() == []


def test_the_platforms_own_processes_run_beside_the_workers(place):
    runtime = place.runtime()
    worker = runtime.start(place.spec)
    process = runtime.start(
        PlatformSpec(
            id="fwd_1",
            kind="forwarder",
            endpoint_id="end_1",
            module="http.server",
            arguments=("0", "--bind", "127.0.0.1"),
        )
    )
    assert runtime.list() == [worker, process]
    assert runtime.poll("fwd_1") is None
    runtime.stop("fwd_1", grace_seconds=5)
    assert runtime.list() == [worker]


def test_closing_ends_the_runtimes_threads_and_not_its_workers(place):
    before = set(threading.enumerate())
    runtime = place.runtime()
    running = runtime.start(place.spec)
    runtime.close()
    place.runtimes.remove(runtime)
    assert set(threading.enumerate()) == before
    wait_ready(running)
