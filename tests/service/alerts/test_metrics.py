"""How a number is said."""

from __future__ import annotations

import pytest

from builders import HOUR, MINUTE, SECOND
from orbit_service.alerts.metrics import METRICS, Unit, number_text, time_text


@pytest.mark.parametrize(
    ("ms", "said"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_500, "1.5 s"),
        (MINUTE, "1 min"),
        (90 * SECOND, "1.5 min"),
        (HOUR, "1 h"),
        (3 * HOUR + 20 * MINUTE, "3 h 20 min"),
        (24 * HOUR, "1 d"),
        (52 * HOUR, "2 d 4 h"),
    ],
)
def test_a_time_is_said_in_the_units_that_fit(ms: float, said: str) -> None:
    assert time_text(ms) == said


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (None, "count", "unknown"),
        (40.0, "percent", "40 %"),
        (100 / 3, "percent", "33.33 %"),
        (3.0, "count", "3"),
        (1_234_567.0, "count", "1,234,567"),
        (0.5, "an hour", "0.50"),
        (1_500.0, "ms", "1.5 s"),
    ],
)
def test_a_number_is_said_in_its_unit(value: float | None, unit: Unit, said: str) -> None:
    assert number_text(value, unit) == said


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [(5.0, "percent", "+5.0 points"), (-12.34, "ms", "-12.3 %"), (None, "ms", "unknown")],
)
def test_a_change_has_its_sign(value: float | None, unit: Unit, said: str) -> None:
    assert number_text(value, unit, change=True) == said


def test_a_metric_is_known_by_its_name() -> None:
    assert all(metric.name == name and metric.text for name, metric in METRICS.items())
