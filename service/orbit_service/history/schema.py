"""
The schema of the history, and how it becomes the newest.

SQLite, which is this service's own, is migrated when it is opened. PostgreSQL,
which many share, by `orbit-metrics migrate`, before the services of a new release
start: migrations add, so that services of the release before go on. Alembic is
imported only where something is to be done.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from loguru import logger
from sqlalchemy import inspect, text
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError

from orbit_service.history.engines import Database
from orbit_service.history.port import HistoryFailed
from orbit_service.history.tables import metadata

HEAD = "0003"  # the newest file in migrations/versions
MIGRATIONS = Path(__file__).with_name("migrations")
# Of a lock that all `migrate`s want: the bytes of "orbit".
LOCK = int.from_bytes(b"orbit", "big")


def prepare(database: Database) -> None:
    """Make or upgrade SQLite's tables; of PostgreSQL see that they are there.

    Raises HistoryFailed, or what the database raises.
    """
    if database.path is not None:
        database.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        found = version(database)
    except DatabaseError as error:
        # A file that is locked or cannot be read may be right; one that is no database is not.
        if isinstance(error, OperationalError) or database.path is None:
            raise
        _set_aside(database, database.path, error)
        found = None
    if found is not None and found >= HEAD:  # what a newer release adds does not concern us
        _complete(database)
        return
    if database.shared:
        state = "no tables yet" if found is None else f"tables of version {found}"
        raise HistoryFailed(f"the database has {state}; run: orbit-metrics migrate")
    if found is None:
        _make(database)
    else:
        upgrade(database)


def _complete(database: Database) -> None:
    """See that no table was taken away since."""
    with database.reading() as connection:
        there = set(inspect(connection).get_table_names())
    missing = sorted(metadata.tables.keys() - there)
    if not missing:
        return
    if database.shared:
        raise HistoryFailed(
            f"the database lacks the table {missing[0]}: restore it, or drop the others and "
            "alembic_version and run: orbit-metrics migrate"
        )
    logger.error("the history lacks the tables {}; they are made anew", ", ".join(missing))
    with database.writing() as connection:
        metadata.create_all(connection)


def version(database: Database) -> str | None:
    """The version of the tables; None where there are none."""
    with database.reading() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return found


def upgrade(database: Database) -> None:
    """Bring the tables to the newest version, in one transaction; two at once wait in turn."""
    from alembic import command
    from alembic.config import Config

    with database.writing() as connection:
        if database.shared:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _make(database: Database) -> None:
    """The tables of a new file, as all migrations together make them.

    Alembic would hold 9 MiB for it in a service that may never need it again.
    """
    database.make_file()
    with database.writing() as connection:
        metadata.create_all(connection)
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})


def migrate(database: Database) -> tuple[str | None, str]:
    """`upgrade` for people: the version before and after. Raises HistoryFailed."""
    try:
        before = version(database)
        upgrade(database)
        return before, version(database) or ""
    except (SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        raise HistoryFailed(reason.partition("\n")[0]) from error


def _set_aside(database: Database, path: Path, why: Exception) -> None:
    """Keep a file that cannot be used for whoever can read it."""
    database.close()
    aside = path.with_suffix(f".damaged-{time.time_ns()}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    logger.error("a history that cannot be used was put aside: {} ({})", aside, why)
