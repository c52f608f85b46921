"""What counts, once and only once: sessions, lives, numbers, attempts, losses, bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from builders import (
    HOUR,
    MINUTE,
    MS,
    SECOND,
    T0,
    a_batch,
    a_connect,
    a_heartbeat,
    a_record,
    a_result,
    a_session,
    a_start,
)
from orbit_rpc_schema.messages import Detail, Error, Record, Step, Withdrawal
from orbit_rpc_schema.wire import LIMITS, WORKER_LOST
from orbit_service.core import collector as bounds
from orbit_service.core.cardinality import MAX_PAIRS, OTHER_PIPELINES, OTHER_WORKERS
from orbit_service.core.checks import Refused
from orbit_service.core.collector import Collector
from orbit_service.core.histogram import Histogram
from orbit_service.core.ledger import MAX_REASONS
from orbit_service.core.outbox import Key
from orbit_service.core.recent import Run
from orbit_service.core.sessions import Session
from orbit_service.core.stats import Stats

DAY = 24 * HOUR


def totals(collector: Collector, worker: str = "mailer") -> Stats:
    life = collector.workers[worker].life
    assert life is not None, f"{worker} is not connected"
    return life.totals()


def newest_run(collector: Collector) -> Run:
    return next(collector.workers["mailer"].recent.newest(T0))


def kept_runs(collector: Collector) -> dict[str, int]:
    """How many runs of each worker are held, told or not."""
    return {w.name: len([*w.recent.newest(T0)]) for w in collector.workers.values()}


def in_flight(collector: Collector) -> list[str]:
    return [run.id for _session, run in collector.running()]


# ---------------------------------------------------------------- sessions and their numbers


def test_a_new_session_starts_at_zero_and_is_told_the_limits(collector: Collector) -> None:
    answer = collector.connect(a_connect(), T0)

    assert (answer.acked, answer.known, answer.node) == (0, False, "node")
    assert answer.limits == LIMITS


def test_a_session_that_comes_back_is_told_what_was_counted(collector: Collector) -> None:
    collector.record(a_session(collector), a_record(7, a_batch(MS)), T0)
    answer = collector.connect(a_connect(), T0)

    assert (answer.acked, answer.known) == (7, True)


def test_so_is_one_that_was_given_up(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(7, a_batch(MS)), T0)
    collector.lose(session, T0)
    answer = collector.connect(a_connect(), T0)

    assert (answer.acked, answer.known) == (7, True)


def test_a_session_belongs_to_one_worker(collector: Collector) -> None:
    a_session(collector)

    with pytest.raises(Refused, match="belongs to worker 'mailer'"):
        collector.connect(a_connect(worker="another"), T0)
    assert "another" not in collector.workers


def test_a_hello_with_a_bad_name_leaves_no_trace(collector: Collector) -> None:
    with pytest.raises(Refused):
        collector.connect(a_connect(worker=""), T0)

    assert not collector.workers
    assert not collector.sessions


def test_a_batch_sent_twice_counts_once(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, a_batch(MS, MS)), T0)
    collector.record(session, a_record(1, a_batch(MS, MS)), T0)

    assert (totals(collector).runs, collector.ledger.counted) == (2, 2)


def test_a_gap_in_the_numbers_is_legal(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(5, a_batch(MS)), T0)
    collector.record(session, a_record(4, a_batch(MS)), T0)

    assert (session.acked, totals(collector).runs) == (5, 1)


def test_numbers_belong_to_their_session(collector: Collector) -> None:
    for name in ("s1", "s2"):
        collector.record(a_session(collector, name), a_record(1, a_batch(MS)), T0)

    assert totals(collector).runs == 2


def test_a_heartbeat_takes_a_number_too(collector: Collector) -> None:
    session = a_session(collector)
    collector.heartbeat(session, a_heartbeat(3, queues={"mail": 4}), T0 + SECOND)
    collector.heartbeat(session, a_heartbeat(3, queues={"mail": 9}), T0 + SECOND)

    assert (session.acked, session.queues) == (3, {"mail": 4})
    assert session.last_seen_ms == T0 + SECOND


def test_a_report_in_the_future_was_made_now(collector: Collector) -> None:
    session = a_session(collector)
    collector.heartbeat(session, a_heartbeat(1, last_report_at=T0 + HOUR), T0)

    assert session.last_report_ms == T0


# ---------------------------------------------------------------- lives


def test_a_life_holds_the_runs_of_all_its_sessions(collector: Collector) -> None:
    one, two = a_session(collector, "s1"), a_session(collector, "s2")
    collector.record(one, a_record(1, a_batch(MS)), T0)
    collector.record(two, a_record(1, a_batch(MS)), T0)
    collector.disconnect(one, "done", T0)

    assert totals(collector).runs == 2


def test_with_its_last_session_a_life_is_over(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, a_batch(MS, MS, failed=[1])), T0)
    collector.disconnect(session, "done", T0 + SECOND)

    last = collector.workers["mailer"].last_life
    assert collector.workers["mailer"].life is None
    assert last is not None
    assert (last.ended_ms, last.reason, last.total_runs, last.failed) == (T0 + SECOND, "done", 2, 1)


def test_the_next_life_begins_from_zero(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, a_batch(MS)), T0)
    collector.disconnect(session, "done", T0)
    a_session(collector, "s2")

    assert totals(collector).runs == 0


@pytest.mark.parametrize(
    ("started_at", "begins"),
    [
        pytest.param(T0 - HOUR, T0 - HOUR, id="when the process began"),
        pytest.param(T0 + HOUR, T0, id="but not in the future"),
    ],
)
def test_a_life_begins(collector: Collector, started_at: int, begins: int) -> None:
    a_session(collector, started_at=started_at)

    life = collector.workers["mailer"].life
    assert life is not None
    assert life.started_ms == begins


LATER = T0 + 10 * SECOND  # when the first message comes


def begins(collector: Collector) -> int:
    life = collector.workers["mailer"].life
    assert life is not None
    return life.started_ms


def records(collector: Collector, session: Session, seq: int) -> None:
    collector.record(session, a_record(seq, a_batch(MS), recorded=seq), LATER)


def beats(collector: Collector, session: Session, seq: int) -> None:
    collector.heartbeat(session, a_heartbeat(seq, recorded=seq), LATER)


def is_refused(collector: Collector, session: Session, seq: int) -> None:
    collector.refuse(session, seq, seq, {}, 1, LATER)


@pytest.mark.parametrize("sends", [records, beats, is_refused])
def test_a_life_whose_first_message_is_not_number_1_begins_when_it_was_first_seen(
    collector: Collector, sends: Callable[[Collector, Session, int], None]
) -> None:
    sends(collector, a_session(collector, started_at=T0 - 10 * DAY), 57)

    assert begins(collector) == T0


@pytest.mark.parametrize("sends", [records, beats, is_refused])
def test_one_that_is_known_from_its_number_1_began_with_its_process(
    collector: Collector, sends: Callable[[Collector, Session, int], None]
) -> None:
    session = a_session(collector, started_at=T0 - HOUR)
    sends(collector, session, 1)
    sends(collector, session, 57)

    assert begins(collector) == T0 - HOUR


def test_first_seen_is_before_any_reconnect(collector: Collector) -> None:
    a_session(collector, started_at=T0 - HOUR)
    records(collector, a_session(collector, started_at=T0 - HOUR, now_ms=T0 + SECOND), 57)

    assert begins(collector) == T0


def test_what_another_session_of_the_life_lost_moves_nothing(collector: Collector) -> None:
    a_session(collector, "opener", started_at=T0 - HOUR)
    records(collector, a_session(collector, "s2", now_ms=T0 + SECOND), 57)

    assert begins(collector) == T0 - HOUR


@pytest.mark.parametrize("first", ["reset", "comes back"])
def test_a_life_that_began_later_than_its_session_stays_where_it_is(
    collector: Collector, first: str
) -> None:
    session = a_session(collector)
    if first == "reset":
        collector.reset(session, T0 + SECOND)
    else:
        collector.lose(session, T0)
        a_session(collector, now_ms=T0 + SECOND)
    records(collector, session, 57)

    assert begins(collector) == T0 + SECOND


def test_a_reconnect_goes_on_with_the_life(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, a_batch(MS)), T0)
    a_session(collector, now_ms=T0 + SECOND)

    assert totals(collector).runs == 1
    assert collector.lives == 1


def test_a_session_that_was_given_up_comes_back_to_a_new_life(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, a_batch(MS)), T0)
    collector.lose(session, T0 + SECOND)
    a_session(collector, now_ms=T0 + HOUR)

    life = collector.workers["mailer"].life
    assert life is not None
    assert (life.started_ms, life.totals().runs) == (T0 + HOUR, 0)


def test_a_reset_ends_the_life_and_begins_another(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, a_batch(MS)), T0)
    collector.reset(session, T0 + SECOND)
    collector.record(session, a_record(2, a_batch(MS, MS)), T0 + SECOND)

    last = collector.workers["mailer"].last_life
    assert last is not None
    assert (last.reason, last.total_runs) == ("reset", 1)
    assert totals(collector).runs == 2


def test_workers_are_counted_by_name_while_they_live(collector: Collector) -> None:
    for session, worker in [("s1", "mailer"), ("s2", "mailer"), ("s3", "crawler"), ("s4", "gone")]:
        a_session(collector, session, worker=worker)
    collector.disconnect(collector.sessions["s4"], "done", T0)

    assert collector.workers_connected() == 2


# ---------------------------------------------------------------- losses


def test_runs_of_a_lost_session_fail_without_a_duration(collector: Collector) -> None:
    a_session(collector, "other")
    session = a_session(collector)
    collector.record(session, a_record(1, a_batch(8 * MS), started=[a_start("r1")]), T0)
    collector.lose(session, T0)

    stats, run = totals(collector), newest_run(collector)
    assert (stats.runs, stats.failed, stats.average_ms) == (2, 1, 8)
    assert (run.id, run.duration_us, run.success, run.started_ms) == ("r1", None, False, T0)
    assert run.detail.error is not None
    assert run.detail.error.type == WORKER_LOST
    assert in_flight(collector) == []


def test_a_run_that_had_ended_is_not_lost(collector: Collector) -> None:
    a_session(collector, "other")
    session = a_session(collector)
    collector.record(session, a_record(1, started=[a_start("r1")]), T0)
    collector.record(session, a_record(2, a_result("r1")), T0)
    collector.lose(session, T0)

    assert (totals(collector).runs, totals(collector).failed) == (1, 0)


def test_a_result_after_the_loss_is_late_and_changes_nothing(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, started=[a_start("r1")]), T0)
    collector.lose(session, T0)
    session = a_session(collector, running=[a_start("r1")])
    collector.record(session, a_record(2, a_result("r1")), T0)

    assert (collector.ledger.late, collector.ledger.counted, totals(collector).runs) == (1, 0, 0)
    assert in_flight(collector) == []


def test_a_lost_run_that_another_process_takes_up_is_a_new_run(collector: Collector) -> None:
    collector.lose(a_session(collector, running=[a_start("r1")]), T0)
    successor = a_session(collector, "s2", running=[a_start("r1")])
    assert in_flight(collector) == ["r1"]
    collector.record(successor, a_record(1, a_result("r1")), T0)

    assert (collector.ledger.late, totals(collector).runs, totals(collector).retries) == (0, 1, 1)


def test_a_higher_attempt_of_a_lost_run_is_a_new_run(collector: Collector) -> None:
    collector.lose(a_session(collector, running=[a_start("r1")]), T0)
    collector.record(a_session(collector, "s2"), a_record(1, a_result("r1", attempt=2)), T0)

    assert (collector.ledger.late, totals(collector).runs, totals(collector).retries) == (0, 1, 1)


def test_a_lost_run_whose_end_a_parent_process_has_told_counts_once(collector: Collector) -> None:
    parent = a_session(collector, "parent")
    child = a_session(collector, "child", running=[a_start("r1", attempt=1)])
    told = a_result("r1", failed=True, untimed=True, error=Error(type="TimeLimitExceeded"))
    collector.record(parent, a_record(1, told), T0)
    collector.lose(child, T0)

    assert (totals(collector).runs, totals(collector).failed) == (1, 1)
    assert newest_run(collector).detail.error == Error(type="TimeLimitExceeded")


def test_a_parent_that_tells_of_a_lost_run_later_changes_nothing(collector: Collector) -> None:
    parent = a_session(collector, "parent")
    collector.lose(a_session(collector, "child", running=[a_start("r1", attempt=2)]), T0)
    told = a_result("r1", failed=True, untimed=True, attempt=2)
    collector.record(parent, a_record(1, told), T0)

    assert (totals(collector).runs, collector.ledger.late) == (1, 1)


def test_an_attempt_that_a_parent_says_is_tried_again_is_not_lost(collector: Collector) -> None:
    parent = a_session(collector, "parent")
    child = a_session(collector, "child", running=[a_start("r1", attempt=1)])
    collector.record(parent, a_record(1, a_result("r1", failed=True, final=False)), T0)
    collector.lose(child, T0)

    stats = totals(collector)
    assert (stats.runs, stats.attempts, stats.retries) == (0, 1, 1)


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_lost_run_that_is_delivered_again_and_is_quick_is_a_new_run(
    collector: Collector, attempt: int
) -> None:
    collector.lose(a_session(collector, running=[a_start("r1", attempt=1)]), T0)
    again = a_result("r1", attempt=attempt, began=True)
    collector.record(a_session(collector, "s2"), a_record(1, again), T0)

    stats = totals(collector)
    assert (stats.runs, stats.failed, stats.retries) == (1, 0, 1)
    assert (collector.ledger.late, collector.ledger.repeated) == (0, 0)


@pytest.mark.parametrize("announced", [True, False])
def test_what_a_spool_tells_of_a_run_that_was_lost_meanwhile_is_late(
    collector: Collector, announced: bool
) -> None:
    """The session was known from its hello, and given up; a successor sends what it left."""
    collector.lose(a_session(collector, running=[a_start("r1")]), T0)
    collector.connect(a_connect(resume=True), T0)
    session = collector.sessions["s1"]
    starts = [a_start("r1")] if announced else []
    result = a_result("r1", began=not announced)
    collector.record(session, a_record(1, started=starts), T0)
    collector.record(session, a_record(2, result), T0)

    assert (collector.ledger.late, collector.cumulative.series["mailer", "send"].runs.runs) == (
        1,
        1,
    )


# ---------------------------------------------------------------- runs that nobody measured


@pytest.mark.parametrize("failed", [True, False])
def test_a_run_without_a_duration_counts_and_has_none(collector: Collector, failed: bool) -> None:
    session = a_session(collector)
    batch = a_batch(7, 8 * MS, failed=[0] if failed else [], details={0: Detail(untimed=True)})
    collector.record(session, a_record(1, batch), T0)

    stats = totals(collector)
    assert (stats.runs, stats.failed, stats.timed, stats.total_us) == (2, failed, 1, 8 * MS)
    assert [run.duration_us for run in collector.workers["mailer"].recent.newest(T0)] == [
        8 * MS,
        None,
    ]
    assert collector.last_day.since(T0).timed == 1


def test_a_start_that_is_taken_back_is_nothing(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, started=[a_start("r1")]), T0)
    taken_back = [Withdrawal(id="r1", pipeline="send")]
    collector.record(session, a_record(2, withdrawn=taken_back), T0)
    assert in_flight(collector) == []
    collector.lose(session, T0)

    assert collector.workers["mailer"].last_life.total_runs == 0


# ---------------------------------------------------------------- runs and attempts


def test_what_runs_is_what_began_and_did_not_end(collector: Collector) -> None:
    session = a_session(collector, running=[a_start("r0")])
    collector.record(session, a_record(1, started=[a_start("r1"), a_start("r2")]), T0)
    collector.record(session, a_record(2, a_result("r1")), T0)

    assert in_flight(collector) == ["r0", "r2"]


def test_on_a_reconnect_the_worker_says_what_runs(collector: Collector) -> None:
    a_session(collector, running=[a_start("r1"), a_start("r2")])
    a_session(collector, running=[a_start("r2")])

    assert in_flight(collector) == ["r2"]


def test_an_attempt_that_is_retried_counts_as_an_attempt_not_as_a_run(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, a_result("r1", failed=True, final=False)), T0)
    collector.record(session, a_record(2, a_result("r1", 7 * MS, attempt=2)), T0)

    stats = totals(collector)
    assert (stats.runs, stats.failed, stats.attempts, stats.retries) == (1, 0, 2, 1)
    assert (stats.total_us, collector.ledger.counted) == (7 * MS, 2)


def test_an_attempt_without_an_id_counts_as_one_too(collector: Collector) -> None:
    batch = a_batch(MS, details={0: Detail(final=False)})
    collector.record(a_session(collector), a_record(1, batch), T0)

    assert (totals(collector).attempts, totals(collector).runs) == (1, 0)


def test_a_window_and_all_totals_hold_how_long_runs_waited(collector: Collector) -> None:
    told = [a_result("r1", wait_us=2 * MS), a_result("r2", wait_us=30 * MS), a_result("r3")]
    session = a_session(collector)
    collector.record(session, a_record(1, *told), T0)
    collector.record(session, a_record(2, told[0]), T0)  # again

    for stats in (
        collector.outbox.windows[T0][Key("mailer", "send")],
        collector.cumulative.series["mailer", "send"].runs,
        totals(collector),
    ):
        assert stats.waits == Histogram.of([2 * MS, 30 * MS])
        assert stats.wait_quantiles_ms(0.0, 1.0) == [2, 30]


def test_where_nobody_tells_how_long_runs_waited_nothing_is_kept_of_it(
    collector: Collector,
) -> None:
    collector.record(a_session(collector), a_record(1, a_batch(MS), a_result("r1")), T0)

    assert collector.outbox.windows[T0][Key("mailer", "send")].waits is None


def test_the_same_attempt_from_another_session_is_repeated(collector: Collector) -> None:
    for name in ("s1", "s2"):
        collector.record(a_session(collector, name), a_record(1, a_result("r1")), T0)

    found = (collector.ledger.repeated, collector.ledger.counted, totals(collector).runs)
    assert found == (1, 1, 1)


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(a_record(2, a_result("r1", attempt=2)), id="a higher attempt"),
        pytest.param(a_record(2, a_result("r1"), started=[a_start("r1")]), id="a new start"),
    ],
)
def test_after_the_end_it_is_a_new_run_and_a_retry(collector: Collector, again: Record) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, a_result("r1")), T0)
    collector.record(session, again, T0)

    assert (totals(collector).runs, totals(collector).retries) == (2, 1)


def test_what_ends_no_run_leaves_its_neighbours_as_they_are(collector: Collector) -> None:
    details = {0: Detail(id="a", final=False), 2: Detail(id="c")}
    batch = a_batch(1 * MS, 2 * MS, 3 * MS, failed=[0, 2], details=details)
    collector.record(a_session(collector), a_record(1, batch), T0)

    stats, run = totals(collector), newest_run(collector)
    assert (stats.runs, stats.failed, stats.total_us) == (2, 1, 5 * MS)
    assert (run.id, run.success, run.duration_us) == ("c", False, 3 * MS)


@pytest.mark.parametrize(
    ("ahead_ms", "finished_ms"),
    [
        pytest.param(60_000, T0 + 60_000, id="a minute ahead is kept"),
        pytest.param(60_001, T0, id="what is further ahead ended now"),
        pytest.param(-HOUR, T0 - HOUR, id="the past is kept"),
    ],
)
def test_the_time_of_a_batch(collector: Collector, ahead_ms: int, finished_ms: int) -> None:
    collector.record(a_session(collector), a_record(1, a_batch(MS, at=T0 + ahead_ms)), T0)

    assert totals(collector).last_run_ms == finished_ms


# ---------------------------------------------------------------- the ledger


def test_steps_of_one_name_in_a_column_count_one_by_one(collector: Collector) -> None:
    steps = [Step("load", 3 * MS, failed=True, attempts=3), Step("load", 5 * MS)]
    details = {n: Detail(steps=(step,)) for n, step in enumerate(steps)}
    collector.record(a_session(collector), a_record(1, a_batch(MS, MS, details=details)), T0)

    ever = collector.cumulative.series["mailer", "send"].steps["load"]
    window = collector.outbox.stats(Key("mailer", "send", "load"), T0)
    for row in (ever, window):
        assert (row.runs, row.failed, row.attempts, row.retries) == (2, 1, 4, 2)
        assert (row.min_us, row.max_us, row.total_us) == (3 * MS, 5 * MS, 8 * MS)
        assert row.histogram == Histogram.of([3 * MS, 5 * MS])


def test_a_message_is_refused_whole_and_consumes_its_number(collector: Collector) -> None:
    session = a_session(collector)
    with pytest.raises(Refused):
        collector.record(session, a_record(1, a_batch(MS), a_batch(MS, MS, failed=[2])), T0)

    assert collector.ledger.refused == {"invalid": 3}
    assert (session.acked, totals(collector).runs, collector.ledger.counted) == (1, 0, 0)


def test_a_refused_message_sent_again_is_refused_once(collector: Collector) -> None:
    session = a_session(collector)
    with pytest.raises(Refused):
        collector.record(session, a_record(1, a_batch(MS, failed=[1])), T0)
    collector.record(session, a_record(1, a_batch(MS, failed=[1])), T0)

    assert collector.ledger.refused == {"invalid": 1}


def test_what_could_not_be_read_is_counted_by_its_totals(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, a_batch(MS), recorded=3, dropped={"full": 2}), T0)
    collector.refuse(session, 2, 10, {"full": 3}, None, T0, "too long")

    assert collector.ledger.refused == {"too long": 6}
    assert session.acked == 2


def test_without_totals_it_changes_none(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, a_batch(MS), recorded=3, dropped={"full": 2}), T0)
    collector.refuse(session, 2, 0, {}, None, T0)
    collector.record(session, a_record(3, a_batch(MS), recorded=4, dropped={"full": 2}), T0)

    assert collector.ledger.dropped == {"full": 2}
    assert collector.ledger.refused == {"invalid": 0}


def test_dropped_totals_are_cumulative(collector: Collector) -> None:
    session = a_session(collector)
    for seq, dropped in enumerate([{"full": 2}, {"full": 5, "old": 1}, {"full": 5, "old": 1}], 1):
        collector.record(session, a_record(seq, dropped=dropped), T0)

    assert collector.ledger.dropped == {"full": 5, "old": 1}


def test_what_seemed_dropped_and_was_counted_is_taken_back(collector: Collector) -> None:
    session = a_session(collector)
    for seq, dropped in enumerate([{"full": 5}, {}, {"full": 3}], 1):
        collector.record(session, a_record(seq, dropped=dropped), T0)

    assert collector.ledger.dropped == {"full": 3}


# ---------------------------------------------------------------- bounds


def test_reasons_over_the_bound_fold_into_one_and_stay_exact(collector: Collector) -> None:
    dropped = {f"reason {number}": 1 for number in range(MAX_REASONS + 5)}
    session = a_session(collector)
    for seq in (1, 2):
        collector.record(session, a_record(seq, dropped=dropped), T0)

    assert len(collector.ledger.dropped) == MAX_REASONS + 1
    assert collector.ledger.dropped["other"] == 5


def test_pipelines_over_the_bound_fold_into_one_and_lose_no_run(collector: Collector) -> None:
    batches = [a_batch(MS, pipeline=str(n)) for n in range(MAX_PAIRS + 3)]
    collector.record(a_session(collector), a_record(1, *batches), T0)

    life = collector.workers["mailer"].life
    assert life is not None
    assert life.series[OTHER_PIPELINES].runs == 3
    assert collector.outbox.windows[T0][Key(OTHER_WORKERS, OTHER_PIPELINES)].runs == 3
    assert totals(collector).runs == MAX_PAIRS + 3
    assert collector.pairs.folded == 3


def test_a_worker_that_ended_holds_its_places_for_a_quarter_of_an_hour(
    collector: Collector,
) -> None:
    gone = a_session(collector)
    batches = [a_batch(MS, pipeline=str(n)) for n in range(MAX_PAIRS)]
    collector.record(gone, a_record(1, *batches), T0)
    collector.disconnect(gone, "done", T0)
    newcomer = a_session(collector, "s2", worker="newcomer")

    collector.record(newcomer, a_record(1, a_batch(MS)), T0 + 15 * MINUTE - 1)
    collector.record(newcomer, a_record(2, a_batch(MS), recorded=2), T0 + 15 * MINUTE + SECOND)

    assert {name: s.runs for name, s in collector.workers["newcomer"].life.series.items()} == {
        OTHER_PIPELINES: 1,
        "send": 1,
    }


def test_a_living_worker_keeps_its_places_however_idle(collector: Collector) -> None:
    batches = [a_batch(MS, pipeline=str(n)) for n in range(MAX_PAIRS)]
    collector.record(a_session(collector), a_record(1, *batches), T0)
    collector.record(
        a_session(collector, "s2", worker="newcomer"), a_record(1, a_batch(MS)), T0 + DAY
    )

    assert list(collector.workers["newcomer"].life.series) == [OTHER_PIPELINES]


def test_starts_over_the_bound_are_counted_not_kept(collector: Collector) -> None:
    starts = [a_start(str(number)) for number in range(bounds.MAX_RUNNING + 2)]
    session = a_session(collector)
    collector.record(session, a_record(1, started=starts), T0)

    assert (len(session.running), collector.faults["running"]) == (bounds.MAX_RUNNING, 2)


def test_sessions_that_ended_are_forgotten_after_a_day(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(7, a_batch(MS)), T0)
    collector.disconnect(session, "done", T0)
    collector.forget(T0 + DAY)

    assert not collector.connect(a_connect(), T0 + DAY).known


def test_of_a_session_that_ended_only_its_number_and_its_totals_are_kept(
    collector: Collector,
) -> None:
    session = a_session(collector, running=[a_start()], queues=["mail"])
    collector.heartbeat(session, a_heartbeat(3, recorded=8, queues={"mail": 4}), T0)
    collector.disconnect(session, "done", T0)

    assert (session.acked, session.recorded) == (3, 8)
    assert (session.running, session.queues) == ({}, None)
    assert (session.hello.running, session.hello.queues) == ([], [])


def test_runs_of_a_worker_that_is_gone_are_let_go_after_an_hour(collector: Collector) -> None:
    gone, there = a_session(collector), a_session(collector, "s2", worker="still here")
    for session in (gone, there):
        collector.record(session, a_record(1, a_batch(MS)), T0)
    collector.disconnect(gone, "done", T0)

    collector.forget(T0 + HOUR - 1)
    assert kept_runs(collector) == {"mailer": 1, "still here": 1}
    collector.forget(T0 + HOUR)
    assert kept_runs(collector) == {"mailer": 0, "still here": 1}


def test_a_pipeline_is_known_of_its_worker_in_later_lives_too(collector: Collector) -> None:
    session = a_session(collector)
    collector.record(session, a_record(1, a_batch(MS)), T0)
    collector.disconnect(session, "done", T0)

    assert collector.has_seen(collector.workers["mailer"], "send")
    assert not collector.has_seen(collector.workers["mailer"], "fetch")


def test_of_many_pipelines_the_names_that_are_known_are_bounded(collector: Collector) -> None:
    stayed = a_session(collector, "stayed", worker="stayed")
    collector.record(stayed, a_record(1, a_batch(MS)), T0)
    for life in range(11):  # of as many pipelines as may live at once
        session = a_session(collector, str(life))
        batches = [a_batch(MS, pipeline=f"{life}.{n}") for n in range(MAX_PAIRS - 1)]
        collector.record(session, a_record(1, *batches), T0 + life * HOUR)
        collector.disconnect(session, "done", T0 + life * HOUR)

    mailer = collector.workers["mailer"]
    assert not collector.has_seen(mailer, "0.0")
    assert collector.has_seen(mailer, "10.0")
    assert collector.has_seen(collector.workers["stayed"], "send"), "its life goes on"


def test_workers_that_are_gone_are_forgotten_after_a_day(collector: Collector) -> None:
    collector.disconnect(a_session(collector), "done", T0)
    a_session(collector, "s2", worker="still here")
    collector.forget(T0 + DAY - 1)
    assert "mailer" in collector.workers
    collector.forget(T0 + DAY)

    assert list(collector.workers) == ["still here"]


def test_of_many_workers_that_are_gone_the_oldest_go_first(collector: Collector) -> None:
    for number in range(bounds.KEPT_WORKERS + 2):
        name = str(number)
        session = a_session(collector, name, worker=name)
        collector.disconnect(session, "done", T0 + number)
    collector.forget(T0 + bounds.KEPT_WORKERS + 2)

    assert len(collector.workers) == bounds.KEPT_WORKERS
    assert not {"0", "1"} & collector.workers.keys()


def test_texts_of_an_error_are_mended_before_they_are_kept(collector: Collector) -> None:
    batch = a_result("r1", failed=True, error=Error(type="E", message="a\0b"))
    collector.record(a_session(collector), a_record(1, batch), T0)

    error = newest_run(collector).detail.error
    assert error is not None
    assert error.message == "a\ufffdb"
