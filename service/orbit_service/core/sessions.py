"""
Sessions, and the lives of workers that they make up.

A session is one process's connection identity, from first connect to its end,
over any number of reconnects. A worker is a name; it lives while it has at
least one open session, and a life's numbers are those of all its sessions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from orbit_rpc_schema.messages import Connect
from orbit_rpc_schema.wire import MAX_LINE
from orbit_service.core.recent import RecentRuns
from orbit_service.core.stats import Stats, merged

MAX_RUNS_A_LINE = MAX_LINE // 2  # a digit and a comma each; whoever claims more is mistaken


@dataclass(frozen=True, slots=True)
class InFlight:
    """A run that has begun and not ended."""

    id: str
    pipeline: str
    started_ms: int


@dataclass(slots=True)
class Session:
    """One process of a worker. `acked` is the highest sequence number that is counted."""

    hello: Connect
    last_seen_ms: int
    connected_ms: int = 0  # when this service first saw it
    acked: int = 0
    recorded: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    running: dict[tuple[str, str], InFlight] = field(default_factory=dict)
    queues: dict[str, int] | None = None
    last_report_ms: int | None = None
    # Its connection ended without goodbye; it may come back until SUSPECT_MS later.
    suspect_since_ms: int | None = None

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

    started_ms: int
    opened_by: str  # the session that began it
    series: dict[str, Stats] = field(default_factory=dict)

    def totals(self, pipeline: str | None = None) -> Stats:
        if pipeline is None:
            return merged(self.series.values())
        return merged(filter(None, [self.series.get(pipeline)]))


@dataclass(frozen=True, slots=True)
class EndedLife:
    """What is left of a life when it is over."""

    worker: str
    ended_ms: int
    reason: str
    total_runs: int
    failed: int


@dataclass(slots=True)
class Worker:
    """A name, and every process that connects under it."""

    name: str
    last_seen_ms: int
    sessions: dict[str, Session] = field(default_factory=dict)
    life: Life | None = None
    last_life: EndedLife | None = None
    recent: RecentRuns = field(default_factory=RecentRuns)

    def open(self, session: Session, started_ms: int) -> None:
        """A session joins; the first one begins a life."""
        self.sessions[session.id] = session
        if self.life is None:
            self.life = Life(started_ms, session.id)

    def close(self, session: Session, reason: str, now_ms: int) -> None:
        """A session leaves; with the last one the life is over."""
        del self.sessions[session.id]
        if not self.sessions:
            self.end_life(reason, now_ms)

    def end_life(self, reason: str, now_ms: int) -> None:
        if self.life is None:
            return
        totals = self.life.totals()
        self.last_life = EndedLife(self.name, now_ms, reason, totals.runs, totals.failed)
        self.life = None

    def reset(self, now_ms: int) -> None:
        """This life ends and another begins; the sessions go on."""
        self.end_life("reset", now_ms)
        self.life = Life(now_ms, "")


def newest_ending(workers: Iterable[Worker]) -> EndedLife | None:
    endings = [worker.last_life for worker in workers if worker.last_life is not None]
    return max(endings, key=lambda life: life.ended_ms, default=None)
