"""CapturingClient: what users put into their own tests."""

from __future__ import annotations

import threading

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


def test_it_starts_no_thread_and_sends_nothing(service):
    before = threading.active_count()
    client = CapturingClient()
    for _ in range(60_000):
        client.record_run(1, True)

    assert len(client.runs) == 60_000
    assert threading.active_count() == before
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


@pytest.mark.parametrize("forget", [CapturingClient.clear, CapturingClient.reset_metrics])
def test_it_forgets_when_told(forget):
    client = CapturingClient()
    client.record_run(1, True)
    forget(client)

    assert client.runs == []
    assert client.get_metrics() == DerivedMetrics()
