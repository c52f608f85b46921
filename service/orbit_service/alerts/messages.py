"""
What is said to people, and when: one plan for each channel.

A channel has been told of some alerts; what fires now is compared with that. So what was
held back by quiet hours or by the bound is said later if it still is so, nothing is said
twice, and a restart changes nothing. Pure: time comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal
from zoneinfo import ZoneInfo

from msgspec import Struct, field
from msgspec.structs import replace

from orbit_rpc_schema.alerts import Severity
from orbit_service.alerts.rules import Channel, Quiet
from orbit_service.core.rollup import HOUR_MS

MAX_ITEMS = 50  # of one message; of a thousand nobody reads all
MAX_HELD = 10_000  # as many as may fire at once
RANKS: dict[Severity, int] = {"info": 0, "warning": 1, "critical": 2}

Saying = Literal["firing", "still firing", "escalated", "resolved"]


class Item(Struct, frozen=True):
    """One alert in a message. Texts are as they came: a channel escapes what it has to."""

    alert: str  # its id
    saying: Saying
    rule: str
    severity: Severity
    labels: dict[str, str]
    summary: str  # "census: error rate over 5m is 40 %, above 10 %"
    since_ms: int  # when the threshold was crossed
    fired_ms: int
    at_ms: int
    error_type: str = ""
    error: str = ""  # the newest
    recovery: str = ""  # what was tried
    runbook: str = ""
    link: str = ""
    metric: str = ""
    value: float | None = None  # in the metric's unit
    threshold: float | None = None


class Message(Struct, frozen=True):
    """What one channel is sent at once. A receiver that knows the key has had it before."""

    key: str
    at_ms: int
    node: str
    items: list[Item]
    more: int = 0  # alerts for which there was no room
    held_back: int = 0  # changes since the message before that the bound kept from being sent
    test: bool = False


class Told(Struct, array_like=True):
    """What a channel knows of an alert."""

    fired_ms: int
    at_ms: int
    severity: Severity
    item: Item  # as it is to be said once it has ended, where that waits


class Mailbox(Struct, array_like=True):
    """What a channel has been told; durable."""

    told: dict[str, Told] = field(default_factory=dict)  # by alert
    sent_ms: list[int] = field(default_factory=list)  # messages of the last hour
    held: dict[str, int] = field(default_factory=dict)  # alert -> when it fired, not told
    held_back: int = 0  # ever


class Firing(Struct, frozen=True):
    """An alert that fires, for those who are to be told."""

    item: Item
    channels: list[str]
    silenced: bool
    acknowledged: bool


def plan(
    name: str,
    channel: Channel,
    mailbox: Mailbox,
    firing: Mapping[str, Firing],
    ended: Mapping[str, Item],
    now_ms: int,
    muted: Iterable[str] = (),
) -> tuple[list[Item], int]:
    """What the channel is to be sent now, and how many changes it was not sent before.

    `ended` are alerts that were resolved, as they are to be said; `muted` those of which
    nothing is to be said, their end included. Changes the mailbox: it is told.
    """
    items: list[Item] = []
    held_now: set[str] = set()
    mailbox.sent_ms = [at for at in mailbox.sent_ms if now_ms - HOUR_MS < at <= now_ms]
    full = len(mailbox.sent_ms) >= channel.max_per_hour
    for alert, fire in firing.items():
        item, told = fire.item, mailbox.told.get(alert)
        if name not in fire.channels or fire.silenced:
            continue
        new = told is None or told.fired_ms != item.fired_ms
        worse = told is not None and not new and RANKS[item.severity] > RANKS[told.severity]
        due = (
            told is not None
            and bool(channel.repeat_every)
            and not fire.acknowledged
            and now_ms - told.at_ms >= channel.repeat_every
        )
        if not (new or worse or due):
            continue
        if is_quiet(channel.quiet, item.severity, now_ms) or full:
            if new or worse:
                _hold(mailbox, alert, item.fired_ms, firing)
                held_now.add(alert)
            continue
        saying: Saying = "firing" if new else "escalated" if worse else "still firing"
        items.append(_said(item, saying))
    silent = set(muted)
    for alert, told in list(mailbox.told.items()):
        if alert in firing and firing[alert].item.fired_ms == told.fired_ms:
            continue
        if alert in silent or not channel.resolved:
            del mailbox.told[alert]
        elif full or is_quiet(channel.quiet, told.severity, now_ms):
            told.item = _end_of(told, ended.get(alert), now_ms)
        else:
            if alert not in firing:
                items.append(_end_of(told, ended.get(alert), now_ms))
            del mailbox.told[alert]
    if not items:
        return [], 0
    for item in items:
        if item.saying != "resolved":
            mailbox.told[item.alert] = Told(item.fired_ms, now_ms, item.severity, item)
    held = len(mailbox.held.keys() - {item.alert for item in items})
    mailbox.held = {alert: at for alert, at in mailbox.held.items() if alert in held_now}
    mailbox.sent_ms.append(now_ms)
    return items, held


def _hold(mailbox: Mailbox, alert: str, fired_ms: int, firing: Mapping[str, Firing]) -> None:
    """Count what is kept from the channel; once, for as long as it fires."""
    if mailbox.held.get(alert) == fired_ms:
        return
    mailbox.held_back += 1
    if len(mailbox.held) >= MAX_HELD:
        mailbox.held = {a: at for a, at in mailbox.held.items() if a in firing}
    mailbox.held[alert] = fired_ms


def is_quiet(quiet: Quiet | None, severity: Severity, now_ms: int) -> bool:
    """Whether a channel is not to be disturbed by this now."""
    if quiet is None or severity not in quiet.severities:
        return False
    here = datetime.fromtimestamp(now_ms / 1000, UTC).astimezone(ZoneInfo(quiet.timezone)).time()
    if quiet.from_ <= quiet.to:
        return quiet.from_ <= here < quiet.to
    return here >= quiet.from_ or here < quiet.to


def _said(item: Item, saying: Saying) -> Item:
    return item if item.saying == saying else replace(item, saying=saying)


def _end_of(told: Told, ended: Item | None, now_ms: int) -> Item:
    """How the end of what was told is said. What has ended now may be a later firing."""
    if ended is not None and ended.fired_ms == told.fired_ms:
        return _said(ended, "resolved")
    if told.item.saying == "resolved":
        return told.item  # it waited to be said
    return replace(told.item, saying="resolved", at_ms=now_ms)
