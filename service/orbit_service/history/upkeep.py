"""
Rolling up and letting go, of one node whose row is locked.

Coarser levels are made from the level below, once, when their windows are over.
Expiry goes by a clock of its own, the horizon: it follows the newest window of all
nodes, never past the present, and at most twice as fast as time. A clock that jumps
a year ahead therefore does not let a year of history go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, exists, func, select, update
from sqlalchemy import Row as SqlRow

from orbit_service.core.rollup import Level
from orbit_service.core.stats import Stats
from orbit_service.history.engines import Database
from orbit_service.history.rows import (
    STREAMED,
    PassedOver,
    Rows,
    add_rows,
    chunks,
    readable,
    rolled,
)
from orbit_service.history.tables import error_text, instance, node, series, windows

# A window is rolled up when what usually comes late is there; later than that is dearer.
SETTLED_S = 15
ROLLED_AT_ONCE = 5  # minutes a transaction
# A node that has been idle is rolled up to the end of its last windows, and no further.
ROLLED_AHEAD_S = 2 * 3_600
EXPIRE_EVERY_MS = 5 * 60_000
HORIZON_SPEED = 2
# With an instance goes the number up to which its publications are known to be here.
KEPT_INSTANCE_MS = 400 * 24 * 3_600_000


def roll_up(
    database: Database,
    connection: Connection,
    levels: Sequence[Level],
    place: SqlRow[Any],
    number: int,
    now_s: int,
    passed_over: PassedOver,
) -> bool:
    """Make the next windows of a level out of those below; False when none is over."""
    length = levels[number].window_ms // 1000
    done, source = rolled(place, levels[number]), windows[number - 1]
    until = min(now_s - SETTLED_S, place.newest + ROLLED_AHEAD_S)
    if number > 1:
        until = min(until, rolled(place, levels[number - 1]))
    until -= until % length
    if until <= done:
        return False
    mine = select(series.c.id).where(series.c.node == place.id).scalar_subquery()
    first = connection.scalar(
        select(func.min(source.c.start)).where(
            source.c.series.in_(mine), source.c.start >= done, source.c.start < until
        )
    )
    if first is not None:
        first -= first % length
        # An hour has sixty minutes of every series: more would keep the lease waiting.
        at_once = ROLLED_AT_ONCE if number == 1 else 1
        until = min(until, first + at_once * length)
        rows: Rows = {}
        found = connection.execute(
            select(source).where(
                source.c.series.in_(mine), source.c.start >= first, source.c.start < until
            ),
            execution_options=STREAMED,
        )
        for id, start, stats in readable(found, passed_over):
            at = start - start % length
            total = rows.get((id, at))
            if total is None:
                total = rows[id, at] = Stats()
            total.merge(stats)
        add_rows(database, connection, number, rows, passed_over)
    column = f"rolled_{levels[number].name}"
    connection.execute(update(node).where(node.c.id == place.id).values({column: until}))
    return True


def expire(
    database: Database,
    connection: Connection,
    levels: Sequence[Level],
    place: SqlRow[Any],
    now_ms: int,
) -> bool:
    """Let go of old windows, now and then; True where series went with them."""
    if 0 <= now_ms - place.maintained_at < EXPIRE_EVERY_MS:
        return False
    newest = connection.scalar(select(func.max(node.c.newest))) or 0
    target = min(newest, now_ms // 1000)
    passed = min(max(now_ms - place.maintained_at, 0), 2 * EXPIRE_EVERY_MS) // 1000
    horizon = min(target, place.horizon + HORIZON_SPEED * passed) if place.horizon else target
    if horizon == place.horizon and not database.shared:
        return False  # nothing has happened, and nothing is written
    connection.execute(
        update(node).where(node.c.id == place.id).values(horizon=horizon, maintained_at=now_ms)
    )
    ids = connection.scalars(select(series.c.id).where(series.c.node == place.id)).all()
    for number, level in enumerate(levels):
        before = horizon - level.kept_ms // 1000
        if number + 1 < len(levels):
            before = min(before, rolled(place, levels[number + 1]))
        table = windows[number]
        for some in chunks(ids):
            connection.execute(
                delete(table).where(table.c.series.in_(some), table.c.start < before)
            )
    forgot = _forget_series(connection, place.id)
    gone_ms = now_ms - max(levels[-1].kept_ms, KEPT_INSTANCE_MS)
    connection.execute(delete(instance).where(instance.c.node == place.id, instance.c.at < gone_ms))
    _forget_node(connection, place)
    return forgot


def _forget_node(connection: Connection, place: SqlRow[Any]) -> None:
    """A node of which nothing is left; names of pods come once and never again."""
    connection.execute(
        delete(node).where(
            node.c.id == place.id,
            ~exists().where(series.c.node == place.id),
            ~exists().where(instance.c.node == place.id),
        )
    )


def _forget_series(connection: Connection, node_id: int) -> bool:
    """Series without a window; a living one has windows."""
    gone = select(series.c.id).where(
        series.c.node == node_id,
        *(~exists().where(table.c.series == series.c.id) for table in windows),
    )
    ids = connection.scalars(gone).all()
    for some in chunks(ids):
        connection.execute(delete(error_text).where(error_text.c.series.in_(some)))
        connection.execute(delete(series).where(series.c.id.in_(some)))
    return bool(ids)
