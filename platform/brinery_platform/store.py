"""The metadata in SQL: keys, bundles, endpoints, their versions and environments; for gateway and controller only.

Right with many writers at once: whoever reads an endpoint in order to change it or its versions locks its row first
(SQLite locks the whole database instead), and what is made at most once has a unique index; whoever comes second
there starts over and finds the row.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from sqlalchemy import (
    JSON,
    Dialect,
    ForeignKey,
    Index,
    String,
    TypeDecorator,
    UniqueConstraint,
    func,
    select,
)
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from brinery.errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError
from brinery.spec import BundleManifest, EndpointSpec, EndpointStatus, new_id, to_json
from brinery_platform.database import open_engine

T = TypeVar("T")

WRITE_ATTEMPTS: Final = 3


class Prose(TypeDecorator[str]):
    """Text from a user's code or a program's output; what PostgreSQL cannot keep (NUL, lone surrogates) is marked."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's verb
        """Return what is stored for `value`."""
        return value and value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


class Table(DeclarativeBase):
    """Base of all tables; ``migrations/`` creates them."""

    type_annotation_map = {dict[str, Any]: JSON}  # noqa: RUF012 - SQLAlchemy reads a plain class attribute


class Key(Table):
    """An API key; the secret itself is never stored."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(200))
    admin: Mapped[bool]
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class Bundle(Table):
    """An uploaded bundle; its bytes lie in the object store under ``bundles/<sha256>``."""

    __tablename__ = "bundles"
    __table_args__ = (Index("uq_bundles_owner_name_sha256", "owner", "name", "sha256", unique=True),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(63), index=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int]
    manifest: Mapped[dict[str, Any]]
    signature: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]


class Endpoint(Table):
    """An endpoint: what is wanted (`wanted_version`), and what serves (`serving_version`, 0 for nothing yet)."""

    __tablename__ = "endpoints"
    __table_args__ = (UniqueConstraint("owner", "name"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(63))
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Prose)
    wanted_version: Mapped[int]
    serving_version: Mapped[int]
    created_at: Mapped[float]
    updated_at: Mapped[float]


class Version(Table):
    """One version of an endpoint: its whole description at that time, and how its deployment went."""

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("endpoint_id", "number"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("endpoints.id", ondelete="CASCADE"), index=True)
    number: Mapped[int]
    spec: Mapped[dict[str, Any]]
    bundle_id: Mapped[str] = mapped_column(ForeignKey("bundles.id"))
    environment_key: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Prose)
    created_at: Mapped[float]


class Environment(Table):
    """A resolved environment: what was asked for (`key`) and the lock that answered it."""

    __tablename__ = "environments"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    environment_id: Mapped[str] = mapped_column(String(64), index=True)
    lock: Mapped[str]
    created_at: Mapped[float]


class Store:
    """All questions to the SQL database, each in one short transaction.

    Rows come back detached: they are plain values, not live objects. Every method raises `UnavailableError` while the
    database does not answer, and `InvalidRequestError` for a value that it cannot keep, such as a NUL in a name.

    Args:
        url: ``sqlite:///…`` or ``postgresql://…``.
    """

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    def close(self) -> None:
        """Give every connection back."""
        self.engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        try:
            with self._sessions.begin() as session:
                yield session
        except (OperationalError, InterfaceError, InternalError, PoolTimeoutError) as error:
            raise UnavailableError("The database does not answer; try again shortly.") from error
        except DataError as error:
            raise InvalidRequestError("A text here is too long, or has characters that cannot be stored.") from error

    def _write(self, change: Callable[[Session], T]) -> T:
        """Make a change in one transaction; anew where somebody else has just made the row that it wanted to make."""
        for _ in range(WRITE_ATTEMPTS - 1):
            try:
                with self._transaction() as session:
                    return change(session)
            except IntegrityError:
                continue
        with self._transaction() as session:
            return change(session)

    # ------------------------------------------------------------------------------------------------------ keys
    def create_key(self, owner: str, name: str, *, admin: bool = False, text: str = "") -> tuple[Key, str]:
        """Make an API key, of `text` or of a new one.

        Returns:
            The row, and the key's text, which nobody can read again.

        Raises:
            ConflictError: There is, or was, a key of this `text`.
        """
        text = text or f"brn_{secrets.token_urlsafe(32)}"
        key = Key(
            id=new_id("key"),
            owner=owner,
            name=name,
            admin=admin,
            sha256=hash_key(text),
            created_at=time.time(),
            revoked_at=None,
        )
        try:
            with self._transaction() as session:
                session.add(key)
        except IntegrityError:
            raise ConflictError("There is a key of this text already.") from None
        return key, text

    def live_keys(self) -> list[Key]:
        """Return every key that is not revoked, oldest first."""
        with self._transaction() as session:
            query = select(Key).where(Key.revoked_at.is_(None)).order_by(Key.created_at, Key.id)
            return list(session.scalars(query))

    def revoke_key(self, key_id: str) -> None:
        """Revoke a key; doing it twice is no error.

        Raises:
            NotFoundError: There is no such key.
        """
        with self._transaction() as session:
            key = session.get(Key, key_id, with_for_update=True)
            if key is None:
                raise NotFoundError(f"There is no key {key_id!r}.", key_id=key_id)
            key.revoked_at = key.revoked_at or time.time()

    # --------------------------------------------------------------------------------------------------- bundles
    def add_bundle(self, bundle: Bundle) -> Bundle:
        """Keep `bundle`, or return the owner's bundle of the same name and bytes."""
        query = select(Bundle).where(
            Bundle.owner == bundle.owner, Bundle.name == bundle.name, Bundle.sha256 == bundle.sha256
        )

        def add(session: Session) -> Bundle:
            existing = session.scalars(query).first()
            return existing or session.merge(bundle)

        return self._write(add)

    def bundle(self, bundle_id: str, *, owner: str | None = None) -> Bundle:
        """Return one bundle.

        Args:
            bundle_id: ``bun_…``.
            owner: Whose it must be; None for the controller, which may see all.

        Raises:
            NotFoundError: It does not exist, or is not the owner's.
        """
        with self._transaction() as session:
            bundle = session.get(Bundle, bundle_id)
            if bundle is None or owner not in {None, bundle.owner}:
                raise NotFoundError(f"There is no bundle {bundle_id!r}.", bundle_id=bundle_id)
            return bundle

    def bundles(self, owner: str, *, name: str | None = None) -> list[Bundle]:
        """Return the owner's bundles, newest first."""
        with self._transaction() as session:
            query = select(Bundle).where(Bundle.owner == owner).order_by(Bundle.created_at.desc(), Bundle.id)
            return list(session.scalars(query if name is None else query.where(Bundle.name == name)))

    # ------------------------------------------------------------------------------------------------- endpoints
    def put_endpoint(
        self, owner: str, spec: EndpointSpec, *, environment_key: str, again: bool = False
    ) -> tuple[Endpoint, Version]:
        """Create the endpoint, or give it a new version; the same description twice makes one version.

        A version that has failed is made anew, so that deploying again tries again.

        Args:
            owner: Whose endpoint it is.
            spec: The whole description.
            environment_key: What its bundle needs, by hash.
            again: Make a new version even of the same description: the way to restart every worker without a
                dropped request.

        Raises:
            ConflictError: The endpoint is being deleted, or somebody else deployed at the same moment.
        """
        try:
            return self._write(lambda session: _put(session, owner, spec, environment_key, again=again))
        except IntegrityError:
            raise ConflictError(f"Somebody else deployed {spec.name!r} at the same moment; try again.") from None

    def endpoint(self, owner: str, name: str) -> Endpoint:
        """Return one endpoint of the owner's.

        Raises:
            NotFoundError: The owner has none of that name.
        """
        with self._transaction() as session:
            endpoint: Endpoint | None = session.scalars(_endpoint_query(owner, name)).first()
            if endpoint is None:
                raise NotFoundError(f"There is no endpoint {name!r}; `brinery list` shows yours.", endpoint=name)
            return endpoint

    def endpoints(self, owner: str | None = None) -> list[Endpoint]:
        """Return the owner's endpoints by name; all of them for the controller (None)."""
        with self._transaction() as session:
            query = select(Endpoint).order_by(Endpoint.name, Endpoint.id)
            return list(session.scalars(query if owner is None else query.where(Endpoint.owner == owner)))

    def versions(self, endpoint_id: str) -> list[Version]:
        """Return all versions of an endpoint, newest first."""
        with self._transaction() as session:
            query = select(Version).where(Version.endpoint_id == endpoint_id).order_by(Version.number.desc())
            return list(session.scalars(query))

    def version(self, endpoint_id: str, number: int) -> Version:
        """Return one version.

        Raises:
            NotFoundError: The endpoint has no such version.
        """
        with self._transaction() as session:
            version: Version | None = session.scalars(_version_query(endpoint_id, number)).first()
            if version is None:
                raise NotFoundError(f"There is no version {number}.", version=number)
            return version

    def delete_endpoint(self, endpoint_id: str) -> None:
        """Mark an endpoint as being deleted; from here on `advance` changes nothing of it. Gone is no error."""
        with self._transaction() as session:
            endpoint = session.get(Endpoint, endpoint_id, with_for_update=True)
            if endpoint is not None:
                endpoint.status, endpoint.reason = EndpointStatus.DELETING, "Its workers finish what they run."
                endpoint.updated_at = time.time()

    def advance(
        self,
        endpoint_id: str,
        wanted_version: int,
        /,
        *,
        version: tuple[EndpointStatus, str] | None = None,
        **changes: Any,
    ) -> bool:
        """Write what became of an endpoint and of its wanted version, both or nothing.

        Whoever deploys or deletes in the meantime wins: the controller acts on a row that it read a moment ago.

        Args:
            endpoint_id: ``end_…``.
            wanted_version: What was wanted when the controller looked.
            version: New status and reason of that version, None to leave them.
            changes: Columns of the endpoint.

        Returns:
            Whether it was written; False means that the endpoint has moved on, or is gone.
        """
        with self._transaction() as session:
            endpoint = session.get(Endpoint, endpoint_id, with_for_update=True)
            if endpoint is None or endpoint.status == EndpointStatus.DELETING:
                return False
            if endpoint.wanted_version != wanted_version:
                return False
            if version is not None:
                row = session.scalars(_version_query(endpoint_id, wanted_version)).one()
                row.status, row.reason = version
            for name, value in changes.items():
                setattr(endpoint, name, value)
            if changes:
                endpoint.updated_at = time.time()
            return True

    def remove_endpoint(self, endpoint_id: str) -> None:
        """Forget an endpoint and its versions; the controller does it when nothing of it runs any more."""
        with self._transaction() as session:
            endpoint = session.get(Endpoint, endpoint_id, with_for_update=True)
            if endpoint is not None:
                for version in session.scalars(select(Version).where(Version.endpoint_id == endpoint_id)):
                    session.delete(version)
                session.flush()
                session.delete(endpoint)

    # ---------------------------------------------------------------------------------------------- environments
    def environment(self, key: str) -> Environment | None:
        """Return the environment that answered `key` before, if any: unchanged requirements keep their lock."""
        with self._transaction() as session:
            return session.get(Environment, key)

    def put_environment(self, key: str, environment_id: str, lock: str) -> None:
        """Note which environment answers `key`."""
        row = Environment(key=key, environment_id=environment_id, lock=lock, created_at=time.time())
        self._write(lambda session: session.merge(row))


def hash_key(text: str) -> str:
    """Return the SHA-256 of an API key, hex; 256 random bits need no slow hash."""
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_of(bundle: Bundle) -> BundleManifest:
    """Return a stored bundle's manifest; it was checked when it came in."""
    return BundleManifest(**bundle.manifest)


def spec_of(version: Version) -> EndpointSpec:
    """Return a stored version's description; it was checked when it came in."""
    return EndpointSpec(**version.spec)


def _endpoint_query(owner: str, name: str) -> Any:
    return select(Endpoint).where(Endpoint.owner == owner, Endpoint.name == name)


def _version_query(endpoint_id: str, number: int) -> Any:
    return select(Version).where(Version.endpoint_id == endpoint_id, Version.number == number)


def _put(
    session: Session, owner: str, spec: EndpointSpec, environment_key: str, *, again: bool
) -> tuple[Endpoint, Version]:
    """Do the work of `Store.put_endpoint`; the endpoint's row is locked from its first line on."""
    now = time.time()
    endpoint = session.scalars(_endpoint_query(owner, spec.name).with_for_update()).first()
    if endpoint is None:
        endpoint = Endpoint(
            id=new_id("end"),
            owner=owner,
            name=spec.name,
            status=EndpointStatus.BUILDING,
            reason="",
            wanted_version=0,
            serving_version=0,
            created_at=now,
            updated_at=now,
        )
        session.add(endpoint)
    elif endpoint.status == EndpointStatus.DELETING:
        raise ConflictError(f"Endpoint {spec.name!r} is being deleted; deploy it again in a moment.")
    else:
        wanted = session.scalars(_version_query(endpoint.id, endpoint.wanted_version)).one()
        same = wanted.spec == to_json(spec) and wanted.environment_key == environment_key  # a tag may have moved
        if same and not again and wanted.status != EndpointStatus.FAILED:
            return endpoint, wanted
        if wanted.status != EndpointStatus.READY:
            wanted.status, wanted.reason = EndpointStatus.FAILED, "A newer version took its place."
    newest = session.scalar(select(func.max(Version.number)).where(Version.endpoint_id == endpoint.id))
    version = Version(
        id=new_id("ver"),
        endpoint_id=endpoint.id,
        number=(newest or 0) + 1,
        spec=to_json(spec),
        bundle_id=spec.bundle_id,
        environment_key=environment_key,
        status=EndpointStatus.BUILDING,
        reason="",
        created_at=now,
    )
    session.flush()
    session.add(version)
    endpoint.wanted_version = version.number
    endpoint.updated_at = now
    if not endpoint.serving_version:
        endpoint.status, endpoint.reason = EndpointStatus.BUILDING, "Waiting for the controller."
    return endpoint, version
