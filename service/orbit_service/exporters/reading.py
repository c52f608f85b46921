"""
One reading of a node for an exporter: what is counted, and what is so at the moment.

What is counted is given out only when it is on the disk, so that no counter goes
back when the service is killed: a reading copies it, waits for the disk, and where
the disk does not answer gives the last copy that had got there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from orbit_service.core import cardinality
from orbit_service.core.collector import Collector
from orbit_service.core.cumulative import Pair, Series
from orbit_service.core.sessions import Worker
from orbit_service.core.stats import Stats

SETTLE_SECONDS = 1.0  # how long a reading waits for the disk


@dataclass(frozen=True, slots=True)
class Options:
    """What is exported. `ended_ms`: for so long an ended worker is told of as being down."""

    worker_label: bool = True
    steps: bool = True
    waits: bool = True
    ended_ms: int = 15 * 60_000


@dataclass(frozen=True, slots=True)
class Counts:
    """Everything that only grows. Without the label the worker of every pair is empty."""

    series: dict[Pair, Series]
    results: dict[str, int]  # by what became of them
    dropped: dict[str, int]
    refused: dict[str, int]
    folded: dict[str, int]
    history_dropped: int


@dataclass(frozen=True, slots=True)
class WorkerNow:
    """One worker that lives, or has ended not long ago. `started_ms` is None for the latter."""

    name: str
    last_seen_ms: int
    started_ms: int | None


@dataclass(frozen=True, slots=True)
class InProgress:
    """Runs in flight of one pipeline, and when the oldest of them began."""

    runs: int
    oldest_ms: int


@dataclass(frozen=True, slots=True)
class QueueNow:
    depth: int
    oldest_ms: int | None


@dataclass(frozen=True, slots=True)
class AlertsNow:
    """What fires now by rule and severity, and what was done since the process began."""

    firing: Mapping[tuple[str, str], int]
    notifications: Mapping[tuple[str, str], int]  # by channel and outcome
    actions: Mapping[tuple[str, str], int]  # by kind and outcome
    evaluated_ms: int | None


@dataclass(frozen=True, slots=True)
class Own:
    """What the service says about itself; all of it begins anew with the process."""

    version: str
    started_ms: int
    degraded: Mapping[str, bool]
    faults: Mapping[str, int]  # since the process began
    waiting: int  # results that workers have recorded and that have not arrived
    places: Mapping[str, tuple[int, int]]  # taken and limit, by kind
    sessions: int
    history_waiting_bytes: int
    commits: Stats | None = None  # durations of commits, where there is a disk
    commit_failures: int = 0
    alerts: AlertsNow | None = None  # where there are rules
    pushes: Mapping[str, int] | None = None  # by outcome, where there is where to push
    cpu_seconds: float = 0.0
    rss_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """`counts` is None where none has been on the disk since the service began."""

    at_ms: int
    counts: Counts | None
    workers: list[WorkerNow]
    workers_connected: int
    in_progress: dict[Pair, InProgress]
    queues: dict[tuple[str, str], QueueNow] = field(default_factory=dict)  # worker, queue
    own: Own | None = None


class Reader:
    """Reads a collector. `settle` waits until everything that is counted now is on the disk."""

    def __init__(
        self,
        collector: Collector,
        options: Options,
        clock: Callable[[], int],
        own: Callable[[], Own],
        settle: Callable[[float], Awaitable[bool]],
    ) -> None:
        self.options = options
        self._collector = collector
        self._clock = clock
        self._own = own
        self._settle = settle
        self._settled: Counts | None = None
        self._under_way: asyncio.Task[Reading] | None = None

    async def read(self) -> Reading:
        """A reading, or the one that is under way: many who ask at once cost no more than one."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(self._read())
        # Whoever gives up takes it from nobody else.
        return await asyncio.shield(self._under_way)

    async def _read(self) -> Reading:
        now = count(self._collector, self.options)
        if await self._settle(SETTLE_SECONDS):
            self._settled = now
        return self._reading(self._settled)

    def _reading(self, counts: Counts | None) -> Reading:
        collector, now_ms, labelled = self._collector, self._clock(), self.options.worker_label
        told = [w for w in collector.workers.values() if _is_told(w, now_ms, self.options)]
        if counts is not None and labelled:
            names = {worker.name for worker in told} | {cardinality.OTHER_WORKERS}
            series = {pair: one for pair, one in counts.series.items() if pair[0] in names}
            counts = replace(counts, series=series)
        return Reading(
            at_ms=now_ms,
            counts=counts,
            workers=[
                WorkerNow(w.name, w.last_seen_ms, w.life.started_ms if w.life else None)
                for w in told
            ],
            workers_connected=collector.workers_connected(),
            in_progress=_in_progress(collector, counts.series if counts else (), labelled),
            queues=_queues(told, labelled),
            own=self._own(),
        )


def count(collector: Collector, options: Options) -> Counts:
    """A copy of all counts."""
    cumulative, ledger = collector.cumulative, collector.ledger
    if options.worker_label:
        series = {pair: one.copy() for pair, one in cumulative.series.items()}
    else:
        series = {("", name): one for name, one in cumulative.by_pipeline().items()}
    return Counts(
        series=series,
        results={"counted": ledger.counted, "repeated": ledger.repeated, "late": ledger.late},
        dropped=dict(cumulative.dropped),
        refused=dict(ledger.refused),
        folded={kind: places.folded for kind, places in collector.places().items()},
        history_dropped=collector.outbox.dropped,
    )


def _is_told(worker: Worker, now_ms: int, options: Options) -> bool:
    """Not by when it was last heard of: a message that comes late brings no worker back."""
    if worker.life is not None:
        return True
    ended = worker.last_life
    return ended is not None and ended.ended_ms > now_ms - options.ended_ms


def _in_progress(
    collector: Collector, known: Iterable[Pair], labelled: bool
) -> dict[Pair, InProgress]:
    """By pair; of those that are counted also where it is nothing."""
    runs: dict[Pair, InProgress] = {pair: InProgress(0, 0) for pair in known}
    for session, run in collector.running():
        pair = (session.worker if labelled else "", run.pipeline)
        before = runs.get(pair, InProgress(0, 0))
        oldest = min(before.oldest_ms, run.started_ms) if before.runs else run.started_ms
        runs[pair] = InProgress(before.runs + 1, oldest)
    return runs


def _queues(workers: Iterable[Worker], labelled: bool) -> dict[tuple[str, str], QueueNow]:
    """Processes that tell of one queue tell of the same; the newest is right."""
    queues: dict[tuple[str, str], QueueNow] = {}
    sessions = chain.from_iterable(worker.sessions.values() for worker in workers)
    for session in sorted(sessions, key=lambda session: session.last_seen_ms):
        for queue, depth in (session.queues or {}).items():
            key = (session.worker if labelled else "", queue)
            queues[key] = QueueNow(depth, session.oldest.get(queue))
    return queues
