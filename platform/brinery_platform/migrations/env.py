"""How Alembic opens the database: through the same engine as the platform, in one transaction."""

from __future__ import annotations

from alembic import context

from brinery_platform.database import open_engine
from brinery_platform.store import Table

engine = open_engine(context.config.attributes["url"])
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
engine.dispose()
