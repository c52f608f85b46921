"""Rows of windows: as columns, and added to the ones that are there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, TextClause, select, text
from sqlalchemy import Row as SqlRow

from orbit_service.core.histogram import Histogram
from orbit_service.core.rollup import Level
from orbit_service.core.stats import Stats
from orbit_service.history.engines import Database
from orbit_service.history.tables import windows

T = TypeVar("T")

PassedOver = Callable[[Any, Exception], None]  # what to do with a row that cannot be read
Rows = dict[tuple[int, int], Stats]  # by series and start

FIELDS = Stats.__struct_fields__
_NAMES = ("series", "start", *FIELDS)
CHUNK = 500  # ids in one statement
STREAMED = {"yield_per": 1_000}  # rows, not all of them at once


def rolled(place: SqlRow[Any], level: Level) -> int:
    """Up to which start, in epoch seconds, a node's windows of a level are made."""
    until: int = place._mapping[f"rolled_{level.name}"]
    return until


def add_rows(
    database: Database, connection: Connection, number: int, rows: Rows, passed_over: PassedOver
) -> None:
    """Add to the rows of a level that are there, and make the others."""
    if not rows:
        return
    table = windows[number]
    by_start: dict[int, list[int]] = defaultdict(list)
    for id, start in rows:
        by_start[start].append(id)
    for start, ids in by_start.items():
        for some in chunks(ids):
            there = select(table).where(table.c.start == start, table.c.series.in_(some))
            for id, _start, stats in readable(connection.execute(there), passed_over):
                rows[id, start].merge(stats)
    values = [(id, start, *columns_of(stats)) for (id, start), stats in rows.items()]
    if database.shared:
        # One statement for all: without prepared ones each row would be planned by itself,
        # which is two thirds of what it costs the server.
        columns = dict(zip(_NAMES, map(list, zip(*values, strict=True)), strict=True))
        connection.execute(_UPSERT_ARRAYS[number], columns)
    else:
        connection.execute(_UPSERTS[number], [dict(zip(_NAMES, v, strict=True)) for v in values])


def readable(
    found: Iterable[Sequence[Any]], passed_over: PassedOver
) -> Iterator[tuple[int, int, Stats]]:
    """Series, start and runs of each row; one that cannot be read must not hide the others."""
    for row in found:
        try:
            yield row[0], row[1], stats_of(row[2:])
        except (ValueError, OverflowError) as error:
            passed_over(row, error)


def stats_of(values: Sequence[Any]) -> Stats:
    *numbers, durations, waits = values
    told = None if waits is None else Histogram.decode(waits)
    decoded = [*numbers, Histogram.decode(durations), told]
    return Stats(*decoded)


def columns_of(stats: Stats) -> tuple[Any, ...]:
    *numbers, durations, waits = [getattr(stats, name) for name in FIELDS]
    return (*numbers, durations.encode(), None if waits is None else waits.encode())


def _upsert(table: Table, *, arrays: bool) -> TextClause:
    """Put rows in the place of those that are there; of `arrays`, one for each column."""
    names = ", ".join(_NAMES)
    if arrays:
        types = {"histogram": "bytea", "waits": "bytea"}
        parts = (f"CAST(:{name} AS {types.get(name, 'bigint')}[])" for name in _NAMES)
        source = f"SELECT * FROM unnest({', '.join(parts)})"
    else:
        source = f"VALUES ({', '.join(f':{name}' for name in _NAMES)})"
    sets = ", ".join(f"{name} = excluded.{name}" for name in FIELDS)
    return text(
        f"INSERT INTO {table.name} ({names}) {source} "  # names of our own
        f"ON CONFLICT (series, start) DO UPDATE SET {sets}"
    )


_UPSERTS = [_upsert(table, arrays=False) for table in windows]
_UPSERT_ARRAYS = [_upsert(table, arrays=True) for table in windows]


def chunks(items: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
