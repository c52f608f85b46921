"""
Answers of `alerts.*` as texts for a terminal.

Whatever comes from elsewhere (names, errors, reasons) is text in one line: no control
character of it has an effect. Whole, because what is cut here may be what matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orbit_rpc_schema.wire import Json
from orbit_service.alerts.metrics import time_text
from orbit_service.plain import plain
from orbit_service.tables import utc

GAP = "  "


def alerts_table(answer: Json) -> str:
    """alerts.list: a line for each alert, with what is known of it below."""
    return "\n".join(_alert_lines(answer))


def _alert_lines(answer: Json) -> Iterator[str]:
    alerts = answer["alerts"]
    fires = sum(alert["phase"] == "firing" for alert in alerts)
    looked = answer["evaluatedAt"]
    when = "never looked at yet" if looked is None else f"looked at {utc(looked)}"
    yield f"firing: {fires}, pending: {len(alerts) - fires}; {when}"
    if answer["trouble"] is not None:
        yield f"trouble: {plain(answer['trouble'])}"
    if not answer["evaluates"]:
        yield "no rules are looked at here: none are set (ORBIT_ALERTS), or another hub does it"
    if alerts:
        yield ""
        header = ("severity", "phase", "since", "id", "rule", "")
        lines = _columns(header, [_alert_cells(alert) for alert in alerts])
        yield next(lines)
        for alert, line in zip(alerts, lines, strict=True):
            yield line
            yield from (f"    {note}" for note in _notes(alert))
    if answer["silences"]:
        yield ""
        yield from _silence_lines(answer["silences"])


def _alert_cells(alert: Json) -> Sequence[str]:
    return (
        alert["severity"],
        alert["phase"],
        utc(alert["since"] if alert["firedAt"] is None else alert["firedAt"]),
        plain(alert["id"]),
        plain(alert["rule"]),
        plain(alert["summary"]),
    )


def _notes(alert: Json) -> Iterator[str]:
    if alert["clearing"]:
        yield "is better now, and kept firing for a while"
    if alert["silencedBy"]:
        yield f"silenced by {', '.join(map(plain, alert['silencedBy']))}"
    if (who := alert["acknowledged"]) is not None:
        note = f": {plain(who['note'])}" if who["note"] else ""
        yield f"acknowledged by {plain(who['who'])} at {utc(who['at'])}{note}"
    for action in alert["recovery"]:
        text = f": {plain(action['text'])}" if action["text"] else ""
        yield f"{plain(action['action'])} at {utc(action['at'])}, {plain(action['outcome'])}{text}"
    if (error := alert["error"]) is not None:
        yield f"{plain(error['type'])}: {plain(error['message'])}"
    if alert["runbook"] is not None:
        yield f"runbook: {plain(alert['runbook'])}"


# ---------------------------------------------------------------- rules


def rules_table(answer: Json) -> str:
    """alerts.rules: a line for each rule, then one for each channel."""
    return "\n".join(_rule_lines(answer))


def _rule_lines(answer: Json) -> Iterator[str]:
    if answer["file"] is None:
        yield "no rules are set: start the service with ORBIT_ALERTS, the path of their file"
        return
    loaded = answer["loadedAt"]
    yield f"{plain(answer['file'])}, {'not read yet' if loaded is None else f'read {utc(loaded)}'}"
    if answer["trouble"] is not None:
        yield from (f"trouble: {plain(line)}" for line in answer["trouble"].splitlines())
    if answer["dryRun"] and any(rule["actions"] for rule in answer["rules"]):
        yield "actions that do not set dry_run themselves are dry: they say what they would do"
    yield ""
    header = ("rule", "severity", "matches", "pending", "firing", "condition")
    cells = [
        (
            plain(rule["name"]),
            rule["severity"],
            f"{rule['matches']:,}",
            f"{rule['pending']:,}",
            f"{rule['firing']:,}",
            plain(rule["condition"]),
        )
        for rule in answer["rules"]
    ]
    lines = _columns(header, cells, right=(2, 3, 4))
    yield next(lines)
    for rule, line in zip(answer["rules"], lines, strict=True):
        yield line
        if rule["trouble"] is not None:
            yield f"    trouble: {plain(rule['trouble'])}"
    if answer["channels"]:
        yield ""
        yield from _channel_lines(answer["channels"])


def _channel_lines(channels: Sequence[Json]) -> Iterator[str]:
    header = ("channel", "kind", "sent", "failed", "given up", "held back", "waiting", "for")
    counts = ("sent", "failed", "givenUp", "heldBack", "waiting")
    cells = [
        (
            plain(channel["name"]),
            plain(channel["kind"]),
            *(f"{channel[count]:,}" for count in counts),
            ", ".join(channel["severities"]),
        )
        for channel in channels
    ]
    lines = _columns(header, cells, right=(2, 3, 4, 5, 6))
    yield next(lines)
    for channel, line in zip(channels, lines, strict=True):
        yield line
        if channel["trouble"] is not None:
            yield f"    trouble: {plain(channel['trouble'])}"


# ---------------------------------------------------------------- the past


def audit_table(answer: Json) -> str:
    """alerts.history: a line for each entry, newest first."""
    if not answer["entries"]:
        return "nothing happened in this time"
    cells = [
        (
            utc(entry["at"]),
            entry["kind"],
            plain(entry["rule"] or "-"),
            plain(entry["alert"] or "-"),
            plain(entry["text"]) + (f" ({plain(entry['who'])})" if entry["who"] else ""),
        )
        for entry in answer["entries"]
    ]
    lines = [*_columns(("at", "what", "rule", "alert", ""), cells)]
    if answer["more"]:
        lines.append("there are older ones: give --limit, or another --last")
    return "\n".join(lines)


def backtest_table(answer: Json) -> str:
    """alerts.backtest: a line for each rule, then one for each time that it would have fired."""
    return "\n".join(_backtest_lines(answer))


def _backtest_lines(answer: Json) -> Iterator[str]:
    step = time_text(answer["step"])
    yield f"from {utc(answer['from'])} to {utc(answer['to'])}, looked at every {step}"
    yield ""
    header = ("rule", "severity", "matches", "fired", "for", "furthest", "condition")
    rules = answer["rules"]
    cells = [
        (
            plain(rule["rule"]),
            rule["severity"],
            f"{rule['matches']:,}",
            f"{rule['count']:,}",
            time_text(rule["firingMs"]) if rule["count"] else "-",
            "-" if rule["highest"] is None else plain(rule["highestText"]),
            plain(rule["condition"]),
        )
        for rule in rules
    ]
    lines = _columns(header, cells, right=(2, 3))
    yield next(lines)
    for rule, line in zip(rules, lines, strict=True):
        yield line
        if rule["trouble"] is not None:
            yield f"    not tested: {plain(rule['trouble'])}"
    fired = [(rule, firing) for rule in rules for firing in rule["firings"]]
    if not fired:
        return
    yield ""
    yield from _columns(
        ("rule", "from", "until", "for", "furthest", ""),
        [_firing_cells(rule, firing, answer["to"]) for rule, firing in fired],
    )
    for rule in rules:
        if (left_out := rule["count"] - len(rule["firings"])) > 0:
            yield f"{plain(rule['rule'])}: {left_out:,} earlier ones are not shown"


def _firing_cells(rule: Json, firing: Json, end: int) -> Sequence[str]:
    until = firing["until"]
    return (
        plain(rule["rule"]),
        utc(firing["from"]),
        "(goes on)" if until is None else utc(until),
        time_text((end if until is None else until) - firing["from"]),
        plain(firing["peakText"]),
        labels_text(firing["labels"]),
    )


# ---------------------------------------------------------------- silences


def silences_table(silences: Sequence[Json]) -> str:
    """The silences of alerts.list: a line for each."""
    return "\n".join(_silence_lines(silences)) if silences else "nothing is silenced"


def _silence_lines(silences: Sequence[Json]) -> Iterator[str]:
    cells = [
        (
            plain(silence["id"]),
            utc(silence["until"]),
            plain(silence["who"]),
            labels_text(silence["matchers"]),
            plain(silence["reason"]),
        )
        for silence in silences
    ]
    yield from _columns(("silence", "until", "who", "of", "reason"), cells)


def labels_text(labels: Json) -> str:
    """ "pipeline=send, worker=mailer"."""
    return ", ".join(f"{plain(name)}={plain(str(value))}" for name, value in labels.items())


def _columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> Iterator[str]:
    """The header and a line for each row; the last column is as wide as it comes."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for cells in (header, *rows):
        yield GAP.join(
            f"{cell:>{width}}" if place in right else f"{cell:<{width}}"
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
