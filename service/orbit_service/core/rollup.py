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
from contextlib import suppress
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
MAX_STEP_MS = 366 * DAY_MS


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
    """[start, end) in steps; both on whole steps. `level` is the index of the one to read.

    What is to be read begins at `first_ms`: before the start where a range of the same
    length before it is to be compared.
    """

    start_ms: int
    end_ms: int
    step_ms: int
    level: int
    first_ms: int

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
    found = re.fullmatch(r"([0-9]{1,15})\s*([smhdw]?)", value.strip())
    if found is None:
        raise BadRange(f"{value[:50]!r} is no duration: give 30s, 5m, 24h, 7d or 2w")
    return int(found[1]) * UNITS_MS.get(found[2], 1)


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
    kept: Sequence[Level] = LEVELS,
    *,
    wanted_points: int = WANTED_POINTS,
    before: bool = False,
) -> Range:
    """How to answer [start, end) in steps, and the range `before` it if asked.

    A step that is left out gives about so many points. Raises BadRange.
    """
    check_range(start_ms, end_ms, now_ms)
    end_ms = min(end_ms, now_ms)
    if step_ms is not None:
        return _planned(start_ms, end_ms, step_ms, now_ms, kept, before)
    ideal = (end_ms - start_ms) / wanted_points
    for step_ms in sorted(STEPS_MS, key=lambda step: abs(log(step / ideal))):
        with suppress(BadRange):
            return _planned(start_ms, end_ms, step_ms, now_ms, kept, before)
    return _planned(start_ms, end_ms, STEPS_MS[-1], now_ms, kept, before)


def check_range(start_ms: int, end_ms: int, now_ms: int) -> None:
    """Raise BadRange unless it is one, of the past."""
    if start_ms >= end_ms:
        raise BadRange(f"from ({start_ms}) has to be before to ({end_ms})")
    if start_ms >= now_ms:
        raise BadRange(f"the range is in the future: it begins at {start_ms}, and now is {now_ms}")


def _planned(
    start_ms: int, end_ms: int, step_ms: int, now_ms: int, kept: Sequence[Level], before: bool
) -> Range:
    finest = kept[0]
    if not 0 < step_ms <= MAX_STEP_MS or step_ms % finest.window_ms:
        nearest = round(step_ms / finest.window_ms) * finest.window_ms
        best = min(max(nearest, finest.window_ms), MAX_STEP_MS)
        raise BadRange(
            f"a step of {step_ms} ms is not a multiple of {finest.name} up to a year: "
            f"take {duration_text(best)} ({best} ms)"
        )
    number = max(i for i, level in enumerate(kept) if step_ms % level.window_ms == 0)
    start_ms -= start_ms % step_ms
    end_ms = max(-(-end_ms // step_ms) * step_ms, start_ms + step_ms)
    first_ms = 2 * start_ms - end_ms if before else start_ms
    needed = kept[_finest_kept(first_ms, now_ms, kept)]
    if kept[number].window_ms < needed.window_ms:
        best = -(-step_ms // needed.window_ms) * needed.window_ms
        raise BadRange(
            f"a step of {duration_text(step_ms)} needs windows of {kept[number].name}, which are "
            f"kept for {duration_text(kept[number].kept_ms)}: for this range"
            f"{' and the one before it' if before else ''} take {duration_text(best)}"
        )
    if before and first_ms < now_ms - kept[-1].kept_ms:
        raise BadRange(
            f"the range before begins at {first_ms}, and runs are kept for "
            f"{duration_text(kept[-1].kept_ms)}: ask for a shorter range"
        )
    found = Range(start_ms, end_ms, step_ms, number, first_ms)
    if found.points > MAX_POINTS:
        least = next((s for s in STEPS_MS if (end_ms - start_ms) // s <= MAX_POINTS), MAX_STEP_MS)
        raise BadRange(
            f"a step of {duration_text(step_ms)} gives {found.points} points; at most "
            f"{MAX_POINTS}: take {duration_text(least)} or more"
        )
    return found


def _finest_kept(at_ms: int, now_ms: int, kept: Sequence[Level]) -> int:
    """The index of the finest level that is kept from that moment on; else the coarsest."""
    numbers = (i for i, level in enumerate(kept) if at_ms >= now_ms - level.kept_ms)
    return next(numbers, len(kept) - 1)


def segments(
    start_ms: int, end_ms: int, now_ms: int, kept: Sequence[Level] = LEVELS
) -> list[Segment]:
    """The parts of [start, end), in order, each from the coarsest level that has its edges.

    Both ends are widened to the finest windows that are still kept there.
    """
    first = next(
        (i for i, level in enumerate(kept) if _is_kept(start_ms, level, level, now_ms)),
        len(kept) - 1,
    )
    start_ms -= start_ms % kept[first].window_ms
    last = _finest_at_end(end_ms, now_ms, kept)
    end_ms = -(-end_ms // kept[last].window_ms) * kept[last].window_ms
    return _cut(start_ms, end_ms, (first, last), len(kept) - 1, kept)


def _is_kept(at_ms: int, level: Level, window_of: Level, now_ms: int) -> bool:
    """Whether a level is kept from where the window of another begins that holds this moment."""
    return at_ms - at_ms % window_of.window_ms >= now_ms - level.kept_ms


def _finest_at_end(end_ms: int, now_ms: int, kept: Sequence[Level]) -> int:
    """Windows of each level at the end begin where a window of the next coarser one does."""
    finest = len(kept) - 1
    for number in reversed(range(finest)):
        if not _is_kept(end_ms, kept[number], kept[number + 1], now_ms):
            break
        finest = number
    return finest


def _cut(
    start_ms: int, end_ms: int, finest: tuple[int, int], number: int, kept: Sequence[Level]
) -> list[Segment]:
    """`finest` are the levels at the start and at the end; `number` is the one to try."""
    if start_ms >= end_ms:
        return []
    window, (first, last) = kept[number].window_ms, finest
    if number <= min(finest):
        return [Segment(number, start_ms, end_ms)]
    middle_ms = start_ms if number <= first else -(-start_ms // window) * window
    until_ms = end_ms if number <= last else end_ms - end_ms % window
    if middle_ms >= until_ms:
        return _cut(start_ms, end_ms, finest, number - 1, kept)
    return [
        *_cut(start_ms, middle_ms, (first, first), number - 1, kept),
        Segment(number, middle_ms, until_ms),
        *_cut(until_ms, end_ms, (last, last), number - 1, kept),
    ]
