"""The object store: bundles, large inputs and results, in a local folder or in S3; one contract, two technologies."""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Final, cast
from urllib.parse import unquote, urlsplit

from brinery.errors import BrineryError, InvalidRequestError, NotFoundError, UnavailableError

CHUNK_BYTES: Final = 1024 * 1024
_KEY: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
MOST_KEY_CHARACTERS: Final = 512
PART_KEPT_SECONDS: Final = 86_400
ONE_PUT_BYTES: Final = 8 * 1024 * 1024
"""From here on an object goes to S3 in parts."""
S3_CONNECT_SECONDS: Final = 5
S3_READ_SECONDS: Final = 60


class Objects(ABC):
    """A store of bytes under keys such as ``results/tsk_…``; whole objects only, the last writer wins.

    Every method may raise `UnavailableError` when the store does not answer; calling it again is safe. What an object
    is (its type, its owner) is noted by whoever knows its key, never in the store.
    """

    def put(self, key: str, data: bytes | Path | BinaryIO) -> int:
        """Store an object; when this returns, it survives the machine's power cut.

        Args:
            key: Parts of letters, digits, ``.``, ``_`` and ``-``, joined by ``/``.
            data: Bytes, a file's path, or a stream that is read to its end.

        Returns:
            Its size in bytes.

        Raises:
            InvalidRequestError: The key is not valid.
        """
        check_key(key)
        if isinstance(data, bytes):
            return self._write(key, io.BytesIO(data))
        if isinstance(data, Path):
            with data.open("rb") as stream:
                return self._write(key, stream)
        return self._write(key, data)

    def get(self, key: str) -> bytes:
        """Return a whole object.

        Raises:
            NotFoundError: There is none.
        """
        with self.open(key) as stream:
            return stream.read()

    @contextlib.contextmanager
    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        """Open an object, or a part of it, for reading in order.

        Args:
            key: Its key.
            start: First byte, ≥ 0 and below its size; 0 also for an empty object.
            length: Bytes at most; None reads to the end.

        Raises:
            NotFoundError: There is none.
        """
        check_key(key)
        stream = self._read(key, start, length)
        try:
            yield stream
        finally:
            stream.close()

    def exists(self, key: str) -> bool:
        """Return whether there is such an object."""
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        """Return an object's size in bytes.

        Raises:
            NotFoundError: There is none.
        """
        check_key(key)
        return self._size(key)

    def delete(self, key: str) -> None:
        """Delete an object; one that is gone is no error."""
        check_key(key)
        self._delete(key)

    def prepare(self) -> None:
        """Check that the store answers, and make its bucket where that is missing."""
        self.exists("probe")

    @abstractmethod
    def _write(self, key: str, stream: BinaryIO) -> int: ...

    @abstractmethod
    def _read(self, key: str, start: int, length: int | None) -> BinaryIO: ...

    @abstractmethod
    def _size(self, key: str) -> int: ...

    @abstractmethod
    def _delete(self, key: str) -> None: ...


class FolderObjects(Objects):
    """Objects as files under a folder; written aside, synced, then renamed, so that no reader sees a part.

    Args:
        root: The folder; made when it is missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parts = root / ".parts"
        self._prepared = False

    def _write(self, key: str, stream: BinaryIO) -> int:
        target = self._root / key
        part = self._parts / secrets.token_hex(8)
        with _folder_errors(key, reading=False):
            self._prepare_parts()
            try:
                with part.open("xb") as file:
                    shutil.copyfileobj(stream, file, CHUNK_BYTES)
                    file.flush()
                    os.fsync(file.fileno())
                    size = file.tell()
                changed = _make_folder(target.parent)
                part.rename(target)
                for folder in changed:
                    _sync_folder(folder)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        return size

    def _read(self, key: str, start: int, length: int | None) -> BinaryIO:
        with _folder_errors(key, reading=True):
            file = (self._root / key).open("rb")
        file.seek(start)
        return file if length is None else cast("BinaryIO", io.BufferedReader(_Bounded(file, length)))

    def _size(self, key: str) -> int:
        with _folder_errors(key, reading=True):
            return (self._root / key).stat().st_size

    def _delete(self, key: str) -> None:
        with contextlib.suppress(NotFoundError), _folder_errors(key, reading=True):
            (self._root / key).unlink()

    def _prepare_parts(self) -> None:
        """Make the folder of unfinished files, and once a process delete what killed writers left a day ago."""
        self._parts.mkdir(parents=True, exist_ok=True)
        if self._prepared:
            return
        oldest = time.time() - PART_KEPT_SECONDS
        for part in self._parts.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if part.stat().st_mtime < oldest:
                    part.unlink()
        self._prepared = True


class S3Objects(Objects):
    """Objects in an S3 bucket; ``AWS_ENDPOINT_URL`` names other servers than Amazon's, boto3 finds the keys.

    Args:
        bucket: Its name; `prepare` makes it.
        prefix: Put in front of every key with a ``/``; may be empty.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._lock = threading.Lock()
        self._made: Any = None

    @property
    def _client(self) -> Any:
        """boto3's client; made once a process (it takes 0.3 s and 20 MB), and safe for threads."""
        with self._lock:
            if self._made is None:
                import boto3  # slow to import (0.3 s), and only S3 needs it
                from botocore.config import Config

                config = Config(
                    connect_timeout=S3_CONNECT_SECONDS,
                    read_timeout=S3_READ_SECONDS,
                    retries={"mode": "standard", "total_max_attempts": 3},
                    max_pool_connections=64,
                    # Other servers than Amazon's know neither the newer checksums nor their trailers.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                )
                made = boto3.client("s3", config=config)
                # Else each small object costs a round trip more, in which the server is asked whether it would take it.
                made.meta.events.register("before-sign.s3.PutObject", _do_not_ask)
                self._made = made
        return self._made

    def prepare(self) -> None:
        """See `Objects.prepare`; whoever may use a bucket but not ask for it goes on."""
        from botocore.exceptions import ClientError

        super().prepare()
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == HTTPStatus.NOT_FOUND:
                self._make_bucket()

    def _make_bucket(self) -> None:
        region = self._client.meta.region_name
        # Amazon's first region is the one that must not be named.
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        with _s3_errors(self._bucket):
            self._client.create_bucket(Bucket=self._bucket, **place)

    def _write(self, key: str, stream: BinaryIO) -> int:
        first = _read_up_to(stream, ONE_PUT_BYTES)
        with _s3_errors(key):
            if len(first) < ONE_PUT_BYTES:
                # Not by `upload_fileobj`, which starts threads for each object.
                self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=first)
                return len(first)
            # In parts: an object of unknown length never lies in memory.
            counted = _Counted(first, stream)
            self._client.upload_fileobj(counted, self._bucket, self._prefix + key)
            return counted.size

    def _read(self, key: str, start: int, length: int | None) -> BinaryIO:
        arguments = {}
        if start or length is not None:
            arguments["Range"] = f"bytes={start}-" + ("" if length is None else str(start + length - 1))
        with _s3_errors(key):
            reply = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **arguments)
        return cast("BinaryIO", io.BufferedReader(_Body(reply["Body"], key)))

    def _size(self, key: str) -> int:
        with _s3_errors(key):
            return int(self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)["ContentLength"])

    def _delete(self, key: str) -> None:
        with _s3_errors(key), contextlib.suppress(NotFoundError):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)


def open_objects(url: str) -> Objects:
    """Return the store that a URL names.

    Args:
        url: ``file:///folder`` or ``s3://bucket/prefix``.

    Raises:
        InvalidRequestError: It names neither.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.path.startswith("/") and not parts.netloc:
        return FolderObjects(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        return S3Objects(parts.netloc, parts.path.strip("/"))
    raise InvalidRequestError(f"BRINERY_OBJECTS_URL is {url!r}; it must be file:///folder or s3://bucket/prefix.")


def check_key(key: str) -> None:
    """Refuse a key that could leave the store's folder or that not every store can hold.

    Raises:
        InvalidRequestError: With the rule in its text.
    """
    if len(key) > MOST_KEY_CHARACTERS or not _KEY.fullmatch(key):
        raise InvalidRequestError(
            f"{key[:100]!r} is no valid object key: use letters, digits, '.', '_' and '-' in parts joined by '/', "
            f"no part beginning with '.', at most {MOST_KEY_CHARACTERS} characters."
        )


class _Bounded(io.RawIOBase):
    """The next `length` bytes of a file; closes it."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self._left = length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Body(io.RawIOBase):
    """boto3's body of a reply, raising our errors."""

    def __init__(self, body: Any, key: str) -> None:
        self._body = body
        self._key = key

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _s3_errors(self._key):
            data = self._body.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._body.close()
        super().close()


def _do_not_ask(request: Any, **_event: Any) -> None:
    """Send a request without ``Expect: 100-continue``."""
    del request.headers["Expect"]  # without an error where it is missing


def _read_up_to(stream: BinaryIO, size: int) -> bytes:
    """Return the next `size` bytes, or all when there are fewer; one `read` may return less than there is."""
    parts = []
    while size > 0 and (data := stream.read(size)):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


class _Counted:
    """A stream, its first bytes read already, that knows how much was read; not seekable: boto3 would read it twice."""

    def __init__(self, first: bytes, stream: BinaryIO) -> None:
        self._first = first
        self._stream = stream
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            data, self._first = self._first + self._stream.read(), b""
        elif self._first:
            data, self._first = self._first[:size], self._first[size:]
        else:
            data = self._stream.read(size)
        self.size += len(data)
        return data


def _make_folder(folder: Path) -> list[Path]:
    """Make `folder` with its parents and return every folder whose entries are to be synced, `folder` first."""
    changed = [folder]
    missing = folder
    while not missing.exists():
        missing = missing.parent
        changed.append(missing)
    folder.mkdir(parents=True, exist_ok=True)
    return changed


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _folder_errors(key: str, *, reading: bool) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if reading and isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
            raise NotFoundError(f"There is no object {key}.", key=key) from error
        raise UnavailableError(
            f"The object folder cannot be used: {error.strerror}. Look at its disk and its permissions.", key=key
        ) from error


@contextlib.contextmanager
def _s3_errors(key: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _from_client_error(error.response, key) from error
    except BotoCoreError as error:
        raise UnavailableError(f"The S3 server cannot be used: {error}", key=key) from error


def _from_client_error(response: Any, key: str) -> BrineryError:
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in {"NoSuchKey", "NotFound", "404"}:
        return NotFoundError(f"There is no object {key}.", key=key)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return InvalidRequestError(f"The object {key} is shorter than the range that was asked for.", key=key)
    return UnavailableError(f"The S3 server refused ({code or status}); check its bucket, keys and health.", key=key)
