"""A reading: what is on the disk, and of whom."""

from __future__ import annotations

import asyncio

import pytest

from builders import (
    MINUTE,
    MS,
    SECOND,
    T0,
    a_batch,
    a_connect,
    a_heartbeat,
    a_record,
    a_session,
    a_start,
)
from orbit_service.exporters.reading import InProgress, QueueNow

PAIR = ("mailer", "send")


def counted(reading):
    return {pair: one.runs.runs for pair, one in reading.counts.series.items()}


async def test_what_is_counted_is_told_when_it_is_on_the_disk(collector, reader):
    collector.record(a_session(collector), a_record(1, a_batch(MS)), T0)
    reading = await reader().read()

    assert counted(reading) == {PAIR: 1}
    assert reading.counts.results["counted"] == 1


async def test_while_the_disk_takes_nothing_the_last_that_it_took_is_told(collector, reader, disk):
    session, one = a_session(collector), reader()
    collector.record(session, a_record(1, a_batch(MS)), T0)
    await one.read()
    disk.takes = False
    collector.record(session, a_record(2, a_batch(MS)), T0)
    assert counted(await one.read()) == {PAIR: 1}

    disk.takes = True
    assert counted(await one.read()) == {PAIR: 2}


async def test_before_the_disk_has_taken_anything_no_count_is_told(collector, reader, disk):
    disk.takes = False
    collector.record(a_session(collector), a_record(1, a_batch(MS)), T0)
    reading = await reader().read()

    assert reading.counts is None
    assert [worker.name for worker in reading.workers] == ["mailer"]


async def test_an_ended_worker_is_told_of_for_some_time_and_then_no_more(collector, reader, clock):
    session, one = a_session(collector), reader(ended_ms=15 * MINUTE)
    collector.record(session, a_record(1, a_batch(MS)), T0)
    collector.disconnect(session, "done", T0)
    clock[0] = T0 + 15 * MINUTE - 1
    reading = await one.read()
    assert [(w.name, w.started_ms) for w in reading.workers] == [("mailer", None)]
    assert counted(reading) == {PAIR: 1}

    clock[0] = T0 + 15 * MINUTE
    reading = await one.read()
    assert reading.workers == []
    assert counted(reading) == {}


async def test_a_message_that_comes_late_brings_no_ended_worker_back(collector, reader, clock):
    collector.disconnect(a_session(collector), "done", T0)
    clock[0] = now = T0 + 20 * MINUTE
    collector.connect(a_connect(resume=True), now)
    collector.record(collector.sessions["s1"], a_record(1, a_batch(MS)), now)
    reading = await reader().read()

    assert reading.workers == []
    assert counted(reading) == {}


async def test_a_worker_that_comes_back_goes_on_with_its_counts(collector, reader, clock):
    first = a_session(collector)
    collector.record(first, a_record(1, a_batch(MS)), T0)
    collector.disconnect(first, "done", T0)
    clock[0] = now = T0 + 60 * MINUTE
    second = a_session(collector, "s2", now_ms=now)
    collector.record(second, a_record(1, a_batch(MS)), now)

    assert counted(await reader().read()) == {PAIR: 2}


async def test_without_the_worker_label_all_workers_of_a_pipeline_are_one(collector, reader, clock):
    for worker in ("pod-1", "pod-2"):
        session = a_session(collector, worker, worker=worker)
        start = a_start("r1", started_at=T0 - (worker == "pod-2"))
        collector.record(session, a_record(1, a_batch(MS), started=[start]), T0)
    collector.lose(collector.sessions["pod-1"], T0)
    clock[0] = T0 + 60 * MINUTE
    reading = await reader(worker_label=False).read()

    assert counted(reading) == {("", "send"): 3}
    assert reading.in_progress == {("", "send"): InProgress(1, T0 - 1)}


async def test_what_is_in_progress_is_nothing_where_a_pipeline_is_idle(collector, reader):
    session = a_session(collector)
    batches = a_batch(MS), a_batch(MS, pipeline="idle")
    starts = [a_start("r1"), a_start("r2", started_at=T0 - SECOND)]
    collector.record(session, a_record(1, *batches, started=starts), T0)
    reading = await reader().read()

    assert reading.in_progress == {
        PAIR: InProgress(2, T0 - SECOND),
        ("mailer", "idle"): InProgress(0, 0),
    }


@pytest.mark.parametrize(
    ("labelled", "worker"), [pytest.param(True, "mailer"), pytest.param(False, "")]
)
async def test_of_a_queue_the_newest_word_is_told(collector, reader, labelled, worker):
    for n, session in enumerate(("s1", "s2")):
        beat = a_heartbeat(queues={"mail": 3 - n, "idle": 0}, oldest={"mail": T0 - n})
        collector.heartbeat(a_session(collector, session), beat, T0 + n)
    reading = await reader(worker_label=labelled).read()

    assert reading.queues == {
        (worker, "mail"): QueueNow(2, T0 - 1),
        (worker, "idle"): QueueNow(0, None),
    }


async def test_many_who_ask_at_once_share_one_reading(collector, reader, disk):
    asked = 0

    async def settle(_seconds: float) -> bool:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return True

    disk.settle = settle
    one = reader()
    first, *others = await asyncio.gather(*(one.read() for _ in range(5)))

    assert asked == 1
    assert all(other is first for other in others)
