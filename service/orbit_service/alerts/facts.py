"""What is so now, as far as rules ask: taken at each look, from a collector or a fleet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from orbit_rpc_schema.wire import SILENT_AFTER_SECONDS
from orbit_service.core.collector import Collector
from orbit_service.core.sessions import Worker


@dataclass(frozen=True, slots=True)
class WorkerFact:
    """One worker's name; `last_ms` is when it was last connected."""

    connected: bool
    lost: bool
    silent: bool
    last_ms: int


@dataclass(slots=True)
class InFlightFact:
    """A worker's runs of one pipeline that have begun and not ended."""

    stuck: int = 0
    oldest_ms: int | None = None


@dataclass(slots=True)
class Facts:
    """One moment. Sums over all time of a node are None where it is a hub that asks."""

    workers: dict[str, WorkerFact] = field(default_factory=dict)
    in_flight: dict[tuple[str, str], InFlightFact] = field(default_factory=dict)
    queues: dict[tuple[str, str], int] = field(default_factory=dict)  # by worker and queue
    successes: dict[tuple[str, str], int] = field(default_factory=dict)  # the last, epoch ms
    dropped: int | None = None
    refused: int | None = None
    troubles: list[str] | None = None

    def as_of_now(self, steps: Sequence[tuple[int, int]]) -> Facts:
        """The same where the clock was set: what is stamped from before is moved along.

        `steps` are moments on the clock as it was, and by how much it was set then.
        """
        if not steps:
            return self

        def moved(at_ms: int) -> int:
            for until_ms, by_ms in steps:
                if at_ms <= until_ms:
                    at_ms += by_ms
            return at_ms

        return replace(
            self,
            workers={
                name: fact if fact.connected else replace(fact, last_ms=moved(fact.last_ms))
                for name, fact in self.workers.items()
            },
            in_flight={
                key: fact
                if fact.oldest_ms is None
                else replace(fact, oldest_ms=moved(fact.oldest_ms))
                for key, fact in self.in_flight.items()
            },
            successes={key: moved(at_ms) for key, at_ms in self.successes.items()},
        )


def facts_of(workers: Iterable[Worker], stuck_after_ms: int, since_ms: int, now_ms: int) -> Facts:
    """What workers tell. Nobody is called silent for the time before `since_ms`.

    Of a name at several nodes one that is connected is enough, and one that was lost is
    not, where another is connected.
    """
    facts = Facts()
    for worker in workers:
        facts.workers[worker.name] = _both(
            facts.workers.get(worker.name), _of(worker, since_ms, now_ms)
        )
        for session in worker.sessions.values():
            for run in session.running.values():
                fact = facts.in_flight.setdefault((worker.name, run.pipeline), InFlightFact())
                fact.stuck += run.started_ms < now_ms - stuck_after_ms
                if fact.oldest_ms is None or run.started_ms < fact.oldest_ms:
                    fact.oldest_ms = run.started_ms
            for queue, depth in (session.queues or {}).items():
                # A process of many tells of the queue that they share.
                key = (worker.name, queue)
                facts.queues[key] = max(depth, facts.queues.get(key, 0))
        for pipeline, success_ms in _successes(worker):
            key = (worker.name, pipeline)
            facts.successes[key] = max(success_ms, facts.successes.get(key, 0))
    return facts


def facts_here(
    collector: Collector,
    stuck_after_ms: int,
    since_ms: int,
    troubles: list[str],
    now_ms: int,
) -> Facts:
    """The same of a node, which knows more of itself."""
    facts = facts_of(collector.workers.values(), stuck_after_ms, since_ms, now_ms)
    for key, series in collector.cumulative.series.items():
        if series.runs.last_success_ms is not None:
            facts.successes[key] = max(series.runs.last_success_ms, facts.successes.get(key, 0))
    facts.dropped = sum(collector.cumulative.dropped.values())
    facts.refused = sum(collector.ledger.refused.values())
    facts.troubles = troubles
    return facts


def _of(worker: Worker, since_ms: int, now_ms: int) -> WorkerFact:
    silent_ms = int(SILENT_AFTER_SECONDS * 1000)
    silent = any(
        max(session.last_seen_ms, since_ms) <= now_ms - silent_ms
        for session in worker.sessions.values()
    )
    last = worker.last_life
    connected = worker.life is not None
    ended_ms = worker.last_seen_ms if last is None else last.ended_ms
    lost = not connected and last is not None and last.lost
    return WorkerFact(connected, lost, silent, now_ms if connected else ended_ms)


def _both(one: WorkerFact | None, other: WorkerFact) -> WorkerFact:
    if one is None:
        return other
    connected = one.connected or other.connected
    return WorkerFact(
        connected,
        (one.lost or other.lost) and not connected,
        one.silent or other.silent,
        max(one.last_ms, other.last_ms),
    )


def _successes(worker: Worker) -> Iterator[tuple[str, int]]:
    for pipeline, stats in worker.life.series.items() if worker.life else ():
        if stats.last_success_ms is not None:
            yield pipeline, stats.last_success_ms
