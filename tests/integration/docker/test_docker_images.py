"""Images on a real engine: the base of this machine, environments built once, and what failed builds leave: nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest

from brinery.errors import DeploymentError, InvalidRequestError
from brinery.spec import BundleManifest
from brinery_platform.environments import PLATFORM_PYTHON
from brinery_platform.images.environments import open_environments
from brinery_platform.images.inventory import Inventory
from brinery_platform.runtimes.detached import home_mark
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.bundles import environment_image
from brinery_platform.settings import index_environment, read_settings
from containers import cleared, docker, everything_about

SECRET = "s3cret-of-an-index"
BUILD = """
import sys
from pathlib import Path
from brinery.spec import BundleManifest
from brinery_platform.images.environments import open_environments
from brinery_platform.settings import index_environment, read_settings

python = f"{sys.version_info.major}.{sys.version_info.minor}"
manifest = BundleManifest(name="one", kind="function", python=python, cloudpickle="3.1.2", requirements=sys.argv[2:])
environments = open_environments(read_settings(home=sys.argv[1], runtime="docker"), index_environment())
environments.build(manifest, lambda line: print(line, flush=True))
"""


def manifest(*requirements, python=PLATFORM_PYTHON):
    return BundleManifest(
        name="one", kind="function", python=python, cloudpickle="3.1.2", requirements=list(requirements)
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("images") / "home"


@pytest.fixture(scope="module")
def engine(home):
    with cleared(home) as engine:
        yield engine


@pytest.fixture
def opened():
    """Opens the environments of a home, and closes them."""
    with contextlib.ExitStack() as stack:

        def open_one(home, **settings):
            index = {**index_environment(), "UV_INDEX_PRIVATE_PASSWORD": SECRET, **settings.pop("index", {})}
            environments = open_environments(read_settings(home=home, runtime="docker", **settings), index)
            stack.callback(environments.close)
            return environments

        yield open_one


def of_home(engine, home, **wanted):
    return engine.images({labels.HOME: home_mark(home), **wanted})


def leftovers(engine, home):
    """Containers and nameless images that nobody will ever use."""
    nameless = [image for image in of_home(engine, home) if not image["RepoTags"]]
    return engine.containers({labels.HOME: home_mark(home)}, ended_too=True) + nameless


def wait_until(true, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer


def run_in(environment_id, code):
    command = ["run", "--rm", "--network", "none", environment_image(environment_id)]
    return docker(*command, "/opt/brinery/environment/bin/python", "-c", code).strip()


def test_a_base_is_made_once_and_says_what_it_does(engine, home, opened):
    lines = []
    opened(home).bootstrap(PLATFORM_PYTHON, lines.append)
    made = {image["Id"] for image in engine.images({labels.KIND: "base"})}
    assert lines[0].startswith("Collecting")
    opened(home).bootstrap(PLATFORM_PYTHON, lines.append)
    assert lines[-1].endswith("is there already")
    assert {image["Id"] for image in engine.images({labels.KIND: "base"})} == made
    base = lines[-1].split()[2]
    code = (
        "import ctypes, lzma, sqlite3, ssl, zoneinfo; print(ssl.create_default_context().cert_store_stats()['x509_ca'])"
    )
    assert int(docker("run", "--rm", "--network", "none", "--user", "65534", base, "python3", "-c", code)) > 10
    assert docker("run", "--rm", "--network", "none", base, "sh", "-c", "ls / | wc -l").strip().isdigit()


def test_an_environment_holds_what_was_asked_for_and_shows_its_building(engine, home, opened):
    lines = []
    environments = opened(home)
    built = environments.build(manifest("six==1.17.0"), lines.append)
    assert environments.is_ready(built.environment_id)
    assert "six==1.17.0" in built.lock.splitlines()
    assert any("+ six==1.17.0" in line for line in lines)
    assert lines[-1] == f"Environment {built.environment_id} is ready"
    code = "import annotated_types, cloudpickle, fastjsonschema, flask, gunicorn, six, os\n"
    code += "print(six.__version__, os.getuid())"
    assert run_in(built.environment_id, code) == "1.17.0 65534"
    assert leftovers(engine, home) == []


def test_nothing_of_a_build_is_in_its_image_but_the_packages(home, opened):
    built = opened(home).build(manifest("six==1.17.0"), print)
    told = everything_about(environment_image(built.environment_id))
    assert SECRET not in told
    assert "UV_" not in told
    config = json.loads(docker("inspect", environment_image(built.environment_id)))[0]["Config"]
    assert (config["User"], config["OpenStdin"], config["Entrypoint"] or None) == ("65534:65534", False, None)
    assert config["Cmd"] == ["/opt/brinery/environment/bin/python"]
    code = "import os; print(*map(os.listdir, ['/opt/brinery/build', '/tmp']), os.access('/opt/brinery', os.W_OK))"
    assert run_in(built.environment_id, code) == "[] [] False"


def test_building_again_from_the_lock_changes_and_resolves_nothing(engine, home, opened):
    built = opened(home).build(manifest("six==1.17.0"), print)
    before = of_home(engine, home)
    lines = []
    assert opened(home).build(manifest("six"), lines.append, lock=built.lock) == built
    assert lines == [f"Environment {built.environment_id} is ready"]
    assert of_home(engine, home) == before


def test_two_builds_of_one_environment_at_once_build_it_once(engine, home, opened):
    said = [[], []]
    with ThreadPoolExecutor() as pool:
        builds = [pool.submit(opened(home).build, manifest("six==1.16.0"), lines.append) for lines in said]
        (environment_id,) = {build.result().environment_id for build in builds}
    assert sum(line.startswith("Installed") for lines in said for line in lines) == 1
    assert len(of_home(engine, home, **{labels.ENVIRONMENT: environment_id})) == 1


def test_a_package_that_does_not_exist_is_reported_in_uvs_own_words_and_leaves_nothing(engine, home, opened):
    before = of_home(engine, home)
    with pytest.raises(DeploymentError, match="no-such-package-brinery-xyz was not found") as caught:
        opened(home).build(manifest("no-such-package-brinery-xyz"), print)
    assert "deploy again" in caught.value.message
    assert of_home(engine, home) == before
    assert leftovers(engine, home) == []


def test_code_that_runs_during_a_build_sees_no_file_and_no_variable_of_the_platform(engine, home, opened, tmp_path):
    """The package's setup.py runs both when requirements are resolved and when they are installed."""
    setup = (
        "import os, sys\n"
        f"seen = [os.getuid(), os.path.exists({str(home)!r}), os.path.exists('/var/run/docker.sock')]\n"
        "seen += [name for name in os.environ if name.startswith(('BRINERY_', 'AWS_'))]\n"
        "sys.exit('SEEN ' + repr(seen))\n"
    )
    links = make_links(tmp_path, setup)
    with pytest.raises(DeploymentError, match=r"SEEN \[65533, False, False\]"):
        opened(home, index={"UV_FIND_LINKS": str(links)}).build(manifest("brinery-test-package"), print)
    assert leftovers(engine, home) == []


def test_a_build_whose_builder_is_killed_ends_and_the_next_one_clears_up(engine, home, opened, tmp_path):
    links = make_links(tmp_path, "import time; print('building', flush=True); time.sleep(600)")
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(home), "brinery-test-package"],
        env={**os.environ, "UV_FIND_LINKS": str(links)},
        stdout=subprocess.DEVNULL,
    )
    whose = {labels.HOME: home_mark(home), labels.KIND: "build"}
    with builder:
        (container,) = wait_until(lambda: engine.containers(whose))
        builder.send_signal(signal.SIGKILL)
    assert engine.wait(container["Id"], timeout_seconds=30)
    assert leftovers(engine, home)
    opened(home).build(manifest("six==1.15.0"), print)
    assert leftovers(engine, home) == []


def test_a_build_whose_listener_fails_leaves_nothing(engine, home, opened):
    def listen(line):
        if "Resolved" in line:
            raise RuntimeError("gone away")

    with pytest.raises(RuntimeError, match="gone away"):
        opened(home).build(manifest("six==1.14.0"), listen)
    assert leftovers(engine, home) == []


def test_a_base_may_be_made_of_any_image_with_python_and_glibc(engine, home, opened, tmp_path):
    lines = []
    opened(home).bootstrap(PLATFORM_PYTHON, lines.append)
    source = f"brinery-test/source:{home_mark(tmp_path)}"
    docker("tag", lines[-1].split()[2], source)
    try:
        environments = opened(home, base_image=source)
        built = environments.build(manifest(), lines.append)
        assert any(f"certificates to {source}" in line for line in lines)
        assert run_in(built.environment_id, "import flask; print('there')") == "there"
        with pytest.raises(InvalidRequestError, match="no Python 3\\.2"):
            environments.build(manifest(python="3.2"), print)
    finally:
        docker("rmi", source)
    assert leftovers(engine, home) == []


def test_an_image_without_python_is_refused_as_a_base_and_leaves_nothing(engine, home, opened, tmp_path):
    with tarfile.open(tmp_path / "empty.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    source = f"brinery-test/empty:{home_mark(tmp_path)}"
    docker("import", str(tmp_path / "empty.tar"), source)
    try:
        with pytest.raises((InvalidRequestError, DeploymentError), match="python3"):
            opened(home, base_image=source).build(manifest(), print)
    finally:
        docker("rmi", source)
    assert leftovers(engine, home) == []


def test_pruning_leaves_what_endpoints_need_and_what_other_homes_made(engine, home, opened, tmp_path):
    needed = opened(home).build(manifest("six==1.17.0"), print).environment_id
    other = opened(home).build(manifest("six==1.16.0"), print).environment_id
    inventory = Inventory(engine, home_mark(home))
    assert Inventory(engine, home_mark(tmp_path)).prune(needed=set()) == []
    removed = inventory.prune(needed={needed})
    assert other in {image.environment_id for image in removed}
    left = inventory.images()
    assert needed in {image.environment_id for image in left}
    assert other not in {image.environment_id for image in left if image.own}
    assert "base" in {image.kind for image in left}
    assert all(image.name for image in left)


def make_links(folder, setup):
    """Return a folder with a source package whose building runs `setup`."""
    links = folder / "links"
    links.mkdir()
    links.chmod(0o755)
    files = {"setup.py": setup, "PKG-INFO": "Metadata-Version: 2.1\nName: brinery-test-package\nVersion: 1.0\n"}
    with tarfile.open(links / "brinery_test_package-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"brinery_test_package-1.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, BytesIO(text.encode()))
    return links
