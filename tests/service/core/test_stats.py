"""The aggregate of a series, and the arithmetic of what is answered."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import MS, SECOND, T0
from orbit_rpc_schema.wire import MAX_DURATION_US
from orbit_service.core.histogram import Histogram
from orbit_service.core.stats import Stats, merged, percent, rounded, runs_per_hour, uptime_text

quick = settings(max_examples=60, deadline=None, derandomize=True)

runs = st.tuples(st.integers(0, MAX_DURATION_US), st.booleans(), st.integers(0, 10**13))
entries = st.lists(runs | st.sampled_from(["lost", "attempt"]), max_size=20)
counts = st.integers(0, 10**12)


def stats_of(entries: list[tuple[int, bool, int] | str]) -> Stats:
    stats = Stats()
    for entry in entries:
        if entry == "lost":
            stats.add_untimed(T0, failed=True)
        elif entry == "attempt":
            stats.add_unfinished_attempt()
        else:
            duration_us, failed, at_ms = entry
            stats.add_runs([duration_us], int(failed), at_ms)
    return stats


def waiting(*waits_us: int) -> Stats:
    stats = Stats()
    stats.add_waits(waits_us)
    return stats


def contents(stats: Stats) -> dict[str, object]:
    return {name: getattr(stats, name) for name in Stats.__struct_fields__}


def half_up(value: Fraction) -> int:
    exact = Decimal(value.numerator) / Decimal(value.denominator)
    return int(exact.quantize(Decimal(1), ROUND_HALF_UP))


# ---------------------------------------------------------------- the aggregate


def test_a_column_of_runs_is_summed() -> None:
    stats = Stats()
    stats.add_runs([3 * MS, 1 * MS, 8 * MS], failed=1, at_ms=T0)

    assert (stats.runs, stats.failed, stats.succeeded, stats.attempts) == (3, 1, 2, 3)
    assert (stats.min_ms, stats.average_ms, stats.max_ms) == (1, 4, 8)
    assert stats.last_run_ms == T0


def test_nothing_adds_nothing() -> None:
    stats = Stats()
    stats.add_runs([], failed=0, at_ms=T0)

    assert contents(stats) == contents(Stats())


def test_before_the_first_run_every_number_is_zero() -> None:
    stats = Stats()

    assert (stats.runs, stats.min_ms, stats.average_ms, stats.max_ms) == (0, 0, 0, 0)
    assert (stats.quantiles_ms(0.5)[0], stats.last_run_ms) == (0, None)


def test_a_lost_run_is_a_failure_without_a_duration() -> None:
    stats = Stats()
    stats.add_runs([10 * MS], failed=0, at_ms=T0)
    stats.add_untimed(T0 + SECOND, failed=True)

    assert (stats.runs, stats.failed, stats.attempts) == (2, 1, 2)
    assert (stats.min_ms, stats.average_ms, stats.max_ms) == (10, 10, 10)
    assert stats.last_run_ms == T0 + SECOND


def test_an_unfinished_attempt_is_a_retry_and_no_run() -> None:
    stats = Stats()
    stats.add_unfinished_attempt()

    assert (stats.attempts, stats.retries, stats.runs) == (1, 1, 0)
    assert stats.last_run_ms is None


def test_a_run_of_no_time_at_all_is_the_shortest() -> None:
    assert merged([stats_of([(5 * MS, False, T0)]), stats_of([(0, False, T0)])]).min_us == 0


def test_a_part_without_durations_does_not_pull_the_minimum_to_zero() -> None:
    assert merged([stats_of(["lost"]), stats_of([(5 * MS, False, T0)])]).min_ms == 5
    assert merged([stats_of([(5 * MS, False, T0)]), stats_of(["lost"])]).min_ms == 5


def test_the_last_run_is_the_one_that_finished_last_not_the_one_that_came_last() -> None:
    assert stats_of([(1, False, T0), (1, False, T0 - SECOND)]).last_run_ms == T0


@quick
@given(entries, entries)
def test_a_merge_is_the_aggregate_of_both(one: list[str], other: list[str]) -> None:
    both = merged([stats_of(one), stats_of(other)])

    assert contents(both) == contents(stats_of(one + other))


@quick
@given(entries.flatmap(lambda e: st.tuples(st.just(e), st.permutations(e))))
def test_the_order_of_runs_does_not_matter(orders: tuple[list[str], list[str]]) -> None:
    one, other = orders

    assert contents(stats_of(one)) == contents(stats_of(other))


@quick
@given(st.lists(runs, min_size=1, max_size=20))
def test_a_column_counts_as_its_runs_one_by_one(column: list[tuple[int, bool, int]]) -> None:
    column = [(us, failed, T0) for us, failed, _at in column]
    together = Stats()
    failed = sum(failed for _us, failed, _at in column)
    together.add_runs([us for us, _failed, _at in column], failed, T0)

    assert contents(together) == contents(stats_of(list(column)))


@quick
@given(st.lists(st.integers(0, MAX_DURATION_US), min_size=1, max_size=20))
def test_the_average_is_the_exact_mean_rounded_once(sample: list[int]) -> None:
    stats = Stats()
    stats.add_runs(sample, 0, T0)

    assert stats.average_ms == half_up(Fraction(sum(sample), len(sample) * 1000))


# ---------------------------------------------------------------- waits


@quick
@given(st.lists(st.lists(st.integers(0, MAX_DURATION_US), max_size=5), max_size=5))
def test_merged_waits_are_those_of_all(parts: list[list[int]]) -> None:
    total = merged(waiting(*part) for part in parts)
    every = [wait for part in parts for wait in part]

    assert total.waits == (Histogram.of(every) if every else None)
    assert (total.waited, total.total_wait_us) == (len(every), sum(every))
    assert total.max_wait_us == max(every, default=0)


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        pytest.param(Stats(), [0, 0], id="zeroes where nobody told"),
        pytest.param(waiting(0, 0, 0), [0, 0], id="nobody had to wait"),
        pytest.param(waiting(*[3 * MS] * 9, 800 * MS), [3, 800], id="one in ten"),
        pytest.param(waiting(10_499, 10_499), [10, 10], id="no more than the longest"),
        pytest.param(Stats(waited=5, max_wait_us=MS), [0, 0], id="told to an older release"),
    ],
)
def test_quantiles_of_waits(stats: Stats, expected: list[int]) -> None:
    assert stats.wait_quantiles_ms(0.5, 0.95) == pytest.approx(expected, rel=0.011)


def test_neither_a_copy_nor_a_sum_shares_waits() -> None:
    stats = waiting(MS)
    for other in (stats.copy(), merged([stats])):
        other.add_waits([5 * MS])

    assert stats == waiting(MS)


# ---------------------------------------------------------------- rounding


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [
        pytest.param(1499, 1000, 1, id="below a half goes down"),
        pytest.param(1500, 1000, 2, id="a half goes up"),
        pytest.param(2500, 1000, 3, id="an even one too"),
        pytest.param(1, 3, 0, id="a third"),
        pytest.param(7, 0, 0, id="over nothing is zero"),
        pytest.param(2**63 - 1, 1, 2**63 - 1, id="beyond what a float holds"),
    ],
)
def test_numbers_are_rounded_half_up(numerator: int, denominator: int, expected: int) -> None:
    assert rounded(numerator, denominator) == expected


@quick
@given(counts, st.integers(1, 10**9))
def test_rounding_is_that_of_decimal_arithmetic(numerator: int, denominator: int) -> None:
    assert rounded(numerator, denominator) == half_up(Fraction(numerator, denominator))


@pytest.mark.parametrize(
    ("part", "whole", "decimals", "expected"),
    [
        pytest.param(0, 0, 2, 0.0, id="of nothing is zero"),
        pytest.param(1, 3, 2, 33.33, id="a third"),
        pytest.param(2, 3, 2, 66.67, id="two thirds"),
        pytest.param(1, 800, 2, 0.13, id="0.125 goes up"),
        pytest.param(201, 20_000, 2, 1.01, id="1.005 goes up, which a float would not"),
        pytest.param(1, 3, 1, 33.3, id="one decimal"),
        pytest.param(9, 9, 2, 100.0, id="all"),
    ],
)
def test_a_percentage(part: int, whole: int, decimals: int, expected: float) -> None:
    assert percent(part, whole, decimals) == expected


@quick
@given(st.integers(1, 10**9).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_percentage_and_its_complement_make_a_hundred(of: tuple[int, int]) -> None:
    part, whole = of
    hundredths = round(percent(part, whole) * 100) + round(percent(whole - part, whole) * 100)

    both_on_a_half = 2 * 10_000 * part % (2 * whole) == whole
    assert hundredths == 10_000 + both_on_a_half


@pytest.mark.parametrize(
    ("runs", "seconds", "expected"),
    [
        pytest.param(150, 5025, 107.46, id="150 runs in 5025 s"),
        pytest.param(0, 5025, 0.0, id="none"),
        pytest.param(1, 0, 60.0, id="a life is taken as at least 60 s"),
        pytest.param(1, 60, 60.0, id="60 s"),
        pytest.param(1, 61, 59.02, id="61 s"),
        pytest.param(1, 1_440_000, 0.0, id="0.0025 goes down"),
        pytest.param(1, 720_000, 0.01, id="0.005 goes up"),
        pytest.param(2_000, 3600, 2000.0, id="more than the recent detail that is kept"),
    ],
)
def test_runs_per_hour(runs: int, seconds: int, expected: float) -> None:
    assert runs_per_hour(runs, seconds) == expected


# ---------------------------------------------------------------- uptime


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-5, "0s"),
        (59, "59s"),
        (120, "2m"),
        (5025, "1h 23m 45s"),
        (86_400, "1d"),
        (86_401, "1d 1s"),
        (8 * 86_400 + 3661, "8d 1h 1m 1s"),
        (1000 * 86_400, "1000d"),
    ],
)
def test_uptime_is_its_parts_that_are_not_zero(seconds: int, text: str) -> None:
    assert uptime_text(seconds) == text


@quick
@given(st.integers(0, 10**10))
def test_an_uptime_can_be_read_back(seconds: int) -> None:
    unit = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d+)([dhms])", uptime_text(seconds))

    assert sum(int(n) * unit[u] for n, u in parts) == seconds
    assert [u for _n, u in parts] == sorted((u for _n, u in parts), key="dhms".index)
    assert all(int(n) < {"d": 10**9, "h": 24}.get(u, 60) for n, u in parts)
