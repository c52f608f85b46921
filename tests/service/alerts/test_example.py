"""The file of rules that is shipped holds as it is, and so does what is switched off in it."""

from __future__ import annotations

import re

import pytest

from orbit_service.alerts import EXAMPLE
from orbit_service.alerts.metrics import METRICS
from orbit_service.alerts.rules import LOG, RuleFile, parse_rules, read_rules

SWITCHED_OFF = re.compile(r"^#(?=\S)", re.MULTILINE)
ADDRESSES = {
    "MAIL_URL": "mailtos://user:password@mail.example.com?to=team@example.com",
    "SLACK_URL": "slack://TOKEN_A/TOKEN_B/TOKEN_C/#alerts",
    "HOOK_URL": "jsons://hooks.example.com/orbit",
}


@pytest.fixture
def as_it_is() -> RuleFile:
    return read_rules(EXAMPLE, {})


@pytest.fixture
def all_on() -> RuleFile:
    return parse_rules(SWITCHED_OFF.sub("", EXAMPLE.read_text()), EXAMPLE, ADDRESSES)


def test_it_needs_nothing_but_the_log(as_it_is):
    assert [channel.address for channel in as_it_is.channels.values()] == [LOG]
    assert all(as_it_is.channels_of(rule) for rule in as_it_is.rules)


def test_it_does_nothing_by_itself(as_it_is):
    assert as_it_is.recovery.dry_run
    assert [a.dry_run for rule in as_it_is.rules for a in rule.actions] == [None]


def test_it_begins_with_one_run_in_ten(as_it_is):
    rule = as_it_is.rules[0]

    assert (rule.metric, rule.threshold, rule.cleared, rule.least_runs) == ("error_rate", 10, 5, 10)
    assert rule.dimensions == ("pipeline",)


def test_what_is_switched_off_holds_too(as_it_is, all_on):
    assert all_on.channels.keys() - as_it_is.channels.keys() == {"mail", "slack", "webhook"}
    assert all_on.by_name.keys() - as_it_is.by_name.keys() == {"nightly-export", "mailer-missing"}
    assert all_on.page is not None


def test_it_shows_most_of_what_can_be_looked_at(all_on):
    kin = {"avg", "p50", "p99", "wait_p95", "retries", "runs_per_hour"}  # of what is shown
    assert {rule.metric for rule in all_on.rules} == METRICS.keys() - kin
