"""An alert in words: its id, its sentence, and how it is shown to people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256

from msgspec import Struct, field

from orbit_rpc_schema.alerts import (
    Acknowledgement,
    Alert,
    AlertError,
    AuditEntry,
    Recovery,
    SilenceView,
)
from orbit_service.alerts.fold import Change, State, Subject
from orbit_service.alerts.messages import Item
from orbit_service.alerts.metrics import time_text
from orbit_service.alerts.records import Entry
from orbit_service.alerts.rules import Rule
from orbit_service.alerts.silences import Silence
from orbit_service.core.outbox import ErrorText

Newest = tuple[str, ErrorText]  # an error's type and text


class Note(Struct, array_like=True):
    """What is known of an alert besides its state."""

    ack_who: str = ""
    ack_note: str = ""
    ack_ms: int = 0
    escalated: bool = False
    # Action, outcome, when, text; the newest last.
    recovery: list[tuple[str, str, int, str]] = field(default_factory=list)


@lru_cache(maxsize=20_000)
def alert_id(subject: Subject) -> str:
    """The same for the same rule and match, for ever."""
    return sha256("\0".join((subject.rule, *subject.match)).encode()).hexdigest()[:16]


def summary(rule: Rule, match: tuple[str, ...], state: State, change: Change | None = None) -> str:
    """What is wrong, or is not any more: "census: error rate over 5m is 40 %, above 10 %"."""
    side = "above" if rule.above is not None else "below"
    value, threshold = rule.value_text(state.value), rule.value_text(rule.threshold)
    who = " ".join(match)
    if state.value is not None and change is None and not rule.breached(state.value):
        # Within the hysteresis or `keep_firing_for`: "is 7 %, above 10 %" would not be true.
        said = f"{rule.measured} is {value}, after {rule.value_text(state.peak)}; {_until(rule)}"
    elif change is None or change.turn in ("pending", "firing"):
        said = f"{rule.measured} is {value}, {side} {threshold}"
    elif change.reason:
        said = f"{rule.measured}: {change.reason}"
    else:
        said = f"{rule.measured} is {value}, not {side} {threshold} any more"
    if change is not None and change.turn == "resolved":
        said = f"{said}; it had come to {rule.value_text(state.peak)}"
    return f"{who}: {said}" if who else said[:1].upper() + said[1:]


def _until(rule: Rule) -> str:
    """What has to come for an alert to end that is not past its threshold any more."""
    held = f" for {time_text(rule.keep_firing_for)}" if rule.keep_firing_for else ""
    if rule.cleared == rule.threshold:
        side = "above" if rule.above is not None else "below"
        return f"it ends when it was not {side} {rule.value_text(rule.cleared)}{held}"
    return f"it ends at {rule.value_text(rule.cleared)}{held}"


def _tried(note: Note) -> str:
    """The newest of what was done, in few words; of an escalation why."""
    if not note.recovery:
        return ""
    action, outcome, _at, text = note.recovery[-1]
    return f"{action}: {text if outcome == 'escalated' else outcome}"


def item_of(
    rule: Rule,
    subject: Subject,
    state: State,
    note: Note,
    error: Newest | None,
    now_ms: int,
    change: Change | None,
    page: str | None,
) -> Item:
    """An alert as a message has it: as it fires, or as it has turned."""
    alert, page = alert_id(subject), (page or "").rstrip("/")
    return Item(
        alert=alert,
        saying="firing",
        rule=rule.name,
        severity="critical" if note.escalated else rule.severity,
        labels=labels_of(rule, subject),
        summary=summary(rule, subject.match, state, change),
        since_ms=state.since_ms,
        fired_ms=state.fired_ms,
        at_ms=now_ms,
        error_type="" if error is None else error[0],
        error="" if error is None else error[1].message,
        recovery=_tried(note),
        runbook=rule.runbook or "",
        link=f"{page}/#/alerts/{alert}" if page else "",
        metric=rule.metric,
        value=state.value,
        threshold=rule.threshold,
    )


def labels_of(rule: Rule, subject: Subject) -> dict[str, str]:
    """What an alert is about, and the rule's own labels."""
    return {**rule.labels, **dict(zip(rule.dimensions, subject.match, strict=True))}


def view_of_alert(
    rule: Rule,
    item: Item,
    state: State,
    note: Note,
    error: Newest | None,
    silenced_by: Sequence[str],
    notified_ms: int | None,
) -> Alert:
    return Alert(
        id=item.alert,
        rule=rule.name,
        severity=item.severity,
        phase=state.phase,
        labels=item.labels,
        summary=item.summary,
        metric=rule.metric,
        value=state.value,
        value_text=rule.value_text(state.value),
        threshold=rule.threshold,
        threshold_text=rule.value_text(rule.threshold),
        since=state.since_ms,
        fired_at=state.fired_ms or None,
        clearing=bool(state.clear_since_ms),
        silenced_by=list(silenced_by),
        acknowledged=Acknowledgement(who=note.ack_who, note=note.ack_note, at=note.ack_ms)
        if note.ack_ms
        else None,
        last_notified=notified_ms,
        recovery=[
            Recovery(action=action, outcome=outcome, at=at, text=text)
            for action, outcome, at, text in reversed(note.recovery)
        ],
        error=None
        if error is None
        else AlertError(type=error[0], message=error[1].message, at=error[1].at_ms),
        runbook=rule.runbook,
    )


def view_of_entry(id: int, entry: Entry) -> AuditEntry:
    return AuditEntry(
        id=id,
        at=entry.at_ms,
        kind=entry.kind,
        rule=entry.rule or None,
        alert=entry.alert or None,
        labels=entry.labels,
        text=entry.text,
        who=entry.who,
        details=entry.details,
    )


def view_of_silence(silence: Silence) -> SilenceView:
    return SilenceView(
        id=silence.id,
        matchers=silence.matchers,
        from_=silence.from_ms,
        until=silence.until_ms,
        reason=silence.reason,
        who=silence.who,
    )
