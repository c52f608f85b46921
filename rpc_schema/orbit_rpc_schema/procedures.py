"""
Every reading procedure: name, params, result.

The `worker.*` ones mirror the tRPC router that this service replaces, names and
shapes. JSON is camelCase, Python snake_case. Times are epoch milliseconds (UTC),
durations milliseconds, rates percent from 0 to 100, unless a field's name or
description says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from orbit_rpc_schema.wire import MAX_NAME

Milliseconds = Annotated[int, Field(ge=0, description="whole milliseconds")]
EpochMs = Annotated[int, Field(description="epoch milliseconds, UTC")]
Percent = Annotated[float, Field(ge=0, le=100, description="0 to 100")]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Status = Literal["pending", "running", "success", "failed"]


class Model(BaseModel):
    """camelCase in JSON, by either name in Python, nothing unknown."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


# ---------------------------------------------------------------- params


class NoParams(Model):
    pass


class Selection(Model):
    """Which runs a question is about: all, one worker's, one pipeline's, or both."""

    worker: Name | None = Field(None, description="a worker's name; left out: all workers")
    pipeline: Name | None = Field(None, description="a pipeline's name; left out: all pipelines")


class RecentRunsParams(Selection):
    limit: int = Field(20, ge=1, le=100)
    status: Status | None = None


class LedgerParams(Model):
    worker: str | None = None
    limit: int = Field(100, ge=1, le=1000, description="sessions at most")


# ---------------------------------------------------------------- results


class LastLife(Model):
    """The newest life that has ended among the selected workers."""

    worker: str
    ended_at: EpochMs
    reason: str = Field(description="disconnected, lost, reset, or what the worker said")
    total_runs: int
    failed: int


class Metrics(Model):
    """The numbers of the current lives of the selected workers; zeroes when there is none."""

    uptime: str = Field(description='parts that are not zero, days first: "8d 1h 1m 1s", "0s"')
    uptime_seconds: int
    total_runs: int
    success_rate: Percent
    error_rate: Percent
    runs_per_hour: float = Field(description="total runs over uptime, taken as at least 60 s")
    avg_execution_time: Milliseconds
    min_execution_time: Milliseconds
    max_execution_time: Milliseconds
    succeeded: int
    failed: int
    worker_start_time: EpochMs | None
    last_run_time: EpochMs | None
    timestamp: EpochMs
    connected: bool = Field(description="false: no selected worker is connected, hence zeroes")
    known: bool = Field(description="false: what was asked for was never seen")
    workers_connected: int
    p50: Milliseconds
    p95: Milliseconds
    p99: Milliseconds
    retries: int
    last_life: LastLife | None


class Execution(Model):
    timestamp: EpochMs
    duration: Milliseconds | None = Field(description="null where the worker was lost")
    success: bool


class RawMetrics(Model):
    runs_executed: int
    runs_succeeded: int
    runs_failed: int
    total_execution_time: Milliseconds
    min_execution_time: Milliseconds
    max_execution_time: Milliseconds
    worker_start_time: EpochMs | None
    last_run_time: EpochMs | None
    last_report_time: EpochMs | None
    recent_executions: list[Execution] = Field(
        description="oldest first; the last hour's, at most 1000 a worker"
    )


class DerivedMetrics(Model):
    error_rate: Percent
    success_rate: Percent
    runs_per_hour: float
    avg_execution_time: Milliseconds
    min_execution_time: Milliseconds
    max_execution_time: Milliseconds
    uptime: int = Field(description="seconds")
    uptime_formatted: str
    total_runs: int
    total_succeeded: int
    total_failed: int


class Snapshot(Model):
    raw: RawMetrics
    derived: DerivedMetrics
    timestamp: EpochMs


class Stats(Model):
    """All workers of this service together, connected or not, over the last 24 h."""

    pending: int = Field(description="sum of the queue depths that workers report")
    pending_known: bool = Field(description="false: no connected worker reports a depth")
    running: int
    runs_last_hour: int
    runs_last24_hours: int
    success_count: int
    failed_count: int
    avg_duration_ms: Milliseconds
    error_rate: Percent = Field(description="one decimal")


class StuckRun(Model):
    id: str
    worker: str
    pipeline: str
    started_at: EpochMs


class Health(Model):
    status: Literal["healthy", "warning", "error"]
    message: str
    last_activity: EpochMs | None
    stuck_runs: list[StuckRun] = Field(description="the oldest first, at most 100")


class PipelineRef(Model):
    id: str
    name: str
    description: str | None = None


class StepView(Model):
    id: str
    name: str
    status: Status
    attempt_count: int
    duration_ms: Milliseconds


class ErrorView(Model):
    type: str
    message: str
    traceback: str | None = None


class RunView(Model):
    id: str
    status: Status
    started_at: EpochMs | None
    finished_at: EpochMs | None
    duration_ms: Milliseconds | None
    attempt: int
    worker: str
    pipeline: PipelineRef
    steps: list[StepView]
    error: ErrorView | None = None


class WorkerView(Model):
    name: str
    connected: bool
    sessions: int = Field(description="processes connected now under this name")
    worker_start_time: EpochMs | None
    last_seen: EpochMs
    last_run_time: EpochMs | None
    total_runs: int
    failed: int
    retries: int
    in_flight: int
    oldest_in_flight: EpochMs | None = Field(description="when the oldest of them began")
    avg_wait_time: int = Field(description="ms before a run began, where the worker tells it")
    max_wait_time: int
    slots: int | None = Field(description="sum over its processes; null where none tells")
    hosts: list[str]
    versions: list[str]
    runtimes: list[str]
    queues: dict[str, int] = Field(description="depth by queue, where the worker reports it")
    last_life: LastLife | None


class LedgerView(Model):
    """What became of every result that was handed to a client.

    recorded = counted + repeated + late + refused + dropped + waiting
    """

    recorded: int = Field(description="by the workers' own figures")
    counted: int
    repeated: int = Field(description="ended before under the same id and attempt")
    late: int = Field(description="of a run that was given up as lost")
    refused: dict[str, int] = Field(description="by reason")
    dropped: dict[str, int] = Field(description="by the workers, by reason")
    waiting: int = Field(description="recorded and not arrived; below zero it is our mistake")
    forgotten: int = Field(description="counted by a service whose state is lost; not in the sum")


class SessionLedger(LedgerView):
    session: str
    worker: str
    connected: bool
    last_seen: EpochMs


class ServiceLedger(Model):
    total: LedgerView
    balanced: bool = Field(description="nothing was counted twice: no waiting is below zero")
    sessions: list[SessionLedger] = Field(description="the newest first; old ones are folded away")


class Intake(LedgerView):
    """The ledger of all sessions, and what was wrong with what they sent."""

    faults: dict[str, int] = Field(description="lines, connections and names over a bound")


class StateInfo(Model):
    """The state directory and its writer, since the service started."""

    path: str
    trouble: str | None = Field(description="why nothing can be written now")
    commits: int
    failures: int
    bytes_written: int
    bytes_waiting: int


class ServiceInfo(Model):
    name: Literal["orbit-metrics"] = "orbit-metrics"
    version: str
    protocol: int
    node: str
    pid: int
    socket: str
    http: str | None
    started_at: EpochMs
    uptime_seconds: int
    connections: int
    workers_connected: int
    series: int
    intake: Intake
    state: StateInfo | None = Field(description="null where there is only memory")


# ---------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True)
class Procedure:
    """One row of the contract; `result` is anything that pydantic makes a schema of."""

    name: str
    summary: str
    params: type[Model]
    result: Any


PROCEDURES: dict[str, Procedure] = {
    procedure.name: procedure
    for procedure in (
        Procedure(
            "worker.metrics",
            "Totals, rates and percentiles over the current lives of the selected workers",
            Selection,
            Metrics,
        ),
        Procedure(
            "worker.snapshot",
            "The raw counters with the recent executions, and what is derived from them",
            Selection,
            Snapshot,
        ),
        Procedure(
            "worker.stats",
            "Pending and running now, and the last hour and 24 hours",
            NoParams,
            Stats,
        ),
        Procedure(
            "worker.health",
            "One word and one sentence: healthy, warning or error, and why",
            NoParams,
            Health,
        ),
        Procedure(
            "worker.recentRuns",
            "The newest runs, newest first, with their steps and errors",
            RecentRunsParams,
            list[RunView],
        ),
        Procedure(
            "worker.list",
            "Every worker that is connected or has been, by name",
            NoParams,
            list[WorkerView],
        ),
        Procedure(
            "service.info",
            "This service: version, addresses, and what became of what it was sent",
            NoParams,
            ServiceInfo,
        ),
        Procedure(
            "service.ledger",
            "What became of every result, in total and by session",
            LedgerParams,
            ServiceLedger,
        ),
        Procedure("rpc.discover", "The OpenRPC document", NoParams, dict[str, Any]),
    )
}
