"""Permits of workers: what a list allows, what is not the platform's, and which requests a proxy understands."""

import base64
from urllib.parse import urlsplit

import pytest

from brinery_platform.egress.heads import BadHeadError, read_head
from brinery_platform.egress.permits import Permit, read_permit, variables

HOSTS = ("api.example.com", "*.example.org", "db.example.net:5432", "*.example.edu:8443")


@pytest.mark.parametrize(
    "address",
    [
        ("api.example.com", 443),
        ("api.example.com", 80),
        ("a.example.org", 443),
        ("a.b.example.org", 443),
        ("db.example.net", 5432),
        ("x.example.edu", 8443),
    ],
)
def test_what_is_in_the_list_is_allowed(address):
    assert Permit("end_1", HOSTS).allows(*address)


@pytest.mark.parametrize(
    "address",
    [
        ("api.example.com", 22),
        ("example.com", 443),
        ("xapi.example.com", 443),
        ("api.example.com.evil.net", 443),
        ("example.org", 443),
        ("evilexample.org", 443),
        ("db.example.net", 443),
        ("x.example.edu", 443),
    ],
)
def test_what_is_not_in_it_is_not(address):
    assert not Permit("end_1", HOSTS).allows(*address)


def test_a_permit_comes_back_from_the_address_of_the_proxy(tmp_path):
    named = variables(tmp_path, Permit("end_1", HOSTS), "10.213.4.1:5007")
    parts = urlsplit(named["https_proxy"])
    assert (parts.hostname, parts.port) == ("10.213.4.1", 5007)
    assert read_permit(tmp_path, parts.username, parts.password) == Permit("end_1", HOSTS)
    assert named["HTTP_PROXY"] == named["http_proxy"] == named["HTTPS_PROXY"]
    assert "127.0.0.1" in named["NO_PROXY"]


def test_a_permit_that_another_home_signed_or_a_worker_wrote_is_none(tmp_path):
    parts = urlsplit(variables(tmp_path / "a", Permit("end_1", HOSTS), "10.0.0.1:1")["http_proxy"])
    assert read_permit(tmp_path / "b", parts.username, parts.password) is None
    wider = base64.urlsafe_b64encode(b'["end_1","*.net"]').decode().rstrip("=")
    assert read_permit(tmp_path / "a", wider, parts.password) is None
    assert read_permit(tmp_path / "a", "", "") is None


def test_a_tunnel_and_a_plain_request_are_read():
    basic = base64.b64encode(b"user:token")
    tunnel = read_head(b"CONNECT API.example.com.:443 HTTP/1.1\r\nProxy-Authorization: Basic " + basic + b"\r\n\r\n")
    assert (tunnel.host, tunnel.port, tunnel.onward) == ("api.example.com", 443, None)
    assert (tunnel.user, tunnel.token) == ("user", "token")
    plain = read_head(
        b"GET http://example.com:8080/a?b=c HTTP/1.1\r\nHost: evil\r\nX-One: 1\r\nProxy-Connection: keep-alive\r\n"
        b"Proxy-Authorization: Basic " + basic + b"\r\n\r\n"
    )
    assert (plain.host, plain.port) == ("example.com", 8080)
    assert plain.onward == (b"GET /a?b=c HTTP/1.1\r\nHost: example.com:8080\r\nX-One: 1\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET https://a/ HTTP/1.1\r\n\r\n",
        b"GET http://a/ HTTP/2\r\n\r\n",
        b"GET http://u@a/ HTTP/1.1\r\n\r\n",
        b"GET http:///x HTTP/1.1\r\n\r\n",
        b"GET http://a:99999/ HTTP/1.1\r\n\r\n",
        b"GET http://a\x00b/ HTTP/1.1\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nNo colon\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nX: 1\nHost: b\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\n folded\r\n\r\n",
        b"get http://a/ HTTP/1.1\r\n\r\n",
        b"CONNECT a HTTP/1.1\r\n\r\n",
        b"CONNECT a:0 HTTP/1.1\r\n\r\n",
        b"CONNECT a:1/x HTTP/1.1\r\n\r\n",
        b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n",
        b"CONNECT http://a:443 HTTP/1.1\r\n\r\n",
        b"\xff\xfe a b\r\n\r\n",
    ],
)
def test_what_is_no_request_for_a_proxy_is_refused(raw):
    with pytest.raises(BadHeadError):
        read_head(raw)
