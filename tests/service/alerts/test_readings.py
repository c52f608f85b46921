"""What each rule reads at a moment: which numbers, of whom."""

from __future__ import annotations

from typing import Any

import pytest

from alerting import DAY, WINDOW, a_key, a_rule, some_runs, sums_of
from builders import HOUR, MINUTE, SECOND, T0
from orbit_service.alerts.before import NOTHING_BEFORE, Before, Version
from orbit_service.alerts.facts import Facts, InFlightFact, WorkerFact
from orbit_service.alerts.fold import State, Subject
from orbit_service.alerts.readings import ON_HUB, Looked, Totals, look
from orbit_service.alerts.rules import Rule
from orbit_service.alerts.sums import Sum, Sums
from orbit_service.core.outbox import Key
from orbit_service.core.stats import Stats

NOW = T0
HERE = WorkerFact(True, False, False, NOW)
FIRING = State("firing", T0 - HOUR, T0 - HOUR)
Readings = dict[tuple[str, ...], float | None]


def looked(rule: Rule, **fields: Any) -> Looked:
    usual: dict[str, Any] = {
        "sums": Sums([rule]),
        "facts": Facts(),
        "totals": {"dropped": Totals(), "refused": Totals()},
        "before": NOTHING_BEFORE,
        "states": {},
        "expected": {},
        "now_ms": NOW,
        "everything": True,
    }
    return look([rule], **{**usual, **fields})


def readings(rule: Rule, *held: tuple[str, ...], **fields: Any) -> Readings:
    """Of one rule all readings by match, while alerts of these fire."""
    states = {Subject("r", match): FIRING for match in held}
    found = looked(rule, states=states, **fields).readings
    return {subject.match: value for subject, value in found.items()}


def of_runs(rule: Rule, window: dict[Key, Stats], *held: tuple[str, ...], **more: Any) -> Readings:
    return readings(rule, *held, sums=sums_of(rule, (NOW - WINDOW, window), end_ms=NOW), **more)


# ---------------------------------------------------------------- runs


def test_each_match_has_a_reading() -> None:
    window = {a_key(): some_runs(10, failed=4), a_key("import"): some_runs(3)}

    assert of_runs(a_rule(), window) == {("send",): 40, ("import",): None}


def test_of_what_ran_some_time_ago_so_often_is_zero() -> None:
    window = {a_key(): some_runs(3, failed=3)}
    for metric, later in (("failures", 0), ("retries", 0), ("runs_per_hour", 0), ("p95", None)):
        rule = a_rule(metric=metric, above=1)
        sums = sums_of(rule, (NOW - HOUR, window), end_ms=NOW)
        assert readings(rule, sums=sums) == {("send",): later}


def test_of_what_has_not_run_for_a_day_nothing_is_said() -> None:
    rule = a_rule(metric="failures", above=1)
    sums = sums_of(rule, (NOW - DAY - WINDOW, {a_key(): some_runs()}), end_ms=NOW)

    assert readings(rule, sums=sums) == {}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"metric": "failures", "pipeline": "export"}, {("export",): 0}, id="by name"),
        pytest.param({"metric": "runs_per_hour", "pipeline": "export"}, {("export",): 0}, id="too"),
        pytest.param({"metric": "failures", "per": []}, {(): 0}, id="all together"),
        pytest.param({"metric": "failures", "pipeline": "exp*"}, {}, id="by pattern"),
        pytest.param({"pipeline": "export"}, {}, id="a rate of nothing"),
        pytest.param({"metric": "failures", "pipeline": "export", "per": ["worker"]}, {}, id="who"),
    ],
)
def test_what_is_named_in_full_and_never_ran_has_run_zero_times(
    fields: dict[str, Any], expected: Readings
) -> None:
    assert of_runs(a_rule(**fields), {}) == expected


def test_an_alert_whose_match_is_forgotten_reads_zero_or_nothing() -> None:
    assert of_runs(a_rule(metric="failures"), {}, ("send",)) == {("send",): 0}
    assert of_runs(a_rule(), {}, ("send",)) == {}


def test_only_what_is_broken_or_has_a_state_is_read() -> None:
    rule = a_rule()
    window = {
        a_key("well"): some_runs(10),
        a_key("ill"): some_runs(10, failed=9),
        a_key("few"): some_runs(1, failed=1),
        a_key("better"): some_runs(10),
    }
    sums = sums_of(rule, (NOW - WINDOW, window), end_ms=NOW)
    states = {Subject("r", ("better",)): FIRING}
    found = looked(rule, sums=sums, states=states, everything=False)

    assert found.readings == {Subject("r", ("ill",)): 90, Subject("r", ("better",)): 0}
    assert found.matches == {"r": 4}


# ---------------------------------------------------------------- compared


def a_sum(runs: int, failed: int = 0) -> Sum:
    total = Sum()
    total.add(some_runs(runs, failed), NOW - DAY)
    return total


def test_a_change_is_against_the_same_match() -> None:
    rule = a_rule(compare="yesterday")
    window = {a_key(name): some_runs(10, failed=4) for name in ("send", "import")}
    before = Before(hours={Subject("r", ("send",)): a_sum(10, 1)})

    assert of_runs(rule, window, before=before) == {("send",): 30, ("import",): None}


SEND = Subject("r", ("send",))


def versions(*windows: dict[str, int], before: Before) -> Readings:
    """Of ten runs of each version so many failed; one window of ten seconds after the other."""
    rule, rows = a_rule(compare="version"), []
    for number, window in enumerate(windows):
        at_ms = NOW - (len(windows) - number) * WINDOW
        rows.append(
            (at_ms, {a_key(version=v): some_runs(10, n, at_ms=at_ms) for v, n in window.items()})
        )
    return readings(rule, sums=sums_of(rule, *rows, end_ms=NOW), before=before)


def known(*names: str) -> Before:
    """Versions that are known, in the order of their appearance; the n-th failed n of ten."""
    return Before(versions={SEND: [Version(n, v, a_sum(10, n)) for n, v in enumerate(names)]})


@pytest.mark.parametrize(
    ("windows", "before", "expected"),
    [
        pytest.param([{"2": 5}], known("1", "2"), 50, id="against the one before"),
        pytest.param([{"3": 5}], known("1", "2"), 40, id="not known yet: against the last"),
        pytest.param([{"1": 5}], known("1"), None, id="the first deployment"),
        pytest.param([{"1": 5}], NOTHING_BEFORE, None, id="nothing is known"),
        pytest.param([{"2": 5, "1": 9}], known("1", "2"), 50, id="side by side, the newer"),
        pytest.param([{"1": 9, "2": 5}], known("1", "2"), 50, id="in any order"),
        pytest.param([{"2": 9}, {"1": 5}], known("1", "2"), 90, id="although the older ran last"),
        pytest.param([{"1": 9}, {"2": 5}], known("1"), 50, id="while it is rolled out"),
        pytest.param([{"1": 9}, {"1": 9}], known("1", "2"), None, id="rolled back to the first"),
    ],
)
def test_the_newest_version_that_runs_is_held_against_the_one_before_it(
    windows: list[dict[str, int]], before: Before, expected: float | None
) -> None:
    assert versions(*windows, before=before) == {("send",): expected}


# ---------------------------------------------------------------- what is so now

TWO = Facts(
    workers={
        "a": WorkerFact(True, False, True, NOW),
        "b": WorkerFact(False, True, False, NOW - HOUR),
    },
    in_flight={
        ("a", "send"): InFlightFact(1, NOW - MINUTE),
        ("b", "send"): InFlightFact(2, NOW - HOUR),
        ("b", "import"): InFlightFact(0, NOW - SECOND),
        ("b", "idle"): InFlightFact(0, None),
    },
    queues={("a", "mail"): 7, ("b", "mail"): 5, ("b", "slow"): 1},
    successes={("a", "send"): NOW - MINUTE, ("b", "send"): NOW - HOUR, ("b", "import"): NOW},
    dropped=0,
    refused=0,
    troubles=["disk", "history"],
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"metric": "worker_lost"}, {("a",): 0, ("b",): 1}, id="lost"),
        pytest.param({"metric": "worker_lost", "per": []}, {(): 1}, id="how many are"),
        pytest.param({"metric": "worker_lost", "worker": "[ac]"}, {("a",): 0}, id="of some"),
        pytest.param({"metric": "worker_lost", "worker": "c"}, {("c",): 0}, id="never there"),
        pytest.param({"metric": "worker_silent"}, {("a",): 1, ("b",): 0}, id="silent"),
        pytest.param({"metric": "since_connected"}, {("a",): 0, ("b",): HOUR}, id="away"),
        pytest.param({"metric": "since_connected", "per": []}, {(): 0}, id="one is enough"),
        pytest.param(
            {"metric": "since_success"}, {("send",): MINUTE, ("import",): 0}, id="the last success"
        ),
        pytest.param(
            {"metric": "since_success", "per": ["worker"]},
            {("a",): MINUTE, ("b",): 0},
            id="of a worker's pipelines the newest",
        ),
        pytest.param(
            {"metric": "since_success", "per": ["worker", "pipeline"]},
            {("a", "send"): MINUTE, ("b", "send"): HOUR, ("b", "import"): 0},
            id="of each pair",
        ),
        pytest.param({"metric": "since_success", "worker": "b", "per": []}, {(): 0}, id="of one"),
        pytest.param(
            {"metric": "stuck_runs"}, {("send",): 3, ("import",): 0, ("idle",): 0}, id="stuck"
        ),
        pytest.param({"metric": "stuck_runs", "per": []}, {(): 3}, id="all that are"),
        pytest.param(
            {"metric": "stuck_runs", "per": ["worker"]}, {("a",): 1, ("b",): 2}, id="by worker"
        ),
        pytest.param(
            {"metric": "oldest_in_flight"}, {("send",): HOUR, ("import",): SECOND}, id="the oldest"
        ),
        pytest.param({"metric": "oldest_in_flight", "per": []}, {(): HOUR}, id="of all"),
        pytest.param(
            {"metric": "queue_depth"}, {("mail",): 7, ("slow",): 1}, id="two tell of one queue"
        ),
        pytest.param({"metric": "queue_depth", "per": []}, {(): 8}, id="all queues"),
        pytest.param(
            {"metric": "queue_depth", "worker": "b"}, {("mail",): 5, ("slow",): 1}, id="b"
        ),
        pytest.param(
            {"metric": "queue_depth", "worker": "b*"}, {("mail",): 5, ("slow",): 1}, id="b*"
        ),
        pytest.param({"metric": "queue_depth", "queue": "m*"}, {("mail",): 7}, id="by pattern"),
        pytest.param({"metric": "queue_depth", "queue": "none"}, {("none",): 0}, id="never told"),
        pytest.param({"metric": "queue_depth", "per": ["worker"]}, {("a",): 7, ("b",): 6}, id="by"),
        pytest.param(
            {"metric": "queue_depth", "per": ["worker", "queue"]},
            {("a", "mail"): 7, ("b", "mail"): 5, ("b", "slow"): 1},
            id="told apart they are two",
        ),
        pytest.param({"metric": "degraded"}, {(): 2}, id="in trouble"),
        pytest.param({"metric": "dropped"}, {(): 0}, id="none dropped"),
    ],
)
def test_what_is_so_now_is_told_by(fields: dict[str, Any], expected: Readings) -> None:
    assert readings(a_rule(**fields), facts=TWO) == expected


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"metric": "since_success", "pipeline": "export"}, ("export",)),
        ({"metric": "since_success", "pipeline": "exp*", "per": []}, ()),
        ({"metric": "since_connected", "worker": "mailer"}, ("mailer",)),
    ],
)
def test_what_never_was_there_counts_from_when_it_is_expected(
    fields: dict[str, Any], match: tuple[str, ...]
) -> None:
    rule, subject = a_rule(**fields), Subject("r", match)

    assert readings(rule, expected={subject: NOW - HOUR}) == {match: HOUR}
    assert readings(rule, expected={subject: NOW + HOUR}) == {match: 0}
    assert readings(rule) == {match: 0}


def test_once_it_was_there_its_own_time_counts() -> None:
    rule = a_rule(metric="since_success", pipeline="send")

    assert readings(rule, facts=TWO, expected={SEND: NOW - 2 * HOUR}) == {("send",): MINUTE}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("worker_lost", {("gone",): 0}),
        ("worker_silent", {("gone",): 0}),
        ("stuck_runs", {("gone",): 0}),
        ("queue_depth", {("gone",): 0}),
        ("since_connected", {}),
        ("since_success", {}),
    ],
)
def test_an_alert_of_what_is_not_there_any_more(metric: str, expected: Readings) -> None:
    assert readings(a_rule(metric=metric), ("gone",)) == expected


def test_a_stamp_that_lies_ahead_is_of_now() -> None:
    facts = Facts(successes={("a", "send"): NOW + HOUR}, workers={"a": HERE})

    assert readings(a_rule(metric="since_success"), facts=facts) == {("send",): 0}


@pytest.mark.parametrize("metric", ["dropped", "refused", "degraded"])
def test_a_hub_says_what_it_cannot_know(metric: str) -> None:
    found = looked(a_rule(metric=metric))

    assert (found.troubles, found.readings, found.matches) == ({"r": ON_HUB}, {}, {})


def test_of_a_past_that_was_not_recorded_nothing_is_said() -> None:
    found = looked(a_rule(metric="queue_depth"), facts=None)

    assert found.troubles == {"r": "queue depth was not recorded"}


# ---------------------------------------------------------------- totals


def grown(*seen: tuple[int | None, int]) -> Totals:
    totals = Totals()
    for total, at_ms in seen:
        totals.saw(total, at_ms)
    return totals


def test_a_total_counts_by_how_much_it_has_grown() -> None:
    totals = grown((100, NOW - HOUR), (103, NOW - MINUTE), (103, NOW - SECOND), (104, NOW))

    assert totals.since(NOW - 2 * MINUTE) == 4
    assert totals.since(NOW) == 1


@pytest.mark.parametrize("past_ms", [0, 1, 9_999])
def test_it_has_grown_for_as_long_as_the_window_is(past_ms: int) -> None:
    totals = grown((0, NOW), (1, NOW + past_ms))

    assert totals.since(NOW + past_ms) == 1
    assert totals.since(NOW + WINDOW) == 0


def test_a_total_that_begins_anew_has_not_grown() -> None:
    assert grown((100, NOW), (3, NOW), (5, NOW)).since(NOW - HOUR) == 2
    assert grown((None, NOW), (3, NOW), (None, NOW), (4, NOW)).since(NOW - HOUR) == 1


@pytest.mark.parametrize("by_ms", [HOUR, -HOUR])
def test_when_the_clock_was_set_it_grew_as_far_back(by_ms: int) -> None:
    totals = grown((0, NOW), (1, NOW))
    totals.shift(by_ms)

    assert totals.since(NOW + by_ms) == 1
    assert totals.since(NOW + by_ms + WINDOW) == 0


def test_a_rule_reads_what_was_dropped_in_its_window() -> None:
    totals = {"dropped": grown((0, NOW - DAY), (9, NOW - HOUR), (11, NOW - MINUTE))}

    assert readings(a_rule(metric="dropped", window="5m"), facts=TWO, totals=totals) == {(): 2}


# ---------------------------------------------------------------- many


def test_the_order_of_rules_changes_nothing() -> None:
    rules = [
        a_rule(name="rate"),
        a_rule(name="lost", metric="worker_lost"),
        a_rule(name="never", metric="failures", pipeline="never"),
    ]
    sums = Sums(rules)
    sums.add(NOW - WINDOW, {a_key(): some_runs(10, failed=4)})
    arguments: Any = (sums, TWO, {}, NOTHING_BEFORE, {}, {}, NOW)

    one = look(rules, *arguments, everything=True)
    other = look(rules[::-1], *arguments, everything=True)
    assert one == other
    assert one.matches == {"rate": 1, "lost": 2, "never": 1}
