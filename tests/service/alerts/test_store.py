"""What is kept of alerts, whichever database it is in; and of several hubs, who evaluates."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, update

from builders import HOUR, T0, a_message, an_item, command
from databases import Postgres
from histories import ALL_TIME
from orbit_service.alerts import store as stores
from orbit_service.alerts import tables
from orbit_service.alerts.records import FILE, Entry, LeaseLost, Parcel, StoreFailed, Unwritten
from orbit_service.alerts.store import AlertStore
from orbit_service.history import engines
from orbit_service.history.engines import Database, checked_url

DAY = 24 * HOUR
Open = Callable[..., AlertStore]


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Database]:
    if request.param == "PostgreSQL":
        url = checked_url(request.getfixturevalue("postgres_url"))
        return lambda: engines.postgres(url)
    return lambda: engines.sqlite_file(tmp_path / "state" / FILE)


@pytest.fixture
def open_(database: Callable[[], Database]) -> Iterator[Open]:
    """Opens the database once more, for a holder of the lease or for a node."""
    opened: list[AlertStore] = []

    def open_(holder: str | None = None) -> AlertStore:
        opened.append(AlertStore(database(), holder))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def store(open_: Open) -> AlertStore:
    return open_()


def a_parcel(key: str = "k", **fields: Any) -> Parcel:
    defaults: dict[str, Any] = {"channel": "hook", "created_ms": T0, "next_ms": T0, "tries": 0}
    return Parcel(key, message=a_message(an_item(), key=key), **{**defaults, **fields})


def an_entry(at_ms: int = T0, **fields: Any) -> Entry:
    return Entry(at_ms=at_ms, **{"kind": "firing", "text": "too many", **fields})


def of(*entries: Entry, **fields: Any) -> Unwritten:
    unwritten = Unwritten(**fields)
    unwritten.entries.extend(entries)
    return unwritten


def texts(store: AlertStore, **wanted: Any) -> list[str]:
    return [entry.text for _id, entry in store.audit(*ALL_TIME, 100, **wanted)]


# ---------------------------------------------------------------- writing and reading


def test_what_was_written_is_read_by_another(open_):
    parcels = [a_parcel("b", created_ms=T0 + 1), a_parcel("a")]
    documents = {"alerts": b"\x00\xff", "silences": b""}
    open_().write(of(an_entry(), documents=documents, parcels={p.key: p for p in parcels}))

    assert open_().load() == (documents, [parcels[1], parcels[0]])
    assert [entry for _id, entry in open_().audit(*ALL_TIME, 9)] == [an_entry()]


def test_what_is_written_again_takes_the_place_of_what_was(store):
    store.write(of(documents={"alerts": b"1", "logbook": b"1"}, parcels={"k": a_parcel()}))
    store.write(of(documents={"alerts": b"2"}, parcels={"k": a_parcel(tries=1)}))

    assert store.load() == ({"alerts": b"2", "logbook": b"1"}, [a_parcel(tries=1)])
    store.write(of(parcels={"k": None, "never there": None}))
    assert store.load()[1] == []


def test_a_transaction_is_written_whole_or_not_at_all(store, monkeypatch):
    store.load()
    with monkeypatch.context() as patch:
        patch.setattr(stores, "_row", lambda _entry: {"at_ms": "no number", "kind": None})
        with pytest.raises(StoreFailed):
            store.write(of(an_entry(), documents={"alerts": b"1"}, parcels={"k": a_parcel()}))

    assert (store.load(), texts(store)) == (({}, []), [])


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, ["d", "c", "b", "a"]),
        ({"rule": "slow"}, ["d", "a"]),
        ({"alert": "a1"}, ["b", "a"]),
        ({"kind": "resolved"}, ["d"]),
        ({"rule": "slow", "alert": "a1"}, ["a"]),
        ({"rule": "sl%"}, []),
    ],
)
def test_the_audit_is_told_newest_first_by_what_it_is_about(store, wanted, expected):
    store.write(
        of(
            an_entry(text="a", rule="slow", alert="a1"),
            an_entry(text="b", rule="errors", alert="a1"),
            an_entry(text="c"),
            an_entry(text="d", rule="slow", alert="a2", kind="resolved"),
        )
    )

    assert texts(store, **wanted) == expected


def test_the_audit_is_told_within_its_range_and_its_limit(store):
    store.write(of(*(an_entry(T0 + n, text=str(n)) for n in range(5))))

    found = store.audit(T0 + 1, T0 + 4, 3)
    assert [entry.text for _id, entry in found] == ["4", "3", "2"]
    assert [entry.text for _id, entry in store.audit(T0, T0, 3)] == ["0"]


@pytest.mark.parametrize("text", ["a\0b", "\ud83d\ude00", "snow \N{SNOWMAN}", "'; DROP TABLE"])
def test_whatever_a_text_holds_is_kept(store, text):
    text = text.encode("utf-8", "replace").decode()
    store.write(of(an_entry(text=text, labels={"pipeline": text}, rule=text.replace("\0", "?"))))

    [(_id, entry)] = store.audit(*ALL_TIME, 9)
    assert (entry.text, entry.labels) == (text, {"pipeline": text})


def test_rows_of_another_release_are_passed_over(store, database):
    store.write(of(an_entry(), parcels={"k": a_parcel()}))
    other = database()
    with other.writing() as connection:
        for table in (tables.outbox, tables.audit):
            connection.execute(update(table).values(body=b"\xc1"))
    other.close()

    assert (store.load()[1], texts(store)) == ([], [])


# ---------------------------------------------------------------- bounds


def test_the_audit_keeps_its_newest_entries(store, monkeypatch):
    monkeypatch.setattr(stores, "KEPT_AUDIT", 3)
    monkeypatch.setattr(stores, "PRUNE_EVERY", 4)
    for n in range(9):  # the first prunes, the fifth and the ninth
        store.write(of(an_entry(T0 + n, text=str(n))))

    assert texts(store) == ["8", "7", "6"]


def test_the_audit_forgets_what_is_older_than_ninety_days_by_its_newest(store, monkeypatch):
    monkeypatch.setattr(stores, "PRUNE_EVERY", 1)
    for day in (0, 1, 90):
        store.write(of(an_entry(T0 + day * DAY, text=str(day))))
    assert texts(store) == ["90", "1", "0"]
    store.write(of(an_entry(T0 + 90 * DAY + 1, text="91")))

    assert texts(store) == ["91", "90", "1"]


# ---------------------------------------------------------------- the lease


def let_run_out(database: Callable[[], Database]) -> None:
    other = database()
    with other.writing() as connection:
        connection.execute(update(tables.lease).values(until_ms=0))
    other.close()


def test_of_two_one_has_the_lease(open_):
    a, b = open_("a"), open_("b")

    assert [a.take_lease(), b.take_lease(), a.take_lease(), b.take_lease()] == [
        True,
        False,
        True,
        False,
    ]


def test_a_node_of_any_name_can_have_it(open_):
    holder = stores.holder_of("n" * 200)

    assert open_(holder).take_lease()
    assert not open_(stores.holder_of("n" * 200)).take_lease()
    assert len(holder) <= tables.lease.c.holder.type.length


def test_one_that_is_given_up_is_anybodys(open_):
    a, b = open_("a"), open_("b")
    a.take_lease()
    b.give_lease_up()  # it has none
    assert not b.take_lease()
    a.give_lease_up()

    assert [b.take_lease(), a.take_lease()] == [True, False]


def test_what_another_has_taken_is_lost_with_all_that_was_made_of_it(open_, database):
    a, b = open_("a"), open_("b")
    a.take_lease()
    a.write(of(documents={"alerts": b"a"}))
    let_run_out(database)
    assert b.take_lease()

    with pytest.raises(LeaseLost):
        a.write(of(an_entry(), documents={"alerts": b"late"}, parcels={"k": a_parcel()}))
    b.write(of(documents={"logbook": b"b"}))
    assert (b.load(), texts(b)) == (({"alerts": b"a", "logbook": b"b"}, []), [])


def test_one_that_has_run_out_is_had_for_as_long_as_nobody_takes_it(open_, database):
    """A look may take longer than the lease; that it is renewed then keeps others off."""
    a, b = open_("a"), open_("b")
    a.take_lease()
    let_run_out(database)
    a.write(of(documents={"alerts": b"a"}))

    assert not b.take_lease()


def test_without_a_lease_nothing_is_written(open_):
    with pytest.raises(LeaseLost):
        open_("a").write(of(an_entry()))


def test_of_many_at_once_one_gets_it(open_):
    holders = [open_(str(n)) for n in range(6)]
    for holder in holders:
        holder.load()
    start = threading.Barrier(len(holders))

    def try_it(holder: AlertStore) -> None:
        start.wait()
        if holder.take_lease():
            try:
                holder.write(of(an_entry(text="mine")))
            except LeaseLost:
                return
            wrote.append(holder)

    wrote: list[AlertStore] = []
    threads = [threading.Thread(target=try_it, args=(holder,)) for holder in holders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # Of those that found none each may have had it for a moment; the last one keeps it.
    assert len(wrote) >= 1
    assert sum(holder.take_lease() for holder in holders) == 1
    assert texts(holders[0]) == ["mine"] * len(wrote)


# ---------------------------------------------------------------- files and migrations


def test_a_file_is_made_for_its_owner_alone(tmp_path):
    path = tmp_path / "state" / FILE
    store = AlertStore(engines.sqlite_file(path))
    store.write(of(an_entry()))

    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    store.close()


def test_a_file_in_whose_place_another_was_put_is_noticed(tmp_path):
    path = tmp_path / FILE
    store = AlertStore(engines.sqlite_file(path))
    store.write(of(documents={"alerts": b"1"}))
    for file in tmp_path.glob(f"{FILE}*"):
        file.rename(file.with_name("aside" + file.name))
    path.touch()

    with pytest.raises(StoreFailed, match="made anew"):
        store.write(of(documents={"logbook": b"1"}))
    store.write(of(documents={"alerts": b"2"}))
    assert store.load()[0] == {"alerts": b"2"}
    store.close()


def test_postgresql_without_the_tables_says_what_to_run(postgres: Postgres):
    url = postgres.make("no alerts yet")
    store = AlertStore(engines.postgres(checked_url(url)), "a")

    with pytest.raises(StoreFailed, match="run: orbit-metrics migrate"):
        store.take_lease()
    store.close()
    postgres.drop("no alerts yet")


def test_a_database_of_before_alerts_is_migrated(postgres: Postgres, tmp_path: Path):
    url = postgres.make("before alerts", template="empty")
    database = engines.postgres(checked_url(url))
    with database.writing() as connection:
        tables.metadata.drop_all(connection)
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0002'")
    migrated = command(tmp_path, "migrate", ORBIT_HISTORY_URL=url)

    assert migrated.returncode == 0, migrated.stderr
    with database.reading() as connection:
        assert tables.metadata.tables.keys() <= set(inspect(connection).get_table_names())
    store = AlertStore(database, "a")
    assert store.take_lease()
    store.write(of(an_entry(), documents={"alerts": b"1"}))
    store.close()
    postgres.drop("before alerts")
