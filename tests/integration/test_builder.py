"""The builder as a real process on a real Redis: builds, failures, kills in the middle, and its own end."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from brinery.spec import BundleManifest, to_json
from brinery_platform.build_orders import build_key, request_build
from brinery_platform.builder import MAX_STARTS, Builder, end_when_idle
from brinery_platform.embedded_redis import EmbeddedRedis
from brinery_platform.environments import environment_key
from brinery_platform.services import connect
from brinery_platform.settings import platform_environment, read_settings

SLOW_SETUP = """
import pathlib, time
pathlib.Path({started!r}).write_text("started")
while not pathlib.Path({go!r}).exists():
    time.sleep(0.05)
from setuptools import setup
setup(name="brinery-slow-package", version="1.0", py_modules=[])
"""


def manifest(*requirements):
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    return BundleManifest(name="one", kind="function", python=own, cloudpickle="3.1.2", requirements=list(requirements))


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    """A home with a running Redis, and the parts of the platform on it."""
    home = tmp_path_factory.mktemp("home")
    server = EmbeddedRedis(home)
    server.start()
    services = connect(read_settings(home=home))
    yield services
    services.celery.close()
    services.redis.close()
    server.stop()


@contextlib.contextmanager
def running_builder(services, **variables):
    """Run a builder as the runtime does: in a session of its own, which ends as a whole."""
    environment = {**platform_environment(services.settings), **variables}
    command = [sys.executable, "-m", "brinery_platform.builder"]
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            end_session(process.pid)


def end_session(session):
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == session:
                process.kill()


def order(services, wanted, endpoint_id="end_1", lock=None):
    key = environment_key(wanted)
    request_build(
        services.celery, services.redis, key=key, manifest=wanted, lock=lock, endpoint_id=endpoint_id, version=2
    )
    return key


def state_of(services, key):
    return {name.decode(): value.decode() for name, value in services.redis.hgetall(build_key(key)).items()}


def outcome(services, key, seconds=60):
    return wait_until(lambda: (now := state_of(services, key)).get("status") != "building" and now, seconds)


def wait_until(true, seconds=30):
    deadline = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


def lines_of(services, endpoint_id):
    return [fields for _, fields in services.redis.xrange(f"log:{endpoint_id}")]


def test_an_ordered_environment_is_built_and_its_output_shown(platform):
    with platform.redis.pubsub() as listener, running_builder(platform):
        listener.subscribe("wake")
        wait_until(lambda: listener.get_message(timeout=1))  # that it has subscribed
        key = order(platform, manifest("six"), endpoint_id="end_shown")
        done = outcome(platform, key)
        assert done["status"] == "ready"
        assert "six==" in done["lock"]
        assert "alive_at" not in done
        assert platform.environments.is_ready(done["environment_id"])
        assert wait_until(lambda: (listener.get_message(timeout=1) or {}).get("data")) == b"end_shown"
    lines = lines_of(platform, "end_shown")
    assert {(line[b"kind"], line[b"version"]) for line in lines} == {(b"build", b"2")}
    texts = [line[b"text"].decode() for line in lines]
    assert any("six==" in text for text in texts)
    log = platform.settings.home / "logs" / "builds" / f"{key}.log"
    assert log.read_text().splitlines() == texts


def test_a_build_that_fails_says_why_and_the_next_one_is_built(platform):
    with running_builder(platform):
        failed = outcome(platform, order(platform, manifest("no-such-package-brinery-xyz")))
        assert failed["status"] == "failed"
        assert "no-such-package-brinery-xyz" in failed["error"]
        assert "environment_id" not in failed
        assert outcome(platform, order(platform, manifest()))["status"] == "ready"


def test_a_given_lock_is_not_resolved_anew(platform):
    with running_builder(platform):
        lock = outcome(platform, order(platform, manifest("six<1.17")))["lock"]
        done = outcome(platform, order(platform, manifest("six"), endpoint_id="end_locked", lock=lock))
    assert done["lock"] == lock
    assert not [line for line in lines_of(platform, "end_locked") if b"Resolving" in line[b"text"]]


def test_an_order_that_comes_twice_is_harmless(platform):
    with running_builder(platform):
        wanted = manifest("six==1.16.0")
        key, *_ = [order(platform, wanted) for _ in range(3)]
        wait_until(lambda: platform.redis.llen("builds") == 0)
        done = outcome(platform, key)
    assert done["status"] == "ready"
    assert platform.environments.is_ready(done["environment_id"])


def test_a_builder_killed_in_the_middle_is_noticed_and_the_build_done_again(platform, tmp_path):
    started, go, links = tmp_path / "started", tmp_path / "go", tmp_path / "links"
    links.mkdir()
    make_package(links, SLOW_SETUP.format(started=str(started), go=str(go)))
    wanted = manifest("brinery-slow-package")
    with running_builder(platform, UV_FIND_LINKS=str(links)) as builder:
        key = order(platform, wanted)
        wait_until(started.exists)
        first = float(wait_until(lambda: state_of(platform, key).get("alive_at")))
        assert wait_until(lambda: float(state_of(platform, key)["alive_at"]) > first)
        builder.kill()
        builder.wait()
        end_session(builder.pid)  # as the runtime does
    assert state_of(platform, key)["status"] == "building"
    go.write_text("")
    with running_builder(platform, UV_FIND_LINKS=str(links)):
        # What the controller does once `alive_at` is old.
        wait_until(lambda: time.time() - float(state_of(platform, key)["alive_at"]) > 6)
        order(platform, wanted)
        done = outcome(platform, key)
    assert done["status"] == "ready", done
    assert "starts" not in done


def test_a_build_that_every_builder_dies_of_is_given_up(platform):
    key = environment_key(manifest("six==1.15.0"))
    platform.redis.hset(build_key(key), "starts", MAX_STARTS)
    with running_builder(platform):
        done = outcome(platform, order(platform, manifest("six==1.15.0")))
    assert done["status"] == "failed"
    assert "died" in done["error"]
    assert "starts" not in done


def test_a_manifest_that_is_none_fails_its_build_and_not_the_builder(platform):
    builder = Builder(platform)
    builder.carry_out("bad", {"name": 3}, None, "end_1", 1)
    done = state_of(platform, "bad")
    assert done["status"] == "failed"
    assert "manifest" in done["error"]


def test_a_builder_is_not_idle_while_it_builds(platform):
    builder = Builder(platform)
    seen = []
    watch = threading.Thread(target=lambda: seen.append(wait_until(lambda: builder.idle_seconds() == 0 or None)))
    watch.start()
    builder.carry_out("busy", to_json(manifest()), None, "end_1", 1)
    watch.join()
    assert seen == [True]
    assert builder.idle_seconds() > 0


def test_an_idle_process_asks_itself_to_end():
    heard = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: heard.set())
    try:
        end_when_idle(lambda: 1.0, limit_seconds=0.5)
        assert heard.wait(5)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_builder_ends_cleanly_on_sigterm(platform):
    with running_builder(platform) as builder:
        assert outcome(platform, order(platform, manifest()))["status"] == "ready"
        builder.terminate()
        assert builder.wait(20) == 0


def make_package(folder, setup):
    """Write a source package whose building runs `setup`."""
    import tarfile
    from io import BytesIO

    files = {
        "setup.py": setup,
        "PKG-INFO": "Metadata-Version: 2.1\nName: brinery-slow-package\nVersion: 1.0\n",
    }
    with tarfile.open(folder / "brinery_slow_package-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"brinery_slow_package-1.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, BytesIO(text.encode()))
