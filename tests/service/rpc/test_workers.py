"""When a session without a connection is lost: by a clock that nobody sets."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

import pytest

from builders import HOUR, MS, T0, a_batch, a_record, a_session
from orbit_rpc_schema.wire import PROTOCOL
from orbit_service.core.collector import Collector
from orbit_service.rpc import controls
from orbit_service.rpc.workers import Peer, Workers
from orbit_service.state.intake import Intake


class Hall:
    """Workers with two clocks: one on the wall, and one that only goes on."""

    def __init__(self) -> None:
        self.wall_ms, self.seconds = T0, 0.0
        self.collector = Collector("node")
        self.workers = Workers(Intake(self.collector), lambda: self.wall_ms, lambda: self.seconds)

    def enter(self, session: str = "s1") -> Peer:
        peer = Peer(self.workers, 1, on_replaced=lambda: None)
        hello = {"protocol": PROTOCOL, "session": session, "worker": "mailer"}
        peer.write("worker.connect", {**hello, "startedAt": T0, "pid": 1, "host": "box"})
        return peer

    def pass_time(self, seconds: float, step: float = 0.25) -> None:
        """Time passes as in a service that looks four times a second."""
        for _ in range(round(seconds / step)):
            self.seconds += step
            self.wall_ms += round(step * 1000)
            self.workers.expire()

    @property
    def open(self) -> list[str]:
        return list(self.collector.sessions)


@pytest.fixture
def hall() -> Hall:
    return Hall()


def test_a_connection_that_broke_may_come_back_for_two_seconds(hall):
    hall.enter().vanished(process_gone=False)
    hall.pass_time(1.75)
    assert hall.open == ["s1"]

    hall.pass_time(0.25)
    assert hall.open == []
    assert hall.collector.workers["mailer"].last_life.lost


def test_who_came_back_is_suspect_no_more(hall):
    hall.enter().vanished(process_gone=False)
    hall.pass_time(1)
    hall.enter()
    hall.pass_time(60)

    assert hall.open == ["s1"]


def test_a_process_that_is_gone_is_lost_at_once(hall):
    hall.enter().vanished(process_gone=True)

    assert hall.open == []


def test_a_process_that_is_seen_to_be_gone_later_is_lost_then(hall):
    peer = hall.enter()
    peer.vanished(process_gone=False)
    peer.process_gone()

    assert hall.open == []


def test_the_end_of_an_older_connection_says_nothing_of_a_newer_one(hall):
    older = hall.enter()
    older.vanished(process_gone=False)
    hall.enter()
    older.process_gone()
    hall.pass_time(60)

    assert hall.open == ["s1"]


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_a_step_of_the_wall_clock_loses_nobody_and_keeps_nobody(hall, step):
    hall.enter().vanished(process_gone=False)
    hall.wall_ms += step
    hall.pass_time(1.75)
    assert hall.open == ["s1"]

    hall.pass_time(0.25)
    assert hall.open == []


def test_the_time_in_which_the_service_was_stopped_does_not_count(hall):
    hall.enter().vanished(process_gone=False)
    hall.pass_time(1)
    hall.pass_time(60, step=60)
    assert hall.open == ["s1"]

    hall.pass_time(1)
    assert hall.open == []


def test_after_a_start_whoever_was_connected_may_come_back_for_thirty_seconds(hall):
    for session in ("s1", "s2"):
        a_session(hall.collector, session)
    hall.workers.await_return()
    hall.pass_time(20)
    hall.enter("s2")
    hall.pass_time(9.75)
    assert hall.open == ["s1", "s2"]

    hall.pass_time(0.25)
    assert hall.open == ["s2"]


def test_what_was_recorded_while_the_service_was_away_is_awaited_until_all_are_back(hall):
    assert not hall.workers.awaits_return()
    for session in ("s1", "s2"):
        a_session(hall.collector, session)
    hall.workers.await_return()
    hall.enter("s2")
    hall.pass_time(10)
    assert hall.workers.awaits_return()
    hall.enter("s1")
    hall.pass_time(4.75)
    assert hall.workers.awaits_return()  # it may be telling yet

    hall.pass_time(0.25)
    assert not hall.workers.awaits_return()


def test_who_does_not_come_back_is_not_awaited_for_ever(hall):
    a_session(hall.collector, "s1")
    hall.workers.await_return()
    for _ in range(35):
        hall.workers.awaits_return()
        hall.pass_time(1)

    assert not hall.workers.awaits_return()


def test_a_message_is_counted_the_same_by_text_and_by_value(hall):
    peer = hall.enter()
    batch = {"pipeline": "send", "at": T0, "durationUs": [MS]}
    peer.write("runs.record", {"seq": 1, "recorded": 1, "batches": [batch]})

    counted = Collector("node")
    counted.record(a_session(counted), a_record(1, a_batch(MS)), T0)
    assert asdict(hall.collector.ledger) == asdict(counted.ledger)


async def test_more_control_messages_than_can_wait_are_refused_until_one_has_ended(
    hall, monkeypatch
):
    monkeypatch.setattr(controls, "MAX_CONTROLS", 1)
    hall.enter()
    first = asyncio.ensure_future(hall.workers.control("mailer", "pause"))
    await asyncio.sleep(0)  # so that it is told

    with pytest.raises(controls.TooManyControls, match="1 control messages wait"):
        await hall.workers.control("mailer", "pause")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert await hall.workers.control("mailer", "pause", timeout=0.01) == {"s1": "no answer"}


async def test_a_worker_of_a_thousand_sessions_is_told_at_once(hall):
    names = {f"s{number}" for number in range(1_000)}
    for name in names:
        hall.enter(name)

    outcomes = await hall.workers.control("mailer", "pause", timeout=0.01)
    assert outcomes == dict.fromkeys(names, "no answer")
