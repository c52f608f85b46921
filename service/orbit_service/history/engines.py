"""
SQLite and PostgreSQL: what is different between them, and nothing else.

Transactions begin when they are told to and as they are told to: a reading one
sees one snapshot, a writing one on SQLite takes the lock at once, so that it never
has to give up what it has read. PostgreSQL is spoken to so that a pooler in
transaction mode may stand between: no prepared statements, no locks or settings
that outlive a transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    event,
    extract,
    func,
    make_url,
    select,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import StaticPool

BUSY_SECONDS = 5.0
PAGE = 8_192
# A server that is gone is noticed in some 25 s, where nothing else tells.
TCP = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
STATEMENT_SECONDS = 60


class NoHistoryUrl(ValueError):
    """The text is no URL of a database that can hold the history."""


def checked_url(text: str) -> URL:
    """The URL of a PostgreSQL database. Raises NoHistoryUrl."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise NoHistoryUrl("a URL such as postgresql+psycopg://user@host/database") from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername != "postgresql+psycopg":
        raise NoHistoryUrl(f"{url.drivername} is not supported; postgresql+psycopg:// is")
    if not url.database:
        raise NoHistoryUrl("the URL names no database")
    return url


Identity = tuple[int, int]


class Database:
    """One database and its connections."""

    def __init__(
        self,
        engine: Engine,
        path: Path | None = None,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.engine = engine
        self.path = path  # of its file, if it is one
        self.shared = engine.dialect.name == "postgresql"
        self._lock = lock or nullcontext()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one snapshot."""
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self._lock, self.engine.connect() as connection:
            if self.shared:
                connection = connection.execution_options(**options)
            with connection.begin():
                self._bound(connection)
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that changes something, or nothing if it fails."""
        with self._lock, self.engine.connect() as connection:
            connection = connection.execution_options(orbit_begin="BEGIN IMMEDIATE")
            with connection.begin():
                self._bound(connection)
                yield connection

    def insert(self, table: Any) -> Any:
        """An INSERT that knows ON CONFLICT."""
        if not self.shared:
            return sqlite.insert(table)
        from sqlalchemy.dialects import postgresql  # 2.3 MiB, with all of its drivers

        return postgresql.insert(table)

    def now_ms(self, connection: Connection) -> int | None:
        """The database's own clock where many share it, else None."""
        if not self.shared:
            return None
        now = connection.scalar(select(extract("epoch", func.clock_timestamp())))
        assert now is not None
        return int(now * 1000)

    def _bound(self, connection: Connection) -> None:
        if self.shared:
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'")

    def identity(self) -> Identity | None:
        """Which file it is; None while there is none. Of what is no file, always the same."""
        if self.path is None:
            return 0, 0
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def make_file(self) -> None:
        """Say of a new file how it is written; it stays so.

        Asked of each connection, it may meet a lock that is not waited for.
        """
        if self.path is not None:
            connection = self.engine.raw_connection()
            try:
                cursor = connection.cursor()
                cursor.execute(f"PRAGMA page_size={PAGE}")
                cursor.execute("PRAGMA journal_mode=WAL")
            finally:
                connection.close()

    def forget_connections(self) -> None:
        """After a failure: one that found a file read-only, or broken, stays as it is."""
        if self.path is not None:
            self.engine.dispose()

    def close(self) -> None:
        self.engine.dispose()


def sqlite_file(path: Path) -> Database:
    """The database in a file, which is made when it is opened."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_SECONDS}
    )
    _begin_as_told(engine)
    return Database(engine, path)


def sqlite_memory() -> Database:
    """A database that ends with the process: one connection, one transaction at a time."""
    engine = create_engine(
        "sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool
    )
    _begin_as_told(engine)
    return Database(engine, lock=RLock())


def postgres(url: URL) -> Database:
    engine = create_engine(
        url,
        connect_args={**TCP, "prepare_threshold": None, "application_name": "orbit-metrics"},
        # The readers' three, the publisher's, and the one that looks at the fleet.
        pool_size=5,
        max_overflow=0,
        pool_timeout=10,
        pool_recycle=300,
        pool_pre_ping=True,
    )
    return Database(engine)


def _begin_as_told(engine: Engine) -> None:
    """Let us, and not the driver, say when a transaction begins
    (docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable).
    """

    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql(options.get("orbit_begin", "BEGIN"))

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begin)
