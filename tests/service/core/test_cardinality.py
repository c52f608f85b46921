"""Places for names: the dead free theirs, and the living are not folded because of them."""

from __future__ import annotations

import pytest

from builders import MINUTE, SECOND, T0
from orbit_service.core.cardinality import Places


def fold(_name: str) -> str:
    return "others"


@pytest.fixture
def places() -> Places[str]:
    return Places(2, fold)


def test_a_name_over_the_bound_is_folded_and_counted(places: Places[str]) -> None:
    assert [places.place(name, T0) for name in "abcab"] == ["a", "b", "others", "a", "b"]
    assert (places.folded, places.full) == (1, True)


def test_who_is_idle_for_a_quarter_of_an_hour_makes_room(places: Places[str]) -> None:
    places.place("idle", T0)
    places.place("busy", T0)
    places.place("busy", T0 + 14 * MINUTE)

    assert places.place("new", T0 + 15 * MINUTE - SECOND) == "others"
    assert places.place("new", T0 + 15 * MINUTE) == "new"
    assert set(places.used_ms) == {"busy", "new"}


def test_nobody_has_to_go_while_there_is_room(places: Places[str]) -> None:
    places.place("idle", T0)
    places.place("new", T0 + 60 * MINUTE)

    assert set(places.used_ms) == {"idle", "new"}


def test_who_may_not_go_keeps_its_place(places: Places[str]) -> None:
    places = Places(1, fold, may_go=lambda name: name != "needed")
    places.place("needed", T0)

    assert places.place("new", T0 + 60 * MINUTE) == "others"


def test_a_full_house_is_looked_through_once_a_second(places: Places[str]) -> None:
    looked = []
    places = Places(1, fold, may_go=lambda name: bool(looked.append(name)))
    places.place("needed", T0)
    for ms in range(0, 3_000, 100):
        places.place("new", T0 + 60 * MINUTE + ms)

    assert len(looked) == 3
