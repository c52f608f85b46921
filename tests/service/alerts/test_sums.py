"""Sums that slide equal sums that are made anew, in any order and for every length."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alerting import DAY, WINDOW, a_key, a_rule, some_runs, sums_of
from builders import HOUR, MINUTE, MS, SECOND, T0
from orbit_service.alerts import sums as bounds
from orbit_service.alerts.rules import Rule
from orbit_service.alerts.sums import (
    BUCKETS_MS,
    PARTS,
    Slide,
    Sum,
    Sums,
    change_of,
    signal_of,
    value_of,
)
from orbit_service.core.histogram import Histogram
from orbit_service.core.outbox import EVERYTHING, Key
from orbit_service.core.stats import Stats, merged

END = T0 - T0 % DAY + 12 * HOUR
SEND = ("send",)
quick = settings(max_examples=80, deadline=None, derandomize=True)

LENGTHS = [
    pytest.param(10 * SECOND, WINDOW, id="10s"),
    pytest.param(5 * MINUTE, WINDOW, id="5m"),
    pytest.param(10 * MINUTE, WINDOW, id="10m"),
    pytest.param(10 * MINUTE + WINDOW, 30 * SECOND, id="a little more"),
    pytest.param(HOUR, MINUTE, id="1h"),
    pytest.param(5 * HOUR, 5 * MINUTE, id="5h"),
    pytest.param(10 * HOUR, 10 * MINUTE, id="10h"),
    pytest.param(24 * HOUR, 30 * MINUTE, id="24h"),
]


def counts(total: Sum | Stats) -> tuple[Any, ...]:
    """All that a sum tells, so that two can be held against each other."""
    waits = total.waits if total.waits is not None else Histogram()
    return (
        total.runs,
        total.failed,
        total.retries,
        total.timed,
        total.total_us,
        total.histogram,
        waits,
    )


def a_window(seed: int) -> Stats:
    """Runs of many durations, some of which failed, waited or have no duration."""
    chance = random.Random(seed)
    stats = Stats()
    durations = [chance.choice([0, 1, 900, MS, 10**6, 10**9]) for _ in range(chance.randrange(4))]
    stats.add_runs(durations, chance.randint(0, len(durations)), T0)
    for _ in range(chance.randrange(2)):
        stats.add_untimed(T0, failed=chance.random() < 0.5)
    for _ in range(chance.randrange(2)):
        stats.add_unfinished_attempt()
    stats.add_waits([chance.choice([0, 5, MS, 10**8]) for _ in range(chance.randrange(3))])
    return stats


def total_of(rule: Rule, window: dict[Key, Stats], match: tuple[str, ...] = SEND) -> Sum | None:
    """The sum of one window for one of the rule's matches."""
    return sums_of(rule, (END - WINDOW, window), end_ms=END).of(rule).get(match)


# ---------------------------------------------------------------- sliding


@pytest.mark.parametrize(("window_ms", "bucket_ms"), LENGTHS)
def test_a_window_is_slid_in_parts_that_are_few(window_ms: int, bucket_ms: int) -> None:
    assert Slide(window_ms).bucket_ms == bucket_ms
    assert window_ms <= bucket_ms * PARTS


@pytest.mark.parametrize(("window_ms", "bucket_ms"), LENGTHS)
def test_a_window_covers_its_length_and_at_most_a_part_more(window_ms: int, bucket_ms: int) -> None:
    slide = Slide(window_ms)
    for back_ms in range(WINDOW, window_ms + 2 * bucket_ms + 1, WINDOW):
        slide.add(END - back_ms, SEND, some_runs())
    for late_ms in range(0, bucket_ms, WINDOW):
        slide.advance(END + late_ms)
        covered = slide.totals[SEND].runs * WINDOW
        assert 0 <= covered - (window_ms - late_ms) < bucket_ms


@pytest.mark.parametrize("window_ms", [10 * SECOND, 5 * MINUTE, HOUR, 24 * HOUR])
@quick
@given(data=st.data())
def test_a_sum_that_slides_is_the_sum_of_what_lies_in_its_window(
    window_ms: int, data: st.DataObject
) -> None:
    slide = Slide(window_ms)
    bucket_ms = slide.bucket_ms
    farthest = (window_ms + 3 * bucket_ms) // WINDOW
    looks = st.lists(st.tuples(st.integers(0, farthest), st.integers(0, 50)), max_size=6)
    added: list[tuple[int, Stats]] = []
    end_ms = END
    for step in data.draw(st.lists(st.integers(0, farthest), min_size=1, max_size=6)):
        end_ms += step * WINDOW
        # In any order, late ones and some for the same start; what has no place is too old.
        for back, seed in data.draw(looks):
            start_ms, stats = end_ms - (back + 1) * WINDOW, a_window(seed)
            slide.add(start_ms, SEND, stats)
            added.append((start_ms, stats))
        slide.advance(end_ms)
        oldest_ms = end_ms - window_ms
        oldest_ms -= oldest_ms % bucket_ms
        expected = merged(stats for start, stats in added if start >= oldest_ms)
        assert counts(slide.totals.get(SEND, Sum())) == counts(expected)


@quick
@given(st.lists(st.integers(0, 10**9), max_size=30), st.lists(st.integers(0, 10**9), max_size=30))
def test_histograms_are_taken_away_exactly(kept: list[int], gone: list[int]) -> None:
    for first, then in ((kept, gone), (gone, kept)):
        total, part = Sum(), Sum()
        for sample in (first, then):
            stats = Stats()
            stats.add_runs(sample, 0, T0)
            stats.add_waits(sample)
            total.add(stats, T0)
            if sample is gone:
                part.add(stats, T0)
        total.take_away(part)
        assert total.histogram == total.waits == Histogram.of(kept)


def test_a_window_that_comes_late_counts_where_it_lies() -> None:
    slide = Slide(MINUTE)
    slide.advance(END)
    slide.add(END - 6 * WINDOW, SEND, some_runs(2))
    slide.add(END - 7 * WINDOW, SEND, some_runs(4))
    assert slide.totals[SEND].runs == 2

    slide.advance(END + WINDOW)
    assert slide.totals[SEND].runs == 0


def test_two_windows_of_one_start_add() -> None:
    slide = Slide(MINUTE)
    for _ in range(2):
        slide.add(END - WINDOW, SEND, some_runs(3, failed=1))
    slide.advance(END)
    assert (slide.totals[SEND].runs, slide.totals[SEND].failed) == (6, 2)

    slide.advance(END + MINUTE)
    assert counts(slide.totals[SEND]) == counts(Sum())


def test_what_is_added_stays_as_it_is() -> None:
    window = some_runs(3)
    sums = sums_of(a_rule(), (END - WINDOW, {a_key(): window}), end_ms=END)
    sums.add(END - WINDOW, {a_key(): some_runs(5)})

    assert window == some_runs(3)


# ---------------------------------------------------------------- what is known


def test_what_has_not_run_for_a_day_is_forgotten() -> None:
    slide = Slide(MINUTE)
    slide.add(END - WINDOW, SEND, some_runs())

    slide.advance(END - WINDOW + DAY)
    assert slide.totals[SEND].runs == 0

    slide.advance(END + DAY)
    assert slide.totals == {}


@pytest.mark.parametrize("window_ms", [WINDOW, 24 * HOUR])
def test_what_is_forgotten_leaves_nothing_to_be_taken_away(window_ms: int) -> None:
    slide = Slide(window_ms)
    attempt = Stats()
    attempt.add_unfinished_attempt()
    slide.add(END - WINDOW, SEND, attempt)
    for minutes in range(0, 26 * 60, 7):
        slide.advance(END + minutes * MINUTE)

    assert slide.totals == {}


def test_so_many_matches_are_known_and_rows_of_further_ones_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "MAX_MATCHES", 2)
    rule = a_rule()
    window = {a_key(name): some_runs() for name in "abcd"}
    sums = sums_of(rule, (END - WINDOW, window), (END - WINDOW, window), end_ms=END)

    assert set(sums.of(rule)) == {("a",), ("b",)}
    assert sums.left_out(rule) == 4

    sums.advance(END + 2 * DAY)
    sums.add(END + 2 * DAY, {a_key("c"): some_runs()})
    assert set(sums.of(rule)) == {("c",)}


def test_of_what_is_so_now_there_are_no_sums() -> None:
    rule = a_rule(metric="queue_depth")

    assert Sums([rule]).slides == {}
    assert Sums([rule]).left_out(rule) == 0


@pytest.mark.parametrize("by_ms", [HOUR, -HOUR, 20 * SECOND, -MINUTE])
def test_when_the_clock_was_set_what_lies_back_lies_as_far_back(by_ms: int) -> None:
    rule = a_rule(window="5m")
    window = {a_key(): some_runs(3)}
    sums = sums_of(rule, (END - MINUTE, window), end_ms=END)
    sums.shift(by_ms)

    sums.advance(END + by_ms + 4 * MINUTE)
    assert sums.of(rule)[SEND].runs == 3
    sums.advance(END + by_ms + 4 * MINUTE + WINDOW)
    assert sums.of(rule)[SEND].runs == 0


@pytest.mark.parametrize("by_ms", [HOUR, -HOUR, 7_000, -11 * MINUTE])
@pytest.mark.parametrize(("window_ms", "bucket_ms"), LENGTHS)
def test_a_clock_that_was_set_moves_no_window_by_more_than_a_part(
    window_ms: int, bucket_ms: int, by_ms: int
) -> None:
    slide = Slide(window_ms)
    slide.add(END - WINDOW, SEND, some_runs())
    slide.advance(END)
    slide.shift(by_ms)

    slide.advance(END + by_ms + window_ms - WINDOW - bucket_ms)
    assert slide.totals[SEND].runs == 1
    slide.advance(END + by_ms + window_ms + 2 * bucket_ms)
    assert slide.totals.get(SEND, Sum()).runs == 0


# ---------------------------------------------------------------- which runs


@pytest.mark.parametrize(
    ("fields", "key", "match"),
    [
        pytest.param({}, a_key(), SEND, id="by pipeline"),
        pytest.param({"per": ["worker", "pipeline"]}, a_key(), ("mailer", "send"), id="by both"),
        pytest.param({"per": []}, a_key(), (), id="all together"),
        pytest.param({"pipeline": "send"}, a_key(), SEND, id="by name"),
        pytest.param({"pipeline": "s?nd"}, a_key(), SEND, id="by pattern"),
        pytest.param({"pipeline": "s?nd"}, a_key("sad"), None, id="which does not match"),
        pytest.param({"pipeline": "send"}, a_key("sender"), None, id="a longer name"),
        pytest.param({"pipeline": "send"}, a_key("Send"), None, id="a capital"),
        pytest.param({"worker": "m*"}, a_key(), SEND, id="of a worker"),
        pytest.param({"worker": "m*"}, a_key(worker="x"), None, id="of another"),
        pytest.param({}, a_key(version="2"), SEND, id="of any version"),
        pytest.param({"compare": "version"}, a_key(version="2"), ("send", "2"), id="versions"),
        pytest.param({}, a_key(step="parse"), None, id="a step is no run"),
        pytest.param({"step": "*"}, a_key(step="parse"), ("send", "parse"), id="a step"),
        pytest.param({"step": "p*"}, a_key(step="load"), None, id="another step"),
        pytest.param({"step": "*"}, a_key(), None, id="a run is no step"),
        pytest.param({}, a_key(error="ValueError"), None, id="an error's runs are counted already"),
        pytest.param({"step": "*"}, a_key(step="s", error="E"), None, id="likewise steps"),
        pytest.param({}, EVERYTHING, None, id="all runs are counted already"),
        pytest.param({"per": []}, EVERYTHING, None, id="here too"),
        pytest.param({"pipeline": "a[[]b*"}, a_key("a[b]*\n'"), ("a[b]*\n'",), id="hostile"),
    ],
)
def test_a_row_counts_for_a_rule_as(
    fields: dict[str, Any], key: Key, match: tuple[str, ...] | None
) -> None:
    rule = a_rule(**fields)
    totals = sums_of(rule, (END - WINDOW, {key: some_runs()}), end_ms=END).of(rule)

    assert list(totals) == ([] if match is None else [match])


def test_workers_and_versions_of_one_match_add() -> None:
    window = {
        a_key(): some_runs(1),
        a_key(worker="other"): some_runs(2, failed=1),
        a_key(version="2"): some_runs(4),
        a_key("import"): some_runs(8),
    }
    total = total_of(a_rule(), window)

    assert total is not None
    assert (total.runs, total.failed) == (7, 1)


def test_rules_that_look_at_the_same_share_a_sum() -> None:
    same = [a_rule(name=f"r{n}", above=n, metric=m) for n, m in enumerate(["error_rate", "p95"])]
    other = a_rule(name="other", window="1m")

    assert set(Sums([*same, other]).slides) == {signal_of(same[0]), signal_of(other)}


def test_steps_are_wanted_where_a_rule_looks_at_them() -> None:
    assert not Sums([a_rule(), a_rule(name="q", metric="queue_depth")]).wants_steps
    assert Sums([a_rule(), a_rule(name="s", step="*")]).wants_steps


def test_windows_are_needed_for_as_long_as_the_longest_reaches() -> None:
    assert Sums([a_rule(), a_rule(name="h", window="1h")]).longest_ms == HOUR + MINUTE
    assert Sums([]).longest_ms == 0


def test_a_thousand_rules_each_get_their_own() -> None:
    rules = [a_rule(name=f"r{n}", pipeline=f"p{n}") for n in range(999)]
    rules.append(a_rule(name="all", pipeline="p*", per=[]))
    sums = Sums(rules)
    for number in range(3):
        sums.add(END + number * WINDOW, {a_key(f"p{n}"): some_runs() for n in range(1_000)})
    sums.advance(END + 3 * WINDOW)

    assert [sums.of(rule)[(f"p{n}",)].runs for n, rule in enumerate(rules[:-1])] == [3] * 999
    assert sums.of(rules[-1])[()].runs == 3_000


def test_where_rows_go_is_asked_anew_when_too_much_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "MAX_ROUTES", 3)
    rule = a_rule()
    window = {a_key(f"p{n}"): some_runs() for n in range(10)}
    totals = sums_of(rule, *[(END - WINDOW, window)] * 2, end_ms=END).of(rule)

    assert [total.runs for total in totals.values()] == [2] * 10


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("fields", "runs", "value"),
    [
        pytest.param({}, some_runs(10, failed=4), 40, id="error rate"),
        pytest.param({}, some_runs(30, failed=3), 10, id="a rate that is whole is exact"),
        pytest.param({}, some_runs(4, failed=4), None, id="of too few"),
        pytest.param({}, some_runs(5, failed=5), 100, id="of just enough"),
        pytest.param({"min_runs": 2}, some_runs(2, failed=1), 50, id="of as many as it says"),
        pytest.param({"min_runs": 2}, some_runs(1, failed=1), None, id="of fewer"),
        pytest.param({"min_runs": 0}, Stats(), None, id="of none"),
        pytest.param({"metric": "failures"}, some_runs(3, failed=2), 2, id="failures"),
        pytest.param({"metric": "failures"}, some_runs(1), 0, id="none failed"),
        pytest.param({"metric": "retries"}, some_runs(1, retries=3), 3, id="retries"),
        pytest.param({"metric": "runs_per_hour"}, some_runs(10), 120, id="ten in five minutes"),
        pytest.param(
            {"metric": "runs_per_hour", "window": "24h"}, some_runs(12), 0.5, id="twelve a day"
        ),
        pytest.param(
            {"metric": "avg"}, some_runs(5, total_us=12_500, timed=5), 2.5, id="average in ms"
        ),
        pytest.param({"metric": "avg"}, some_runs(9, timed=4), None, id="of those with a duration"),
    ],
)
def test_a_number_of_some_runs(fields: dict[str, Any], runs: Stats, value: float | None) -> None:
    total = Sum()
    total.add(runs, T0)

    assert value_of(a_rule(**fields), total) == value


@pytest.mark.parametrize(("metric", "ms"), [("p50", 50), ("p95", 95), ("p99", 99)])
def test_a_percentile_is_at_most_that_much_off(metric: str, ms: float) -> None:
    total, stats = Sum(), Stats()
    stats.add_runs([n * MS for n in range(100)], 0, T0)
    total.add(stats, T0)

    assert value_of(a_rule(metric=metric), total) == pytest.approx(ms, rel=0.011)


def test_a_percentile_of_runs_without_a_duration_is_unknown() -> None:
    total, stats = Sum(), Stats()
    for _ in range(9):
        stats.add_untimed(T0, failed=True)
    total.add(stats, T0)

    assert value_of(a_rule(metric="p95"), total) is None
    assert value_of(a_rule(), total) == 100


def test_a_percentile_of_waits_is_of_those_that_are_known() -> None:
    # An older release counted runs that waited, and did not keep how long.
    old, new = some_runs(50, waited=50, total_wait_us=10**9), some_runs(5)
    new.add_waits([200 * MS] * 5)
    total = Sum()
    for stats in (old, new):
        total.add(stats, T0)

    assert value_of(a_rule(metric="wait_p95"), total) == pytest.approx(200, rel=0.011)
    assert value_of(a_rule(metric="wait_p95", min_runs=6), total) is None


@pytest.mark.parametrize(
    ("fields", "now", "before", "change"),
    [
        pytest.param({}, some_runs(100, 6), some_runs(100, 1), 5, id="points of a rate"),
        pytest.param({}, some_runs(10, 1), some_runs(10), 10, id="from none"),
        pytest.param(
            {"metric": "avg"},
            some_runs(5, 0, 300),
            some_runs(5, 0, 200),
            50,
            id="percent",
        ),
        pytest.param({"metric": "avg"}, some_runs(5), some_runs(5, 0, 0), None, id="of no time"),
        pytest.param({}, some_runs(4), some_runs(9), None, id="too few now"),
        pytest.param({}, some_runs(9), some_runs(4), None, id="too few before"),
    ],
)
def test_a_change_is_in_points_or_in_percent(
    fields: dict[str, Any], now: Stats, before: Stats, change: float | None
) -> None:
    sums = [Sum(), Sum()]
    for total, stats in zip(sums, (now, before), strict=True):
        total.add(stats, T0)

    assert change_of(a_rule(**fields, compare="yesterday"), *sums) == pytest.approx(change)


def test_each_part_of_a_length_is_a_part_of_the_next() -> None:
    # So that what slides in one also slides in whole windows.
    assert all(bucket % WINDOW == 0 for bucket in BUCKETS_MS)
