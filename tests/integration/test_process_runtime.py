"""The process runtime with real processes: started, found again after a kill, ended with all that they started.

What it promises of workers as every runtime does is tried in ``test_runtimes.py``.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from textwrap import dedent

import httpx
import psutil
import pytest

from brinery.errors import DeploymentError
from brinery.spec import BundleManifest
from brinery_platform.environments import Environments
from brinery_platform.runtimes import RUNTIMES, make_runtime
from brinery_platform.runtimes.base import PlatformSpec, WorkerSpec
from brinery_platform.runtimes.process import ProcessRuntime
from brinery_platform.settings import index_environment, read_settings

PROGRAMS = {
    "waits": "import time; print('waiting', flush=True); time.sleep(600)",
    "ends": "import sys; print('ending', flush=True); sys.exit(int(sys.argv[1]))",
    "stubborn": """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("waiting", flush=True)
        time.sleep(600)
    """,
    # Three ways to leave something behind: a child, one in a session of its own, one that also forgot its mark.
    "family": """
        import os, subprocess, sys, time
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        children = [
            subprocess.Popen(sleep),
            subprocess.Popen(sleep, start_new_session=True),
            subprocess.Popen(sleep, env={}),
        ]
        print("children", *[child.pid for child in children], flush=True)
        time.sleep(float(sys.argv[1]))
        os._exit(7)
    """,
    "shows": "import json, os, sys; print(json.dumps([dict(os.environ), os.getcwd(), sys.argv]), flush=True)",
    "talks": """
        import time
        for number in range(int(__import__("sys").argv[1])):
            print("line", number, flush=True)
            time.sleep(0.01)
    """,
}
STARTS_AND_IS_KILLED = """
import os, signal, sys
from pathlib import Path
from brinery_platform.environments import Environments
from brinery_platform.runtimes.base import PlatformSpec
from brinery_platform.runtimes.process import ProcessRuntime

home, programs = Path(sys.argv[1]), sys.argv[2]
runtime = ProcessRuntime(home, Environments(home, {}), {**os.environ, "PYTHONPATH": programs})
runtime.start(PlatformSpec(id="fwd_1", kind="forwarder", endpoint_id="end_1", module="waits"))
os.kill(os.getpid(), signal.SIGKILL)
"""


class Place:
    """A home, programs that can be started in it, and runtimes that are closed in the end."""

    def __init__(self, folder):
        self.home = folder / "home"
        self.programs = folder / "programs"
        self.programs.mkdir(parents=True)
        for name, code in PROGRAMS.items():
            (self.programs / f"{name}.py").write_text(dedent(code))
        self.environments = Environments(self.home, {})
        self.runtimes = []
        self.ended = []

    def runtime(self, **platform_env):
        environment = {**os.environ, "PYTHONPATH": str(self.programs), **platform_env}
        runtime = ProcessRuntime(self.home, self.environments, environment, on_exit=self.ended.append)
        self.runtimes.append(runtime)
        return runtime

    def close(self):
        runtime = self.runtime()
        for running in runtime.list():
            runtime.stop(running.id, grace_seconds=0)
        for one in self.runtimes:
            one.close()


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    place.close()


def spec(module, *arguments, id="fwd_1", endpoint_id="end_1"):  # noqa: A002 - the field's name
    return PlatformSpec(id=id, kind="forwarder", endpoint_id=endpoint_id, module=module, arguments=arguments)


def pid_of(place, running_id):
    return json.loads((place.home / "run" / "processes" / f"{running_id}.json").read_text())["identity"]["pid"]


def words(runtime, running_id, start):
    """Return the words of the log's line that begins with `start`, once it is there."""
    return wait_until(
        lambda: next((line.split()[1:] for line in runtime.logs(running_id) if line.startswith(start)), None)
    )


def wait_until(true, seconds=20.0):
    deadline = time.monotonic() + seconds
    while (answer := true()) is None or answer is False:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return answer


def command_of(process):
    """Return a child's command line; empty for one of an earlier test that has ended meanwhile."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def lives(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_what_was_started_is_listed_until_it_is_stopped(place):
    runtime = place.runtime()
    running = runtime.start(spec("waits"))
    assert (running.id, running.kind, running.endpoint_id) == ("fwd_1", "forwarder", "end_1")
    assert runtime.list() == [running]
    assert runtime.poll("fwd_1") is None
    pid = pid_of(place, "fwd_1")
    runtime.stop("fwd_1", grace_seconds=10)
    assert not lives(pid)
    assert runtime.list() == []
    assert runtime.poll("fwd_1") == 0
    assert list((place.home / "run" / "processes").glob("*.json")) == []
    assert list((place.home / "scratch").iterdir()) == []


def test_starting_an_id_twice_starts_it_once(place):
    runtime, other = place.runtime(), place.runtime()
    first = runtime.start(spec("waits"))
    assert runtime.start(spec("waits")) == first
    assert other.start(spec("waits")) == first
    assert len(runtime.list()) == 1


def test_runtimes_that_start_one_id_at_the_same_moment_start_it_once(place):
    runtimes = [place.runtime() for _ in range(4)]
    threads = [threading.Thread(target=runtime.start, args=[spec("waits")]) for runtime in runtimes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    named = [process.pid for process in psutil.Process().children() if "waits" in command_of(process)]
    assert named == [pid_of(place, "fwd_1")]


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_of_what_ended_is_known(place, code):
    runtime = place.runtime()
    runtime.start(spec("ends", str(code)))
    assert wait_until(lambda: runtime.poll("fwd_1")) == code if code else wait_until(lambda: place.ended or None)
    assert runtime.poll("fwd_1") == code
    assert runtime.list() == []


def test_death_by_a_signal_is_a_negative_exit_code(place):
    runtime = place.runtime()
    runtime.start(spec("waits"))
    os.kill(pid_of(place, "fwd_1"), signal.SIGKILL)
    assert wait_until(lambda: runtime.poll("fwd_1")) == -signal.SIGKILL


def test_an_end_is_told_at_once_for_own_and_for_adopted_processes(place):
    first = place.runtime()
    first.start(spec("waits"))
    second = place.runtime()
    second.list()
    os.kill(pid_of(place, "fwd_1"), signal.SIGKILL)
    wait_until(lambda: len(place.ended) == 2)
    assert set(place.ended) == {"fwd_1"}


def test_stopping_what_is_gone_or_never_was_is_success(place):
    runtime = place.runtime()
    runtime.start(spec("ends", "3"))
    wait_until(lambda: runtime.poll("fwd_1"))
    for _ in range(2):
        runtime.stop("fwd_1", grace_seconds=1)
        runtime.stop("wrk_unknown", grace_seconds=1)
    assert runtime.poll("wrk_unknown") == 0


def test_what_does_not_hear_sigterm_is_killed(place):
    runtime = place.runtime()
    runtime.start(spec("stubborn"))
    words(runtime, "fwd_1", "waiting")
    pid = pid_of(place, "fwd_1")
    runtime.stop("fwd_1", grace_seconds=0.1)
    assert not lives(pid)


def test_a_frozen_process_can_be_stopped(place):
    runtime = place.runtime()
    runtime.start(spec("waits"))
    pid = pid_of(place, "fwd_1")
    os.kill(pid, signal.SIGSTOP)
    runtime.stop("fwd_1", grace_seconds=0.1)
    assert not lives(pid)


def test_stopping_ends_all_that_it_started(place):
    runtime = place.runtime()
    runtime.start(spec("family", "600"))
    children = [int(word) for word in words(runtime, "fwd_1", "children")]
    assert all(lives(child) for child in children)
    runtime.stop("fwd_1", grace_seconds=5)
    assert not any(lives(child) for child in children)


@pytest.mark.parametrize("adopted", [False, True])
def test_an_unexpected_end_ends_all_that_it_started(place, adopted):
    starter = place.runtime()
    starter.start(spec("family", "1"))
    if adopted:
        starter.close()
    runtime = place.runtime() if adopted else starter
    runtime.list()
    children = [int(word) for word in words(runtime, "fwd_1", "children")]
    wait_until(lambda: place.ended or None)
    assert not any(lives(child) for child in children)
    assert runtime.poll("fwd_1") == (0 if adopted else 7)


def test_what_a_process_left_while_nobody_watched_is_ended_by_the_next_runtime(place):
    first = place.runtime()
    first.start(spec("family", "600"))
    children = [int(word) for word in words(first, "fwd_1", "children")]
    pid = pid_of(place, "fwd_1")
    first.close()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not lives(pid))
    assert place.runtime().list() == []
    assert not any(lives(child) for child in children[:2])
    os.kill(children[2], signal.SIGKILL)  # without a mark, and its session's id may be anybody's by now


def test_a_second_runtime_adopts_what_the_first_one_started(place):
    first = place.runtime()
    running = first.start(spec("waits"))
    pid = pid_of(place, "fwd_1")
    first.close()
    second = place.runtime()
    assert second.list() == [running]
    assert second.start(spec("waits")) == running
    second.stop("fwd_1", grace_seconds=10)
    assert not lives(pid)


def test_a_controller_killed_after_a_start_leaves_nothing_unknown(place):
    command = [sys.executable, "-c", STARTS_AND_IS_KILLED, str(place.home), str(place.programs)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    runtime = place.runtime()
    assert [(running.id, running.endpoint_id) for running in runtime.list()] == [("fwd_1", "end_1")]


def test_a_controller_killed_before_it_wrote_its_record_leaves_nothing_unknown(place):
    first = place.runtime()
    running = first.start(spec("waits"))
    pid = pid_of(place, "fwd_1")
    first.close()
    (place.home / "run" / "processes" / "fwd_1.json").unlink()
    second = place.runtime()
    assert second.start(spec("waits")) == running
    assert pid_of(place, "fwd_1") == pid


def test_a_damaged_record_is_written_again_from_the_process(place):
    first = place.runtime()
    running = first.start(spec("waits"))
    first.close()
    record = place.home / "run" / "processes" / "fwd_1.json"
    record.write_text(record.read_text()[:40])
    assert place.runtime().list() == [running]
    assert json.loads(record.read_text())


@pytest.mark.parametrize("change", ["started_ticks", "boot"])
def test_a_record_of_a_process_whose_id_was_given_to_another_one_is_not_adopted(place, change):
    runtime = place.runtime()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        runtime.start(spec("waits"))
        record = place.home / "run" / "processes" / "fwd_1.json"
        content = json.loads(record.read_text())
        runtime.stop("fwd_1", grace_seconds=5)
        identity = {**content["identity"], "pid": bystander.pid}
        identity[change] = 1 if change == "started_ticks" else "another boot"
        record.write_text(json.dumps({**content, "identity": identity}))
        second = place.runtime()
        assert second.list() == []
        second.stop("fwd_1", grace_seconds=1)
        assert lives(bystander.pid)
        assert not record.exists()
    finally:
        bystander.kill()
        bystander.wait()


def test_a_copied_home_does_not_take_the_processes_of_the_original(place, tmp_path):
    runtime = place.runtime()
    runtime.start(spec("waits"))
    copy = Place(tmp_path / "copy")
    target = copy.home / "run" / "processes"
    target.mkdir(parents=True)
    (target / "fwd_1.json").write_text((place.home / "run" / "processes" / "fwd_1.json").read_text())
    try:
        assert copy.runtime().list() == []
        copy.runtimes[0].stop("fwd_1", grace_seconds=0)
    finally:
        copy.close()
    assert runtime.poll("fwd_1") is None


def test_a_runtime_that_learns_late_of_an_end_leaves_the_next_start_of_that_id_alone(place):
    first, second = place.runtime(), place.runtime()
    first.start(spec("waits"))
    second.list()
    first.stop("fwd_1", grace_seconds=5)
    first.start(spec("waits"))
    pid = pid_of(place, "fwd_1")
    wait_until(lambda: place.ended.count("fwd_1") >= 2)  # both have noticed the first one's end
    assert second.poll("fwd_1") is None
    assert lives(pid)


def test_a_process_shares_nothing_with_its_starter(place):
    runtime = place.runtime()
    runtime.start(spec("waits"))
    words(runtime, "fwd_1", "waiting")
    pid = pid_of(place, "fwd_1")
    assert os.getsid(pid) == pid
    targets = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert targets == {"/dev/null", str(place.home / "logs" / "platform" / "fwd_1.log")}


def test_secrets_travel_to_platform_processes_in_the_environment_and_not_in_the_command(place):
    runtime = place.runtime(BRINERY_REDIS_URL="redis://:secret@127.0.0.1:1/0")
    runtime.start(spec("shows", "argument"))
    environment, folder, argv = json.loads(wait_until(lambda: next(runtime.logs("fwd_1"), None)))
    assert environment["BRINERY_REDIS_URL"] == "redis://:secret@127.0.0.1:1/0"
    assert argv[1:] == ["argument"]
    assert Path(folder) == place.home / "scratch" / "fwd_1"


def test_logs_are_followed_to_the_end(place):
    runtime = place.runtime()
    runtime.start(spec("talks", "50"))
    assert list(runtime.logs("fwd_1", tail=0, follow=True))[-1] == "line 49"
    assert list(runtime.logs("fwd_1", tail=2)) == ["line 48", "line 49"]
    runtime.stop("fwd_1", grace_seconds=1)
    assert list(runtime.logs("fwd_1", tail=1)) == ["line 49"]


def test_the_log_of_what_never_ran_is_empty(place):
    assert list(place.runtime().logs("wrk_unknown", follow=True)) == []


def test_what_cannot_be_started_says_why_and_leaves_nothing(place, tmp_path):
    runtime = place.runtime()
    with pytest.raises(DeploymentError, match="not built on this machine"):
        runtime.start(worker_spec(tmp_path / "none.zip", "0" * 16))
    with pytest.raises(DeploymentError, match="cannot be started"):
        runtime.start(spec("waits", "a\0b"))
    assert runtime.list() == []


def test_closing_ends_the_runtimes_threads_and_not_its_processes(place):
    before = set(threading.enumerate())
    runtime = place.runtime()
    runtime.start(spec("waits"))
    pid = pid_of(place, "fwd_1")
    runtime.close()
    assert set(threading.enumerate()) == before
    assert lives(pid)


def test_the_settings_choose_the_runtime(tmp_path):
    assert set(RUNTIMES) == {"docker", "process"}
    settings = read_settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0")
    runtime = make_runtime(settings, Environments(tmp_path, {}))
    try:
        assert isinstance(runtime, ProcessRuntime)
    finally:
        runtime.close()


# --------------------------------------------------------------------------------------------------- real workers
LOOKS_AROUND = """
import os
import sys

from brinery import endpoint


@endpoint
def look_around() -> dict:
    return {"env": dict(os.environ), "cwd": os.getcwd(), "path": sys.path, "pid": os.getpid(), "sid": os.getsid(0)}
"""
PACKS = """
import json
from pathlib import Path
from brinery.bundle import pack
from brinery.spec import to_json
from looks import look_around

packed = pack(look_around)
Path("bundle.zip").write_bytes(packed.data)
print(json.dumps(to_json(packed.manifest)))
"""


def worker_spec(bundle, environment_id, sha256="0" * 64, **changes):
    return WorkerSpec(
        **{
            "id": "wrk_1",
            "endpoint_id": "end_1",
            "version": 3,
            "environment_id": environment_id,
            "bundle": bundle,
            "sha256": sha256,
            "concurrency": 1,
            "cpus": 1.5,
            "memory_mib": 512,
            "gpus": 0,
            "drain_seconds": 1.0,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def worker_home(tmp_path_factory):
    """A home with one built environment, and a bundle packed for it."""
    folder = tmp_path_factory.mktemp("worker-home")
    (folder / "looks.py").write_text(LOOKS_AROUND)
    packed = subprocess.run([sys.executable, "-c", PACKS], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    environments = Environments(folder / "home", index_environment())
    built = environments.build(BundleManifest(**json.loads(packed.stdout)), print)
    return folder / "home", environments, folder / "bundle.zip", built.environment_id


def test_a_worker_is_reachable_at_once_and_sees_none_of_the_platforms_secrets(worker_home):
    home, environments, bundle, environment_id = worker_home
    secrets = {"BRINERY_REDIS_URL": "secret", "AWS_SECRET_ACCESS_KEY": "secret", "GITHUB_TOKEN": "secret"}
    runtime = ProcessRuntime(home, environments, {**os.environ, **secrets, "LANG": "C.UTF-8"})
    try:
        sha256 = hashlib.sha256(bundle.read_bytes()).hexdigest()
        running = runtime.start(worker_spec(bundle, environment_id, sha256, env={"USERS_OWN": "yes"}))
        assert (running.kind, running.version) == ("worker", 3)
        # No waiting for readiness: the socket listens already, and the answer comes when the worker is there.
        wait_until(lambda: httpx.get(f"{running.url}/readyz", timeout=30).status_code == 200 or None)
        seen = httpx.post(f"{running.url}/predict", json={}, timeout=30).raise_for_status().json()
        assert httpx.get(f"{running.control_url}/status", timeout=30).json()["state"] in {"ready", "busy"}

        assert seen["env"]["USERS_OWN"] == "yes"
        assert seen["env"]["OMP_NUM_THREADS"] == "2"
        assert seen["env"]["HOME"] == seen["cwd"] == str(home / "scratch" / "wrk_1")
        assert "secret" not in seen["env"].values()
        ours = {name for name in seen["env"] if name.startswith(("BRINERY_", "AWS_"))}
        assert ours <= {"BRINERY_MARK", "BRINERY_RUNNING"}
        own_packages = next(path for path in sys.path if path.endswith("site-packages"))
        assert own_packages not in seen["path"]

        second = ProcessRuntime(home, environments, {})
        assert second.list() == [running]
        second.close()
        runtime.stop("wrk_1", grace_seconds=20)
        assert not lives(seen["pid"])
        assert not lives(seen["sid"])
    finally:
        runtime.stop("wrk_1", grace_seconds=0)
        runtime.close()
