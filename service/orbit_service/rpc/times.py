"""Times as people write them in a question."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from orbit_service.core.rollup import BadRange, parse_duration

# Between what a clock shows in seconds, and in microseconds, of the same years.
SECONDS_BELOW = 100_000_000_000
MICROSECONDS_FROM = 100_000_000_000_000


def parse_time(value: int | float | str, now_ms: int) -> int:
    """Epoch ms of a time as it is written: epoch ms, "-1h", "now", ISO 8601 with an offset.

    Raises BadRange.
    """
    if isinstance(value, str):
        text = value.strip()
        if text == "now":
            return now_ms
        if text.startswith("-"):
            return max(now_ms - parse_duration(text[1:]), 0)
        if not re.fullmatch(r"[0-9]{1,18}", text):
            return _from_iso(text)
        value = int(text)
    if not 0 <= value < MICROSECONDS_FROM:
        raise BadRange(f"{value} is no time in epoch milliseconds; now is {now_ms}")
    if value < SECONDS_BELOW and value:
        raise BadRange(
            f"{value} looks like epoch seconds; times are epoch milliseconds: {int(value) * 1000}"
        )
    return int(value)


def _from_iso(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise BadRange(
            f"{text[:50]!r} is no time: give epoch milliseconds, a time ago such as -1h, or "
            "ISO 8601 such as 2026-01-31T12:00:00Z"
        ) from None
    if at.tzinfo is None:
        raise BadRange(f"{text[:50]!r} has no offset from UTC: is {at.isoformat()}Z meant?")
    try:
        ms = (at - datetime.fromisoformat("1970-01-01T00:00:00Z")) // timedelta(milliseconds=1)
    except OverflowError:
        ms = -1
    if ms < 0:
        raise BadRange(f"{text[:50]!r} is before 1970")
    return ms
