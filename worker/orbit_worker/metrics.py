"""The answers that get_metrics gives, as frozen values."""

from __future__ import annotations

from typing import Any, NamedTuple

from orbit_rpc_schema.wire import Json


class DerivedMetrics(NamedTuple):
    """This worker's numbers over its current life.

    Rates are percent from 0 to 100, execution times whole milliseconds, `uptime`
    whole seconds. All zero where the service does not answer.
    """

    error_rate: float = 0.0
    success_rate: float = 0.0
    runs_per_hour: float = 0.0
    avg_execution_time: int = 0
    min_execution_time: int = 0
    max_execution_time: int = 0
    uptime: int = 0
    uptime_formatted: str = "0s"
    total_runs: int = 0
    total_succeeded: int = 0
    total_failed: int = 0


class RecentExecution(NamedTuple):
    """`timestamp` in epoch milliseconds; `duration` in milliseconds, None where it is unknown."""

    timestamp: int
    duration: int | None
    success: bool


class RawMetrics(NamedTuple):
    """The counters behind DerivedMetrics; times are epoch milliseconds or None."""

    runs_executed: int = 0
    runs_succeeded: int = 0
    runs_failed: int = 0
    total_execution_time: int = 0
    min_execution_time: int = 0
    max_execution_time: int = 0
    worker_start_time: int | None = None
    last_run_time: int | None = None
    last_report_time: int | None = None
    recent_executions: tuple[RecentExecution, ...] = ()


class MetricsSnapshot(NamedTuple):
    """`timestamp`: when the service answered, epoch milliseconds; 0 where it did not."""

    raw: RawMetrics = RawMetrics()
    derived: DerivedMetrics = DerivedMetrics()
    timestamp: int = 0


def snapshot_of(answer: Json) -> MetricsSnapshot:
    """The answer of worker.snapshot as a value."""
    raw = _snake(answer["raw"])
    recent = tuple(RecentExecution(**execution) for execution in raw.pop("recent_executions"))
    return MetricsSnapshot(
        raw=RawMetrics(recent_executions=recent, **_known(RawMetrics, raw)),
        derived=DerivedMetrics(**_known(DerivedMetrics, _snake(answer["derived"]))),
        timestamp=answer["timestamp"],
    )


def _known(kind: type[RawMetrics] | type[DerivedMetrics], fields: Json) -> Json:
    """The fields that this version knows; a newer service may send more."""
    return {name: fields[name] for name in kind._fields if name in fields}


def _snake(fields: Json) -> dict[str, Any]:
    return {
        "".join(f"_{c.lower()}" if c.isupper() else c for c in name): value
        for name, value in fields.items()
    }
