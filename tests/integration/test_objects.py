"""One contract of the object store, over a folder, rclone's S3 and moto's."""

import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from brinery.errors import InvalidRequestError, NotFoundError, UnavailableError
from brinery_platform.objects import FolderObjects, open_objects
from servers import S3_KEYS, free_port

LARGE = bytes(range(256)) * 4 * 1024 * 10  # 10 MiB: several parts on S3


@pytest.fixture(params=["folder", "rclone", "moto"])
def objects(request, tmp_path, monkeypatch, rclone_url, moto_url):
    if request.param == "folder":
        return open_objects(f"file://{tmp_path}/some%20folder")
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", {"rclone": rclone_url, "moto": moto_url}[request.param])
    return open_objects(f"s3://bucket/{request.node.name.translate(str.maketrans('[]', '--'))}")


@pytest.mark.parametrize("data", [b"", b"small", LARGE], ids=["empty", "small", "large"])
def test_what_was_put_is_read_again(objects, data):
    assert objects.put("results/tsk_1", data) == len(data)
    assert objects.get("results/tsk_1") == data
    assert objects.size("results/tsk_1") == len(data)


def test_files_and_streams_are_stored_too(objects, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(LARGE)
    assert objects.put("a/file", file) == len(LARGE)
    assert objects.put("a/stream", io.BytesIO(b"stream")) == 6
    assert objects.get("a/file") == LARGE
    assert objects.get("a/stream") == b"stream"


def test_the_last_writer_wins(objects):
    objects.put("a", b"first")
    objects.put("a", b"second")
    assert objects.get("a") == b"second"


def test_parts_of_an_object_are_read_by_range(objects):
    objects.put("a", b"0123456789")
    with objects.open("a", start=2, length=3) as stream:
        assert stream.read() == b"234"
    with objects.open("a", start=7) as stream:
        assert stream.read(2) == b"78"
        assert stream.read() == b"9"
    with objects.open("a", start=8, length=100) as stream:
        assert stream.read() == b"89"


def test_what_is_not_there_is_not_found(objects):
    assert not objects.exists("nothing")
    for read in (objects.get, objects.size):
        with pytest.raises(NotFoundError):
            read("nothing")
    objects.delete("nothing")


def test_what_was_deleted_is_gone(objects):
    objects.put("a/b", b"x")
    assert objects.exists("a/b")
    objects.delete("a/b")
    assert not objects.exists("a/b")


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/..", ".", ".parts/x", "a\\b", "a b", "a\n", "é", "x" * 513]
)
def test_keys_that_could_leave_the_store_are_refused(objects, key):
    for use in (objects.get, objects.size, objects.delete, lambda key: objects.put(key, b"")):
        with pytest.raises(InvalidRequestError):
            use(key)


class Breaks(io.RawIOBase):
    """A stream that fails in the middle."""

    def __init__(self) -> None:
        self.parts = [b"x" * 1024, b"y" * 1024]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if not self.parts:
            raise UnavailableError("the source is gone")
        data = self.parts.pop()
        buffer[: len(data)] = data
        return len(data)


def test_an_upload_that_breaks_leaves_nothing(objects, tmp_path):
    with pytest.raises(UnavailableError):
        objects.put("a", io.BufferedReader(Breaks()))
    assert not objects.exists("a")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_readers_of_a_folder_never_see_a_part_while_writers_replace_an_object(tmp_path):
    objects = FolderObjects(tmp_path)  # S3 promises the same; rclone's server, over files, does not
    objects.put("a", b"a" * 300_000)
    seen = set()

    def write() -> None:
        for letter in b"abcabc":
            objects.put("a", bytes([letter]) * 300_000)

    writing = threading.Thread(target=write)
    writing.start()
    while writing.is_alive():
        seen.add(objects.get("a"))
    writing.join()
    assert seen <= {bytes([letter]) * 300_000 for letter in b"abc"}


def test_a_store_that_is_away_is_unavailable(tmp_path, monkeypatch):
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UnavailableError):
        open_objects("s3://bucket/prefix").get("a")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnavailableError, match="folder"):
        open_objects(f"file://{tmp_path}/file").put("a", b"")


@pytest.mark.parametrize("url", ["", "relative", "file://host/x", "s3://", "ftp://x/y", "file:relative"])
def test_other_urls_are_refused_with_the_variable_s_name(url):
    with pytest.raises(InvalidRequestError, match="BRINERY_OBJECTS_URL"):
        open_objects(url)


def test_a_small_object_costs_one_request_and_no_question_before_it(monkeypatch):
    seen = []

    class Noting(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self):
            data = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.command, self.path, self.headers.get("Expect"), data))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments):
            """Say nothing."""

    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    with HTTPServer(("127.0.0.1", 0), Noting) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            before = threading.active_count()
            assert open_objects("s3://bucket/prefix").put("results/tsk_1", b"small") == 5
            assert threading.active_count() == before
        finally:
            server.shutdown()
            serving.join()
    assert seen == [("PUT", "/bucket/prefix/results/tsk_1", None, b"small")]
