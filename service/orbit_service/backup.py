"""
Copy the state and the history of a service that may go on running.

By SQLite's own backup (sqlite.org/backup.html): each file as it was at one moment, without
holding up the writer. The state first: what it has already given to the history is then in
there as well, and is found to be when the service goes on from the copies.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from orbit_rpc_schema.errors import Explained
from orbit_service.history import late
from orbit_service.state import store


class CannotBackUp(Explained):
    """
    {path} cannot be copied: {why}.
    """


def back_up(state: Path, target: Path) -> Iterator[Path]:
    """Copy what is in the state directory into `target`; each file as it is done.

    An older copy there is replaced when the new one is whole. Raises CannotBackUp.
    """
    if not (state / store.FILE).is_file():
        raise CannotBackUp(path=state, why="there is no state; is it that of ORBIT_STATE?")
    if target.exists() and target.samefile(state):
        raise CannotBackUp(path=state, why="the copies would take its place")
    for name in (store.FILE, late.FILE):
        source = state / name
        if source.is_file():
            try:
                target.mkdir(mode=0o700, parents=True, exist_ok=True)
                yield _copy(source, target / name)
            except (OSError, sqlite3.Error) as error:
                why = getattr(error, "strerror", None) or error
                raise CannotBackUp(path=source, why=why) from None


def _copy(source: Path, target: Path) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    os.close(descriptor)
    unfinished = Path(name)
    try:
        with (
            # As a URI the path is escaped: a # or ? in it would name another file.
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as taken,
            closing(sqlite3.connect(unfinished)) as copy,
        ):
            # Asked first, because a copy of what is locked would be tried for ever.
            [(tables,)] = taken.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            if not tables:
                raise sqlite3.DatabaseError("there is nothing in it")
            taken.backup(copy)
            # One file, without others beside it; the service makes them again.
            copy.execute("PRAGMA journal_mode=DELETE")
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        return unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
