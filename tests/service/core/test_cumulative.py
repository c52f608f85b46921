"""Cumulative: sums over every life, which never go back."""

from __future__ import annotations

import pytest

from builders import MINUTE, MS, T0, a_batch, a_connect, a_record, a_result, a_session, an_error
from orbit_service.core import cardinality, cumulative
from orbit_service.core.cardinality import IDLE_MS, OTHER_ERRORS, OTHER_STEPS
from orbit_service.core.collector import Collector
from orbit_service.core.cumulative import Cumulative, Series


@pytest.fixture
def collector() -> Collector:
    return Collector("box")


def a_series(**errors: int) -> Series:
    return Series(T0, errors=errors)


def test_a_new_life_goes_on_where_the_old_one_ended(collector):
    for life in ("s1", "s2"):
        session = a_session(collector, life)
        collector.record(session, a_record(1, a_batch(MS, MS, failed=[0])), T0)
        collector.disconnect(session, "done", T0)

    series = collector.cumulative.series["mailer", "send"]
    assert (series.runs.runs, series.runs.failed) == (4, 2)
    assert series.created_ms == T0


def test_versions_are_one_series(collector):
    for version in ("1", "2"):
        session = a_session(collector, version, version=version)
        collector.record(session, a_record(1, a_batch(MS)), T0)

    assert {pair: s.runs.runs for pair, s in collector.cumulative.series.items()} == {
        ("mailer", "send"): 2
    }


def test_failures_count_by_the_type_of_their_error(collector):
    session = a_session(collector)
    for seq, type in enumerate(["ValueError", "KeyError", "ValueError"], 1):
        batch = a_result(f"r{seq}", failed=True, error=an_error(type))
        collector.record(session, a_record(seq, batch), T0)

    assert collector.cumulative.series["mailer", "send"].errors == {"ValueError": 2, "KeyError": 1}


def test_failures_that_do_not_tell_their_type_are_unknown(collector):
    session = a_session(collector)
    known = a_result("r1", failed=True, error=an_error("KeyError"))
    collector.record(session, a_record(1, known, a_batch(MS, MS, MS, failed=[0, 2])), T0)

    series = collector.cumulative.series["mailer", "send"]
    assert series.errors == {"KeyError": 1, "(unknown)": 2}
    assert sum(series.errors.values()) == series.runs.failed


def test_error_types_over_the_bound_are_one(monkeypatch):
    monkeypatch.setattr(cumulative, "MAX_ERROR_TYPES", 2)
    sums, series = Cumulative(), a_series()
    for type in ("A", "B", "C", "D", "A"):
        sums.add_error(series, type)

    assert series.errors == {"A": 2, "B": 1, OTHER_ERRORS: 2}


def test_steps_over_the_bound_are_one(monkeypatch):
    monkeypatch.setattr(cumulative, "MAX_STEPS", 1)
    sums, series = Cumulative(), a_series()
    for name in ("parse", "store", "send"):
        sums.step(series, name).add_runs([MS], 0, T0)

    assert {name: step.runs for name, step in series.steps.items()} == {"parse": 1, OTHER_STEPS: 2}


def test_what_is_let_go_makes_room_and_stays_in_the_sum_of_its_pipeline(monkeypatch):
    monkeypatch.setattr(cumulative, "MAX_ERROR_TYPES", 1)
    sums = Cumulative()
    for worker in ("pod-1", "pod-2"):
        series = sums.of((worker, "send"), T0)
        series.runs.add_runs([MS], 1, T0)
        sums.add_error(series, "ValueError")
        sums.let_go((worker, "send"))

    assert sums.series == {}
    assert sums.by_pipeline()["send"].runs.runs == 2
    assert sums.by_pipeline()["send"].errors == {"ValueError": 2}


def test_a_pair_whose_place_is_taken_is_let_go(monkeypatch, collector):
    collector.pairs.limit = 1
    for n, worker in enumerate(("old", "new")):
        now = T0 + n * 2 * IDLE_MS
        session = a_session(collector, worker, worker=worker, now_ms=now)
        collector.record(session, a_record(1, a_batch(MS, at=now)), now)
        collector.disconnect(session, "done", now)

    assert list(collector.cumulative.series) == [("new", "send")]
    assert collector.cumulative.by_pipeline()["send"].runs.runs == 2


def test_an_overflow_of_pairs_is_counted_under_one_name(collector):
    collector.pairs.limit = 1
    session = a_session(collector)
    collector.record(session, a_record(1, a_batch(MS), a_batch(MS, pipeline="more")), T0)

    folded = (cardinality.OTHER_WORKERS, cardinality.OTHER_PIPELINES)
    assert {pair: s.runs.runs for pair, s in collector.cumulative.series.items()} == {
        ("mailer", "send"): 1,
        folded: 1,
    }


def test_a_copy_does_not_change_with_its_original(collector):
    session = a_session(collector)
    collector.record(session, a_record(1, a_result("a", wait_us=MS)), T0)
    copy = collector.cumulative.series["mailer", "send"].copy()
    collector.record(session, a_record(2, a_result("b", wait_us=MS)), T0 + MINUTE)

    assert (copy.runs.runs, copy.runs.histogram.count, copy.runs.waits.count) == (1, 1, 1)


def test_what_seemed_dropped_and_was_counted_stays_in_the_sum(collector):
    session = a_session(collector)
    lost = {"buffer full": 3}
    collector.record(session, a_record(1, a_batch(MS), recorded=4, dropped=lost), T0)
    collector.connect(a_connect(), T0)
    collector.record(session, a_record(2, a_batch(MS), recorded=5), T0)

    assert collector.ledger.dropped == {}
    assert collector.cumulative.dropped == lost
