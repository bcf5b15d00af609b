"""The pure parts of runnable images: who runs, when a worker ends, what a ready route says, and what a key is."""

import contextlib
import io
import socket
import tarfile
import threading
from types import SimpleNamespace

import pytest

from brinery.errors import DeploymentError, InvalidRequestError
from brinery.spec import BundleKind, BundleManifest, ImageSpec, to_json
from brinery_platform.controller.leaving import QUIET_SECONDS, STOP_MARGIN_SECONDS, Leaving
from brinery_platform.controller.ready_route import ask_image
from brinery_platform.controller.starting import worker_route
from brinery_platform.controller.worker import Worker
from brinery_platform.environments import Environments, environment_key
from brinery_platform.fates import Fate
from brinery_platform.forwarder.blame import judge
from brinery_platform.images.references import DOCKER_HUB, References
from brinery_platform.runtimes.base import Running
from brinery_platform.runtimes.docker.users import NOBODY, file_text, user_of

PASSWD = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv:/bin/sh\nboss:x:0:0::/:/bin/sh\nbroken\n"
GROUP = "root:x:0:\nstaff:x:50:app\n"
DIGEST = "sha256:" + "0" * 64


def read(path):
    return {"/etc/passwd": PASSWD, "/etc/group": GROUP}[path]


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ("", NOBODY),
        ("root", NOBODY),
        ("0", NOBODY),
        ("00:5", NOBODY),
        ("boss", NOBODY),
        ("unknown", NOBODY),
        ("app", "1000:1001"),
        ("app:staff", "1000:50"),
        ("app:unknown", NOBODY),
        ("1000", "1000:1001"),
        ("1000:7", "1000:7"),
        ("4321", "4321:4321"),
    ],
)
def test_an_image_runs_as_its_own_user_where_that_is_not_root(own, found):
    assert user_of(own, "", read) == found


def test_a_chosen_user_wins_and_is_never_root():
    assert user_of("root", "app", read) == "1000:1001"
    with pytest.raises(DeploymentError, match="'boss' of the image is root"):
        user_of("app", "boss", read)
    with pytest.raises(DeploymentError, match="no user 'unknown'"):
        user_of("app", "unknown", read)


def test_numbers_need_no_file_of_the_image():
    def refuse(path):
        raise AssertionError(path)

    assert user_of("1000:1000", "", refuse) == "1000:1000"


def test_a_link_in_the_place_of_a_file_is_no_file():
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        link = tarfile.TarInfo("passwd")
        link.type, link.linkname = tarfile.SYMTYPE, "/elsewhere"
        tar.addfile(link)
    assert file_text(archive.getvalue()) == ""


def image_worker(**fields):
    running = Running(id="wrk_1", kind="worker", endpoint_id="end_1", version=1, ready_route="/ready", **fields)
    return Worker(running, started_at=0.0, ready=True)


def test_an_image_ends_when_nothing_was_heard_of_a_call_for_a_while():
    stopped = []
    leaving = Leaving(lambda worker_id, grace: stopped.append((worker_id, grace)))
    leaving.add(image_worker(), drain_seconds=30.0, now=0.0)
    leaving.look({}, QUIET_SECONDS - 0.1)
    leaving.look({"wrk_1": 1}, QUIET_SECONDS + 0.1)
    assert stopped == []
    leaving.look({}, QUIET_SECONDS + 1)
    leaving.look({}, QUIET_SECONDS + 2)
    assert stopped == [("wrk_1", STOP_MARGIN_SECONDS)]


def test_an_image_that_does_not_finish_ends_when_its_drain_is_over():
    stopped = []
    leaving = Leaving(lambda worker_id, _grace: stopped.append(worker_id))
    leaving.add(image_worker(), drain_seconds=30.0, now=0.0)
    leaving.look({"wrk_1": 1}, 29.0)
    assert stopped == []
    leaving.look({"wrk_1": 1}, 30.0)
    assert stopped == ["wrk_1"]


def test_a_worker_with_a_supervisor_drains_by_itself():
    stopped = []
    leaving = Leaving(lambda worker_id, grace: stopped.append((worker_id, grace)))
    running = Running(id="wrk_2", kind="worker", endpoint_id="end_1")
    leaving.add(Worker(running, started_at=0.0, ready=True), drain_seconds=30.0, now=0.0)
    assert stopped == [("wrk_2", 30.0 + STOP_MARGIN_SECONDS)]


@contextlib.contextmanager
def answering(data, *, close=True):
    """Answer one connection with some bytes, on loopback."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(data)
                if not close:
                    done.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize(
    ("data", "state", "detail"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "ready", ""),
        (b"HTTP/1.0 204 No Content\r\n\r\n", "ready", ""),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "loading", "GET /ready answers 503"),
        (b"HTTP/1.1 302 Found\r\n\r\n", "loading", "GET /ready answers 302"),
        (b"220 mail.example ESMTP\r\n", "loading", "GET /ready is not answered in HTTP"),
        (b"", "loading", "GET /ready is not answered in HTTP"),
    ],
)
def test_only_the_first_line_of_a_ready_route_counts(data, state, detail):
    with answering(data) as url:
        health = ask_image(image_worker(url=url).running)
    assert (health.state, health.detail) == (state, detail)


def test_a_ready_route_that_never_answers_is_given_up():
    with answering(b"HTTP/1.1 2", close=False) as url:
        health = ask_image(image_worker(url=url).running)
    assert (health.state, health.serves) == ("silent", False)
    assert "is not answered within 2 s" in health.detail


def test_a_port_without_a_listener_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    health = ask_image(image_worker(url=url).running)
    assert health.state == "unreachable"
    assert "takes no connection (Connection refused)" in health.detail


def manifest(reference):
    image = ImageSpec(reference=reference)
    return BundleManifest(name="m", kind=BundleKind.IMAGE, python="", cloudpickle="", image=image)


def test_a_tag_is_looked_up_at_each_deployment_and_a_digest_never_again():
    assert environment_key(manifest("model:1")) != environment_key(manifest("model:1"))
    for fixed in (DIGEST, f"registry.example.com/model@{DIGEST}"):
        assert environment_key(manifest(fixed)) == environment_key(manifest(fixed))


def test_a_platform_of_processes_refuses_images(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"model:1 needs containers.*BRINERY_RUNTIME=docker"):
        Environments(tmp_path, {}).build(manifest("model:1"), print)


def test_a_manifest_comes_back_from_a_store_with_its_image():
    assert BundleManifest(**to_json(manifest("model:1"))) == manifest("model:1")
    with pytest.raises(InvalidRequestError, match="names an image where its kind is 'image'"):
        BundleManifest(name="m", kind=BundleKind.IMAGE, python="", cloudpickle="")


def test_callers_are_told_an_images_routes_and_that_it_has_no_supervisor():
    image = ImageSpec(reference="model:1", predict_route="/a?b=c", stream_route="/s", on_cancel="disconnect")
    route = worker_route(image_worker(url="http://10.0.0.1:80").running, image)
    assert (route.predict_path, route.stream_path, route.control_url) == ("/a?b=c", "/s", "")
    assert route.on_cancel == "disconnect"


def test_the_fault_of_an_images_end_is_nobodys_where_others_ran_there_too():
    crashed = Fate(fate="crashed", reason="exit code 7", others=None)
    assert judge(crashed, DeploymentError("broke"), alone=False, company=2).charge == "spared"
    assert judge(crashed, DeploymentError("broke"), alone=False, company=0).charge == "full"


@pytest.mark.parametrize(
    ("name", "fetched"),
    [
        ("python", True),
        ("python:3.11-slim", True),
        ("library/python@sha256:1", True),
        ("docker.io/library/python:3", True),
        ("docker.io/python:3", True),
        (f"index.{DOCKER_HUB}/library/python:3", True),
        ("registry.example.com:5000/team/voice:1", True),
        ("Registry.Example.com:5000/team/a/b", True),
        ("somebody/python", False),
        ("docker.io/library.evil/python", False),
        ("registry.example.com:5000/teams/voice", False),
        ("registry.example.com/team/voice", False),
        ("registry.example.com.evil/team/voice", False),
        ("docker.io.evil.com/library/python", False),
        ("LOCAL/library/python", False),
        ("localhost/library/python", False),
        ("169.254.169.254/library/python", False),
        ("evil:5000/python", False),
    ],
)
def test_images_are_fetched_from_the_registries_that_are_allowed(name, fetched):
    pulled = []
    engine = SimpleNamespace(image=lambda _name: None, pull=lambda name, _emit: pulled.append(name))
    references = References(engine, "mark", ("docker.io/library", "registry.example.com:5000/team"))
    with pytest.raises(DeploymentError) as caught:  # for there is no such image, or for it is not allowed
        references.find(name, None, lambda _line: None)
    assert ("BRINERY_IMAGE_REGISTRIES" not in caught.value.message, bool(pulled)) == (fetched, fetched)


def test_an_image_that_is_here_needs_no_registry():
    facts = {"Id": "sha256:" + "a" * 64, "Config": {"Labels": {}}}
    engine = SimpleNamespace(image=lambda _name: facts, ask=lambda _do: None)
    said = []
    References(engine, "mark", ("docker.io",)).find("evil.example/x:1", None, said.append)
    assert said == [f"Image evil.example/x:1 is {'a' * 12}"]


@pytest.mark.parametrize(
    "name", ["brinery/env:1", "docker.io/brinery/base:3.11-x", "brinery/bundle@sha256:1", "brinery/image"]
)
def test_nothing_is_fetched_under_a_name_by_which_the_platform_finds_its_own_images(name):
    def refuse(*_args):
        raise AssertionError(name)

    engine = SimpleNamespace(image=lambda _name: None, pull=refuse)
    with pytest.raises(DeploymentError, match="fetched from nowhere"):
        References(engine, "mark").find(name, None, lambda _line: None)
