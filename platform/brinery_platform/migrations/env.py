"""How Alembic opens the database: through the same engine as the platform, in one transaction, one process at a time.

SQLite's ``BEGIN IMMEDIATE`` keeps the others out by itself; on PostgreSQL an advisory lock does, until the commit.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from brinery_platform.database import MIGRATION_LOCK, open_engine
from brinery_platform.store import Table


def wait_for_my_turn(connection: Connection) -> None:
    """Wait at most a minute for whoever migrates at the same time; a migration itself may take longer."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = '60s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})


engine = open_engine(context.config.attributes["url"])
try:
    with engine.connect() as connection:
        wait_for_my_turn(connection)
        context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
finally:
    engine.dispose()
