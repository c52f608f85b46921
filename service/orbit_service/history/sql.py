"""
The history in SQL, for both databases.

A publication adds to the windows of ten seconds. Coarser levels are rolled up
from the level below, once, when their windows are over; `rolled_*` of a node says
how far. What comes late for a window that is rolled up already is added to every
level in the same transaction, so a row is never computed again from rows that may
have been let go. All of it happens under a lock on the node's row, and with it
moves the number, or the mark, that says that it has happened.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any
from uuid import uuid4

from loguru import logger
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    exists,
    false,
    or_,
    select,
    update,
)
from sqlalchemy import Row as SqlRow
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from orbit_service.clock import wall_clock
from orbit_service.core.outbox import EVERYTHING, ErrorText, Key, Publication, sum_of
from orbit_service.core.rollup import LEVELS, Level, Segment
from orbit_service.core.stats import Stats
from orbit_service.history import schema
from orbit_service.history.engines import Database, Identity
from orbit_service.history.port import (
    Add,
    AnotherIsWriting,
    HistoryFailed,
    HistoryRefused,
    Member,
    Wanted,
)
from orbit_service.history.rows import STREAMED, Rows, add_rows, chunks, readable, rolled
from orbit_service.history.tables import digest_of, error_text, instance, node, series, windows
from orbit_service.history.upkeep import EXPIRE_EVERY_MS, expire, roll_up

LEASE_MS = 30_000
KEPT_IDS = 50_000
MEMBER_MS = 24 * 3_600_000  # an instance that is gone is told of for a day

_KEY = [series.c[name] for name in Key._fields]


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
        self._process = uuid4().hex  # others with our instance have another
        self._renewed: dict[str, int] = {}  # when we did last
        self.unreadable = 0
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
        except Exception:
            # What was thought to be there may not be.
            self._ids = {}
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """See first that the right tables are there; whatever fails is a HistoryFailed."""
        try:
            self._open()
            yield
        except AnotherIsWriting:
            raise
        except HistoryFailed:
            self._ready = False
            raise
        except (SQLAlchemyError, OSError, ValueError, OverflowError) as error:
            self._ready = False
            self.database.forget_connections()
            refused = isinstance(error, (DataError, IntegrityError, ValueError, OverflowError))
            # 54: a limit of the program (postgresql.org/docs/current/errcodes-appendix.html)
            refused |= (getattr(getattr(error, "orig", None), "sqlstate", None) or "")[:2] == "54"
            text = str(getattr(error, "orig", None) or error).strip()
            kind = HistoryRefused if refused else HistoryFailed
            raise kind(text.partition("\n")[0] or type(error).__name__) from error

    def _open(self) -> None:
        if self._ready and self._file == self.database.identity():
            return
        with self._opening:
            if self._file not in (None, self.database.identity()):
                logger.error("{} was deleted or replaced; it is made anew", self.database.path)
                self.database.close()
                self._ids = {}
            schema.prepare(self.database)
            self._file, self._ready = self.database.identity(), True

    def _pass_over(self, row: Any, error: Exception) -> None:
        if not self.unreadable:
            logger.error("a row of the history cannot be read, {}: {}", tuple(row[:2]), error)
        self.unreadable += 1

    def _now(self, connection: Connection) -> int:
        if self._clock is not None:
            return self._clock()
        return self.database.now_ms(connection) or wall_clock()

    # ------------------------------------------------------------ adding

    def apply(
        self,
        node_name: str,
        instance_id: str,
        publications: Sequence[Publication],
        ours: Container[str],
    ) -> int:
        """Add publications that are not there yet, in one transaction; the highest number.

        Raises AnotherIsWriting where the newest that is there has none of our tokens.
        """
        try:
            return self._apply(node_name, instance_id, publications, ours)
        except HistoryRefused:
            # A series that we knew may have been forgotten by who looked after this node.
            return self._apply(node_name, instance_id, publications, ours)

    def _apply(
        self,
        node_name: str,
        instance_id: str,
        publications: Sequence[Publication],
        ours: Container[str],
    ) -> int:
        with self._writing() as connection:
            place = self._lock_node(connection, node_name)
            mine = self._own(connection, place.id, instance_id, ours)
            total = Publication(mine.taken, {}, {}, token=mine.token)
            for publication in publications:
                if publication.number > mine.taken:
                    total.merge(publication)
            if total.number == mine.taken:
                return total.number
            for window in total.windows.values():
                window[EVERYTHING] = sum_of(window)
            self._add(connection, place, total)
            connection.execute(
                update(instance)
                .where(instance.c.id == instance_id)
                .values(
                    taken=total.number,
                    token=total.token,
                    process=self._process,
                    at=self._now(connection),
                )
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

    def _own(
        self, connection: Connection, node_id: int, instance_id: str, ours: Container[str]
    ) -> SqlRow[Any]:
        """The row of this instance; of a node that is renamed, it goes with it.

        Raises AnotherIsWriting.
        """
        wanted = select(instance).where(instance.c.id == instance_id)
        found = connection.execute(wanted).one_or_none()
        if found is None:
            connection.execute(
                self.database.insert(instance)
                .values(id=instance_id, node=node_id, at=self._now(connection))
                .on_conflict_do_nothing()
            )
            found = connection.execute(wanted).one()
        if found.taken and found.token not in ours:
            raise AnotherIsWriting(found.taken)
        if found.node != node_id:
            moved = update(instance).where(instance.c.id == instance_id)
            connection.execute(moved.values(node=node_id))
        return found

    def _add(self, connection: Connection, place: SqlRow[Any], total: Publication) -> None:
        keys = {key for window in total.windows.values() for key in window} | total.errors.keys()
        ids = self._ids_of(connection, place.id, keys)
        by_level: list[Rows] = [{} for _ in self.levels]
        for start_ms, window in total.windows.items():
            start = start_ms // 1000
            for number, level in enumerate(self.levels):
                if number and start >= rolled(place, level):
                    break
                rows = by_level[number]
                at = start - start % (level.window_ms // 1000)
                for key, stats in window.items():
                    row = rows.get((ids[key], at))
                    if row is None:
                        row = rows[ids[key], at] = Stats()
                    row.merge(stats)
        for number, rows in enumerate(by_level):
            add_rows(self.database, connection, number, rows, self._pass_over)
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

    def _ids_of(self, connection: Connection, node_id: int, keys: Iterable[Key]) -> dict[Key, int]:
        known = self._ids
        new = [key for key in keys if (node_id, key) not in known]
        if new:
            if len(known) > KEPT_IDS:
                known = self._ids = {}
            self._load_ids(connection, node_id, new, known)
            new = [key for key in keys if (node_id, key) not in known]
        if new:
            connection.execute(
                self.database.insert(series).on_conflict_do_nothing(),
                [{"node": node_id, "digest": digest_of(key), **key._asdict()} for key in new],
            )
            self._load_ids(connection, node_id, new, known)
        return {key: known[node_id, key] for key in keys}

    def _load_ids(
        self,
        connection: Connection,
        node_id: int,
        keys: Sequence[Key],
        known: dict[tuple[int, Key], int],
    ) -> None:
        for some in chunks(keys):
            wanted = series.c.digest.in_([digest_of(key) for key in some])
            found = connection.execute(
                select(series.c.id, *_KEY).where(series.c.node == node_id, wanted)
            )
            known.update({(node_id, Key(*key)): id for id, *key in found})

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
                if roll_up(
                    self.database,
                    connection,
                    self.levels,
                    place,
                    number,
                    now_ms // 1000,
                    self._pass_over,
                ):
                    return True
            if expire(self.database, connection, self.levels, place, now_ms):
                self._ids = {}
            return False

    # ------------------------------------------------------------ who is there

    def renew(
        self, node_name: str, instance_id: str, state: bytes, ours: Container[str]
    ) -> list[Member]:
        """Renew this instance's lease; the other instances that call themselves alike.

        Raises AnotherIsWriting as `apply` does, and where another process has renewed it
        since this one did.
        """
        with self._writing() as connection:
            place = self._lock_node(connection, node_name)
            mine = self._own(connection, place.id, instance_id, ours)
            renewed = self._renewed.get(instance_id)
            if renewed is not None and mine.process != self._process and mine.at > renewed:
                raise AnotherIsWriting(mine.taken)
            now_ms = self._now(connection)
            connection.execute(
                update(instance)
                .where(instance.c.id == instance_id)
                .values(
                    at=now_ms, lease_until=now_ms + LEASE_MS, state=state, process=self._process
                )
            )
            self._renewed = {instance_id: now_ms}
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
            lately = node.c.maintained_at.between(now_ms - EXPIRE_EVERY_MS + 1, now_ms)
            return list(connection.scalars(select(node.c.name).where(~held, ~lately)))

    def leave(self, instance_id: str) -> None:
        """End the lease: this instance stops, and is not lost."""
        with self._writing() as connection:
            stopped = update(instance).where(instance.c.id == instance_id)
            connection.execute(stopped.values(lease_until=0, state=None))

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
            for some in chunks(news):
                rows = connection.execute(
                    select(instance.c.id, instance.c.state).where(instance.c.id.in_(some))
                )
                states.update((id, state) for id, state in rows)
            return [replace(member, state=states.get(member.instance)) for member in members]

    # ------------------------------------------------------------ reading

    def read(self, wanted: Wanted, add: Add) -> dict[str, tuple[int, str]]:
        """Give each row to `add`; by instance, the newest publication in them and its token."""
        with self._reading() as connection:
            places = connection.execute(select(node)).all()
            told = select(instance.c.id, instance.c.taken, instance.c.token)
            taken = {id: (number, token) for id, number, token in connection.execute(told)}
            names = {place.id: place.name for place in places}
            matching = self._matching(wanted)
            found = connection.execute(select(series.c.id, series.c.node, *_KEY).where(matching))
            keys = {id: (names[node_id], Key(*key)) for id, node_id, *key in found}
            for segment in wanted.segments:
                rows = self._rows(connection, segment, matching, places)
                for id, start, stats in readable(rows, self._pass_over):
                    add(start * 1000, *keys[id], stats)
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
    ) -> Iterator[SqlRow[Any]]:
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
