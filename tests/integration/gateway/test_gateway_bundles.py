"""Bundles through a real gateway: what it keeps, and what it refuses without opening it."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import struct
import zipfile

import cloudpickle
import pytest

from brinery.spec import CONTENT_BUNDLE, MAX_MANIFEST_BYTES
from brinery_platform.gateway.bundles import PYTHON
from brinery_platform.objects import open_objects
from brinery_platform.signing import verify


def manifest(**changes):
    return {
        "name": "iris",
        "kind": "function",
        "python": PYTHON,
        "cloudpickle": cloudpickle.__version__,
        "requirements": ["scikit-learn"],
        **changes,
    }


def packed(described, *, method=zipfile.ZIP_DEFLATED, **files):
    raw = described if isinstance(described, bytes) else json.dumps(described).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        if raw is not None:
            archive.writestr("manifest.json", raw)
        for name, data in {"function.pkl": b"not a pickle at all", **files}.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def upload(client, data, content_type=CONTENT_BUNDLE):
    return client.post("/v1/bundles", content=data, headers={"Content-Type": content_type})


def test_a_bundle_is_kept_signed_and_found_again(gateway, client, other_client):
    data = packed(manifest(name="kept"))
    response = upload(client, data)
    assert response.status_code == 201
    bundle = response.json()
    sha256 = hashlib.sha256(data).hexdigest()
    assert (bundle["name"], bundle["sha256"], bundle["size_bytes"]) == ("kept", sha256, len(data))
    assert bundle["manifest"]["requirements"] == ["scikit-learn"]
    assert open_objects(gateway.settings.objects).get(f"bundles/{sha256}") == data
    row = gateway.store.bundle(bundle["id"])
    assert verify(gateway.settings.home, row.id, "ann", sha256, row.signature)
    assert not verify(gateway.settings.home, row.id, "bob", sha256, row.signature)
    assert (gateway.settings.home / "signing.key").stat().st_mode & 0o777 == 0o600
    assert client.get(f"/v1/bundles/{bundle['id']}").json() == bundle
    assert client.get("/v1/bundles", params={"name": "kept"}).json() == {"bundles": [bundle]}
    assert client.get("/v1/bundles", params={"name": "other"}).json() == {"bundles": []}
    assert other_client.get(f"/v1/bundles/{bundle['id']}").status_code == 404
    assert other_client.get("/v1/bundles").json() == {"bundles": []}


def test_the_same_bytes_again_are_the_same_bundle(client):
    data = packed(manifest(name="twice"))
    first, second = upload(client, data), upload(client, data)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    other = upload(client, packed(manifest(name="twice", doc="changed")))
    assert (other.status_code, other.json()["id"] != first.json()["id"]) == (201, True)


def test_a_bundle_whose_bytes_were_lost_is_stored_again(gateway, client):
    data = packed(manifest(name="lost"))
    bundle = upload(client, data).json()
    objects = open_objects(gateway.settings.objects)
    objects.delete(f"bundles/{bundle['sha256']}")
    again = upload(client, data)
    assert (again.status_code, again.json()["id"]) == (200, bundle["id"])
    assert objects.exists(f"bundles/{bundle['sha256']}")


def zip64_that_lies():
    """A zip whose last record looks small and whose zip64 record says otherwise."""
    data = packed(manifest())
    end = data.rindex(b"PK\x05\x06")
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**9, 10**9, 2**40, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    return data[:end] + record + locator + data[end:]


def directory_that_is_huge():
    data = packed(manifest())
    end = data.rindex(b"PK\x05\x06")
    fields = list(struct.unpack("<4s4H2LH", data[end:]))
    fields[5] = 200 * 2**20
    return data[:end] + struct.pack("<4s4H2LH", *fields)


def without(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for each in {"manifest.json", "function.pkl"} - {name}:
            archive.writestr(each, json.dumps(manifest()))
    return buffer.getvalue()


def contents_that_are_a_bomb():
    data, end = packed(manifest(), **{"sources/a": b"\0" * 54_321}), struct.pack("<L", 54_321)
    return data.replace(end, struct.pack("<L", 2**31))


def manifest_that_lies_about_its_size():
    data = packed(b" " * (MAX_MANIFEST_BYTES * 3))
    large = struct.pack("<L", MAX_MANIFEST_BYTES * 3)
    assert data.count(large) == 2
    return data.replace(large, struct.pack("<L", 10))


REFUSED = {
    "nothing": (b"", "no zip"),
    "no zip": (b"this is no zip at all, only some text", "zip"),
    "cut off": (packed(manifest())[:-30], "zip"),
    "bytes behind the end": (packed(manifest()) + b"more", "zip"),
    "a lying zip64 record": (zip64_that_lies(), "too many files"),
    "a huge directory": (directory_that_is_huge(), "too many files"),
    "no manifest": (without("manifest.json"), "manifest.json is not in it"),
    "no pickle": (without("function.pkl"), "function.pkl is not in it"),
    "a manifest that is a bomb": (packed(b" " * (MAX_MANIFEST_BYTES * 5)), "larger than 1 MiB"),
    "a manifest that lies about its size": (manifest_that_lies_about_its_size(), "no bundle"),
    "contents that are a bomb": (contents_that_are_a_bomb(), "when unpacked"),
    "a compression that needs memory": (packed(manifest(), method=zipfile.ZIP_LZMA), "deflated"),
    "a path out of it": (packed(manifest(), **{"sources/../../etc/cron": b""}), "points out"),
    "an absolute path": (packed(manifest(), **{"/etc/cron": b""}), "points out"),
    "a manifest that is no JSON": (packed(b"{"), "not JSON"),
    "a manifest of another shape": (packed([1, 2]), "manifest.json"),
    "an unknown field": (packed(manifest(colour="red")), "colour"),
    "a name that is none": (packed(manifest(name="Größe")), "bundle name"),
    "another Python": (packed(manifest(python="2.7")), "Python 2.7"),
    "a newer cloudpickle": (packed(manifest(cloudpickle="99.0.1")), "cloudpickle 99.0.1"),
    "a newer format": (packed(manifest(format=2)), "format"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_good_bundle_is_refused_with_the_reason(client, case):
    data, reason = REFUSED[case]
    response = upload(client, data)
    assert (response.status_code, response.json()["error"]["type"]) == (422, "invalid_request"), response.text
    assert reason in response.json()["error"]["message"]


def test_a_name_that_is_twice_in_a_bundle_is_refused(client):
    data = packed(manifest(), **{"manifest.jsox": json.dumps(manifest(name="other"))})
    response = upload(client, data.replace(b"manifest.jsox", b"manifest.json"))
    assert (response.status_code, "twice" in response.json()["error"]["message"]) == (422, True)


def test_a_bundle_of_another_content_type_is_refused(client):
    response = upload(client, packed(manifest()), "application/zip")
    assert (response.status_code, response.json()["error"]["type"]) == (415, "unsupported_payload")


def test_a_bundle_above_the_limit_is_refused_before_it_is_read(gateway):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.settings.port, timeout=10)
    headers = {"Content-Type": CONTENT_BUNDLE, "Content-Length": str(10**12), "Authorization": f"Bearer {gateway.key}"}
    connection.request("POST", "/v1/bundles", headers=headers)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["type"]) == (413, "payload_too_large")
    connection.close()


def test_nothing_of_a_refused_bundle_stays(gateway, client):
    data = packed(manifest(name="refused", python="2.7"))
    assert upload(client, data).status_code == 422
    assert not open_objects(gateway.settings.objects).exists(f"bundles/{hashlib.sha256(data).hexdigest()}")
    assert client.get("/v1/bundles", params={"name": "refused"}).json() == {"bundles": []}
