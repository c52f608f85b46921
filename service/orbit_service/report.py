"""The periodic line of the service: the metrics of all connected workers together."""

from __future__ import annotations

import json
from collections.abc import Callable

from loguru import logger

from orbit_rpc_schema.procedures import Metrics
from orbit_rpc_schema.wire import Json


def report_fields(metrics: Metrics) -> Json:
    """The report of the system that this replaces, field for field, and its scope."""
    return {
        "uptime": metrics.uptime,
        "totalRuns": metrics.total_runs,
        "succeeded": metrics.succeeded,
        "failed": metrics.failed,
        "errorRate": f"{metrics.error_rate:.2f}%",
        "successRate": f"{metrics.success_rate:.2f}%",
        "runsPerHour": f"{metrics.runs_per_hour:.2f}",
        "avgDuration": f"{metrics.avg_execution_time}ms",
        "minDuration": f"{metrics.min_execution_time}ms",
        "maxDuration": f"{metrics.max_execution_time}ms",
        "scope": "service",
    }


class Reporter:
    """Writes the line at each call, but while no worker is connected only once."""

    def __init__(self, metrics: Callable[[], Metrics]) -> None:
        self._metrics = metrics
        self._said_idle = False

    def report(self) -> None:
        metrics = self._metrics()
        if not metrics.connected and self._said_idle:
            return
        self._said_idle = not metrics.connected
        logger.info("Worker Metrics Report {}", json.dumps(report_fields(metrics)))
