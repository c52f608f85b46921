"""
The fold: what a rule says of a value, and what follows from it.

ok -> pending -> firing -> resolved. A rule and a match know nothing of the others, so the
order in which they are looked at changes nothing. An alert that is ok has no state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from orbit_rpc_schema.alerts import Phase
from orbit_service.alerts.rules import Rule

Match = tuple[str, ...]  # the values of a rule's dimensions, in their order
Turn = Literal["pending", "firing", "resolved", "calmed"]


class Subject(NamedTuple):
    """What an alert is about: a rule at one of its matches."""

    rule: str
    match: Match


class State(Struct, frozen=True, array_like=True):
    """An alert that is pending or fires. Times are epoch milliseconds."""

    phase: Phase
    since_ms: int  # when the threshold was first crossed
    fired_ms: int = 0
    clear_since_ms: int = 0  # it fires, and has been past its threshold to clear since then
    value: float | None = None
    peak: float | None = None  # the value furthest beyond the threshold


class Change(NamedTuple):
    """A turn of one alert; `state` is what it was or has become."""

    subject: Subject
    turn: Turn
    at_ms: int
    state: State
    reason: str = ""


Readings = Mapping[Subject, "float | None"]
States = Mapping[Subject, State]


def fold(
    rules: Mapping[str, Rule], readings: Readings, states: States, now_ms: int
) -> tuple[dict[Subject, State], list[Change]]:
    """The states after a look, and what has changed.

    A value of None, or none at all, means that nothing can be said. A state of which the
    rule is gone, or is about others since it was changed, ends with it.
    """
    after: dict[Subject, State] = {}
    changes: list[Change] = []
    for subject in _all(readings, states):
        before = states.get(subject)
        rule = rules.get(subject.rule)
        if rule is None or (before is not None and not rule.is_about(subject.match)):
            if before is not None and before.phase == "firing":
                why = "the rule is gone" if rule is None else "the rule is about others now"
                changes.append(Change(subject, "resolved", now_ms, before, why))
            continue
        value = readings.get(subject)
        if before is None and (value is None or not rule.breached(value)):
            continue  # as nearly all are
        state, turns = step(rule, value, before, now_ms)
        if state is not None:
            after[subject] = state
        for turn, reason in turns:
            shown = state or (before if value is None else _seen(rule, before, value))
            assert shown is not None
            changes.append(Change(subject, turn, now_ms, shown, reason))
    return after, changes


def step(
    rule: Rule, value: float | None, before: State | None, now_ms: int
) -> tuple[State | None, list[tuple[Turn, str]]]:
    """One alert's next state, and the turns that it takes to get there."""
    turns: list[tuple[Turn, str]] = []
    state = before
    if state is None or state.phase == "pending":
        if value is None or not rule.breached(value):
            return None, [] if state is None else [("calmed", _why(value))]
        if state is None:
            state = State("pending", now_ms)
            if rule.for_:
                turns.append(("pending", ""))
        state = _seen(rule, state, value)
        assert state is not None
        if now_ms - state.since_ms >= rule.for_:
            state = replace(state, phase="firing", fired_ms=now_ms)
            turns.append(("firing", ""))
        return state, turns
    state = _seen(rule, state, value)
    assert state is not None
    if value is not None and rule.still_breached(value):
        return replace(state, clear_since_ms=0), turns
    clear_since_ms = state.clear_since_ms or now_ms
    if now_ms - clear_since_ms >= rule.keep_firing_for:
        return None, [("resolved", _why(value))]
    return replace(state, clear_since_ms=clear_since_ms), turns


def shifted(states: States, by_ms: int) -> dict[Subject, State]:
    """The same after the clock was set: what has lasted for a minute has lasted for a minute."""
    return {
        subject: replace(
            state,
            since_ms=state.since_ms + by_ms,
            fired_ms=state.fired_ms and state.fired_ms + by_ms,
            clear_since_ms=state.clear_since_ms and state.clear_since_ms + by_ms,
        )
        for subject, state in states.items()
    }


def _all(readings: Readings, states: States) -> Iterator[Subject]:
    yield from readings
    yield from (subject for subject in states if subject not in readings)


def _seen(rule: Rule, state: State | None, value: float | None) -> State | None:
    if state is None:
        return None
    peak = state.peak
    if value is not None and (
        peak is None or (value > peak if rule.above is not None else value < peak)
    ):
        peak = value
    return replace(state, value=value, peak=peak)


def _why(value: float | None) -> str:
    return "there is nothing to judge by any more" if value is None else ""
