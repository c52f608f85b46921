"""The periodic line "Worker Metrics Report" of this worker."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable

from orbit_rpc_schema.wire import Json
from orbit_worker.metrics import DerivedMetrics

log = logging.getLogger("orbit_worker")


def report_fields(metrics: DerivedMetrics) -> Json:
    """The fields of the report, as texts with their units where people read them."""
    return {
        "uptime": metrics.uptime_formatted,
        "totalRuns": metrics.total_runs,
        "succeeded": metrics.total_succeeded,
        "failed": metrics.total_failed,
        "errorRate": f"{metrics.error_rate:.2f}%",
        "successRate": f"{metrics.success_rate:.2f}%",
        "runsPerHour": f"{metrics.runs_per_hour:.2f}",
        "avgDuration": f"{metrics.avg_execution_time}ms",
        "minDuration": f"{metrics.min_execution_time}ms",
        "maxDuration": f"{metrics.max_execution_time}ms",
        "scope": "worker",
    }


class Reporter:
    """Logs the line every `interval_ms` in a thread of its own, until stopped."""

    def __init__(self, read: Callable[[], DerivedMetrics | None], interval_ms: int) -> None:
        self.last_report_at_ms: int | None = None
        self._read = read
        self._interval = interval_ms / 1000
        self._stopped = threading.Event()
        self._away = False
        threading.Thread(target=self._run, name="orbit-worker-report", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            self.report()

    def report(self) -> None:
        """One line. Without the service there are no numbers to tell, and zeroes would lie."""
        metrics = self._read()
        if metrics is not None:
            self.last_report_at_ms = time.time_ns() // 1_000_000
            log.info("Worker Metrics Report %s", json.dumps(report_fields(metrics)))
        elif not self._away:
            log.warning("Worker Metrics Report left out: the metrics service does not answer")
        self._away = metrics is None
