"""Whom a silence is for, and until when."""

from __future__ import annotations

import pytest

from builders import HOUR, T0
from orbit_service.alerts.silences import Silence, Silences

LABELS = {"rule": "error-rate", "severity": "warning", "pipeline": "import-a[1]", "team": "data"}


def a_silence(id: str = "s", **matchers: str) -> Silence:
    return Silence(id, matchers, T0, T0 + HOUR, "the vendor is down", "kim")


@pytest.mark.parametrize(
    ("matchers", "covered"),
    [
        ({"rule": "error-rate"}, True),
        ({"rule": "error"}, False),
        ({"pipeline": "import-*"}, True),
        ({"pipeline": "IMPORT-*"}, False),
        ({"pipeline": "import-a[1]"}, False),  # which is a set of one sign
        ({"pipeline": "import-a[[]1]"}, True),
        ({"pipeline": "import-*", "team": "d?ta"}, True),
        ({"pipeline": "import-*", "team": "ops"}, False),
        ({"worker": "*"}, False),  # it has none
    ],
)
def test_all_matchers_have_to_fit(matchers: dict[str, str], covered: bool) -> None:
    assert a_silence(**matchers).covers(LABELS) is covered


@pytest.mark.parametrize(
    ("now_ms", "in_force"), [(T0 - 1, False), (T0, True), (T0 + HOUR - 1, True), (T0 + HOUR, False)]
)
def test_it_is_in_force_from_its_begin_and_not_at_its_end(now_ms: int, in_force: bool) -> None:
    assert Silences([a_silence(rule="*")]).covering(LABELS, now_ms) == ["s"] * in_force


def test_all_that_are_about_it_are_told() -> None:
    silences = [a_silence("a", rule="*"), a_silence("b", rule="x"), a_silence("c", team="data")]

    assert Silences(silences).covering(LABELS, T0) == ["a", "c"]


def test_what_covers_an_alert_follows_every_change() -> None:
    silences = Silences()
    told = [silences.covering(LABELS, T0)]
    silences.add(a_silence("a", rule="*"))
    told.append(silences.covering(LABELS, T0))
    silences.shift(HOUR)
    told.append(silences.covering(LABELS, T0))
    silences.shift(-HOUR)
    told.append(silences.covering(LABELS, T0))
    assert silences.end("a", T0) is not None
    told.append(silences.covering(LABELS, T0))

    assert told == [[], ["a"], [], ["a"], []]


def test_one_that_has_ended_cannot_be_ended_again() -> None:
    silences = Silences([a_silence("a")])

    assert silences.end("a", T0 + HOUR) is None
    assert silences.end("b", T0) is None
