"""Times as people write them."""

from __future__ import annotations

import pytest

from builders import HOUR, T0
from orbit_service.core.rollup import BadRange
from orbit_service.rpc.times import parse_time


@pytest.mark.parametrize(
    ("written", "ms"),
    [
        (T0, T0),
        (str(T0), T0),
        (0, 0),
        ("now", T0),
        ("-1h", T0 - HOUR),
        ("2023-11-14T22:13:20Z", T0),
        ("2023-11-14T23:13:20+01:00", T0),
        ("2023-11-14T22:13:20.5+00:00", T0 + 500),
    ],
)
def test_a_time_is_read(written: int | str, ms: int) -> None:
    assert parse_time(written, T0) == ms


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (T0 // 1000, f"looks like epoch seconds; times are epoch milliseconds: {T0}"),
        (T0 * 1000, "no time in epoch milliseconds"),
        (-1, "no time in epoch milliseconds"),
        ("2023-11-14T22:13:20", "has no offset from UTC: is 2023-11-14T22:13:20Z meant"),
        ("2023-11-14", "has no offset"),
        ("yesterday", "give epoch milliseconds, a time ago such as -1h, or ISO 8601"),
        ("-soon", "no duration"),
        ("", "no time"),
    ],
)
def test_what_is_no_time_says_what_is(written: int | str, said: str) -> None:
    with pytest.raises(BadRange, match=said):
        parse_time(written, T0)
