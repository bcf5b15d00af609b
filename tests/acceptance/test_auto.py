"""``BRINERY_RUNTIME=auto``: containers where they really run, else processes; a line says which, and why."""

import json
import socket

import psutil
import pytest

from brinery_platform.environments import PLATFORM_PYTHON
from brinery_platform.images.environments import open_environments
from brinery_platform.runtimes.auto import choose
from brinery_platform.runtimes.detached import home_mark
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.engine import Engine
from brinery_platform.settings import index_environment, read_settings
from containers import cleared
from engines import docker_at, own_engine, own_registry
from servers import free_port

AUTO = {"BRINERY_RUNTIME": "auto"}
WHERE = """
import json
import os
from brinery import endpoint

@endpoint(idle_seconds=300)
def where() -> str:
    return "container" if os.getuid() == 65534 else "process"

if {deploy}:
    where.deploy()
print(json.dumps(where.remote()))
"""


def dead(stack):
    return {"DOCKER_HOST": f"unix://{stack.home}/none.sock"}


def up(stack, **environment):
    """Bring a platform up, and return the line that says what runs its workers, and all lines."""
    lines = stack.brinery("up", "--detach", **environment).stdout.splitlines()
    return next(line for line in lines if line.startswith("Workers run as")), lines


def kill_up(stack):
    """``kill -9`` the `up` itself; what it started goes on."""
    killed = psutil.Process(json.loads((stack.home / "run" / "up.json").read_text())["pid"])
    killed.kill()
    killed.wait(timeout=10)


def workers(engine, stack):
    return engine.containers({labels.HOME: home_mark(stack.home), labels.KIND: "worker"}, ended_too=True)


def test_an_engine_that_appears_is_used_and_one_that_vanishes_is_not_missed(other):
    other.environment |= AUTO
    with cleared(other.home) as engine:
        line, _ = up(other, **dead(other))
        assert line == (
            "Workers run as processes, for containers cannot be used here: "
            "The Docker engine does not answer (No such file or directory)"
        )
        assert other.run(WHERE.format(deploy=True)) == "process"
        assert other.json("status")["runtime"] == "process"
        other.brinery("down")

        line, lines = up(other)
        assert line.startswith("Workers run as containers of the Docker engine ")
        assert "Until now this home's workers ran as processes; they start anew as containers" in lines
        assert other.run(WHERE.format(deploy=False)) == "container"
        assert len(workers(engine, other)) == 1
        seen = other.brinery("status", **dead(other))  # the engine is gone for this command only
        assert "The Docker engine does not answer" in seen.stderr
        assert "Workers run as containers." in seen.stdout

        kill_up(other)
        assert "Stopped what a killed `brinery up` had left." in other.brinery("down").stdout  # its containers, too
        assert workers(engine, other) == []
        assert not other.processes()

        up(other)
        assert other.run(WHERE.format(deploy=False)) == "container"
        kill_up(other)
        line, lines = up(other, BRINERY_RUNTIME="process")
        assert "Until now this home's workers ran as containers; they start anew as processes" in lines
        assert workers(engine, other) == []
        assert other.run(WHERE.format(deploy=False)) == "process"
        other.brinery("down")
    assert not other.processes()


def test_an_engine_that_runs_no_container_falls_back_to_processes_and_says_why(other):
    with own_engine("--add-runtime", "broken=/nonexistent", "--default-runtime", "broken") as host:
        line, lines = up(other, DOCKER_HOST=host, **AUTO)
        assert line.startswith("Workers run as processes, for containers cannot be used here: ")
        assert "The Docker engine refused: " in line
        assert any("No base of python:" in said for said in lines)
        assert other.run(WHERE.format(deploy=True)) == "process"
        other.brinery("down")
        assert not docker_at(host, "ps", "--all", "--quiet")


def test_a_base_comes_from_the_registry_where_it_can_be_reached_else_from_this_machine(other, tmp_path, monkeypatch):
    """The engine asks the test's own registry for public images; it is away at first."""
    port = free_port()
    public = f"python:{PLATFORM_PYTHON}-slim"
    with own_engine("--registry-mirror", f"http://127.0.0.1:{port}") as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        line, lines = up(other, DOCKER_HOST=host, **AUTO)
        assert line.startswith("Workers run as containers of the Docker engine ")
        (reason,) = [said for said in lines if said.startswith("No base of")]
        assert reason.startswith(f"No base of {public}, but of this machine's own Python: ")
        other.brinery("down")
        assert not docker_at(host, "ps", "--all", "--quiet")

        pushed = f"127.0.0.1:{port}/library/{public}"
        made, said = base_of(other)
        assert said == []
        docker_at(host, "tag", made, pushed)
        with own_registry(tmp_path, port) as log:
            docker_at(host, "push", pushed)
            docker_at(host, "rmi", pushed)
            asked = log.read_text().count("/manifests/")
            assert base_of(other) == (made, [])
            assert log.read_text().count("/manifests/") == asked  # where there is a base, no registry is asked

            docker_at(host, "rmi", made)
            fetched, said = base_of(other)
            assert fetched != made
            assert f"Fetching {public}" in said
            assert f"Adding uv and this machine's certificates to {public}" in said
            assert log.read_text().count("/manifests/") > asked
        assert base_of(other, base_image="machine")[0] == made
        said = other.brinery("images", "bootstrap", DOCKER_HOST=host).stdout.splitlines()
        assert said == [said[0], f"Base image {made} is there already"]


def base_of(stack, **settings):
    """Return the name of the base that builds of a home use, and what was said until it was there."""
    said = []
    environments = open_environments(read_settings(home=stack.home, **settings), index_environment())
    try:
        return environments.base(PLATFORM_PYTHON, said.append).name, said
    finally:
        environments.close()


def test_an_engine_that_never_answers_is_given_up(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "sock"))
        silent.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/sock")
        engine = Engine(timeout_seconds=0.3)
        choice = choose(engine, read_settings(home=tmp_path), lambda: pytest.fail("no base is asked for"))
        engine.close()
    assert choice.runtime == "process"
    assert choice.why.startswith("The Docker engine does not answer")
