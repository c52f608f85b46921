"""Places for names: the dead free theirs, and the living are not folded because of them."""

from __future__ import annotations

import pytest

from builders import MINUTE, SECOND, T0
from orbit_service.core.cardinality import Places


@pytest.fixture
def places() -> Places[str]:
    return Places(2)


def test_a_name_over_the_bound_is_turned_away_and_counted(places: Places[str]) -> None:
    assert [places.admit(name, T0) for name in "abcab"] == [True, True, False, True, True]
    assert places.turned_away == 1


def test_who_is_idle_for_a_quarter_of_an_hour_makes_room(places: Places[str]) -> None:
    places.admit("idle", T0)
    places.admit("busy", T0)
    places.admit("busy", T0 + 14 * MINUTE)

    assert not places.admit("new", T0 + 15 * MINUTE - SECOND)
    assert places.admit("new", T0 + 15 * MINUTE)
    assert set(places.used_ms) == {"busy", "new"}


def test_nobody_has_to_go_while_there_is_room(places: Places[str]) -> None:
    places.admit("idle", T0)
    places.admit("new", T0 + 60 * MINUTE)

    assert set(places.used_ms) == {"idle", "new"}


def test_who_may_not_go_keeps_its_place(places: Places[str]) -> None:
    places = Places(1, may_go=lambda name: name != "needed")
    places.admit("needed", T0)

    assert not places.admit("new", T0 + 60 * MINUTE)


def test_a_full_house_is_looked_through_once_a_second(places: Places[str]) -> None:
    looked = []
    places = Places(1, may_go=lambda name: bool(looked.append(name)))
    places.admit("needed", T0)
    for ms in range(0, 3_000, 100):
        places.admit("new", T0 + 60 * MINUTE + ms)

    assert len(looked) == 3
