"""What is done about alerts, and when."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from builders import HOUR, MINUTE, SECOND, T0
from orbit_service.alerts.recovery import (
    Act,
    Case,
    Decision,
    Escalation,
    Logbook,
    Refusal,
    decide,
    finished,
    interrupted,
    not_begun,
    shift,
)
from orbit_service.alerts.rules import Action, RecoverySettings, Rule, RuleFile

RESTART = Action(kind="restart", cooldown="10m", max_tries=2)
RESUME = Action(kind="resume", pipeline="mail", on="resolved", cooldown="10m", max_tries=2)


def a_rule(name: str = "lost", *actions: Action) -> Rule:
    return Rule(name=name, metric="worker_lost", above=0, actions=actions)


def a_file(*actions: Action, dry: bool = False, bound: int = 20) -> RuleFile:
    recovery = RecoverySettings(dry_run=dry, max_per_hour=bound)
    return RuleFile(recovery=recovery, rules=(a_rule("lost", *actions),))


def a_case(
    worker: str = "crew", fired: int = 0, resolved: int | None = None, **fields: Any
) -> Case:
    """Times are milliseconds after T0."""
    resolved_ms = None if resolved is None else T0 + resolved
    return Case(f"lost-{worker}", "lost", {"worker": worker}, T0 + fired, resolved_ms, **fields)


class Watch:
    """Looks at alerts under a file of rules; times are milliseconds after T0."""

    def __init__(self, *actions: Action, **file: Any) -> None:
        self.rules = a_file(*actions, **file)
        self.logbook = Logbook()

    def look(self, at: int, *cases: Case, silenced: bool = False) -> list[Decision]:
        return decide(self.rules, cases, self.logbook, T0 + at, lambda _case: silenced)

    def finish(self, at: int, done: bool = True) -> None:
        for act in list(self.logbook.started.values()):
            finished(self.logbook, act, T0 + at, done)

    def said(self, at: int, *cases: Case, silenced: bool = False, done: bool = True) -> str:
        """What a look has led to, in a word each; acts end at once."""
        decisions = self.look(at, *cases, silenced=silenced)
        self.finish(at, done)
        return ", ".join(in_short(decision) for decision in decisions)


def in_short(decision: Decision) -> str:
    match decision:
        case Act():
            return "dry" if decision.dry else "act"
        case Refusal():
            return decision.reason
        case Escalation():
            return "escalation"


def test_an_alert_that_fires_leads_to_its_rules_action():
    watch = Watch(RESTART)

    [act] = watch.look(0, a_case())

    assert isinstance(act, Act)
    assert (act.alert, act.rule, act.action, act.kind) == ("lost-crew", "lost", 0, "restart")
    assert (act.target, act.worker, act.pipeline) == ("worker:crew", "crew", None)
    assert (act.at_ms, act.fired_ms, act.dry) == (T0, T0, False)
    assert act.text == "restart the worker crew"
    assert watch.logbook.started == {"worker:crew": act}


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        pytest.param([0], ["act"], id="at once"),
        pytest.param([0, 599], ["act", ""], id="not within the cool-down"),
        pytest.param([0, 600], ["act", "act"], id="again after it"),
        pytest.param(
            [0, 600, 1199, 1200, 9999],
            ["act", "act", "", "escalation", ""],
            id="as often as it may be, then it escalates, once",
        ),
    ],
)
def test_an_action_is_tried_again_while_its_alert_fires(looks, expected):
    watch = Watch(RESTART)

    assert [watch.said(at * SECOND, a_case()) for at in looks] == expected


@pytest.mark.parametrize(("at", "expected"), [(59, ""), (60, "act")])
def test_an_action_waits_for_its_time_after_the_alert_has_fired(at, expected):
    watch = Watch(Action(kind="restart", after="1m"))

    assert watch.said(at * SECOND, a_case()) == expected


def test_a_silenced_alert_leads_to_nothing_and_says_so_once_a_firing():
    watch = Watch(RESTART)

    assert watch.said(0, a_case(), silenced=True) == "silenced"
    assert watch.said(1, a_case(), silenced=True) == ""
    assert watch.said(2, a_case()) == "act"
    assert watch.said(HOUR, a_case(fired=HOUR), silenced=True) == "silenced"


def test_the_bound_is_of_all_alerts_together_and_of_any_hour():
    watch = Watch(RESTART, bound=2)
    cases = [a_case(name) for name in "abc"]

    assert watch.said(0, *cases) == "act, act, the bound of 2 an hour"
    assert watch.said(HOUR - 1, cases[2]) == ""
    assert watch.said(HOUR, cases[2]) == "act"


def test_a_target_has_one_act_at_a_time_and_the_next_waits_without_a_word():
    watch = Watch(RESTART, Action(kind="pause", pipeline="mail"))

    [first] = watch.look(0, a_case())
    assert watch.look(1, a_case()) == []
    watch.finish(2)
    [second] = watch.look(3, a_case())
    assert (first.kind, second.kind) == ("restart", "pause")


def test_other_targets_do_not_wait():
    watch = Watch(RESTART)

    assert len(watch.look(0, a_case("a"), a_case("b"))) == 2


def test_the_cool_down_begins_at_the_end_of_a_try():
    watch = Watch(RESTART)
    watch.look(0, a_case())
    watch.finish(5 * MINUTE)

    assert watch.said(14 * MINUTE, a_case()) == ""
    assert watch.said(15 * MINUTE, a_case()) == "act"


def test_a_new_firing_has_all_its_tries_and_the_cool_down_of_the_last():
    watch = Watch(RESTART)
    for at in (0, 10, 20):
        watch.said(at * MINUTE, a_case())  # the last escalates
    watch.said(21 * MINUTE)

    again = a_case(fired=21 * MINUTE)
    watch.said(21 * MINUTE, again)
    assert [watch.said(at * MINUTE, again) for at in (31, 41)] == ["act", "escalation"]


def test_an_alert_that_flaps_stays_within_the_cool_down():
    watch = Watch(RESTART)

    said = []
    for minute in range(30):
        said.append(watch.said(minute * MINUTE, a_case(fired=minute * MINUTE)))
        watch.said(minute * MINUTE + 1)
    assert [minute for minute, word in enumerate(said) if word] == [0, 10, 20]


def test_a_dry_run_goes_through_the_same_guards_and_says_what_would_be():
    watch = Watch(RESTART, dry=True)

    [act] = watch.look(0, a_case())
    assert (act.dry, act.text) == (True, "would restart the worker crew")
    watch.finish(0)
    looks = [watch.look(at * MINUTE, a_case()) for at in (9, 10)]
    watch.finish(10 * MINUTE)
    assert [len(look) for look in looks] == [0, 1]
    [escalation] = watch.look(20 * MINUTE, a_case())
    assert escalation.text == (
        "would have tried 2 times to restart the worker crew, without effect"
    )


@pytest.mark.parametrize("dry", [True, False])
def test_an_action_may_be_dry_or_not_for_itself(dry):
    watch = Watch(Action(kind="restart", dry_run=dry), dry=not dry)

    assert watch.said(0, a_case()) == ("dry" if dry else "act")


# ---------------------------------------------------------------- the end of an alert


def test_the_end_of_an_alert_leads_to_its_action_once():
    watch = Watch(RESUME)

    assert watch.said(0, a_case()) == ""
    assert watch.said(1, a_case(resolved=1)) == "act"
    assert watch.said(HOUR) == ""
    assert watch.logbook.ended == {}


def test_what_the_end_asks_for_waits_until_it_can_be_done():
    watch = Watch(RESUME)

    assert watch.said(1, a_case(resolved=1), silenced=True) == "silenced"
    assert watch.said(MINUTE) == "act"


def test_what_failed_at_the_end_is_tried_again_then_escalates():
    watch = Watch(RESUME)

    said = [watch.said(0, a_case(resolved=0), done=False)]
    said += [watch.said(at * MINUTE, done=False) for at in (9, 10, 20, 30)]
    assert said == ["act", "", "act", "escalation", ""]


def test_an_alert_that_fires_again_does_not_want_its_end_any_more():
    watch = Watch(RESUME)
    watch.said(0, a_case(resolved=0), silenced=True)

    assert watch.said(1, a_case(fired=1)) == ""
    assert watch.said(2) == ""


def test_what_the_end_asked_for_is_not_done_days_later():
    watch = Watch(RESUME)
    watch.said(0, a_case(resolved=0), silenced=True)

    assert watch.said(48 * HOUR) == "it is too late"
    assert watch.said(49 * HOUR) == ""


def test_a_rule_that_is_gone_leads_to_nothing():
    watch = Watch(RESTART, RESUME)
    watch.said(0, a_case("a"), a_case("b", resolved=0), silenced=True)
    watch.rules = RuleFile()

    assert watch.said(1, a_case("a")) == ""
    assert watch.logbook == Logbook()


def test_an_act_that_was_not_begun_is_no_try_and_none_of_the_hours_and_has_its_cool_down():
    watch = Watch(RESTART, bound=2)
    [act] = watch.look(0, a_case())
    not_begun(watch.logbook, act)

    assert watch.said(9 * MINUTE, a_case()) == ""
    said = [watch.said(at * MINUTE, a_case()) for at in (10, 20, 30)]
    assert said == ["act", "act", "escalation"]


# ---------------------------------------------------------------- restarts and clocks


def test_what_was_under_way_at_a_kill_is_told_and_not_repeated_before_its_cool_down():
    watch = Watch(RESTART)
    [act] = watch.look(0, a_case())
    watch.logbook = msgspec.msgpack.decode(msgspec.msgpack.encode(watch.logbook), type=Logbook)

    assert interrupted(watch.logbook, T0 + HOUR) == [act]
    assert interrupted(watch.logbook, T0 + HOUR) == []
    assert watch.said(HOUR + 9 * MINUTE, a_case()) == ""
    assert watch.said(HOUR + 10 * MINUTE, a_case()) == "act"
    assert watch.said(HOUR + 20 * MINUTE, a_case()) == "escalation"


def test_an_act_of_a_former_firing_that_ends_now_begins_a_cool_down_and_is_no_try_of_this():
    watch = Watch(RESTART)
    [act] = watch.look(0, a_case())
    watch.look(1, a_case(fired=1), silenced=True)

    finished(watch.logbook, act, T0 + MINUTE, done=True)
    again = [watch.said(at * MINUTE, a_case(fired=1)) for at in (10, 11, 21, 31)]
    assert again == ["", "act", "act", "escalation"]


def test_a_clock_that_was_set_changes_nothing():
    watch = Watch(RESTART, RESUME, bound=3)
    watch.said(0, a_case("a"), a_case("b", resolved=0), silenced=True)
    [act] = watch.look(0, a_case("a"))[:1]

    shift(watch.logbook, -HOUR)
    now = -HOUR
    [of_b] = watch.logbook.ended.values()
    assert (of_b.resolved_ms, watch.logbook.started[act.target].at_ms) == (T0 + now, T0 + now)
    watch.finish(now)
    looks = [watch.said(now + at * MINUTE, a_case("a", fired=now)) for at in (9, 10, 20, 59)]
    assert looks == ["", "act", "escalation", ""]


def test_a_time_that_lies_ahead_holds_nothing_up_for_longer_than_it_should():
    watch = Watch(RESTART, bound=1)
    watch.said(48 * HOUR, a_case())

    said = [watch.said(at, a_case()) for at in (0, 10 * MINUTE, HOUR)]
    assert said == ["", "the bound of 1 an hour", "act"]


def test_the_logbook_forgets_what_no_guard_asks_for():
    watch = Watch(RESTART)
    watch.said(0, a_case())

    watch.said(9 * MINUTE)
    assert list(watch.logbook.tried) == ["lost-crew/0"]
    watch.said(HOUR)
    assert watch.logbook == Logbook()


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("action", "target", "text"),
    [
        (
            {"kind": "command", "command": ["/opt/bin/mend", "--token=secret"]},
            "command:late:worker=crew,pipeline=mail",
            "run the command mend",
        ),
        (
            {"kind": "webhook", "url": "https://user:secret@example.com/secret"},
            "webhook:late:worker=crew,pipeline=mail",
            "call the webhook",
        ),
        ({"kind": "run-pipeline"}, "pipeline:mail", "start a run of the pipeline mail"),
        (
            {"kind": "run-pipeline", "pipeline": "mend"},
            "pipeline:mend",
            "start a run of the pipeline mend",
        ),
        ({"kind": "pause"}, "worker:crew", "pause the pipeline mail at the worker crew"),
        (
            {"kind": "resume", "worker": "other"},
            "worker:other",
            "resume the pipeline mail at the worker other",
        ),
        ({"kind": "restart"}, "worker:crew", "restart the worker crew"),
    ],
)
def test_an_act_says_what_it_does_to_whom_and_nothing_secret(action, target, text):
    late = Rule(
        name="late",
        metric="since_success",
        above="1h",
        per=("worker", "pipeline"),
        actions=(Action(**action),),
    )
    case = Case("a1", "late", {"worker": "crew", "pipeline": "mail"}, T0)

    [act] = decide(RuleFile(rules=(late,)), [case], Logbook(), T0, lambda _case: False)

    assert (act.target, act.text) == (target, f"would {text}")
    assert b"secret" not in msgspec.json.encode(act)


# ---------------------------------------------------------------- whatever happens

WORKERS = st.sampled_from("abc")
PROPERTY_RULES = RuleFile(
    recovery=RecoverySettings(dry_run=False, max_per_hour=4),
    rules=(
        a_rule(
            "lost",
            Action(kind="restart", cooldown="5m", max_tries=2),
            Action(kind="restart", worker="a", after="2m", cooldown="0s", max_tries=3),
            Action(kind="command", command=["x"], cooldown="1m", max_tries=5, dry_run=True),
            Action(kind="resume", pipeline="p", on="resolved", cooldown="7m", max_tries=2),
        ),
    ),
)
ACTIONS = PROPERTY_RULES.rules[0].actions


class Recovering(RuleBasedStateMachine):
    """Alerts come and go, acts take their time, the service is killed; what must never be."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.logbook = Logbook()
        self.firing: dict[str, Case] = {}
        self.resolved: list[Case] = []
        self.silenced: set[str] = set()
        self.under_way: list[Act] = []
        self.acts: list[Act] = []
        self.over: dict[str, int] = {}  # when, by act

    @rule(seconds=st.sampled_from([1, 30, 60, 299, 300, 1800, 3600]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @rule(worker=WORKERS)
    def turn(self, worker: str) -> None:
        """What fires is resolved, and what does not fire fires."""
        before = self.firing.pop(worker, None)
        self.now += 1  # a firing begins once
        if before is None:
            self.firing[worker] = a_case(worker, self.now)
        else:
            self.resolved.append(msgspec.structs.replace(before, resolved_ms=T0 + self.now))

    @rule(worker=WORKERS)
    def silence_or_unsilence(self, worker: str) -> None:
        self.silenced ^= {worker}

    @rule(done=st.booleans(), which=st.integers(0, 9))
    def one_ends(self, done: bool, which: int) -> None:
        if self.under_way:
            act = self.under_way.pop(which % len(self.under_way))
            finished(self.logbook, act, T0 + self.now, done)
            self.over[act.id] = self.now

    @rule()
    def a_kill(self) -> None:
        self.logbook = msgspec.json.decode(msgspec.json.encode(self.logbook), type=Logbook)
        told = interrupted(self.logbook, T0 + self.now)
        assert {act.id for act in told} == {act.id for act in self.under_way}
        self.over |= {act.id: self.now for act in told}
        self.under_way.clear()

    @rule()
    def look(self) -> None:
        cases, self.resolved = [*self.firing.values(), *self.resolved], []
        now = T0 + self.now
        decisions = decide(
            PROPERTY_RULES,
            cases,
            self.logbook,
            now,
            lambda case: case.labels["worker"] in self.silenced,
        )
        for act in decisions:
            if isinstance(act, Act):
                self.check(act, now)
                self.under_way.append(act)
                self.acts.append(act)

    def check(self, act: Act, now: int) -> None:
        action = ACTIONS[act.action]
        earlier = [a for a in self.acts if (a.alert, a.action) == (act.alert, act.action)]
        worker = act.alert.removeprefix("lost-")
        assert worker not in self.silenced
        assert act.target not in {a.target for a in self.under_way}
        assert act.dry == (action.dry_run is True)
        assert len([a for a in self.acts if now - a.at_ms < HOUR]) < 4
        assert all(self.now - self.over[a.id] >= action.cooldown for a in earlier)
        assert len([a for a in earlier if a.fired_ms == act.fired_ms]) < action.max_tries
        assert (worker in self.firing) == (action.on == "firing")


TestRecovering = Recovering.TestCase
TestRecovering.settings = settings(max_examples=150, stateful_step_count=60)
