"""
Every reading procedure: name, params, result.

The `worker.*` ones mirror the tRPC router that this service replaces, names and
shapes. JSON is camelCase, Python snake_case. Times are epoch milliseconds (UTC),
durations milliseconds, rates percent from 0 to 100, unless a field's name or
description says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from orbit_rpc_schema.alerts import (
    Acknowledged,
    AcknowledgeParams,
    AlertList,
    AlertsChanged,
    AlertsHistoryParams,
    AlertsListParams,
    AlertsSubscribeParams,
    AuditLog,
    Backtest,
    BacktestParams,
    Reloaded,
    RuleList,
    SendTestParams,
    SilenceParams,
    SilenceView,
    TestSent,
    Unsilenced,
    UnsilenceParams,
)
from orbit_rpc_schema.model import (
    Duration,
    EpochMs,
    Milliseconds,
    Model,
    Moment,
    Name,
    NoParams,
    Percent,
    Status,
)

# ---------------------------------------------------------------- params


class Selection(Model):
    """Which runs a question is about: all, one worker's, one pipeline's, or both."""

    worker: Name | None = Field(None, description="a worker's name; left out: all workers")
    pipeline: Name | None = Field(None, description="a pipeline's name; left out: all pipelines")


class MetricsParams(Selection):
    window: Duration | None = Field(
        None,
        description="over so long until now, by finish time, whoever is connected; "
        "left out: over the current lives",
    )


class RangeParams(Model):
    """A range of time; left out: the last 24 hours."""

    from_: Moment = Field("-24h", alias="from")
    to: Moment = "now"


class HistoryParams(RangeParams):
    step: Duration | None = Field(None, description="between two points; left out: about 200")
    worker: Name | None = None
    pipeline: Name | None = None
    group_by: Literal["worker", "pipeline", "node"] | None = None
    trend: bool = Field(False, description="compare with the range of the same length before")


class PipelineParams(Model):
    """Which pipeline, of all workers or of one, over a range."""

    pipeline: Name
    worker: Name | None = None
    from_: Moment = Field("-24h", alias="from")
    to: Moment = "now"


class BalanceParams(RangeParams):
    from_: Moment = Field("-1h", alias="from")
    pipeline: Name | None = None


class RecentRunsParams(Selection):
    limit: int = Field(20, ge=1, le=100)
    status: Status | None = None


class RunsCreateParams(Model):
    pipeline: Name
    input: Any = Field(None, description="the first step's input")


class WorkerSubscribeParams(Selection):
    interval: int = Field(1_000, ge=250, le=60_000, description="ms between two updates")


class RunsSubscribeParams(Selection):
    status: Literal["success", "failed"] | None = None


class UnsubscribeParams(Model):
    subscription: str


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
    node: str = Field(description="the service that it is connected to")
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


class HistoryInfo(Model):
    """The database of closed windows and what waits for it, since the service started."""

    database: str = Field(description="a path, memory, or a URL without its password")
    trouble: str | None = Field(description="why it cannot be used now")
    failures: int
    waiting: int = Field(description="publications that it does not have yet")
    waiting_bytes: int
    dropped: int = Field(description="runs that found no memory while it was away")
    refused: int = Field(description="publications that it did not take; the log tells why")
    unreadable: int = Field(description="rows that were passed over; the log tells why")
    twin: str | None = Field(description="another service that calls itself by this node's name")


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
    history: HistoryInfo
    folded: dict[str, int] = Field(
        description="how often a name found no place and was counted among others, by kind"
    )
    creates_runs: bool = Field(description="whether runs.create is answered")


class Summary(Model):
    """Runs over a length of time; null where there was none to measure."""

    runs: int
    failed: int
    retries: int
    avg: Milliseconds | None
    min: Milliseconds | None
    max: Milliseconds | None
    p50: Milliseconds | None
    p95: Milliseconds | None
    p99: Milliseconds | None
    runs_per_hour: float
    error_rate: Percent | None


class At(Model):
    at: EpochMs = Field(description="start of the step")


class Point(Summary, At):
    pass


class Change(Model):
    """This range against another."""

    before: Summary
    runs_per_hour: float | None = Field(description="change in percent; null from nothing")
    error_rate: float | None = Field(description="change in percentage points")
    p95: float | None = Field(description="change in percent")


class Trend(Change):
    from_: EpochMs = Field(alias="from", description="where the range before begins")


class HistoryGroup(Model):
    name: str | None = Field(description="null where nothing is grouped")
    total: Summary
    points: list[Point]
    trend: Trend | None


class HistoryView(Model):
    """Points in steps; the range is widened to whole steps, and ends now at the latest."""

    from_: EpochMs = Field(alias="from")
    to: EpochMs
    step: Milliseconds
    level: str = Field(description="length of the windows that were read: 10s, 1m or 1h")
    groups: list[HistoryGroup] = Field(description="by runs, most first; one if not grouped")


class PipelineView(Model):
    id: str
    name: str
    description: str | None = None
    workers: list[str]
    total: Summary
    last_run: EpochMs | None
    last_success: EpochMs | None


class PipelineList(Model):
    from_: EpochMs = Field(alias="from")
    to: EpochMs
    pipelines: list[PipelineView] = Field(description="by runs, most first")


class VersionView(Model):
    """The runs of one version of the program."""

    version: str | None = Field(description="null: the worker tells none")
    first_run: EpochMs
    last_run: EpochMs
    total: Summary = Field(description="rates over the time in which the version ran")


class VersionChange(Change):
    """The newest version against the one before it."""

    version: str | None
    previous: str | None


class ErrorTypeView(Model):
    type: str
    count: int
    last_seen: EpochMs | None
    message: str = Field(description="of the newest one")
    traceback: str | None = Field(description="of the newest one; its end")


class PipelineMetrics(Model):
    pipeline: str
    from_: EpochMs = Field(alias="from")
    to: EpochMs
    total: Summary
    last_run: EpochMs | None
    last_success: EpochMs | None
    versions: list[VersionView] = Field(description="in the order in which they appeared")
    change: VersionChange | None
    errors: list[ErrorTypeView] = Field(description="by count, most first; at most 100")
    untyped_failures: int = Field(description="failures of which no error was told")


class StepMetrics(Model):
    name: str
    count: int
    failed: int
    retries: int
    avg: Milliseconds
    min: Milliseconds
    max: Milliseconds
    p50: Milliseconds
    p95: Milliseconds
    p99: Milliseconds
    share_of_time: float = Field(description="percent of the time of all runs of the pipeline")
    last_success: EpochMs | None


class PipelineSteps(Model):
    pipeline: str
    from_: EpochMs = Field(alias="from")
    to: EpochMs
    runs: int
    steps: list[StepMetrics] = Field(description="by share of time, largest first")


class NodeView(Model):
    """One service of the fleet."""

    name: str
    alive: bool = Field(description="false: it has not been heard of for 30 s")
    last_seen: EpochMs
    workers_connected: int
    total_runs: int
    failed: int


class FleetMetrics(Model):
    nodes: list[NodeView]
    nodes_alive: int
    total: Metrics = Field(description="worker.metrics of all nodes together")


class WorkerShare(Model):
    node: str
    worker: str
    connected: bool
    runs: int
    share_of_runs: Percent
    busy_seconds: float = Field(description="sum of its runs' durations")
    share_of_busy_time: Percent
    slots: int | None
    utilisation: float | None = Field(
        description="percent: busy seconds over slots and time; null where slots are not told"
    )
    p95: Milliseconds | None


class Skew(Model):
    """The largest share over an equal one: 1 is balanced, 2 is twice its part."""

    runs: float
    busy_time: float


class Outlier(Model):
    """A worker that is slower in a pipeline than the others that run it."""

    node: str
    worker: str
    pipeline: str
    runs: int
    p95: Milliseconds
    others_runs: int
    others_p95: Milliseconds
    ratio: float
    message: str


class FleetBalance(Model):
    from_: EpochMs = Field(alias="from")
    to: EpochMs
    workers: list[WorkerShare] = Field(description="by busy time, most first")
    skew: Skew
    outliers: list[Outlier] = Field(description="the slowest first; at most 100")


class CreatedRun(Model):
    id: str


class Subscription(Model):
    subscription: str = Field(description="what notifications of it carry")


class Unsubscribed(Model):
    ok: Literal[True] = True


class WorkerUpdate(Model):
    """The params of the notification worker.update."""

    subscription: str
    metrics: Metrics
    window: Point | None = Field(
        description="the newest ten seconds with runs that have closed; what came late for one "
        "makes another of the same start, to be added"
    )
    missed: int = Field(0, description="updates before it that this reader was too slow for")


class RunsEnded(Model):
    """The params of the notification runs.ended."""

    subscription: str
    runs: list[RunView] = Field(description="newest first; at most 100")
    missed: int = Field(0, description="further runs that ended, since the notification before")


# ---------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True)
class Procedure:
    """One row of the contract; `result` is anything that pydantic makes a schema of."""

    name: str
    summary: str
    params: type[Model]
    result: Any
    reads: bool = True  # false: it changes something


PROCEDURES: dict[str, Procedure] = {
    procedure.name: procedure
    for procedure in (
        Procedure(
            "worker.metrics",
            "Totals, rates and percentiles over the current lives of the selected workers",
            MetricsParams,
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
            "worker.history",
            "Runs, failures and percentiles over a range, in steps",
            HistoryParams,
            HistoryView,
        ),
        Procedure(
            "pipelines.list",
            "Every pipeline that ran in a range",
            RangeParams,
            PipelineList,
        ),
        Procedure(
            "pipelines.metrics",
            "One pipeline over a range: totals, versions, error types",
            PipelineParams,
            PipelineMetrics,
        ),
        Procedure(
            "pipelines.steps",
            "The steps of one pipeline over a range: where the time goes",
            PipelineParams,
            PipelineSteps,
        ),
        Procedure(
            "fleet.metrics",
            "Every service that writes to the same history, and all of them together",
            NoParams,
            FleetMetrics,
        ),
        Procedure(
            "fleet.balance",
            "How work is spread over workers: shares, utilisation, skew, slow ones",
            BalanceParams,
            FleetBalance,
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
        Procedure(
            "runs.create",
            "Put in a pending run, where the service has the pipeline worker's database",
            RunsCreateParams,
            CreatedRun,
            reads=False,
        ),
        Procedure(
            "alerts.list",
            "What fires now or is about to, the worst first, and the silences in force",
            AlertsListParams,
            AlertList,
        ),
        Procedure(
            "alerts.rules",
            "The rules and channels that are in force, and what is wrong with their file",
            NoParams,
            RuleList,
        ),
        Procedure(
            "alerts.history",
            "The audit: what fired, was resolved, silenced, sent, tried, newest first",
            AlertsHistoryParams,
            AuditLog,
        ),
        Procedure(
            "alerts.silence",
            "Neither send nor act for what matches, until it ends",
            SilenceParams,
            SilenceView,
            reads=False,
        ),
        Procedure(
            "alerts.unsilence",
            "End a silence before its time",
            UnsilenceParams,
            Unsilenced,
            reads=False,
        ),
        Procedure(
            "alerts.acknowledge",
            "Somebody is at it: an alert is not repeated until it is resolved",
            AcknowledgeParams,
            Acknowledged,
            reads=False,
        ),
        Procedure(
            "alerts.backtest",
            "When each rule would have fired on the recorded history",
            BacktestParams,
            Backtest,
        ),
        Procedure(
            "alerts.reload",
            "Read the file of rules again; a bad one leaves those in force",
            NoParams,
            Reloaded,
            reads=False,
        ),
        Procedure(
            "alerts.sendTest",
            "Send a message that says it is a test through one channel, now",
            SendTestParams,
            TestSent,
            reads=False,
        ),
        Procedure("rpc.discover", "The OpenRPC document", NoParams, dict[str, Any]),
    )
}

# On a WebSocket alone, because they answer with notifications too.
LIVE: dict[str, Procedure] = {
    procedure.name: procedure
    for procedure in (
        Procedure(
            "worker.subscribe",
            "Hear of the totals at intervals, and of windows as they close: worker.update",
            WorkerSubscribeParams,
            Subscription,
        ),
        Procedure(
            "runs.subscribe",
            "Hear of runs as they end: runs.ended",
            RunsSubscribeParams,
            Subscription,
        ),
        Procedure(
            "alerts.subscribe",
            "Hear of alerts as they change: alerts.changed",
            AlertsSubscribeParams,
            Subscription,
        ),
        Procedure("unsubscribe", "Hear no more of it", UnsubscribeParams, Unsubscribed),
    )
}
NOTIFICATIONS: dict[str, type[Model]] = {
    "worker.update": WorkerUpdate,
    "runs.ended": RunsEnded,
    "alerts.changed": AlertsChanged,
}
