"""
What is durable of alerts, in one transaction for each look.

The memory is what counts while the service runs, so that a full disk keeps nobody from
being told; what could not be written is kept, within bounds, and written when it can be.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from loguru import logger
from sqlalchemy import Connection, delete, inspect, select, update
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from orbit_service.alerts import tables
from orbit_service.alerts.records import Entry, LeaseLost, Parcel, StoreFailed, Unwritten
from orbit_service.core.rollup import DAY_MS
from orbit_service.history.engines import Database, Identity

KEPT_AUDIT_MS = 90 * DAY_MS
KEPT_AUDIT = 100_000  # entries
PRUNE_EVERY = 1_000  # entries
LEASE = "evaluation"
LEASE_MS = 20_000
HOLDER_NODE = 50  # characters of a node's name; a pod's may have 63

_encode = msgspec.msgpack.Encoder().encode
_entry = msgspec.msgpack.Decoder(Entry).decode
_parcel = msgspec.msgpack.Decoder(Parcel).decode


def holder_of(node: str) -> str:
    """Who wants the lease: another at each start, and with room for its name in the table."""
    return f"{node[:HOLDER_NODE]}/{uuid4().hex[:12]}"


class AlertStore:
    """One database of alerts. Not to be used by two threads at once.

    `holder` is who wants the lease, where several share the database; None: nobody does.
    """

    def __init__(self, database: Database, holder: str | None = None) -> None:
        self._database = database
        self._holder = holder
        self._made = False
        self._identity: Identity | None = None
        self._since_prune = PRUNE_EVERY  # the first one soon

    def load(self) -> tuple[dict[str, bytes], list[Parcel]]:
        """Documents by name, and what waits to be delivered. Raises StoreFailed."""
        with self._working(), self._database.reading() as connection:
            rows = connection.execute(select(tables.document)).all()
            outbox = connection.scalars(select(tables.outbox.c.body)).all()
        parcels = []
        for body in outbox:
            with suppress(msgspec.DecodeError):  # of a release that is gone
                parcels.append(_parcel(body))
        parcels.sort(key=lambda parcel: parcel.created_ms)
        return {row.name: bytes(row.body) for row in rows}, parcels

    def take_lease(self) -> bool:
        """Whether this one evaluates for the next while. Raises StoreFailed."""
        if self._holder is None:
            return True
        with self._working(), self._database.writing() as connection:
            now_ms = self._now_ms(connection)
            table = tables.lease
            found = connection.execute(
                select(table).where(table.c.name == LEASE).with_for_update()
            ).one_or_none()
            if found is not None and found.holder != self._holder and found.until_ms > now_ms:
                return False
            row = {"name": LEASE, "holder": self._holder, "until_ms": now_ms + LEASE_MS}
            insert = self._database.insert(table).values(row)
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=row))
            # Of two that found none the later one waited for the other, and overwrote it.
            return True

    def give_lease_up(self) -> None:
        if self._holder is None:
            return
        with suppress(StoreFailed), self._working(), self._database.writing() as connection:
            mine = tables.lease.c.holder == self._holder
            connection.execute(delete(tables.lease).where(mine))

    def write(self, unwritten: Unwritten) -> None:
        """All of it or nothing. Raises StoreFailed, LeaseLost."""
        with self._working(), self._database.writing() as connection:
            self._renew_lease(connection)
            for name, body in unwritten.documents.items():
                row = {"name": name, "body": body}
                insert = self._database.insert(tables.document).values(row)
                connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=row))
            if unwritten.entries:
                connection.execute(
                    tables.audit.insert(), [_row(entry) for entry in unwritten.entries]
                )
            for key, parcel in unwritten.parcels.items():
                connection.execute(delete(tables.outbox).where(tables.outbox.c.key == key))
                if parcel is not None:
                    connection.execute(tables.outbox.insert().values(key=key, body=_encode(parcel)))
            self._since_prune += len(unwritten.entries)
            if self._since_prune >= PRUNE_EVERY:
                self._since_prune = 0
                self._prune(connection)

    def audit(
        self,
        from_ms: int,
        to_ms: int,
        limit: int,
        *,
        rule: str | None = None,
        alert: str | None = None,
        kind: str | None = None,
    ) -> list[tuple[int, Entry]]:
        """The newest entries of a range with their numbers, newest first. Raises StoreFailed."""
        table = tables.audit
        wanted = [table.c.at_ms >= from_ms, table.c.at_ms <= to_ms]
        for column, value in ((table.c.rule, rule), (table.c.alert, alert), (table.c.kind, kind)):
            if value is not None:
                wanted.append(column == value)
        query = select(table.c.id, table.c.body).where(*wanted)
        with self._working(), self._database.reading() as connection:
            rows = connection.execute(query.order_by(table.c.id.desc()).limit(limit)).all()
        found = []
        for row in rows:
            with suppress(msgspec.DecodeError):
                found.append((row.id, _entry(row.body)))
        return found

    def close(self) -> None:
        self._database.close()

    # ------------------------------------------------------------ inside

    def _prune(self, connection: Connection) -> None:
        table = tables.audit
        newest = connection.execute(
            select(table.c.id, table.c.at_ms).order_by(table.c.id.desc()).limit(1)
        ).one_or_none()
        if newest is not None:
            connection.execute(
                delete(table).where(
                    (table.c.at_ms < newest.at_ms - KEPT_AUDIT_MS)
                    | (table.c.id <= newest.id - KEPT_AUDIT)
                )
            )

    def _renew_lease(self, connection: Connection) -> None:
        """One that has run out is ours for as long as nobody has taken it. Raises LeaseLost."""
        if self._holder is None:
            return
        table = tables.lease
        renewed = connection.execute(
            update(table)
            .where(table.c.name == LEASE, table.c.holder == self._holder)
            .values(until_ms=self._now_ms(connection) + LEASE_MS)
        )
        if not renewed.rowcount:
            raise LeaseLost("another hub evaluates")

    def _now_ms(self, connection: Connection) -> int:
        return self._database.now_ms(connection) or time.time_ns() // 1_000_000

    @contextmanager
    def _working(self) -> Iterator[None]:
        """What the database raises is explained; its tables are made first.

        A file that has gone, or is damaged, is made anew: that is a failure too, so that
        whoever writes writes everything.
        """
        database = self._database
        try:
            if not self._made:
                self._make()
            elif database.identity() != self._identity:
                database.forget_connections()
                self._make()
                raise StoreFailed("the file was gone, and is made anew")
            yield
        except (SQLAlchemyError, OSError) as error:
            self._made = False
            database.forget_connections()
            if _is_damage(error) and database.path is not None:
                with suppress(OSError):
                    _set_aside(database, database.path, error)
            reason = str(getattr(error, "orig", None) or error).strip()
            raise StoreFailed(reason.partition("\n")[0]) from error

    def _make(self) -> None:
        database = self._database
        if database.shared:
            with database.reading() as connection:
                there = set(inspect(connection).get_table_names())
            if missing := sorted(tables.metadata.tables.keys() - there):
                raise StoreFailed(
                    f"the database lacks the table {missing[0]}; run: orbit-metrics migrate"
                )
        else:
            self._make_file()
        self._made = True
        self._identity = database.identity()

    def _make_file(self) -> None:
        database = self._database
        if database.path is not None:
            database.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if database.path is not None and not database.path.exists():
                database.path.touch(mode=0o600)
                database.make_file()
            with database.writing() as connection:
                tables.metadata.create_all(connection)
        except DatabaseError as error:
            if not _is_damage(error) or database.path is None:
                raise
            _set_aside(database, database.path, error)
            self._make_file()


def _is_damage(error: Exception) -> bool:
    """What SQLite says of a file that holds something else, or of which a part is gone."""
    return type(error) is DatabaseError  # what can be got over is of classes beneath it


def _set_aside(database: Database, path: Path, why: Exception) -> None:
    database.close()
    aside = path.with_suffix(f".damaged-{time.time_ns()}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    logger.error("a file of alerts that cannot be used was put aside: {} ({})", aside, why)


def _row(entry: Entry) -> Mapping[str, Any]:
    return {
        "at_ms": entry.at_ms,
        "kind": entry.kind,
        "rule": entry.rule,
        "alert": entry.alert,
        "body": _encode(entry),
    }
