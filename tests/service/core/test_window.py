"""What all workers did in the last 24 hours, in intervals of ten seconds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import HOUR, SECOND, T0
from orbit_service.core.window import WINDOW_MS, LastDay, Tally

DAY = 24 * HOUR


def a_day(*times_ms: int, now_ms: int = T0) -> LastDay:
    """One run at each of these times."""
    day = LastDay()
    for at_ms in times_ms:
        day.add(Tally(runs=1), at_ms, now_ms)
    return day


def test_tallies_add() -> None:
    tally = Tally(runs=3, failed=1, timed=2, total_us=10)
    tally.add(Tally(runs=1, failed=1, timed=1, total_us=5))

    assert tally == Tally(runs=4, failed=2, timed=3, total_us=15)


def test_a_sum_is_over_the_windows_since_then() -> None:
    day = a_day(T0 - 30 * SECOND, T0 - 20 * SECOND, T0 - 10 * SECOND, T0)

    assert day.since(T0 - 20 * SECOND).runs == 3


def test_its_start_is_rounded_down_to_ten_seconds() -> None:
    day = a_day(T0, T0 + 9_999)

    assert day.since(T0 + 9_999).runs == 2
    assert day.since(T0 + 10_000).runs == 0


def test_a_run_that_comes_late_changes_the_window_of_its_end() -> None:
    day = a_day(T0 - HOUR)
    day.add(Tally(runs=1), T0 - HOUR, T0)

    assert day.since(T0 - HOUR).runs == 2
    assert day.since(T0 - HOUR + WINDOW_MS).runs == 0


@pytest.mark.parametrize(
    ("age_ms", "kept"),
    [
        pytest.param(DAY, 1, id="a day old"),
        pytest.param(DAY + WINDOW_MS, 0, id="older"),
        pytest.param(-30 * SECOND, 1, id="a little ahead"),
    ],
)
def test_what_is_older_than_a_day_is_not_kept(age_ms: int, kept: int) -> None:
    assert a_day(T0 - age_ms).since(0).runs == kept


def test_windows_do_not_pile_up() -> None:
    day = LastDay()
    for number in range(DAY // WINDOW_MS + 200):
        now_ms = T0 + number * WINDOW_MS
        day.add(Tally(runs=1), now_ms, now_ms)

    assert len(day.windows) <= DAY // WINDOW_MS + 1
    assert day.since(now_ms - DAY).runs == DAY // WINDOW_MS + 1


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2 * DAY)), st.integers(0, DAY))
def test_a_sum_is_that_of_the_runs_in_it(ages_ms: list[int], back_ms: int) -> None:
    day = a_day(*(T0 - age for age in ages_ms))  # T0 is on a whole ten seconds

    start = T0 - back_ms - (T0 - back_ms) % WINDOW_MS
    assert day.since(T0 - back_ms).runs == sum(T0 - age >= start for age in ages_ms)
