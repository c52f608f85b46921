"""
Sessions, and the lives of workers that they make up.

A session is one process's connection identity, from first connect to its end,
over any number of reconnects. A worker is a name; it lives while it has at
least one open session, and a life's numbers are those of all its sessions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from orbit_rpc_schema.messages import Connect, Step
from orbit_rpc_schema.wire import MAX_LINE
from orbit_service.core.ledger import Ledger
from orbit_service.core.recent import RecentRuns
from orbit_service.core.stats import Stats, merged

MAX_RUNS_A_LINE = MAX_LINE // 2  # a digit and a comma each; whoever claims more is mistaken


@dataclass(slots=True)
class InFlight:
    """A run that has begun and not ended."""

    id: str
    pipeline: str
    started_ms: int
    attempt: int | None = None
    done: list[Step] = field(default_factory=list)  # steps, as the last heartbeat told
    now: list[str] = field(default_factory=list)  # names of those under way then


@dataclass(slots=True)
class Session:
    """One process of a worker. `acked` is the highest sequence number that is counted."""

    hello: Connect
    last_seen_ms: int
    connected_ms: int = 0  # when this service first saw it
    acked: int = 0
    written: int = 0  # the highest number that was handed to the journal
    durable: int = 0  # the highest that is on the disk, which is what the worker is told
    life: int = 0  # the number of the worker's life to which it belongs
    # The totals of its last message, and what became of the results in them.
    recorded: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    running: dict[tuple[str, str], InFlight] = field(default_factory=dict)
    queues: dict[str, int] | None = None
    oldest: dict[str, int] = field(default_factory=dict)
    last_report_ms: int | None = None
    ledger: Ledger = field(default_factory=Ledger)
    was_lost: bool = False  # given up once, with the runs that were in flight

    @property
    def id(self) -> str:
        return self.hello.session

    @property
    def worker(self) -> str:
        return self.hello.worker

    def unheard(self, recorded: int, dropped: dict[str, int]) -> int:
        """Runs in a message that could not be read, by the totals that it carries."""
        lately = recorded - self.recorded - (sum(dropped.values()) - sum(self.dropped.values()))
        return min(max(lately, 0), MAX_RUNS_A_LINE)


@dataclass(slots=True)
class Life:
    """The time in which a worker has at least one open session."""

    number: int
    started_ms: int
    opened_by: str  # the session that began it
    series: dict[str, Stats] = field(default_factory=dict)

    def of(self, pipeline: str | None) -> Iterable[Stats]:
        """The series of one pipeline, or all."""
        if pipeline is None:
            return self.series.values()
        return filter(None, [self.series.get(pipeline)])

    def totals(self, pipeline: str | None = None) -> Stats:
        return merged(self.of(pipeline))


@dataclass(frozen=True, slots=True)
class EndedLife:
    """What is left of a life when it is over."""

    worker: str
    ended_ms: int
    reason: str  # the worker's own words, or ours
    lost: bool  # killed or vanished, whatever the words
    total_runs: int
    failed: int


@dataclass(slots=True)
class Worker:
    """A name, and every process that connects under it, at one node."""

    name: str
    last_seen_ms: int
    node: str = ""
    sessions: dict[str, Session] = field(default_factory=dict)
    life: Life | None = None
    last_life: EndedLife | None = None
    recent: RecentRuns = field(default_factory=RecentRuns)

    @property
    def slots(self) -> int | None:
        """How many runs its processes execute at once; None where none tells."""
        told = [s.hello.slots for s in self.sessions.values() if s.hello.slots is not None]
        return sum(told) if told else None

    def open(self, session: Session, started_ms: int, next_life: int) -> bool:
        """A session joins; True when it is the first one and begins a life of this number."""
        self.sessions[session.id] = session
        begins = self.life is None
        if self.life is None:
            self.life = Life(next_life, started_ms, session.id)
        session.life = self.life.number
        return begins

    def series_of(self, session: Session) -> dict[str, Stats]:
        """The series of the session's life; of one that is over, none are kept."""
        return self.life.series if self.life and self.life.number == session.life else {}

    def close(self, session: Session, reason: str, now_ms: int, *, lost: bool) -> None:
        """A session leaves; with the last one the life is over."""
        if self.sessions.pop(session.id, None) and not self.sessions:
            self.end_life(reason, now_ms, lost=lost)

    def end_life(self, reason: str, now_ms: int, *, lost: bool) -> None:
        if self.life is None:
            return
        totals = self.life.totals()
        self.last_life = EndedLife(self.name, now_ms, reason, lost, totals.runs, totals.failed)
        self.life = None

    def reset(self, now_ms: int, next_life: int) -> None:
        """This life ends and another begins; the sessions go on."""
        self.end_life("reset", now_ms, lost=False)
        self.life = Life(next_life, now_ms, "")
        for session in self.sessions.values():
            session.life = next_life


def newest_ending(workers: Iterable[Worker]) -> EndedLife | None:
    endings = [worker.last_life for worker in workers if worker.last_life is not None]
    return max(endings, key=lambda life: life.ended_ms, default=None)
