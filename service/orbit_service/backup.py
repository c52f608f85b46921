"""
Copy the state, the history and the alerts of a service that may go on running.

By SQLite's own backup (sqlite.org/backup.html): each file as it was at one moment, without
holding up the writer. The state first: what it has already given to the history is then in
there as well, and is found to be when the service goes on from the copies.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from orbit_rpc_schema.errors import Explained
from orbit_service.alerts import records
from orbit_service.history import late
from orbit_service.state import store

UNFINISHED = ".unfinished"
BEGIN_SECONDS = 3.0  # for a service that starts to make its tables


class CannotBackUp(Explained):
    """
    {path} cannot be copied: {why}.
    """


def back_up(state: Path, target: Path) -> list[Path]:
    """Copy what is in the state directory into `target`; the copies.

    Older ones there are replaced when the new ones are whole. Raises CannotBackUp.
    """
    if not (state / store.FILE).is_file():
        raise CannotBackUp(path=state, why="there is no state in it; ORBIT_STATE names another")
    if target.exists() and target.samefile(state):
        raise CannotBackUp(path=state, why="the copies would take its place")
    source = state
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(target) as folder:
            unfinished = target / UNFINISHED
            shutil.rmtree(unfinished, ignore_errors=True)  # of one that was killed
            unfinished.mkdir(mode=0o700)
            try:
                copies = []
                for name in (store.FILE, late.FILE, records.FILE):
                    source = state / name
                    if source.is_file():
                        _copy(source, unfinished / name)
                        copies.append(name)
                # All or none, and the history before the state: one that is ahead of its state
                # is found to be, and one that is behind is not.
                for name in reversed(copies):
                    (unfinished / name).replace(target / name)
                os.fsync(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except (OSError, sqlite3.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise CannotBackUp(path=source, why=why) from None
    return [target / name for name in copies]


@contextmanager
def _alone(target: Path) -> Iterator[int]:
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError:
        raise CannotBackUp(path=target, why="another backup into it is under way") from None
    finally:
        os.close(descriptor)


def _copy(source: Path, target: Path) -> None:
    target.touch(mode=0o600)
    with (
        # As a URI the path is escaped: a # or ? in it would name another file.
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as taken,
        closing(sqlite3.connect(target)) as copy,
    ):
        # Asked first, because a copy of what is locked would be tried for ever.
        patience = time.monotonic() + BEGIN_SECONDS
        while taken.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
            if time.monotonic() > patience:
                raise sqlite3.DatabaseError("there is nothing in it")
            time.sleep(0.05)  # another process makes them, and tells nobody
        taken.backup(copy)
        # One file, without others beside it; the service makes them again.
        copy.execute("PRAGMA journal_mode=DELETE")
    with target.open("rb") as written:
        os.fsync(written.fileno())
