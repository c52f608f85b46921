"""What is said of a message, and what hostile names make of it: nothing."""

from __future__ import annotations

import json
import unicodedata

import pytest

from builders import MINUTE, T0, a_message, an_item
from orbit_service.notify.render import (
    BODY_ROOM,
    CHAT,
    MRKDWN,
    PLAIN,
    SLACK_TITLE,
    TITLE_ROOM,
    clean,
    level,
    log_lines,
    payload,
    text,
    title,
)

STYLES = {"plain": PLAIN, "chat": CHAT, "mrkdwn": MRKDWN, "slack title": SLACK_TITLE}
HOSTILE = {
    "html": "<script>alert(1)</script><img src=x onerror=y>",
    "slack channel": "<!channel> <!here|here>",
    "slack user": "<@U1>",
    "slack link": "<https://evil.example|your bank>",
    "ampersand": "a & b &lt;!channel&gt;",
    "mention": "@everyone, @here and (@channel)",
    "discord": "<@1> <@&2> <@!3> <#4>",
    "google chat": "<users/all>",
    "markdown link": "[bank](https://evil.example) ![x](y) [a][b]",
    "header": "x\r\nBcc: everybody@example.com\r\n\r\nhello",
    "lines": "a\nb\u2028c\u2029d\x85e\x0bf",
    "control": "a\x00b\x1b[31mc\x07",
    "direction": "invoice\u202efdp.exe\u2066\u200f",
    "surrogate": "a\ud800b",
    "long": "n" * 10_000,
    "blanks": " " * 10_000 + "n",
}


@pytest.fixture(params=HOSTILE)
def hostile(request):
    """A message in which whatever may come from elsewhere is hostile."""
    name = HOSTILE[request.param]
    return a_message(
        an_item(
            rule=name,
            labels={name: name},
            summary=f"{name}: error rate is 40 %",
            error_type=name,
            error=name,
            recovery=name,
            runbook=name,
            link=name,
        ),
        node=name,
        key=name,
    )


def test_a_text_says_all_that_is_known_of_an_alert():
    item = an_item(
        labels={"pipeline": "census", "team": "data"},
        error_type="KeyError",
        error="'id'",
        recovery="restart census: done",
        runbook="https://wiki.example/census",
        link="https://orbit.example/#alert=a1",
    )
    assert text(a_message(item, more=2, held_back=1)) == (
        "Firing (critical): census: error rate over 5m is 40 %, above 10 %\n"
        "Rule: many failures\n"
        "pipeline: census, team: data\n"
        "Since 2023-11-14 22:11:20 UTC, for 2 min\n"
        "Newest error: KeyError: 'id'\n"
        "Recovery: restart census: done\n"
        "Runbook: https://wiki.example/census\n"
        "More: https://orbit.example/#alert=a1\n"
        "\n"
        "And 2 more alerts\n"
        "1 change was held back before this message\n"
        "Node: box\n"
        "Key: k-1"
    )


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            a_message(an_item()),
            "Firing (critical): census: error rate over 5m is 40 %, above 10 %",
        ),
        (
            a_message(an_item(saying="resolved", summary="all well")),
            "Resolved (critical): all well",
        ),
        (
            a_message(an_item(), an_item(), an_item(saying="resolved")),
            "Alerts on box: 2 firing, 1 resolved",
        ),
        (a_message(an_item(), more=7), "Alerts on box: 1 firing, 7 more"),
        (a_message(test=True), "Test from Orbit Metrics on box"),
    ],
)
def test_a_title_says_of_one_alert_what_it_is_and_of_many_how_many(message, said):
    assert title(message) == said


def test_what_is_over_says_how_long_it_took():
    item = an_item(saying="resolved", at_ms=T0 + 28 * MINUTE)

    assert "Over at 2023-11-14 22:41:20 UTC, after 30 min" in text(a_message(item))


def test_what_has_just_begun_says_no_length_of_time():
    item = an_item(since_ms=T0, at_ms=T0)

    assert "Since 2023-11-14 22:13:20 UTC\n" in text(a_message(item))


def test_a_test_says_that_it_is_one():
    assert text(a_message(test=True)).startswith("This is a test of this channel")


def test_a_channel_that_shows_the_title_does_not_read_it_twice():
    alone = a_message(an_item())

    assert title(alone) not in text(alone, titled=TITLE_ROOM)
    assert title(alone) in text(alone)
    assert an_item().summary in text(a_message(an_item(), an_item()), titled=TITLE_ROOM)


@pytest.mark.parametrize(
    ("items", "of_message"),
    [
        ([an_item(severity="info")], "info"),
        ([an_item(severity="info"), an_item(severity="warning")], "warning"),
        ([an_item(severity="warning"), an_item(severity="critical")], "failure"),
        ([an_item(severity="info"), an_item(saying="resolved")], "info"),
        ([an_item(saying="resolved")], "success"),
    ],
)
def test_a_message_is_as_bad_as_the_worst_that_fires(items, of_message):
    assert level(a_message(*items)) == of_message
    assert level(a_message(*items, test=True)) == "info"


@pytest.mark.parametrize("room", [100, 160, 400, 2_000, BODY_ROOM])
def test_what_there_is_no_room_for_is_counted_and_the_key_is_always_there(room):
    items = [an_item(summary=f"number {n} is late") for n in range(50)]
    said = text(a_message(*items, more=3), room=room)

    assert len(said) <= room
    assert "k-1" in said
    shown = sum(f"number {n} is late" in said for n in range(50))
    if room >= 160:
        assert shown
    if shown:
        assert f"And {53 - shown} more alerts" in said


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_a_hostile_name_stays_one_line_of_what_can_be_seen(hostile, style):
    lines = text(hostile, style).split("\n")

    for line in [title(hostile, style), *lines]:
        assert {unicodedata.category(c) for c in line} & {"Cc", "Cs", "Zl", "Zp"} == set()
        assert not set(line) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200f")
        assert len(line) < 5_000
    # One line for the alert, its nine facts, and what stands around them.
    assert len(lines) <= 12
    assert len(title(hostile, style)) <= TITLE_ROOM


@pytest.mark.parametrize("style", [CHAT, MRKDWN, SLACK_TITLE], ids=["chat", "mrkdwn", "title"])
def test_a_hostile_name_mentions_nobody_in_a_chat(hostile, style):
    for said in (title(hostile, style), text(hostile, style)):
        for mention in ("@everyone", "@here", "@channel", "@U1"):
            assert mention not in said


def test_a_hostile_name_is_no_link_and_no_markup_of_a_chat(hostile):
    said = title(hostile, CHAT) + text(hostile, CHAT)

    for markup in ("](", "][", "<@", "<!", "<#", "<u", "<h", "<s", "@&", "@!"):
        assert markup not in said


def test_a_hostile_name_is_no_markup_of_slack(hostile):
    assert not set(text(hostile, MRKDWN)) & set("<>")
    assert not set(title(hostile, SLACK_TITLE)) & set("<>&")


def test_an_address_of_mail_can_still_be_copied_from_a_chat():
    item = an_item(error="no mailbox for anna@example.com")

    assert "anna@example.com" in text(a_message(item), CHAT)


def test_a_program_gets_everything_as_it_came():
    item = an_item(
        labels={"pipeline": "<b>\n"},
        error_type="KeyError",
        error="'id'",
        recovery="restart: done",
        runbook="r",
        link="l",
    )
    assert payload(a_message(item, more=1, held_back=2)) == {
        "key": "k-1",
        "at": T0,
        "node": "box",
        "test": False,
        "text": text(a_message(item, more=1, held_back=2)),
        "alerts": [
            {
                "id": "a1",
                "saying": "firing",
                "rule": "many failures",
                "severity": "critical",
                "labels": {"pipeline": "<b>\n"},
                "summary": "census: error rate over 5m is 40 %, above 10 %",
                "metric": "error_rate",
                "value": 40.0,
                "threshold": 10.0,
                "since": T0 - 2 * MINUTE,
                "firedAt": T0 - MINUTE,
                "at": T0,
                "error": {"type": "KeyError", "message": "'id'"},
                "recovery": "restart: done",
                "runbook": "r",
                "link": "l",
            }
        ],
        "more": 1,
        "heldBack": 2,
    }
    assert payload(a_message(an_item()))["alerts"][0]["error"] is None


def test_a_hostile_name_is_json_that_everybody_can_read(hostile):
    body = json.dumps(payload(hostile), ensure_ascii=False).encode()

    assert json.loads(body)["alerts"][0]["severity"] == "critical"


def test_the_log_gets_a_line_for_each_alert_as_loud_as_it_is():
    items = [
        an_item(),
        an_item(severity="warning"),
        an_item(severity="info"),
        an_item(saying="resolved"),
    ]
    lines = log_lines(a_message(*items, more=2))

    assert [level for level, _line in lines] == ["failure", "warning", "info", "success", "warning"]
    assert lines[0][1] == (
        "Firing (critical): census: error rate over 5m is 40 %, above 10 %; Rule: many failures; "
        "pipeline: census; Since 2023-11-14 22:11:20 UTC, for 2 min"
    )
    assert lines[-1][1] == "And 2 more alerts"


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("short", "short"),
        ("exactly 10", "exactly 10"),
        ("more than ten", "more than…"),
        (" a \n\t b ", "a b"),
        ("a\x00\u202eb", "ab"),
        ("\udcff", "\ufffd"),
        ("", ""),
    ],
)
def test_a_name_is_made_one_line_of_its_room(given, made):
    assert clean(given, 10) == made
