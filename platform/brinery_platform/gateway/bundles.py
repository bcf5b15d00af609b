"""Bundles over HTTP: bytes in, checked without being opened, stored, signed. Nothing is unpickled or extracted here."""

from __future__ import annotations

import hashlib
import importlib.metadata
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from typing import Any, BinaryIO, Final

import orjson
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from brinery.errors import InvalidRequestError, PayloadTooLargeError, UnsupportedPayloadError
from brinery.spec import (
    BUNDLE_MANIFEST,
    BUNDLE_PICKLE,
    CONTENT_BUNDLE,
    MAX_MANIFEST_BYTES,
    BundleManifest,
    from_json,
    new_id,
    to_json,
)
from brinery_platform.gateway.parts import AnyCaller, Gateway, Parts
from brinery_platform.gateway.replies import JsonResponse
from brinery_platform.signing import sign
from brinery_platform.store import Bundle

MAX_BUNDLE_BYTES: Final = 256 * 1024 * 1024
MAX_UNPACKED_BYTES: Final = 1024 * 1024 * 1024
MAX_DIRECTORY_BYTES: Final = 4 * 1024 * 1024
"""Of the zip's list of contents, about 50,000 files; a larger one would fill the memory before it could be judged."""
WRITE_BYTES: Final = 1024 * 1024
PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
CLOUDPICKLE: Final = importlib.metadata.version("cloudpickle")

_END: Final = struct.Struct("<4s4H2LH")  # the zip's last record; source: PKWARE APPNOTE, section 4.3.16
_END_MARK: Final = b"PK\x05\x06"
_LOCATOR_MARK: Final = b"PK\x06\x07"
_LOCATOR_BYTES: Final = 20

router = APIRouter(tags=["bundles"])


@router.post("/v1/bundles", status_code=201, responses={200: {"description": "The same bytes were here already"}})
async def upload_bundle(request: Request, caller: AnyCaller, gateway: Parts) -> Response:
    """Keep a bundle; the body is its zip."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != CONTENT_BUNDLE:
        raise UnsupportedPayloadError(f"A bundle is uploaded as {CONTENT_BUNDLE}; the SDK's deploy() does it.")
    if int(request.headers.get("content-length", "0")) > MAX_BUNDLE_BYTES:
        raise _too_large()
    with tempfile.TemporaryFile() as file:  # has no name, so nothing stays whenever this process ends
        digest, size_bytes = await _receive(request, file)
        return await run_in_threadpool(_keep, file, digest, size_bytes, caller.owner, gateway)


@router.get("/v1/bundles")
def list_bundles(caller: AnyCaller, gateway: Parts, name: str | None = None) -> Response:
    """List the owner's bundles, newest first, all or the versions of one name."""
    found = gateway.services.store.bundles(caller.owner, name=name)
    return JsonResponse({"bundles": [_shown(bundle) for bundle in found]})


@router.get("/v1/bundles/{bundle_id}")
def get_bundle(bundle_id: str, caller: AnyCaller, gateway: Parts) -> Response:
    """Return one bundle's description."""
    return JsonResponse(_shown(gateway.services.store.bundle(bundle_id, owner=caller.owner)))


async def _receive(request: Request, file: BinaryIO) -> tuple[str, int]:
    """Write the body to `file` and return its SHA-256 and size; never more than a piece of it is in memory."""
    digest, size_bytes, piece = hashlib.sha256(), 0, bytearray()

    def write() -> None:
        digest.update(piece)
        file.write(piece)
        piece.clear()

    async for part in request.stream():
        piece += part
        size_bytes += len(part)
        if size_bytes > MAX_BUNDLE_BYTES:
            raise _too_large()
        if len(piece) >= WRITE_BYTES:
            await run_in_threadpool(write)
    await run_in_threadpool(write)
    return digest.hexdigest(), size_bytes


def _keep(file: BinaryIO, sha256: str, size_bytes: int, owner: str, gateway: Gateway) -> Response:
    services = gateway.services
    manifest = read_manifest(file)
    known = next((b for b in services.store.bundles(owner, name=manifest.name) if b.sha256 == sha256), None)
    if known is not None and services.objects.exists(f"bundles/{sha256}"):
        return JsonResponse(_shown(known))
    file.seek(0)
    services.objects.put(f"bundles/{sha256}", file)  # before the row: what has a row can be deployed
    bundle_id = new_id("bun")
    bundle = Bundle(
        id=bundle_id,
        owner=owner,
        name=manifest.name,
        sha256=sha256,
        size_bytes=size_bytes,
        manifest=to_json(manifest),
        signature=sign(services.settings.home, bundle_id, owner, sha256),
        created_at=time.time(),
    )
    kept = services.store.add_bundle(bundle)
    return JsonResponse(_shown(kept), status_code=201 if kept.id == bundle_id else 200)


def read_manifest(file: BinaryIO) -> BundleManifest:
    """Return the manifest of a bundle whose bytes nobody vouches for.

    Args:
        file: The zip, seekable.

    Raises:
        InvalidRequestError: It is not a zip, not a bundle, or not one that the workers here can open.
    """
    _check_directory(file)
    try:
        with zipfile.ZipFile(file) as archive:
            names = _check_contents(archive)
            with archive.open(BUNDLE_MANIFEST) as stream:
                raw = stream.read(MAX_MANIFEST_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise InvalidRequestError(f"This is no bundle: its zip is damaged ({error}); pack it again.") from None
    if len(raw) > MAX_MANIFEST_BYTES:
        raise _large_manifest()
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"{BUNDLE_MANIFEST} is not JSON: {error}.") from None
    manifest = from_json(BundleManifest, data, what=BUNDLE_MANIFEST)
    if manifest.image is None:
        if BUNDLE_PICKLE not in names:
            raise _lacks(BUNDLE_PICKLE)
        check_versions(manifest)
    elif len(names) != 1:
        raise InvalidRequestError("The bundle of an image holds nothing but its manifest; the SDK's Image packs one.")
    return manifest


def check_versions(manifest: BundleManifest) -> None:
    """Refuse a bundle that the workers here cannot unpickle.

    Raises:
        InvalidRequestError: With the cure in its text.
    """
    if ".".join(manifest.python.split(".")[:2]) != PYTHON:
        raise InvalidRequestError(
            f"The bundle was packed by Python {manifest.python}, and the workers here run {PYTHON}: pack it with "
            f"Python {PYTHON}.",
            field="python",
        )
    theirs, ours = manifest.cloudpickle.partition(".")[0], CLOUDPICKLE.partition(".")[0]
    if not theirs.isdecimal() or int(theirs) > int(ours):
        raise InvalidRequestError(
            f"The bundle was packed by cloudpickle {manifest.cloudpickle}, and the workers here have {CLOUDPICKLE}: "
            f"install cloudpickle {ours}.x and pack it again.",
            field="cloudpickle",
        )


def _check_directory(file: BinaryIO) -> None:
    """Refuse a zip whose list of contents would not fit into memory; `zipfile` reads all of it at once."""
    size = file.seek(0, 2)
    if size < _END.size:
        raise InvalidRequestError("This is no bundle: it is no zip; the SDK's deploy() packs one.")
    file.seek(max(size - _END.size - _LOCATOR_BYTES, 0))
    tail = file.read()
    mark, *_, directory_bytes, _, comment_bytes = _END.unpack(tail[-_END.size :])
    if mark != _END_MARK or comment_bytes:
        raise InvalidRequestError("This is no bundle: it is no plain zip; the SDK's deploy() packs one.")
    if tail.startswith(_LOCATOR_MARK) or directory_bytes > MAX_DIRECTORY_BYTES:
        raise InvalidRequestError("This is no bundle: too many files are in it; leave large folders out.")


def _check_contents(archive: zipfile.ZipFile) -> list[str]:
    """Refuse what cannot be a bundle, and return the names of what is in it."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if BUNDLE_MANIFEST not in names:
        raise _lacks(BUNDLE_MANIFEST)
    if len(set(names)) != len(names):
        raise InvalidRequestError("This is no bundle: a name is in it twice; pack it again.")
    for entry in entries:
        if entry.filename.startswith("/") or ".." in entry.filename.split("/") or "\\" in entry.filename:
            raise InvalidRequestError(f"This is no bundle: {entry.filename!r} points out of it; pack it again.")
        if entry.flag_bits & 1 or entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise InvalidRequestError("This is no bundle: only plain and deflated files may be in it.")
    if sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
        raise InvalidRequestError(f"The bundle is larger than {MAX_UNPACKED_BYTES // 2**20} MiB when unpacked.")
    if archive.getinfo(BUNDLE_MANIFEST).file_size > MAX_MANIFEST_BYTES:
        raise _large_manifest()
    return names


def _lacks(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"This is no bundle: {name} is not in it; the SDK's deploy() packs one.")


def _large_manifest() -> InvalidRequestError:
    return InvalidRequestError(f"{BUNDLE_MANIFEST} is larger than {MAX_MANIFEST_BYTES // 2**20} MiB; shorten it.")


def _too_large() -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"The bundle is larger than {MAX_BUNDLE_BYTES // 2**20} MiB; load large data when the worker starts.",
        max_bytes=MAX_BUNDLE_BYTES,
    )


def _shown(bundle: Bundle) -> dict[str, Any]:
    return {
        "id": bundle.id,
        "name": bundle.name,
        "sha256": bundle.sha256,
        "size_bytes": bundle.size_bytes,
        "manifest": bundle.manifest,
        "created_at": bundle.created_at,
    }
