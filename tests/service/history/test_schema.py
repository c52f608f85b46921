"""How the tables come to be, and what happens where they are not what they should be."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import insert

from builders import MINUTE, MS, T0
from databases import Postgres
from histories import ANY, SEND, Place, a_publication, runs
from orbit_service.alerts.tables import metadata as alert_tables
from orbit_service.core.histogram import Histogram
from orbit_service.history import engines, schema
from orbit_service.history.engines import Database, NoHistoryUrl, checked_url
from orbit_service.history.late import without_password
from orbit_service.history.port import HistoryFailed
from orbit_service.history.sql import SqlHistory
from orbit_service.history.tables import digest_of, metadata, node, series, windows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.sqlite"


@pytest.fixture
def place(file: Path) -> Iterator[Place]:
    place = Place(lambda: engines.sqlite_file(file))
    yield place
    place.history.close()


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def connect(request: pytest.FixtureRequest, file: Path) -> Callable[[], Database]:
    """Opens a database of either engine; it has no tables."""
    if request.param == "PostgreSQL":
        url = checked_url(request.getfixturevalue("empty_url"))
        return lambda: engines.postgres(url)
    file.parent.mkdir()
    return lambda: engines.sqlite_file(file)


@pytest.fixture
def empty_url(postgres: Postgres) -> Iterator[str]:
    """A database without tables."""
    yield postgres.make("no tables yet")
    postgres.drop("no tables yet")


def differences(database: Database) -> list[object]:
    with database.reading() as connection:
        # In PostgreSQL hubs keep their alerts beside the history.
        known = [metadata, alert_tables] if database.shared else [metadata]
        return list(compare_metadata(MigrationContext.configure(connection), known))


def migrate_to(revision: str, database: Database) -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    with database.writing() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


# ---------------------------------------------------------------- migrations


@pytest.mark.parametrize("make", [schema.prepare, schema.upgrade])
def test_a_new_file_has_the_tables_that_migrations_make(file: Path, make) -> None:
    file.parent.mkdir()
    database = engines.sqlite_file(file)
    make(database)

    assert differences(database) == []
    assert schema.version(database) == schema.HEAD
    database.close()


def test_migrations_make_the_tables_that_the_code_knows_in_postgresql(postgres_url: str) -> None:
    database = engines.postgres(checked_url(postgres_url))

    assert differences(database) == []
    database.close()


def test_the_newest_migration_is_the_one_that_the_code_asks_for() -> None:
    files = sorted(path.name for path in (schema.MIGRATIONS / "versions").glob("[0-9]*.py"))

    assert files[-1].startswith(schema.HEAD)


def test_windows_of_before_waits_were_kept_go_on_in_both_releases(
    connect: Callable[[], Database],
) -> None:
    database = connect()
    migrate_to("0001", database)
    with database.writing() as connection:
        over = T0 // 1000 + 7_200
        connection.execute(insert(node).values(name="n", rolled_1m=over, rolled_1h=over))
        send = {**SEND._asdict(), "digest": digest_of(SEND)}
        connection.execute(insert(series).values(node=1, **send))
    for start in (T0, T0 + MINUTE):  # the second is written after the migration
        with database.writing() as connection:
            as_before = {"runs": 1, "timed": 1, "waited": 1, "max_wait_us": MS}
            durations = Histogram.of([MS]).encode()
            for table in windows:
                where = {"series": 1, "start": start // 1000, "histogram": durations}
                connection.execute(insert(table).values(**where, **as_before))
        schema.upgrade(database)

    assert differences(database) == []
    database.close()
    place = Place(connect)
    place.add(T0, MS, waits=[5 * MS])
    for level in (0, 1, 2):
        total = place.total(level)
        assert (total.runs, total.waited, total.waits) == (3, 3, Histogram.of([5 * MS]))
    place.history.close()


def test_postgresql_without_tables_says_what_to_run(empty_url: str) -> None:
    history = SqlHistory(engines.postgres(checked_url(empty_url)))
    with pytest.raises(HistoryFailed, match="no tables yet; run: orbit-metrics migrate"):
        history.apply("n", "i", [a_publication(1)], ANY)
    history.close()


def test_it_works_once_they_are_made(empty_url: str) -> None:
    place = Place(lambda: engines.postgres(checked_url(empty_url)))
    with pytest.raises(HistoryFailed):
        place.add(T0, MS)
    schema.migrate(place.history.database)
    place.number = 0
    place.add(T0, MS)

    assert place.total().runs == 1
    place.history.close()


def test_two_that_migrate_at_once_take_turns(empty_url: str) -> None:
    found: list[object] = []

    def migrate() -> None:
        database = engines.postgres(checked_url(empty_url))
        try:
            found.append(schema.migrate(database)[1])
        except Exception as error:  # noqa: BLE001  # shown below
            found.append(error)
        database.close()

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [schema.HEAD] * 4


# ---------------------------------------------------------------- files


def test_what_was_there_is_there_after_a_restart(place: Place) -> None:
    place.add(T0, MS)
    place.restart()

    assert place.total().runs == 1


def test_a_file_that_is_no_database_is_put_aside(place: Place, file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"this is not a database, and long enough to be taken for one" * 100)
    place.add(T0, MS)

    assert place.total().runs == 1
    assert [p.name for p in file.parent.glob("*damaged*")]


def test_a_file_that_is_deleted_is_made_anew(place: Place, file: Path) -> None:
    place.add(T0, MS)
    file.unlink()
    place.add(T0, MS, MS)

    assert place.total().runs == 2
    assert file.exists()


def test_a_file_that_is_locked_fails_and_goes_on_later(
    place: Place, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0.05)
    place.add(T0, MS)
    place.restart()
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(HistoryFailed, match="locked"):
            place.add(T0, MS)
        other.execute("ROLLBACK")
    other.close()
    publication = a_publication(place.number, {T0: {SEND: runs(MS)}})
    place.history.apply("n", "instance of n", [publication], ANY)

    assert place.total().runs == 2


def test_tables_of_a_newer_release_are_used(place: Place) -> None:
    place.add(T0, MS)
    with place.history.database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.exec_driver_sql("ALTER TABLE window_10s ADD COLUMN news BIGINT")
    place.restart()
    place.add(T0, MS)

    assert place.total().runs == 2


# ---------------------------------------------------------------- a server that goes away


def test_postgresql_may_go_away_and_come_back(tmp_path: Path) -> None:
    server = Postgres(tmp_path / "server")
    url = checked_url(server.make("history"))
    place = Place(lambda: engines.postgres(url))
    schema.migrate(place.history.database)
    place.add(T0, MS)
    server.stop()
    with pytest.raises(HistoryFailed):
        place.add(T0, MS)
    with pytest.raises(HistoryFailed):
        place.total()
    server.start()
    place.history.apply("n", "instance of n", [a_publication(2, {T0: {SEND: runs(MS)}})], ANY)

    assert place.total().runs == 2
    place.history.close()
    server.close()


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not a url", "a URL such as"),
        ("mysql://localhost/orbit", "mysql is not supported"),
        ("postgresql+psycopg2://localhost/orbit", "psycopg2 is not supported"),
        ("postgresql://localhost", "names no database"),
        ("postgresql://h1:5432,h2:5432/db", "a URL such as"),
    ],
)
def test_a_url_that_cannot_be_used_says_what_can(text: str, said: str) -> None:
    with pytest.raises(NoHistoryUrl, match=said):
        checked_url(text)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_the_driver_need_not_be_named(scheme: str) -> None:
    assert checked_url(f"{scheme}://u:p@h/d").drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:hunter2@h/d", "postgresql://u@h/d?password=hunter2&sslpassword=hunter2"],
)
def test_no_password_is_shown(url: str) -> None:
    assert "hunter2" not in without_password(url)
    assert without_password(url).startswith("postgresql+psycopg://u")


def test_a_table_that_was_taken_away_is_made_anew_in_sqlite(place: Place) -> None:
    place.add(T0, MS)
    with place.history.database.writing() as connection:
        connection.exec_driver_sql("DROP TABLE window_10s")
    with pytest.raises(HistoryFailed, match="no such table"):
        place.total()

    assert place.total().runs == 0


def test_a_table_that_was_taken_away_is_named_in_postgresql(postgres_url: str) -> None:
    place = Place(lambda: engines.postgres(checked_url(postgres_url)))
    place.add(T0, MS)
    with place.history.database.writing() as connection:
        connection.exec_driver_sql("DROP TABLE window_10s")
    place.restart()
    with pytest.raises(HistoryFailed, match="lacks the table window_10s: restore it"):
        place.total()
    place.history.close()
