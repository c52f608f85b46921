"""The answers, to the digit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import (
    HOUR,
    MINUTE,
    MS,
    SECOND,
    T0,
    a_batch,
    a_heartbeat,
    a_record,
    a_result,
    a_session,
    a_start,
    an_error,
)
from orbit_rpc_schema.messages import Progress, Step
from orbit_rpc_schema.procedures import (
    LedgerParams,
    Metrics,
    RecentRunsParams,
    RunView,
    Selection,
)
from orbit_service.core import snapshot
from orbit_service.core.collector import Collector
from orbit_service.core.stats import Stats, percent

DAY = 24 * HOUR


def metrics(collector: Collector, now_ms: int = T0, **selection: Any) -> Metrics:
    return snapshot.metrics(collector, Selection(**selection), now_ms)


def recent(collector: Collector, now_ms: int = T0, **params: Any) -> list[RunView]:
    return snapshot.recent_runs(collector, RecentRunsParams(**params), now_ms)


def has_run(collector: Collector, *durations_us: int, session: str = "s1", **fields: Any) -> None:
    """A worker that has run these; `failed` and the rest as in a batch."""
    worker = fields.pop("worker", "mailer")
    joined = collector.sessions.get(session) or a_session(collector, session, worker=worker)
    collector.record(joined, a_record(joined.acked + 1, a_batch(*durations_us, **fields)), T0)


# ---------------------------------------------------------------- worker.metrics


def test_the_numbers_of_a_life_to_the_digit(collector: Collector) -> None:
    has_run(collector, *[100 * MS] * 147, 2_499, 45_500, 9_000_500, failed=[0, 1, 149])

    assert metrics(collector, T0 + 5025 * SECOND).model_dump(by_alias=True) == {
        "uptime": "1h 23m 45s",
        "uptimeSeconds": 5025,
        "totalRuns": 150,
        "successRate": 98.0,
        "errorRate": 2.0,
        "runsPerHour": 107.46,
        "avgExecutionTime": 158,
        "minExecutionTime": 2,
        "maxExecutionTime": 9001,
        "succeeded": 147,
        "failed": 3,
        "workerStartTime": T0,
        "lastRunTime": T0,
        "timestamp": T0 + 5025 * SECOND,
        "connected": True,
        "known": True,
        "workersConnected": 1,
        "p50": 100,
        "p95": 100,
        "p99": 100,
        "retries": 0,
        "lastLife": None,
    }


ZEROES = {
    "uptime": "0s",
    "uptimeSeconds": 0,
    "totalRuns": 0,
    "successRate": 0.0,
    "errorRate": 0.0,
    "runsPerHour": 0.0,
    "avgExecutionTime": 0,
    "minExecutionTime": 0,
    "maxExecutionTime": 0,
    "succeeded": 0,
    "failed": 0,
    "workerStartTime": None,
    "lastRunTime": None,
    "timestamp": T0 + HOUR,
    "connected": False,
    "workersConnected": 0,
    "p50": 0,
    "p95": 0,
    "p99": 0,
    "retries": 0,
}


@given(st.lists(st.tuples(st.integers(0, 10**10), st.booleans()), min_size=1, max_size=8))
def test_each_run_shows_in_the_next_answer(runs: list[tuple[int, bool]]) -> None:
    """What is kept from answer to answer is that of the same runs."""
    collector, told = Collector("box"), Stats()
    for duration_us, failed in runs:
        has_run(collector, duration_us, failed=[0] if failed else [])
        told.add_runs([duration_us], int(failed), T0)

        for _ in range(2):
            m = metrics(collector)
            assert [m.p50, m.p95, m.p99] == told.quantiles_ms(0.50, 0.95, 0.99)
            assert (m.min_execution_time, m.max_execution_time) == (told.min_ms, told.max_ms)
            assert (m.avg_execution_time, m.failed) == (told.average_ms, told.failed)
            assert m.error_rate == percent(told.failed, told.runs)


def test_without_a_worker_every_number_is_zero(collector: Collector) -> None:
    answer = metrics(collector, T0 + HOUR).model_dump(by_alias=True)

    assert answer == {**ZEROES, "known": False, "lastLife": None}


def test_when_the_worker_has_left_what_was_last_is_in_last_life_alone(collector: Collector) -> None:
    has_run(collector, MS, MS, failed=[1])
    collector.disconnect(collector.sessions["s1"], "deploy", T0 + SECOND)
    answer = metrics(collector, T0 + HOUR).model_dump(by_alias=True)

    last = {"worker": "mailer", "endedAt": T0 + SECOND, "reason": "deploy"}
    assert answer == {
        **ZEROES,
        "known": True,
        "lastLife": {**last, "totalRuns": 2, "failed": 1},
    }


@pytest.mark.parametrize(
    ("selection", "known", "runs"),
    [
        pytest.param({}, True, 6, id="all"),
        pytest.param({"worker": "mailer"}, True, 3, id="a worker"),
        pytest.param({"pipeline": "send"}, True, 5, id="a pipeline of all workers"),
        pytest.param({"worker": "mailer", "pipeline": "send"}, True, 2, id="both"),
        pytest.param({"worker": "crawler", "pipeline": "fetch"}, False, 0, id="another's pipeline"),
        pytest.param({"worker": "nobody"}, False, 0, id="a worker that was never seen"),
        pytest.param({"pipeline": "nothing"}, False, 0, id="a pipeline that was never seen"),
    ],
)
def test_a_question_is_about_what_it_selects(
    collector: Collector, selection: dict[str, str], known: bool, runs: int
) -> None:
    has_run(collector, MS, MS)
    has_run(collector, MS, pipeline="fetch")
    has_run(collector, MS, MS, MS, session="s2", worker="crawler")

    answer = metrics(collector, **selection)
    assert (answer.known, answer.total_runs) == (known, runs)


def test_a_pipeline_that_ran_in_an_earlier_life_is_known(collector: Collector) -> None:
    has_run(collector, MS)
    collector.disconnect(collector.sessions["s1"], "done", T0)
    a_session(collector, "s2")
    answer = metrics(collector, worker="mailer", pipeline="send")

    assert (answer.known, answer.total_runs) == (True, 0)


def test_a_rate_is_over_the_time_that_is_known(collector: Collector) -> None:
    session = a_session(collector, started_at=T0 - 10 * DAY)
    # Messages 1 to 56 were counted by a service whose state is lost.
    collector.record(session, a_record(57, a_batch(MS, MS), recorded=58), T0)

    assert metrics(collector, T0 + HOUR).runs_per_hour == 2.0


def test_uptime_is_that_of_the_earliest_selected_life(collector: Collector) -> None:
    a_session(collector, "s1", started_at=T0 - HOUR)
    a_session(collector, "s2", worker="crawler", started_at=T0 - 2 * HOUR)

    assert metrics(collector).uptime == "2h"
    assert metrics(collector, worker="mailer").uptime == "1h"
    assert metrics(collector).workers_connected == 2


def test_in_the_first_minute_the_rate_is_over_a_minute(collector: Collector) -> None:
    has_run(collector, MS)

    assert metrics(collector, T0 + SECOND).runs_per_hour == 60.0


def test_a_clock_that_stepped_back_gives_no_negative_uptime(collector: Collector) -> None:
    a_session(collector)

    assert metrics(collector, T0 - HOUR).uptime_seconds == 0


def test_the_rate_is_not_capped_by_what_is_kept_in_detail(collector: Collector) -> None:
    has_run(collector, *[MS] * 5000)

    assert metrics(collector, T0 + HOUR).runs_per_hour == 5000.0


@pytest.mark.parametrize(
    ("failed", "success_rate", "error_rate"),
    [(0, 100.0, 0.0), (1, 66.67, 33.33), (2, 33.33, 66.67), (3, 0.0, 100.0)],
)
def test_rates_have_two_decimals(
    collector: Collector, failed: int, success_rate: float, error_rate: float
) -> None:
    has_run(collector, MS, MS, MS, failed=list(range(failed)))

    answer = metrics(collector)
    assert (answer.success_rate, answer.error_rate) == (success_rate, error_rate)


def test_percentiles_are_those_of_the_durations(collector: Collector) -> None:
    has_run(collector, *(n * 10 * MS for n in range(100)))

    answer = metrics(collector)
    assert answer.p50 == pytest.approx(500, rel=0.012)
    assert answer.p95 == pytest.approx(950, rel=0.012)
    assert answer.p99 == pytest.approx(990, rel=0.012)


def test_the_last_life_is_the_newest_of_the_selected_workers(collector: Collector) -> None:
    for at, name in enumerate(["first", "second"]):
        collector.disconnect(a_session(collector, name, worker=name), "done", T0 + at)

    last, first = metrics(collector).last_life, metrics(collector, worker="first").last_life
    assert last is not None
    assert first is not None
    assert (last.worker, first.worker) == ("second", "first")


# ---------------------------------------------------------------- worker.snapshot


def test_raw_and_derived_tell_the_same_life(collector: Collector) -> None:
    has_run(collector, 1_500, 2_600, failed=[1])
    collector.heartbeat(collector.sessions["s1"], a_heartbeat(2, last_report_at=T0 - 5), T0)
    answer = snapshot.snapshot(collector, Selection(), T0 + HOUR - 1)

    assert answer.raw.model_dump(by_alias=True) == {
        "runsExecuted": 2,
        "runsSucceeded": 1,
        "runsFailed": 1,
        "totalExecutionTime": 4,
        "minExecutionTime": 2,
        "maxExecutionTime": 3,
        "workerStartTime": T0,
        "lastRunTime": T0,
        "lastReportTime": T0 - 5,
        "recentExecutions": [
            {"timestamp": T0, "duration": 2, "success": True},
            {"timestamp": T0, "duration": 3, "success": False},
        ],
    }
    assert answer.derived.model_dump(by_alias=True) == {
        "errorRate": 50.0,
        "successRate": 50.0,
        "runsPerHour": 2.0,
        "avgExecutionTime": 2,
        "minExecutionTime": 2,
        "maxExecutionTime": 3,
        "uptime": 3599,
        "uptimeFormatted": "59m 59s",
        "totalRuns": 2,
        "totalSucceeded": 1,
        "totalFailed": 1,
    }
    assert answer.timestamp == T0 + HOUR - 1


def test_recent_executions_are_a_thousand_a_worker_the_oldest_first(collector: Collector) -> None:
    has_run(collector, *(n * MS for n in range(1500)))
    found = snapshot.snapshot(collector, Selection(), T0).raw.recent_executions

    assert [execution.duration for execution in found] == list(range(500, 1500))


def test_an_execution_whose_worker_was_lost_has_no_duration(collector: Collector) -> None:
    a_session(collector, "other")
    collector.lose(a_session(collector, running=[a_start()]), T0)
    (execution,) = snapshot.snapshot(collector, Selection(), T0).raw.recent_executions

    assert (execution.duration, execution.success) == (None, False)


def test_without_a_worker_the_snapshot_is_zeroes(collector: Collector) -> None:
    has_run(collector, MS)
    collector.disconnect(collector.sessions["s1"], "done", T0)
    raw = snapshot.snapshot(collector, Selection(), T0).raw

    assert (raw.runs_executed, raw.total_execution_time, raw.recent_executions) == (0, 0, [])
    assert (raw.worker_start_time, raw.last_run_time, raw.last_report_time) == (None, None, None)


# ---------------------------------------------------------------- worker.stats


def test_stats_are_of_the_last_hour_and_day_of_all_workers(collector: Collector) -> None:
    has_run(collector, 10 * MS, at=T0 - DAY - MINUTE)
    has_run(collector, 20 * MS, 21_000, failed=[0], at=T0 - DAY + MINUTE)
    has_run(collector, 40 * MS, at=T0 - HOUR - MINUTE)
    has_run(collector, 62 * MS, at=T0 - HOUR + MINUTE)
    collector.disconnect(collector.sessions["s1"], "done", T0)
    answer = snapshot.stats(collector, T0)

    assert answer.model_dump(by_alias=True) == {
        "pending": 0,
        "pendingKnown": False,
        "running": 0,
        "runsLastHour": 1,
        "runsLast24Hours": 4,
        "successCount": 3,
        "failedCount": 1,
        "avgDurationMs": 36,
        "errorRate": 25.0,
    }


def test_the_error_rate_of_stats_has_one_decimal(collector: Collector) -> None:
    has_run(collector, MS, MS, MS, failed=[0])

    assert snapshot.stats(collector, T0).error_rate == 33.3


def test_lost_runs_do_not_pull_the_average_down(collector: Collector) -> None:
    has_run(collector, 10 * MS, session="other")
    collector.lose(a_session(collector, running=[a_start()]), T0)
    answer = snapshot.stats(collector, T0)

    assert (answer.runs_last_hour, answer.failed_count, answer.avg_duration_ms) == (2, 1, 10)


def test_pending_counts_a_queue_once_however_many_processes_tell_of_it(
    collector: Collector,
) -> None:
    depths = {"s1": {"mail": 3}, "s2": {"mail": 3, "sms": 1}, "s3": None}
    for name, queues in depths.items():
        collector.heartbeat(a_session(collector, name), a_heartbeat(queues=queues), T0)
    answer = snapshot.stats(collector, T0)

    assert (answer.pending, answer.pending_known) == (4, True)


def test_pending_counts_queues_of_one_name_once_for_each_worker(collector: Collector) -> None:
    for worker in ("mailer", "crawler"):
        for number in (1, 2):
            session = a_session(collector, f"{worker}-{number}", worker=worker)
            collector.heartbeat(session, a_heartbeat(queues={"default": 3}), T0)

    assert snapshot.stats(collector, T0).pending == 6


def test_of_processes_that_tell_of_one_queue_the_newest_is_right(collector: Collector) -> None:
    for name, depth, second in [("s1", 9, 0), ("s2", 4, 2), ("s3", 7, 1)]:
        now = T0 + second * SECOND
        session = a_session(collector, name, now_ms=T0)
        collector.heartbeat(session, a_heartbeat(queues={"mail": depth}), now)

    assert snapshot.stats(collector, T0 + 2 * SECOND).pending == 4


def test_an_empty_queue_is_known_to_be_empty(collector: Collector) -> None:
    collector.heartbeat(a_session(collector), a_heartbeat(queues={}), T0)
    answer = snapshot.stats(collector, T0)

    assert (answer.pending, answer.pending_known) == (0, True)


def test_running_is_what_is_in_flight_in_all_sessions(collector: Collector) -> None:
    a_session(collector, "s1", running=[a_start("r1"), a_start("r2")])
    a_session(collector, "s2", worker="crawler", running=[a_start("r3")])

    assert snapshot.stats(collector, T0).running == 3


# ---------------------------------------------------------------- worker.recentRuns


@pytest.fixture
def busy(collector: Collector) -> Collector:
    """ok ended first, then bad, then fetched by the crawler; r1 began last and goes on."""
    session, crawler = a_session(collector), a_session(collector, "s2", worker="crawler")
    ok, bad = a_result("ok"), a_result("bad", failed=True, error=an_error())
    fetched = a_result("fetched")
    ok.at, bad.at, fetched.at = T0 - 3 * SECOND, T0 - 2 * SECOND, T0 - SECOND
    fetched.pipeline = "fetch"
    collector.record(session, a_record(1, ok, bad, started=[a_start("r1")]), T0)
    collector.record(crawler, a_record(1, fetched), T0)
    return collector


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        pytest.param({}, ["r1", "fetched", "bad", "ok"], id="all, newest first"),
        pytest.param({"limit": 2}, ["r1", "fetched"], id="at most so many"),
        pytest.param({"status": "success"}, ["fetched", "ok"], id="those that succeeded"),
        pytest.param({"status": "failed"}, ["bad"], id="that failed"),
        pytest.param({"status": "running"}, ["r1"], id="that go on"),
        pytest.param({"status": "pending"}, [], id="pending ones are not told to us"),
        pytest.param({"worker": "crawler"}, ["fetched"], id="of a worker"),
        pytest.param({"pipeline": "send"}, ["r1", "bad", "ok"], id="of a pipeline"),
        pytest.param({"worker": "crawler", "pipeline": "send"}, [], id="of both"),
        pytest.param({"status": "success", "limit": 1}, ["fetched"], id="the limit comes last"),
        pytest.param({"worker": "nobody"}, [], id="of nobody"),
    ],
)
def test_recent_runs_are_those_that_are_asked_for(
    busy: Collector, params: dict[str, Any], expected: list[str]
) -> None:
    assert [run.id for run in recent(busy, **params)] == expected


def test_a_run_is_told_with_its_steps_and_its_error(collector: Collector) -> None:
    steps = [Step("parse", 1_500), Step("send", 2_000, failed=True, attempts=3)]
    batch = a_result("r1", 4_500, failed=True, attempt=2, steps=steps, error=an_error())
    collector.record(a_session(collector), a_record(1, batch), T0)

    assert recent(collector)[0].model_dump(by_alias=True) == {
        "id": "r1",
        "status": "failed",
        "startedAt": T0 - 4,
        "finishedAt": T0,
        "durationMs": 5,
        "attempt": 2,
        "worker": "mailer",
        "pipeline": {"id": "send", "name": "send", "description": None},
        "steps": [
            {
                "id": "r1/0",
                "name": "parse",
                "status": "success",
                "attemptCount": 1,
                "durationMs": 2,
            },
            {"id": "r1/1", "name": "send", "status": "failed", "attemptCount": 3, "durationMs": 2},
        ],
        "error": {"type": "ValueError", "message": "no", "traceback": None},
    }


def test_a_run_in_flight_has_a_start_and_no_end(collector: Collector) -> None:
    a_session(collector, running=[a_start("r1", started_at=T0 - 9)])
    (run,) = recent(collector)

    assert (run.id, run.status, run.started_at) == ("r1", "running", T0 - 9)
    assert (run.finished_at, run.duration_ms, run.error) == (None, None, None)


def test_runs_without_an_id_get_one_each(collector: Collector) -> None:
    has_run(collector, MS, MS)
    has_run(collector, MS, MS)

    assert len({run.id for run in recent(collector)}) == 4


def test_runs_of_a_worker_that_has_left_are_still_told(collector: Collector) -> None:
    has_run(collector, MS)
    collector.disconnect(collector.sessions["s1"], "done", T0)

    assert len(recent(collector)) == 1


# ---------------------------------------------------------------- worker.list, service.info


def test_connected_workers_come_first_then_by_name(collector: Collector) -> None:
    for name in ("d", "b", "c", "a"):
        a_session(collector, name, worker=name)
    for name in ("a", "b"):
        collector.disconnect(collector.sessions[name], "done", T0)

    assert [w.name for w in snapshot.worker_list(collector)] == ["c", "d", "a", "b"]


def test_a_worker_is_the_sum_of_its_processes(collector: Collector) -> None:
    a_session(collector, "s1", slots=4, host="b", version="2", running=[a_start()])
    a_session(collector, "s2", slots=2, host="a", version="2", runtime="cpython 3.13")
    has_run(collector, MS, MS, failed=[0])
    for name in ("s1", "s2"):
        collector.heartbeat(collector.sessions[name], a_heartbeat(9, queues={"mail": 2}), T0)
    (worker,) = snapshot.worker_list(collector)

    assert (worker.connected, worker.sessions, worker.slots, worker.in_flight) == (True, 2, 6, 1)
    assert (worker.total_runs, worker.failed, worker.queues) == (2, 1, {"mail": 2})
    assert (worker.hosts, worker.versions, worker.runtimes) == (["a", "b"], ["2"], ["cpython 3.13"])


def test_a_worker_that_has_left_has_its_last_life_and_no_numbers(collector: Collector) -> None:
    has_run(collector, MS)
    collector.disconnect(collector.sessions["s1"], "done", T0 + SECOND)
    (worker,) = snapshot.worker_list(collector)

    assert (worker.connected, worker.sessions, worker.slots) == (False, 0, None)
    assert (worker.total_runs, worker.worker_start_time, worker.last_seen) == (0, None, T0 + SECOND)
    assert worker.last_life is not None
    assert worker.last_life.total_runs == 1


def test_the_intake_tells_what_became_of_every_result(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, a_result("r1"), a_result("r1"), dropped={"full": 3}), T0)
    collector.refuse(session, 2, 2, {"full": 3}, 4, T0, "too long")
    answer = snapshot.intake(collector)

    assert (answer.counted, answer.repeated, answer.late) == (1, 1, 0)
    assert (answer.refused, answer.dropped, answer.faults) == ({"too long": 4}, {"full": 3}, {})


# ---------------------------------------------------------------- in flight, and waiting


def test_a_worker_tells_its_oldest_run_in_flight(collector: Collector) -> None:
    starts = [a_start("r1", started_at=T0 - MINUTE), a_start("r2", started_at=T0 - HOUR)]
    collector.record(a_session(collector), a_record(1, started=starts), T0)

    [view] = snapshot.worker_list(collector)
    assert (view.in_flight, view.oldest_in_flight) == (2, T0 - HOUR)


def test_waiting_times_are_of_the_runs_that_tell_theirs(collector: Collector) -> None:
    waits = [a_result("r1", wait_us=10_499), a_result("r2", wait_us=30_500), a_result("r3")]
    collector.record(a_session(collector), a_record(1, *waits), T0)

    [view] = snapshot.worker_list(collector)
    assert (view.avg_wait_time, view.max_wait_time) == (20, 31)


# ---------------------------------------------------------------- service.ledger


def test_the_ledger_tells_what_became_of_every_result(collector: Collector) -> None:
    for name in ("s1", "s2"):
        session = a_session(collector, name)
        collector.record(session, a_record(1, a_result("r1"), recorded=2, dropped={"full": 1}), T0)
    collector.disconnect(collector.sessions["s1"], "done", T0 + SECOND)

    answer = snapshot.ledger(collector, LedgerParams())
    assert answer.total.model_dump() == {
        "recorded": 4,
        "counted": 1,
        "repeated": 1,
        "late": 0,
        "refused": {},
        "dropped": {"full": 2},
        "waiting": 0,
        "forgotten": 0,
    }
    assert [(s.session, s.connected, s.repeated) for s in answer.sessions] == [
        ("s1", False, 0),
        ("s2", True, 1),
    ]
    assert answer.balanced


def test_what_was_recorded_and_has_not_come_is_waiting(collector: Collector) -> None:
    collector.heartbeat(a_session(collector), a_heartbeat(1, recorded=7), T0)

    assert snapshot.ledger(collector, LedgerParams()).total.waiting == 7


def test_a_book_below_zero_is_no_balance(collector: Collector) -> None:
    collector.record(a_session(collector), a_record(1, a_batch(MS, MS), recorded=1), T0)

    assert not snapshot.ledger(collector, LedgerParams()).balanced


def test_what_a_lost_state_had_counted_is_forgotten_and_in_no_sum(collector: Collector) -> None:
    collector.record(a_session(collector), a_record(9, a_batch(MS), recorded=1001), T0)

    total = snapshot.ledger(collector, LedgerParams()).total
    assert (total.forgotten, total.recorded, total.counted, total.waiting) == (1000, 1, 1, 0)


def test_a_first_message_after_drops_is_no_lost_state(collector: Collector) -> None:
    dropped = {"buffer full": 1000}
    message = a_record(9, a_batch(MS), recorded=1001, dropped=dropped)
    collector.record(a_session(collector), message, T0)

    total = snapshot.ledger(collector, LedgerParams()).total
    assert (total.forgotten, total.recorded, total.dropped) == (0, 1001, dropped)


def test_the_ledger_is_of_the_sessions_that_are_asked_for(collector: Collector) -> None:
    for n in range(5):
        a_session(collector, f"s{n}", worker=f"w{n % 2}", now_ms=T0 + n)

    answer = snapshot.ledger(collector, LedgerParams(worker="w0", limit=2))
    assert [session.session for session in answer.sessions] == ["s4", "s2"]


def test_a_run_in_flight_tells_how_far_it_is():
    collector = Collector("box")
    session = a_session(collector)
    collector.record(session, a_record(1, started=[a_start("r1")]), T0)
    told = Progress(id="r1", pipeline="send", done=[Step("download", 2 * MS)], now=["parse"])
    lost = Progress(id="r9", pipeline="send", now=["of a run that nobody knows"])
    collector.heartbeat(session, a_heartbeat(2, progress=[told, lost]), T0)

    [run] = snapshot.recent_runs(collector, RecentRunsParams(status="running"), T0)
    assert [(s.name, s.status, s.duration_ms) for s in run.steps] == [
        ("download", "success", 2),
        ("parse", "running", 0),
    ]
