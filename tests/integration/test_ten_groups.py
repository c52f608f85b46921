"""The ten groups of the system that this replaces, on the public interface and a real service."""

from __future__ import annotations

import itertools
import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import floor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import orbit_worker
from builders import HOUR, MINUTE, SECOND, T0, until
from conftest import RunningService
from orbit_rpc_schema.wire import connect_params, encode, record_line, request
from orbit_worker.client import MetricsClient


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """An answer that comes late is one too; what it says is asked for here."""
    monkeypatch.setattr("orbit_worker.client.ANSWER_SECONDS", 20.0)
    monkeypatch.setattr(MetricsClient.reset_metrics, "__defaults__", (20.0,))


@pytest.fixture
def still(tmp_path):
    """A service whose clock stands, so that nothing gets older while a slow machine looks."""
    running = RunningService(tmp_path / "worker.sock", clock=lambda: T0)
    running.start()
    yield running
    running.close()


def metrics(service, **selection) -> dict[str, Any]:
    return service.ask("worker.metrics", selection)


def record(client, *durations_ms, success=True, **more):
    for duration_ms in durations_ms:
        client.record_run(duration_ms, success, **more)
    assert client.flush()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextmanager
def a_worker_since(service, ago_ms: int, *batches: tuple[int, list[int]]) -> Iterator[None]:
    """A worker that began so long ago, with batches of (how long ago, durations in µs)."""
    now = service._clock()
    hello = connect_params(session="s1", worker="old", started_at_ms=now - ago_ms)
    columns = [{"pipeline": "p", "at": now - ago, "durationUs": us} for ago, us in batches]
    recorded = sum(len(us) for _ago, us in batches)
    line = record_line(seq=1, recorded=recorded, dropped={}, batches=columns)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(service.socket))
        connection.sendall(encode(request(1, "worker.connect", hello)) + line)
        until(lambda: metrics(service, worker="old")["totalRuns"] == recorded)
        yield


# ---------------------------------------------------------------- 1 basic recording


def test_successes_and_failures_are_counted(client, service):
    record(client, 100, 200, 300)
    record(client, 400, success=False)

    m = metrics(service)
    assert (m["totalRuns"], m["succeeded"], m["failed"]) == (4, 3, 1)
    assert (m["successRate"], m["errorRate"]) == (75.0, 25.0)
    assert m["avgExecutionTime"] == 250


@pytest.mark.parametrize(
    ("failed", "runs", "error_rate", "success_rate"),
    [(1, 21, 4.76, 95.24), (1, 3, 33.33, 66.67), (2, 3, 66.67, 33.33), (1, 800, 0.13, 99.88)],
)
def test_rates_are_percent_with_two_decimals_half_up(
    client, service, failed, runs, error_rate, success_rate
):
    record(client, *[1] * (runs - failed))
    record(client, *[1] * failed, success=False)

    m = metrics(service)
    assert (m["errorRate"], m["successRate"]) == (error_rate, success_rate)


def test_the_last_run_time_is_that_of_the_newest_run(client, service):
    before = now_ms()
    record(client, 1)

    assert before <= metrics(service)["lastRunTime"] <= now_ms()


# ---------------------------------------------------------------- 2 min and max


def test_shortest_and_longest_run(client, service):
    record(client, 234, 3456, 1250)

    m = metrics(service)
    assert (m["minExecutionTime"], m["maxExecutionTime"]) == (234, 3456)


def test_a_single_run_is_shortest_longest_and_average(client, service):
    record(client, 500)

    m = metrics(service)
    assert m["minExecutionTime"] == m["maxExecutionTime"] == m["avgExecutionTime"] == 500


def test_failures_count_for_shortest_and_longest(client, service):
    record(client, 100)
    record(client, 1, 900, success=False)

    m = metrics(service)
    assert (m["minExecutionTime"], m["maxExecutionTime"]) == (1, 900)


# ---------------------------------------------------------------- 3 uptime text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0, "0s"), (45, "45s"), (120, "2m"), (3600, "1h"), (3601, "1h 1s")],
        *[(5025, "1h 23m 45s"), (86_400, "1d"), (694_861, "8d 1h 1m 1s")],
    ],
)
def test_the_uptime_has_the_parts_that_are_not_zero(still, seconds, text):
    with a_worker_since(still, seconds * SECOND):
        m = metrics(still)

    assert (m["uptime"], m["uptimeSeconds"]) == (text, seconds)


# ---------------------------------------------------------------- 4 runs per hour


@pytest.mark.parametrize(
    ("runs", "seconds", "rate"),
    [
        pytest.param(150, 5025, 107.46, id="over the uptime"),
        pytest.param(2000, 7200, 1000.0, id="more than the recent detail holds"),
        pytest.param(8, 0, 480.0, id="a first minute counts as a whole one"),
    ],
)
def test_runs_per_hour(still, runs, seconds, rate):
    with a_worker_since(still, seconds * SECOND, (0, [1000] * runs)):
        assert metrics(still)["runsPerHour"] == rate


# ---------------------------------------------------------------- 5 snapshot


def test_the_snapshot_has_raw_counters_and_what_is_derived(client, service):
    record(client, 100, 300)
    record(client, 200, success=False)

    snapshot = client.get_metrics_snapshot()
    raw, derived = snapshot.raw, snapshot.derived
    assert (raw.runs_executed, raw.runs_succeeded, raw.runs_failed) == (3, 2, 1)
    assert (raw.total_execution_time, raw.min_execution_time, raw.max_execution_time) == (
        *(600, 100, 300),
    )
    assert [(e.duration, e.success) for e in raw.recent_executions] == [
        *[(100, True), (300, True), (200, False)]
    ]
    assert (derived.total_runs, derived.success_rate, derived.avg_execution_time) == (3, 66.67, 200)
    assert raw.worker_start_time <= raw.last_run_time <= snapshot.timestamp


def test_the_snapshot_and_the_metrics_say_the_same(client, service):
    record(client, 5, 7)

    derived, m = client.get_metrics(), metrics(service)
    assert derived.total_runs == m["totalRuns"]
    assert derived.runs_per_hour == m["runsPerHour"]
    assert derived.max_execution_time == m["maxExecutionTime"]


def test_the_snapshot_cannot_be_changed(client, service):
    with pytest.raises(AttributeError):
        client.get_metrics().total_runs = 5


# ---------------------------------------------------------------- 6 reset


def test_reset_begins_again_at_zero_and_keeps_what_was_as_the_last_life(client, service):
    record(client, 1, 2)
    record(client, 3, success=False)
    assert client.reset_metrics()

    m = metrics(service)
    assert (m["totalRuns"], m["maxExecutionTime"], m["connected"]) == (0, 0, True)
    last = m["lastLife"]
    assert (last["totalRuns"], last["failed"], last["reason"]) == (3, 1, "reset")


def test_reset_takes_with_it_what_was_recorded_before(client, service):
    client.record_run(1, True)
    client.reset_metrics()
    record(client, 7)

    assert (metrics(service)["totalRuns"], metrics(service)["minExecutionTime"]) == (1, 7)


def test_reset_leaves_another_worker_alone(client, service):
    with a_worker_since(service, 0, (0, [1000])):
        record(client, 1)
        client.reset_metrics()

        assert metrics(service, worker="old")["totalRuns"] == 1


def test_reset_without_a_service_says_so(client):
    assert client.reset_metrics(timeout=0.1) is False


# ---------------------------------------------------------------- 7 periodic reporting


def test_the_report_comes_at_its_interval_and_ends_when_stopped(client, service, caplog):
    caplog.set_level(logging.INFO, "orbit_worker")
    record(client, 1250)
    client.start_metrics_reporting(1000)
    line = until(lambda: [r.getMessage() for r in caplog.records if "Report" in r.getMessage()])[0]
    client.stop_metrics_reporting()

    said = json.loads(line.removeprefix("Worker Metrics Report "))
    assert (said["totalRuns"], said["avgDuration"], said["scope"]) == (1, "1250ms", "worker")
    assert client._reporter is None


def test_the_interval_comes_from_the_environment(service):
    environ = {"METRICS_INTERVAL": "1500", "ORBIT_SOCKET": str(service.socket)}
    client = MetricsClient(environ=environ)
    client.start_metrics_reporting()

    assert client._reporter._interval == 1.5
    client.close()


# ---------------------------------------------------------------- 8 edge cases


def test_no_run_at_all_is_zeroes(client, service):
    client.connect()
    m = until(lambda: metrics(service) if metrics(service)["connected"] else None)

    assert (m["totalRuns"], m["successRate"], m["errorRate"], m["runsPerHour"]) == (0, 0, 0, 0)
    assert (m["minExecutionTime"], m["maxExecutionTime"], m["p99"]) == (0, 0, 0)
    assert m["lastRunTime"] is None


def test_no_worker_is_zeroes_and_no_error(service):
    m = metrics(service)

    assert (m["uptime"], m["uptimeSeconds"], m["totalRuns"], m["connected"]) == ("0s", 0, 0, False)
    assert (m["workerStartTime"], m["lastRunTime"], m["lastLife"]) == (None, None, None)


def test_a_name_that_was_never_seen_is_not_known(service):
    assert metrics(service, worker="nobody")["known"] is False


@pytest.mark.parametrize(("duration_ms", "answer"), [(0, 0), (0.4, 0), (0.5, 1), (1e9, 10**9)])
def test_durations_of_nothing_and_of_days(client, service, duration_ms, answer):
    record(client, duration_ms)

    m = metrics(service)
    assert m["minExecutionTime"] == m["maxExecutionTime"] == m["avgExecutionTime"] == answer


def test_all_failed(client, service):
    record(client, 1, 2, success=False)

    assert (metrics(service)["errorRate"], metrics(service)["successRate"]) == (100.0, 0.0)


def test_a_goodbye_ends_the_life_and_the_numbers_stay_in_it(client, service):
    record(client, 1, 2)
    client.close()

    m = until(lambda: m if not (m := metrics(service))["connected"] else None)
    assert (m["totalRuns"], m["known"], m["lastLife"]["totalRuns"]) == (0, True, 2)


def test_a_retry_is_counted_beside_its_run(client, service):
    client.record_run(10, False, id="r1", final=False)
    record(client, 30, id="r1", attempt=2)

    m = metrics(service)
    assert (m["totalRuns"], m["failed"], m["retries"], m["avgExecutionTime"]) == (1, 0, 1, 30)


def test_a_tracked_run_is_counted_once_and_is_no_retry(client, service):
    with client.track("job"):
        until(lambda: service.ask("worker.recentRuns", {"status": "running"}))
    client.flush()

    m = metrics(service)
    assert (m["totalRuns"], m["retries"]) == (1, 0)
    assert service.ask("worker.recentRuns", {"status": "running"}) == []


# ---------------------------------------------------------------- 9 functions


@pytest.fixture
def functions(service, monkeypatch):
    """The functions of orbit_worker, with a client of this test behind them."""
    monkeypatch.setattr(orbit_worker, "_client", MetricsClient(worker="functions"))
    yield orbit_worker
    orbit_worker._client.close()


async def test_the_functions_of_the_module_share_one_client(functions, service):
    functions.record_run(10, True, pipeline="a")
    with functions.track("b"):
        pass
    assert functions.flush()

    assert functions.get_metrics().total_runs == 2
    assert (await functions.get_metrics_async()).total_runs == 2
    assert functions.get_metrics_snapshot().raw.runs_executed == 2
    assert metrics(service, worker="functions", pipeline="a")["totalRuns"] == 1
    assert functions.reset_metrics()
    assert functions.get_metrics().total_runs == 0


def test_the_functions_report_and_stop(functions):
    functions.start_metrics_reporting(5_000)
    assert functions.default_client()._reporter is not None
    functions.stop_metrics_reporting()

    assert functions.default_client()._reporter is None


def test_get_metrics_tells_what_was_recorded_just_before(functions):
    functions.record_run(10, False)

    assert functions.get_metrics().total_failed == 1


# ---------------------------------------------------------------- 10 recent window


def recent(service) -> list[dict[str, Any]]:
    return service.ask("worker.snapshot", {"worker": "old"})["raw"]["recentExecutions"]


def test_the_recent_executions_are_the_newest_thousand_and_the_totals_are_all(service):
    with a_worker_since(service, HOUR, (1000, list(range(0, 1_200_000, 1000)))):
        durations = [execution["duration"] for execution in recent(service)]

        assert durations == list(range(200, 1200))
        assert metrics(service)["totalRuns"] == 1200


def test_the_recent_executions_are_the_last_hours(service):
    batches = [(61 * MINUTE, [1000]), (59 * MINUTE, [2000]), (0, [3000])]
    with a_worker_since(service, 2 * HOUR, *batches):
        assert [execution["duration"] for execution in recent(service)] == [2, 3]
        assert metrics(service)["totalRuns"] == 3


def test_a_recent_execution_has_time_duration_and_outcome(client, service):
    before = now_ms()
    record(client, 5, success=False)

    [execution] = service.ask("worker.snapshot")["raw"]["recentExecutions"]
    assert (execution["duration"], execution["success"]) == (5, False)
    assert before <= execution["timestamp"] <= now_ms()


# ---------------------------------------------------------------- to the digit


numbers = itertools.count()


def half_up(value: Fraction, decimals: int = 0) -> float:
    return floor(value * 10**decimals + Fraction(1, 2)) / 10**decimals


def recomputed(runs: list[tuple[float, bool]]) -> dict[str, float]:
    """The answer by plain fractions over the runs, as DESIGN.md words it."""
    us = [floor(Fraction(duration_ms * 1000) + Fraction(1, 2)) for duration_ms, _ok in runs]
    failed = sum(not ok for _duration, ok in runs)
    share = Fraction(100 * failed, len(runs))
    return {
        "totalRuns": len(runs),
        "succeeded": len(runs) - failed,
        "failed": failed,
        "errorRate": half_up(share, 2),
        "successRate": half_up(100 - share, 2),
        "avgExecutionTime": half_up(Fraction(sum(us), len(us) * 1000)),
        "minExecutionTime": half_up(Fraction(min(us), 1000)),
        "maxExecutionTime": half_up(Fraction(max(us), 1000)),
        "runsPerHour": half_up(Fraction(len(runs) * 3600, 60), 2),
    }


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**10).map(lambda us: us / 1000), st.booleans()),
        min_size=1,
        max_size=60,
    )
)
def test_the_answer_agrees_to_the_digit_with_a_plain_recomputation(service, runs):
    worker = f"property {next(numbers)}"
    client = MetricsClient(socket=service.socket, worker=worker)
    for duration_ms, success in runs:
        client.record_run(duration_ms, success)
    client.flush()
    m = metrics(service, worker=worker)
    client.close()

    assert {name: m[name] for name in recomputed(runs)} == recomputed(runs)
