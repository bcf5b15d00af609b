"""`Image`: what can be chosen, what is refused before anything is sent, and what is sent."""

import io
import json
import zipfile

import pytest

from brinery import Image, InvalidRequestError
from brinery.bundle import pack_manifest
from brinery.image import default_name
from brinery.spec import BundleKind, BundleManifest


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"volumes": ["a:/x", "b:/x"]}, "'/x' is named twice"),
        ({"volumes": ["a:/x"], "scratch": ["/x"]}, "'/x' is named twice"),
        ({"volumes": ["a"]}, "is no volume"),
        ({"volumes": ["a:/x:rx"]}, "is no volume"),
        ({"volumes": ["../a:/x"]}, "no valid volume name"),
        ({"volumes": ["/a/../b:/x"]}, "no folder for that"),
        ({"volumes": ["a:/proc/x"]}, "outside of /dev, /proc and /sys"),
        ({"scratch": ["/"]}, "no folder for that"),
        ({"scratch": ["//x"]}, "no folder for that"),
        ({"user": "root"}, "is root"),
        ({"user": "0:1000"}, "is root"),
        ({"user": "000"}, "is root"),
        ({"user": "a b"}, "is no user"),
        ({"ready_route": "ready"}, "begin it with '/'"),
        ({"predict_route": "/a\r\nX: y"}, "is no route"),
        ({"stream_route": "/a b"}, "is no route"),
        ({"port": 0}, "greater than or equal to 1"),
        ({"on_cancel": "nothing"}, "on_cancel"),
        ({"prot": 80}, "did you mean 'port'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(choices, said):
    with pytest.raises(InvalidRequestError, match=said):
        Image("model:1", **choices)


@pytest.mark.parametrize("reference", ["", "a b", "-x", "ä:1", "a\n"])
def test_a_reference_is_one_printable_word(reference):
    with pytest.raises(InvalidRequestError):
        Image(reference)


def test_requirements_are_not_for_images():
    with pytest.raises(InvalidRequestError, match="brings all that it needs"):
        Image("model:1").deploy(requirements=["numpy"])


def test_a_name_comes_from_the_image_where_none_is_given():
    assert default_name("registry.example.com:5000/team/My_Model:3") == "my-model"
    assert default_name("model@sha256:" + "0" * 64) == "model"
    with pytest.raises(InvalidRequestError, match="give name="):
        default_name("sha256:" + "0" * 64)


def test_an_images_bundle_holds_its_manifest_alone_and_equal_ones_are_equal_bytes():
    image = Image("model:1", port=80, volumes=["data:/data"]).spec
    manifest = BundleManifest(name="m", kind=BundleKind.IMAGE, python="", cloudpickle="", image=image)
    packed = pack_manifest(manifest)
    assert packed.data == pack_manifest(manifest).data
    with zipfile.ZipFile(io.BytesIO(packed.data)) as archive:
        assert archive.namelist() == ["manifest.json"]
        assert BundleManifest(**json.loads(archive.read("manifest.json"))) == manifest
