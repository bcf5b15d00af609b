"""Opens a bundle: checks that these are the bytes we were promised and that this Python can run them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import stat
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

import cloudpickle

from brinery.spec import (
    BUNDLE_FORMAT,
    BUNDLE_MANIFEST,
    BUNDLE_PICKLE,
    BUNDLE_SOURCES,
    MAX_MANIFEST_BYTES,
    BundleKind,
    BundleManifest,
)

_SOURCES_PREFIX: Final = "brinery-sources-"


class BundleRefusedError(Exception):
    """This bundle must not be served here; the text says why and what to do."""


class Bundle:
    """A bundle that may be served.

    Args:
        manifest: What it says about itself.
        pickle: The bytes of ``function.pkl``.
        sources: Folder to put on ``sys.path``, or None when no sources travel along.
    """

    def __init__(self, manifest: BundleManifest, pickle: bytes, sources: Sources | None) -> None:
        self.manifest = manifest
        self.pickle = pickle
        self.sources = sources


class Sources:
    """The extracted sources: a private folder that lives as long as this process.

    The folder is locked while its process lives, however that ends: whoever extracts next removes the folders that
    nobody holds any more, so that ``kill -9`` leaves nothing behind for long.
    """

    def __init__(self) -> None:
        _sweep()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_SOURCES_PREFIX))
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if self.path.exists():
                return
            os.close(self._fd)  # a sweep came between creation and lock

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._fd)


def open_bundle(path: Path, sha256: str) -> Bundle:
    """Check a bundle and take it apart.

    The digest is checked before anything is read as a zip, then the format, the Python, and cloudpickle.

    Args:
        path: The bundle's file.
        sha256: Digest of the whole file, lower-case hex.

    Returns:
        The bundle, its sources extracted.

    Raises:
        BundleRefusedError: It is not what was promised, or this Python cannot run it.
    """
    try:
        # One descriptor for both, so that what is opened is what was checked.
        with path.open("rb") as file:
            _check_digest(file, sha256)
            with zipfile.ZipFile(file) as archive:
                return _read(archive)
    except OSError as error:
        raise BundleRefusedError(f"{path} cannot be read: {error.strerror}; deploy it again") from error
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError) as error:
        raise BundleRefusedError(f"it is not a bundle: {error}; pack it with `brinery` and deploy again") from error


def _check_digest(file: io.BufferedReader, expected: str) -> None:
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise BundleRefusedError(
            f"its SHA-256 is {found}, expected {expected}; the file was changed on its way, deploy it again"
        )
    file.seek(0)


def _read(archive: zipfile.ZipFile) -> Bundle:
    info = archive.getinfo(BUNDLE_MANIFEST)
    if info.file_size > MAX_MANIFEST_BYTES:
        raise BundleRefusedError(f"its {BUNDLE_MANIFEST} is over {MAX_MANIFEST_BYTES} bytes; shorten the metadata")
    manifest = _manifest(archive.read(info))
    pickle = archive.read(BUNDLE_PICKLE)
    members = list(_source_members(archive))
    sources = None
    if members:
        sources = Sources()
        for member, relative in members:
            target = sources.path / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))
    return Bundle(manifest, pickle, sources)


def _manifest(raw: bytes) -> BundleManifest:
    try:
        data: Any = json.loads(raw)
    except ValueError as error:
        raise BundleRefusedError(f"its {BUNDLE_MANIFEST} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BundleRefusedError(f"its {BUNDLE_MANIFEST} is not a JSON object")
    if data.get("format", BUNDLE_FORMAT) != BUNDLE_FORMAT:
        raise BundleRefusedError(
            f"its format is {data['format']!r} and this worker reads {BUNDLE_FORMAT}; upgrade the worker, or deploy "
            "with the SDK of the platform's version"
        )
    try:
        manifest = BundleManifest(**{**data, "kind": BundleKind(str(data.get("kind")))})
    except Exception as error:
        raise BundleRefusedError(f"its {BUNDLE_MANIFEST} is wrong: {error}") from error
    _check_versions(manifest)
    return manifest


def _check_versions(manifest: BundleManifest) -> None:
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    theirs = ".".join(str(manifest.python).split(".")[:2])
    if theirs != ours:
        raise BundleRefusedError(
            f"it was packed with Python {theirs} and this worker runs {ours}; deploy from Python {ours}, or give the "
            f"endpoint an environment with Python {theirs}"
        )
    try:
        major = int(str(manifest.cloudpickle).split(".")[0])
    except ValueError as error:
        raise BundleRefusedError(f"its cloudpickle version {manifest.cloudpickle!r} is not one") from error
    if major > int(cloudpickle.__version__.split(".")[0]):
        raise BundleRefusedError(
            f"it was packed with cloudpickle {manifest.cloudpickle} and this worker has {cloudpickle.__version__}; "
            "put the newer cloudpickle into the endpoint's requirements"
        )


def _source_members(archive: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    for info in archive.infolist():
        if not info.filename.startswith(BUNDLE_SOURCES) or info.is_dir():
            continue
        relative = PurePosixPath(info.filename.removeprefix(BUNDLE_SOURCES))
        mode = info.external_attr >> 16
        strange = stat.S_IFMT(mode) not in {0, stat.S_IFREG}
        if strange or relative.is_absolute() or ".." in relative.parts or "\\" in info.filename or not relative.parts:
            raise BundleRefusedError(f"it holds {info.filename!r}, which is no plain file below {BUNDLE_SOURCES}")
        yield info, relative


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_SOURCES_PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(fd).st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(fd)
