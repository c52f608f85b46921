"""
The alerts' part of the contract: params and results of `alerts.*`.

An alert is one rule at one match: a pipeline, a worker, or whatever the rule tells
apart. Its `id` stays the same over all its firings, so that a link to it does too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orbit_rpc_schema.model import Duration, EpochMs, Model, Moment, Name
from orbit_rpc_schema.wire import MAX_NAME

Severity = Literal["info", "warning", "critical"]
Phase = Literal["pending", "firing"]
Labels = Annotated[dict[str, str], Field(description="what the alert is about, and its labels")]
Who = Annotated[str, Field(min_length=1, max_length=100)]
Text = Annotated[str, Field(min_length=1, max_length=1_000)]
AlertId = Annotated[str, Field(min_length=1, max_length=64)]
SilenceId = Annotated[str, Field(min_length=1, max_length=64)]
# Three times a name's length: a name of which every character stands in brackets fits. Without
# bounds pydantic takes a lone surrogate too, which cannot be kept.
Pattern = Annotated[str, Field(min_length=1, max_length=3 * MAX_NAME)]
Kind = Literal[
    "pending",
    "firing",
    "resolved",
    "calmed",
    "silenced",
    "unsilenced",
    "acknowledged",
    "notified",
    "held back",
    "undelivered",
    "action",
    "escalated",
    "reloaded",
]


# ---------------------------------------------------------------- params


class AlertsListParams(Model):
    """Which alerts; left out: all that are pending or fire."""

    phase: Phase | None = None
    rule: Name | None = None
    severity: Severity | None = None


class AlertsHistoryParams(Model):
    """Which part of the audit; left out: the newest of the last seven days."""

    from_: Moment = Field("-7d", alias="from")
    to: Moment = "now"
    rule: Name | None = None
    alert: AlertId | None = None
    kind: Kind | None = None
    limit: int = Field(100, ge=1, le=1_000)


class SilenceParams(Model):
    """Say nothing and do nothing about what matches, until it ends."""

    matchers: dict[Name, Pattern] = Field(
        min_length=1,
        max_length=20,
        description="label -> pattern with * and ?; rule, severity, worker, pipeline, step, queue "
        "or a rule's own label. An alert that all of them match is silenced",
    )
    reason: Text
    who: Who
    duration: Duration = Field("1h", description="from now")


class UnsilenceParams(Model):
    id: SilenceId
    who: Who


class AcknowledgeParams(Model):
    """Say that somebody is at it: it is not repeated until it is resolved."""

    alert: AlertId
    who: Who
    note: str = Field("", max_length=1_000)


class BacktestParams(Model):
    """When each rule would have fired; left out: all rules of the file, over seven days."""

    from_: Moment = Field("-7d", alias="from")
    to: Moment = "now"
    rule: Name | None = None


class SendTestParams(Model):
    channel: Name


class AlertsSubscribeParams(Model):
    pass


# ---------------------------------------------------------------- results


class AlertError(Model):
    """The newest error of what the alert is about."""

    type: str
    message: str
    at: EpochMs


class Acknowledgement(Model):
    who: str
    note: str
    at: EpochMs


class Recovery(Model):
    """An action that an alert has led to."""

    action: str
    outcome: str = Field(description="dry run, started, done, failed, refused, and so on")
    at: EpochMs
    text: str = Field(description="what it would do, or what came of it; cut to length")


class Alert(Model):
    """One rule at one match, while it is pending or fires."""

    id: str
    rule: str
    severity: Severity
    phase: Phase
    labels: Labels
    summary: str = Field(description="what is wrong, in a sentence")
    metric: str
    value: float | None = Field(description="as it was last known, in the metric's unit")
    value_text: str
    threshold: float
    threshold_text: str
    since: EpochMs = Field(description="when the threshold was first crossed")
    fired_at: EpochMs | None
    clearing: bool = Field(description="it is past its threshold to clear, and kept firing")
    silenced_by: list[str] = Field(description="ids of silences")
    acknowledged: Acknowledgement | None
    last_notified: EpochMs | None = Field(
        description="when a message of it was last put into the outbox"
    )
    recovery: list[Recovery] = Field(description="newest first; at most 10")
    error: AlertError | None
    runbook: str | None


class SilenceView(Model):
    id: str
    matchers: dict[str, str]
    from_: EpochMs = Field(alias="from")
    until: EpochMs
    reason: str
    who: str


class AlertList(Model):
    alerts: list[Alert] = Field(description="what fires first, the worst first")
    silences: list[SilenceView] = Field(description="those that are in force")
    evaluated_at: EpochMs | None = Field(description="when the rules were last looked at")
    evaluates: bool = Field(description="false: no rules are set, or another hub does it")
    trouble: str | None = Field(description="why rules are not in force, or alerts not kept")


class RuleView(Model):
    """A rule as it is in force."""

    name: str
    metric: str
    scope: dict[str, str] = Field(description="patterns by worker, pipeline, step or queue")
    per: list[str] = Field(description="one alert for each of these together; none: one for all")
    condition: str = Field(description='as a person would say it: "error rate over 5m above 10 %"')
    severity: Severity
    for_: int = Field(alias="for", description="ms")
    keep_firing_for: int = Field(description="ms")
    window: int | None = Field(description="ms")
    min_runs: int
    labels: dict[str, str]
    channels: list[str]
    actions: list[str]
    runbook: str | None
    matches: int = Field(description="how many it looks at")
    pending: int
    firing: int
    trouble: str | None = Field(description="why it cannot be evaluated here")


class ChannelView(Model):
    """A way to people. Its address is a secret, and not told."""

    name: str
    kind: str = Field(description="mailto, slack, json and so on")
    severities: list[Severity]
    sent: int
    failed: int = Field(description="tries")
    given_up: int = Field(description="notifications that nobody got")
    held_back: int
    waiting: int
    trouble: str | None


class RuleList(Model):
    rules: list[RuleView]
    channels: list[ChannelView]
    file: str | None
    loaded_at: EpochMs | None
    trouble: str | None = Field(description="what is wrong with the file as it is now")
    dry_run: bool = Field(description="actions say what they would do, and do nothing")


class AuditEntry(Model):
    """Something that happened to an alert, a silence, a notification, an action or the rules."""

    id: int
    at: EpochMs
    kind: Kind
    rule: str | None
    alert: str | None
    labels: Labels
    text: str
    who: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)


class AuditLog(Model):
    entries: list[AuditEntry] = Field(description="newest first")
    more: bool = Field(description="there are older ones in the range")


class Acknowledged(Model):
    ok: Literal[True] = True


class Unsilenced(Model):
    ok: Literal[True] = True


class Reloaded(Model):
    rules: int
    channels: int
    changed: list[str] = Field(description="names of rules that are new, other or gone")


class TestSent(Model):
    ok: Literal[True] = True
    seconds: float


class Firing(Model):
    """From when to when an alert would have fired."""

    labels: Labels
    pending_since: EpochMs
    from_: EpochMs = Field(alias="from")
    until: EpochMs | None = Field(description="null: to the end of the range, or beyond")
    peak: float | None
    peak_text: str


class RuleBacktest(Model):
    rule: str
    condition: str
    severity: Severity
    matches: int
    firings: list[Firing] = Field(description="the newest 100, oldest first")
    count: int
    firing_ms: int = Field(description="of all its alerts together")
    highest: float | None = Field(description="the value furthest over the threshold, or towards")
    highest_text: str
    trouble: str | None = Field(description="why it cannot be tested on recorded windows")


class Backtest(Model):
    from_: EpochMs = Field(alias="from")
    to: EpochMs
    step: int = Field(description="ms between two looks: the length of the windows that are kept")
    rules: list[RuleBacktest]


class AlertsChanged(Model):
    """The params of the notification alerts.changed."""

    subscription: str
    alerts: list[Alert] = Field(description="all that are pending or fire now")
    changes: list[AuditEntry] = Field(description="newest first, at most 100")
    missed: int = Field(0, description="notifications before it that this reader was too slow for")
