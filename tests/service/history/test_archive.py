"""What the history has and what it does not have yet, each counted once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builders import MS, SECOND, T0, until
from histories import SEND
from orbit_rpc_schema.errors import HistoryUnavailable
from orbit_service.core.outbox import EVERYTHING, ErrorText, Key, Outbox
from orbit_service.core.rollup import Segment
from orbit_service.core.sums import Totals
from orbit_service.history import archive as bounds
from orbit_service.history import engines
from orbit_service.history.archive import Archive
from orbit_service.history.port import Add, HistoryFailed, Wanted
from orbit_service.history.sql import SqlHistory

ALL = [Segment(0, 0, 2 * T0)]


class Node:
    """An outbox and a real history; `publish` moves what waits from the one to the other."""

    def __init__(self, history: SqlHistory) -> None:
        self.history = history
        self.outbox = Outbox()
        self.archive = Archive(lambda: history, "n", lambda: self.outbox)

    def add(self, at_ms: int = T0, key: Key = SEND) -> None:
        self.outbox.stats(key, at_ms).add_runs([MS], 0, at_ms)

    def close(self, at_ms: int = T0) -> None:
        outbox = self.outbox
        token = f"token {outbox.number + 1}"
        outbox.close("instance", outbox.over(at_ms + 12 * SECOND), token)

    def publish(self, *, knows: bool = True) -> None:
        number = self.history.apply(
            "n", self.outbox.instance, self.outbox.waiting, self.outbox.tokens()
        )
        if knows:
            self.outbox.take(number)

    async def runs(self, **wanted: object) -> int:
        totals = await self.totals(Wanted(ALL, **wanted))  # type: ignore[arg-type]
        return sum(total.runs for total in totals.sums.values())

    async def totals(self, wanted: Wanted) -> Totals:
        return await self.archive.read(wanted, Totals, lambda totals: totals)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    history = SqlHistory(engines.sqlite_file(tmp_path / "history.sqlite"))
    yield Node(history)
    history.close()


async def test_a_run_is_counted_wherever_it_is_by_now(node: Node) -> None:
    node.add()
    assert await node.runs() == 1
    node.close()
    assert await node.runs() == 1
    node.publish(knows=False)
    assert await node.runs() == 1
    node.publish()
    assert await node.runs() == 1


async def test_what_is_open_joins_what_was_published(node: Node) -> None:
    node.add()
    node.close()
    node.publish()
    node.add()
    node.add(T0 + 10 * SECOND)

    assert await node.runs() == 3
    assert await node.runs(total=True) == 3


async def test_a_window_that_closes_while_it_is_read_counts_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, interrupted = node.history.read, []

    def closes_meanwhile(wanted: Wanted, add: Add) -> dict[str, tuple[int, str]]:
        if not interrupted:
            interrupted.append(True)
            node.close()
            node.publish()
        return read(wanted, add)

    monkeypatch.setattr(node.history, "read", closes_meanwhile)
    node.add()

    assert await node.runs() == 1
    assert interrupted


async def test_rows_in_memory_are_chosen_as_those_in_the_database_are(node: Node) -> None:
    for key in (SEND, SEND._replace(step="parse"), SEND._replace(error="E"), Key("b", "fetch")):
        node.add(key=key)
    asked: list[dict[str, object]] = [
        {},
        {"total": True},
        {"worker": "mailer"},
        {"pipeline": "fetch"},
        {"steps": True, "runs": False},
        {"errors": True, "worker": "b"},
    ]
    before = [await node.runs(**wanted) for wanted in asked]
    node.close()
    node.publish()

    assert [await node.runs(**wanted) for wanted in asked] == before == [2, 2, 1, 1, 1, 1]
    totals = await node.totals(Wanted(ALL))
    assert ("n", EVERYTHING) not in totals.sums


async def test_a_range_holds_in_memory_too(node: Node) -> None:
    node.add()
    node.add(T0 + 10 * SECOND)
    totals = await node.totals(Wanted([Segment(0, T0, T0 + 10 * SECOND)]))

    assert totals.sums["n", SEND].runs == 1


async def test_the_newest_error_text_is_told_wherever_it_is(node: Node) -> None:
    key = SEND._replace(error="E")
    wanted = Wanted(ALL, errors=True)
    node.outbox.errors[key] = ErrorText(5, "older", None)
    node.close()
    assert (await node.archive.error_texts(wanted))["n", key].message == "older"

    node.publish()
    node.outbox.errors[key] = ErrorText(6, "newer", None)
    assert (await node.archive.error_texts(wanted))["n", key].message == "newer"


async def test_a_state_that_goes_on_as_another_while_it_is_read_counts_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, interrupted = node.history.read, []

    def begins_anew(wanted: Wanted, add: Add) -> dict[str, tuple[int, str]]:
        if not interrupted:
            interrupted.append(True)
            node.outbox.begin_anew("another")
        return read(wanted, add)

    monkeypatch.setattr(node.history, "read", begins_anew)
    node.add()
    node.close()
    node.publish()

    assert await node.runs() == 1
    assert interrupted


async def test_an_older_copy_of_a_state_is_answered_from_before_it_knows_that_it_is_one(
    node: Node,
) -> None:
    node.add()
    node.close()
    node.publish()
    node.outbox = Outbox(instance="instance")  # as it was before
    node.add()

    assert await node.runs() == 2


# ---------------------------------------------------------------- trouble


@pytest.fixture
def history_that(node: Node, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda act: monkeypatch.setattr(node.history, "read", act)


async def test_a_history_that_fails_is_unavailable(node: Node, history_that) -> None:
    def fail(*_: object) -> None:
        raise HistoryFailed("the server is gone")

    history_that(fail)
    with pytest.raises(HistoryUnavailable, match="the server is gone"):
        await node.runs()


async def test_an_answer_is_not_waited_for_for_ever(
    node: Node, history_that, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "READ_SECONDS", 0.05)
    release = threading.Event()
    history_that(lambda *_: release.wait() and {})
    with pytest.raises(HistoryUnavailable, match="no answer within"):
        await node.runs()
    release.set()


async def test_a_thread_that_nobody_waits_for_keeps_its_place_until_it_ends(
    node: Node, history_that, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "READ_SECONDS", 0.05)
    release, working = threading.Event(), []

    def hang(*_: object) -> dict[str, int]:
        working.append(1)
        release.wait()
        return {}

    history_that(hang)
    for _ in range(2 * bounds.AT_ONCE):
        with pytest.raises(HistoryUnavailable):
            await node.runs()
    until(lambda: len(working) >= bounds.AT_ONCE)
    assert len(working) == bounds.AT_ONCE

    release.set()
    monkeypatch.setattr(bounds, "READ_SECONDS", 20)
    assert await node.runs() == 0


async def test_more_questions_than_can_wait_are_refused_at_once(
    node: Node, history_that, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_WAITING", 4)
    release = threading.Event()
    history_that(lambda *_: release.wait() and {})
    asked = [asyncio.create_task(node.runs()) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(HistoryUnavailable, match="4 questions wait"):
        await node.runs()
    release.set()
    assert await asyncio.gather(*asked) == [0] * 4
