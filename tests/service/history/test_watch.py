"""The fleet as it was a moment ago: who is told of, who is not, and when it is too old."""

from __future__ import annotations

import pytest

from builders import MS, T0, a_batch, a_record, a_session
from orbit_rpc_schema.errors import HistoryUnavailable
from orbit_service.core.collector import Collector
from orbit_service.core.fleet import Fleet
from orbit_service.history import watch as bounds
from orbit_service.history.port import HistoryFailed, Member
from orbit_service.history.presence import dump
from orbit_service.history.watch import Watch


class Others:
    """The part of a history that a watch asks."""

    def __init__(self) -> None:
        self.found: list[Member] = []
        self.failing: Exception | None = None
        self.asked: list[dict[str, int]] = []

    def members(self, known: dict[str, int]) -> list[Member]:
        self.asked.append(dict(known))
        if self.failing is not None:
            raise self.failing
        return self.found


def told(node: str, instance: str, *, alive: bool = True, at_ms: int = T0) -> Member:
    collector = Collector(node)
    collector.record(a_session(collector), a_record(1, a_batch(MS)), T0)
    return Member(node, instance, at_ms, alive, dump(collector))


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
def watch(others: Others) -> Watch:
    return Watch(lambda: others, Fleet(), own=lambda: "mine")


async def nodes(watch: Watch) -> list[tuple[str, bool]]:
    await watch.look()
    return sorted((node.name, node.alive) for node in watch.fleet().others.values())


async def test_everybody_is_told_of_but_oneself(watch: Watch, others: Others) -> None:
    others.found = [told("here", "mine"), told("there", "theirs")]

    assert await nodes(watch) == [("there", True)]


async def test_what_is_known_is_not_asked_for_again(watch: Watch, others: Others) -> None:
    others.found = [told("a", "ia")]
    await watch.look()
    others.found = [Member("a", "ia", T0, alive=False, state=None)]

    assert await nodes(watch) == [("a", False)]
    assert others.asked == [{}, {"ia": T0}]
    assert [worker.life for worker in watch.fleet().select(None)] == [None], "lost with its node"


async def test_a_node_that_lost_its_state_is_one_node(watch: Watch, others: Others) -> None:
    others.found = [told("a", "before", alive=False), told("a", "after", at_ms=T0 + 1)]

    assert await nodes(watch) == [("a", True)]


async def test_of_a_node_that_died_several_times_the_newest_is_told(
    watch: Watch, others: Others
) -> None:
    others.found = [told("a", str(n), alive=False, at_ms=T0 + n) for n in range(3)]

    assert await nodes(watch) == [("a", False)]
    assert watch.fleet().others.keys() == {"2"}


async def test_what_one_says_that_cannot_be_read_hides_no_other(
    watch: Watch, others: Others
) -> None:
    others.found = [Member("bad", "ib", T0, alive=True, state=b"nonsense"), told("good", "ig")]

    assert await nodes(watch) == [("good", True)]


@pytest.mark.parametrize("error", [HistoryFailed("gone"), RuntimeError("can't start new thread")])
async def test_a_look_that_fails_is_not_the_last(
    watch: Watch, others: Others, error: Exception
) -> None:
    others.failing = error
    await watch.look()
    assert watch.trouble == str(error)

    others.failing, others.found = None, [told("a", "ia")]
    assert await nodes(watch) == [("a", True)]
    assert watch.trouble is None


async def test_before_the_first_look_and_long_after_the_last_nothing_is_told(
    watch: Watch, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HistoryUnavailable, match="not been read yet"):
        watch.fleet()
    await watch.look()
    assert watch.fresh

    monkeypatch.setattr(bounds, "FRESH_SECONDS", -1.0)
    others.failing = HistoryFailed("the server is gone")
    await watch.look()
    with pytest.raises(HistoryUnavailable, match="the server is gone"):
        watch.fleet()
