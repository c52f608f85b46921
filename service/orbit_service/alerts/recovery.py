"""
What is done about alerts, and when: guards between a rule's actions and the world.

An alert that fires asks for its actions at every look; the guards let few through. What
was tried is in the logbook, which is durable and is to be stored before an act is
performed, so that a service that was killed knows what was under way. A dry act passes
the same guards and counts like another: a dry run shows what would be done, and when.
An alert whose rule is gone from the file leads to nothing.

Pure: time comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

from msgspec import Struct, field
from msgspec.structs import replace

from orbit_service.alerts.rules import Action, Rule, RuleFile
from orbit_service.core.rollup import DAY_MS, HOUR_MS

# An action on an alert's end that was held off for as long, tries and cool-downs not
# counted, is not wanted any more: to resume a pipeline after a week would surprise.
STALE_MS = DAY_MS

When = Literal["firing", "resolved"]


class Case(Struct, frozen=True):
    """An alert that fires or was resolved. Times are epoch milliseconds."""

    alert: str  # its id
    rule: str
    labels: dict[str, str]  # its match, by dimension
    fired_ms: int
    resolved_ms: int | None = None

    @property
    def when(self) -> When:
        return "firing" if self.resolved_ms is None else "resolved"

    @property
    def since_ms(self) -> int:
        return self.fired_ms if self.resolved_ms is None else self.resolved_ms


class Act(Struct, frozen=True):
    """One try of one action, under way from when it was decided on."""

    id: str
    alert: str
    rule: str
    action: int  # which of the rule's
    kind: str
    when: When
    target: str  # no two acts have the same at once
    at_ms: int
    fired_ms: int  # of the firing that it belongs to
    dry: bool
    text: str  # what it does, without what is secret
    pipeline: str | None = None  # where the kind needs one
    worker: str | None = None


class Refusal(Struct, frozen=True):
    """An action is not taken; said once for each firing and reason."""

    alert: str
    rule: str
    action: int
    reason: str
    text: str


class Escalation(Struct, frozen=True):
    """An action was tried as often as it may be, and the alert goes on; said once a firing."""

    alert: str
    rule: str
    action: int
    tries: int
    dry: bool
    text: str


Decision = Act | Refusal | Escalation


class Tried(Struct, array_like=True):
    """What became of one action of one alert."""

    fired_ms: int  # the firing that the rest, the last time excepted, belongs to
    tries: int = 0
    last_ms: int = 0  # when the last try began or, once it has, ended; 0: never
    cooldown_ms: int = 0  # of that try
    done: bool = False  # it is for the alert's end, and nothing is left to do
    escalated: bool = False
    refused: str = ""  # the last reason that was said


class Logbook(Struct, array_like=True):
    """What was tried and is under way; durable."""

    tried: dict[str, Tried] = field(default_factory=dict)  # by "alert/action"
    started: dict[str, Act] = field(default_factory=dict)  # by target
    acts_ms: list[int] = field(default_factory=list)  # acts of the last hour
    ended: dict[str, Case] = field(default_factory=dict)  # by alert; not all is done about them


def decide(
    rules: RuleFile,
    cases: Iterable[Case],
    logbook: Logbook,
    now_ms: int,
    silenced: Callable[[Case], bool],
) -> list[Decision]:
    """What is to be done now, and what has come to be said about what is not.

    `cases` are all alerts that fire and, each once, those that have been resolved since
    the look before; the logbook keeps the latter for as long as they need. Changes the
    logbook: each Act in the answer is under way, until `finished` says otherwise.
    """
    firing: dict[str, Case] = {}
    for case in cases:
        rule = rules.by_name.get(case.rule)
        if rule is None:
            continue
        if case.when == "firing":
            firing[case.alert] = case
        elif any(action.on == "resolved" for action in rule.actions):
            logbook.ended[case.alert] = case
    logbook.ended = {
        alert: case
        for alert, case in logbook.ended.items()
        if alert not in firing and case.rule in rules.by_name
    }
    _tidy(logbook, firing, now_ms)
    decisions = []
    for case in (*firing.values(), *logbook.ended.values()):
        rule = rules.by_name[case.rule]
        for index, action in enumerate(rule.actions):
            if action.on == case.when:
                dry = rules.recovery.dry_run if action.dry_run is None else action.dry_run
                tried = _tried(logbook, case, index)
                look = _Look(case, index, action, tried, dry, logbook, now_ms)
                decisions.append(look.decide(silenced, rules.recovery.max_per_hour))
    for alert, case in list(logbook.ended.items()):
        if _is_over(rules.by_name[case.rule], case, logbook):
            del logbook.ended[alert]
    return [decision for decision in decisions if decision is not None]


def finished(logbook: Logbook, act: Act, now_ms: int, done: bool) -> None:
    """The act is over; its cool-down begins.

    Whether it did any good an alert that fires tells by itself. Of an alert's end only
    the act can tell: one that is not `done` is tried again.
    """
    under_way = logbook.started.get(act.target)
    if under_way is None or under_way.id != act.id:
        return
    del logbook.started[act.target]
    tried = logbook.tried[_key(act.alert, act.action)]
    tried.last_ms = now_ms
    if tried.fired_ms == act.fired_ms:
        tried.done = done and act.when == "resolved"


def not_begun(logbook: Logbook, act: Act) -> None:
    """The act was not performed: it is no try, and the next one still waits for the cool-down."""
    if logbook.started.pop(act.target, None) is None:
        return
    logbook.acts_ms.remove(act.at_ms)
    logbook.tried[_key(act.alert, act.action)].tries -= 1


def interrupted(logbook: Logbook, now_ms: int) -> list[Act]:
    """The acts that were under way when the service was killed; what came of them is not known.

    A command may have run on until now, so that its cool-down begins now.
    """
    acts = list(logbook.started.values())
    for act in acts:
        finished(logbook, act, now_ms, done=False)
    return acts


def shift(logbook: Logbook, by_ms: int) -> None:
    """Keep the times that have passed as they were, after the clock was set."""
    logbook.acts_ms = [at + by_ms for at in logbook.acts_ms]
    for tried in logbook.tried.values():
        tried.fired_ms += by_ms
        tried.last_ms = tried.last_ms and tried.last_ms + by_ms
    for target, act in logbook.started.items():
        logbook.started[target] = replace(
            act, at_ms=act.at_ms + by_ms, fired_ms=act.fired_ms + by_ms
        )
    for alert, case in logbook.ended.items():
        assert case.resolved_ms is not None
        logbook.ended[alert] = replace(
            case, fired_ms=case.fired_ms + by_ms, resolved_ms=case.resolved_ms + by_ms
        )


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at one action of one alert; `tried` is of this firing."""

    case: Case
    index: int
    action: Action
    tried: Tried
    dry: bool
    logbook: Logbook
    now_ms: int

    def decide(self, silenced: Callable[[Case], bool], bound: int) -> Decision | None:
        """The guards, in their order."""
        action, case, tried = self.action, self.case, self.tried
        waited = self.now_ms - case.since_ms - action.after
        if tried.done or tried.escalated or waited < 0:
            return None
        if case.when == "resolved" and waited > STALE_MS + action.max_tries * action.cooldown:
            tried.done = True
            return self._refused("it is too late")
        if silenced(case):
            return self._refused("silenced")
        target = _target(case, action)
        cool = tried.last_ms and self.now_ms - tried.last_ms < action.cooldown
        if target in self.logbook.started or cool:
            return None
        if tried.tries >= action.max_tries:
            return self._escalated()
        if len(self.logbook.acts_ms) >= bound:
            return self._refused(f"the bound of {bound} an hour")
        return self._act(target)

    def _act(self, target: str) -> Act:
        action, case, tried = self.action, self.case, self.tried
        act = Act(
            id=uuid4().hex,
            alert=case.alert,
            rule=case.rule,
            action=self.index,
            kind=action.kind,
            when=case.when,
            target=target,
            at_ms=self.now_ms,
            fired_ms=case.fired_ms,
            dry=self.dry,
            text=_text(action, case, self.dry),
            pipeline=_whose(action, case, "pipeline"),
            worker=_whose(action, case, "worker"),
        )
        tried.tries += 1
        tried.last_ms, tried.cooldown_ms = self.now_ms, action.cooldown
        self._keep()
        self.logbook.started[target] = act
        self.logbook.acts_ms.append(self.now_ms)
        return act

    def _refused(self, reason: str) -> Refusal | None:
        said, self.tried.refused = self.tried.refused, reason
        self._keep()
        if said == reason:
            return None
        text = f"did not {_text(self.action, self.case, False)}: {reason}"
        return Refusal(self.case.alert, self.case.rule, self.index, reason, text)

    def _escalated(self) -> Escalation:
        tries, dry = self.tried.tries, self.dry
        self.tried.escalated = True
        self._keep()
        times = "once" if tries == 1 else f"{tries} times"
        what = _text(self.action, self.case, False)
        text = f"{'would have tried' if dry else 'tried'} {times} to {what}, without effect"
        return Escalation(self.case.alert, self.case.rule, self.index, tries, dry, text)

    def _keep(self) -> None:
        self.logbook.tried[_key(self.case.alert, self.index)] = self.tried


def _key(alert: str, index: int) -> str:
    return f"{alert}/{index}"


def _tried(logbook: Logbook, case: Case, index: int) -> Tried:
    """What was tried in this firing; the cool-down goes on from one to the next."""
    tried = logbook.tried.get(_key(case.alert, index))
    if tried is None:
        return Tried(case.fired_ms)
    if tried.fired_ms != case.fired_ms:
        return Tried(case.fired_ms, last_ms=tried.last_ms, cooldown_ms=tried.cooldown_ms)
    return tried


def _tidy(logbook: Logbook, firing: Iterable[str], now_ms: int) -> None:
    """Forget what no guard asks for any more; what lies ahead was told by a clock since set."""
    logbook.acts_ms = [min(at, now_ms) for at in logbook.acts_ms if now_ms - at < HOUR_MS]
    for tried in logbook.tried.values():
        tried.last_ms = min(tried.last_ms, now_ms)
    wanted = {*firing, *logbook.ended, *(act.alert for act in logbook.started.values())}
    logbook.tried = {
        key: tried
        for key, tried in logbook.tried.items()
        if key.rpartition("/")[0] in wanted
        or (tried.last_ms and now_ms - tried.last_ms < tried.cooldown_ms)
    }


def _is_over(rule: Rule, case: Case, logbook: Logbook) -> bool:
    """Whether all that was to be done about an alert's end has been."""
    looks = (
        _tried(logbook, case, index)
        for index, action in enumerate(rule.actions)
        if action.on == "resolved"
    )
    return all(tried.done or tried.escalated for tried in looks)


def _whose(action: Action, case: Case, name: Literal["pipeline", "worker"]) -> str | None:
    """The pipeline or the worker that the action is for; None where it is for none."""
    kinds = {
        "pipeline": ("run-pipeline", "pause", "resume"),
        "worker": ("pause", "resume", "restart"),
    }
    if action.kind not in kinds[name]:
        return None
    given: str | None = getattr(action, name)
    return case.labels[name] if given is None else given


def _target(case: Case, action: Action) -> str:
    if (worker := _whose(action, case, "worker")) is not None:
        return f"worker:{worker}"
    if (pipeline := _whose(action, case, "pipeline")) is not None:
        return f"pipeline:{pipeline}"
    match = ",".join(f"{name}={value}" for name, value in case.labels.items())
    return f"{action.kind}:{case.rule}:{match}"


def _text(action: Action, case: Case, dry: bool) -> str:
    pipeline, worker = _whose(action, case, "pipeline"), _whose(action, case, "worker")
    match action.kind:
        case "command" | "webhook":
            what = f"{'run the' if action.kind == 'command' else 'call the'} {action.text}"
        case "run-pipeline":
            what = f"start a run of the pipeline {pipeline}"
        case "restart":
            what = f"restart the worker {worker}"
        case _:
            what = f"{action.kind} the pipeline {pipeline} at the worker {worker}"
    return f"would {what}" if dry else what
