"""One word and one sentence about the state of things."""

from __future__ import annotations

import pytest

from builders import HOUR, MINUTE, MS, SECOND, T0, a_batch, a_record, a_session, a_start
from orbit_rpc_schema.procedures import Health
from orbit_service.core.collector import Collector
from orbit_service.core.health import MAX_STUCK, health


def looked_at(collector: Collector, now_ms: int = T0) -> Health:
    return health(collector, stuck_after_ms=10 * MINUTE, now_ms=now_ms)


def verdict(collector: Collector, now_ms: int = T0) -> tuple[str, str]:
    found = looked_at(collector, now_ms)
    return found.status, found.message


def has_run(collector: Collector, runs: int, failed: int, at: int = T0) -> None:
    batch = a_batch(*[MS] * runs, failed=list(range(failed)), at=at)
    collector.record(a_session(collector), a_record(1, batch), T0)


# ---------------------------------------------------------------- healthy


def test_before_the_first_worker_it_is_healthy(collector: Collector) -> None:
    assert verdict(collector) == ("healthy", "No worker has connected yet")
    assert looked_at(collector).last_activity is None


def test_idle_is_healthy(collector: Collector) -> None:
    a_session(collector)

    assert verdict(collector) == ("healthy", "1 worker connected, idle")


def test_busy_is_healthy(collector: Collector) -> None:
    has_run(collector, 20, failed=0)
    a_session(collector, "s2", worker="crawler")

    assert verdict(collector) == ("healthy", "2 workers connected, 20 runs in the last hour")


def test_when_all_said_goodbye_it_is_healthy(collector: Collector) -> None:
    collector.disconnect(a_session(collector), "done", T0 + SECOND)

    assert verdict(collector) == (
        "healthy",
        "No worker is connected; all of them said goodbye",
    )
    assert looked_at(collector).last_activity == T0 + SECOND


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("failed", "status", "message"),
    [
        (99, "healthy", "1 worker connected, 1000 runs in the last hour"),
        (100, "warning", "10.00 % of the last hour's 1000 runs failed"),
        (499, "warning", "49.90 % of the last hour's 1000 runs failed"),
        (500, "error", "50.00 % of the last hour's 1000 runs failed"),
        (1000, "error", "100.00 % of the last hour's 1000 runs failed"),
    ],
)
def test_a_tenth_that_fails_is_a_warning_and_half_an_error(
    collector: Collector, failed: int, status: str, message: str
) -> None:
    has_run(collector, 1000, failed)

    assert verdict(collector) == (status, message)


def test_failures_are_those_of_the_last_hour(collector: Collector) -> None:
    has_run(collector, 10, failed=10, at=T0 - HOUR - MINUTE)

    assert looked_at(collector).status == "healthy"


# ---------------------------------------------------------------- lost workers


def test_a_lost_worker_is_an_error_until_one_of_its_name_comes(collector: Collector) -> None:
    collector.lose(a_session(collector), T0)
    assert verdict(collector) == ("error", "Worker mailer was lost and has not come back")

    a_session(collector, "s2")
    assert looked_at(collector).status == "healthy"


def test_a_goodbye_is_no_loss_whatever_its_words(collector: Collector) -> None:
    collector.disconnect(a_session(collector), "lost", T0)

    assert verdict(collector) == ("healthy", "No worker is connected; all of them said goodbye")


def test_one_lost_process_of_several_is_no_error(collector: Collector) -> None:
    a_session(collector, "s2")
    collector.lose(a_session(collector), T0)

    assert looked_at(collector).status == "healthy"


# ---------------------------------------------------------------- silence


def test_a_worker_that_is_silent_for_30_seconds_is_warned_of(collector: Collector) -> None:
    a_session(collector)

    assert looked_at(collector, T0 + 30 * SECOND - 1).status == "healthy"
    assert verdict(collector, T0 + 30 * SECOND) == (
        "warning",
        "Worker mailer has been silent for more than 30 s",
    )


# ---------------------------------------------------------------- stuck runs


def test_a_run_of_more_than_ten_minutes_is_stuck(collector: Collector) -> None:
    running = [a_start("new", started_at=T0 - 9 * MINUTE), a_start("old", started_at=T0 - HOUR)]
    a_session(collector, running=running)
    found = looked_at(collector)

    assert (found.status, found.message) == ("warning", "1 in flight for more than 10 min")
    assert [run.model_dump(by_alias=True) for run in found.stuck_runs] == [
        {"id": "old", "worker": "mailer", "pipeline": "send", "startedAt": T0 - HOUR}
    ]


def test_when_a_run_is_stuck_is_a_setting(collector: Collector) -> None:
    a_session(collector, running=[a_start(started_at=T0 - MINUTE)])

    assert health(collector, stuck_after_ms=30 * SECOND, now_ms=T0).status == "warning"
    assert health(collector, stuck_after_ms=2 * MINUTE, now_ms=T0).status == "healthy"


def test_of_many_stuck_runs_the_oldest_are_told_and_all_are_counted(collector: Collector) -> None:
    running = [a_start(str(n), started_at=T0 - HOUR - n) for n in range(MAX_STUCK + 1)]
    a_session(collector, running=running)
    found = looked_at(collector)

    assert found.message.startswith("101 in flight")
    assert [run.id for run in found.stuck_runs] == [str(n) for n in range(MAX_STUCK, 0, -1)]


# ---------------------------------------------------------------- several at once


def test_what_is_worse_comes_first_and_the_rest_is_still_said(collector: Collector) -> None:
    has_run(collector, 10, failed=1)
    collector.lose(a_session(collector, "s2", worker="crawler"), T0)
    found = looked_at(collector)

    assert found.status == "error"
    assert found.message == (
        "Worker crawler was lost and has not come back; 10.00 % of the last hour's 10 runs failed"
    )


def test_of_many_the_first_few_are_named(collector: Collector) -> None:
    for n in range(8):
        a_session(collector, f"s{n}", worker=f"w{n}")

    message = looked_at(collector, T0 + MINUTE).message
    assert message.count("has been silent") == 5
    assert message.endswith("; so it is with 3 more")
