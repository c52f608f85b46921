"""What becomes of a result that carries a run id."""

from __future__ import annotations

import pytest

from builders import HOUR, T0
from orbit_service.core.ended import KEPT_IDS, KEPT_PAIRS, EndedRuns, Verdict


def verdicts(*events: str | tuple[int, bool]) -> list[Verdict]:
    """Of these results of one run, (attempt, final); "start" and "lost" come between them."""
    ended = EndedRuns()
    found = []
    for event in events:
        match event:
            case "start":
                ended.start("send", "r1")
            case "lost":
                ended.lose("send", "r1", None, T0)
            case (attempt, final):
                found.append(ended.judge("send", "r1", attempt, final, T0))
    return found


RUN, RERUN, ATTEMPT = Verdict.RUN, Verdict.RERUN, Verdict.ATTEMPT
REPEATED, LATE = Verdict.REPEATED, Verdict.LATE
FINAL, RETRIED = True, False


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([(1, FINAL)], [RUN], id="a final attempt ends the run"),
        pytest.param([(1, RETRIED)], [ATTEMPT], id="one that is retried is an attempt"),
        pytest.param([(1, RETRIED), (2, FINAL)], [ATTEMPT, RUN], id="then the run ends"),
        pytest.param([(1, FINAL), (1, FINAL)], [RUN, REPEATED], id="the same pair again"),
        pytest.param([(1, RETRIED)] * 2, [ATTEMPT, REPEATED], id="an attempt again"),
        pytest.param([(1, RETRIED), (1, FINAL)], [ATTEMPT, REPEATED], id="again, now final"),
        pytest.param([(1, FINAL), (2, FINAL)], [RUN, RERUN], id="a higher attempt runs again"),
        pytest.param([(2, FINAL), (1, FINAL)], [RUN, REPEATED], id="a lower one does not"),
        pytest.param([(1, FINAL), (2, RETRIED)], [RUN, ATTEMPT], id="a higher one, retried"),
        pytest.param([(1, FINAL), "start", (1, FINAL)], [RUN, RUN], id="a start makes it new"),
        pytest.param(
            [(1, RETRIED), "start", (1, RETRIED)],
            [ATTEMPT, REPEATED],
            id="but not while the run goes on",
        ),
        pytest.param(["lost", (1, FINAL)], [LATE], id="after the loss"),
        pytest.param(["lost", (1, FINAL), (1, FINAL)], [LATE, LATE], id="however often"),
        pytest.param(["lost", (1, RETRIED)], [LATE], id="an attempt after the loss"),
        pytest.param(["lost", "start", (1, FINAL)], [RUN], id="a start after the loss"),
        pytest.param(["lost", (2, FINAL)], [RERUN], id="a higher attempt after the loss"),
        pytest.param(["lost", (2, FINAL), (1, FINAL)], [RERUN, LATE], id="and then the late one"),
        pytest.param(
            [(1, RETRIED), "lost", (2, FINAL), (3, FINAL)],
            [ATTEMPT, LATE, RERUN],
            id="the attempt that was lost is the one after those that ended",
        ),
        pytest.param(
            [(1, RETRIED), "lost", (1, RETRIED)],
            [ATTEMPT, REPEATED],
            id="one from before the loss is repeated",
        ),
    ],
)
def test_a_result_is_judged(events: list[str | tuple[int, bool]], expected: list[Verdict]) -> None:
    assert verdicts(*events) == expected


@pytest.mark.parametrize(
    ("before", "retry"),
    [
        pytest.param([], False, id="unheard of"),
        pytest.param([(1, RETRIED)], False, id="in its attempts: that retry is counted"),
        pytest.param([(1, FINAL)], True, id="ended"),
        pytest.param(["lost"], True, id="lost"),
    ],
)
def test_a_start_after_the_end_is_a_retry(
    before: list[str | tuple[int, bool]], retry: bool
) -> None:
    ended = EndedRuns()
    for event in before:
        if isinstance(event, tuple):
            ended.judge("send", "r1", *event, T0)
        else:
            ended.lose("send", "r1", None, T0)

    assert ended.start("send", "r1") is retry
    assert ended.start("send", "r1") is False


def test_ids_are_apart_by_pipeline() -> None:
    ended = EndedRuns()

    assert ended.judge("send", "1", 1, FINAL, T0) is RUN
    assert ended.judge("fetch", "1", 1, FINAL, T0) is RUN


def test_what_is_lost_is_known_until_it_starts_again() -> None:
    ended = EndedRuns()
    ended.lose("send", "r1", None, T0)

    assert ended.is_lost("send", "r1")
    assert not ended.is_lost("fetch", "r1")
    ended.start("send", "r1")
    assert not ended.is_lost("send", "r1")


@pytest.mark.parametrize(
    ("later_ms", "verdict"),
    [
        pytest.param(HOUR - 1, REPEATED, id="known within the hour"),
        pytest.param(HOUR, RUN, id="forgotten after it"),
    ],
)
def test_an_ending_is_remembered_for_an_hour(later_ms: int, verdict: Verdict) -> None:
    ended = EndedRuns()
    ended.judge("send", "r1", 1, FINAL, T0)
    ended.judge("send", "another", 1, FINAL, T0 + later_ms)

    assert ended.judge("send", "r1", 1, FINAL, T0 + later_ms) is verdict


def test_the_hour_begins_again_with_each_result() -> None:
    ended = EndedRuns()
    for at_ms in (T0, T0 + HOUR - 1):
        ended.judge("send", "r1", 1, FINAL, at_ms)
    ended.judge("send", "another", 1, FINAL, T0 + HOUR)

    assert ended.judge("send", "r1", 1, FINAL, T0 + HOUR) is REPEATED


def test_at_most_100_000_endings_are_remembered_and_the_oldest_goes_first() -> None:
    ended = EndedRuns()
    for number in range(KEPT_IDS + 1):
        ended.judge("send", str(number), 1, FINAL, T0)

    assert KEPT_IDS == 100_000
    assert len(ended.endings) == KEPT_IDS
    assert ended.judge("send", "1", 1, FINAL, T0) is REPEATED
    assert ended.judge("send", "0", 1, FINAL, T0) is RUN


def pairs(ended: EndedRuns) -> int:
    """How many (id, attempt) pairs are held."""
    return sum(len(ending.attempts) for ending in ended.endings.values())


def has_tried(ended: EndedRuns, id: str, *attempts: int) -> None:
    """These attempts have ended, and the run is to go on."""
    for attempt in attempts:
        ended.judge("send", id, attempt, RETRIED, T0)


def test_a_run_that_is_tried_for_ever_is_remembered_by_its_newest_attempts() -> None:
    ended = EndedRuns()
    has_tried(ended, "r1", *range(1, 3 * KEPT_PAIRS + 1))

    assert KEPT_PAIRS == 100_000
    assert KEPT_PAIRS // 2 <= pairs(ended) <= KEPT_PAIRS
    assert ended.judge("send", "r1", 2 * KEPT_PAIRS + KEPT_PAIRS // 2 + 1, FINAL, T0) is REPEATED
    assert ended.judge("send", "r1", 3 * KEPT_PAIRS + 1, FINAL, T0) is RUN
    assert ended.judge("send", "r1", 1, FINAL, T0) is REPEATED, "the run has ended"


def test_of_runs_with_many_attempts_the_oldest_leaves() -> None:
    ended = EndedRuns()
    for id in ("old", "middle", "new"):
        has_tried(ended, id, *range(1, KEPT_PAIRS // 2 + 1))

    assert pairs(ended) == KEPT_PAIRS
    assert ended.judge("send", "middle", 1, RETRIED, T0) is REPEATED
    assert ended.judge("send", "old", 1, RETRIED, T0) is ATTEMPT


@pytest.mark.parametrize("leaves", ["starts again", "is too old"])
def test_what_has_left_makes_room(leaves: str) -> None:
    ended = EndedRuns()
    has_tried(ended, "gone", *range(2, KEPT_PAIRS + 1))
    ended.judge("send", "gone", 1, FINAL, T0)
    later = T0 + (HOUR if leaves == "is too old" else 0)
    if leaves == "starts again":
        ended.start("send", "gone")
    for attempt in range(1, KEPT_PAIRS + 1):
        ended.judge("send", "r1", attempt, RETRIED, later)

    assert pairs(ended) == KEPT_PAIRS
    assert ended.judge("send", "r1", 1, RETRIED, later) is REPEATED


@pytest.mark.parametrize(
    ("told", "lost", "counts"),
    [
        pytest.param([], None, True, id="nothing was told"),
        pytest.param([(1, RETRIED)], None, True, id="an attempt: the next one is lost"),
        pytest.param([(1, RETRIED)], 1, False, id="this very attempt"),
        pytest.param([(1, RETRIED)], 2, True, id="the attempt before"),
        pytest.param([(2, FINAL)], 2, False, id="its end"),
        pytest.param([(2, FINAL)], None, False, id="the end of one that did not say which it was"),
    ],
)
def test_what_has_ended_already_is_not_lost(
    told: list[tuple[int, bool]], lost: int | None, counts: bool
) -> None:
    ended = EndedRuns()
    for attempt, final in told:
        ended.judge("send", "r1", attempt, final, T0)

    assert ended.lose("send", "r1", lost, T0) is counts


def test_what_was_delivered_twice_at_once_is_lost_once() -> None:
    ended = EndedRuns()

    assert ended.lose("send", "r1", 1, T0)
    assert not ended.lose("send", "r1", 1, T0)
    assert ended.lose("send", "r1", 2, T0)
