"""The metadata store, one contract over SQLite and PostgreSQL, each made by the real migrations."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from brinery.errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError
from brinery.spec import BundleKind, BundleManifest, EndpointSpec, EndpointStatus, new_id, to_json
from brinery_platform.database import MIGRATION_LOCK, MIGRATIONS, migrate, open_engine
from brinery_platform.store import Bundle, Endpoint, Store, Table, hash_key, spec_of
from servers import PostgresProcess, free_port, wait_for

T = TypeVar("T")


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest) -> PostgresProcess | None:
    """What the store runs on; None for SQLite, which also a machine without PostgreSQL has."""
    return request.getfixturevalue("postgres") if request.param == "postgres" else None


@pytest.fixture
def empty_url(server: PostgresProcess | None, tmp_path: Path) -> Iterator[str]:
    """A database that nobody has migrated yet."""
    if server is None:
        yield f"sqlite:///{tmp_path / 'brinery.db'}"
    else:
        with server.database() as url:
            yield url


@pytest.fixture
def url(empty_url: str) -> str:
    migrate(empty_url)
    return empty_url


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url)
    yield store
    store.close()


def add_bundle(
    store: Store,
    *,
    owner: str = "ada",
    name: str = "digits",
    sha256: str = "0" * 64,
    manifest: dict[str, Any] | None = None,
) -> Bundle:
    usual = BundleManifest(name=name, kind=BundleKind.FUNCTION, python="3.11", cloudpickle="3.1.2")
    return store.add_bundle(
        Bundle(
            id=new_id("bun"),
            owner=owner,
            name=name,
            sha256=sha256,
            size_bytes=1,
            manifest=manifest or to_json(usual),
            signature="s",
            created_at=time.time(),
        )
    )


def spec(bundle: Bundle, **changes: object) -> EndpointSpec:
    return EndpointSpec(name="digits", bundle_id=bundle.id, **changes)


def test_the_migration_makes_the_tables_that_the_code_describes(url: str) -> None:
    engine = open_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []
    engine.dispose()


def test_migrating_twice_changes_nothing(url: str, store: Store) -> None:
    store.create_key("ada", "first")
    migrate(url)
    assert len(store.live_keys()) == 1


def test_a_key_is_stored_as_its_hash_and_gone_when_revoked(store: Store) -> None:
    key, text = store.create_key("ada", "laptop", admin=True)
    assert [row.sha256 for row in store.live_keys()] == [hash_key(text)]
    assert text not in repr(vars(key))
    store.revoke_key(key.id)
    store.revoke_key(key.id)
    assert store.live_keys() == []
    with pytest.raises(NotFoundError):
        store.revoke_key("key_none")


def test_the_same_bytes_of_the_same_owner_are_one_bundle(store: Store) -> None:
    first = add_bundle(store)
    assert add_bundle(store).id == first.id
    assert add_bundle(store, owner="bob").id != first.id
    assert add_bundle(store, sha256="1" * 64).id != first.id


def test_another_owners_bundle_does_not_exist(store: Store) -> None:
    bundle = add_bundle(store)
    assert store.bundle(bundle.id, owner="ada").id == bundle.id
    with pytest.raises(NotFoundError):
        store.bundle(bundle.id, owner="bob")


def test_the_same_description_twice_is_one_version(store: Store) -> None:
    bundle = add_bundle(store)
    endpoint, first = store.put_endpoint("ada", spec(bundle), environment_key="k")
    _, again = store.put_endpoint("ada", spec(bundle), environment_key="k")
    _, changed = store.put_endpoint("ada", spec(bundle, max_workers=2), environment_key="k")
    assert (first.number, again.number, changed.number) == (1, 1, 2)
    assert spec_of(store.version(endpoint.id, 2)).max_workers == 2
    assert store.version(endpoint.id, 1).status == EndpointStatus.FAILED, "an unfinished version is superseded"


def test_a_failed_version_is_tried_again_by_deploying_again(store: Store) -> None:
    bundle = add_bundle(store)
    endpoint, first = store.put_endpoint("ada", spec(bundle), environment_key="k")
    assert store.advance(endpoint.id, first.number, version=(EndpointStatus.FAILED, "no disk"))
    assert store.put_endpoint("ada", spec(bundle), environment_key="k")[1].number == 2


def test_a_restart_is_a_new_version_of_the_same_description(store: Store) -> None:
    bundle = add_bundle(store)
    store.put_endpoint("ada", spec(bundle), environment_key="k")
    assert store.put_endpoint("ada", spec(bundle), environment_key="k", again=True)[1].number == 2


def test_the_same_description_of_another_environment_is_a_new_version(store):
    """An image's tag may have moved between two versions: a rollback changes nothing but what runs."""
    bundle = add_bundle(store)
    endpoint, first = store.put_endpoint("ada", spec(bundle), environment_key="k")
    store.put_endpoint("ada", spec(bundle), environment_key="moved")
    _, back = store.put_endpoint("ada", spec(bundle), environment_key=first.environment_key)
    assert (back.number, back.environment_key) == (3, "k")
    assert store.put_endpoint("ada", spec(bundle), environment_key="k")[1].number == 3
    assert len(store.versions(endpoint.id)) == 3


def test_names_are_unique_per_owner_only(store: Store) -> None:
    first, _ = store.put_endpoint("ada", spec(add_bundle(store)), environment_key="k")
    second, _ = store.put_endpoint("bob", spec(add_bundle(store, owner="bob")), environment_key="k")
    assert first.id != second.id
    assert [row.owner for row in store.endpoints("bob")] == ["bob"]
    assert store.endpoint("ada", "digits").id == first.id
    with pytest.raises(NotFoundError):
        store.endpoint("eve", "digits")


def test_an_endpoint_that_is_being_deleted_takes_no_new_version(store: Store) -> None:
    bundle = add_bundle(store)
    endpoint, _ = store.put_endpoint("ada", spec(bundle), environment_key="k")
    store.delete_endpoint(endpoint.id)
    assert not store.advance(endpoint.id, 1, status=EndpointStatus.READY)
    assert store.endpoint("ada", "digits").status == EndpointStatus.DELETING
    with pytest.raises(ConflictError, match="being deleted"):
        store.put_endpoint("ada", spec(bundle, max_workers=2), environment_key="k")
    store.remove_endpoint(endpoint.id)
    assert store.put_endpoint("ada", spec(bundle), environment_key="k")[1].number == 1


def test_what_the_controller_found_of_an_old_version_does_not_touch_a_newer_deployment(store: Store) -> None:
    bundle = add_bundle(store)
    endpoint, first = store.put_endpoint("ada", spec(bundle), environment_key="k")
    _, second = store.put_endpoint("ada", spec(bundle, max_workers=2), environment_key="k")
    failed = (EndpointStatus.FAILED, "no disk")
    assert not store.advance(endpoint.id, first.number, version=failed, status=EndpointStatus.FAILED)
    assert store.endpoint("ada", "digits").status == EndpointStatus.BUILDING
    assert store.advance(endpoint.id, second.number, version=failed, status=EndpointStatus.FAILED)
    assert store.endpoint("ada", "digits").status == EndpointStatus.FAILED
    assert store.version(endpoint.id, second.number).reason == "no disk"
    assert store.advance(endpoint.id, second.number, wanted_version=first.number)
    assert store.endpoint("ada", "digits").wanted_version == first.number


# ------------------------------------------------------------------------------------------------- many at once
def at_once(url: str, work: Callable[[Store, int], T], *, count: int = 8) -> list[T]:
    """Let threads do `work` at the same moment, each with a store, and so with connections, of its own."""
    start = threading.Barrier(count)

    def one(number: int) -> T:
        own = Store(url)
        try:
            own.live_keys()  # connected
            start.wait(30)
            return work(own, number)
        finally:
            own.close()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_ten_writers_at_once_all_get_their_keys(url: str, store: Store) -> None:
    made = at_once(url, lambda own, _: [own.create_key("ada", "k")[1] for _ in range(10)], count=10)
    texts = {text for ten in made for text in ten}
    assert {key.sha256 for key in store.live_keys()} == {hash_key(text) for text in texts}
    assert len(texts) == 100


def test_the_same_bytes_uploaded_by_many_at_once_are_one_bundle(url: str, store: Store) -> None:
    for name in ("one", "two", "three", "four"):
        assert len({bundle.id for bundle in at_once(url, lambda own, _, name=name: add_bundle(own, name=name))}) == 1
        assert len(store.bundles("ada", name=name)) == 1


def test_a_first_deployment_by_many_at_once_is_one_endpoint_with_one_version(url: str, store: Store) -> None:
    bundle = add_bundle(store)
    for name in ("one", "two", "three", "four"):
        wanted = EndpointSpec(name=name, bundle_id=bundle.id)
        made = at_once(url, lambda own, _, spec=wanted: own.put_endpoint("ada", spec, environment_key="k"))
        assert {(endpoint.id, version.number) for endpoint, version in made} == {(store.endpoint("ada", name).id, 1)}


def test_different_deployments_at_once_get_a_version_each_and_the_last_one_is_wanted(url: str, store: Store) -> None:
    bundle = add_bundle(store)

    def deploy(own: Store, number: int) -> list[int]:
        changes = [spec(bundle, max_workers=10 * number + step + 1) for step in range(5)]
        return [own.put_endpoint("ada", change, environment_key="k")[1].number for change in changes]

    numbers = [number for five in at_once(url, deploy) for number in five]
    assert sorted(numbers) == list(range(1, 41))
    endpoint = store.endpoint("ada", "digits")
    assert endpoint.wanted_version == 40
    unfinished = {row.number for row in store.versions(endpoint.id) if row.status == EndpointStatus.BUILDING}
    assert unfinished == {40}, "every version but the last is superseded"


def test_who_deploys_or_deletes_wins_over_the_controller_that_looked_before(url: str, store: Store) -> None:
    """The controller's write and a deployment at the same moment never mix: one of them comes first, whole."""
    bundle = add_bundle(store)
    endpoint, _ = store.put_endpoint("ada", spec(bundle), environment_key="k")
    for turn in range(2, 22):

        def work(own: Store, number: int, turn: int = turn) -> bool:
            if number == 0:
                return own.put_endpoint("ada", spec(bundle, max_workers=turn), environment_key="k")[1].number == turn
            ready = (EndpointStatus.READY, f"by {number}")
            return own.advance(endpoint.id, turn - 1, version=ready, serving_version=turn - 1)

        deployed, written = at_once(url, work, count=2)
        row, before = store.endpoint("ada", "digits"), store.version(endpoint.id, turn - 1)
        assert deployed
        assert row.wanted_version == turn
        assert (before.status == EndpointStatus.READY) == (row.serving_version == turn - 1) == written


def test_a_deployment_during_the_removal_makes_a_new_endpoint_or_is_refused(url: str, store: Store) -> None:
    bundle = add_bundle(store)
    for _ in range(10):
        old, _ = store.put_endpoint("ada", spec(bundle), environment_key="k")
        store.delete_endpoint(old.id)

        def work(own: Store, number: int, old: Endpoint = old) -> Endpoint | None:
            if number == 0:
                own.remove_endpoint(old.id)
                return None
            try:
                return own.put_endpoint("ada", spec(bundle), environment_key="k")[0]
            except ConflictError:
                return None

        made = [endpoint for endpoint in at_once(url, work, count=4) if endpoint is not None]
        assert old.id not in {endpoint.id for endpoint in made}
        assert [row.id for row in store.endpoints()] == list({endpoint.id for endpoint in made})
        assert store.versions(old.id) == []


def test_an_environment_noted_by_many_at_once_is_one_of_theirs(url: str, store: Store) -> None:
    for key in ("one", "two", "three", "four"):
        at_once(url, lambda own, number, key=key: own.put_environment(key, f"env{number}", f"lock{number}"))
        kept = store.environment(key)
        assert kept is not None
        assert kept.lock == kept.environment_id.replace("env", "lock")


def test_processes_that_migrate_at_once_all_find_the_newest_tables(empty_url: str) -> None:
    code = "import sys; from brinery_platform.database import migrate; sys.stdin.read(1); migrate(sys.argv[1])"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, empty_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"!")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    store = Store(empty_url)
    assert store.live_keys() == []
    store.close()


# --------------------------------------------------------------------------------------------- what can be stored
def test_what_a_database_cannot_keep_in_a_reason_is_marked(store: Store) -> None:
    bundle = add_bundle(store)
    endpoint, version = store.put_endpoint("ada", spec(bundle), environment_key="k")
    told = (EndpointStatus.FAILED, "said \0 and \ud800, naïve")
    assert store.advance(endpoint.id, version.number, version=told, reason=told[1])
    for reason in (store.endpoint("ada", "digits").reason, store.version(endpoint.id, version.number).reason):
        assert reason == "said \ufffd and ?, naïve"


def test_a_description_comes_back_as_it_was(store: Store) -> None:
    odd = {"floats": [0.1, 1e300, 1.0], "text": "NUL \0, quote ', naïve, \U0001f600", "none": None, "deep": {"": []}}
    assert store.bundle(add_bundle(store, manifest=odd).id).manifest == odd


# ------------------------------------------------------------------------------------------------ PostgreSQL alone
@pytest.fixture
def postgres_store(postgres_url: str) -> Iterator[Store]:
    migrate(postgres_url)
    store = Store(postgres_url)
    yield store
    store.close()


def meanwhile(postgres: PostgresProcess, url: str, change: str, call: Callable[[], T]) -> T:
    """Let `call` come to rows that another transaction has changed, which commits when `call` waits for it."""
    with psycopg.connect(url) as other, ThreadPoolExecutor(1) as pool:
        other.execute(change)
        calling = pool.submit(call)
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        wait_for(lambda: calling.done() or postgres.ask(waiting, url=url))
        assert not calling.done(), "it has not waited"
        other.commit()
        return calling.result(60)


def test_the_controller_does_not_undo_a_deletion_of_the_same_moment(
    postgres: PostgresProcess, postgres_url: str, postgres_store: Store
) -> None:
    endpoint, version = postgres_store.put_endpoint("ada", spec(add_bundle(postgres_store)), environment_key="k")
    ready = (EndpointStatus.READY, "")
    written = meanwhile(
        postgres,
        postgres_url,
        "UPDATE endpoints SET status = 'deleting'",
        lambda: postgres_store.advance(endpoint.id, 1, version=ready, status=EndpointStatus.READY, serving_version=1),
    )
    assert not written
    assert postgres_store.endpoint("ada", "digits").status == EndpointStatus.DELETING
    assert postgres_store.version(endpoint.id, version.number).status == EndpointStatus.BUILDING


def test_a_key_that_was_revoked_at_the_same_moment_keeps_the_first_ones_time(
    postgres: PostgresProcess, postgres_url: str, postgres_store: Store
) -> None:
    key, _ = postgres_store.create_key("ada", "laptop")
    meanwhile(postgres, postgres_url, "UPDATE keys SET revoked_at = 1", lambda: postgres_store.revoke_key(key.id))
    assert postgres.ask("SELECT revoked_at FROM keys", url=postgres_url) == [(1.0,)]


@pytest.mark.parametrize("verb", ["delete_endpoint", "remove_endpoint"])
def test_an_endpoint_that_is_gone_at_the_same_moment_is_no_error(
    postgres: PostgresProcess, postgres_url: str, postgres_store: Store, verb: str
) -> None:
    endpoint, _ = postgres_store.put_endpoint("ada", spec(add_bundle(postgres_store)), environment_key="k")
    meanwhile(postgres, postgres_url, "DELETE FROM endpoints", lambda: getattr(postgres_store, verb)(endpoint.id))
    assert postgres_store.endpoints() == []
    assert postgres_store.versions(endpoint.id) == []


def test_after_a_restart_of_the_server_the_next_call_works(own_postgres: PostgresProcess) -> None:
    migrate(own_postgres.url())
    store = Store(own_postgres.url())
    endpoint, _ = store.put_endpoint("ada", spec(add_bundle(store)), environment_key="k")
    own_postgres.kill()
    own_postgres.start()
    assert store.endpoint("ada", "digits").id == endpoint.id
    store.close()


def test_while_the_server_is_away_a_call_says_so_and_then_works_again(own_postgres: PostgresProcess) -> None:
    migrate(own_postgres.url())
    store = Store(own_postgres.url())
    store.create_key("ada", "before")
    own_postgres.kill()
    for _ in range(3):
        with pytest.raises(UnavailableError, match="does not answer"):
            store.live_keys()
    own_postgres.start()
    assert [key.name for key in store.live_keys()] == ["before"]
    store.close()


def test_a_connection_that_breaks_in_the_middle_writes_nothing(
    postgres: PostgresProcess, postgres_store: Store, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("LOCK TABLE keys")
        writing = pool.submit(postgres_store.create_key, "ada", "lost")
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        (pid,) = wait_for(lambda: postgres.ask(waiting))[0]
        postgres.ask(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(UnavailableError):
            writing.result(60)
    assert postgres_store.live_keys() == []


def test_a_lock_that_is_never_given_back_is_not_waited_for_without_end(
    postgres_store: Store, postgres_url: str
) -> None:
    key, _ = postgres_store.create_key("ada", "laptop")
    with psycopg.connect(postgres_url) as other:
        other.execute("SELECT * FROM keys FOR UPDATE")
        with pytest.raises(UnavailableError):
            postgres_store.revoke_key(key.id)
    postgres_store.revoke_key(key.id)
    assert postgres_store.live_keys() == []


def test_a_name_that_cannot_be_stored_is_the_callers_fault(postgres_store: Store) -> None:
    with pytest.raises(InvalidRequestError):
        postgres_store.create_key("ada", "l" * 201)
    with pytest.raises(InvalidRequestError):
        postgres_store.endpoint("ada", "di\0gits")


def test_who_migrates_waits_for_whoever_migrates_already(postgres: PostgresProcess, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as first, ThreadPoolExecutor(1) as pool:
        first.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
        second = pool.submit(migrate, postgres_url)
        wait_for(lambda: postgres.ask("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
        assert not second.done()
        assert first.execute("SELECT to_regclass('keys')").fetchone() == (None,), "it has made nothing yet"
        first.commit()
        second.result(60)
    assert postgres.ask("SELECT count(*) FROM keys", url=postgres_url) == [(0,)]


def test_a_database_that_cannot_be_used_is_said_in_one_line_without_the_password(
    postgres: PostgresProcess, postgres_url: str
) -> None:
    user = f"poor_{postgres_url[-8:]}"
    postgres.ask(f"CREATE ROLE {user} LOGIN PASSWORD '{postgres.PASSWORD}'")
    refused = {
        "refused": f"postgresql://brinery:{postgres.PASSWORD}@127.0.0.1:{free_port()}/brinery",
        "authentication failed": postgres_url.replace(postgres.PASSWORD, "open-4711"),
        "does not exist": postgres.url("no_such_database"),
        "permission denied": postgres_url.replace("brinery:", f"{user}:"),
        "nowhere.invalid": f"postgresql://brinery:{postgres.PASSWORD}@nowhere.invalid/brinery",
        "sslmode": f"{postgres_url}?sslmode=nonsense",
        "server does not support SSL": f"{postgres_url}?sslmode=require",
        "invalid connection option": f"{postgres_url}?passwort=x",
    }
    try:
        for words, url in refused.items():
            with pytest.raises(InvalidRequestError, match="BRINERY_DATABASE_URL") as caught:
                migrate(url)
            assert words in caught.value.message
            assert "\n" not in caught.value.message
            assert postgres.PASSWORD not in str(caught.value)
            assert "open-4711" not in str(caught.value)
    finally:
        postgres.ask(f"DROP ROLE {user}")


def test_tables_of_a_newer_brinery_are_left_alone(postgres: PostgresProcess, postgres_url: str) -> None:
    migrate(postgres_url)
    postgres.ask("UPDATE alembic_version SET version_num = '9999'", url=postgres_url)
    with pytest.raises(InvalidRequestError, match="9999"):
        migrate(postgres_url)


def test_bundles_from_before_the_unique_index_stay(tmp_path: Path) -> None:
    """Those of the first release are on SQLite, which has never made two."""
    url = f"sqlite:///{tmp_path / 'brinery.db'}"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    command.upgrade(config, "0001")
    old = Store(url)
    bundle = add_bundle(old)
    migrate(url)
    assert add_bundle(old).id == bundle.id
    old.close()
