"""Which pipelines are held after pauses and resumes, in their order."""

from __future__ import annotations

import pytest

from orbit_worker.pipelines.pause import Pause

CASES = {
    "nothing": ([], ""),
    "one": (["pause a"], "a"),
    "one after the other": (["pause a", "pause b"], "ab"),
    "one, twice": (["pause a", "pause a"], "a"),
    "one of two resumed": (["pause a", "pause b", "resume a"], "b"),
    "one that was not paused resumed": (["pause a", "resume b"], "a"),
    "all": (["pause"], "abz"),
    "all but one": (["pause", "resume a"], "bz"),
    "all but one, and that too": (["pause", "resume a", "pause a"], "abz"),
    "all but one, and then all": (["pause", "resume a", "pause"], "abz"),
    "all after one resumed": (["pause a", "pause", "resume"], ""),
    "all resumed": (["pause a", "pause b", "resume"], ""),
}


@pytest.mark.parametrize(
    ("commands", "held"), [pytest.param(*case, id=name) for name, case in CASES.items()]
)
def test_what_is_held_follows_from_the_commands(commands, held):
    pause = Pause()
    for command in commands:
        action, _, pipeline = command.partition(" ")
        pause = getattr(pause, action)(pipeline or None)

    assert "".join(name for name in "abz" if pause.holds(name)) == held
    assert (pause == Pause()) is (held == "")
