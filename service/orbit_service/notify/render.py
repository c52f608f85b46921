"""
What is said to people of a message: a title and a text, in the room that a channel has.

Names and errors come from workers and may hold anything. Each is made one line of
printable characters, cut, and then escaped as the channel's style asks. What there is no
room for is left out from the end; the key, by which a reader knows a message that came
twice, is always there. Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any, Literal
from unicodedata import category

from orbit_service.alerts.messages import Item, Message
from orbit_service.alerts.metrics import time_text
from orbit_service.core.rollup import SECOND_MS

TITLE_ROOM = 150  # characters; as much as Slack's header and a list of mails show
BODY_ROOM = 10_000  # half of which nobody reads
DATA_ROOM = 10_000  # of one text in JSON
NAME_ROOM = 200
SENTENCE_ROOM = 500
LINK_ROOM = 2_000
SHORT = 40  # characters; with less room for the alerts there is the title alone

Level = Literal["info", "success", "warning", "failure"]  # as Apprise calls them

# What turns the direction of writing: with one of these a name reads as another.
_TURNS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}
_NO_WIDTH = "\u200b"  # after it a name is a name to people, and no mention to a program


@dataclass(frozen=True, slots=True)
class Style:
    """How a channel writes: `escape` makes harmless what it would take for markup."""

    escape: Callable[[str], str]
    strong: str = "{}"


def _without_mentions(text: str) -> str:
    """@everyone, @here and their like wake everybody; an address of mail stays as it is."""
    return re.sub(r"(?<![\w.])@(?=[\w&!])", f"@{_NO_WIDTH}", text)


def _without_markup(text: str) -> str:
    """As plain in a chat that reads its own markup in plain text, as Mattermost and Discord do.

    [bank](https://evil.example) shows no link to where it does not say, and <users/all>
    is nobody.
    """
    broken = re.sub(r"\](?=[(\[])|<(?=\S)", rf"\g<0>{_NO_WIDTH}", text)
    return _without_mentions(broken)


PLAIN = Style(lambda text: text)
CHAT = Style(_without_markup)
# docs.slack.dev/messaging/formatting-message-text: what these three characters make, such
# as <!channel>, <@U1> and <url|text>, is more than looks.
MRKDWN = Style(lambda text: _without_mentions(escape(text, quote=False)), "*{}*")
# Apprise escapes a title in one of Slack's modes and not in another: nothing to be escaped.
SLACK_TITLE = Style(
    lambda text: _without_mentions(text.replace("<", "‹").replace(">", "›").replace("&", "+"))
)


def clean(text: str, room: int) -> str:
    """One line of at most `room` printable characters."""
    looked_at = text[: 4 * room]  # so that blanks do not count, and megabytes are not read
    line = "".join(
        "\ufffd" if category(c) == "Cs" else c
        for c in " ".join(looked_at.split())
        if category(c) != "Cc" and ord(c) not in _TURNS
    )
    if len(line) <= room and len(looked_at) == len(text):
        return line
    return line[: room - 1] + "…"


def level(message: Message) -> Level:
    """As bad as the worst of what fires."""
    severities = {item.severity for item in message.items if item.saying != "resolved"}
    if message.test:
        return "info"
    if "critical" in severities:
        return "failure"
    if "warning" in severities:
        return "warning"
    return "info" if severities else "success"


def title(message: Message, style: Style = PLAIN, room: int = TITLE_ROOM) -> str:
    """Of one alert what it is, of many how many."""
    node = style.escape(clean(message.node, NAME_ROOM))
    if message.test:
        said = f"Test from Orbit Metrics on {node}"
    elif len(message.items) == 1 and not message.more:
        said = _headline(message.items[0], style)
    else:
        counts: Counter[str] = Counter(item.saying for item in message.items)
        if message.more:
            counts["more"] = message.more
        said = f"Alerts on {node}: " + ", ".join(f"{n} {what}" for what, n in counts.items())
    return clean(said, room)


def text(message: Message, style: Style = PLAIN, room: int = BODY_ROOM, *, titled: int = 0) -> str:
    """The alerts in full if there is room for all; else a line each, as many as fit.

    `titled`: the room of the title above it; what that says in full is not said again.
    """
    items = message.items
    opening = "This is a test of this channel: nothing has happened.\n\n" if message.test else ""
    blocks = [_block(item, style) for item in items]
    alone = len(items) == 1 and not message.more and not message.test
    if alone and len(_headline(items[0], style)) <= titled:
        blocks = [blocks[0].partition("\n")[2]]
    full = opening + "".join(block + "\n\n" for block in blocks)
    ending = _ending(message, message.more, style)
    if len(full) + len(ending) <= room:
        return full + ending
    lines = [style.strong.format(_headline(item, style)) for item in items]
    for shown in range(len(lines), 0, -1):
        short = opening + "\n".join(lines[:shown]) + "\n\n"
        ending = _ending(message, message.more + len(lines) - shown, style)
        if len(short) + len(ending) <= room:
            return short + ending
    key = style.escape(clean(message.key, NAME_ROOM))
    return f"{clean(title(message, style), max(room - len(key) - 1, SHORT))}\n{key}"


def log_lines(message: Message) -> list[tuple[Level, str]]:
    """A line for each alert, and one for what is not among them."""
    lines = [(level(message), title(message))] if message.test else []
    for item in message.items:
        one = Message(message.key, message.at_ms, message.node, [item], test=message.test)
        lines.append((level(one), "; ".join(_block(item, PLAIN).split("\n"))))
    if rest := _rest(message, message.more):
        lines.append(("warning", "; ".join(rest)))
    return lines


def payload(message: Message) -> dict[str, Any]:
    """For programs: everything, as it came, in values of JSON; times in epoch milliseconds.

    But for the title, which has its place in what Apprise posts.
    """
    return {
        "key": _data(message.key),
        "at": message.at_ms,
        "node": _data(message.node),
        "test": message.test,
        "text": text(message),
        "alerts": [_alert(item) for item in message.items],
        "more": message.more,
        "heldBack": message.held_back,
    }


def _alert(item: Item) -> dict[str, Any]:
    has_error = bool(item.error_type or item.error)
    return {
        "id": _data(item.alert),
        "saying": item.saying,
        "rule": _data(item.rule),
        "severity": item.severity,
        "labels": {_data(name): _data(value) for name, value in item.labels.items()},
        "summary": _data(item.summary),
        "metric": item.metric,
        "value": item.value,
        "threshold": item.threshold,
        "since": item.since_ms,
        "firedAt": item.fired_ms,
        "at": item.at_ms,
        "error": (
            {"type": _data(item.error_type), "message": _data(item.error)} if has_error else None
        ),
        "recovery": _data(item.recovery),
        "runbook": _data(item.runbook),
        "link": _data(item.link),
    }


def _data(text: str) -> str:
    """Not escaped, for JSON does that; a lone surrogate many a reader of JSON chokes on."""
    return text[:DATA_ROOM].encode("utf-8", "replace").decode()


def _headline(item: Item, style: Style) -> str:
    summary = style.escape(clean(item.summary, SENTENCE_ROOM))
    return f"{item.saying.capitalize()} ({item.severity}): {summary}"


def _block(item: Item, style: Style) -> str:
    """One alert in full, a fact a line."""

    def said(text: str, room: int) -> str:
        return style.escape(clean(text, room))

    labels = ", ".join(
        f"{said(name, NAME_ROOM)}: {said(value, NAME_ROOM)}" for name, value in item.labels.items()
    )
    lasted_ms = max(item.at_ms - item.since_ms, 0)
    lines = [style.strong.format(_headline(item, style)), f"Rule: {said(item.rule, NAME_ROOM)}"]
    if labels:
        lines.append(labels)
    if item.saying == "resolved":
        lines.append(f"Over at {_moment(item.at_ms)}, after {time_text(lasted_ms)}")
    else:
        lasted = f", for {time_text(lasted_ms)}" if lasted_ms >= SECOND_MS else ""
        lines.append(f"Since {_moment(item.since_ms)}{lasted}")
    if item.error_type or item.error:
        error = ": ".join(part for part in (item.error_type, item.error) if part)
        lines.append(f"Newest error: {said(error, SENTENCE_ROOM)}")
    if item.recovery:
        lines.append(f"Recovery: {said(item.recovery, SENTENCE_ROOM)}")
    if item.runbook:
        lines.append(f"Runbook: {said(item.runbook, LINK_ROOM)}")
    if item.link:
        lines.append(f"More: {said(item.link, LINK_ROOM)}")
    return "\n".join(lines)


def _ending(message: Message, more: int, style: Style) -> str:
    node, key = (style.escape(clean(name, NAME_ROOM)) for name in (message.node, message.key))
    return "\n".join([*_rest(message, more), f"Node: {node}", f"Key: {key}"])


def _rest(message: Message, more: int) -> list[str]:
    lines = []
    if more:
        lines.append(f"And {more} more {'alert' if more == 1 else 'alerts'}")
    if message.held_back:
        changes = "change was" if message.held_back == 1 else "changes were"
        lines.append(f"{message.held_back} {changes} held back before this message")
    return lines


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
