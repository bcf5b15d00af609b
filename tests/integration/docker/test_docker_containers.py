"""Workers in containers: what they may not do, read back from inside, and what the engine is told about them."""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from ipaddress import ip_address, ip_network

import httpx
import pytest

from brinery.errors import DeploymentError, UnavailableError
from brinery.spec import BundleManifest
from brinery_platform.runtimes.base import WorkerSpec
from brinery_platform.runtimes.detached import home_mark
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.engine import Engine
from brinery_platform.services import connect
from brinery_platform.settings import read_settings
from containers import cleared, everything_about

ASKS = """
from brinery import endpoint


@endpoint
def ask(code: str) -> str:
    scope = {}
    exec(code, scope)
    return str(scope["answer"])
"""
PACKS = """
import json
from pathlib import Path
from brinery.bundle import pack
from brinery.spec import to_json
from asks import ask

packed = pack(ask)
Path("bundle.zip").write_bytes(packed.data)
print(json.dumps(to_json(packed.manifest)))
"""
MIB = 1024 * 1024
CAN_CONNECT = """
import socket
try:
    socket.create_connection(({host!r}, {port}), timeout=3).close()
    answer = "reached"
except OSError as error:
    answer = "not reached"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("containers") / "home"
    with cleared(home):
        yield home


@pytest.fixture(scope="module")
def engine():
    engine = Engine()
    yield engine
    engine.close()


def parts(home, **settings):
    return connect(read_settings(home=home, runtime="docker", redis_url="redis://:hush@127.0.0.1:1/0", **settings))


@pytest.fixture(scope="module")
def spec(home):
    home.mkdir(parents=True)
    (home.parent / "asks.py").write_text(ASKS)
    command = [sys.executable, "-c", PACKS]
    packed = subprocess.run(command, cwd=home.parent, stdout=subprocess.PIPE, text=True, check=True)
    bundle = home.parent / "bundle.zip"
    environments = parts(home).environments
    built = environments.build(BundleManifest(**json.loads(packed.stdout)), print)
    environments.close()
    return WorkerSpec(
        id="wrk_1",
        endpoint_id="end_1",
        version=1,
        environment_id=built.environment_id,
        bundle=bundle,
        sha256=hashlib.sha256(bundle.read_bytes()).hexdigest(),
        concurrency=1,
        cpus=0.5,
        memory_mib=256,
        gpus=0,
        drain_seconds=1.0,
    )


@pytest.fixture
def runtime(home):
    runtime = parts(home).runtime
    yield runtime
    for running in runtime.list():
        runtime.stop(running.id, grace_seconds=0)
    runtime.close()


@pytest.fixture(scope="module")
def worker(home, spec):
    """One worker that the tests only ask."""
    runtime = parts(home).runtime
    running = start(runtime, dataclasses.replace(spec, id="wrk_asked"))
    yield running
    runtime.stop("wrk_asked", grace_seconds=0)
    runtime.close()


def start(runtime, spec):
    running = runtime.start(spec)

    def ready():
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{running.url}/readyz", timeout=30).status_code == 200
        return False

    wait_until(ready)
    return running


def wait_until(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


def ask(running, code):
    """Run code in a worker; return its `answer`, or what it raised."""
    reply = httpx.post(f"{running.url}/predict", json={"code": code}, timeout=60).json()
    return reply if isinstance(reply, str) else reply["error"]["message"]


def container_of(home, running_id):
    return f"brinery-{home_mark(home)}-{running_id}"


def cgroup(controller, newer, older):
    """Code that reads a limit from inside, in either version of cgroups."""
    return (
        "from pathlib import Path\n"
        f"files = [Path('/sys/fs/cgroup/{newer}'), Path('/sys/fs/cgroup/{controller}/{older}')]\n"
        "answer = next(file.read_text().strip() for file in files if file.exists())"
    )


def test_memory_processors_and_processes_are_limited(worker):
    assert int(ask(worker, cgroup("memory", "memory.max", "memory.limit_in_bytes"))) == 256 * MIB
    assert int(ask(worker, cgroup("pids", "pids.max", "pids.max"))) == 1024
    quota = ask(worker, cgroup("cpu", "cpu.max", "cpu.cfs_quota_us")).split()[0]
    assert int(quota) == 50_000


def test_a_worker_is_nobody_with_no_capability_and_no_way_to_get_one(worker):
    assert ask(worker, "import os; answer = os.getresuid() + os.getresgid()") == str((65534,) * 6)
    assert ask(worker, "import os; answer = os.getgroups()") in {"[]", "[65534]"}
    status = ask(worker, "answer = open('/proc/self/status').read()")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize(
    "path", ["/x", "/opt/brinery/bundle.zip", "/opt/brinery/environment/x", "/opt/brinery/worker/x", "/usr/x", "/etc/x"]
)
def test_nothing_can_be_written_outside_the_scratch_folders(worker, path):
    answer = ask(worker, f"answer = open({path!r}, 'ab')")
    assert "Read-only file system" in answer or "Permission denied" in answer


@pytest.mark.parametrize("folder", ["/tmp", "/home/worker"])  # noqa: S108 - the container's own
def test_the_scratch_folders_are_writable_and_end_before_the_memory_does(worker, folder):
    fill = (
        "import os\n"
        f"path = os.path.join({folder!r}, 'full')\n"
        "try:\n"
        "    with open(path, 'wb') as file:\n"
        "        for answer in range(256):\n"
        f"            file.write(bytes({MIB}))\n"
        "            file.flush()\n"
        "except OSError as error:\n"
        "    answer = f'{error.strerror} after {answer} MiB'\n"
        "finally:\n"
        "    os.unlink(path)"
    )
    said, _, filled = ask(worker, fill).partition(" after ")
    assert said == "No space left on device"
    assert 60 <= int(filled.split()[0]) <= 64  # a quarter of its memory
    assert ask(worker, "import os; answer = os.getcwd(), os.path.expanduser('~')") == str(("/home/worker",) * 2)


def test_there_is_no_docker_socket_and_no_file_of_the_platform(home, worker):
    paths = ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", str(home)]
    assert ask(worker, f"import os; answer = [path for path in {paths} if os.path.exists(path)]") == "[]"
    assert "docker" not in ask(worker, "answer = open('/proc/mounts').read()").replace("/var/lib/docker/overlay2", "")


def test_a_worker_reaches_neither_port_of_another_one_and_the_machine_reaches_both(runtime, spec, worker):
    neighbour = start(runtime, dataclasses.replace(spec, id="wrk_2", endpoint_id="end_2"))
    for url in (neighbour.url, neighbour.control_url):
        host, _, port = url.removeprefix("http://").partition(":")
        socket.create_connection((host, int(port)), timeout=10).close()
        assert ask(worker, CAN_CONNECT.format(host=host, port=port)) == "not reached"
        # The same code, asked where the way is open.
        assert ask(neighbour, CAN_CONNECT.format(host=host, port=port)) == "reached"


def test_workers_have_addresses_of_the_configured_network(worker):
    assert ip_address(worker.url.removeprefix("http://").partition(":")[0]) in ip_network("10.213.0.0/16")


def test_a_network_that_has_no_free_part_is_refused_with_what_to_do(spec, tmp_path):
    """Two homes with room for one: the second one's start says why it cannot."""
    runtimes = [parts(tmp_path / name, worker_cidr="10.214.7.0/28").runtime for name in ("one", "two")]
    with cleared(tmp_path / "one"), cleared(tmp_path / "two"):
        try:
            start(runtimes[0], spec)
            with pytest.raises(DeploymentError, match="BRINERY_WORKER_CIDR"):
                runtimes[1].start(spec)
        finally:
            for runtime in runtimes:
                runtime.stop("wrk_1", grace_seconds=0)
                runtime.close()


def test_logs_are_bounded_by_the_engine(home, engine, runtime, spec):
    start(runtime, spec)
    config = engine.inspect(container_of(home, "wrk_1"))["HostConfig"]
    assert config["LogConfig"] == {"Type": "json-file", "Config": {"max-file": "2", "max-size": "8m"}}
    assert config["RestartPolicy"]["Name"] == "no"
    assert config["MemorySwap"] == config["Memory"] == 256 * MIB


def test_no_secret_and_no_setting_of_the_platform_is_told_to_the_engine(home, engine, runtime, spec):
    start(runtime, dataclasses.replace(spec, env={"USERS_OWN": "yes"}))
    told = everything_about(container_of(home, "wrk_1"))
    assert "USERS_OWN=yes" in told
    assert "hush" not in told
    assert "BRINERY_" not in told
    image = engine.inspect(container_of(home, "wrk_1"))["Image"]
    assert "USERS_OWN" not in everything_about(image)


def test_a_bundle_is_an_image_once(home, engine, runtime, spec):
    for number in range(2):
        start(runtime, dataclasses.replace(spec, id=f"wrk_{number}"))
    images = engine.images({labels.HOME: home_mark(home), labels.KIND: "bundle"})
    assert len(images) == 1
    assert spec.sha256 in images[0]["RepoTags"][0]


def test_what_was_killed_while_it_made_a_bundles_image_is_cleared_up(home, engine, runtime, spec, tmp_path):
    whose = {labels.HOME: home_mark(home), labels.KIND: "layer"}
    engine.create(f"brinery-{home_mark(home)}-layer", {"Image": f"brinery/env:{spec.environment_id}", "Labels": whose})
    other = tmp_path / "other.zip"
    other.write_bytes(spec.bundle.read_bytes() + b" ")
    sha256 = hashlib.sha256(other.read_bytes()).hexdigest()
    runtime.start(dataclasses.replace(spec, bundle=other, sha256=sha256))
    assert engine.containers(whose, ended_too=True) == []


def test_a_worker_that_the_engine_cannot_start_says_why_and_leaves_nothing(home, engine, runtime, spec):
    with pytest.raises(DeploymentError, match="Docker engine refused"):
        runtime.start(dataclasses.replace(spec, id="wrk_gpus", gpus=64))
    assert engine.inspect(container_of(home, "wrk_gpus")) is None


def test_the_end_of_a_worker_whose_memory_ran_out_is_named(runtime, spec):
    running = start(runtime, dataclasses.replace(spec, memory_mib=64))
    ask_and_die = "import os\nanswer = bytes(100)\nwhile True:\n    answer += answer"
    with contextlib.suppress(httpx.HTTPError):
        ask(running, ask_and_die)
    wait_until(lambda: any("out of memory at 64 MiB" in line for line in runtime.logs("wrk_1")))
    assert runtime.poll("wrk_1") is None  # the supervisor starts its serving process again
    start(runtime, dataclasses.replace(spec, memory_mib=64))


def test_an_end_by_the_kernel_for_lack_of_memory_names_the_limit(runtime, spec):
    """A container that dies at once: with 6 MiB not even its first process comes up."""
    runtime.start(dataclasses.replace(spec, memory_mib=6))
    assert wait_until(lambda: runtime.poll("wrk_1")) == -signal.SIGKILL
    assert runtime.why("wrk_1") == "killed: out of memory at 6 MiB"


def test_a_worker_stopped_in_the_moment_of_its_start_does_not_use_up_its_grace(runtime, spec):
    """As a container's first process it would never get a SIGTERM that comes before it listens for one."""
    for number in range(3):
        runtime.start(dataclasses.replace(spec, id=f"wrk_{number}"))
        before = time.monotonic()
        runtime.stop(f"wrk_{number}", grace_seconds=120)
        assert time.monotonic() - before < 60
    assert runtime.list() == []


def test_what_ended_while_nobody_watched_is_cleared_up_with_its_log_kept(home, engine, spec):
    starter = parts(home).runtime
    start(starter, spec)
    starter.close()
    engine.kill(container_of(home, "wrk_1"), "SIGKILL")
    onlooker, successor = parts(home).runtime, parts(home).runtime
    successor.on_exit = lambda _running_id: None
    try:
        assert onlooker.list() == []
        assert engine.inspect(container_of(home, "wrk_1")) is not None  # to look is not to clear up
        assert successor.list() == []
        assert engine.inspect(container_of(home, "wrk_1")) is None
        assert any("serving" in line for line in successor.logs("wrk_1"))
    finally:
        onlooker.close()
        successor.close()


class Proxy:
    """A unix socket in front of the engine's, whose connections can be cut."""

    def __init__(self, path):
        self.url = f"unix://{path}"
        self._engine = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(32)
        self._pairs = []
        self.open = True
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self.open:
                near.close()
                continue
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._engine)
            self._pairs += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    @staticmethod
    def _copy(one, other):
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)

    def cut(self):
        self.open = False
        for one in self._pairs:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        for one in (self._listener, *self._pairs):
            one.close()


def test_what_ends_while_the_engine_cannot_be_heard_is_told_afterwards(home, engine, spec, tmp_path, monkeypatch):
    proxy = Proxy(tmp_path / "engine.sock")
    monkeypatch.setenv("DOCKER_HOST", proxy.url)
    ended = []
    runtime = parts(home).runtime
    runtime.on_exit = ended.append
    try:
        start(runtime, spec)
        assert runtime.poll("wrk_1") is None
        proxy.cut()
        engine.kill(container_of(home, "wrk_1"), "SIGKILL")
        engine.wait(container_of(home, "wrk_1"), timeout_seconds=30)

        def away():
            with contextlib.suppress(UnavailableError):
                return runtime.poll("wrk_1") is not None
            return True

        wait_until(away)
        assert ended == []
        proxy.open = True
        assert wait_until(lambda: ended) == ["wrk_1"]
        assert runtime.poll("wrk_1") == -signal.SIGKILL
        runtime.stop("wrk_1", grace_seconds=0)
    finally:
        runtime.close()
        proxy.close()


def test_an_engine_that_is_away_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    before = set(threading.enumerate())
    runtime = parts(tmp_path).runtime
    try:
        with pytest.raises(UnavailableError, match=r"\(No such file or directory\).*BRINERY_RUNTIME=process"):
            runtime.list()
    finally:
        runtime.close()
    assert set(threading.enumerate()) == before


def test_the_log_of_a_container_that_is_being_removed_is_the_kept_one(engine, runtime, spec, monkeypatch):
    start(runtime, spec)
    told = []

    def remove(container):
        facts = engine.inspect(container)
        engine.remove(container)
        with monkeypatch.context() as patched:  # the engine shows it for a while in which it gives out no log
            patched.setattr(runtime._engine, "inspect", lambda _container: facts)
            told.append(list(runtime.logs("wrk_1")))
            told.append([line for _, line in runtime.stamped("wrk_1", tail=200, follow=False)])

    monkeypatch.setattr(runtime._engine, "remove", remove)
    runtime.stop("wrk_1", grace_seconds=0)
    assert [any("serving" in line for line in lines) for lines in told] == [True, True]
