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
from orbit_worker.metrics import DerivedMetrics, MetricsSnapshot, RawMetrics
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
        """What was recorded, oldest first: pipeline, duration_ms, success, queue, detail.

        A run that nobody measured has `detail["untimed"]`.
        Attempts that will be retried too (`detail["final"]` is False); metrics count none of them.
        """
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
        runs = [run for run in self.runs if _ends_a_run(run)]
        failed = sum(not run.success for run in runs)
        # As the wire has them: sums and bounds are of whole microseconds.
        durations_us = [int(float(run.duration_ms) * 1000 + 0.5) for run in runs if _timed(run)]
        shortest = _rounded(min(durations_us, default=0), 1000)
        longest = _rounded(max(durations_us, default=0), 1000)
        return MetricsSnapshot(
            raw=RawMetrics(
                runs_executed=len(runs),
                runs_succeeded=len(runs) - failed,
                runs_failed=failed,
                total_execution_time=_rounded(sum(durations_us), 1000),
                min_execution_time=shortest,
                max_execution_time=longest,
            ),
            derived=DerivedMetrics(
                total_runs=len(runs),
                total_failed=failed,
                total_succeeded=len(runs) - failed,
                error_rate=_percent(failed, len(runs)),
                success_rate=_percent(len(runs) - failed, len(runs)),
                avg_execution_time=_rounded(sum(durations_us), len(durations_us) * 1000),
                min_execution_time=shortest,
                max_execution_time=longest,
            ),
        )


def _ends_a_run(result: Result) -> bool:
    """False for an attempt that will be retried: the run itself is still to end."""
    return (result.detail or {}).get("final", True) is not False


def _timed(result: Result) -> bool:
    return not (result.detail or {}).get("untimed", False)


# The service's arithmetic over again, because nothing here may import it; a test
# holds the two together.
def _percent(part: int, whole: int) -> float:
    """100 · part / whole with two decimals, half up; 0 where there is nothing."""
    return _rounded(100 * 100 * part, whole) / 100


def _rounded(numerator: int, denominator: int) -> int:
    """To the nearest whole number, half up; 0 where there is nothing."""
    return (2 * numerator + denominator) // (2 * denominator) if denominator else 0


@contextmanager
def capture() -> Iterator[CapturingClient]:
    """Put a CapturingClient behind the functions of `orbit_worker` for a while."""
    before = orbit_worker._client
    orbit_worker._client = client = CapturingClient()
    try:
        yield client
    finally:
        orbit_worker._client = before
