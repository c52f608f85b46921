"""What a node's rules look at: each window that has closed, once, wherever it is by then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alerting import DAY
from builders import MS, SECOND, T0
from histories import SEND, runs
from orbit_rpc_schema.errors import HistoryUnavailable
from orbit_service.alerting import sources
from orbit_service.alerting.sources import OfFleet, OfNode
from orbit_service.alerts.rules import Rule
from orbit_service.alerts.sums import Sums
from orbit_service.core.collector import Collector
from orbit_service.core.fleet import Fleet
from orbit_service.core.outbox import GRACE_MS, ErrorText, Key, Outbox
from orbit_service.core.rollup import LEVELS
from orbit_service.history import engines
from orbit_service.history.archive import Archive
from orbit_service.history.port import Add, HistoryFailed, Wanted
from orbit_service.history.sql import SqlHistory


def unmoved(start_ms: int, _now_ms: int) -> int:
    """No clock was set."""
    return start_ms


FAILURES = Rule(name="runs", metric="runs_per_hour", window="1h", above=0)


class Node:
    """Windows that close and are published; and rules that are looked at."""

    def __init__(self, path: Path) -> None:
        self.history = SqlHistory(engines.sqlite_file(path), clock=lambda: self.now_ms)
        self.collector = Collector("n")
        self.now_ms = T0
        self.away = False
        self.begin()

    def begin(self) -> None:
        """The service has started again: rules are looked at for the first time."""
        archive = Archive(lambda: self, "n", lambda: self.collector.outbox)  # type: ignore[arg-type,return-value]
        self.source = OfNode(
            lambda: self.collector, archive, LEVELS, None, 0, lambda: (), T0, self.close_by
        )
        self.sums = Sums([FAILURES])

    def read(self, wanted: Wanted, add: Add) -> dict[str, tuple[int, str]]:
        if self.away:
            raise HistoryFailed("away")
        return self.history.read(wanted, add)

    def run(self, at_ms: int | None = None) -> None:
        at_ms = self.now_ms if at_ms is None else at_ms
        self.collector.outbox.stats(SEND, at_ms).add_runs([MS], 0, at_ms)

    def close(self, after: int = 12) -> None:
        """So many seconds later."""
        self.now_ms += after * SECOND
        self.close_by(self.now_ms)

    def close_by(self, now_ms: int) -> None:
        """As the service does several times a second."""
        outbox = self.collector.outbox
        starts = outbox.over(now_ms)
        self.source.saw({start: outbox.windows[start] for start in starts})
        outbox.close("instance", starts, f"token {outbox.number + 1}")

    def publish(self, *, knows: bool = True) -> None:
        outbox = self.collector.outbox
        number = self.history.apply("n", outbox.instance, outbox.waiting, outbox.tokens())
        if knows:
            outbox.take(number)

    def stop(self) -> None:
        """What is open is closed and published."""
        outbox = self.collector.outbox
        outbox.close("instance", list(outbox.windows), f"token {outbox.number + 1}")
        self.publish()

    async def errors(self) -> Any:
        """Those that were not told before."""
        await self.source.read_errors()
        return self.source.closed(None, self.now_ms).errors

    async def look(self) -> int:
        """How many runs the rules see."""
        past = await self.source.past(self.sums, unmoved, self.now_ms)
        closed = self.source.closed(past, self.now_ms)
        if closed.sums is not None:
            self.sums = closed.sums
        for start_ms, window in closed.windows:
            self.sums.add(start_ms, window)
        self.source.added(self.sums)
        return sum(total.runs for total in self.sums.of(FAILURES).values())


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "history.sqlite")
    yield node
    node.history.close()


async def test_what_closed_before_the_start_is_counted_wherever_it_is(node):
    node.run()
    node.close()
    node.publish()
    node.run()
    node.close()
    node.publish(knows=False)  # as after a kill in between
    node.run()
    node.close()  # and waits
    node.run()  # and is open

    assert await node.look() == 3
    node.close()
    assert await node.look() == 4
    node.publish()
    assert await node.look() == 4


async def test_a_window_that_is_over_is_looked_at_though_its_time_to_close_has_not_come(node):
    await node.look()
    node.run()
    node.now_ms += 12 * SECOND

    assert await node.look() == 1


@pytest.mark.parametrize("seconds", [0, 1, 2, 5, 9, 10, 11])
async def test_a_service_that_starts_again_at_once_has_what_it_closed_when_it_stopped(
    node, seconds
):
    node.run()
    node.now_ms += seconds * SECOND
    node.stop()
    node.begin()

    assert await node.look() == 1


@pytest.mark.parametrize("window", ["10s", "1m", "10m", "11m", "1h"])
@pytest.mark.parametrize("seconds", [0, 1, 2, 9])
async def test_the_past_reaches_back_as_far_as_the_sums_do(node, window, seconds):
    rule = Rule(name="runs", metric="runs_per_hour", window=window, above=0)
    for n in range(400):
        node.run(T0 + n * 10 * SECOND)
    node.now_ms = T0 + 4_000 * SECOND + seconds * SECOND
    node.stop()
    kept, read = Sums([rule]), Sums([rule])
    for n in range(400):
        kept.add(T0 + n * 10 * SECOND, {SEND: runs(MS)})
    read = await node.source.past(read, unmoved, node.now_ms)
    for sums in (kept, read):
        end_ms = node.now_ms - GRACE_MS
        sums.advance(end_ms - end_ms % (10 * SECOND))

    [expected], [found] = (sums.of(rule).values() for sums in (kept, read))
    assert found.runs == expected.runs > 0


@pytest.mark.parametrize("published", [True, False])
async def test_what_came_late_is_counted_with_its_window_and_leaves_it_as_it_was(node, published):
    start_ms = node.now_ms
    node.run()
    node.close()
    if published:
        node.publish()
    node.run(start_ms)
    node.close(0)

    assert await node.look() == 2
    node.begin()
    assert await node.look() == 2
    node.publish()
    node.begin()
    assert await node.look() == 2


async def test_a_window_that_closes_while_the_past_is_read_counts_once(node, monkeypatch):
    read, interrupted = node.history.read, []

    def closes_meanwhile(wanted: Wanted, add: Add) -> dict[str, tuple[int, str]]:
        if not interrupted:
            interrupted.append(True)
            node.close()
            node.publish()
        return read(wanted, add)

    monkeypatch.setattr(node.history, "read", closes_meanwhile)
    node.run()
    node.close()
    node.publish()
    node.run()

    assert await node.look() == 2
    assert interrupted


async def test_other_rules_are_given_the_past_again(node):
    node.run()
    node.close()
    assert await node.look() == 1
    node.sums = Sums([FAILURES])

    assert await node.look() == 1


async def test_where_nobody_looks_nothing_is_kept(node):
    node.run()
    node.close()

    assert node.source._closed == []
    assert await node.look() == 1


async def test_a_history_that_is_away_is_waited_for_and_nothing_that_closes_is_lost(node):
    node.run()
    node.close()
    node.publish()
    node.away = True
    for _ in range(2):
        node.run()
        node.close()
        with pytest.raises(HistoryUnavailable):
            await node.look()
    node.away = False

    assert await node.look() == 3


async def test_of_a_past_that_is_away_the_node_has_what_it_could_not_publish(node, monkeypatch):
    monkeypatch.setattr(sources, "PATIENCE_SECONDS", 0)
    node.run()
    node.close()
    node.publish()
    node.away = True
    unpublished_ms = node.now_ms
    node.run()
    node.close()
    node.begin()
    past = await node.source.past(node.sums, unmoved, node.now_ms)

    closed = node.source.closed(past, node.now_ms)
    assert closed.sums is not None
    assert sum(total.runs for total in closed.sums.of(FAILURES).values()) == 1
    assert closed.known_from_ms == unpublished_ms - unpublished_ms % (10 * SECOND)


async def test_what_workers_may_tell_yet_that_come_back_is_not_known(node, monkeypatch):
    past = await node.source.past(node.sums, unmoved, node.now_ms)
    assert node.source.closed(past, node.now_ms).known_from_ms == 0
    monkeypatch.setattr(node.source, "_awaits_return", lambda: True)

    assert node.source.closed(None, node.now_ms).known_from_ms == node.now_ms


async def test_rules_go_on_without_a_past_that_stays_away_and_have_it_when_it_is_back(
    node, monkeypatch
):
    monkeypatch.setattr(sources, "PATIENCE_SECONDS", 0)
    node.run()
    node.close()
    node.publish()
    node.away = True
    assert await node.look() == 0
    node.run()
    node.close()
    assert await node.look() == 1
    node.away = False
    assert await node.look() == 1  # it is not asked at each look
    monkeypatch.setattr(node.source, "_again_at", 0)
    node.run()
    node.close()

    assert await node.look() == 3
    node.run()
    node.close()
    assert await node.look() == 4


async def test_while_the_past_stays_away_it_is_asked_now_and_then(node, monkeypatch):
    monkeypatch.setattr(sources, "PATIENCE_SECONDS", 0)
    node.away = True
    await node.look()
    monkeypatch.setattr(node.source, "_again_at", 0)
    node.run()
    node.close()

    assert await node.look() == 1
    assert node.source._again_at > 0


def an_error(node: Node, message: str, **key: Any) -> None:
    key_ = Key("mailer", "send", error="ValueError")._replace(**key)
    node.collector.outbox.stats(key_, node.now_ms).add_runs([MS], 1, node.now_ms)
    node.collector.outbox.add_error(key_, ErrorText(node.now_ms, message, None))


async def test_the_newest_error_of_each_pair_is_told_once(node, monkeypatch):
    monkeypatch.setattr(node, "error_texts", node.history.error_texts, raising=False)
    an_error(node, "before")
    node.close()
    node.publish()
    await node.source.past(node.sums, unmoved, node.now_ms)
    first = await node.errors()
    an_error(node, "older", error="KeyError")
    node.now_ms += SECOND
    an_error(node, "newer")
    node.close()
    told = await node.errors()

    assert {pair: text.message for pair, (_type, text) in first.items()} == {
        ("send", "mailer"): "before"
    }
    assert [(type, text.message) for type, text in told.values()] == [("ValueError", "newer")]
    assert await node.errors() == {}


# ---------------------------------------------------------------- a fleet


@pytest.fixture
def hub(node: Node) -> OfFleet:
    nothing = Outbox()
    archive = Archive(lambda: node, "", lambda: nothing)  # type: ignore[arg-type,return-value]
    return OfFleet(Fleet, archive, LEVELS, 0, T0)


async def test_a_fleet_knows_the_successes_of_workers_that_are_gone(node, hub, monkeypatch):
    monkeypatch.setattr(sources, "SUCCESSES_SECONDS", 0)
    nothing = Sums(())
    node.run()
    node.close()
    node.publish()
    await hub.past(nothing, unmoved, node.now_ms)
    assert hub.facts(node.now_ms).successes == {("mailer", "send"): T0}
    node.run()
    again_ms = node.now_ms
    node.close()
    node.publish()

    await hub.past(nothing, unmoved, node.now_ms)
    assert hub.facts(node.now_ms).successes == {("mailer", "send"): again_ms}
    await hub.past(nothing, unmoved, node.now_ms + 6 * DAY)
    assert hub.facts(node.now_ms).successes == {("mailer", "send"): again_ms}
    await hub.past(nothing, unmoved, node.now_ms + 8 * DAY)
    assert hub.facts(node.now_ms).successes == {}


async def test_a_hub_knows_the_error_of_what_has_failed_since_its_last_look(node, monkeypatch):
    monkeypatch.setattr(node, "error_texts", node.history.error_texts, raising=False)
    nothing = Collector("hub").outbox
    archive = Archive(lambda: node, "hub", lambda: nothing)  # type: ignore[arg-type,return-value]
    hub = OfFleet(lambda: None, archive, LEVELS, 0, T0)  # type: ignore[arg-type,return-value]

    async def errors() -> list[str]:
        past = await hub.past(node.sums, unmoved, node.now_ms)
        await hub.read_errors()
        return [text.message for _type, text in hub.closed(past, node.now_ms).errors.values()]

    assert await errors() == []
    node.collector.outbox.stats(SEND, node.now_ms).add_runs([MS], 1, node.now_ms)
    an_error(node, "refused")
    node.close()
    node.publish()

    assert await errors() == ["refused"]
    assert await errors() == []  # nothing has failed since: the next reading may wait
