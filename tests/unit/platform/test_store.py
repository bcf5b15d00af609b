"""The metadata store on a real SQLite file made by the real migration."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from brinery.errors import ConflictError, InvalidRequestError, NotFoundError
from brinery.spec import BundleKind, BundleManifest, EndpointSpec, EndpointStatus, new_id, to_json
from brinery_platform.database import migrate, open_engine
from brinery_platform.store import Bundle, Store, Table, hash_key, spec_of


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'brinery.db'}"
    migrate(url)
    return url


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url)
    yield store
    store.close()


def add_bundle(store: Store, *, owner: str = "ada", name: str = "digits", sha256: str = "0" * 64) -> Bundle:
    manifest = BundleManifest(name=name, kind=BundleKind.FUNCTION, python="3.11", cloudpickle="3.1.2")
    return store.add_bundle(
        Bundle(
            id=new_id("bun"),
            owner=owner,
            name=name,
            sha256=sha256,
            size_bytes=1,
            manifest=to_json(manifest),
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


def test_ten_writers_at_once_never_see_a_locked_database(url: str) -> None:
    errors: list[Exception] = []

    def write() -> None:
        own = Store(url)
        try:
            for _ in range(10):
                own.create_key("ada", "k")
        except Exception as error:  # noqa: BLE001 - whatever it is, the test must see it
            errors.append(error)
        finally:
            own.close()

    threads = [threading.Thread(target=write) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = Store(url)
    assert (errors, len(store.live_keys())) == ([], 100)
    store.close()


def test_an_unusable_database_url_is_named() -> None:
    with pytest.raises(InvalidRequestError, match="BRINERY_DATABASE_URL"):
        Store("nonsense")
    with pytest.raises(InvalidRequestError, match="BRINERY_DATABASE_URL"):
        migrate("sqlite:////no/such/folder/at/all.db")
