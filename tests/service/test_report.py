"""The periodic line of the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from loguru import logger

from builders import MS, SECOND, T0, a_batch, a_record, a_session
from orbit_rpc_schema.procedures import Metrics, Selection
from orbit_service.core import snapshot
from orbit_service.core.collector import Collector
from orbit_service.report import Reporter, report_fields

PREFIX = "Worker Metrics Report "


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged, as it comes."""
    logged: list[str] = []
    sink = logger.add(lambda message: logged.append(message.record["message"]), level="INFO")
    yield logged
    logger.remove(sink)


def metrics(collector: Collector) -> Metrics:
    return snapshot.metrics(collector, Selection(), T0 + 5025 * SECOND)


def a_busy_collector() -> Collector:
    collector = Collector("node")
    batch = a_batch(*[158 * MS] * 149, 9 * MS, failed=[0])
    collector.record(a_session(collector), a_record(1, batch), T0)
    return collector


def test_the_report_holds_the_numbers_as_people_read_them() -> None:
    expected: dict[str, Any] = {
        "uptime": "1h 23m 45s",
        "totalRuns": 150,
        "succeeded": 149,
        "failed": 1,
        "errorRate": "0.67%",
        "successRate": "99.33%",
        "runsPerHour": "107.46",
        "avgDuration": "157ms",
        "minDuration": "9ms",
        "maxDuration": "158ms",
        "scope": "service",
    }

    assert report_fields(metrics(a_busy_collector())) == expected


def test_whole_rates_are_written_with_their_decimals() -> None:
    fields = report_fields(metrics(Collector("node")))

    assert (fields["errorRate"], fields["runsPerHour"]) == ("0.00%", "0.00")


def test_each_report_is_one_line_that_a_machine_can_read(lines: list[str]) -> None:
    collector = a_busy_collector()
    Reporter(lambda: metrics(collector)).report()

    (line,) = lines
    assert line.startswith(PREFIX)
    assert json.loads(line.removeprefix(PREFIX)) == report_fields(metrics(collector))


def test_while_a_worker_is_connected_there_is_a_line_each_time(lines: list[str]) -> None:
    collector = a_busy_collector()
    reporter = Reporter(lambda: metrics(collector))
    for _ in range(3):
        reporter.report()

    assert len(lines) == 3


def test_while_none_is_connected_there_is_one_line(lines: list[str]) -> None:
    reporter = Reporter(lambda: metrics(Collector("node")))
    for _ in range(3):
        reporter.report()

    assert len(lines) == 1


def test_after_each_time_that_workers_were_there_idleness_is_said_again(lines: list[str]) -> None:
    idle, busy = Collector("node"), a_busy_collector()
    turns = iter([idle, idle, busy, idle, idle])
    reporter = Reporter(lambda: metrics(next(turns)))
    for _ in range(5):
        reporter.report()

    assert [json.loads(line.removeprefix(PREFIX))["totalRuns"] for line in lines] == [0, 150, 0]
