"""
A client for your own tests: it keeps what was recorded instead of sending it.

    from orbit_worker.testing import capture

    def test_my_job():
        with capture() as client:
            my_job()
        assert [run.success for run in client.runs] == [True]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import orbit_worker
from orbit_worker.buffer import Result
from orbit_worker.client import MetricsClient
from orbit_worker.metrics import DerivedMetrics, MetricsSnapshot
from orbit_worker.sender import Sender


class _Unsent(Sender):
    """Nobody goes to send, however much there is."""

    def nudge(self) -> None:
        pass

    def make_room(self) -> bool:
        return True


class CapturingClient(MetricsClient):
    """A MetricsClient without a service: nothing is opened, started or sent."""

    def __init__(self, worker: str = "captured") -> None:
        super().__init__(worker=worker, socket="/nowhere", environ={})

    def _begin_session(self) -> None:
        super()._begin_session()
        self._sender = _Unsent(self.socket, self._buffer, self._hello)
        self._sender.parked = False
        self._will_leave = True

    @property
    def runs(self) -> list[Result]:
        """What was recorded, oldest first: pipeline, duration_ms, success, queue, detail."""
        return list(self._buffer.results())

    def clear(self) -> None:
        """Forget what was recorded."""
        self._buffer.open.clear()

    def flush(self, timeout: float = 0.0) -> bool:  # noqa: ARG002  # nothing is waited for
        return True

    def reset_metrics(self, timeout: float = 0.0) -> bool:  # noqa: ARG002
        self.clear()
        return True

    def connect(self) -> None:
        pass

    def close(self, timeout: float = 0.0) -> bool:  # noqa: ARG002
        return True

    def _snapshot(self) -> MetricsSnapshot | None:
        """Counts of what was captured; the times of a life are the service's to tell."""
        runs = self.runs
        failed = sum(not run.success for run in runs)
        durations = [round(run.duration_ms) for run in runs]
        return MetricsSnapshot(
            derived=DerivedMetrics(
                total_runs=len(runs),
                total_failed=failed,
                total_succeeded=len(runs) - failed,
                error_rate=round(100 * failed / len(runs), 2) if runs else 0.0,
                success_rate=round(100 - 100 * failed / len(runs), 2) if runs else 0.0,
                avg_execution_time=round(sum(durations) / len(runs)) if runs else 0,
                min_execution_time=min(durations, default=0),
                max_execution_time=max(durations, default=0),
            )
        )


@contextmanager
def capture() -> Iterator[CapturingClient]:
    """Put a CapturingClient behind the functions of `orbit_worker` for a while."""
    before = orbit_worker._client
    orbit_worker._client = client = CapturingClient()
    try:
        yield client
    finally:
        orbit_worker._client = before
