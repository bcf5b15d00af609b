"""What an endpoint's workers may connect to: what can be said, and what is refused with the rule."""

import sys
from pathlib import Path

import pytest
from little_gateway import KEY

from brinery import endpoint
from brinery.checks import MAX_EGRESS_HOSTS
from brinery.errors import InvalidRequestError
from brinery.spec import EndpointSpec, from_json

BRINERY = str(Path(sys.executable).with_name("brinery"))


def spec(egress):
    return from_json(EndpointSpec, {"name": "x", "bundle_id": "bun_1", "egress": egress}, what="endpoint")


@pytest.mark.parametrize(
    "egress", ["on", "off", ["api.example.com"], ["*.example.com:443", "x_y.z"], ["localhost:1"], ["192.0.2.1"]]
)
def test_on_off_and_hosts_are_taken(egress):
    assert spec(egress).egress == egress


def test_without_a_word_about_it_everything_may_be_reached():
    assert EndpointSpec(name="x", bundle_id="bun_1").egress == "on"


NO_HOSTS = ["*", "*.", "*.*.com", "a.*", "", "A.com", "a..b", "-a", "a-", "a.", "a/b", "https://a", "a b", "u@a"]
NO_HOSTS += ["a:0", "a:65536", "a:", "[::1]", "::1", "a\n", "ä.com", "a" * 64, ".".join(["a" * 60] * 5)]


@pytest.mark.parametrize("host", NO_HOSTS)
def test_what_is_no_host_is_refused_with_what_is_one(host):
    with pytest.raises(InvalidRequestError, match="in lower case"):
        spec([host])


@pytest.mark.parametrize("egress", [["on"], ["off"], ["on", "off"], ["off", "api.example.com"]])
def test_on_and_off_are_no_hosts_of_a_list(egress):
    with pytest.raises(InvalidRequestError, match="stands alone"):
        spec(egress)


@pytest.mark.parametrize(
    "egress",
    ["", "yes", "api.example.com", [], ["a"] * (MAX_EGRESS_HOSTS + 1), [".".join(["a" * 60] * 4)] * 17],
)
def test_what_is_neither_a_word_nor_a_list_of_bounded_length_is_refused(egress):
    with pytest.raises(InvalidRequestError, match="egress"):
        spec(egress)


@pytest.mark.parametrize("egress", [5, None, {"a": 1}, [1]])
def test_other_types_are_refused(egress):
    with pytest.raises(InvalidRequestError, match="egress"):
        spec(egress)


def test_the_decorator_takes_it():
    assert endpoint(egress=["api.example.com"])(spec).spec("bun_1").egress == ["api.example.com"]
    with pytest.raises(InvalidRequestError, match="'off' for no host"):
        endpoint(egress=[])(spec).spec("bun_1")


APP = """
from brinery import endpoint

@endpoint(egress="off")
def shout(text: str) -> str:
    return text.upper()
"""


@pytest.mark.parametrize(
    ("options", "egress"),
    [
        ([], "off"),
        (["--egress", "on"], "on"),
        (["--egress", "a.example.com", "--egress", "*.example.org:8443"], ["a.example.com", "*.example.org:8443"]),
    ],
)
def test_deploy_takes_it_in_place_of_what_the_file_says(desk, gateway, options, egress):
    desk.write("app.py", APP)
    desk.run(BRINERY, "deploy", "app.py", *options, BRINERY_URL=gateway.url, BRINERY_API_KEY=KEY)
    assert gateway.endpoints["shout"]["spec"]["egress"] == egress
