"""Where pending runs wait, in a process that has other databases too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from orbit_service.history.engines import sqlite_file
from orbit_worker.pipelines.store import Store, database_url


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(database_url(str(tmp_path / "pipelines.db")))
    yield store
    store.close()


def settings(connection: sqlalchemy.Connection) -> dict[str, object]:
    """What a connection has of SQLite's settings; synchronous of 1 is NORMAL, of 2 FULL."""
    names = ("journal_mode", "synchronous", "busy_timeout")
    return {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names}


def test_its_file_is_written_ahead_and_waited_for(store):
    with store.client._sys_db.engine.connect() as connection:
        found = settings(connection)

    assert found == {"journal_mode": "wal", "synchronous": 1, "busy_timeout": 30_000}


def test_a_database_of_the_host_is_left_as_it_is(store, tmp_path):
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with engine.connect() as connection:
        found = settings(connection)
    engine.dispose()

    assert found == {"journal_mode": "delete", "synchronous": 2, "busy_timeout": 5_000}


def test_the_history_of_a_service_that_puts_runs_in_is_written_through(store, tmp_path):
    history = sqlite_file(tmp_path / "history.sqlite")
    history.make_file()
    with history.reading() as connection:
        found = settings(connection)
    history.close()

    assert found == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 5_000}
