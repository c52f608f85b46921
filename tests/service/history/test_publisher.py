"""The thread that gives the history what is closed: once, in order, and whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from builders import MS, T0, until
from histories import ANY, SEND, a_publication, runs
from orbit_service.core.outbox import Publication
from orbit_service.core.rollup import Segment
from orbit_service.core.stats import Stats
from orbit_service.history import engines, publisher
from orbit_service.history.port import HistoryFailed, HistoryRefused, Member, Wanted
from orbit_service.history.publisher import Offer, Publisher
from orbit_service.history.sql import SqlHistory


class MoodyHistory(SqlHistory):
    """A real one that fails while it is told to."""

    failing: str | None = None
    twins: Sequence[Member] = ()

    def apply(
        self, node: str, instance: str, publications: Sequence[Publication], ours: Container[str]
    ) -> int:
        if self.failing:
            raise HistoryFailed(self.failing)
        return super().apply(node, instance, publications, ours)

    def maintain(self, node: str) -> bool:
        if self.failing:
            raise HistoryFailed(self.failing)
        return super().maintain(node)

    def renew(self, node: str, instance: str, state: bytes, ours: Container[str]) -> list[Member]:
        return [*super().renew(node, instance, state, ours), *self.twins]

    def runs(self) -> int:
        total = Stats()
        wanted = Wanted([Segment(0, 0, 2 * T0)])
        self.read(wanted, lambda _at, _node, _key, stats: total.merge(stats))
        return total.runs


class Desk:
    """The loop's side: what was offered, and what it was told."""

    def __init__(self, history: MoodyHistory) -> None:
        self.history = history
        self.taken: list[int] = []
        self.others: list[int] = []
        self.publisher = Publisher(
            lambda: history, "n", self._post, self.taken.append, self.others.append
        )
        self.publisher.start()

    def _post(self, act: Callable[..., None], *arguments: Any) -> None:
        act(*arguments)

    def offer(self, *numbers: int, state: bytes | None = None, **rows: Stats) -> None:
        until(lambda: self.publisher.ready)
        stats = rows.get("stats", runs(MS))
        publications = [a_publication(n, {T0: {SEND: stats}}) for n in numbers]
        self.publisher.offer(Offer("instance", publications, ANY, state))
        until(lambda: self.publisher.ready or self.publisher.trouble)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(publisher, "LAST_RETRY", 0.05)
    monkeypatch.setattr(publisher, "FIRST_RETRY", 0.01)
    history = MoodyHistory(engines.sqlite_file(tmp_path / "history.sqlite"))
    desk = Desk(history)
    yield desk
    desk.publisher.stop()
    history.close()


def test_what_is_offered_is_added_and_said_to_be_taken(desk: Desk) -> None:
    desk.offer(1, 2)
    until(lambda: desk.taken == [2])

    assert desk.history.runs() == 2


def test_what_is_offered_again_counts_once(desk: Desk) -> None:
    desk.offer(1)
    desk.offer(1)
    until(lambda: desk.taken == [1, 1])

    assert desk.history.runs() == 1


def test_a_history_that_is_away_is_said_and_tried_again(desk: Desk) -> None:
    until(lambda: desk.publisher.ready)
    desk.history.failing = "the server is gone"
    desk.publisher.offer(Offer("instance", [a_publication(1)], ANY))
    until(lambda: desk.publisher.trouble == "the server is gone")
    until(lambda: desk.publisher.failures > 2)
    assert not desk.publisher.ready, "it has that offer still"

    desk.history.failing = None
    until(lambda: desk.taken == [1])
    until(lambda: desk.publisher.trouble is None)


def test_what_the_history_refuses_is_left_out_and_the_rest_goes_on(desk: Desk) -> None:
    until(lambda: desk.publisher.ready)
    poison = a_publication(2, {T0: {SEND: Stats(runs=2**63)}})
    good = [a_publication(n, {T0: {SEND: runs(MS)}}) for n in (1, 3)]
    desk.publisher.offer(Offer("instance", [good[0], poison, good[1]], ANY))
    until(lambda: desk.taken == [1, 2, 3])

    assert desk.history.runs() == 2
    assert desk.publisher.refused == 1


def test_what_somebody_else_has_written_under_our_instance_is_said(desk: Desk) -> None:
    """As where a state was copied, or restored from a backup."""
    desk.history.apply("n", "instance", [a_publication(5)], ANY)
    desk.publisher.offer(Offer("instance", [a_publication(7)], ours={"mine"}))
    until(lambda: desk.others == [5])

    assert desk.taken == []


def test_a_commit_of_which_the_word_is_lost_counts_once_and_is_nobody_elses(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, lost = desk.history.apply, []

    def lose_the_word(*arguments: Any) -> int:
        number = apply(*arguments)
        if not lost:
            lost.append(number)
            raise HistoryFailed("the connection was closed")
        return number

    monkeypatch.setattr(desk.history, "apply", lose_the_word)
    publication = a_publication(1, {T0: {SEND: runs(MS)}})
    publication.token = "mine"
    until(lambda: desk.publisher.ready)
    desk.publisher.offer(Offer("instance", [publication], {"", "mine"}))
    until(lambda: desk.taken == [1])

    assert (lost, desk.others, desk.history.runs()) == ([1], [], 1)


def test_upkeep_that_fails_sends_nothing_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    until(lambda: desk.publisher.ready)
    monkeypatch.setattr(publisher, "MAINTAIN_SECONDS", 0.02)
    failed: list[str] = []

    def fail(node: str) -> bool:
        failed.append(node)
        raise HistoryFailed("a lock was not to be had")

    monkeypatch.setattr(desk.history, "maintain", fail)
    desk.publisher.offer(Offer("instance", [a_publication(1, {T0: {SEND: runs(MS)}})], ANY))
    until(lambda: desk.taken)
    failed.clear()  # of before it was taken up
    until(lambda: len(failed) > 3)

    assert desk.taken == [1]


def test_what_is_offered_does_not_wait_for_all_of_the_upkeep(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    monkeypatch.setattr(desk.history, "maintain", lambda _node: not stop.wait(0.01))
    monkeypatch.setattr(publisher, "MAINTAIN_SECONDS", 0.02)
    for number in range(1, 6):
        desk.offer(number)
    until(lambda: desk.taken == [1, 2, 3, 4, 5])
    stop.set()


def test_windows_that_cannot_be_rolled_up_do_not_hold_up_what_is_published(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_node: str) -> bool:
        raise HistoryRefused("a row that cannot be stored")

    monkeypatch.setattr(desk.history, "maintain", refuse)
    monkeypatch.setattr(publisher, "MAINTAIN_SECONDS", 0.05)
    desk.offer(1)
    until(lambda: desk.taken == [1])

    assert desk.publisher.trouble is None


def test_a_publisher_that_stops_says_goodbye_for_its_instance(desk: Desk) -> None:
    desk.offer(state=b"state")
    desk.publisher.stop(leave="instance")

    assert desk.history.members({}) == []


def test_another_that_goes_on_writing_under_our_name_is_noticed(desk: Desk) -> None:
    for at_ms in (5, 6):
        desk.history.twins = [Member("n", "the other", at_ms, alive=True, state=None)]
        desk.offer(state=b"")
    until(lambda: desk.publisher.twin == "the other")

    desk.history.twins = []
    desk.offer(state=b"")
    until(lambda: desk.publisher.twin is None)


def test_one_before_our_restart_is_no_twin(desk: Desk) -> None:
    desk.history.twins = [Member("n", "before", 5, alive=True, state=None)]
    for _ in range(3):
        desk.offer(state=b"")
    until(lambda: desk.publisher.ready)

    assert desk.publisher.twin is None


def test_a_history_that_does_not_answer_is_in_trouble(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "STUCK_SECONDS", 0.05)
    asked, release = threading.Event(), threading.Event()
    monkeypatch.setattr(desk.history, "apply", lambda *_: asked.set() or (release.wait() and 1))
    desk.offer(1)
    until(asked.is_set)  # the upkeep before it may take long too
    until(lambda: "no answer for" in (desk.publisher.trouble or ""))

    release.set()
    until(lambda: desk.publisher.trouble is None)
    assert desk.taken == [1]
