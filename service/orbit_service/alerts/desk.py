"""
The desk: where rules are looked at, and what follows is decided and written down.

One look folds what has closed and what is so now into the states before it, plans what
channels are told and what is done, and commits all of it in one transaction: what a kill
leaves behind is a look that was made, or one that was not. Nothing here waits for the
network; one thread at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec
from loguru import logger
from msgspec.structs import replace

from orbit_rpc_schema.alerts import (
    Alert,
    AuditEntry,
    Kind,
    Severity,
    SilenceView,
)
from orbit_rpc_schema.errors import (
    AlertsUnavailable,
    NoSuchAlert,
    NoSuchSilence,
    TooManySilences,
)
from orbit_service.alerts import messages, recovery
from orbit_service.alerts.before import NOTHING_BEFORE, Before
from orbit_service.alerts.facts import Facts, Stamps
from orbit_service.alerts.fold import Change, State, Subject, fold, shifted
from orbit_service.alerts.messages import Firing, Item, Mailbox, Message
from orbit_service.alerts.readings import Looked, Totals, look
from orbit_service.alerts.records import (
    Entry,
    Parcel,
    Store,
)
from orbit_service.alerts.recovery import Act, Case, Escalation, Logbook, Refusal
from orbit_service.alerts.rules import NO_RULES, Action, Rule, RuleFile, is_pattern
from orbit_service.alerts.saying import (
    Newest,
    Note,
    alert_id,
    item_of,
    labels_of,
    view_of_alert,
    view_of_entry,
    view_of_silence,
)
from orbit_service.alerts.shelf import Shelf
from orbit_service.alerts.silences import MAX_SILENCES, Silence, Silences
from orbit_service.alerts.sums import Sums
from orbit_service.core.outbox import GRACE_MS, Window
from orbit_service.core.rollup import MINUTE_MS
from orbit_service.core.window import WINDOW_MS

MAX_TOLD = 100  # changes of one look that listeners are told of
MAX_RECOVERY = 10  # of an alert, that it tells of
MAX_ALERTS = 10_000  # that are pending or fire at once; further ones are counted
MAX_STEPS = 20  # of the clock
MAX_ERRORS = 20_000  # newest errors, by pipeline and worker
_LEVEL: dict[Severity, int] = {"critical": 0, "warning": 1, "info": 2}

Errors = Mapping[tuple[str, str], Newest]  # by pipeline and worker


class _Alerted(msgspec.Struct, array_like=True):
    rule: str
    match: tuple[str, ...]
    state: State
    note: Note


class _Expected(msgspec.Struct, array_like=True):
    rule: str
    match: tuple[str, ...]
    since_ms: int


_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look is about."""

    windows: Sequence[tuple[int, Window]]  # that have closed since the one before
    facts: Facts
    before: Before = NOTHING_BEFORE
    errors: Errors = field(default_factory=dict)
    step_ms: int = 0  # by how much the clock was set since the look before
    all_of_it: bool = False  # the windows are all there are, and not what has come since
    known_from_ms: int = 0  # of the windows before that, some may be missing
    grace_ms: int = GRACE_MS  # after its end a window is among them


@dataclass(frozen=True, slots=True)
class Board:
    """What everybody may read, made anew at each look and never changed."""

    alerts: Sequence[Alert] = ()
    silences: Sequence[SilenceView] = ()
    evaluated_at: int | None = None
    matches: Mapping[str, int] = field(default_factory=dict)
    troubles: Mapping[str, str] = field(default_factory=dict)
    left_out: int = 0  # alerts for which there was no place


class Desk:
    """All alerts of a node or of a fleet. `store` of None: nothing is kept."""

    def __init__(self, node: str, store: Store | None) -> None:
        self.file: RuleFile = NO_RULES
        self.board = Board()
        self.shelf = Shelf(store)
        self.sums = Sums(())
        self.acts: list[tuple[Act, Action]] = []  # decided on, to be performed
        self.refused: Counter[str] = Counter()  # actions, by kind
        self._logbook = Logbook()
        self._node = node
        self._rules: dict[str, Rule] = {}
        self._states: dict[Subject, State] = {}
        self._notes: dict[Subject, Note] = {}
        self._expected: dict[Subject, int] = {}  # since when it is missed, if it is not there
        self._mailboxes: dict[str, Mailbox] = {}
        self._silences = Silences()
        self._errors: dict[tuple[str, str], Newest] = {}  # "": of all
        self._totals = {"dropped": Totals(), "refused": Totals()}
        self._dimensions: dict[str, tuple[str, ...]] = {}  # of rules, as their states were made
        self._told: list[Entry] = []  # since the last look
        self._left_out = 0
        self._stamps = Stamps()
        self._steps: list[tuple[int, int]] = []  # of the clock: until when, and by how much

    # ------------------------------------------------------------ beginning

    def load(self) -> None:
        """Go on from what is on the disk. Raises StoreFailed."""
        documents = self.shelf.load()

        def read(name: str, type: Any, default: Any) -> Any:
            try:
                return msgspec.msgpack.decode(documents[name], type=type)
            except KeyError:
                return default
            except msgspec.DecodeError as error:
                logger.error("alerts: {} cannot be read, and begin anew: {}", name, error)
                return default

        alerted: list[_Alerted] = read("alerts", list[_Alerted], [])
        self._states = {Subject(a.rule, a.match): a.state for a in alerted}
        self._notes = {Subject(a.rule, a.match): a.note for a in alerted}
        expected: list[_Expected] = read("expected", list[_Expected], [])
        self._expected = {Subject(e.rule, e.match): e.since_ms for e in expected}
        self._mailboxes = read("mailboxes", dict[str, Mailbox], {})
        self._silences = Silences(read("silences", list[Silence], []))
        self._logbook = read("logbook", Logbook, Logbook())
        self._totals |= read("totals", dict[str, Totals], {})
        self._dimensions = read("dimensions", dict[str, tuple[str, ...]], {})

    def use(self, file: RuleFile) -> list[str]:
        """Take rules, new or first; states stay. Names of those that have changed.

        The sums know whom they knew, and begin at zero: what has closed is to be added again.
        """
        before, self._rules = self._rules, file.by_name
        self.file = file
        known, self.sums = self.sums, Sums(file.rules)
        self.sums.remember(known)
        names = before.keys() | self._rules.keys()
        return sorted(name for name in names if before.get(name) != self._rules.get(name))

    def interrupted(self, now_ms: int) -> None:
        """Write down what was under way when the service ended, and is not known."""
        for act in recovery.interrupted(self._logbook, now_ms):
            self._acted(act, "unknown", "interrupted by the end of the service", now_ms)
        self._commit()

    def reloaded(self, changed: Iterable[str], now_ms: int) -> None:
        """Write down that other rules are in force."""
        names = list(changed)
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        self._note_down(
            Entry(
                at_ms=now_ms,
                kind="reloaded",
                text=f"{len(self._rules)} rules in force; changed: {shown or 'none'}",
            )
        )
        self._commit()

    # ------------------------------------------------------------ a look

    def look(self, seen: Seen, now_ms: int) -> list[AuditEntry]:
        """Look at all rules; what has changed, newest first."""
        if seen.step_ms:
            self._shift(seen.step_ms, now_ms)
        facts = self._stamps.as_of_now(seen.facts, seen.step_ms, now_ms)
        known = self.sums
        if seen.all_of_it:
            self.sums = Sums(self.file.rules)
        for start_ms, window in seen.windows:
            self.sums.add(self._moved(start_ms, now_ms), window)
        if seen.all_of_it:
            self.sums.remember(known)
        end_ms = now_ms - seen.grace_ms
        self.sums.advance(end_ms - end_ms % WINDOW_MS)
        self._totals["dropped"].saw(seen.facts.dropped, now_ms)
        self._totals["refused"].saw(seen.facts.refused, now_ms)
        self._remember(seen.errors)
        self._expect(now_ms)
        misfits = self._end_misfits(now_ms)
        looked = look(
            self._rules.values(),
            self.sums,
            facts,
            self._totals,
            seen.before,
            self._states,
            self._expected,
            now_ms,
        )
        self._saw(looked.last)
        unjudged = self._unjudged(looked, seen.known_from_ms)
        judged = {s: state for s, state in self._states.items() if s not in unjudged}
        states, changes = fold(self._rules, looked.readings, judged, now_ms)
        states.update(unjudged)
        ended = {**misfits, **self._turn(states, changes)}
        self._decide(changes, now_ms)
        self._tell(ended, now_ms)
        return self._finish(looked, now_ms)

    def _unjudged(self, looked: Looked, known_from_ms: int) -> dict[Subject, State]:
        """What fires and would end, though some of what it is judged by may be missing.

        After a start where the history is away: an end that is said has to be one.
        """
        unjudged = {}
        for subject, state in self._states.items():
            rule, value = self._rules.get(subject.rule), looked.readings.get(subject)
            if (
                rule is not None
                and state.phase == "firing"
                and rule.about.source == "runs"
                and self.sums.end_ms - rule.window < known_from_ms
                and (value is None or not rule.still_breached(value))
            ):
                looked.readings.pop(subject, None)
                unjudged[subject] = state
        return unjudged

    def _shift(self, by_ms: int, now_ms: int) -> None:
        """The clock was set: nothing has lasted longer for it, or shorter."""
        logger.warning("the clock was set by {:+.1f} s; alerts go on as they were", by_ms / 1000)
        self._steps = [*self._steps[-MAX_STEPS + 1 :], (now_ms - by_ms, by_ms)]
        self._states = shifted(self._states, by_ms)
        self._expected = {subject: at + by_ms for subject, at in self._expected.items()}
        self.sums.shift(by_ms)
        for totals in self._totals.values():
            totals.shift(by_ms)
        for mailbox in self._mailboxes.values():
            mailbox.sent_ms = [at + by_ms for at in mailbox.sent_ms]
            for told in mailbox.told.values():
                told.at_ms += by_ms
                told.fired_ms += by_ms
            mailbox.held = {alert: at + by_ms for alert, at in mailbox.held.items()}
        recovery.shift(self._logbook, by_ms)
        for parcel in self.shelf.parcels.values():
            parcel.created_ms += by_ms
            parcel.next_ms += by_ms
            self.shelf.change(parcel)
        self._silences.shift(by_ms)

    def _moved(self, start_ms: int, now_ms: int) -> int:
        """Where a window lies on the clock as it is now, if it was opened before that was set.

        A clock that was set back makes moments that were there twice: of those only what
        lies ahead is known to be of the first time.
        """
        for until_ms, by_ms in self._steps:
            if start_ms <= until_ms if by_ms > 0 else start_ms > now_ms:
                start_ms += by_ms
        return start_ms

    def _end_misfits(self, now_ms: int) -> dict[str, Item]:
        """End states of rules that tell something else apart now; what fired, as it is said."""
        misfits = {s: state for s, state in self._states.items() if not self._fits(s)}
        why = "the rule tells its alerts apart in another way now"
        changes = [
            Change(subject, "resolved", now_ms, state, why)
            for subject, state in misfits.items()
            if state.phase == "firing"
        ]
        states = {s: state for s, state in self._states.items() if s not in misfits}
        ended = self._turn(states, changes)
        self._dimensions = {rule.name: rule.dimensions for rule in self._rules.values()}
        return ended

    def _fits(self, subject: Subject) -> bool:
        rule = self._rules.get(subject.rule)
        return rule is None or rule.dimensions == self._dimensions.get(rule.name, rule.dimensions)

    def _remember(self, errors: Errors) -> None:
        """Keep the newest error of each pipeline and worker, and of everything."""
        for (pipeline, worker), (type, text) in errors.items():
            for key in ((pipeline, worker), (pipeline, ""), ("", worker), ("", "")):
                known = self._errors.pop(key, None)
                newer = known is None or text.at_ms >= known[1].at_ms
                self._errors[key] = known if known is not None and not newer else (type, text)
        while len(self._errors) > MAX_ERRORS:
            self._errors.pop(next(iter(self._errors)))

    def _expect(self, now_ms: int) -> None:
        """Since when there is a rule about something that may never have been there."""
        wanted = {
            Subject(rule.name, tuple(rule.literal.values()))
            for rule in self._rules.values()
            if rule.about.source == "now" and rule.literal is not None
        }
        self._expected = {s: min(self._expected.get(s, now_ms), now_ms) for s in wanted}

    def _saw(self, last: Mapping[Subject, int]) -> None:
        """Remember when what is expected was there: a worker's name is forgotten in a day.

        In whole minutes, so that a look that finds everybody there has nothing to write.
        """
        for subject, at_ms in last.items():
            at_ms -= at_ms % MINUTE_MS
            self._expected[subject] = max(self._expected.get(subject, at_ms), at_ms)

    def _turn(self, states: dict[Subject, State], changes: Sequence[Change]) -> dict[str, Item]:
        """Take over the states; what was resolved, as it is to be said."""
        ended: dict[str, Item] = {}
        self._left_out = 0
        for subject in list(states):
            if subject not in self._states and len(states) > MAX_ALERTS:
                del states[subject]
                self._left_out += 1
        for change in changes:
            subject = change.subject
            if change.turn in ("pending", "firing") and subject not in states:
                continue
            item = self._item(subject, change.state, change.at_ms, change)
            if change.turn == "resolved":
                ended[item.alert] = replace(item, saying="resolved")
            rule = self._rules.get(subject.rule)
            value = None if rule is None else rule.value_text(change.state.value)
            self._note_down(
                Entry(
                    at_ms=change.at_ms,
                    kind=change.turn,
                    rule=subject.rule,
                    alert=item.alert,
                    labels=item.labels,
                    text=item.summary,
                    details={"value": change.state.value, "valueText": value},
                )
            )
            if change.turn == "firing":
                logger.warning("alert {} fires: {}", subject.rule, item.summary)
            elif change.turn == "resolved":
                logger.info("alert {} is resolved: {}", subject.rule, item.summary)
        self._states = states
        self._notes = {s: note for s, note in self._notes.items() if s in states}
        return ended

    def _decide(self, changes: Sequence[Change], now_ms: int) -> None:
        """What is done about what fires, and about what does not any more."""
        cases = [
            self._case(subject, state)
            for subject, state in self._states.items()
            if state.phase == "firing" and self._acts(subject)
        ]
        cases += [
            self._case(change.subject, change.state, change.at_ms)
            for change in changes
            if change.turn == "resolved" and self._acts(change.subject)
        ]
        if not cases and not self._logbook.ended:
            return
        escalated = {alert_id(s) for s, note in self._notes.items() if note.escalated}
        decisions = recovery.decide(
            self.file,
            cases,
            self._logbook,
            now_ms,
            lambda case: self._is_silenced(case, case.alert in escalated, now_ms),
        )
        for decision in decisions:
            match decision:
                case Act():
                    action = self._rules[decision.rule].actions[decision.action]
                    self.acts.append((decision, action))
                    if not decision.dry:
                        self._acted(decision, "started", decision.text, now_ms)
                case Refusal():
                    self.refused[self._kind_of(decision)] += 1
                    self._acted(decision, "refused", decision.text, now_ms)
                case Escalation():
                    subject = self._subject(decision.rule, decision.alert)
                    if subject is not None and not decision.dry:
                        self._notes.setdefault(subject, Note()).escalated = True
                    self._acted(decision, "escalated", decision.text, now_ms)

    def _drop_acts(self, now_ms: int) -> None:
        """Do nothing that is not written down: after a crash it would be done again."""
        for act, _action in self.acts:
            recovery.not_begun(self._logbook, act)
            self.refused[act.kind] += 1
            self._acted(act, "refused", "it cannot be written down before it is done", now_ms)
        self.acts = []

    def acted(self, act: Act, outcome: str, text: str, now_ms: int) -> None:
        """An act has ended."""
        recovery.finished(self._logbook, act, now_ms, done=outcome in ("done", "dry run"))
        self._acted(act, outcome, text, now_ms)
        self._commit()
        self.show(now_ms)

    def _acted(
        self, what: Act | Refusal | Escalation, outcome: str, text: str, now_ms: int
    ) -> None:
        """Write down something about an action, with the alert and in the audit."""
        subject = self._subject(what.rule, what.alert)
        kind = self._kind_of(what)
        if subject is not None:
            tried = self._notes.setdefault(subject, Note()).recovery
            tried.append((kind, outcome, now_ms, text))
            del tried[:-MAX_RECOVERY]
        id = what.id if isinstance(what, Act) else ""
        self._note_down(
            Entry(
                at_ms=now_ms,
                kind="escalated" if outcome == "escalated" else "action",
                rule=what.rule,
                alert=what.alert,
                labels=self._labels_of(what.alert, subject),
                text=text,
                details={"action": kind, "outcome": outcome, "id": id},
            )
        )

    def _kind_of(self, what: Act | Refusal | Escalation) -> str:
        """Of the action that it is about; that of a rule that has changed may be gone."""
        if isinstance(what, Act):
            return what.kind
        rule = self._rules.get(what.rule)
        return rule.actions[what.action].kind if rule and what.action < len(rule.actions) else ""

    def about(self, act: Act) -> tuple[Severity, dict[str, str], float | None]:
        """What who acts is told of the alert: severity, labels, value."""
        subject = self._subject(act.rule, act.alert)
        rule = self._rules.get(act.rule)
        severity: Severity = "warning" if rule is None else rule.severity
        labels = self._labels_of(act.alert, subject)
        if subject is None:
            return severity, labels, None
        if self._notes.get(subject, Note()).escalated:
            severity = "critical"
        return severity, labels, self._states[subject].value

    def _labels_of(self, alert: str, subject: Subject | None) -> dict[str, str]:
        """Of an alert that is there; or of one that has ended, while something is done about it."""
        if subject is not None:
            return self._labels(subject)
        case = self._logbook.ended.get(alert)
        if case is None:
            return {}
        rule = self._rules.get(case.rule)
        return {**(rule.labels if rule else {}), **case.labels}

    def _acts(self, subject: Subject) -> bool:
        rule = self._rules.get(subject.rule)
        return rule is not None and bool(rule.actions)

    def _case(self, subject: Subject, state: State, resolved_ms: int | None = None) -> Case:
        names: dict[str, str] = dict(
            zip(self._rules[subject.rule].dimensions, subject.match, strict=True)
        )
        return Case(alert_id(subject), subject.rule, names, state.fired_ms, resolved_ms)

    def _is_silenced(self, case: Case, escalated: bool, now_ms: int) -> bool:
        rule = self._rules[case.rule]
        severity = "critical" if escalated else rule.severity
        labels = {**rule.labels, **case.labels, "rule": case.rule, "severity": severity}
        return bool(self._silences.covering(labels, now_ms))

    def _subject(self, rule: str, alert: str) -> Subject | None:
        return next((s for s in self._states if s.rule == rule and alert_id(s) == alert), None)

    def _tell(self, ended: Mapping[str, Item], now_ms: int) -> None:
        """Put into the outbox what channels are to be sent."""
        self._silences.expire(now_ms)
        firing: dict[str, Firing] = {}
        for subject, state in self._states.items():
            if state.phase == "firing":
                item = self._item(subject, state, now_ms)
                note = self._notes.get(subject)
                firing[item.alert] = Firing(
                    item,
                    self._channels(subject, item.severity),
                    bool(self._silenced(item, now_ms)),
                    note is not None and bool(note.ack_ms),
                )
        muted = [alert for alert, item in ended.items() if self._silenced(item, now_ms)]
        for name, channel in self.file.channels.items():
            mailbox = self._mailboxes.setdefault(name, Mailbox())
            held_before = mailbox.held_back
            items, held = messages.plan(name, channel, mailbox, firing, ended, now_ms, muted)
            if mailbox.held_back > held_before:
                self._note_down(
                    Entry(
                        at_ms=now_ms,
                        kind="held back",
                        text=f"{mailbox.held_back - held_before} kept from channel {name}: "
                        "quiet hours, or its bound an hour",
                        details={"channel": name},
                    )
                )
            if items:
                self._post(name, items, held, now_ms)
        for name in self._mailboxes.keys() - self.file.channels.keys():
            del self._mailboxes[name]
        for parcel in list(self.shelf.parcels.values()):
            if parcel.channel not in self.file.channels:
                self.shelf.leave(parcel)
                why = f"the channel {parcel.channel} is gone"
                self._note_parcel("undelivered", parcel, why, now_ms)

    def _post(self, channel: str, items: list[Item], held: int, now_ms: int) -> None:
        shown = sorted(items, key=lambda item: (_LEVEL[item.severity], item.since_ms))
        message = Message(
            uuid4().hex,
            now_ms,
            self._node,
            shown[: messages.MAX_ITEMS],
            max(len(shown) - messages.MAX_ITEMS, 0),
            held,
        )
        pushed_out = self.shelf.post(Parcel(message.key, channel, now_ms, now_ms, 0, message))
        if pushed_out is not None:
            self._note_parcel("undelivered", pushed_out, "dropped: too many messages wait", now_ms)

    def _finish(self, looked: Looked, now_ms: int) -> list[AuditEntry]:
        self._commit()
        if self.shelf.trouble is not None:
            self._drop_acts(now_ms)
        told, self._told = self._told, []
        self.show(now_ms, looked)
        return [view_of_entry(0, entry) for entry in reversed(told[-MAX_TOLD:])]

    # ------------------------------------------------------------ what people do

    def silence(
        self, matchers: dict[str, str], until_ms: int, reason: str, who: str, now_ms: int
    ) -> SilenceView:
        """Raises TooManySilences, AlertsUnavailable."""
        if len(self._silences) >= MAX_SILENCES:
            raise TooManySilences(limit=MAX_SILENCES)
        silence = Silence(uuid4().hex[:12], matchers, now_ms, until_ms, reason, who)
        self._silences.add(silence)
        self._note_down(
            Entry(
                at_ms=now_ms,
                kind="silenced",
                labels=matchers,
                text=reason,
                who=who,
                details={"silence": silence.id, "until": until_ms},
            )
        )
        self._settle(now_ms)
        return view_of_silence(silence)

    def unsilence(self, id: str, who: str, now_ms: int) -> None:
        """Raises NoSuchSilence, AlertsUnavailable."""
        silence = self._silences.end(id, now_ms)
        if silence is None:
            raise NoSuchSilence(id=id)
        self._note_down(
            Entry(
                at_ms=now_ms,
                kind="unsilenced",
                labels=silence.matchers,
                text=silence.reason,
                who=who,
                details={"silence": id},
            )
        )
        self._settle(now_ms)

    def acknowledge(self, alert: str, who: str, note: str, now_ms: int) -> None:
        """Raises NoSuchAlert, AlertsUnavailable."""
        subject = next((s for s in self._states if alert_id(s) == alert), None)
        if subject is None:
            raise NoSuchAlert(alert=alert)
        about = self._notes.setdefault(subject, Note())
        about.ack_who, about.ack_note, about.ack_ms = who, note, now_ms
        self._note_down(
            Entry(
                at_ms=now_ms,
                kind="acknowledged",
                rule=subject.rule,
                alert=alert,
                labels=self._labels(subject),
                text=note,
                who=who,
            )
        )
        self._settle(now_ms)

    def history(
        self,
        from_ms: int,
        to_ms: int,
        limit: int,
        *,
        rule: str | None = None,
        alert: str | None = None,
        kind: str | None = None,
    ) -> list[AuditEntry]:
        """Entries, newest first. Raises AlertsUnavailable."""
        found = self.shelf.audit(from_ms, to_ms, limit, rule=rule, alert=alert, kind=kind)
        return [view_of_entry(id, entry) for id, entry in found]

    def _settle(self, now_ms: int) -> None:
        """What somebody was promised has to be on the disk. Raises AlertsUnavailable."""
        self._commit()
        self.show(now_ms)
        if self.shelf.trouble is not None:
            raise AlertsUnavailable(why=f"it holds until the service ends; {self.shelf.trouble}")

    # ------------------------------------------------------------ delivery

    def delivered(self, parcel: Parcel, now_ms: int) -> None:
        self.shelf.leave(parcel)
        self._audit_parcel("notified", parcel, f"sent through {parcel.channel}", now_ms)

    def failed(self, parcel: Parcel, next_ms: int) -> None:
        if parcel.key in self.shelf.parcels:
            parcel.tries += 1
            parcel.next_ms = next_ms
            self.shelf.change(parcel)
            self._commit()

    def gave_up(self, parcel: Parcel, why: str, now_ms: int) -> None:
        self.shelf.leave(parcel)
        text = f"given up after {parcel.tries} tries through {parcel.channel}: {why}"
        self._audit_parcel("undelivered", parcel, text, now_ms)

    def held_back(self, channel: str) -> int:
        mailbox = self._mailboxes.get(channel)
        return 0 if mailbox is None else mailbox.held_back

    def test_message(self, now_ms: int) -> Message:
        """What a channel is sent to see that it works."""
        return Message(uuid4().hex, now_ms, self._node, [], test=True)

    def _audit_parcel(self, kind: Kind, parcel: Parcel, text: str, now_ms: int) -> None:
        self._note_parcel(kind, parcel, text, now_ms)
        self._commit()

    def _note_parcel(self, kind: Kind, parcel: Parcel, text: str, now_ms: int) -> None:
        for item in parcel.message.items:
            self._note_down(
                Entry(
                    at_ms=now_ms,
                    kind=kind,
                    rule=item.rule,
                    alert=item.alert,
                    labels=item.labels,
                    text=f"{item.saying}: {text}",
                    details={"channel": parcel.channel, "key": parcel.key},
                )
            )

    # ------------------------------------------------------------ the disk

    def _note_down(self, entry: Entry) -> None:
        self.shelf.note_down(entry)
        self._told.append(entry)
        del self._told[:-MAX_TOLD]

    def _commit(self) -> None:
        """Write what is new. Raises LeaseLost."""
        self.shelf.commit(self._dumped())

    def _dumped(self) -> dict[str, bytes]:
        alerted = [
            _Alerted(s.rule, s.match, state, self._notes.get(s, Note()))
            for s, state in sorted(self._states.items())
        ]
        expected = [_Expected(s.rule, s.match, at) for s, at in sorted(self._expected.items())]
        named = sorted({subject.rule for subject in self._states})
        return {
            "alerts": _encode(alerted),
            "expected": _encode(expected),
            "mailboxes": _encode(self._mailboxes),
            "silences": _encode(list(self._silences)),
            "logbook": _encode(self._logbook),
            "totals": _encode(self._totals),
            "dimensions": _encode(
                {name: self._dimensions[name] for name in named if name in self._dimensions}
            ),
        }

    # ------------------------------------------------------------ views

    def show(self, now_ms: int, looked: Looked | None = None) -> None:
        """Make the board anew."""
        alerts = [
            self._alert(subject, state, now_ms)
            for subject, state in self._states.items()
            if subject.rule in self._rules and self._fits(subject)  # else it ends soon
        ]
        alerts.sort(key=lambda a: (a.phase == "pending", _LEVEL[a.severity], a.since, a.id))
        self.board = Board(
            alerts,
            [view_of_silence(s) for s in self._silences if s.until_ms > now_ms],
            self.board.evaluated_at if looked is None else now_ms,
            self.board.matches if looked is None else looked.matches,
            self.board.troubles if looked is None else looked.troubles,
            self._left_out,
        )

    def _alert(self, subject: Subject, state: State, now_ms: int) -> Alert:
        item, rule = self._item(subject, state, now_ms), self._rules[subject.rule]
        note = self._notes.get(subject, Note())
        error = self._error(subject)
        told = [m.told[item.alert].at_ms for m in self._mailboxes.values() if item.alert in m.told]
        silenced_by = self._silenced(item, now_ms)
        return view_of_alert(rule, item, state, note, error, silenced_by, max(told, default=None))

    def _item(
        self, subject: Subject, state: State, now_ms: int, change: Change | None = None
    ) -> Item:
        """An alert as it is said: as it fires, or as it has turned."""
        rule, note = self._rules.get(subject.rule), self._notes.get(subject, Note())
        if rule is None or not self._fits(subject):
            return self._last_item(subject, state, now_ms, change)
        error, page = self._error(subject), self.file.page
        return item_of(rule, subject, state, note, error, now_ms, change, page)

    def _last_item(
        self, subject: Subject, state: State, now_ms: int, change: Change | None
    ) -> Item:
        """Of an alert whose rule is gone: as somebody was told of it, if anybody was."""
        alert, reason = alert_id(subject), change.reason if change else ""
        for mailbox in self._mailboxes.values():
            if (told := mailbox.told.get(alert)) is not None:
                said = f"{told.item.summary}; {reason}" if reason else told.item.summary
                return replace(told.item, at_ms=now_ms, summary=said)
        return Item(
            alert,
            "firing",
            subject.rule,
            "warning",
            {},
            f"{subject.rule}: {reason}" if reason else subject.rule,
            state.since_ms,
            state.fired_ms,
            now_ms,
        )

    def _labels(self, subject: Subject) -> dict[str, str]:
        rule = self._rules.get(subject.rule)
        if rule is None or not self._fits(subject):
            return {}
        return labels_of(rule, subject)

    def _error(self, subject: Subject) -> Newest | None:
        """The newest error of what an alert is about; of other things than runs there is none."""
        rule = self._rules.get(subject.rule)
        if rule is None or rule.metric not in ("error_rate", "failures", "since_success"):
            return None
        names: dict[str, str] = dict(zip(rule.dimensions, subject.match, strict=True))
        for name, pattern in (("pipeline", rule.pipeline), ("worker", rule.worker)):
            if name not in names and pattern != "*":
                if is_pattern(pattern):
                    return None  # the newest of all would be somebody else's
                names[name] = pattern
        return self._errors.get((names.get("pipeline", ""), names.get("worker", "")))

    def _channels(self, subject: Subject, severity: Severity) -> list[str]:
        rule = self._rules[subject.rule]
        names = self.file.channels if rule.channels is None else rule.channels
        return [n for n in names if severity in self.file.channels[n].severities]

    def _silenced(self, item: Item, now_ms: int) -> list[str]:
        labels = {**item.labels, "rule": item.rule, "severity": item.severity}
        return self._silences.covering(labels, now_ms)
