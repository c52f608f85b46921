"""Checkpoints of releases before, which kept less."""

from __future__ import annotations

import msgspec
import pytest

from builders import MS, T0, a_batch, a_record, a_result, a_session
from orbit_service.core.collector import Collector
from orbit_service.core.histogram import Histogram
from orbit_service.core.outbox import Key
from orbit_service.state.checkpoint import Unreadable, dump, load


def a_checkpoint_without_sums_for_exporters(collector: Collector) -> bytes:
    state = msgspec.msgpack.decode(dump(collector))
    del state["cumulative"]
    return msgspec.msgpack.encode(state)


def a_checkpoint_without_waits_of_windows(collector: Collector) -> bytes:
    """As 0.1 wrote it: a series for exporters had its waits beside its runs."""
    state = msgspec.msgpack.decode(dump(collector))
    for series in state["cumulative"]["series"].values():
        series[2] = series[1].pop()
    lives = [worker["life"]["series"] for worker in state["workers"]]
    for stats_by_name in (*lives, *state["outbox"]["windows"].values()):
        for stats in stats_by_name.values():
            stats.pop()
    return msgspec.msgpack.encode(state)


def test_without_sums_for_exporters_the_current_lives_are_what_they_begin_with():
    before, after = Collector("box"), Collector("box")
    session = a_session(before)
    lost = {"buffer full": 3}
    message = a_record(1, a_batch(MS, MS, failed=[0]), recorded=5, dropped=lost)
    before.record(session, message, T0)
    load(a_checkpoint_without_sums_for_exporters(before), after)

    series = after.cumulative.series["mailer", "send"]
    assert (series.runs.runs, series.runs.failed, series.created_ms) == (2, 1, T0)
    assert series.errors == {"(unknown)": 1}
    assert after.cumulative.dropped == lost


def test_without_waits_of_windows_those_for_exporters_go_on():
    before, after = Collector("box"), Collector("box")
    waited = [a_result("r1", wait_us=2 * MS), a_result("r2", wait_us=9 * MS)]
    before.record(a_session(before), a_record(1, *waited), T0)
    load(a_checkpoint_without_waits_of_windows(before), after)
    row = after.outbox.windows[T0][Key("mailer", "send")]
    assert (row.waited, row.waits) == (2, None)

    again = Collector("box")
    load(dump(after), again)
    again.record(again.sessions["s1"], a_record(2, a_result("r3", wait_us=7 * MS), recorded=3), T0)
    runs = again.cumulative.series["mailer", "send"].runs
    assert runs.waits == Histogram.of([2 * MS, 9 * MS, 7 * MS])
    row = again.outbox.windows[T0][Key("mailer", "send")]
    assert (row.waited, row.waits) == (3, Histogram.of([7 * MS]))


def test_what_is_no_checkpoint_is_unreadable():
    with pytest.raises(Unreadable):
        load(b"nonsense", Collector("box"))
