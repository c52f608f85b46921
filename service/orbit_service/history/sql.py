"""
The history in SQL, for both databases.

A publication adds to the windows of ten seconds. Coarser levels are rolled up
from the level below, once, when their windows are over; `rolled_*` of a node says
how far. What comes late for a window that is rolled up already is added to every
level in the same transaction, so a row is never computed again from rows that may
have been let go. All of it happens under a lock on the node's row, and with it
moves the number, or the mark, that says that it has happened.

Expiry goes by a clock of its own, the horizon: it follows the newest window of all
nodes, never past the present, and at most twice as fast as time. A clock that jumps
a year ahead therefore does not let a year of history go.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any, TypeVar

from loguru import logger
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    exists,
    false,
    func,
    or_,
    select,
    update,
)
from sqlalchemy import Row as SqlRow
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from orbit_service.core.histogram import Histogram
from orbit_service.core.outbox import EVERYTHING, ErrorText, Key, Publication, sum_of
from orbit_service.core.rollup import LEVELS, Level, Segment
from orbit_service.core.stats import Stats
from orbit_service.history import schema
from orbit_service.history.engines import Database, Identity
from orbit_service.history.port import Add, HistoryFailed, HistoryRefused, Member, Wanted
from orbit_service.history.tables import error_text, instance, node, series, windows

LEASE_MS = 30_000
# A window is rolled up when what usually comes late is there; later than that is dearer.
SETTLED_S = 15
ROLLED_AT_ONCE = 5  # windows a transaction
# A node that has been idle is rolled up to the end of its last windows, and no further.
ROLLED_AHEAD_S = 2 * 3_600
EXPIRE_EVERY_MS = 5 * 60_000
HORIZON_SPEED = 2
CHUNK = 500  # ids in one statement
KEPT_IDS = 50_000
STREAMED = {"yield_per": 1_000}  # rows, not all of them at once
MEMBER_MS = 24 * 3_600_000  # an instance that is gone is told of for a day

T = TypeVar("T")

_FIELDS = Stats.__struct_fields__
_KEY = [series.c[name] for name in Key._fields]


def wall_clock() -> int:
    return time.time_ns() // 1_000_000


class SqlHistory:
    """A history in one database. Thread-safe; one writer at a time is expected.

    `clock` (epoch ms) stands in for the database's own, and for the wall's.
    """

    def __init__(
        self,
        database: Database,
        levels: Sequence[Level] = LEVELS,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.database = database
        self.levels = levels
        self._clock = clock
        self._ids: dict[tuple[int, Key], int] = {}
        self._file: Identity | None = None
        self._ready = False  # the right tables were there
        self._opening = Lock()

    def close(self) -> None:
        self._ready = False
        self.database.close()

    # ------------------------------------------------------------ transactions

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._explained(), self.database.reading() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with self._explained(), self.database.writing() as connection:
                yield connection
        except HistoryFailed:
            # What was thought to be there may not be.
            self._ids = {}
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """See first that the right tables are there; whatever fails is a HistoryFailed."""
        try:
            self._open()
            yield
        except HistoryFailed:
            self._ready = False
            raise
        except (SQLAlchemyError, OSError, ValueError, OverflowError) as error:
            self._ready = False
            refused = isinstance(error, (DataError, IntegrityError, ValueError, OverflowError))
            text = str(getattr(error, "orig", None) or error).strip()
            kind = HistoryRefused if refused else HistoryFailed
            raise kind(text.partition("\n")[0] or type(error).__name__) from error

    def _open(self) -> None:
        identity = self.database.identity()
        if self._ready and self._file == identity:
            return
        with self._opening:
            if self._file not in (None, identity):
                logger.error("{} was deleted or replaced; it is made anew", self.database.path)
                self.database.close()
                self._ids = {}
            schema.prepare(self.database)
            self._file, self._ready = self.database.identity(), True

    def _now(self, connection: Connection) -> int:
        if self._clock is not None:
            return self._clock()
        return self.database.now_ms(connection) or wall_clock()

    # ------------------------------------------------------------ adding

    def apply(self, node_name: str, instance_id: str, publications: Sequence[Publication]) -> int:
        """Add publications that are not there yet, in one transaction; the highest number."""
        with self._writing() as connection:
            place = self._lock_node(connection, node_name)
            taken = self._taken(connection, place.id, instance_id)
            total = Publication(taken, {}, {})
            for publication in publications:
                if publication.number > taken:
                    total.merge(publication)
            if total.number == taken:
                return taken
            for window in total.windows.values():
                window[EVERYTHING] = sum_of(window)
            self._add(connection, place, total)
            connection.execute(
                update(instance).where(instance.c.id == instance_id).values(taken=total.number)
            )
            return total.number

    def _lock_node(self, connection: Connection, name: str) -> SqlRow[Any]:
        """The node's row, which is made if it is not there; nobody else changes its windows."""
        wanted = select(node).where(node.c.name == name).with_for_update()
        found = connection.execute(wanted).one_or_none()
        if found is None:
            connection.execute(
                self.database.insert(node).values(name=name).on_conflict_do_nothing()
            )
            found = connection.execute(wanted).one()
        return found

    def _taken(self, connection: Connection, node_id: int, instance_id: str) -> int:
        wanted = select(instance.c.taken).where(instance.c.id == instance_id)
        taken = connection.scalar(wanted)
        if taken is None:
            connection.execute(
                self.database.insert(instance)
                .values(id=instance_id, node=node_id, at=self._now(connection))
                .on_conflict_do_nothing()
            )
            taken = connection.scalar(wanted)
        return int(taken or 0)

    def _add(self, connection: Connection, place: SqlRow[Any], total: Publication) -> None:
        keys = {key for window in total.windows.values() for key in window} | total.errors.keys()
        ids = self._ids_of(connection, place.id, keys)
        by_level: list[dict[tuple[int, int], Stats]] = [{} for _ in self.levels]
        for start_ms, window in total.windows.items():
            start = start_ms // 1000
            for number, level in enumerate(self.levels):
                if number and start >= self._rolled(place, number):
                    break
                rows = by_level[number]
                at = start - start % (level.window_ms // 1000)
                for key, stats in window.items():
                    row = rows.get((ids[key], at))
                    if row is None:
                        row = rows[ids[key], at] = Stats()
                    row.merge(stats)
        for number, rows in enumerate(by_level):
            self._add_rows(connection, number, rows)
        if total.errors:
            texts = [
                {"series": ids[k], "at_ms": e.at_ms, "message": e.message, "traceback": e.traceback}
                for k, e in total.errors.items()
            ]
            newer = self.database.insert(error_text)
            newer = newer.on_conflict_do_update(
                index_elements=["series"],
                set_={name: newer.excluded[name] for name in ("at_ms", "message", "traceback")},
                where=newer.excluded.at_ms >= error_text.c.at_ms,
            )
            connection.execute(newer, texts)
        newest = max(total.windows, default=0) // 1000
        if newest > place.newest:
            connection.execute(update(node).where(node.c.id == place.id).values(newest=newest))

    def _rolled(self, place: SqlRow[Any], number: int) -> int:
        rolled: int = place._mapping[f"rolled_{self.levels[number].name}"]
        return rolled

    def _ids_of(self, connection: Connection, node_id: int, keys: Iterable[Key]) -> dict[Key, int]:
        known = self._ids
        new = [key for key in keys if (node_id, key) not in known]
        if new:
            if len(known) > KEPT_IDS:
                known = self._ids = {}
            self._load_ids(connection, node_id, known)
            new = [key for key in keys if (node_id, key) not in known]
        if new:
            connection.execute(
                self.database.insert(series).on_conflict_do_nothing(),
                [{"node": node_id, **key._asdict()} for key in new],
            )
            self._load_ids(connection, node_id, known)
        return {key: known[node_id, key] for key in keys}

    def _load_ids(
        self, connection: Connection, node_id: int, known: dict[tuple[int, Key], int]
    ) -> None:
        found = connection.execute(select(series.c.id, *_KEY).where(series.c.node == node_id))
        known.update({(node_id, Key(*key)): id for id, *key in found})

    def _add_rows(
        self, connection: Connection, number: int, rows: dict[tuple[int, int], Stats]
    ) -> None:
        """Add to the rows of a level that are there, and make the others."""
        if not rows:
            return
        table = windows[number]
        by_start: dict[int, list[int]] = defaultdict(list)
        for id, start in rows:
            by_start[start].append(id)
        for start, ids in by_start.items():
            for some in _chunks(ids):
                there = select(table).where(table.c.start == start, table.c.series.in_(some))
                for found in connection.execute(there):
                    rows[found[0], start].merge(_stats(found[2:]))
        upsert = self.database.insert(table)
        upsert = upsert.on_conflict_do_update(
            index_elements=["series", "start"],
            set_={name: upsert.excluded[name] for name in _FIELDS},
        )
        connection.execute(
            upsert,
            [{"series": id, "start": at, **_columns(stats)} for (id, at), stats in rows.items()],
        )

    # ------------------------------------------------------------ rolling up and letting go

    def maintain(self, node_name: str) -> bool:
        """Roll up a few windows of a node, or let old ones go; True while there is more to do.

        Any service may do it for any node: who finds the node locked leaves it.
        """
        with self._writing() as connection:
            locked = select(node).where(node.c.name == node_name)
            place = connection.execute(locked.with_for_update(skip_locked=True)).one_or_none()
            if place is None:
                return False
            now_ms = self._now(connection)
            for number in range(1, len(self.levels)):
                if self._roll_up(connection, place, number, now_ms // 1000):
                    return True
            if not 0 <= now_ms - place.maintained_at < EXPIRE_EVERY_MS:
                self._expire(connection, place, now_ms)
            return False

    def _roll_up(self, connection: Connection, place: SqlRow[Any], number: int, now_s: int) -> bool:
        """Make the next windows of a level out of those below; False when none is over."""
        length = self.levels[number].window_ms // 1000
        rolled, source = self._rolled(place, number), windows[number - 1]
        until = min(now_s - SETTLED_S, place.newest + ROLLED_AHEAD_S)
        if number > 1:
            until = min(until, self._rolled(place, number - 1))
        until -= until % length
        if until <= rolled:
            return False
        mine = select(series.c.id).where(series.c.node == place.id).scalar_subquery()
        first = connection.scalar(
            select(func.min(source.c.start)).where(
                source.c.series.in_(mine), source.c.start >= rolled, source.c.start < until
            )
        )
        if first is not None:
            first -= first % length
            until = min(until, first + ROLLED_AT_ONCE * length)
            rows: dict[tuple[int, int], Stats] = {}
            found = connection.execute(
                select(source).where(
                    source.c.series.in_(mine), source.c.start >= first, source.c.start < until
                ),
                execution_options=STREAMED,
            )
            for row in found:
                at = row[1] - row[1] % length
                total = rows.get((row[0], at))
                if total is None:
                    total = rows[row[0], at] = Stats()
                total.merge(_stats(row[2:]))
            self._add_rows(connection, number, rows)
        column = f"rolled_{self.levels[number].name}"
        connection.execute(update(node).where(node.c.id == place.id).values({column: until}))
        return True

    def _expire(self, connection: Connection, place: SqlRow[Any], now_ms: int) -> None:
        newest = connection.scalar(select(func.max(node.c.newest))) or 0
        target = min(newest, now_ms // 1000)
        passed = min(max(now_ms - place.maintained_at, 0), 2 * EXPIRE_EVERY_MS) // 1000
        horizon = min(target, place.horizon + HORIZON_SPEED * passed) if place.horizon else target
        connection.execute(
            update(node).where(node.c.id == place.id).values(horizon=horizon, maintained_at=now_ms)
        )
        ids = connection.scalars(select(series.c.id).where(series.c.node == place.id)).all()
        for number, level in enumerate(self.levels):
            before = horizon - level.kept_ms // 1000
            if number + 1 < len(self.levels):
                before = min(before, self._rolled(place, number + 1))
            table = windows[number]
            for some in _chunks(ids):
                connection.execute(
                    delete(table).where(table.c.series.in_(some), table.c.start < before)
                )
        self._forget_series(connection, place.id)
        last_ms = now_ms - self.levels[-1].kept_ms
        connection.execute(
            delete(instance).where(instance.c.node == place.id, instance.c.at < last_ms)
        )

    def _forget_series(self, connection: Connection, node_id: int) -> None:
        """Series without a window; a living one has windows."""
        gone = select(series.c.id).where(
            series.c.node == node_id,
            *(~exists().where(table.c.series == series.c.id) for table in windows),
        )
        ids = connection.scalars(gone).all()
        for some in _chunks(ids):
            connection.execute(delete(error_text).where(error_text.c.series.in_(some)))
            connection.execute(delete(series).where(series.c.id.in_(some)))
        if ids:
            self._ids = {}

    # ------------------------------------------------------------ who is there

    def renew(self, node_name: str, instance_id: str, state: bytes) -> list[Member]:
        """Renew this instance's lease; the other instances that call themselves alike."""
        with self._writing() as connection:
            place = self._lock_node(connection, node_name)
            self._taken(connection, place.id, instance_id)
            now_ms = self._now(connection)
            connection.execute(
                update(instance)
                .where(instance.c.id == instance_id)
                .values(at=now_ms, lease_until=now_ms + LEASE_MS, state=state)
            )
            others = connection.execute(
                select(instance.c.id, instance.c.at, instance.c.lease_until).where(
                    instance.c.node == place.id, instance.c.id != instance_id
                )
            )
            return [
                Member(node_name, id, at, alive=lease_until > now_ms, state=None)
                for id, at, lease_until in others
            ]

    def abandoned(self) -> list[str]:
        """Nodes that nobody writes for: none of their leases goes on."""
        with self._reading() as connection:
            now_ms = self._now(connection)
            held = exists().where(instance.c.node == node.c.id, instance.c.lease_until > now_ms)
            return list(connection.scalars(select(node.c.name).where(~held)))

    def members(self, known: Mapping[str, int]) -> list[Member]:
        """Every instance that was there in the last day, as it last said.

        No state of one of which that `at_ms` is known.
        """
        with self._reading() as connection:
            now_ms = self._now(connection)
            found = connection.execute(
                select(node.c.name, instance.c.id, instance.c.at, instance.c.lease_until)
                .join(instance, instance.c.node == node.c.id)
                .where(instance.c.at > now_ms - MEMBER_MS, instance.c.lease_until > 0)
                .order_by(node.c.name, instance.c.at)
            )
            members = [
                Member(name, id, at, alive=lease_until > now_ms, state=None)
                for name, id, at, lease_until in found
            ]
            news = [m.instance for m in members if known.get(m.instance) != m.at_ms]
            states: dict[str, bytes] = {}
            for some in _chunks(news):
                rows = connection.execute(
                    select(instance.c.id, instance.c.state).where(instance.c.id.in_(some))
                )
                states.update((id, state) for id, state in rows)
            return [replace(member, state=states.get(member.instance)) for member in members]

    # ------------------------------------------------------------ reading

    def read(self, wanted: Wanted, add: Add) -> dict[str, int]:
        """Give each row to `add`; by instance, up to which number they are in the rows."""
        with self._reading() as connection:
            places = connection.execute(select(node)).all()
            numbers = connection.execute(select(instance.c.id, instance.c.taken))
            taken = {row.id: row.taken for row in numbers}
            names = {place.id: place.name for place in places}
            matching = self._matching(wanted)
            found = connection.execute(select(series.c.id, series.c.node, *_KEY).where(matching))
            keys = {id: (names[node_id], Key(*key)) for id, node_id, *key in found}
            for segment in wanted.segments:
                for row in self._rows(connection, segment, matching, places):
                    add(row[1] * 1000, *keys[row[0]], _stats(row[2:]))
            return taken

    def error_texts(self, wanted: Wanted) -> dict[tuple[str, Key], ErrorText]:
        """The newest error of each error type, by node and key."""
        with self._reading() as connection:
            found = connection.execute(
                select(
                    node.c.name,
                    *_KEY,
                    error_text.c.at_ms,
                    error_text.c.message,
                    error_text.c.traceback,
                )
                .join(series, series.c.id == error_text.c.series)
                .join(node, node.c.id == series.c.node)
                .where(self._matching(wanted))
            )
            return {
                (name, Key(*rest[: len(_KEY)])): ErrorText(*rest[len(_KEY) :])
                for name, *rest in found
            }

    def _matching(self, wanted: Wanted) -> Any:
        """Which series, as a condition."""
        s = series.c
        conditions = []
        if wanted.total:
            conditions += [column == "" for column in _KEY]
        else:
            kinds: list[ColumnElement[bool]] = [false()]
            if wanted.runs:
                kinds.append((s.step == "") & (s.error == "") & (s.worker != ""))
            if wanted.steps:
                kinds.append(s.step != "")
            if wanted.errors:
                kinds.append(s.error != "")
            conditions.append(or_(*kinds))
        if wanted.node is not None:
            named = select(node.c.id).where(node.c.name == wanted.node)
            conditions.append(s.node == named.scalar_subquery())
        if wanted.worker is not None:
            conditions.append(s.worker == wanted.worker)
        if wanted.pipeline is not None:
            conditions.append(s.pipeline == wanted.pipeline)
        return and_(*conditions)

    def _rows(
        self, connection: Connection, segment: Segment, matching: Any, places: Sequence[SqlRow[Any]]
    ) -> Iterator[tuple[Any, ...]]:
        """The rows of a segment: of its level as far as that is rolled up, then of finer ones."""
        for number in range(segment.level, -1, -1):
            table = windows[number]
            start = segment.start_ms // 1000
            query = (
                select(table)
                .join(series, series.c.id == table.c.series)
                .where(matching, table.c.start < segment.end_ms // 1000)
            )
            if number < segment.level:
                # What is rolled up stands in the level above already.
                above = f"rolled_{self.levels[number + 1].name}"
                start = max(start, min((p._mapping[above] for p in places), default=start))
                query = query.join(node, node.c.id == series.c.node)
                query = query.where(table.c.start >= node.c[above])
            query = query.where(table.c.start >= start)
            yield from connection.execute(query, execution_options=STREAMED)


def _stats(values: Sequence[Any]) -> Stats:
    decoded = [*values[:-1], Histogram.decode(values[-1])]
    return Stats(*decoded)


def _columns(stats: Stats) -> dict[str, Any]:
    values = {name: getattr(stats, name) for name in _FIELDS}
    values["histogram"] = stats.histogram.encode()
    return values


def _chunks(ids: Sequence[T]) -> Iterator[Sequence[T]]:
    return (ids[at : at + CHUNK] for at in range(0, len(ids), CHUNK))
