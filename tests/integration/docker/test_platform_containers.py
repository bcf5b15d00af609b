"""What runtimes promise of the platform's own processes, tried with processes and with containers of its image."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from brinery.errors import DeploymentError
from brinery_platform.runtimes.base import LogMark, PlatformSpec
from brinery_platform.runtimes.detached import home_mark
from brinery_platform.runtimes.docker import platform_containers
from brinery_platform.services import connect
from brinery_platform.settings import read_settings
from containers import cleared, everything_about, processes_of
from platform_image import platform_image
from servers import free_port, wait_for

SPEC = PlatformSpec(
    id="fwd_1", kind="forwarder", endpoint_id="end_1", module="http.server", arguments=("0", "--bind", "127.0.0.1")
)
SECRETS = {"redis_url": "redis://:hush-redis@127.0.0.1:1/0", "database_url": "postgresql://ada:hush-sql@127.0.0.1:1/db"}
STARTS_AND_IS_KILLED = """
import os, signal, sys
from brinery_platform.runtimes.base import LogMark, PlatformSpec
from brinery_platform.services import connect
from brinery_platform.settings import read_settings

given = dict(home=sys.argv[1], platform_image=sys.argv[2], runtime="docker", redis_url=sys.argv[3])
runtime = connect(read_settings(**given)).runtime
place = ("0", "--bind", "127.0.0.1")
runtime.start(PlatformSpec(id="fwd_1", kind="forwarder", endpoint_id="end_1", module="http.server", arguments=place))
os.kill(os.getpid(), signal.SIGKILL)
"""


class Place:
    def __init__(self, home, engine, image):
        self.home, self.engine, self.image = home, engine, image
        self.runtimes, self.ended = [], []

    def services(self, **given):
        settings = {"home": self.home, "runtime": "docker", "platform_image": self.image, **SECRETS, **given}
        return connect(read_settings(**settings))

    def runtime(self, **given):
        runtime = self.services(**given).runtime
        runtime.on_exit = self.ended.append
        self.runtimes.append(runtime)
        return runtime

    def close(self, runtime):
        runtime.close()
        self.runtimes.remove(runtime)

    @property
    def name(self):
        return f"brinery-{home_mark(self.home)}-fwd_1"

    def process(self):
        """The first process of what runs as ``fwd_1``."""
        if self.image:
            return min(processes_of(self.engine.inspect(self.name)["Id"]), key=lambda process: process.pid)
        record = json.loads((self.home / "run" / "processes" / "fwd_1.json").read_text())
        return psutil.Process(record["identity"]["pid"])

    def clear(self):
        runtime = self.runtime()
        for running in runtime.list():
            runtime.stop(running.id, grace_seconds=0)
        for one in self.runtimes:
            one.close()
        self.runtimes.clear()
        self.ended.clear()


@pytest.fixture(scope="module")
def engine_and_image(tmp_path_factory):
    home = tmp_path_factory.mktemp("image") / "home"
    with cleared(home) as engine:
        yield engine, platform_image(engine, home)


@pytest.fixture(scope="module", params=["process", "container"])
def any_place(request, engine_and_image, tmp_path_factory):
    engine, image = engine_and_image
    home = tmp_path_factory.mktemp(request.param) / "home"
    with cleared(home):
        yield Place(home, engine, image if request.param == "container" else "")


@pytest.fixture
def place(any_place):
    yield any_place
    any_place.clear()


@pytest.fixture(scope="module")
def container_place(engine_and_image, tmp_path_factory):
    engine, image = engine_and_image
    home = tmp_path_factory.mktemp("contained") / "home"
    with cleared(home):
        yield Place(home, engine, image)


@pytest.fixture
def inside(container_place):
    yield container_place
    container_place.clear()


def says(runtime, text):
    wait_for(lambda: [line for line in runtime.logs("fwd_1") if text in line])


def test_what_was_started_is_listed_until_it_is_stopped(place):
    runtime = place.runtime()
    running = runtime.start(SPEC)
    assert (running.id, running.kind, running.endpoint_id, running.url) == ("fwd_1", "forwarder", "end_1", "")
    assert runtime.list() == [running]
    assert runtime.poll("fwd_1") is None
    says(runtime, "Serving HTTP")
    runtime.stop("fwd_1", grace_seconds=20)
    assert runtime.list() == []
    assert runtime.poll("fwd_1") == 0
    assert [line for line in runtime.logs("fwd_1") if "Serving HTTP" in line]


def test_starting_an_id_twice_starts_it_once(place):
    runtime, other = place.runtime(), place.runtime()
    first = runtime.start(SPEC)
    assert runtime.start(SPEC) == first
    assert other.start(SPEC) == first
    assert other.list() == [first]


def test_runtimes_that_start_one_id_at_the_same_moment_start_it_once(place):
    started = []
    runtimes = [place.runtime() for _ in range(3)]
    threads = [threading.Thread(target=lambda one=one: started.append(one.start(SPEC))) for one in runtimes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 3
    assert len(set(started)) == 1
    says(runtimes[0], "Serving HTTP")


def test_an_end_is_told_with_its_reason_for_own_and_for_adopted_ones(place):
    first, second = place.runtime(), place.runtime()
    first.start(SPEC)
    assert [running.id for running in second.list()] == ["fwd_1"]
    says(first, "Serving HTTP")
    place.process().kill()
    wait_for(lambda: place.ended.count("fwd_1") >= 2)
    assert wait_for(lambda: first.poll("fwd_1")) == -signal.SIGKILL
    assert first.why("fwd_1") == "killed by signal 9 (SIGKILL)"
    assert first.list() == []


def test_a_second_runtime_adopts_what_the_first_one_started(place):
    first = place.runtime()
    running = first.start(SPEC)
    place.close(first)
    second = place.runtime()
    assert second.poll("fwd_1") is None
    assert second.list() == [running]
    second.stop("fwd_1", grace_seconds=20)
    assert second.list() == []


def test_one_that_its_starter_was_killed_beside_goes_on(inside):
    command = [sys.executable, "-c", STARTS_AND_IS_KILLED, str(inside.home), inside.image, SECRETS["redis_url"]]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    runtime = inside.runtime()
    assert [(one.id, one.kind, one.endpoint_id) for one in runtime.list()] == [("fwd_1", "forwarder", "end_1")]
    says(runtime, "Serving HTTP")


def test_its_starter_killed_before_the_settings_came_leaves_one_that_ends(inside):
    runtime = inside.runtime()
    config = runtime._platform.config(SPEC, {"brinery.home": home_mark(inside.home)})
    inside.engine.create(inside.name, config)
    with inside.engine.conversation(inside.name):
        inside.engine.start(inside.name)
    assert wait_for(lambda: runtime.poll("fwd_1")) == 1
    assert [line for line in runtime.logs("fwd_1") if "did not come" in line]


def test_it_has_no_rights_and_no_secret_stands_in_its_configuration(inside):
    runtime = inside.runtime()
    runtime.start(SPEC)
    says(runtime, "Serving HTTP")
    told = everything_about(inside.name)
    assert "hush" not in told
    assert "docker.sock" not in told
    host = inside.engine.inspect(inside.name)["HostConfig"]
    assert host["NetworkMode"] == "host"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    process = inside.process()
    assert process.uids().real == 10001
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    given = process.environ()
    assert given["BRINERY_REDIS_URL"] == SECRETS["redis_url"]
    assert not {"DOCKER_HOST", "BRINERY_DATABASE_URL", "BRINERY_ADMIN_KEY"} & given.keys()


def test_it_writes_to_its_tmpfs_and_the_folder_of_objects_alone(inside):
    objects = inside.home / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    objects.chmod(0o777)
    program = (
        "import os, pathlib\n"
        f"for place in ('/tmp', '/', '/var', '/opt/platform', {str(objects)!r}, {str(inside.home)!r}):\n"
        "    try:\n"
        "        pathlib.Path(place, 'probe').write_text('x')\n"
        "        print('wrote', place)\n"
        "    except OSError as error:\n"
        "        print('refused', place)\n"
    )
    runtime = inside.runtime()
    runtime.start(replace(SPEC, module="timeit", arguments=("-n1", "-r1", program)))
    wait_for(lambda: runtime.poll("fwd_1") is not None)
    said = list(runtime.logs("fwd_1"))
    assert {line.split()[1] for line in said if line.startswith("wrote")} == {"/tmp", str(objects)}  # noqa: S108 - its own
    assert {line.split()[1] for line in said if line.startswith("refused")} >= {"/", "/opt/platform", str(inside.home)}


def test_the_egress_proxy_is_given_the_key_and_no_other_secret(inside):
    port = free_port()
    spec = PlatformSpec(
        id="egress", kind="egress", module="brinery_platform.egress", arguments=("--listen", f"127.0.0.1:{port}")
    )
    runtime = inside.runtime()
    (inside.home / "objects").mkdir(parents=True, exist_ok=True)
    key = inside.home / "signing.key"
    runtime.start(spec)
    name = f"brinery-{home_mark(inside.home)}-egress"
    assert inside.engine.inspect(name)["HostConfig"]["Binds"] == [f"{key}:{key}:ro"]

    def listens():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True

    wait_for(listens)
    (process,) = processes_of(inside.engine.inspect(name)["Id"])
    assert "hush" not in str(process.environ())


def test_builders_stay_processes(inside):
    runtime = inside.runtime()
    runtime.start(
        PlatformSpec(id="fwd_2", kind="builder", module="http.server", arguments=("0", "--bind", "127.0.0.1"))
    )
    assert inside.engine.inspect(f"brinery-{home_mark(inside.home)}-fwd_2") is None
    assert runtime.poll("fwd_2") is None
    runtime.stop("fwd_2", grace_seconds=20)
    assert runtime.list() == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"platform_image": "brinery/never-made:none"}, "has no image brinery/never-made:none"),
        ({"platform_image": "ROOT"}, "runs as root"),
        ({"redis_url": ""}, "BRINERY_REDIS_URL"),
    ],
)
def test_what_cannot_be_started_says_why_and_leaves_nothing(inside, given, words):
    if given.get("platform_image") == "ROOT":
        given = {"platform_image": inside.engine.images({"brinery.kind": "base"})[0]["Id"]}
    runtime = inside.runtime(**given)
    with pytest.raises(DeploymentError, match=words):
        runtime.start(SPEC)
    assert runtime.list() == []


def test_out_of_a_container_only_what_lies_in_a_volume_can_be_shared(inside, monkeypatch):
    """The controller in a container finds where the engine has its files, by its own mounts."""
    volume = inside.home / "volume"
    (volume / "objects").mkdir(parents=True)
    config = {"Image": inside.image, "Cmd": ["python3"], "HostConfig": {"Binds": [f"{volume}:/var/lib/brinery"]}}
    container = inside.engine.create(f"brinery-{home_mark(inside.home)}-controller", config)
    try:
        own = f"/var/lib/docker/containers/{container}/hostname /etc/hostname rw"
        (inside.home / "mountinfo").write_text(f"1 2 0:1 {own}\n")
        monkeypatch.setattr(platform_containers, "MOUNTS", inside.home / "mountinfo")
        assert platform_containers.own_container() == container
        containers = inside.runtime()._platform
        assert containers._on_host(Path("/var/lib/brinery/objects")) == str(volume / "objects")
        with pytest.raises(DeploymentError, match="in no volume"):
            containers._on_host(Path("/elsewhere/objects"))
    finally:
        inside.engine.remove(container)


def test_lines_have_times_by_which_a_reader_goes_on_exactly_where_it_was(inside):
    program = "for n in range(300):\n    print(n, 'x' * (40_000 if n == 150 else 3))"
    runtime = inside.runtime()
    runtime.start(replace(SPEC, module="timeit", arguments=("-n1", "-r1", program)))
    wait_for(lambda: runtime.poll("fwd_1") is not None)
    whole = list(runtime.stamped("fwd_1", tail=-1, follow=True))
    numbers = [int(line.split()[0]) for _, line in whole if "x" in line]
    assert sorted(numbers) == list(range(300))
    assert [len(line) for _, line in whole if line.startswith("150 ")] == [40_004]
    at = next(when for when, line in whole if line.startswith("150 "))
    again = runtime.stamped("fwd_1", tail=-1, follow=True, since=LogMark(at - 0.001, 0))
    assert [entry for entry in again if entry[0] > at] == [entry for entry in whole if entry[0] > at]


def test_what_runs_in_an_earlier_image_is_outdated(inside):
    runtime = inside.runtime()
    runtime.start(SPEC)
    assert not runtime.outdated("fwd_1")
    newer = next(
        name
        for image in inside.engine.images({"brinery.kind": "test"})
        for name in image["RepoTags"] or []
        if name != inside.image
    )
    assert inside.runtime(platform_image=newer).outdated("fwd_1")
    assert not inside.runtime(platform_image="").outdated("fwd_1")
    assert not inside.runtime(platform_image="brinery/never-made:none").outdated("fwd_1")
