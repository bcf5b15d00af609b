"""What `brinery setup` leaves behind, and how it waits for services that are still starting."""

import stat
import subprocess
import sys
import threading

import pytest

from brinery.config import read_profile
from brinery.errors import ConflictError, InvalidRequestError, UnavailableError
from brinery_platform.preparation import ensure_admin_key, set_up
from brinery_platform.services import connect
from brinery_platform.settings import platform_environment, read_settings
from brinery_platform.store import hash_key
from servers import S3_KEYS, ValkeyProcess, free_port, rclone_s3, wait_for

KEY = "brn_" + "k" * 40


@pytest.fixture
def valkey(tmp_path):
    (tmp_path / "valkey").mkdir()
    server = ValkeyProcess(tmp_path / "valkey")
    yield server
    if server.process is not None:
        server.kill()


@pytest.fixture
def place(tmp_path, valkey):
    """Make the parts of a platform in a home that is not there yet."""
    made = []

    def make(**given):
        services = connect(read_settings(**{"home": tmp_path / "home", "redis_url": valkey.url, **given}))
        made.append(services)
        return services

    yield make
    for services in made:
        for part in ("redis", "store"):
            if part in vars(services):
                getattr(services, part).close()


def admins(services):
    return [key.sha256 for key in services.store.live_keys() if key.admin]


def test_it_makes_a_key_and_writes_it_where_only_its_user_reads_it(place, valkey, tmp_path):
    valkey.start()
    services, said = place(), []
    set_up(services, said.append, wait_seconds=0)
    profile = read_profile(tmp_path / "home")
    assert admins(services) == [hash_key(profile.api_key)]
    assert stat.S_IMODE((tmp_path / "home" / "profile.json").stat().st_mode) == 0o600
    assert not [line for line in said if profile.api_key in line]
    set_up(services, said.append, wait_seconds=0)
    assert read_profile(tmp_path / "home") == profile
    assert len(admins(services)) == 1


def test_a_given_key_is_kept_as_a_hash_alone_however_often_it_is_given(place, valkey, tmp_path):
    valkey.start()
    services, said = place(admin_key=KEY), []
    for _ in range(2):
        set_up(services, said.append, wait_seconds=0)
    assert admins(services) == [hash_key(KEY)]
    assert not [line for line in said if KEY in line]
    written = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    assert KEY not in repr(services.settings)
    assert KEY not in str(platform_environment(services.settings))


def test_a_given_key_that_was_revoked_or_is_no_administrators_is_refused(place, valkey):
    valkey.start()
    services = place(admin_key=KEY)
    set_up(services, print, wait_seconds=0)
    services.store.revoke_key(services.store.live_keys()[0].id)
    with pytest.raises(ConflictError, match="revoked"):
        ensure_admin_key(services, print)
    other = "brn_" + "o" * 40
    services.store.create_key("ann", "laptop", text=other)
    with pytest.raises(ConflictError, match="rights"):
        ensure_admin_key(place(admin_key=other), print)


@pytest.mark.parametrize("key", ["short", "brn_short", "brn_" + "x" * 40 + " ", "x" * 60])
def test_a_key_of_another_form_is_refused_without_being_shown(key):
    with pytest.raises(InvalidRequestError, match="BRINERY_ADMIN_KEY") as caught:
        read_settings(admin_key=key)
    assert key not in caught.value.message


def test_a_service_that_is_still_starting_is_waited_for_and_named(place, valkey):
    services, said = place(), []
    thread = threading.Thread(target=set_up, args=(services, said.append), kwargs={"wait_seconds": 60})
    thread.start()
    wait_for(lambda: said)
    assert "BRINERY_REDIS_URL" in said[0]
    valkey.start()
    thread.join(60)
    assert not thread.is_alive()
    assert "is set up" in said[-1]


def test_the_wait_is_bounded_and_what_can_never_be_right_is_not_waited_for(place, valkey):
    said = []
    with pytest.raises(UnavailableError, match="BRINERY_REDIS_URL"):
        set_up(place(), said.append, wait_seconds=0.1)
    assert len(said) == 1
    with pytest.raises(InvalidRequestError, match="BRINERY_DATABASE_URL"):
        set_up(place(database_url="mysql://host/db"), said.append, wait_seconds=1000)
    with pytest.raises(InvalidRequestError, match="BRINERY_REDIS_URL"):
        set_up(place(redis_url="banana"), said.append, wait_seconds=1000)
    valkey.start()
    with pytest.raises(InvalidRequestError, match="BRINERY_OBJECTS_URL"):
        set_up(place(objects_url="ftp://somewhere"), said.append, wait_seconds=1000)
    with pytest.raises(UnavailableError, match="BRINERY_DATABASE_URL"):
        set_up(place(database_url=f"postgresql://ada:x@127.0.0.1:{free_port()}/db"), said.append, wait_seconds=0.1)


def test_a_missing_bucket_is_made(place, valkey, tmp_path, monkeypatch):
    valkey.start()
    (tmp_path / "s3").mkdir()
    with rclone_s3(tmp_path / "s3") as url:
        for name, value in {"AWS_ENDPOINT_URL": url, **S3_KEYS}.items():
            monkeypatch.setenv(name, value)
        services = place(objects_url="s3://fresh/brinery")
        set_up(services, print, wait_seconds=0)
        services.objects.put("results/one", b"data")
        assert (tmp_path / "s3" / "fresh" / "brinery" / "results" / "one").read_bytes() == b"data"
        set_up(services, print, wait_seconds=0)


def test_the_command_says_in_one_line_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "brinery.cli", "setup", "--home", str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env={"PATH": "/usr/bin"})
    assert done.returncode == 1
    assert "BRINERY_REDIS_URL is empty" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
