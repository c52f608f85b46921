"""
The answers: what the collector holds, in the shapes of the contract.

Each function takes the collector and a moment, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from heapq import merge, nlargest
from itertools import chain, islice
from typing import Any, Protocol

from orbit_rpc_schema.messages import Step
from orbit_rpc_schema.procedures import (
    DerivedMetrics,
    ErrorView,
    Execution,
    Intake,
    LastLife,
    LedgerParams,
    LedgerView,
    Metrics,
    PipelineRef,
    RawMetrics,
    RecentRunsParams,
    RunView,
    Selection,
    ServiceLedger,
    SessionLedger,
    Snapshot,
    StepView,
    WorkerView,
)
from orbit_rpc_schema.procedures import Stats as StatsView
from orbit_service.core.collector import Collector
from orbit_service.core.histogram import Histogram
from orbit_service.core.ledger import Ledger
from orbit_service.core.recent import Run
from orbit_service.core.sessions import EndedLife, InFlight, Life, Session, Worker, newest_ending
from orbit_service.core.stats import (
    Stats,
    merged,
    percent,
    rounded,
    runs_per_hour,
    uptime_text,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Known(Protocol):
    """Workers that can be asked about: of one node, or of a fleet."""

    def select(self, name: str | None) -> Iterable[Worker]:
        """All workers, or those of this name."""

    def has_seen(self, worker: Worker, pipeline: str) -> bool:
        """Whether this worker has run the pipeline, in this life or an earlier one."""


def metrics(
    known: Known,
    selection: Selection,
    now_ms: int,
    over: tuple[Stats, int] | None = None,
) -> Metrics:
    """worker.metrics: zeroes, and never an error, where no selected worker is connected.

    `over`, runs and the seconds in which they ended, stands in for the current lives.
    """
    workers = list(known.select(selection.worker))
    lives = [worker.life for worker in workers if worker.life is not None]
    started = min((life.started_ms for life in lives), default=None)
    uptime = seconds_since(started, now_ms)
    if over is None:
        over = _totals(lives, selection.pipeline), uptime
    totals, seconds = over
    return Metrics(
        **_figures_of(totals),
        uptime=uptime_text(uptime),
        uptime_seconds=uptime,
        runs_per_hour=runs_per_hour(totals.runs, seconds),
        worker_start_time=started,
        last_run_time=totals.last_run_ms,
        timestamp=now_ms,
        connected=bool(lives),
        known=bool(workers)
        if selection.pipeline is None
        else any(known.has_seen(worker, selection.pipeline) for worker in workers),
        workers_connected=len(lives),
        retries=totals.retries,
        last_life=_last_life(newest_ending(workers)),
    )


def _totals(lives: list[Life], pipeline: str | None) -> Stats:
    """To read: one series alone is not copied."""
    parts = [stats for life in lives for stats in life.of(pipeline)]
    return parts[0] if len(parts) == 1 else merged(parts)


def _figures_of(totals: Stats) -> Mapping[str, Any]:
    sample = totals.histogram
    return _figures(
        totals.runs,
        totals.failed,
        totals.timed,
        totals.total_us,
        totals.min_us,
        totals.max_us,
        sample.zeroes,
        sample.first,
        sample.lanes,
    )


@lru_cache(maxsize=64)  # up to some kilobytes each
def _figures(
    runs: int,
    failed: int,
    timed: int,
    total_us: int,
    min_us: int,
    max_us: int,
    zeroes: int,
    first: int,
    lanes: int,
) -> Mapping[str, Any]:
    """What follows from these numbers alone: of the same ones, always the same."""
    totals = Stats(
        runs=runs,
        failed=failed,
        timed=timed,
        total_us=total_us,
        min_us=min_us,
        max_us=max_us,
        histogram=Histogram(zeroes, first, lanes),
    )
    p50, p95, p99 = totals.quantiles_ms(0.50, 0.95, 0.99)
    return {
        "total_runs": runs,
        "success_rate": percent(totals.succeeded, runs),
        "error_rate": percent(failed, runs),
        "avg_execution_time": totals.average_ms,
        "min_execution_time": totals.min_ms,
        "max_execution_time": totals.max_ms,
        "succeeded": totals.succeeded,
        "failed": failed,
        "p50": p50,
        "p95": p95,
        "p99": p99,
    }


def snapshot(collector: Collector, selection: Selection, now_ms: int) -> Snapshot:
    """worker.snapshot: the same numbers as worker.metrics, raw and derived."""
    m = metrics(collector, selection, now_ms)
    workers = [worker for worker in collector.select(selection.worker) if worker.life]
    totals = _totals([worker.life for worker in workers if worker.life], selection.pipeline)
    reports = [
        session.last_report_ms
        for worker in workers
        for session in worker.sessions.values()
        if session.last_report_ms is not None
    ]
    return Snapshot(
        raw=RawMetrics(
            runs_executed=m.total_runs,
            runs_succeeded=m.succeeded,
            runs_failed=m.failed,
            total_execution_time=rounded(totals.total_us, 1000),
            min_execution_time=m.min_execution_time,
            max_execution_time=m.max_execution_time,
            worker_start_time=m.worker_start_time,
            last_run_time=m.last_run_time,
            last_report_time=max(reports, default=None),
            recent_executions=[
                Execution(
                    timestamp=run.finished_ms,
                    duration=_whole_ms(run.duration_us),
                    success=run.success,
                )
                for _worker, run in reversed(list(_ended_runs(workers, selection.pipeline, now_ms)))
            ],
        ),
        derived=DerivedMetrics(
            error_rate=m.error_rate,
            success_rate=m.success_rate,
            runs_per_hour=m.runs_per_hour,
            avg_execution_time=m.avg_execution_time,
            min_execution_time=m.min_execution_time,
            max_execution_time=m.max_execution_time,
            uptime=m.uptime_seconds,
            uptime_formatted=m.uptime,
            total_runs=m.total_runs,
            total_succeeded=m.succeeded,
            total_failed=m.failed,
        ),
        timestamp=now_ms,
    )


def stats(collector: Collector, now_ms: int) -> StatsView:
    """worker.stats: the last 24 h of all workers, ended ones too."""
    hour = collector.last_day.since(now_ms - HOUR_MS)
    day = collector.last_day.since(now_ms - DAY_MS)
    depths = [_depths(worker) for worker in collector.workers.values()]
    return StatsView(
        pending=sum(sum(queues.values()) for queues in depths),
        pending_known=any(s.queues is not None for s in collector.sessions.values()),
        running=sum(1 for _ in collector.running()),
        runs_last_hour=hour.runs,
        runs_last24_hours=day.runs,
        success_count=day.runs - day.failed,
        failed_count=day.failed,
        avg_duration_ms=rounded(day.total_us, day.timed * 1000),
        error_rate=percent(day.failed, day.runs, decimals=1),
    )


def recent_runs(collector: Collector, params: RecentRunsParams, now_ms: int) -> list[RunView]:
    """worker.recentRuns: runs in flight by their start, ended ones by their end, newest first."""
    views: list[tuple[int, RunView]] = []
    if params.status in (None, "running"):
        views += [
            (run.started_ms, _running_view(session, run))
            for session, run in collector.running()
            if params.worker in (None, session.worker) and params.pipeline in (None, run.pipeline)
        ]
    if params.status in (None, "success", "failed"):
        wanted = {"success": True, "failed": False}.get(params.status or "")
        ended = _ended_runs(collector.select(params.worker), params.pipeline, now_ms)
        matching = (
            (run.finished_ms, ended_view(worker, run))
            for worker, run in ended
            if wanted is None or run.success is wanted
        )
        views += islice(matching, params.limit)
    # Pending runs are not sent to this service; of them it knows depths alone.
    views.sort(key=lambda view: view[0], reverse=True)
    return [view for _at, view in views[: params.limit]]


def worker_list(known: Known) -> list[WorkerView]:
    """worker.list: connected ones first, then by name and node."""
    ordered = sorted(known.select(None), key=lambda w: (w.life is None, w.name, w.node))
    return [_worker_view(worker) for worker in ordered]


def intake(collector: Collector) -> Intake:
    return Intake(**_books(collector.ledger), faults=dict(collector.faults))


def ledger(collector: Collector, params: LedgerParams) -> ServiceLedger:
    """service.ledger: of every session that is remembered, the newest first."""
    remembered = chain(collector.ended_sessions.values(), collector.sessions.values())
    wanted = [session for session in remembered if params.worker in (None, session.worker)]
    newest = nlargest(params.limit, wanted, key=lambda session: session.last_seen_ms)
    return ServiceLedger(
        total=LedgerView(**_books(collector.ledger)),
        balanced=all(session.ledger.waiting >= 0 for session in wanted),
        sessions=[
            SessionLedger(
                **_books(session.ledger),
                session=session.id,
                worker=session.worker,
                connected=session.id in collector.sessions,
                last_seen=session.last_seen_ms,
            )
            for session in newest
        ],
    )


def _books(ledger: Ledger) -> dict[str, Any]:
    return {**asdict(ledger), "waiting": ledger.waiting}


def _worker_view(worker: Worker) -> WorkerView:
    sessions = list(worker.sessions.values())
    totals = merged([worker.life.totals()] if worker.life else [])
    return WorkerView(
        name=worker.name,
        node=worker.node,
        connected=worker.life is not None,
        sessions=len(sessions),
        worker_start_time=worker.life.started_ms if worker.life else None,
        last_seen=worker.last_seen_ms,
        last_run_time=totals.last_run_ms,
        total_runs=totals.runs,
        failed=totals.failed,
        retries=totals.retries,
        in_flight=sum(len(session.running) for session in sessions),
        oldest_in_flight=min(
            (run.started_ms for session in sessions for run in session.running.values()),
            default=None,
        ),
        avg_wait_time=totals.average_wait_ms,
        max_wait_time=totals.max_wait_ms,
        slots=worker.slots,
        hosts=sorted({session.hello.host for session in sessions}),
        versions=sorted({s.hello.version for s in sessions if s.hello.version}),
        runtimes=sorted({s.hello.runtime for s in sessions if s.hello.runtime}),
        queues=_depths(worker),
        last_life=_last_life(worker.last_life),
    )


def _depths(worker: Worker) -> dict[str, int]:
    """Depth by queue. Processes that tell of one queue tell of the same; the newest is right."""
    depths: dict[str, int] = {}
    for session in sorted(worker.sessions.values(), key=lambda session: session.last_seen_ms):
        depths.update(session.queues or {})
    return depths


def _ended_runs(
    workers: Iterable[Worker], pipeline: str | None, now_ms: int
) -> Iterator[tuple[Worker, Run]]:
    """The remembered runs of these workers, newest first."""

    def of(worker: Worker) -> Iterator[tuple[Worker, Run]]:
        return ((worker, run) for run in worker.recent.newest(now_ms))

    streams = [of(worker) for worker in workers]
    for worker, run in merge(*streams, key=lambda pair: -pair[1].finished_ms):
        if pipeline in (None, run.pipeline):
            yield worker, run


def ended_view(worker: Worker, run: Run) -> RunView:
    error = run.detail.error
    return RunView(
        id=run.id,
        status="success" if run.success else "failed",
        started_at=run.started_ms,
        finished_at=run.finished_ms,
        duration_ms=_whole_ms(run.duration_us),
        attempt=run.detail.attempt,
        worker=worker.name,
        pipeline=PipelineRef(id=run.pipeline, name=run.pipeline),
        steps=list(_step_views(run.id, run.detail.steps)),
        error=None
        if error is None
        else ErrorView(type=error.type, message=error.message, traceback=error.traceback),
    )


def _step_views(run: str, steps: Iterable[Step]) -> Iterator[StepView]:
    for number, step in enumerate(steps):
        yield StepView(
            id=f"{run}/{number}",
            name=step.name,
            status="failed" if step.failed else "success",
            attempt_count=step.attempts,
            duration_ms=rounded(step.duration_us, 1000),
        )


def _running_view(session: Session, run: InFlight) -> RunView:
    return RunView(
        id=run.id,
        status="running",
        started_at=run.started_ms,
        finished_at=None,
        duration_ms=None,
        attempt=run.attempt or 1,
        worker=session.worker,
        pipeline=PipelineRef(id=run.pipeline, name=run.pipeline),
        steps=[
            *_step_views(run.id, run.done),
            *(
                StepView(
                    id=f"{run.id}/{number}",
                    name=name,
                    status="running",
                    attempt_count=1,
                    duration_ms=0,
                )
                for number, name in enumerate(run.now, len(run.done))
            ),
        ],
    )


def _last_life(life: EndedLife | None) -> LastLife | None:
    if life is None:
        return None
    return LastLife(
        worker=life.worker,
        ended_at=life.ended_ms,
        reason=life.reason,
        total_runs=life.total_runs,
        failed=life.failed,
    )


def _whole_ms(duration_us: int | None) -> int | None:
    return None if duration_us is None else rounded(duration_us, 1000)


def seconds_since(started_ms: int | None, now_ms: int) -> int:
    return 0 if started_ms is None else max(now_ms - started_ms, 0) // 1000
