"""
One word and one sentence about the state of things.

Error: half of the last hour's runs failed, or a worker was lost and none of its
name has come since. Warning: a tenth failed, a run is stuck, a worker is
silent, the state cannot be written. Everything else is healthy, idleness included, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from orbit_rpc_schema.procedures import Health, StuckRun
from orbit_rpc_schema.wire import SILENT_AFTER_SECONDS
from orbit_service.core.collector import Collector
from orbit_service.core.stats import percent

Status = Literal["healthy", "warning", "error"]
Finding = tuple[Status, str]

HOUR_MS = 3_600_000
WARNING_PERCENT = 10
ERROR_PERCENT = 50
MAX_STUCK = 100
MAX_NAMED = 5  # workers in a sentence


def health(
    collector: Collector, stuck_after_ms: int, now_ms: int, troubles: Iterable[str] = ()
) -> Health:
    """`troubles` are sentences about the service itself, each a warning."""
    stuck = _stuck_runs(collector, stuck_after_ms, now_ms)
    findings = [
        *_failures(collector, now_ms),
        *_lost_workers(collector),
        *_silent_workers(collector, now_ms),
    ]
    findings += [("warning", trouble) for trouble in troubles]
    if stuck:
        minutes = stuck_after_ms / 60_000
        findings.append(("warning", f"{len(stuck)} in flight for more than {minutes:g} min"))
    levels: tuple[Status, ...] = ("error", "warning")
    for status in levels:
        said = [text for severity, text in findings if severity == status]
        if said:
            # What is worse comes first; what else is wrong is still said.
            said += [text for severity, text in findings if severity != status]
            return _health(collector, status, "; ".join(said), stuck)
    return _health(collector, "healthy", _calm(collector, now_ms), [])


def _health(collector: Collector, status: Status, text: str, stuck: list[StuckRun]) -> Health:
    seen = [worker.last_seen_ms for worker in collector.workers.values()]
    return Health(
        status=status,
        message=text[:1].upper() + text[1:],
        last_activity=max(seen, default=None),
        stuck_runs=stuck[:MAX_STUCK],
    )


def _failures(collector: Collector, now_ms: int) -> Iterator[Finding]:
    hour = collector.last_day.since(now_ms - HOUR_MS)
    if hour.runs and 100 * hour.failed >= WARNING_PERCENT * hour.runs:
        rate = percent(hour.failed, hour.runs)
        yield (
            "error" if 100 * hour.failed >= ERROR_PERCENT * hour.runs else "warning",
            f"{rate:.2f} % of the last hour's {hour.runs} runs failed",
        )


def _lost_workers(collector: Collector) -> Iterator[Finding]:
    lost = {
        worker.name
        for worker in collector.workers.values()
        if worker.life is None and worker.last_life and worker.last_life.lost
    }
    yield from _named("error", lost, "was lost and has not come back")


def _silent_workers(collector: Collector, now_ms: int) -> Iterator[Finding]:
    silent_ms = int(SILENT_AFTER_SECONDS * 1000)
    silent = {
        session.worker
        for session in collector.sessions.values()
        if session.last_seen_ms <= now_ms - silent_ms
    }
    said = f"has been silent for more than {SILENT_AFTER_SECONDS:g} s"
    yield from _named("warning", silent, said)


def _named(status: Status, workers: set[str], said: str) -> Iterator[Finding]:
    """A sentence for each of the first few; of a thousand nobody reads all."""
    names = sorted(workers)
    for name in names[:MAX_NAMED]:
        yield status, f"worker {name} {said}"
    if len(names) > MAX_NAMED:
        yield status, f"so it is with {len(names) - MAX_NAMED} more"


def _stuck_runs(collector: Collector, stuck_after_ms: int, now_ms: int) -> list[StuckRun]:
    stuck = [
        StuckRun(id=run.id, worker=session.worker, pipeline=run.pipeline, started_at=run.started_ms)
        for session, run in collector.running()
        if run.started_ms < now_ms - stuck_after_ms
    ]
    return sorted(stuck, key=lambda run: run.started_at)


def _calm(collector: Collector, now_ms: int) -> str:
    connected = collector.workers_connected()
    if not collector.workers:
        return "no worker has connected yet"
    if not connected:
        return "no worker is connected; all of them said goodbye"
    runs = collector.last_day.since(now_ms - HOUR_MS).runs
    workers = f"{connected} worker{'s' if connected > 1 else ''} connected"
    return f"{workers}, {runs} runs in the last hour" if runs else f"{workers}, idle"
