"""The history, made at its first use by whichever thread needs it: SQLAlchemy is slow to import."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from orbit_service.core.rollup import Level
from orbit_service.history.port import History

FILE = "history.sqlite"


class LateHistory:
    """Call it to get the history; safe from any thread.

    Of the PostgreSQL at `url`, else of a file in `folder`, else of memory.
    """

    def __init__(self, url: str | None, folder: Path | None, levels: Sequence[Level]) -> None:
        self._url = url
        self._file = None if folder is None else folder / FILE
        self._levels = levels
        self._lock = threading.Lock()
        self._made: History | None = None

    @property
    def shared(self) -> bool:
        """Whether other nodes may write to it too."""
        return self._url is not None

    @property
    def name(self) -> str:
        """What people may see of it: no password."""
        if self._url is None:
            return "memory" if self._file is None else str(self._file)
        return without_password(self._url)

    @property
    def unreadable(self) -> int:
        """Rows that could not be read."""
        return 0 if self._made is None else self._made.unreadable

    def __call__(self) -> History:
        with self._lock:
            if self._made is None:
                from orbit_service.history import engines
                from orbit_service.history.sql import SqlHistory

                if self._url is not None:
                    database = engines.postgres(engines.checked_url(self._url))
                elif self._file is not None:
                    database = engines.sqlite_file(self._file)
                else:
                    database = engines.sqlite_memory()
                self._made = SqlHistory(database, self._levels)
            return self._made

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                self._made.close()


def without_password(url: str) -> str:
    """The URL as people may see it."""
    from orbit_service.history.engines import checked_url

    known = checked_url(url)
    secret = [name for name in known.query if "pass" in name]
    shown = known.difference_update_query(secret)
    return shown.render_as_string(hide_password=True) + (" (and a secret)" if secret else "")
