"""
Tell the metrics service about each run of this worker.

    from orbit_worker import track

    with track("import-orders") as run:
        with run.step("download"):
            ...

No dependencies, nothing to configure when the service runs beside it, nothing
raised when it does not. See MetricsClient for what is behind these functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

from orbit_rpc_schema.wire import DEFAULT_PIPELINE
from orbit_worker.buffer import MAX_OPEN
from orbit_worker.client import MAX_DURATION_MS, MetricsClient
from orbit_worker.details import ErrorLike, RunStep
from orbit_worker.metrics import DerivedMetrics, MetricsSnapshot, RawMetrics, RecentExecution
from orbit_worker.tracking import Run, Tracker

__all__ = [
    "DerivedMetrics",
    "MetricsClient",
    "MetricsSnapshot",
    "RawMetrics",
    "RecentExecution",
    "Run",
    "RunStep",
    "default_client",
    "flush",
    "get_metrics",
    "get_metrics_async",
    "get_metrics_snapshot",
    "record_run",
    "reset_metrics",
    "start_metrics_reporting",
    "stop_metrics_reporting",
    "track",
]

F = TypeVar("F", bound=Callable[..., object])

_client: MetricsClient | None = None


def default_client() -> MetricsClient:
    """The client that the functions of this module use; made at the first use."""
    global _client
    if _client is None:
        _client = MetricsClient()
    return _client


def _plain_first(record_run: F) -> F:
    """The short way of MetricsClient.record_run over again: a call of it costs a quarter more."""

    @functools.wraps(record_run)
    def plain(
        duration_ms: float,
        success: bool,
        *,
        pipeline: str = DEFAULT_PIPELINE,
        **details: Any,
    ) -> None:
        client = _client
        if client is not None and not details:
            try:
                is_plain = (
                    pipeline in client._names
                    and 0.0 <= duration_ms <= MAX_DURATION_MS
                    and (success is True or success is False)
                )
            except (ArithmeticError, TypeError):
                is_plain = False
            waiting = client._buffer.open
            if is_plain and len(waiting) <= MAX_OPEN:
                waiting.append((pipeline, duration_ms, success))
                if client._sender.parked:
                    client._sender.nudge()
                return
        record_run(duration_ms, success, pipeline=pipeline, **details)

    return plain  # type: ignore[return-value]  # the same signature, by wraps


@_plain_first
def record_run(
    duration_ms: float | None,
    success: bool,
    *,
    pipeline: str = DEFAULT_PIPELINE,
    queue: str | None = None,
    id: str | None = None,
    attempt: int = 1,
    final: bool = True,
    wait_ms: float | None = None,
    error: ErrorLike | None = None,
    steps: Sequence[RunStep] = (),
) -> None:
    """Count a run that has ended; never blocks. See MetricsClient.record_run."""
    default_client().record_run(
        duration_ms,
        success,
        pipeline=pipeline,
        queue=queue,
        id=id,
        attempt=attempt,
        final=final,
        wait_ms=wait_ms,
        error=error,
        steps=steps,
    )


@overload
def track(pipeline: F) -> F: ...
@overload
def track(
    pipeline: str = DEFAULT_PIPELINE,
    *,
    id: str | None = None,
    attempt: int = 1,
    queue: str | None = None,
    wait_ms: float | None = None,
) -> Tracker: ...
def track(
    pipeline: str | F = DEFAULT_PIPELINE,
    *,
    id: str | None = None,
    attempt: int = 1,
    queue: str | None = None,
    wait_ms: float | None = None,
) -> Tracker | F:
    """Measure a block or a function as a run.

    `with track("name") as run:`, `async with`, `@track("name")` on a plain or
    async function, or `@track` alone, which takes the function's name. Inside,
    `with run.step("part"):` measures a named part. An exception that leaves the
    block makes the run a failure, and passes.
    """
    if callable(pipeline):
        name = getattr(pipeline, "__name__", DEFAULT_PIPELINE)
        return Tracker(default_client, name)(pipeline)
    if not isinstance(pipeline, str):
        raise TypeError(f"pipeline is a str, not {type(pipeline).__name__}")
    return Tracker(default_client, pipeline, id=id, attempt=attempt, queue=queue, wait_ms=wait_ms)


def get_metrics() -> DerivedMetrics:
    """This worker's numbers within 1 s; zeroes where the service does not answer."""
    return default_client().get_metrics()


async def get_metrics_async() -> DerivedMetrics:
    """`get_metrics` without holding up the event loop."""
    return await default_client().get_metrics_async()


def get_metrics_snapshot() -> MetricsSnapshot:
    """Raw counters, what is derived from them, and when."""
    return default_client().get_metrics_snapshot()


def start_metrics_reporting(interval_ms: int | None = None) -> None:
    """Log "Worker Metrics Report" every `interval_ms`; None: METRICS_INTERVAL, else a minute."""
    default_client().start_metrics_reporting(interval_ms)


def stop_metrics_reporting() -> None:
    """Stop the periodic report; nothing happens where there is none."""
    default_client().stop_metrics_reporting()


def reset_metrics() -> bool:
    """Begin again at zero; False when the service is not there."""
    return default_client().reset_metrics()


def flush(timeout: float = 5.0) -> bool:
    """Send what waits; True when the service has acknowledged everything within `timeout` s."""
    return default_client().flush(timeout)
