"""Points in steps, by group, from rows that come in any order."""

from __future__ import annotations

import pytest

from builders import HOUR, MINUTE, MS, SECOND
from orbit_service.core.outbox import Key
from orbit_service.core.rollup import BadRange, Range
from orbit_service.core.stats import Stats
from orbit_service.core.sums import summary
from orbit_service.core.timeline import Timeline
from rows import END, SEND, START, runs


def a_range(step: int = 10 * MINUTE, *, before: bool = False) -> Range:
    first = 2 * START - END if before else START
    return Range(START, END, step, level=1, first_ms=first)


def test_runs_stand_at_the_step_in_which_they_ended() -> None:
    line = Timeline(a_range(), None)
    for minute in (0, 9, 10, 59):
        line.add(START + minute * MINUTE, "n", SEND, runs(MS))
    [group] = line.view("1m", END).groups

    assert [point.runs for point in group.points] == [2, 1, 0, 0, 0, 1]
    assert [point.at for point in group.points] == [START + n * 10 * MINUTE for n in range(6)]
    assert group.total.runs == 4


def test_a_step_without_runs_is_empty_and_not_quick() -> None:
    [group] = Timeline(a_range(), None).view("1m", END).groups

    point = group.points[0]
    assert (point.runs, point.failed, point.runs_per_hour) == (0, 0, 0.0)
    assert {point.avg, point.min, point.max, point.p50, point.p95, point.error_rate} == {None}


def test_lost_runs_are_failures_without_a_duration() -> None:
    lost = Stats()
    lost.add_untimed(START, failed=True)
    found = summary(lost, HOUR)

    assert (found.runs, found.failed, found.error_rate, found.avg) == (1, 1, 100.0, None)


def test_a_rate_is_over_the_step_and_over_what_has_passed_of_the_last() -> None:
    line = Timeline(a_range(), None)
    line.add(START, "n", SEND, runs(*[MS] * 10))
    line.add(START + 50 * MINUTE, "n", SEND, runs(*[MS] * 10))
    [group] = line.view("1m", START + 55 * MINUTE).groups

    assert (group.points[0].runs_per_hour, group.points[-1].runs_per_hour) == (60.0, 120.0)
    assert group.total.runs_per_hour == 21.82


@pytest.mark.parametrize(
    ("by", "names"),
    [("worker", ["a", "b"]), ("pipeline", ["send", "fetch"]), ("node", ["m", "n"])],
)
def test_groups_stand_in_the_order_of_their_runs(by, names) -> None:
    line = Timeline(a_range(), by)
    line.add(START, "m", Key("a", "send"), runs(MS, MS))
    line.add(START, "n", Key("b", "fetch"), runs(MS))

    assert [group.name for group in line.view("1m", END).groups] == names


def test_a_trend_is_against_the_range_before() -> None:
    line = Timeline(a_range(before=True), None)
    line.add(START - HOUR, "n", SEND, runs(*[10 * MS] * 4, failed=1))
    line.add(START, "n", SEND, runs(*[15 * MS] * 6, failed=3))
    [group] = line.view("1m", END).groups

    assert group.trend is not None
    assert (group.trend.from_, group.trend.before.runs) == (START - HOUR, 4)
    assert (group.trend.runs_per_hour, group.trend.error_rate, group.trend.p95) == (
        50.0,
        25.0,
        50.0,
    )


def test_a_trend_from_nothing_is_none() -> None:
    line = Timeline(a_range(before=True), None)
    line.add(START, "n", SEND, runs(MS))
    [group] = line.view("1m", END).groups

    assert group.trend is not None
    assert {group.trend.runs_per_hour, group.trend.error_rate, group.trend.p95} == {None}


def test_more_groups_than_can_be_answered_are_refused_as_they_come() -> None:
    line = Timeline(a_range(10 * SECOND), "pipeline")
    for n in range(27):
        line.add(START, "n", Key("w", str(n)), runs(MS))
    with pytest.raises(BadRange, match="28 and more groups of 360 points are over 10000"):
        line.add(START, "n", Key("w", "one more"), runs(MS))


def test_groups_of_the_range_before_alone_are_groups_too() -> None:
    line = Timeline(a_range(before=True), "pipeline")
    line.add(START - HOUR, "n", Key("w", "gone"), runs(MS))
    [group] = line.view("1m", END).groups

    assert (group.name, group.total.runs) == ("gone", 0)
    assert group.trend is not None
    assert group.trend.before.runs == 1
