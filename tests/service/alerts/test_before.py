"""What a number is compared with: the same hour of another day, or the version before."""

from __future__ import annotations

from typing import Any

import pytest

from alerting import DAY, WINDOW, a_key, a_rule, some_runs
from builders import HOUR, MINUTE, T0
from orbit_service.alerts.before import Before, Hours, Version, ranges_of
from orbit_service.alerts.fold import Subject
from orbit_service.alerts.rules import Rule
from orbit_service.alerts.sums import Sum
from orbit_service.core.outbox import EVERYTHING, Key
from orbit_service.core.stats import Stats

NOON = T0 - T0 % DAY + 12 * HOUR
SEND = Subject("r", ("send",))
Row = tuple[int, Key, Stats]


def compared(compare: str, **fields: Any) -> Rule:
    return a_rule(compare=compare, **fields)


def before(rule: Rule, *rows: Row, now_ms: int) -> Before:
    hours = Hours([rule])
    for start_ms, key, stats in rows:
        hours.add(start_ms, "node", key, stats)
    return hours.at(now_ms)


def runs_before(rule: Rule, *starts_ms: int, now_ms: int) -> int:
    """How many of the runs, of which one ended at each moment, are compared with."""
    rows = [(start, a_key(), some_runs(at_ms=start)) for start in starts_ms]
    total = before(rule, *rows, now_ms=now_ms).hours.get(SEND)
    return 0 if total is None else total.runs


def a_version(name: str, first_ms: int, runs: int = 1, **fields: Any) -> Row:
    """Some runs of a version, the first of which ended then."""
    return first_ms, a_key(version=name, **fields), some_runs(runs, at_ms=first_ms)


def runs_of_version_before(name: str, *rows: Row, now_ms: int = NOON) -> int | None:
    found = before(compared("version"), *rows, now_ms=now_ms).version(SEND, name)
    return None if found is None else found.runs


# ---------------------------------------------------------------- hours


@pytest.mark.parametrize(("compare", "back_ms"), [("yesterday", DAY), ("last_week", 7 * DAY)])
@pytest.mark.parametrize("now_ms", [NOON, NOON + 1, NOON + 59 * MINUTE, NOON + HOUR - 1])
def test_it_is_the_whole_hour_that_far_back(compare: str, back_ms: int, now_ms: int) -> None:
    hour_ms = NOON - back_ms
    inside = [hour_ms, hour_ms + 30 * MINUTE, hour_ms + HOUR - WINDOW]
    outside = [hour_ms - WINDOW, hour_ms + HOUR, NOON - HOUR, NOON]

    assert runs_before(compared(compare), *inside, *outside, now_ms=now_ms) == 3


def test_with_the_next_hour_it_is_the_next() -> None:
    rule, starts = compared("yesterday"), [NOON - DAY, NOON - DAY + HOUR, NOON - DAY + HOUR]

    assert runs_before(rule, *starts, now_ms=NOON + HOUR - 1) == 1
    assert runs_before(rule, *starts, now_ms=NOON + HOUR) == 2


def test_it_is_of_the_same_match() -> None:
    rows = [(NOON - DAY, a_key(name), some_runs(n)) for name, n in (("send", 2), ("import", 3))]
    found = before(compared("yesterday"), *rows, now_ms=NOON).hours

    assert {subject.match: total.runs for subject, total in found.items()} == {
        ("send",): 2,
        ("import",): 3,
    }


def test_steps_errors_and_all_together_are_not_counted_again() -> None:
    keys = [a_key(), a_key(step="s"), a_key(error="E"), EVERYTHING]
    found = before(
        compared("yesterday"), *[(NOON - DAY, k, some_runs()) for k in keys], now_ms=NOON
    )

    assert [total.runs for total in found.hours.values()] == [1]


def test_rules_that_compare_with_nothing_take_no_rows() -> None:
    assert runs_before(a_rule(), NOON - DAY, now_ms=NOON) == 0


# ---------------------------------------------------------------- versions


def test_it_is_the_version_that_appeared_before() -> None:
    rows = [a_version("2", NOON - 2 * HOUR, 7), a_version("1", NOON - DAY, 5)]

    assert runs_of_version_before("2", *rows) == 5


def test_of_a_first_deployment_there_is_none() -> None:
    assert runs_of_version_before("1", a_version("1", NOON - HOUR)) is None
    assert runs_of_version_before("1") is None


def test_a_version_that_is_not_known_yet_came_after_all() -> None:
    rows = [a_version("1", NOON - DAY, 5), a_version("2", NOON - HOUR, 7)]

    assert runs_of_version_before("3", *rows) == 7


def test_all_its_runs_of_seven_days_are_compared_with() -> None:
    rows = [a_version("1", NOON - days * DAY, 1) for days in range(10)]

    assert runs_of_version_before("2", *rows) == 8


def test_in_a_rolling_deployment_the_one_that_appeared_first_is_the_earlier() -> None:
    hours = [NOON - n * HOUR for n in range(1, 5)]
    rows = [a_version("old", at) for at in hours] + [a_version("new", at + 1) for at in hours[:3]]

    assert runs_of_version_before("new", *rows) == 4
    assert runs_of_version_before("old", *rows) is None


def test_runs_of_no_version_are_of_one_as_well() -> None:
    rows = [a_version("", NOON - DAY, 5), a_version("1", NOON - HOUR)]

    assert runs_of_version_before("1", *rows) == 5


def test_versions_are_of_each_match_by_itself() -> None:
    rows = [a_version("1", NOON - DAY, pipeline="import"), a_version("2", NOON - HOUR)]

    assert runs_of_version_before("2", *rows) is None


def test_the_first_run_says_when_it_appeared_and_not_its_name_or_window() -> None:
    # Both are in one hour of the history.
    rows = [
        (NOON - HOUR, a_key(version="2"), some_runs(5, at_ms=NOON - HOUR + 1)),
        (NOON - HOUR, a_key(version="10"), some_runs(7, at_ms=NOON - HOUR + 2)),
    ]

    assert runs_of_version_before("10", *rows) == 5


def test_a_version_has_its_place_by_appearance() -> None:
    found = Before(versions={SEND: [Version(1, "b", Sum()), Version(2, "a", Sum())]})

    assert [found.place(SEND, name) for name in ("b", "a", "new")] == [0, 1, 2]
    assert Before().place(SEND, "b") == 0


# ---------------------------------------------------------------- what is read for it


@pytest.mark.parametrize(
    ("compares", "ranges"),
    [
        pytest.param([None], [], id="nothing"),
        pytest.param(["yesterday"], [(-DAY, -DAY + HOUR)], id="an hour"),
        pytest.param(
            ["last_week", "yesterday", "yesterday"],
            [(-DAY, -DAY + HOUR), (-7 * DAY, -7 * DAY + HOUR)],
            id="two",
        ),
        pytest.param(["version"], [(-7 * DAY, 10 * MINUTE)], id="versions"),
        # What lies in two ranges would be added twice.
        pytest.param(
            ["yesterday", "version", "last_week"], [(-7 * DAY, 10 * MINUTE)], id="all in one"
        ),
    ],
)
def test_no_more_is_read_than_is_compared_with(
    compares: list[str | None], ranges: list[tuple[int, int]]
) -> None:
    rules = [a_rule(compare=compare) for compare in compares]

    assert ranges_of(rules, NOON + 10 * MINUTE) == [(NOON + a, NOON + b) for a, b in ranges]
