"""The sentence of an alert is true at each of its looks."""

from __future__ import annotations

from typing import Any

import pytest

from alerting import a_rule
from builders import T0
from orbit_service.alerts.fold import State
from orbit_service.alerts.saying import summary


@pytest.mark.parametrize(
    ("fields", "value", "expected"),
    [
        ({}, 40, "is 40 %, above 10 %"),
        ({"clear": 5}, 11, "is 11 %, above 10 %"),
        ({"clear": 5}, 7.5, "is 7.5 %, after 40 %; it ends at 5 %"),
        ({"keep_firing_for": "5m"}, 0, "; it ends when it was not above 10 % for 5 min"),
        ({"clear": 5, "keep_firing_for": "5m"}, 0, "is 0 %, after 40 %; it ends at 5 % for 5 min"),
        ({}, None, "is unknown, above 10 %"),
    ],
)
def test_what_fires_is_past_its_threshold_or_says_what_ends_it(
    fields: dict[str, Any], value: float | None, expected: str
) -> None:
    state = State("firing", T0, T0, value=value, peak=40.0)

    assert summary(a_rule(**fields), ("send",), state).endswith(expected)
