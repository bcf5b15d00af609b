"""How the SQL database is opened and brought to its newest form.

SQLite runs in WAL mode with ``BEGIN IMMEDIATE`` and a busy timeout: with SQLAlchemy's default ``BEGIN``, five processes
that read and then write see "database is locked" in about half of their transactions.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from brinery.errors import InvalidRequestError

MIGRATIONS: Final = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS: Final = 10_000


def open_engine(url: str) -> Engine:
    """Open a database; nothing is connected yet.

    Raises:
        InvalidRequestError: The URL is not one that SQLAlchemy can open here.
    """
    try:
        parsed = make_url(url)
        engine = create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    except (ArgumentError, ImportError, NoSuchModuleError) as error:
        raise InvalidRequestError(f"BRINERY_DATABASE_URL cannot be opened: {error}") from None
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def migrate(url: str) -> None:
    """Bring the database to the newest migration.

    Raises:
        InvalidRequestError: The database cannot be reached, with its own words.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    try:
        command.upgrade(config, "head")
    except OperationalError as error:
        raise InvalidRequestError(f"BRINERY_DATABASE_URL cannot be used: {error.orig}") from None


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # so that the driver begins nothing by itself; see the `begin` listener
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
