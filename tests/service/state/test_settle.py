"""Settling: whoever gives counts away waits until they are on the disk."""

from __future__ import annotations

import asyncio

import pytest

from builders import MS, a_batch, a_record
from orbit_service.core.collector import Collector
from orbit_service.state.intake import Intake
from orbit_service.state.store import StoreFailed


async def settled(node, seconds: float = 20.0) -> bool:
    """What settling says, while the writer's posts are done."""
    settling = asyncio.create_task(node.intake.settle(seconds))
    while not settling.done():
        await asyncio.sleep(0.001)
        node.until(lambda: True)
    return settling.result()


async def test_what_was_counted_is_on_the_disk_when_it_has_settled(node):
    node.connect()
    node.record(a_record(1, a_batch(MS)))
    node.until(lambda: True)
    assert await settled(node)

    assert node.session().durable == 1


async def test_what_is_on_the_disk_settles_at_once(node):
    node.connect()
    node.settle()

    assert await node.intake.settle(0)


async def test_without_a_disk_everything_is_settled():
    assert await Intake(Collector("node")).settle(0)


async def test_it_is_not_waited_for_the_writers_rest(node, monkeypatch):
    monkeypatch.setattr("orbit_service.state.journal.REST", 1e9)
    monkeypatch.setattr("orbit_service.state.journal.LONGEST_REST", 60.0)
    node.connect()
    node.settle()
    node.record(a_record(1, a_batch(MS)))
    node.until(lambda: True)

    assert await settled(node)


async def test_a_worker_that_waits_does_not_wait_for_the_long_rest(node, monkeypatch):
    monkeypatch.setattr("orbit_service.state.journal.UNHURRIED_REST", 60.0)
    node.connect()
    node.settle()
    node.record(a_record(1, a_batch(MS)))
    node.record(a_record(2, a_batch(MS), recorded=2, hurry=True))

    node.until(lambda: node.session().durable == 2)


async def test_a_disk_that_takes_nothing_is_not_waited_for(node, monkeypatch):
    def broken(*_arguments: object) -> None:
        raise StoreFailed("no space left")

    monkeypatch.setattr(node.store, "write", broken)
    node.connect()
    node.until(lambda: node.journal.trouble)

    assert not await asyncio.wait_for(settled(node), 20)


async def test_what_was_let_go_settles_with_the_checkpoint_that_holds_it(node, monkeypatch):
    write = node.store.write
    monkeypatch.setattr("orbit_service.state.journal.MAX_PENDING", 0)
    monkeypatch.setattr(node.store, "write", lambda *_: (_ for _ in ()).throw(StoreFailed("full")))
    node.connect()
    node.record(a_record(1, a_batch(MS)))
    node.until(lambda: node.journal.trouble)
    assert not await settled(node)

    monkeypatch.setattr(node.store, "write", write)
    node.until(lambda: node.journal.trouble is None)
    assert await settled(node)
    assert node.session().durable == 1


@pytest.mark.parametrize("many", [5])
async def test_many_wait_for_one_commit(node, many):
    node.connect()
    node.until(lambda: True)
    results = [asyncio.create_task(settled(node)) for _ in range(many)]

    assert all(await asyncio.gather(*results))
