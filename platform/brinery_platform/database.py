"""How the SQL database, SQLite or PostgreSQL, is opened and brought to its newest form.

SQLite runs in WAL mode with ``BEGIN IMMEDIATE`` and a busy timeout: with SQLAlchemy's default ``BEGIN``, five processes
that read and then write see "database is locked" in about half of their transactions. PostgreSQL has many writers at
once: the store locks the rows that it reads in order to write them, and nothing waits for ever.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from brinery.errors import InvalidRequestError

MIGRATIONS: Final = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS: Final = 10_000
POOL_SIZE: Final = 5
MAX_OVERFLOW: Final = 10
POOL_TIMEOUT_SECONDS: Final = 10
POSTGRES_OPTIONS: Final[dict[str, Any]] = {
    "connect_timeout": 5,  # seconds for each address of the host
    "application_name": "brinery",
    # A server that vanished without a word is given up after a minute, not after the kernel's quarter of an hour.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # milliseconds
}
"""What libpq is told, where the URL says nothing else."""
POSTGRES_LIMITS: Final = {
    "statement_timeout": "10s",  # waiting for a lock included
    "idle_in_transaction_session_timeout": "60s",  # or the locks of a stopped process would stop all the others
}
"""What the server ends by itself."""
MIGRATION_LOCK: Final = 0x6272696E657279
"""Number of the advisory lock that whoever migrates holds: ``brinery`` in ASCII."""

_FORM: Final = "write sqlite:////path/of/a.db or postgresql://user:password@host:5432/database"
_DRIVERS: Final = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}


def open_engine(url: str) -> Engine:
    """Open a database; nothing is connected yet.

    Args:
        url: ``sqlite:///…`` or ``postgresql://…``; a password in it appears in no error.

    Raises:
        InvalidRequestError: The URL is not one that can be opened here, or its driver is not installed.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, hide_parameters=True)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        return engine
    try:
        engine = create_engine(
            parsed,
            hide_parameters=True,
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,
            pool_size=POOL_SIZE,
            max_overflow=MAX_OVERFLOW,
            pool_timeout=POOL_TIMEOUT_SECONDS,
            connect_args={name: value for name, value in POSTGRES_OPTIONS.items() if name not in parsed.query},
        )
    except ImportError:
        raise InvalidRequestError(
            "BRINERY_DATABASE_URL names PostgreSQL, whose driver is not installed: pip install 'brinery[postgres]'."
        ) from None
    event.listen(engine, "connect", _prepare_postgres)
    return engine


def migrate(url: str) -> None:
    """Bring the database to the newest migration; of several processes that do it at once, one does it.

    Raises:
        InvalidRequestError: The database cannot be reached or used, with its own words on one line.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["url"] = url
    try:
        command.upgrade(config, "head")
    except DBAPIError as error:
        raise InvalidRequestError(f"BRINERY_DATABASE_URL cannot be used: {_one_line(error.orig)}") from None
    except (SQLAlchemyError, CommandError) as error:
        raise InvalidRequestError(f"BRINERY_DATABASE_URL cannot be used: {_one_line(error)}") from None


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # whose text may hold a part of the password
        raise InvalidRequestError(
            f"BRINERY_DATABASE_URL is no database URL; {_FORM} (other characters than letters and digits of a "
            "password as %XX)."
        ) from None
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None:
        raise InvalidRequestError(f"BRINERY_DATABASE_URL: {parsed.drivername!r} is not supported; {_FORM}.")
    return parsed.set(drivername=driver)


def _one_line(error: BaseException | None) -> str:
    return " ".join(str(error).split())


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # so that the driver begins nothing by itself; see the `begin` listener
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _prepare_postgres(connection: Any, _record: object) -> None:
    # Not as start options of the connection: poolers such as PgBouncer refuse those.
    for name, value in POSTGRES_LIMITS.items():
        connection.execute(f"SET {name} = '{value}'")
    connection.commit()
