"""Answers of alerts.* on a terminal: what is told stands in it, and moves nothing."""

from __future__ import annotations

from typing import Any

import pytest

from builders import HOUR, MINUTE, T0
from orbit_rpc_schema.alerts import (
    Acknowledgement,
    Alert,
    AlertError,
    AlertList,
    AuditEntry,
    AuditLog,
    Backtest,
    ChannelView,
    Firing,
    Recovery,
    RuleBacktest,
    RuleList,
    RuleView,
    SilenceView,
)
from orbit_rpc_schema.model import Model
from orbit_service.commands.alert_tables import (
    alerts_table,
    audit_table,
    backtest_table,
    rules_table,
    silences_table,
)

AT = "2023-11-14 22:13:20 UTC"  # T0


def answer(model: Model) -> Any:
    """As the service answers it."""
    return model.model_dump(mode="json", by_alias=True)


def an_alert(**fields: Any) -> Alert:
    defaults: dict[str, Any] = {
        "id": "a1",
        "rule": "error-rate",
        "severity": "warning",
        "phase": "firing",
        "labels": {"pipeline": "send"},
        "summary": "send: error rate over 5m is 40 %, above 10 %",
        "metric": "error_rate",
        "value": 40.0,
        "value_text": "40 %",
        "threshold": 10.0,
        "threshold_text": "10 %",
        "since": T0 - MINUTE,
        "fired_at": T0,
        "clearing": False,
        "silenced_by": [],
        "acknowledged": None,
        "last_notified": None,
        "recovery": [],
        "error": None,
        "runbook": None,
    }
    return Alert(**{**defaults, **fields})


def a_list(*alerts: Alert, **fields: Any) -> AlertList:
    defaults: dict[str, Any] = {
        "silences": [],
        "evaluated_at": T0,
        "evaluates": True,
        "trouble": None,
    }
    return AlertList(alerts=list(alerts), **{**defaults, **fields})


def a_silence(**fields: Any) -> SilenceView:
    defaults: dict[str, Any] = {
        "id": "s1",
        "matchers": {"pipeline": "import-*", "severity": "warning"},
        "from_": T0 - HOUR,
        "until": T0,
        "reason": "the vendor is down",
        "who": "ann",
    }
    return SilenceView(**{**defaults, **fields})


def a_rule(**fields: Any) -> RuleView:
    defaults: dict[str, Any] = {
        "name": "error-rate",
        "metric": "error_rate",
        "scope": {},
        "per": ["pipeline"],
        "condition": "error rate over 5m above 10 %",
        "severity": "warning",
        "for_": 0,
        "keep_firing_for": 0,
        "window": 5 * MINUTE,
        "min_runs": 10,
        "labels": {},
        "channels": ["log"],
        "actions": [],
        "runbook": None,
        "matches": 1_234,
        "pending": 0,
        "firing": 1,
        "trouble": None,
    }
    return RuleView(**{**defaults, **fields})


def a_channel(**fields: Any) -> ChannelView:
    defaults: dict[str, Any] = {
        "name": "log",
        "kind": "log",
        "severities": ["info", "warning", "critical"],
        "sent": 3,
        "failed": 0,
        "given_up": 0,
        "held_back": 0,
        "waiting": 0,
        "trouble": None,
    }
    return ChannelView(**{**defaults, **fields})


def a_rule_list(*rules: RuleView, **fields: Any) -> RuleList:
    defaults: dict[str, Any] = {
        "channels": [a_channel()],
        "file": "/etc/alerts.toml",
        "loaded_at": T0,
        "trouble": None,
        "dry_run": True,
    }
    return RuleList(rules=list(rules), **{**defaults, **fields})


def an_entry(**fields: Any) -> AuditEntry:
    defaults: dict[str, Any] = {
        "id": 1,
        "at": T0,
        "kind": "firing",
        "rule": "error-rate",
        "alert": "a1",
        "labels": {},
        "text": "send: error rate over 5m is 40 %, above 10 %",
    }
    return AuditEntry(**{**defaults, **fields})


def a_backtest(*firings: Firing, **fields: Any) -> Backtest:
    defaults: dict[str, Any] = {
        "rule": "error-rate",
        "condition": "error rate over 5m above 10 %",
        "severity": "warning",
        "matches": 2,
        "firings": list(firings),
        "count": len(firings),
        "firing_ms": 90 * MINUTE,
        "highest": 40.0,
        "highest_text": "40 %",
        "trouble": None,
    }
    rule = RuleBacktest(**{**defaults, **fields})
    return Backtest(from_=T0 - 24 * HOUR, to=T0, step=10_000, rules=[rule])


def a_firing(**fields: Any) -> Firing:
    defaults: dict[str, Any] = {
        "labels": {"queue": "mail"},
        "pending_since": T0 - 2 * HOUR,
        "from_": T0 - 2 * HOUR,
        "until": T0 - HOUR,
        "peak": 40.0,
        "peak_text": "40 %",
    }
    return Firing(**{**defaults, **fields})


# ---------------------------------------------------------------- what fires


def test_an_alert_is_a_line():
    assert alerts_table(answer(a_list(an_alert()))).splitlines() == [
        f"firing: 1, pending: 0; looked at {AT}",
        "",
        "severity  phase   since                    id  rule",
        f"warning   firing  {AT}  a1  error-rate  send: error rate over 5m is 40 %, above 10 %",
    ]


def test_where_nothing_fires_it_says_so():
    assert alerts_table(answer(a_list())) == f"firing: 0, pending: 0; looked at {AT}"


def test_one_that_is_pending_tells_since_when_it_is_too_much():
    lines = alerts_table(answer(a_list(an_alert(phase="pending", fired_at=None)))).splitlines()

    assert lines[0].startswith("firing: 0, pending: 1;")
    assert "pending  2023-11-14 22:12:20 UTC" in lines[-1]


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"clearing": True, "value_text": "4 %"}, "is better now, and kept firing for a while"),
        ({"silenced_by": ["s1", "s2"]}, "silenced by s1, s2"),
        (
            {"acknowledged": Acknowledgement(who="ann", note="on it", at=T0)},
            f"acknowledged by ann at {AT}: on it",
        ),
        (
            {"acknowledged": Acknowledgement(who="ann", note="", at=T0)},
            f"acknowledged by ann at {AT}",
        ),
        (
            {"recovery": [Recovery(action="restart", outcome="dry run", at=T0, text="would ask")]},
            f"restart at {AT}, dry run: would ask",
        ),
        ({"error": AlertError(type="ValueError", message="no", at=T0)}, "ValueError: no"),
        ({"runbook": "https://wiki.example.com"}, "runbook: https://wiki.example.com"),
    ],
)
def test_what_is_known_of_an_alert_stands_below_it(fields, note):
    assert alerts_table(answer(a_list(an_alert(**fields)))).splitlines()[4:] == [f"    {note}"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"trouble": "the disk is full"}, "trouble: the disk is full"),
        ({"evaluates": False}, "no rules are looked at here"),
        ({"evaluated_at": None}, "never looked at yet"),
        ({"silences": [a_silence()]}, "pipeline=import-*, severity=warning"),
    ],
)
def test_what_bears_on_all_of_them_is_said(fields, said):
    assert said in alerts_table(answer(a_list(**fields)))


# ---------------------------------------------------------------- rules and silences


def test_a_rule_is_a_line_and_so_is_a_channel():
    assert rules_table(answer(a_rule_list(a_rule()))).splitlines() == [
        f"/etc/alerts.toml, read {AT}",
        "",
        "rule        severity  matches  pending  firing  condition",
        "error-rate  warning     1,234        0       1  error rate over 5m above 10 %",
        "",
        "channel  kind  sent  failed  given up  held back  waiting  for",
        "log      log      3       0         0          0        0  info, warning, critical",
    ]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (a_rule_list(file=None), "no rules are set"),
        (a_rule_list(loaded_at=None), "not read yet"),
        (a_rule_list(trouble="line 1\nline 2"), "trouble: line 2"),
        (a_rule_list(a_rule(trouble="this is a hub")), "    trouble: this is a hub"),
        (
            a_rule_list(a_rule(actions=["restart"])),
            "actions that do not set dry_run themselves are dry",
        ),
        (a_rule_list(channels=[a_channel(trouble="refused")]), "    trouble: refused"),
    ],
)
def test_what_is_wrong_with_rules_is_said(told, said):
    assert said in rules_table(answer(told))


def test_a_silence_is_a_line():
    assert silences_table(answer(a_list(silences=[a_silence()]))["silences"]).splitlines() == [
        "silence  until                    who  of                                   reason",
        f"s1       {AT}  ann  pipeline=import-*, severity=warning  the vendor is down",
    ]


def test_no_silence_is_said():
    assert silences_table([]) == "nothing is silenced"


# ---------------------------------------------------------------- the past


def test_an_entry_is_a_line_with_whose_word_it_was():
    log = AuditLog(
        entries=[
            an_entry(kind="acknowledged", text="on it", who="ann"),
            an_entry(kind="reloaded", rule=None, alert=None, text="2 rules"),
        ],
        more=True,
    )

    assert audit_table(answer(log)).splitlines() == [
        "at                       what          rule        alert",
        f"{AT}  acknowledged  error-rate  a1     on it (ann)",
        f"{AT}  reloaded      -           -      2 rules",
        "there are older ones: give --limit, or another --last",
    ]


def test_nothing_in_the_past_is_said():
    assert audit_table(answer(AuditLog(entries=[], more=False))).startswith("nothing happened")


def test_a_test_tells_how_often_how_long_and_how_much():
    table = backtest_table(answer(a_backtest(a_firing(), a_firing(until=None))))

    assert table.splitlines() == [
        f"from 2023-11-13 22:13:20 UTC to {AT}, looked at every 10 s",
        "",
        "rule        severity  matches  fired  for         furthest  condition",
        "error-rate  warning         2      2  1 h 30 min  40 %      error rate over 5m above 10 %",
        "",
        "rule        from                     until                    for  furthest",
        "error-rate  2023-11-14 20:13:20 UTC  2023-11-14 21:13:20 UTC  1 h  40 %      queue=mail",
        "error-rate  2023-11-14 20:13:20 UTC  (goes on)                2 h  40 %      queue=mail",
    ]


@pytest.mark.parametrize(
    ("told", "last"),
    [
        (a_backtest(firing_ms=0, highest=4.0, highest_text="4 %"), "0  -    4 %       error rate"),
        (a_backtest(firing_ms=0, highest=None, highest_text="unknown"), "0  -    -         error"),
        (a_backtest(trouble="stuck runs was not recorded"), "    not tested: stuck runs was not"),
        (a_backtest(a_firing(), count=120), "error-rate: 119 earlier ones are not shown"),
    ],
)
def test_what_did_not_fire_or_is_not_shown_is_said(told, last):
    assert last in backtest_table(answer(told)).splitlines()[-1]


# ---------------------------------------------------------------- hostile texts

EVIL = "\x1b[2J\x07\r\u202eevil\nname\x9b1m"
TABLES = {
    "list": (
        alerts_table,
        a_list(
            an_alert(
                id=EVIL,
                rule=EVIL,
                summary=EVIL,
                value_text=EVIL,
                clearing=True,
                silenced_by=[EVIL],
                acknowledged=Acknowledgement(who=EVIL, note=EVIL, at=T0),
                recovery=[Recovery(action=EVIL, outcome=EVIL, at=T0, text=EVIL)],
                error=AlertError(type=EVIL, message=EVIL, at=T0),
                runbook=EVIL,
            ),
            silences=[a_silence(id=EVIL, matchers={EVIL: EVIL}, reason=EVIL, who=EVIL)],
            trouble=EVIL,
        ),
    ),
    "rules": (
        rules_table,
        a_rule_list(
            a_rule(name=EVIL, condition=EVIL, trouble=EVIL),
            channels=[a_channel(name=EVIL, kind=EVIL, trouble=EVIL)],
            file=EVIL,
            trouble=EVIL,
        ),
    ),
    "history": (
        audit_table,
        AuditLog(entries=[an_entry(rule=EVIL, alert=EVIL, text=EVIL, who=EVIL)], more=False),
    ),
    "test": (
        backtest_table,
        a_backtest(
            a_firing(labels={"pipeline": EVIL}, peak_text=EVIL),
            rule=EVIL,
            condition=EVIL,
            highest_text=EVIL,
            trouble=EVIL,
            count=2,
        ),
    ),
}


@pytest.mark.parametrize(("table", "told"), TABLES.values(), ids=TABLES)
def test_no_text_moves_the_terminal(table, told):
    printed = table(answer(told))

    assert "evil name" in printed
    assert all(line.isprintable() for line in printed.splitlines())
