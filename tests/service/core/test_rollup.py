"""Which level answers a question, and which questions cannot be answered."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import HOUR, MINUTE, SECOND
from orbit_service.core.rollup import (
    LEVELS,
    MAX_POINTS,
    BadRange,
    duration_text,
    levels,
    parse_duration,
    plan,
    segments,
)

DAY = 24 * HOUR
NOW = 1_700_000_000_000 - 1_700_000_000_000 % DAY  # a whole day
quick = settings(max_examples=200, deadline=None, derandomize=True)

lengths = st.integers(1, 500 * DAY)


# ---------------------------------------------------------------- steps


@pytest.mark.parametrize(
    ("length", "step", "level"),
    [
        (5 * MINUTE, 10 * SECOND, "10s"),
        (HOUR, 20 * SECOND, "10s"),
        (6 * HOUR, 2 * MINUTE, "1m"),
        (24 * HOUR, 10 * MINUTE, "1m"),
        (7 * DAY, HOUR, "1h"),
        (30 * DAY, 4 * HOUR, "1h"),
        (365 * DAY, 2 * DAY, "1h"),
    ],
)
def test_a_step_that_is_left_out_gives_about_200_points(length, step, level) -> None:
    found = plan(NOW - length, NOW, None, NOW)

    assert (found.step_ms, LEVELS[found.level].name) == (step, level)
    assert found.points <= 300


@quick
@given(lengths, lengths)
def test_whatever_the_range_a_step_is_found_that_its_level_divides(ago: int, length: int) -> None:
    found = plan(NOW - ago, NOW - ago + length, None, NOW)

    assert found.step_ms % LEVELS[found.level].window_ms == 0
    assert 1 <= found.points <= MAX_POINTS
    assert found.start_ms <= NOW - ago
    assert found.end_ms >= min(NOW - ago + length, NOW)


@pytest.mark.parametrize(("length", "step"), [(4 * DAY, HOUR), (5 * HOUR, MINUTE)])
def test_a_trend_is_read_from_a_level_that_the_range_before_has_too(length, step) -> None:
    found = plan(NOW - length, NOW, None, NOW, before=True)

    assert found.first_ms == 2 * found.start_ms - found.end_ms
    assert found.step_ms >= step
    assert found.first_ms >= NOW - LEVELS[found.level].kept_ms
    with pytest.raises(BadRange, match="for this range and the one before it take"):
        plan(NOW - length, NOW, LEVELS[found.level - 1].window_ms, NOW, before=True)


def test_a_trend_against_what_is_not_kept_is_refused() -> None:
    with pytest.raises(BadRange, match="ask for a shorter range"):
        plan(NOW - 300 * DAY, NOW, DAY, NOW, before=True)


def test_what_is_kept_is_asked_of_the_step_in_which_the_range_begins() -> None:
    with pytest.raises(BadRange, match="take 1h"):
        plan(NOW - 6 * HOUR, NOW, 3590 * SECOND, NOW)


def test_a_range_is_widened_to_whole_steps() -> None:
    found = plan(NOW - 125 * SECOND, NOW - 5 * SECOND, MINUTE, NOW)

    assert (found.start_ms, found.end_ms, found.points) == (NOW - 3 * MINUTE, NOW, 3)


def test_a_range_that_reaches_into_the_future_ends_now() -> None:
    assert plan(NOW - HOUR, NOW + HOUR, MINUTE, NOW).end_ms == NOW


@pytest.mark.parametrize(
    ("start", "end", "step", "said"),
    [
        (NOW, NOW - 1, None, "has to be before"),
        (NOW - 1, NOW - 1, None, "has to be before"),
        (NOW + 1, NOW + 2, None, "in the future"),
        (NOW - HOUR, NOW, 0, "not a multiple of 10s up to a year: take 10s"),
        (NOW - HOUR, NOW, -MINUTE, "not a multiple of 10s up to a year: take 10s"),
        (NOW - HOUR, NOW, 7 * SECOND, "not a multiple of 10s up to a year: take 10s"),
        (NOW - HOUR, NOW, 61 * SECOND, "take 1m"),
        (NOW - DAY, NOW, 10 * SECOND, "kept for 6h: for this range take 1m"),
        (NOW - DAY, NOW, 90 * SECOND, "take 2m"),
        (NOW - 8 * DAY, NOW, 90 * MINUTE, "take 2h"),
        (NOW - 400 * DAY, NOW, HOUR // 2, "take 1h"),
        (NOW - 6 * HOUR, NOW, 10 * SECOND, None),
        (NOW - 7 * DAY, NOW, MINUTE, "10080 points; at most 10000: take 2m"),
        (NOW - HOUR, NOW, 400 * DAY, "up to a year: take 366d"),
        (NOW - HOUR, NOW, 10**30, "up to a year: take 366d"),
    ],
)
def test_what_cannot_be_answered_says_what_can(start, end, step, said) -> None:
    if said is None:
        plan(start, end, step, NOW)
        return
    with pytest.raises(BadRange, match=said):
        plan(start, end, step, NOW)


# ---------------------------------------------------------------- segments


def test_a_day_is_read_in_hours_with_minutes_at_its_edges() -> None:
    now = NOW + 10 * HOUR + 30 * MINUTE + 15 * SECOND
    parts = segments(now - 24 * HOUR, now, now)

    levels = [LEVELS[part.level].name for part in parts]
    assert levels == ["1m", "1h", "1m", "10s"]
    assert parts[0].start_ms == now - 24 * HOUR - 15 * SECOND, "that far back there are minutes"
    assert parts[-1].end_ms == now + 5 * SECOND


kept = st.tuples(*[st.integers(2, 100)] * 3).map(lambda hours: [h * HOUR for h in sorted(hours)])


@quick
@given(lengths | st.integers(1, 200 * HOUR), st.integers(1, DAY), st.integers(0, DAY), kept)
def test_segments_follow_one_another_and_leave_nothing_out(
    ago: int, length: int, later: int, kept: list[int]
) -> None:
    now, known = NOW + later, levels(kept)
    start, end = now - ago, now - ago + length
    parts = segments(start, end, now, known)

    assert parts[0].start_ms <= start
    assert parts[-1].end_ms >= end
    assert all(one.end_ms == other.start_ms for one, other in pairwise(parts))
    for part in parts:
        level = known[part.level]
        assert (part.start_ms % level.window_ms, part.end_ms % level.window_ms) == (0, 0)
        assert part.start_ms >= now - level.kept_ms or part.level == 2, "what is gone is not asked"


# ---------------------------------------------------------------- durations


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("90s", 90_000),
        ("5m", 300_000),
        ("24h", DAY),
        ("7d", 7 * DAY),
        ("2w", 14 * DAY),
        (5, 5),
        ("5000", 5000),
    ],
)
def test_durations_are_read(text: str | int, ms: int) -> None:
    assert parse_duration(text) == ms


@pytest.mark.parametrize("text", ["", "m", "9" * 20, "5 parsecs", "-5m", "1.5h", "٣m"])
def test_what_is_no_duration_says_what_is(text: str) -> None:
    with pytest.raises(BadRange, match="give 30s, 5m, 24h"):
        parse_duration(text)


@quick
@given(st.integers(1, 10**6).map(lambda n: n * SECOND))
def test_a_duration_that_is_said_can_be_given(ms: int) -> None:
    assert parse_duration(duration_text(ms)) == ms
