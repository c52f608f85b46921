"""A checkpoint of the release before, which kept no sums for exporters."""

from __future__ import annotations

import msgspec
import pytest

from builders import MS, T0, a_batch, a_record, a_session
from orbit_service.core.collector import Collector
from orbit_service.state.checkpoint import Unreadable, dump, load


def an_older_checkpoint(collector: Collector) -> bytes:
    state = msgspec.msgpack.decode(dump(collector))
    del state["cumulative"]
    return msgspec.msgpack.encode(state)


def test_its_current_lives_are_what_counters_begin_with():
    before, after = Collector("box"), Collector("box")
    session = a_session(before)
    lost = {"buffer full": 3}
    message = a_record(1, a_batch(MS, MS, failed=[0]), recorded=5, dropped=lost)
    before.record(session, message, T0)
    load(an_older_checkpoint(before), after)

    series = after.cumulative.series["mailer", "send"]
    assert (series.runs.runs, series.runs.failed, series.created_ms) == (2, 1, T0)
    assert series.errors == {"(unknown)": 1}
    assert after.cumulative.dropped == lost


def test_what_is_no_checkpoint_is_unreadable():
    with pytest.raises(Unreadable):
        load(b"nonsense", Collector("box"))
