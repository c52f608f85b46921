"""
The state directory: one SQLite file with a checkpoint and the journal since.

A row of the journal is what one transaction committed. Written with WAL and
synchronous=FULL: when `write` returns, the operating system has been told to
put it on the disk and says that it did (sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from orbit_rpc_schema.errors import Explained

FILE = "state.sqlite"
SCHEMA = 1  # of the tables; what is in the blobs carries a version of its own
PAGE = 16_384
BUSY_SECONDS = 1.0  # how long a lock of somebody else is waited for, in the writer's thread

_TABLES = """
CREATE TABLE checkpoint (position INTEGER NOT NULL, state BLOB NOT NULL);
CREATE TABLE journal (position INTEGER PRIMARY KEY, events BLOB NOT NULL);
"""


class StateInUse(Explained):
    """
    The state directory {folder} is used by another service.
    Stop that one, or set ORBIT_STATE to another directory, or to none.
    """


class StoreFailed(Exception):
    """The disk or the database does not do its work; the text says why."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a store held when it was opened: state and rows by position, oldest first."""

    checkpoint: bytes | None
    journal: list[bytes]
    position: int

    @property
    def empty(self) -> bool:
        return self.checkpoint is None and not self.journal


class Store:
    """One state directory. Not thread-safe; `opened` once, it may fail and be opened again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE
        self.aside: str | None = None  # where a file that could not be used was put, and why
        self._lock: int | None = None
        self._database: sqlite3.Connection | None = None
        self.file: tuple[int, int] | None = None  # the identity of the open file

    # ------------------------------------------------------------ opening

    def open(self) -> Saved:
        """Open or make the file, and read it. Raises StoreFailed, and StateInUse.

        Again after a failure too: a connection that found a file read-only, or
        broken, stays as it is.
        """
        self._close_database()
        with _explained(self.path):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            try:
                return self._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self.set_aside("damaged", str(error))
                return self._open()

    def _take_lock(self) -> None:
        # Of the directory itself: it needs no file of its own, and none can be deleted.
        if self._lock is not None:
            if os.path.samestat(os.fstat(self._lock), self.folder.stat()):
                return
            os.close(self._lock)
            self._lock = None
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateInUse(folder=self.folder) from None

    def _open(self) -> Saved:
        database = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._database = database
        # Of a new file: rows of a loaded service are large.
        database.execute(f"PRAGMA page_size={PAGE}")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        self._migrate(database)
        self.file = self._identity()
        rows = database.execute("SELECT position, state FROM checkpoint").fetchall()
        position, checkpoint = rows[0] if rows else (0, None)
        journal = database.execute(
            "SELECT position, events FROM journal WHERE position > ? ORDER BY position", (position,)
        ).fetchall()
        return Saved(
            checkpoint=checkpoint,
            journal=[events for _position, events in journal],
            position=journal[-1][0] if journal else position,
        )

    def _migrate(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise StoreFailed(
                f"{self.path} has schema {version}, of a newer release; this one knows {SCHEMA}"
            )
        if version == 0:
            database.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version={SCHEMA};COMMIT;")

    def set_aside(self, what: str, why: str) -> None:
        """Keep a file that cannot be used for whoever can read it; `open` makes a new one."""
        self._close_database()
        aside = self.path.with_suffix(f".{what}-{time.time_ns()}")
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
        self.aside = f"{aside} ({why})"

    # ------------------------------------------------------------ writing

    def write(self, position: int, events: bytes | None, checkpoint: bytes | None = None) -> None:
        """One transaction: a checkpoint in place of all before it, then a row of the journal.

        Raises StoreFailed; then nothing of it is to be taken as written, and the
        same may be written again: a position holds what was written there last.
        """
        database = self._database
        if database is None:
            raise StoreFailed(f"{self.path} is not open")
        with _explained(self.path):
            if self._identity() != self.file:
                raise StoreFailed(f"{self.path} was deleted or replaced")
            try:
                database.execute("BEGIN IMMEDIATE")
                if checkpoint is not None:
                    database.execute("DELETE FROM checkpoint")
                    database.execute("DELETE FROM journal")
                    database.execute("INSERT INTO checkpoint VALUES (?, ?)", (position, checkpoint))
                elif events is not None:
                    database.execute(
                        "INSERT OR REPLACE INTO journal VALUES (?, ?)", (position, events)
                    )
                database.execute("COMMIT")
            finally:
                if database.in_transaction:
                    with suppress(sqlite3.Error):
                        database.execute("ROLLBACK")

    def check(self) -> None:
        """Raise StoreFailed when the file is no longer there."""
        with _explained(self.path):
            if self._database is None or self._identity() != self.file:
                raise StoreFailed(f"{self.path} was deleted or replaced")

    def _identity(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_dev, status.st_ino

    def close(self) -> None:
        self._close_database()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _close_database(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # which names what it is about
        raise StoreFailed(str(error)) from None
    except sqlite3.Error as error:
        raise StoreFailed(f"{path}: {error}") from None
