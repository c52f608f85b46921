"""What is so now, from what workers tell; and after the clock was set."""

from __future__ import annotations

from typing import Any

import pytest

from builders import (
    HOUR,
    MINUTE,
    MS,
    SECOND,
    T0,
    a_batch,
    a_heartbeat,
    a_record,
    a_session,
    a_start,
)
from orbit_service.alerts.facts import Facts, InFlightFact, Stamps, WorkerFact, facts_here, facts_of
from orbit_service.core.collector import Collector
from orbit_service.core.sessions import EndedLife, Life, Worker

STUCK = 10 * MINUTE


@pytest.fixture
def collector() -> Collector:
    return Collector("node")


def facts(collector: Collector, now_ms: int = T0, since_ms: int = 0) -> Facts:
    return facts_here(collector, STUCK, since_ms, [], now_ms)


def ended(node: str, at_ms: int, *, lost: bool) -> Worker:
    """A worker of a node whose last life ended then."""
    last = EndedLife("mailer", at_ms, "", lost, 0, 0)
    return Worker("mailer", at_ms, node, last_life=last)


def connected(node: str) -> Worker:
    return Worker("mailer", T0, node, life=Life(1, T0, "s1"))


# ---------------------------------------------------------------- workers


def test_a_worker_that_is_connected_is_so_now(collector: Collector) -> None:
    a_session(collector, now_ms=T0 - SECOND)

    assert facts(collector).workers["mailer"] == WorkerFact(True, False, False, T0, T0 - SECOND)


@pytest.mark.parametrize(
    ("quiet_ms", "since_ms", "silent"),
    [
        pytest.param(30 * SECOND - 1, 0, False, id="not yet"),
        pytest.param(30 * SECOND, 0, True, id="for half a minute"),
        pytest.param(HOUR, T0 - 10 * SECOND, False, id="while nobody listened"),
        pytest.param(HOUR, T0 - 30 * SECOND, True, id="and half a minute after that"),
    ],
)
def test_a_worker_that_is_not_heard_of_is_silent(
    collector: Collector, quiet_ms: int, since_ms: int, silent: bool
) -> None:
    a_session(collector, now_ms=T0 - quiet_ms)

    assert facts(collector, since_ms=since_ms).workers["mailer"].silent is silent


def test_one_silent_process_of_several_is_enough(collector: Collector) -> None:
    a_session(collector, "s1", now_ms=T0 - MINUTE)
    a_session(collector, "s2", now_ms=T0)

    assert facts(collector).workers["mailer"].silent


@pytest.mark.parametrize(
    ("workers", "is_connected", "lost"),
    [
        pytest.param([ended("a", T0 - 5, lost=True)], False, True, id="lost"),
        pytest.param([ended("a", T0 - 5, lost=False)], False, False, id="it said goodbye"),
        pytest.param(
            [ended("a", T0 - 5, lost=True), connected("b")], True, False, id="it is elsewhere"
        ),
        pytest.param(
            [ended("a", T0 - 5, lost=True), ended("b", T0 - 9, lost=False)],
            False,
            True,
            id="lost last",
        ),
        pytest.param(
            [ended("a", T0 - 9, lost=True), ended("b", T0 - 5, lost=False)],
            False,
            False,
            id="it said goodbye elsewhere since",
        ),
        pytest.param(
            [ended("a", T0 - 5, lost=True), ended("b", T0 - 5, lost=False)],
            False,
            True,
            id="both at once",
        ),
    ],
)
def test_of_a_name_at_several_nodes(workers: list[Worker], is_connected: bool, lost: bool) -> None:
    for order in (workers, workers[::-1]):
        fact = facts_of(order, STUCK, 0, T0).workers["mailer"]
        assert (fact.connected, fact.lost) == (is_connected, lost)
        assert fact.last_ms == (T0 if is_connected else T0 - 5)


# ---------------------------------------------------------------- runs and queues


def test_runs_in_flight_are_told_by_worker_and_pipeline(collector: Collector) -> None:
    session = a_session(collector)
    starts = [a_start(f"r{n}", started_at=T0 - n * 4 * MINUTE) for n in range(1, 5)]
    other = a_start("x", pipeline="import", started_at=T0)
    collector.record(session, a_record(1, started=[*starts, other]), T0)

    found = facts(collector).in_flight
    assert found[("mailer", "send")].oldest_ms == T0 - 16 * MINUTE
    assert found[("mailer", "send")].stuck == 2
    assert (found[("mailer", "import")].stuck, found[("mailer", "import")].oldest_ms) == (0, T0)


def test_a_run_is_stuck_after_its_time_and_not_at_it(collector: Collector) -> None:
    start = a_start(started_at=T0 - STUCK)
    collector.record(a_session(collector), a_record(1, started=[start]), T0)

    assert facts(collector).in_flight[("mailer", "send")].stuck == 0
    assert facts(collector, T0 + 1).in_flight[("mailer", "send")].stuck == 1


def test_processes_of_a_worker_tell_of_the_same_queue(collector: Collector) -> None:
    for session, depth in (("s1", 7), ("s2", 5)):
        heartbeat = a_heartbeat(queues={"mail": depth})
        collector.heartbeat(a_session(collector, session), heartbeat, T0)

    assert facts(collector).queues == {("mailer", "mail"): 7}


def test_the_last_success_outlives_its_worker(collector: Collector) -> None:
    session = a_session(collector)
    failed = a_batch(MS, failed=[0], at=T0 + 5)
    collector.record(session, a_record(1, a_batch(MS, at=T0), failed), T0 + 5)
    collector.disconnect(session, "bye", T0 + 6)

    assert facts(collector, T0 + HOUR).successes == {("mailer", "send"): T0}


def test_a_hub_knows_nothing_of_what_a_node_knows_of_itself(collector: Collector) -> None:
    hub, node = facts_of([], STUCK, 0, T0), facts(collector)

    assert (hub.dropped, hub.refused, hub.troubles) == (None, None, None)
    assert (node.dropped, node.refused, node.troubles) == (0, 0, [])


# ---------------------------------------------------------------- the clock

ANHOUR = [pytest.param(HOUR, id="forward"), pytest.param(-HOUR, id="back")]


def at(now_ms: int, *, success: int, began: int, heard: int, last: int) -> Facts:
    """Facts of a moment, stamped at these."""
    runs = InFlightFact(int(began < now_ms - STUCK), began, [began])
    return Facts(
        workers={
            "here": WorkerFact(True, False, heard <= now_ms - 30_000, now_ms, heard),
            "gone": WorkerFact(False, True, False, last),
        },
        in_flight={("here", "send"): runs},
        successes={("here", "send"): success},
        stuck_before_ms=now_ms - STUCK,
        silent_until_ms=now_ms - 30_000,
    )


def ages(found: Facts, now_ms: int) -> dict[str, Any]:
    runs = found.in_flight[("here", "send")]
    assert runs.oldest_ms is not None
    return {
        "success": now_ms - found.successes[("here", "send")],
        "began": now_ms - runs.oldest_ms,
        "stuck": runs.stuck,
        "silent": found.workers["here"].silent,
        "last": now_ms - found.workers["gone"].last_ms,
    }


@pytest.mark.parametrize("by_ms", ANHOUR)
def test_when_the_clock_was_set_nothing_is_older_or_younger(by_ms: int) -> None:
    stamped = {"success": T0 - 40 * MINUTE, "began": T0 - MINUTE, "heard": T0, "last": T0 - SECOND}
    stamps = Stamps()
    stamps.as_of_now(at(T0, **stamped), 0, T0)
    now_ms = T0 + 5 * SECOND + by_ms
    found = stamps.as_of_now(at(now_ms, **stamped), by_ms, now_ms)

    assert ages(found, now_ms) == {
        "success": 40 * MINUTE + 5 * SECOND,
        "began": MINUTE + 5 * SECOND,
        "stuck": 0,
        "silent": False,
        "last": 6 * SECOND,
    }


@pytest.mark.parametrize("by_ms", ANHOUR)
def test_it_stays_so_for_as_long_as_the_stamps_do(by_ms: int) -> None:
    # After an hour a clock that was set back shows what it showed before.
    stamped = {"success": T0 - MINUTE, "began": T0 - MINUTE, "heard": T0, "last": T0}
    stamps = Stamps()
    stamps.as_of_now(at(T0, **stamped), 0, T0)
    for passed_ms in range(0, 3 * HOUR, 5 * MINUTE):
        now_ms = T0 + by_ms + passed_ms
        step_ms = 0 if passed_ms else by_ms
        found = ages(stamps.as_of_now(at(now_ms, **stamped), step_ms, now_ms), now_ms)
        assert found["success"] == found["began"] == MINUTE + passed_ms
        assert found["last"] == passed_ms
        assert found["stuck"] == (passed_ms > STUCK - MINUTE)
        assert found["silent"] == (passed_ms >= 30 * SECOND)


@pytest.mark.parametrize("by_ms", ANHOUR)
def test_what_is_stamped_by_the_clock_as_it_is_stays(by_ms: int) -> None:
    stamped = {"success": T0, "began": T0, "heard": T0, "last": T0}
    stamps = Stamps()
    stamps.as_of_now(at(T0, **stamped), 0, T0)
    now_ms = T0 + by_ms + 5 * SECOND
    stamps.as_of_now(at(now_ms, **stamped), by_ms, now_ms)

    for later_ms in range(0, 2 * HOUR, 10 * MINUTE):
        new = dict.fromkeys(stamped, now_ms + later_ms)
        found = stamps.as_of_now(at(now_ms + later_ms, **new), 0, now_ms + later_ms)
        assert ages(found, now_ms + later_ms) == {
            "success": 0,
            "began": 0,
            "stuck": 0,
            "silent": False,
            "last": 0,
        }


@pytest.mark.parametrize("by_ms", ANHOUR)
def test_what_was_stamped_between_the_look_before_and_the_step_is_moved(by_ms: int) -> None:
    old = {"success": T0, "began": T0, "heard": T0, "last": T0}
    stamps = Stamps()
    stamps.as_of_now(at(T0, **old), 0, T0)
    now_ms = T0 + 5 * SECOND + by_ms
    new = dict.fromkeys(old, T0 + 3 * SECOND)
    found = stamps.as_of_now(at(now_ms, **new), by_ms, now_ms)

    assert ages(found, now_ms)["success"] == 2 * SECOND


def test_a_clock_that_was_set_there_and_back_was_not_set() -> None:
    stamped = {"success": T0 - MINUTE, "began": T0 - MINUTE, "heard": T0, "last": T0}
    stamps = Stamps()
    stamps.as_of_now(at(T0, **stamped), 0, T0)
    there = T0 + 5 * SECOND - HOUR
    stamps.as_of_now(at(there, **stamped), -HOUR, there)
    back = T0 + 10 * SECOND
    found = stamps.as_of_now(at(back, **stamped), HOUR, back)

    assert found == at(back, **stamped)


def test_where_the_clock_was_not_set_nothing_is_moved(collector: Collector) -> None:
    a_session(collector)
    found = facts(collector)

    assert Stamps().as_of_now(found, 0, T0) is found
