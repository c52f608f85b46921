"""The fold, as tables of looks and as what holds for all of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alerting import a_rule
from builders import HOUR, SECOND, T0
from orbit_service.alerts.fold import Change, State, Subject, fold, shifted, step
from orbit_service.alerts.rules import Rule

WELL, ILL = 5.0, 40.0
SEND = Subject("r", ("send",))
LOOK = 10 * SECOND
quick = settings(max_examples=150, deadline=None, derandomize=True)


def phases(rule: Rule, values: Sequence[float | None]) -> str:
    """What the alert is after each of these looks, ten seconds apart: "." "p" "F"."""
    return "".join(
        "." if state is None else {"pending": "p", "firing": "F"}[state.phase]
        for state in states_of(rule, values)
    )


def states_of(rule: Rule, values: Sequence[float | None], start_ms: int = T0) -> list[State | None]:
    state: State | None = None
    found = []
    for number, value in enumerate(values):
        state, _turns = step(rule, value, state, start_ms + number * LOOK)
        found.append(state)
    return found


def turns_of(rule: Rule, values: Sequence[float | None]) -> list[str]:
    """All turns of these looks, with the reason where there is one."""
    states: dict[Subject, State] = {}
    said = []
    for number, value in enumerate(values):
        states, changes = fold({"r": rule}, {SEND: value}, states, T0 + number * LOOK)
        said += [f"{c.turn} ({c.reason})" if c.reason else c.turn for c in changes]
    return said


# ---------------------------------------------------------------- tables of looks


@pytest.mark.parametrize(
    ("fields", "values", "expected"),
    [
        pytest.param({}, [5, 40, 40, 5], ".FF.", id="at once without `for`"),
        pytest.param({}, [10, 10.1], ".F", id="the threshold itself is well"),
        pytest.param({"below": 10}, [10, 9.9, 10], ".F.", id="and so it is below"),
        pytest.param({"for": "20s"}, [40, 40, 40, 40], "ppFF", id="`for` is over when it is over"),
        pytest.param({"for": "21s"}, [40, 40, 40, 40], "pppF", id="and not before"),
        pytest.param({"for": "19s"}, [40, 40, 40], "ppF", id="or at the look after"),
        pytest.param({"for": "20s"}, [40, 40, 5, 40, 40, 40], "pp.ppF", id="`for` begins anew"),
        pytest.param({"for": "20s"}, [40, None, 40, 40, 40], "p.ppF", id="after what is unknown"),
        pytest.param({"clear": 5}, [40, 8, 6, 5, 8, 11], "FFF..F", id="between both it goes on"),
        pytest.param({"below": 10, "clear": 20}, [9, 15, 20, 15, 9], "FF..F", id="likewise below"),
        pytest.param({"for": "20s", "clear": 5}, [40, 8, 40], "p.p", id="pending has no slack"),
        pytest.param({"keep_firing_for": "20s"}, [40, 5, 5, 5, 5], "FFF..", id="kept"),
        pytest.param({"keep_firing_for": "20s"}, [40, 5, 5, 40, 5, 5, 5], "FFFFFF.", id="anew"),
        pytest.param({"keep_firing_for": "20s"}, [40, None, 5, None], "FFF.", id="unknown is past"),
        pytest.param({"keep_firing_for": "21s"}, [40, 5, 5, 5, 5], "FFFF.", id="to the look after"),
        pytest.param({}, [None, 40, None], ".F.", id="unknown neither fires nor goes on"),
        pytest.param({}, [0, None, 10], "...", id="well is no state"),
    ],
)
def test_an_alert_over_looks_ten_seconds_apart(
    fields: dict[str, Any], values: list[float | None], expected: str
) -> None:
    assert phases(a_rule(**fields), values) == expected


@pytest.mark.parametrize(
    ("fields", "values", "turns"),
    [
        pytest.param({}, [40, 40, 5], ["firing", "resolved"], id="without `for` none is pending"),
        pytest.param({"for": "10s"}, [40, 40, 5], ["pending", "firing", "resolved"], id="with it"),
        pytest.param({"for": "10s"}, [40, 5], ["pending", "calmed"], id="calmed"),
        pytest.param(
            {"for": "10s"},
            [40, None],
            ["pending", "calmed (there is nothing to judge by any more)"],
            id="calmed by what is unknown",
        ),
        pytest.param(
            {},
            [40, None],
            ["firing", "resolved (there is nothing to judge by any more)"],
            id="resolved by it",
        ),
        pytest.param({"keep_firing_for": "1m"}, [40, 5, 40, 5], ["firing"], id="kept, said once"),
    ],
)
def test_each_turn_is_told_once(
    fields: dict[str, Any], values: list[float | None], turns: list[str]
) -> None:
    assert turns_of(a_rule(**fields), values) == turns


def test_a_pending_alert_that_meets_for_at_its_first_look_fires() -> None:
    states, changes = fold({"r": a_rule()}, {SEND: ILL}, {}, T0)

    assert states[SEND] == State("firing", T0, T0, value=ILL, peak=ILL)
    assert [change.turn for change in changes] == ["firing"]


def test_no_reading_is_a_value_that_is_unknown() -> None:
    states, changes = fold({"r": a_rule()}, {}, {SEND: State("firing", T0, T0)}, T0 + LOOK)

    assert states == {}
    assert [(c.turn, c.reason) for c in changes] == [
        ("resolved", "there is nothing to judge by any more")
    ]


# ---------------------------------------------------------------- what a state holds


def test_a_state_knows_since_when_and_when_it_fired() -> None:
    last = states_of(a_rule(for_="20s"), [5, 40, 40, 40, 40])[-1]

    assert last is not None
    assert (last.since_ms, last.fired_ms) == (T0 + LOOK, T0 + 3 * LOOK)


def test_the_peak_is_furthest_beyond_the_threshold() -> None:
    above = states_of(a_rule(), [20, 40, 30])[-1]
    below = states_of(a_rule(below=10), [5, 2, 7])[-1]

    assert above is not None
    assert below is not None
    assert (above.peak, above.value) == (40, 30)
    assert (below.peak, below.value) == (2, 7)


def test_while_it_clears_it_says_since_when() -> None:
    states = states_of(a_rule(keep_firing_for="1m"), [40, 5, 5, 40])

    assert [state and state.clear_since_ms for state in states] == [0, T0 + LOOK, T0 + LOOK, 0]


def test_an_end_tells_the_value_that_ended_it() -> None:
    _states, changes = fold({"r": a_rule()}, {SEND: WELL}, {SEND: State("firing", T0, T0)}, T0)

    assert changes == [Change(SEND, "resolved", T0, changes[0].state)]
    assert changes[0].state.value == WELL


# ---------------------------------------------------------------- rules that change


def test_what_fires_ends_with_its_rule() -> None:
    firing_state, pending_state = State("firing", T0, T0), State("pending", T0)
    other = Subject("r", ("other",))
    states, changes = fold({}, {}, {SEND: firing_state, other: pending_state}, T0 + LOOK)

    assert states == {}
    assert changes == [Change(SEND, "resolved", T0 + LOOK, firing_state, "the rule is gone")]


@pytest.mark.parametrize(
    "fields", [{"pipeline": "exp*"}, {"per": ["worker", "pipeline"]}, {"per": []}]
)
def test_what_fires_ends_when_its_rule_is_about_others(fields: dict[str, Any]) -> None:
    # Of what does not run so often is zero: below a threshold it would fire for ever.
    rule = a_rule(metric="runs_per_hour", below=1, **fields)
    states, changes = fold({"r": rule}, {SEND: 0.0}, {SEND: State("firing", T0, T0)}, T0 + LOOK)

    assert states == {}
    assert [(c.turn, c.reason) for c in changes] == [("resolved", "the rule is about others now")]


def test_a_rule_with_another_threshold_goes_on_with_its_states() -> None:
    states, _ = fold({"r": a_rule(for_="20s")}, {SEND: ILL}, {}, T0)
    states, changes = fold({"r": a_rule(above=30, for_="10s")}, {SEND: ILL}, states, T0 + LOOK)

    assert [change.turn for change in changes] == ["firing"]
    assert states[SEND].since_ms == T0


# ---------------------------------------------------------------- the clock


def test_after_the_clock_was_set_all_has_lasted_as_long() -> None:
    states = {
        Subject("r", ("a",)): State("pending", T0),
        Subject("r", ("b",)): State("firing", T0, T0 + 1, T0 + 2),
    }

    for by_ms in (HOUR, -HOUR):
        assert shifted(states, by_ms) == {
            Subject("r", ("a",)): State("pending", T0 + by_ms),
            Subject("r", ("b",)): State("firing", T0 + by_ms, T0 + by_ms + 1, T0 + by_ms + 2),
        }


values = st.none() | st.sampled_from([0.0, 4.0, 5.0, 7.0, 10.0, 11.0, 40.0])
looks = st.lists(values, max_size=40)
durations = st.integers(0, 6).map(lambda n: n * 7 * SECOND)
rules = st.builds(
    lambda for_, keep, clear, above: a_rule(
        for_=for_,
        keep_firing_for=keep,
        **({"above": 10, "clear": 10 - clear} if above else {"below": 5, "clear": 5 + clear}),
    ),
    durations,
    durations,
    st.sampled_from([0, 3, 5]),
    st.booleans(),
)


@quick
@given(rules, looks, st.integers(0, 40), st.sampled_from([-HOUR, -7_000, 9_000, HOUR]))
def test_a_clock_that_is_set_changes_no_phase(
    rule: Rule, course: list[float | None], at: int, by_ms: int
) -> None:
    states: dict[Subject, State] = {}
    now_ms, found = T0, ""
    for number, value in enumerate(course):
        if number == at:
            states, now_ms = shifted(states, by_ms), now_ms + by_ms
        states, _changes = fold({"r": rule}, {SEND: value}, states, now_ms)
        found += {"pending": "p", "firing": "F"}[states[SEND].phase] if states else "."
        now_ms += LOOK

    assert found == phases(rule, course)


# ---------------------------------------------------------------- what always holds


@quick
@given(rules, looks)
def test_it_never_fires_before_for(rule: Rule, course: list[float | None]) -> None:
    needed = -(-rule.for_ // LOOK)
    for number, (before, now) in enumerate(pairwise("." + phases(rule, course))):
        if before != "F" and now == "F":
            broken = course[max(number - needed, 0) : number + 1]
            assert len(broken) == needed + 1
            assert all(value is not None and rule.breached(value) for value in broken)


@quick
@given(rules, looks)
def test_it_always_fires_after_for(rule: Rule, course: list[float | None]) -> None:
    needed = -(-rule.for_ // LOOK)
    for number, phase in enumerate(phases(rule, course)):
        broken = course[max(number - needed, 0) : number + 1]
        if len(broken) > needed and all(v is not None and rule.breached(v) for v in broken):
            assert phase == "F"


@quick
@given(rules, looks)
def test_it_never_ends_before_it_was_well_for_as_long_as_it_is_kept(
    rule: Rule, course: list[float | None]
) -> None:
    needed = -(-rule.keep_firing_for // LOOK)
    found = "." + phases(rule, course)
    for number, (before, now) in enumerate(pairwise(found)):
        if before == "F" and now != "F":
            past = course[max(number - needed, 0) : number + 1]
            assert len(past) == needed + 1
            assert not any(v is not None and rule.still_breached(v) for v in past)


@quick
@given(rules, st.lists(st.booleans(), min_size=1, max_size=40), st.booleans())
def test_inside_the_hysteresis_nothing_turns(
    rule: Rule, course: list[bool], began_firing: bool
) -> None:
    # Neither broken nor clear; with no room between them there is nothing to test.
    middle = (rule.threshold + rule.cleared) / 2
    between = [rule.threshold, middle] if rule.threshold != rule.cleared else []
    state = State("firing", T0, T0) if began_firing else None
    states = {} if state is None else {SEND: state}
    for number, which in enumerate(course if between else []):
        reading = {SEND: between[which]}
        states, changes = fold({"r": rule}, reading, states, T0 + number * LOOK)
        assert changes == []
    assert bool(states) is began_firing


@quick
@given(rules, looks)
def test_turns_come_in_their_order(rule: Rule, course: list[float | None]) -> None:
    turns = [turn.partition(" ")[0] for turn in turns_of(rule, course)]
    follows = {
        "pending": {"calmed", "firing"},
        "calmed": {"pending", "firing"},
        "firing": {"resolved"},
        "resolved": {"pending", "firing"},
    }

    assert all(later in follows[turn] for turn, later in pairwise(turns))


hostile = st.text(alphabet=st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=8)
matches = st.sampled_from(["send", "a[b]", "*", "\0", "' or 1", "\u202e"]) | hostile
fleets = st.lists(
    st.dictionaries(
        st.builds(lambda rule, name: Subject(rule, (name,)), st.sampled_from("rst"), matches),
        values,
        max_size=8,
    ),
    max_size=8,
)


@quick
@given(st.lists(rules, min_size=3, max_size=3), fleets, st.randoms(use_true_random=False))
def test_the_order_of_looking_changes_nothing(
    three: list[Rule], courses: list[dict[Subject, float | None]], shuffler: random.Random
) -> None:
    def shuffled(items: Any) -> dict[Any, Any]:
        pairs = list(items.items())
        shuffler.shuffle(pairs)
        return dict(pairs)

    by_name = dict(zip("rst", three, strict=True))
    one: dict[Subject, State] = {}
    other: dict[Subject, State] = {}
    for number, readings in enumerate(courses):
        now_ms = T0 + number * LOOK
        one, changes = fold(by_name, readings, one, now_ms)
        other, others = fold(shuffled(by_name), shuffled(readings), shuffled(other), now_ms)
        assert one == other
        assert sorted(changes) == sorted(others)


@quick
@given(rules, st.dictionaries(matches, looks, max_size=5))
def test_alerts_know_nothing_of_one_another(
    rule: Rule, courses: dict[str, list[float | None]]
) -> None:
    states: dict[Subject, State] = {}
    for number in range(max(map(len, courses.values()), default=0)):
        readings = {
            Subject("r", (name,)): course[number]
            for name, course in courses.items()
            if number < len(course)
        }
        states, _changes = fold({"r": rule}, readings, states, T0 + number * LOOK)

    longest = max(map(len, courses.values()), default=0)
    for name, course in courses.items():
        alone = states_of(rule, [*course, *[None] * (longest - len(course))])
        assert states.get(Subject("r", (name,))) == (alone[-1] if alone else None)


def test_a_thousand_rules_are_a_thousand_alerts() -> None:
    by_name = {f"r{n}": a_rule(name=f"r{n}", for_="10s", above=n) for n in range(1_000)}
    readings = {Subject(name, ("send",)): 500.0 for name in by_name}
    states, _pending = fold(by_name, readings, {}, T0)
    states, changes = fold(by_name, readings, states, T0 + LOOK)

    assert len(states) == 500
    assert {change.turn for change in changes} == {"firing"}
    assert {state.phase for state in states.values()} == {"firing"}
