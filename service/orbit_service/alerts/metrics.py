"""What a rule can look at, and how each number is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orbit_service.core.rollup import UNITS_MS

Unit = Literal["percent", "count", "ms", "an hour"]
# Runs are of closed windows, totals too; what is now is asked at each look.
Source = Literal["runs", "totals", "now"]
Dimension = Literal["worker", "pipeline", "step", "queue"]

FEW_RUNS = 5  # of which a rate or a percentile would be a guess


@dataclass(frozen=True, slots=True)
class Metric:
    """A number by name. `guess` ones need several runs to mean something."""

    name: str
    text: str
    unit: Unit
    source: Source
    dimensions: tuple[Dimension, ...]
    guess: bool = False


_RUNS: tuple[Dimension, ...] = ("worker", "pipeline", "step")

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("error_rate", "error rate", "percent", "runs", _RUNS, guess=True),
        Metric("failures", "failures", "count", "runs", _RUNS),
        Metric("retries", "retries", "count", "runs", _RUNS),
        Metric("runs_per_hour", "runs an hour", "an hour", "runs", _RUNS),
        Metric("avg", "average duration", "ms", "runs", _RUNS, guess=True),
        Metric("p50", "p50", "ms", "runs", _RUNS, guess=True),
        Metric("p95", "p95", "ms", "runs", _RUNS, guess=True),
        Metric("p99", "p99", "ms", "runs", _RUNS, guess=True),
        Metric("wait_p95", "p95 of waiting", "ms", "runs", ("worker", "pipeline"), guess=True),
        Metric("since_success", "time since the last success", "ms", "now", ("worker", "pipeline")),
        Metric("since_connected", "time without the worker", "ms", "now", ("worker",)),
        Metric("stuck_runs", "stuck runs", "count", "now", ("worker", "pipeline")),
        Metric("oldest_in_flight", "oldest run in flight", "ms", "now", ("worker", "pipeline")),
        Metric("queue_depth", "queue depth", "count", "now", ("worker", "queue")),
        Metric("worker_lost", "workers lost", "count", "now", ("worker",)),
        Metric("worker_silent", "workers silent", "count", "now", ("worker",)),
        Metric("dropped", "results dropped", "count", "totals", ()),
        Metric("refused", "results refused", "count", "totals", ()),
        Metric("degraded", "parts of the service in trouble", "count", "now", ()),
    )
}


def number_text(value: float | None, unit: Unit, *, change: bool = False) -> str:
    """As a person reads it: "12.5 %", "1.2 s", "3"; a change with its sign."""
    if value is None:
        return "unknown"
    if change:
        return f"{value:+.1f} {'points' if unit == 'percent' else '%'}"
    match unit:
        case "percent":
            return f"{value:.4g} %"
        case "ms":
            return time_text(value)
        case _:
            return f"{value:,.10g}" if value == int(value) else f"{value:,.2f}"


def time_text(ms: float) -> str:
    """ "250 ms", "1.5 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    if ms < 1_000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1000:.3g} s"
    for (unit, name), (smaller, less) in (
        (("d", "d"), ("h", "h")),
        (("h", "h"), ("m", "min")),
    ):
        if ms >= UNITS_MS[unit]:
            whole, rest = divmod(int(ms), UNITS_MS[unit])
            part = rest // UNITS_MS[smaller]
            return f"{whole} {name}" + (f" {part} {less}" if part else "")
    return f"{ms / 60_000:.3g} min"
