"""CapturingClient: what users put into their own tests."""

from __future__ import annotations

import threading
from decimal import Decimal

import pytest

import orbit_worker
from orbit_worker import DerivedMetrics
from orbit_worker.testing import CapturingClient, capture


def test_capture_stands_behind_the_functions_and_then_no_more():
    before = orbit_worker._client
    with capture() as client:
        orbit_worker.record_run(5, False, pipeline="send")
        assert orbit_worker.default_client() is client
    assert orbit_worker._client is before
    assert [(r.pipeline, r.duration_ms, r.success) for r in client.runs] == [("send", 5, False)]


def test_capture_ends_even_when_the_test_fails():
    before = orbit_worker._client
    with pytest.raises(AssertionError), capture():
        raise AssertionError

    assert orbit_worker._client is before


def test_it_keeps_runs_and_not_their_starts():
    client = CapturingClient()
    with client.track("job", id="r1"):
        pass

    assert [run.detail["id"] for run in client.runs] == ["r1"]


def our_threads() -> set[threading.Thread]:
    """Those of clients; a service in this process has others, which come and go."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("orbit-worker")}


def test_it_starts_no_thread_and_sends_nothing(service):
    before = our_threads()
    client = CapturingClient()
    for _ in range(60_000):
        client.record_run(1, True)

    assert len(client.runs) == 60_000
    assert our_threads() <= before
    assert client.flush()
    assert client.close()
    assert service.ask("worker.list") == []


def test_it_checks_as_the_real_one_does():
    with pytest.raises(TypeError):
        CapturingClient().record_run(1, "yes")


def test_its_metrics_are_those_of_what_it_kept():
    client = CapturingClient()
    for duration_ms, success in [(10, True), (20, True), (60, False)]:
        client.record_run(duration_ms, success)

    assert client.get_metrics() == DerivedMetrics(
        total_runs=3,
        total_succeeded=2,
        total_failed=1,
        error_rate=33.33,
        success_rate=66.67,
        avg_execution_time=30,
        min_execution_time=10,
        max_execution_time=60,
    )


def test_an_attempt_that_will_be_retried_is_kept_and_is_no_run():
    client = CapturingClient()
    client.record_run(90, False, id="r1", final=False)
    client.record_run(10, True, id="r1", attempt=2)

    assert [run.detail["id"] for run in client.runs] == ["r1", "r1"]
    assert client.get_metrics() == DerivedMetrics(
        total_runs=1,
        total_succeeded=1,
        success_rate=100.0,
        avg_execution_time=10,
        min_execution_time=10,
        max_execution_time=10,
    )


@pytest.mark.parametrize(
    ("duration_ms", "whole"),
    [(0.499, 0), (0.5, 1), (1.5, 2), (2.5, 3), (Decimal("2.5"), 3)],
    ids=str,
)
def test_its_times_are_rounded_half_up(duration_ms, whole):
    client = CapturingClient()
    client.record_run(duration_ms, True)
    answer = client.get_metrics()

    times = (answer.avg_execution_time, answer.min_execution_time, answer.max_execution_time)
    assert times == (whole, whole, whole)


def test_its_average_is_of_the_durations_and_not_of_rounded_ones():
    client = CapturingClient()
    for duration_ms in (0.5, 0.5, 0.4):
        client.record_run(duration_ms, True)

    assert client.get_metrics().avg_execution_time == 0


@pytest.mark.parametrize(
    ("failed", "runs", "error_rate", "success_rate"),
    [(1, 800, 0.13, 99.88), (3, 800, 0.38, 99.63), (1, 3, 33.33, 66.67), (2, 2, 100.0, 0.0)],
)
def test_its_rates_have_two_decimals_half_up(failed, runs, error_rate, success_rate):
    client = CapturingClient()
    for number in range(runs):
        client.record_run(1, number >= failed)
    answer = client.get_metrics()

    assert (answer.error_rate, answer.success_rate) == (error_rate, success_rate)


def test_its_numbers_are_those_that_the_service_gives(client, service, patient):
    captured = CapturingClient()
    for recorder in (client, captured):
        for number in range(800):
            recorder.record_run(number + 0.5, number != 7)
        recorder.record_run(9_000, False, final=False)
    answer = client.get_metrics()

    times_of_a_life = {"uptime": 0, "uptime_formatted": "0s", "runs_per_hour": 0.0}
    assert captured.get_metrics() == answer._replace(**times_of_a_life)
    assert answer.total_runs == 800


@pytest.mark.parametrize("forget", [CapturingClient.clear, CapturingClient.reset_metrics])
def test_it_forgets_when_told(forget):
    client = CapturingClient()
    client.record_run(1, True)
    forget(client)

    assert client.runs == []
    assert client.get_metrics() == DerivedMetrics()


def test_the_raw_counters_tell_the_same_runs() -> None:
    client = CapturingClient()
    for duration_ms, success in ((1, True), (2.5, False)):
        client.record_run(duration_ms, success)

    raw = client.get_metrics_snapshot().raw
    assert (raw.runs_executed, raw.runs_succeeded, raw.runs_failed) == (2, 1, 1)
    assert (raw.total_execution_time, raw.min_execution_time, raw.max_execution_time) == (4, 1, 3)
