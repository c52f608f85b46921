"""What is so now, as far as rules ask: taken at each look, from a collector or a fleet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from orbit_rpc_schema.wire import SILENT_AFTER_SECONDS
from orbit_service.core.collector import Collector
from orbit_service.core.sessions import Worker

# A moment that a worker's name, and maybe a pipeline, is stamped with.
Stamp = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class WorkerFact:
    """One worker's name; `last_ms` is when it was last connected.

    `heard_ms` is when the session was heard of that has been quiet for longest.
    """

    connected: bool
    lost: bool
    silent: bool
    last_ms: int
    heard_ms: int | None = None


@dataclass(slots=True)
class InFlightFact:
    """A worker's runs of one pipeline that have begun and not ended."""

    stuck: int = 0
    oldest_ms: int | None = None
    began_ms: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Facts:
    """One moment. Sums over all time of a node are None where it is a hub that asks.

    What has been in flight since before `stuck_before_ms` is stuck, and who was not heard
    of after `silent_until_ms` is silent.
    """

    workers: dict[str, WorkerFact] = field(default_factory=dict)
    in_flight: dict[tuple[str, str], InFlightFact] = field(default_factory=dict)
    queues: dict[tuple[str, str], int] = field(default_factory=dict)  # by worker and queue
    successes: dict[tuple[str, str], int] = field(default_factory=dict)  # the last, epoch ms
    dropped: int | None = None
    refused: int | None = None
    troubles: list[str] | None = None
    stuck_before_ms: int = 0
    silent_until_ms: int = 0

    def stamps(self) -> set[Stamp]:
        """All that was stamped by the clock, and not just now."""
        return {
            *((*pair, at_ms) for pair, at_ms in self.successes.items()),
            *((*pair, at) for pair, fact in self.in_flight.items() for at in fact.began_ms),
            *((name, "", f.last_ms) for name, f in self.workers.items() if not f.connected),
            *((name, "", f.heard_ms) for name, f in self.workers.items() if f.heard_ms is not None),
        }

    def moved(self, by_ms: Mapping[Stamp, int]) -> Facts:
        """The same with other stamps, and what follows from them."""

        def moved(worker: str, pipeline: str, at_ms: int) -> int:
            return at_ms + by_ms.get((worker, pipeline, at_ms), 0)

        def worker(name: str, fact: WorkerFact) -> WorkerFact:
            last_ms = fact.last_ms if fact.connected else moved(name, "", fact.last_ms)
            if fact.heard_ms is None:
                return replace(fact, last_ms=last_ms)
            heard_ms = moved(name, "", fact.heard_ms)
            silent = heard_ms <= self.silent_until_ms
            return replace(fact, last_ms=last_ms, heard_ms=heard_ms, silent=silent)

        def in_flight(pair: tuple[str, str], fact: InFlightFact) -> InFlightFact:
            return _in_flight([moved(*pair, at) for at in fact.began_ms], self.stuck_before_ms)

        return replace(
            self,
            workers={name: worker(name, fact) for name, fact in self.workers.items()},
            in_flight={pair: in_flight(pair, fact) for pair, fact in self.in_flight.items()},
            successes={pair: moved(*pair, at) for pair, at in self.successes.items()},
        )


class Stamps:
    """
    Which stamps are from before the clock was set, and by how much they are to be moved.

    A stamp does not say by which clock it was made: a clock that is set back shows each
    moment of an hour twice. So what was stamped before is remembered.
    """

    def __init__(self) -> None:
        self._last: set[Stamp] = set()  # of the look before
        self._by_ms: dict[Stamp, int] = {}

    def as_of_now(self, facts: Facts, step_ms: int, now_ms: int) -> Facts:
        """The facts of a look as the clock would have stamped them as it is set now.

        `step_ms` is by how much it was set since the look before.
        """
        stamps = facts.stamps()
        self._by_ms = {stamp: by for stamp, by in self._by_ms.items() if stamp in stamps}
        if step_ms:
            # On the clock as it was it would be so late now. What a clock that was set forward
            # stamped is later; what lies ahead of one that was set back, that one did not.
            until_ms = now_ms - step_ms
            for stamp in stamps:
                at_ms = stamp[2]
                if stamp in self._last or (at_ms <= until_ms if step_ms > 0 else at_ms > now_ms):
                    self._by_ms[stamp] = self._by_ms.get(stamp, 0) + step_ms
        self._last = stamps
        return facts.moved(self._by_ms) if self._by_ms else facts


def facts_of(workers: Iterable[Worker], stuck_after_ms: int, since_ms: int, now_ms: int) -> Facts:
    """What workers tell. Nobody is called silent for the time before `since_ms`.

    Of a name at several nodes one that is connected is enough; where none is, the one that
    ended last says whether it was lost.
    """
    silent_until_ms = now_ms - int(SILENT_AFTER_SECONDS * 1000)
    facts = Facts(stuck_before_ms=now_ms - stuck_after_ms, silent_until_ms=silent_until_ms)
    began: dict[tuple[str, str], list[int]] = defaultdict(list)
    for worker in workers:
        facts.workers[worker.name] = _both(
            facts.workers.get(worker.name), _of(worker, since_ms, silent_until_ms, now_ms)
        )
        for session in worker.sessions.values():
            for run in session.running.values():
                began[worker.name, run.pipeline].append(run.started_ms)
            for queue, depth in (session.queues or {}).items():
                # A process of many tells of the queue that they share.
                key = (worker.name, queue)
                facts.queues[key] = max(depth, facts.queues.get(key, 0))
        for pipeline, success_ms in _successes(worker):
            key = (worker.name, pipeline)
            facts.successes[key] = max(success_ms, facts.successes.get(key, 0))
    for pair, times_ms in began.items():
        facts.in_flight[pair] = _in_flight(times_ms, facts.stuck_before_ms)
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


def _of(worker: Worker, since_ms: int, silent_until_ms: int, now_ms: int) -> WorkerFact:
    heard = [max(session.last_seen_ms, since_ms) for session in worker.sessions.values()]
    heard_ms = min(heard, default=None)
    silent = heard_ms is not None and heard_ms <= silent_until_ms
    last = worker.last_life
    connected = worker.life is not None
    ended_ms = worker.last_seen_ms if last is None else last.ended_ms
    lost = not connected and last is not None and last.lost
    return WorkerFact(connected, lost, silent, now_ms if connected else ended_ms, heard_ms)


def _both(one: WorkerFact | None, other: WorkerFact) -> WorkerFact:
    if one is None:
        return other
    connected = one.connected or other.connected
    newest = max((one, other), key=lambda fact: (fact.last_ms, fact.lost))
    heard = [fact.heard_ms for fact in (one, other) if fact.heard_ms is not None]
    return WorkerFact(
        connected,
        newest.lost and not connected,
        one.silent or other.silent,
        newest.last_ms,
        min(heard, default=None),
    )


def _in_flight(began_ms: list[int], stuck_before_ms: int) -> InFlightFact:
    stuck = sum(at_ms < stuck_before_ms for at_ms in began_ms)
    return InFlightFact(stuck, min(began_ms, default=None), began_ms)


def _successes(worker: Worker) -> Iterator[tuple[str, int]]:
    for pipeline, stats in worker.life.series.items() if worker.life else ():
        if stats.last_success_ms is not None:
            yield pipeline, stats.last_success_ms
