"""
The whole collector as bytes, and back.

A field that is added with a default reads what an older release wrote. `VERSION`
changes when that is not so.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from orbit_service.core.cardinality import Places
from orbit_service.core.collector import Collector
from orbit_service.core.cumulative import UNKNOWN_ERROR, Cumulative
from orbit_service.core.ended import Ending
from orbit_service.core.ledger import Ledger
from orbit_service.core.outbox import Key, Outbox
from orbit_service.core.saved import SavedWorker, decoder, encoder, revive, save
from orbit_service.core.sessions import Session
from orbit_service.core.window import LastDay, Tally

VERSION = 2


class Unreadable(Exception):
    """The bytes are no checkpoint that this release can read."""


class _Names(msgspec.Struct, array_like=True):
    """The places of one kind."""

    used_ms: list[tuple[Any, int]]
    folded: int
    swept_ms: int


class _State(msgspec.Struct):
    version: int
    lives: int
    ledger: Ledger
    faults: dict[str, int]
    workers: list[SavedWorker]
    sessions: list[Session]
    ended_sessions: list[Session]
    ended_runs: dict[tuple[str, str], Ending]
    pipelines_seen: list[tuple[str, str]]
    last_day: dict[int, Tally]
    outbox: Outbox
    pairs: _Names
    versions: _Names
    steps: _Names
    errors: _Names
    cumulative: Cumulative | None = None  # of a release before there was one


_encode = encoder().encode
_decode = decoder(_State).decode


def dump(collector: Collector) -> bytes:
    """Everything that the answers are made from."""
    return _encode(
        _State(
            version=VERSION,
            lives=collector.lives,
            ledger=collector.ledger,
            faults=collector.faults,
            workers=[save(worker) for worker in collector.workers.values()],
            sessions=list(collector.sessions.values()),
            ended_sessions=list(collector.ended_sessions.values()),
            ended_runs=collector.ended_runs.endings,
            pipelines_seen=list(collector.pipelines_seen),
            last_day=collector.last_day.windows,
            outbox=collector.outbox,
            pairs=_names(collector.pairs),
            versions=_names(collector.versions),
            steps=_names(collector.steps),
            errors=_names(collector.errors),
            cumulative=collector.cumulative,
        )
    )


def load(data: bytes, collector: Collector) -> None:
    """Fill a new collector. Raises Unreadable."""
    try:
        state = _decode(data)
    except msgspec.DecodeError as error:
        raise Unreadable(str(error)) from None
    if state.version != VERSION:
        raise Unreadable(f"version {state.version}; this release reads {VERSION}")
    collector.lives = state.lives
    collector.ledger = state.ledger
    collector.faults = Counter(state.faults)
    collector.sessions = {session.id: session for session in state.sessions}
    collector.ended_sessions.update((session.id, session) for session in state.ended_sessions)
    for saved in state.workers:
        collector.workers[saved.name] = revive(saved, collector.sessions, collector.node)
    collector.ended_runs.restore(state.ended_runs)
    collector.pipelines_seen.update((pair, None) for pair in state.pipelines_seen)
    collector.last_day = LastDay(state.last_day)
    collector.outbox = state.outbox
    collector.cumulative = state.cumulative or _seeded(collector)
    _give_back(collector.pairs, state.pairs, tuple)
    for places, names in (
        (collector.versions, state.versions),
        (collector.steps, state.steps),
        (collector.errors, state.errors),
    ):
        _give_back(places, names, Key._make)


def _seeded(collector: Collector) -> Cumulative:
    """What is known of runs that were counted before these sums were kept: the current lives."""
    cumulative = Cumulative()
    cumulative.saw_dropped(collector.ledger.dropped)
    for worker in collector.workers.values():
        life = worker.life
        for pipeline, stats in life.series.items() if life else ():
            series = cumulative.of((worker.name, pipeline), life.started_ms if life else 0)
            series.runs.merge(stats)
            if stats.failed:
                cumulative.add_error(series, UNKNOWN_ERROR, stats.failed)
    return cumulative


def _names(places: Places[Any]) -> _Names:
    return _Names(list(places.used_ms.items()), places.folded, places.swept_ms)


def _give_back(places: Places[Any], names: _Names, make: Callable[[list[str]], Any]) -> None:
    places.used_ms = OrderedDict((make(name), at) for name, at in names.used_ms)
    places.folded, places.swept_ms = names.folded, names.swept_ms
