"""Alembic's entry: the connection is given, and its transaction is the caller's."""

from alembic import context

from orbit_service.history.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # The caller's transaction holds the lock, and everything or nothing is done.
    transactional_ddl=False,
)
context.run_migrations()
