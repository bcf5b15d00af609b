"""Environments built by the real uv, in processes that are killed in the middle too."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from brinery.errors import DeploymentError, InvalidRequestError
from brinery.spec import BundleManifest
from brinery_platform.environments import READY_MARKER, Environments
from brinery_platform.settings import index_environment

# A build backend that never comes to an end, and says so.
ENDLESS_SETUP = """
import pathlib, time
pathlib.Path({started!r}).write_text("started")
time.sleep(600)
"""
BUILD = """
import sys
from pathlib import Path
from brinery.spec import BundleManifest
from brinery_platform.environments import Environments
from brinery_platform.settings import index_environment

python = f"{sys.version_info.major}.{sys.version_info.minor}"
manifest = BundleManifest(name="one", kind="function", python=python, cloudpickle="3.1.2", requirements=sys.argv[2:])
built = Environments(Path(sys.argv[1]), index_environment()).build(manifest, lambda line: print(line, flush=True))
print("BUILT", built.environment_id)
"""


def manifest(*requirements: str, python: str | None = None) -> BundleManifest:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    return BundleManifest(
        name="one", kind="function", python=python or own, cloudpickle="3.1.2", requirements=list(requirements)
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One package cache for all tests here, so that each package comes over the network once."""
    return {**index_environment(), "UV_CACHE_DIR": str(tmp_path_factory.mktemp("uv-cache"))}


@pytest.fixture(scope="module")
def built(tmp_path_factory, cache):
    """An environment that no test changes, with the lines that its build said."""
    environments = Environments(tmp_path_factory.mktemp("home"), cache)
    lines: list[str] = []
    return environments, environments.build(manifest("six==1.17.0"), lines.append), lines


def run_in(environments, environment_id, code):
    command = [environments.path(environment_id) / "bin" / "python", "-c", code]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_an_environment_holds_what_was_asked_for_and_what_the_worker_needs(built):
    environments, result, _ = built
    assert "six==1.17.0" in result.lock.splitlines()
    code = "import annotated_types, cloudpickle, fastjsonschema, flask, gunicorn, six; print(six.__version__)"
    assert run_in(environments, result.environment_id, code) == "1.17.0"
    assert environments.is_ready(result.environment_id)


def test_an_environment_sees_nothing_of_the_platforms_own_packages(built):
    environments, result, _ = built
    code = "import importlib.util as u; print([n for n in ('sqlalchemy', 'brinery', 'pip') if u.find_spec(n)])"
    assert run_in(environments, result.environment_id, code) == "[]"


def test_the_build_says_line_by_line_what_it_does(built):
    _, result, lines = built
    assert lines[0].startswith("Resolving")
    assert any("six==1.17.0" in line for line in lines)
    assert lines[-1] == f"Environment {result.environment_id} is ready"


def test_nothing_in_a_finished_environment_is_writable(built):
    environments, result, _ = built
    root = environments.path(result.environment_id)
    entries = [root, *root.rglob("*")]
    assert not [entry for entry in entries if not entry.is_symlink() and entry.stat().st_mode & 0o222]


def test_bytecode_is_compiled_because_no_worker_can_write_it(built):
    environments, result, _ = built
    assert run_in(environments, result.environment_id, "import flask; print(flask.__cached__)").endswith(".pyc")
    root = environments.path(result.environment_id)
    assert next(root.glob("lib/python*/site-packages/flask/__pycache__/app.*.pyc"))


def test_the_same_requirements_in_other_words_share_one_environment(built):
    environments, result, _ = built
    assert environments.build(manifest("  six == 1.17.0"), print).environment_id == result.environment_id


def test_building_again_from_the_lock_asks_no_index(tmp_path, built, cache):
    _, result, _ = built
    lines: list[str] = []
    again = Environments(tmp_path, {**cache, "UV_OFFLINE": "1"}).build(manifest("six"), lines.append, lock=result.lock)
    assert again == result
    assert not [line for line in lines if line.startswith("Resolving")]


def test_an_environment_that_was_left_half_made_is_built_anew(tmp_path, cache):
    environments = Environments(tmp_path, cache)
    result = environments.build(manifest(), print)
    path = environments.path(result.environment_id)
    path.chmod(0o700)
    (path / READY_MARKER).unlink()
    (path / "half-made").write_text("")
    assert not environments.is_ready(result.environment_id)
    assert environments.build(manifest(), print, lock=result.lock) == result
    assert environments.is_ready(result.environment_id)
    assert not (path / "half-made").exists()


def test_an_environment_whose_interpreter_is_gone_is_not_ready(tmp_path, cache):
    environments = Environments(tmp_path, cache)
    result = environments.build(manifest(), print)
    interpreter = environments.path(result.environment_id) / "bin" / "python"
    interpreter.parent.chmod(0o700)
    interpreter.unlink()
    interpreter.symlink_to(tmp_path / "gone")
    assert not environments.is_ready(result.environment_id)


def test_two_builds_of_one_environment_at_once_build_it_once(tmp_path, cache):
    said: list[list[str]] = [[], []]
    with ThreadPoolExecutor() as pool:
        builds = [
            pool.submit(Environments(tmp_path, cache).build, manifest("six==1.17.0"), lines.append) for lines in said
        ]
        assert len({build.result().environment_id for build in builds}) == 1
    assert sum(line.startswith("Installed") for lines in said for line in lines) == 1


def test_a_package_that_does_not_exist_is_reported_in_uvs_own_words(tmp_path, cache):
    lines: list[str] = []
    with pytest.raises(DeploymentError, match="no-such-package-brinery-xyz was not found") as caught:
        Environments(tmp_path, cache).build(manifest("no-such-package-brinery-xyz"), lines.append)
    assert "deploy again" in caught.value.message
    assert any("no-such-package-brinery-xyz" in line for line in lines)


def test_a_package_that_cannot_be_built_is_reported_and_leaves_nothing(tmp_path, cache):
    (tmp_path / "links").mkdir()
    make_package(tmp_path / "links", "raise SystemExit('this package is broken on purpose')")
    index = {**cache, "UV_FIND_LINKS": str(tmp_path / "links")}
    with pytest.raises(DeploymentError, match="broken on purpose"):
        Environments(tmp_path / "home", index).build(manifest("brinery-test-package"), print)
    assert not [path for path in (tmp_path / "home" / "environments").iterdir() if path.is_dir()]


def test_a_python_that_is_not_there_is_refused_with_those_that_are(tmp_path, cache):
    environments = Environments(tmp_path, cache)
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert own in environments.python_versions()
    with pytest.raises(InvalidRequestError, match=rf"Python 3\.2 isn't on this machine.*{own}"):
        environments.build(manifest(python="3.2"), print)


def test_a_build_sees_no_variable_but_those_of_the_indexes(tmp_path, cache):
    seen = tmp_path / "seen"
    links = tmp_path / "links"
    links.mkdir()
    make_package(
        links, f"import os, pathlib; pathlib.Path({str(seen)!r}).write_text(chr(10).join(os.environ))\n" + SETUP
    )
    with_secret = {**os.environ, "BRINERY_REDIS_URL": "secret", "AWS_SECRET_ACCESS_KEY": "secret"}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path / "home"), "brinery-test-package"],
        env={**with_secret, "UV_FIND_LINKS": str(links), "UV_CACHE_DIR": cache["UV_CACHE_DIR"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "BUILT" in done.stdout, done.stdout + done.stderr
    names = seen.read_text().splitlines()
    assert "UV_FIND_LINKS" in names
    assert not [name for name in names if name.startswith(("BRINERY_", "AWS_"))]


def test_a_build_ends_with_the_process_that_wanted_it_and_the_next_one_starts_clean(tmp_path, cache):
    started = tmp_path / "started"
    links = tmp_path / "links"
    links.mkdir()
    make_package(links, ENDLESS_SETUP.format(started=str(started)))
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tmp_path / "home"), "brinery-test-package"],
        env={**os.environ, "UV_FIND_LINKS": str(links), "UV_CACHE_DIR": str(tmp_path / "cache")},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    with builder:
        wait_until(started.exists)
        below = psutil.Process(builder.pid).children(recursive=True)
        uv = [process for process in below if process.name() == "uv"]
        assert uv
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        wait_until(lambda: not any(process.is_running() and process.status() != "zombie" for process in uv))
        for process in below:  # the package's own build is the runtime's to end, by its session
            if process.is_running():
                process.kill()
    assert Environments(tmp_path / "home", cache).build(manifest(), print)


def test_a_build_whose_listener_fails_stops(tmp_path, cache):
    def listen(_line):
        raise RuntimeError("gone away")

    with pytest.raises(RuntimeError, match="gone away"):
        Environments(tmp_path, cache).build(manifest(), listen)
    assert not [path for path in (tmp_path / "environments").iterdir() if path.is_dir()]


def test_the_workers_code_is_copied_once_and_apart_from_the_platforms_packages(tmp_path, built):
    environments, result, _ = built
    first = environments.worker_runtime_path()
    assert Environments(first.parent.parent, {}).worker_runtime_path() == first
    assert sorted(path.name for path in first.iterdir()) == ["brinery", "brinery_worker"]
    python = environments.path(result.environment_id) / "bin" / "python"
    done = subprocess.run(
        [python, "-c", "import brinery.spec, brinery_worker.app; print(brinery_worker.__file__)"],
        env={"PYTHONPATH": str(first)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(first / "brinery_worker" / "__init__.py"), done.stderr


SETUP = "from setuptools import setup; setup(name='brinery-test-package', version='1.0', py_modules=[])"


def make_package(folder, setup):
    """Write a source package whose building runs `setup`."""
    import tarfile
    from io import BytesIO

    files = {
        "setup.py": setup,
        "PKG-INFO": "Metadata-Version: 2.1\nName: brinery-test-package\nVersion: 1.0\n",
    }
    with tarfile.open(folder / "brinery_test_package-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"brinery_test_package-1.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, BytesIO(text.encode()))


def wait_until(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
