"""A test on the past says what looks at it would have found, had they been made then."""

from __future__ import annotations

import random
from typing import Any

import pytest

from alerting import DAY, WINDOW, a_key, a_rule, some_runs
from builders import HOUR, MINUTE, SECOND, T0
from orbit_rpc_schema.alerts import RuleBacktest
from orbit_service.alerts import backtest as bounds
from orbit_service.alerts.backtest import MAX_FIRINGS, UNRECORDED, Recorded, TooMuch, backtest
from orbit_service.alerts.before import NOTHING_BEFORE, Hours
from orbit_service.alerts.facts import Facts
from orbit_service.alerts.fold import State, Subject, fold
from orbit_service.alerts.readings import look
from orbit_service.alerts.rules import Rule
from orbit_service.alerts.sums import Sums
from orbit_service.core.outbox import EVERYTHING, Key
from orbit_service.core.stats import Stats

FROM = T0 - T0 % DAY
Past = dict[int, dict[Key, Stats]]
Firings = list[tuple[tuple[str, ...], int, int | None]]


def recorded(past: Past) -> Recorded:
    found = Recorded()
    for start_ms, window in past.items():
        for key, stats in window.items():
            found.add(start_ms, "node", key, stats)
    return found


def backtested(rule: Rule, past: Past, to_ms: int, step_ms: int = WINDOW) -> RuleBacktest:
    hours = Hours([rule])
    [found] = backtest([rule], recorded(past), hours, FROM, to_ms, step_ms).rules
    return found


def firings(found: RuleBacktest) -> Firings:
    """Who, from when, until when; in seconds from the start."""
    return [
        (
            tuple(f.labels.values()),
            (f.from_ - FROM) // SECOND,
            None if f.until is None else (f.until - FROM) // SECOND,
        )
        for f in found.firings
    ]


def course(*failed: int, key: Key | None = None, step_ms: int = WINDOW) -> Past:
    """One window after the other, in each ten runs of which so many failed."""
    return {FROM + n * step_ms: {key or a_key(): some_runs(10, f)} for n, f in enumerate(failed)}


def live(rules: list[Rule], past: Past, to_ms: int) -> dict[str, Firings]:
    """What looks would have found that are made as windows close."""
    by_name = {rule.name: rule for rule in rules}
    sums, states = Sums(rules), dict[Subject, State]()
    found: dict[str, Firings] = {rule.name: [] for rule in rules}
    for now_ms in range(FROM + WINDOW, to_ms + 1, WINDOW):
        sums.add(now_ms - WINDOW, past.get(now_ms - WINDOW, {}))
        sums.advance(now_ms)
        looked = look(rules, sums, Facts(), {}, NOTHING_BEFORE, states, {}, now_ms)
        states, changes = fold(by_name, looked.readings, states, now_ms)
        for change in changes:
            course = found[change.subject.rule]
            if change.turn == "firing":
                course.append((change.subject.match, (now_ms - FROM) // SECOND, None))
            elif change.turn == "resolved":
                [began] = [f for f in course if f[0] == change.subject.match and f[2] is None]
                course[course.index(began)] = (began[0], began[1], (now_ms - FROM) // SECOND)
    return found


# ---------------------------------------------------------------- as it would have been

RULES = [
    a_rule(name="rate", window="1m", clear=5),
    a_rule(name="held", window="30s", above=30, for_="20s", keep_firing_for="30s"),
    a_rule(name="by worker", window="20s", per=["worker", "pipeline"], above=20),
    a_rule(name="all", metric="failures", per=[], window="2m", above=40, clear=30),
    a_rule(name="idle", metric="runs_per_hour", pipeline="p0", window="30s", below=1_000),
    a_rule(name="slow", metric="p95", window="1m", above=50, min_runs=3),
    a_rule(name="steps", step="s*", window="1m", min_runs=1),
    a_rule(name="long", window="20m", above=22, clear=18),
]


def a_past(seed: int, windows: int) -> Past:
    """Workers and pipelines that come, go and fail at random."""
    chance = random.Random(seed)
    past: Past = {}
    for number in range(windows):
        window: dict[Key, Stats] = {}
        for pipeline in ("p0", "p1", "p2"):
            for worker in ("w0", "w1"):
                if chance.random() < 0.6:
                    runs = chance.randrange(1, 9)
                    failed = chance.randrange(runs + 1) if chance.random() < 0.5 else 0
                    duration_us = chance.choice([1_000, 40_000, 90_000])
                    stats = some_runs(runs, failed, duration_us)
                    window[a_key(pipeline, worker)] = stats
                    if chance.random() < 0.5:
                        window[a_key(pipeline, worker, step="s1")] = stats
        if chance.random() < 0.8:
            past[FROM + number * WINDOW] = window
    return past


@pytest.mark.parametrize("seed", range(6))
def test_it_finds_what_looks_would_have_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_FIRINGS", 1_000)
    past, to_ms = a_past(seed, 300), FROM + 300 * WINDOW
    found = backtest(RULES, recorded(past), Hours(RULES), FROM, to_ms, WINDOW)
    expected = live(RULES, past, to_ms)

    assert sum(map(len, expected.values())) > 50
    for rule in found.rules:
        assert sorted(firings(rule), key=str) == sorted(expected[rule.rule], key=str)


@pytest.mark.parametrize(
    ("fields", "failed", "expected"),
    [
        pytest.param({}, [0, 4, 4, 0, 0], [(("send",), 20, 40)], id="as windows close"),
        pytest.param({"for": "10s"}, [4, 0, 4, 4, 0], [(("send",), 40, 50)], id="after `for`"),
        pytest.param({}, [0, 0, 4, 4], [(("send",), 30, None)], id="beyond the end"),
        pytest.param({}, [0, 1, 0], [], id="never"),
    ],
)
def test_a_rule_would_have_fired(
    fields: dict[str, Any], failed: list[int], expected: Firings
) -> None:
    found = backtested(a_rule(window="10s", **fields), course(*failed), FROM + len(failed) * WINDOW)

    assert firings(found) == expected


def test_it_tells_how_often_how_long_and_how_far() -> None:
    found = backtested(a_rule(window="10s"), course(0, 4, 9, 0, 6, 6), FROM + 6 * WINDOW)

    assert (found.count, found.firing_ms, found.highest, found.matches) == (2, 30_000, 90, 1)
    assert [firing.peak for firing in found.firings] == [90, 60]
    assert [firing.peak_text for firing in found.firings] == ["90 %", "60 %"]
    assert found.condition == "error rate over 10s above 10 %"


def test_below_the_furthest_is_the_lowest() -> None:
    rule = a_rule(metric="runs_per_hour", window="10s", below=1_000)
    found = backtested(rule, course(0, 0), FROM + 4 * WINDOW)

    assert (found.highest, found.count) == (0, 1)


def test_windows_before_the_range_fill_the_sums_and_are_not_looked_at() -> None:
    past = {FROM - 20 * SECOND: {a_key(): some_runs(100, 50)}, **course(0, 0, 0)}
    found = backtested(a_rule(window="30s"), past, FROM + 3 * WINDOW)

    assert firings(found) == [(("send",), 10, 20)]


# ---------------------------------------------------------------- coarser windows


@pytest.mark.parametrize(
    ("window", "step_ms", "expected"),
    [
        pytest.param("10s", MINUTE, [(("send",), 120, 180)], id="a minute is seen as one"),
        pytest.param("5m", HOUR, [(("send",), 7_200, 10_800)], id="so is an hour"),
        pytest.param("90s", MINUTE, [(("send",), 120, 240)], id="in whole steps"),
        pytest.param("2m", MINUTE, [(("send",), 120, 240)], id="which it may have anyway"),
    ],
)
def test_less_than_what_is_kept_is_seen_as_a_whole_step(
    window: str, step_ms: int, expected: Firings
) -> None:
    past = course(0, 9, 0, 0, 0, step_ms=step_ms)

    assert firings(backtested(a_rule(window=window), past, FROM + 5 * step_ms, step_ms)) == expected


def test_runs_an_hour_are_of_the_hour_that_is_seen() -> None:
    rule = a_rule(metric="runs_per_hour", window="5m", above=100)
    found = backtested(rule, {FROM: {a_key(): some_runs(60)}}, FROM + HOUR, HOUR)

    assert (found.highest, found.count) == (60, 0)
    assert found.condition == "runs an hour over 5m above 100"


# ---------------------------------------------------------------- compared, and what is so now


def test_a_change_is_against_the_hours_of_then() -> None:
    rule = a_rule(compare="yesterday", window="1h")
    hours = Hours([rule])
    past = course(1, 5, 5, step_ms=HOUR)
    for number, failed in enumerate((1, 1, 4)):
        hours.add(FROM - DAY + (number + 1) * HOUR, "node", a_key(), some_runs(10, failed))
    found = backtest([rule], recorded(past), hours, FROM, FROM + 3 * HOUR, HOUR).rules[0]

    assert firings(found) == [(("send",), 7_200, 10_800)]
    assert found.highest_text == "+40.0 points"


def test_the_time_since_a_success_is_known_from_the_windows() -> None:
    past = course(10, 0, 10, 10, 10)
    for number, window in enumerate(past.values()):
        ended_ms = FROM + number * WINDOW + SECOND
        window[a_key()] = some_runs(10, 0 if number == 1 else 10, at_ms=ended_ms)
        window[EVERYTHING] = window[a_key()]
    found = backtested(a_rule(metric="since_success", above="25s"), past, FROM + 5 * WINDOW)

    assert firings(found) == [(("send",), 40, None)]
    assert found.matches == 1


def test_a_success_that_never_was_counts_from_the_start() -> None:
    rule = a_rule(metric="since_success", pipeline="export", above="30s")

    assert firings(backtested(rule, {}, FROM + 5 * WINDOW)) == [(("export",), 40, None)]


@pytest.mark.parametrize("metric", ["queue_depth", "worker_lost", "dropped", "degraded"])
def test_what_was_not_recorded_is_said(metric: str) -> None:
    found = backtested(a_rule(metric=metric), course(9, 9), FROM + MINUTE)

    assert (found.trouble, found.count, found.highest) == (UNRECORDED, 0, None)


# ---------------------------------------------------------------- bounds


def test_the_newest_firings_are_told_and_all_are_counted() -> None:
    failed = [9, 0] * (MAX_FIRINGS + 5)
    found = backtested(a_rule(window="10s"), course(*failed), FROM + len(failed) * WINDOW)

    assert found.count == MAX_FIRINGS + 5
    assert [f.from_ for f in found.firings][:1] == [FROM + 11 * WINDOW]
    assert len(found.firings) == MAX_FIRINGS


def test_more_rows_than_can_be_held_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_ROWS", 2)
    with pytest.raises(TooMuch, match="take a shorter range"):
        recorded(course(0, 0, 0))


def test_rows_of_one_window_add() -> None:
    found = Recorded()
    for node, stats in (("a", some_runs(1)), ("b", some_runs(2))):
        found.add(FROM, node, a_key(), stats)

    assert found.windows[FROM][a_key()].runs == 3


def test_rows_come_in_any_order() -> None:
    past = a_past(1, 60)
    shuffled = dict(random.Random(2).sample(list(past.items()), len(past)))

    one, other = (
        backtest(RULES, recorded(rows), Hours(RULES), FROM, FROM + 60 * WINDOW, WINDOW)
        for rows in (past, shuffled)
    )
    assert one == other
