"""
Levels of windows, and which of them answer a question.

A level holds windows of one length for a time: ten seconds for hours, hours for
a year. A question about a range is answered from the coarsest level that its
edges and steps fall on; where that has been let go already, the question is
refused with one that can be answered. Everything here is arithmetic on epoch
milliseconds; time comes in as an argument.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
UNITS_MS = {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS, "w": 7 * DAY_MS}

MAX_POINTS = 10_000
WANTED_POINTS = 200  # where the step is left out
STEPS_MS = (
    *(n * SECOND_MS for n in (10, 20, 30)),
    *(n * MINUTE_MS for n in (1, 2, 5, 10, 15, 20, 30)),
    *(n * HOUR_MS for n in (1, 2, 3, 4, 6, 12)),
    *(n * DAY_MS for n in (1, 2, 7, 14)),
)
MAX_RANGE_MS = 100 * 366 * DAY_MS


class BadRange(Exception):
    """A range or step that cannot be answered; the text tells what would work."""


@dataclass(frozen=True, slots=True)
class Level:
    """Windows of one length, kept for a time."""

    name: str
    window_ms: int
    kept_ms: int


def levels(kept_ms: Sequence[int]) -> tuple[Level, ...]:
    """The levels, finest first, each kept for so long."""
    names = (("10s", 10 * SECOND_MS), ("1m", MINUTE_MS), ("1h", HOUR_MS))
    return tuple(
        Level(name, window, kept) for (name, window), kept in zip(names, kept_ms, strict=True)
    )


LEVELS = levels((6 * HOUR_MS, 7 * DAY_MS, 400 * DAY_MS))


@dataclass(frozen=True, slots=True)
class Range:
    """[start, end) in steps; both on whole steps. `level` is the index of the one to read."""

    start_ms: int
    end_ms: int
    step_ms: int
    level: int

    @property
    def points(self) -> int:
        return (self.end_ms - self.start_ms) // self.step_ms


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a range that one level answers."""

    level: int
    start_ms: int
    end_ms: int


# ---------------------------------------------------------------- durations


def parse_duration(value: int | str) -> int:
    """Milliseconds of "90s", "5m", "24h", "7d" or "2w", or of a number that is milliseconds.

    Raises BadRange.
    """
    if isinstance(value, int):
        return value
    found = re.fullmatch(r"(\d{1,9})\s*([smhdw])", value.strip())
    if found is None:
        raise BadRange(f"{value!r} is no duration: give 30s, 5m, 24h, 7d or 2w")
    return int(found[1]) * UNITS_MS[found[2]]


def duration_text(ms: int) -> str:
    """As it can be given: "90s", "5m", "24h", "7d"."""
    for unit in ("d", "h", "m", "s"):
        if ms and ms % UNITS_MS[unit] == 0 and (unit != "d" or ms > DAY_MS):
            return f"{ms // UNITS_MS[unit]}{unit}"
    return f"{ms}ms"


# ---------------------------------------------------------------- which level


def plan(
    start_ms: int,
    end_ms: int,
    step_ms: int | None,
    now_ms: int,
    levels: Sequence[Level] = LEVELS,
    wanted_points: int = WANTED_POINTS,
) -> Range:
    """How to answer [start, end) in steps; a step that is left out gives about 200 points.

    Raises BadRange.
    """
    check_range(start_ms, end_ms, now_ms)
    end_ms = min(end_ms, now_ms)
    if step_ms is None:
        step_ms = _fitting_step(start_ms, end_ms, now_ms, levels, wanted_points)
    level = _level_of(step_ms, start_ms, now_ms, levels)
    start_ms -= start_ms % step_ms
    end_ms = -(-end_ms // step_ms) * step_ms
    found = Range(start_ms, max(end_ms, start_ms + step_ms), step_ms, level)
    if found.points > MAX_POINTS:
        least = next(s for s in (*STEPS_MS, DAY_MS * 366) if (end_ms - start_ms) // s <= MAX_POINTS)
        raise BadRange(
            f"a step of {duration_text(step_ms)} gives {found.points} points; at most "
            f"{MAX_POINTS}: take {duration_text(least)} or more"
        )
    return found


def check_range(start_ms: int, end_ms: int, now_ms: int) -> None:
    """Raise BadRange unless it is one, of the past."""
    if start_ms >= end_ms:
        raise BadRange(f"from ({start_ms}) has to be before to ({end_ms})")
    if start_ms >= now_ms:
        raise BadRange(f"the range is in the future: it begins at {start_ms}, and now is {now_ms}")
    if end_ms - start_ms > MAX_RANGE_MS:
        raise BadRange("the range is longer than a hundred years")


def _fitting_step(
    start_ms: int, end_ms: int, now_ms: int, levels: Sequence[Level], wanted_points: int
) -> int:
    finest = _finest_kept(start_ms, now_ms, levels).window_ms
    ideal = (end_ms - start_ms) / wanted_points
    possible = [s for s in STEPS_MS if s % finest == 0 and (end_ms - start_ms) // s < MAX_POINTS]
    return min(possible, key=lambda s: abs(log(s / ideal)), default=STEPS_MS[-1])


def _finest_kept(start_ms: int, now_ms: int, levels: Sequence[Level]) -> Level:
    kept = (level for level in levels if start_ms >= now_ms - level.kept_ms)
    return next(kept, levels[-1])


def _level_of(step_ms: int, start_ms: int, now_ms: int, levels: Sequence[Level]) -> int:
    """The coarsest level of which the step is a multiple."""
    finest = levels[0]
    if step_ms <= 0 or step_ms % finest.window_ms:
        least = max(finest.window_ms, round(step_ms / finest.window_ms) * finest.window_ms)
        raise BadRange(
            f"a step of {step_ms} ms is not a multiple of {finest.name}: "
            f"take {duration_text(least)} ({least} ms)"
        )
    number = max(i for i, level in enumerate(levels) if step_ms % level.window_ms == 0)
    level, needed = levels[number], _finest_kept(start_ms, now_ms, levels)
    if level.window_ms < needed.window_ms:
        best = -(-step_ms // needed.window_ms) * needed.window_ms
        raise BadRange(
            f"a step of {duration_text(step_ms)} needs windows of {level.name}, which are kept "
            f"for {duration_text(level.kept_ms)}: for this range take {duration_text(best)}"
        )
    return number


def segments(
    start_ms: int, end_ms: int, now_ms: int, levels: Sequence[Level] = LEVELS
) -> list[Segment]:
    """The parts of [start, end), in order, each from the coarsest level that has its edges.

    The start is rounded down to the finest window that is still kept there, and the
    end up to ten seconds.
    """
    finest = _finest_kept(start_ms, now_ms, levels)
    start_ms -= start_ms % finest.window_ms
    end_ms = -(-end_ms // levels[0].window_ms) * levels[0].window_ms
    return _cut(start_ms, end_ms, len(levels) - 1, levels)


def _cut(start_ms: int, end_ms: int, number: int, levels: Sequence[Level]) -> list[Segment]:
    if start_ms >= end_ms:
        return []
    if number == 0:
        return [Segment(0, start_ms, end_ms)]
    window = levels[number].window_ms
    first, last = -(-start_ms // window) * window, end_ms - end_ms % window
    if first >= last:
        return _cut(start_ms, end_ms, number - 1, levels)
    return [
        *_cut(start_ms, first, number - 1, levels),
        Segment(number, first, last),
        *_cut(last, end_ms, number - 1, levels),
    ]
