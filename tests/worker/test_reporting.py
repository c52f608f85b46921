"""The periodic line "Worker Metrics Report"."""

from __future__ import annotations

import json
import logging
import threading

import pytest

from builders import until
from orbit_worker import DerivedMetrics
from orbit_worker import sender as sender_module
from orbit_worker.reporting import Reporter, report_fields

NUMBERS = DerivedMetrics(
    error_rate=4.76,
    success_rate=95.24,
    runs_per_hour=480.0,
    avg_execution_time=1250,
    min_execution_time=234,
    max_execution_time=3456,
    uptime=5025,
    uptime_formatted="1h 23m 45s",
    total_runs=21,
    total_succeeded=20,
    total_failed=1,
)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "orbit_worker")
    return lambda: [r.getMessage() for r in caplog.records if "Report" in r.getMessage()]


def test_the_report_says_rates_and_durations_with_their_units():
    assert report_fields(NUMBERS) == {
        "uptime": "1h 23m 45s",
        "totalRuns": 21,
        "succeeded": 20,
        "failed": 1,
        "errorRate": "4.76%",
        "successRate": "95.24%",
        "runsPerHour": "480.00",
        "avgDuration": "1250ms",
        "minDuration": "234ms",
        "maxDuration": "3456ms",
        "scope": "worker",
    }


def test_a_reporter_writes_the_line_at_each_interval_until_stopped(lines):
    reporter = Reporter(lambda: NUMBERS, interval_ms=10)
    until(lambda: len(lines()) >= 3)
    reporter.stop()
    until(lambda: not [t for t in threading.enumerate() if t.name == "orbit-worker-report"])

    text = lines()[0].removeprefix("Worker Metrics Report ")
    assert json.loads(text) == report_fields(NUMBERS)
    assert reporter.last_report_at_ms is not None


def test_while_the_service_is_away_one_line_says_so_each_time_it_goes(lines):
    reporter = Reporter(lambda: answers.pop(0), interval_ms=1_000_000)
    answers = [None, None, NUMBERS, None]
    for _ in range(4):
        reporter.report()
    reporter.stop()

    away = "Worker Metrics Report left out: the metrics service does not answer"
    assert [line == away for line in lines()] == [True, False, True]


def test_a_shorter_interval_than_a_second_is_refused(client):
    with pytest.raises(ValueError, match="at least 1000"):
        client.start_metrics_reporting(999)


def test_reporting_connects_the_worker_before_its_first_run(client, service):
    client.start_metrics_reporting()

    until(lambda: service.ask("worker.metrics", {"worker": "tests"})["connected"])
    client.stop_metrics_reporting()


def test_a_second_start_replaces_the_first(client):
    client.start_metrics_reporting(5_000)
    first = client._reporter
    client.start_metrics_reporting(5_000)

    assert first._stopped.is_set()
    assert not client._reporter._stopped.is_set()
    client.stop_metrics_reporting()


def test_to_stop_without_a_report_is_nothing(client):
    client.stop_metrics_reporting()


def test_a_heartbeat_tells_of_the_last_report(scripted, client, monkeypatch):
    monkeypatch.setattr(sender_module, "HEARTBEAT_SECONDS", 0.05)
    client.start_metrics_reporting()
    client._reporter.last_report_at_ms = 123

    until(lambda: 123 in [b.get("lastReportAt") for b in scripted.params("worker.heartbeat")])
    client.stop_metrics_reporting()
