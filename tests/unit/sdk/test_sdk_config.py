"""Where the platform is: variable, then profile, then default; a key goes to its own URL only."""

import json
import os
import stat

import pytest

from brinery import AuthenticationError, InvalidRequestError
from brinery.config import Profile, read_profile, write_profile

READ = """
import json
from brinery.config import read_config
try:
    config = read_config()
    print(json.dumps([config.url, config.api_key, repr(config)]))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error), ""]))
"""


def read(desk, **environment):
    return json.loads(desk.python("-c", READ, **environment).stdout)


def test_without_anything_it_says_where_a_key_comes_from(desk):
    kind, text, _ = read(desk)
    assert kind == AuthenticationError.__name__
    assert "http://127.0.0.1:5050" in text
    assert "brinery up" in text
    assert "BRINERY_API_KEY" in text


def test_variables_win_over_the_profile(desk):
    write_profile(desk.folder / "home", "http://127.0.0.1:6000/", "brn_profile")
    assert read(desk)[:2] == ["http://127.0.0.1:6000", "brn_profile"]
    assert read(desk, BRINERY_URL="http://localhost:6000")[:2] == ["http://localhost:6000", "brn_profile"]
    assert read(desk, BRINERY_URL="https://box", BRINERY_API_KEY="brn_v")[:2] == ["https://box", "brn_v"]
    assert read(desk, BRINERY_API_KEY="brn_v")[:2] == ["http://127.0.0.1:6000", "brn_v"]


def test_the_profiles_key_never_goes_to_another_url(desk):
    write_profile(desk.folder / "home", "http://127.0.0.1:6000", "brn_profile")
    kind, text, _ = read(desk, BRINERY_URL="http://elsewhere:6000")
    assert kind == AuthenticationError.__name__
    assert "belongs to http://127.0.0.1:6000" in text
    assert "brn_profile" not in text


def test_a_key_is_not_in_the_repr(desk):
    assert "brn_v" not in read(desk, BRINERY_API_KEY="brn_v")[2]


def test_a_url_that_is_none_is_named(desk):
    kind, text, _ = read(desk, BRINERY_URL="127.0.0.1:5050", BRINERY_API_KEY="x")
    assert kind == InvalidRequestError.__name__
    assert "BRINERY_URL" in text


def test_a_url_with_the_apis_path_is_told_to_leave_it_off(desk):
    for url in ("http://box:5050/v1", "http://box:5050/v1/"):
        kind, text, _ = read(desk, BRINERY_URL=url, BRINERY_API_KEY="x")
        assert kind == InvalidRequestError.__name__
        assert "leave that off: http://box:5050 " in text


def test_the_profile_is_its_users_only_and_written_whole(tmp_path):
    home = tmp_path / "a" / "home"
    umask = os.umask(0)
    try:
        path = write_profile(home, "http://127.0.0.1:1", "brn_1")
        write_profile(home, "http://127.0.0.1:2", "brn_2")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert read_profile(home) == Profile(url="http://127.0.0.1:2", api_key="brn_2")
    assert [entry.name for entry in home.iterdir()] == ["profile.json"]


def test_a_missing_profile_is_none(tmp_path):
    assert read_profile(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"url": "http://x"}', '{"url": 3, "api_key": "x"}', "\udcff"])
def test_a_broken_profile_is_named(tmp_path, text):
    path = tmp_path / "profile.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidRequestError) as caught:
        read_profile(tmp_path)
    assert str(path) in caught.value.message or "3" in caught.value.message
