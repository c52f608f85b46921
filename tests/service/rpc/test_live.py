"""What subscribers hear: the same news for all, and the newest for who is slow."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from builders import T0, a_batch, a_record, a_session
from orbit_rpc_schema.errors import NoSuchSubscription, NotOnHub, TooManySubscriptions
from orbit_rpc_schema.procedures import (
    RunsSubscribeParams,
    UnsubscribeParams,
    WorkerSubscribeParams,
)
from orbit_service.core import snapshot
from orbit_service.core.collector import Collector
from orbit_service.rpc import live as live_module
from orbit_service.rpc.live import Listener, Live, News


class Reader:
    """A listener that has read nothing yet."""

    def __init__(self, live: Live) -> None:
        self.listener = Listener(live)
        self.subscribe = self.listener.change

    async def read(self) -> list[dict[str, Any]]:
        """What waits for it, read at once."""
        texts: list[str] = []

        async def send(text: str) -> None:
            texts.append(text)

        sending = asyncio.create_task(self.listener.send_all(send))
        for _ in range(3):
            await asyncio.sleep(0)
        sending.cancel()
        return [json.loads(text)["params"] for text in texts]


@pytest.fixture
def collector() -> Collector:
    return Collector("box")


@pytest.fixture
def live(collector: Collector) -> Live:
    return Live(lambda params: snapshot.metrics(collector, params, T0), lambda: T0, collector)


def record(collector: Collector, seq: int, runs: int, failed: int = 0, **batch: Any) -> None:
    session = collector.sessions.get("s1") or a_session(collector)
    columns = a_batch(*[1000] * runs, failed=list(range(failed)), **batch)
    collector.record(session, a_record(seq, columns), T0)


async def test_totals_come_with_each_interval(collector, live):
    reader = Reader(live)
    reader.subscribe(WorkerSubscribeParams(interval=60_000))
    record(collector, 1, runs=3)
    await live.look()

    [update] = await reader.read()
    assert (update["metrics"]["totalRuns"], update["window"]) == (3, None)
    await live.look()  # a moment later nothing is due
    assert await reader.read() == []


async def test_a_window_that_closed_is_told_with_the_totals(collector, live):
    reader = Reader(live)
    reader.subscribe(WorkerSubscribeParams(pipeline="send"))
    record(collector, 1, runs=4, failed=1)
    record(collector, 2, runs=7, pipeline="other")
    live.closed(collector.outbox.windows)
    await live.look()

    [update] = await reader.read()
    window = update["window"]
    assert (window["at"], window["runs"], window["failed"]) == (T0, 4, 1)
    assert update["metrics"]["totalRuns"] == 4


async def test_what_is_asked_alike_is_written_once(collector, live):
    first, second = Reader(live), Reader(live)
    subscriptions = {
        reader.subscribe(WorkerSubscribeParams()).subscription for reader in (first, second)
    }
    await live.look()

    texts = {id(news.text) for r in (first, second) for news in r.listener._waiting.values()}
    assert len(subscriptions) == len(texts) == 1
    assert await first.read() == await second.read()


async def test_runs_are_told_as_they_end_newest_first(collector, live):
    reader = Reader(live)
    reader.subscribe(RunsSubscribeParams())
    record(collector, 1, runs=2)
    record(collector, 2, runs=1, failed=1, pipeline="other")
    await live.look()

    [ended] = await reader.read()
    assert [run["pipeline"]["name"] for run in ended["runs"]] == ["other", "send", "send"]
    assert [run["status"] for run in ended["runs"]] == ["failed", "success", "success"]
    assert "missed" not in ended


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"status": "failed"}, 2),
        ({"status": "success"}, 3),
        ({"pipeline": "send"}, 5),
        ({"pipeline": "other"}, 0),
        ({"worker": "mailer"}, 5),
        ({"worker": "other"}, 0),
    ],
)
async def test_of_runs_those_are_told_that_were_asked_for(collector, live, asked, told):
    reader = Reader(live)
    reader.subscribe(RunsSubscribeParams(**asked))
    record(collector, 1, runs=5, failed=2)
    await live.look()

    assert sum(len(ended["runs"]) for ended in await reader.read()) == told


async def test_what_is_too_much_for_a_message_is_counted(collector, live):
    reader = Reader(live)
    reader.subscribe(RunsSubscribeParams())
    failures = Reader(live)
    failures.subscribe(RunsSubscribeParams(status="failed"))
    for seq in range(1, 6):
        record(collector, seq, runs=1000, failed=10)
    await live.look()

    [ended], [failed] = await reader.read(), await failures.read()
    assert (len(ended["runs"]), ended["missed"]) == (100, 4900)
    assert len(failed["runs"]) + failed["missed"] == 50


async def test_a_slow_reader_gets_the_newest_and_how_much_it_missed(collector, live, monkeypatch):
    monkeypatch.setattr(live_module, "LOOK_SECONDS", 10.0)  # so that each look is due
    reader = Reader(live)
    reader.subscribe(WorkerSubscribeParams())
    reader.subscribe(RunsSubscribeParams())
    for seq in range(1, 4):
        record(collector, seq, runs=2)
        await live.look()

    totals, ended = await reader.read()
    assert (totals["metrics"]["totalRuns"], totals["missed"]) == (6, 2)
    assert (len(ended["runs"]), ended["missed"]) == (2, 4)


async def test_nothing_is_kept_for_nobody(collector, live):
    reader = Reader(live)
    name = reader.subscribe(RunsSubscribeParams()).subscription
    reader.subscribe(UnsubscribeParams(subscription=name))
    record(collector, 1, runs=5)

    assert not live._ended.take().columns
    await live.look()
    assert await reader.read() == []


async def test_who_leaves_hears_no_more(collector, live):
    reader, other = Reader(live), Reader(live)
    for each in (reader, other):
        each.subscribe(WorkerSubscribeParams())
    reader.listener.leave()
    await live.look()

    assert (await reader.read(), len(await other.read())) == ([], 1)


def test_a_subscription_that_is_not_its_own_cannot_be_ended(live):
    name = Reader(live).subscribe(WorkerSubscribeParams()).subscription
    with pytest.raises(NoSuchSubscription):
        Reader(live).subscribe(UnsubscribeParams(subscription=name))


def test_a_listener_holds_so_many_subscriptions_and_no_more(live):
    reader = Reader(live)
    for number in range(live_module.MAX_SUBJECTS):
        reader.subscribe(WorkerSubscribeParams(pipeline=f"p{number}"))
    with pytest.raises(TooManySubscriptions):
        reader.subscribe(RunsSubscribeParams())
    reader.subscribe(WorkerSubscribeParams(pipeline="p0"))  # which it has


def test_a_hub_has_no_runs_to_tell_of():
    hub = Live(lambda _params: None, lambda: T0)
    with pytest.raises(NotOnHub):
        Reader(hub).subscribe(RunsSubscribeParams())


@pytest.mark.parametrize(("own", "before", "told"), [(0, 0, None), (3, 0, 3), (0, 2, 2), (3, 2, 5)])
def test_news_tell_what_was_missed_in_them_and_before(own, before, told):
    text = News('{"params":{"subscription":"x"}}', 1, own).after(before)
    assert json.loads(text)["params"].get("missed") == told
