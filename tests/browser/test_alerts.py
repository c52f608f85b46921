"""What the page shows of alerts, and what can be done about them there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from builders import until
from busy import FIRING, HOSTILE
from served import Served

RULES = """
[channels.log]
url = "log://"

[[rules]]
name = "in-flight"
metric = "oldest_in_flight"
above = 0
severity = "critical"
labels = { team = "platform" }
"""
MISSING = """
[[rules]]
name = "missing"
metric = "since_connected"
worker = "mailer"
above = 0
"""
ODD = "import [daily]*"  # a name that as a pattern is another


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Served]:
    """A service of the test's own, whose rule fires while a run is in flight."""
    rules = tmp_path / "alerts.toml"
    rules.write_text(RULES)
    running = Served(tmp_path, ORBIT_ALERTS=str(rules))
    running.start()
    until(lambda: running.ask("alerts.rules")["rules"])
    yield running
    running.stop()


@pytest.fixture
def alarm(watched, client) -> str:
    """The id of an alert that fires."""
    client.start_run("slow-1", pipeline=ODD)
    assert client.flush()
    (alert,) = until(lambda: watched.ask("alerts.list", {"phase": "firing"})["alerts"])
    return str(alert["id"])


def card(page: Page, alert: str) -> Locator:
    return page.locator(f"[data-alert='{alert}']")


def badge(page: Page) -> Locator:
    return page.get_by_test_id("alerts-badge")


def marks(page: Page) -> Locator:
    """What the first chart says of alerts to those who do not see it."""
    return page.locator("figure.chart .unseen").first


# ---------------------------------------------------------------- what fires


@pytest.mark.parametrize("view", ["#/", "#/workers", "#/runs", "#/alerts"])
def test_the_navigation_says_how_many_fire(busy, visit, view):
    page = visit(busy).open(view)

    expect(page.get_by_role("link", name=f"Alerts {FIRING} fire")).to_be_visible()


def test_the_number_follows_what_fires(watched, client, alarm, visit):
    page = visit(watched).open("#/workers")
    expect(badge(page)).to_have_text("1 fires")

    client.record_run(5, True, pipeline=ODD, id="slow-1")
    assert client.flush()

    expect(badge(page)).to_have_count(0)


def test_without_a_stream_the_number_is_asked_for(watched, client, visit):
    visitor = visit(watched)
    visitor.context.route_web_socket(re.compile("/ws$"), lambda socket: socket.close())
    page = visitor.open("#/workers")
    expect(page.get_by_test_id("connection")).to_contain_text("Every 3 s")

    client.start_run("slow-1", pipeline=ODD)
    assert client.flush()

    expect(badge(page)).to_have_text("1 fires")


def test_the_overview_leads_to_the_worst(watched, alarm, visit):
    page = visit(watched).open("#/")

    page.get_by_test_id("fires").get_by_role("link").first.click()

    expect(card(page, alarm)).to_have_attribute("aria-current", "true")
    assert page.url.endswith(f"#/alerts/{alarm}")


def test_the_link_of_a_message_opens_its_alert(watched, alarm, visit):
    page = visit(watched).open(f"#/alerts/{alarm}")

    expect(card(page, alarm)).to_be_focused()
    expect(page.get_by_test_id("audit")).to_contain_text("What happened to this alert")


def test_the_link_of_an_alert_that_is_over_tells_what_became_of_it(watched, client, alarm, visit):
    client.record_run(5, True, pipeline=ODD, id="slow-1")
    until(lambda: watched.ask("alerts.list")["alerts"] == [])

    page = visit(watched).open(f"#/alerts/{alarm}")

    expect(page.get_by_test_id("no-such-alert")).to_contain_text("does not fire now")
    expect(page.get_by_test_id("audit-table")).to_contain_text("Resolved")


def test_an_alert_tells_what_is_wrong_since_when_and_why(busy, visit):
    page = visit(busy).open("#/alerts")
    first = page.get_by_test_id("firing").get_by_role("listitem").filter(has_text="import-orders")

    for told in ("Critical", "against 10 %", "error-rate", "KeyError", "for "):
        expect(first).to_contain_text(told)
    expect(page.get_by_test_id("pending")).to_contain_text("nightly-report")


def test_only_a_runbook_on_the_web_is_a_link(busy, visit):
    page = visit(busy).open("#/alerts")
    expect(page.get_by_test_id("pending")).to_contain_text("javascript:alert(1)")

    runbooks = page.get_by_test_id("firing").get_by_role("link", name="Runbook").all()

    assert {link.get_attribute("href") for link in runbooks} == {"https://wiki.example.com/errors"}
    expect(page.locator("a[href^='javascript']")).to_have_count(0)


# ---------------------------------------------------------------- what is done about it


def test_an_alert_is_acknowledged_by_somebody(watched, alarm, visit):
    page = visit(watched).open("#/alerts")

    card(page, alarm).get_by_role("button", name="Acknowledge").click()
    page.get_by_label("Note").fill("on it")
    page.get_by_label("Who you are").fill("ada")
    page.get_by_role("dialog").get_by_role("button", name="Acknowledge").click()

    expect(card(page, alarm)).to_contain_text("Acknowledged by ada")
    expect(card(page, alarm)).to_contain_text("on it")
    expect(card(page, alarm).get_by_role("button", name="Acknowledge")).to_have_count(0)


def test_an_alert_is_silenced_until_somebody_ends_it(watched, alarm, visit):
    page = visit(watched).open("#/alerts")

    card(page, alarm).get_by_role("button", name="Silence").click()
    page.get_by_label("Why").fill("a deploy")
    page.get_by_label("For how long").select_option("4 hours")
    page.get_by_label("Who you are").fill("ada")
    page.get_by_label("Who you are").press("Enter")
    expect(card(page, alarm)).to_contain_text("Silenced by ada")
    (silence,) = watched.ask("alerts.list")["silences"]
    page.get_by_test_id("silences").get_by_role("button", name="End").click()
    expect(page.get_by_label("Who you are")).to_have_value("ada")  # as this browser remembers
    page.get_by_role("dialog").get_by_role("button", name="End").click()

    assert silence["matchers"] == {"rule": "in-flight", "pipeline": "import [[]daily][*]"}
    assert silence["until"] - silence["from"] == 4 * 3_600_000
    expect(page.get_by_test_id("silences")).to_contain_text("Nothing is silenced")
    expect(card(page, alarm)).not_to_contain_text("Silenced")


def test_what_the_service_refuses_is_said_in_the_dialog(watched, client, alarm, visit):
    page = visit(watched).open("#/alerts")
    card(page, alarm).get_by_role("button", name="Silence").click()

    for label in ("rule", "pipeline"):
        page.get_by_label(label, exact=True).fill("")
    page.get_by_label("Why").fill("everything")
    page.get_by_label("Who you are").fill("ada")
    page.get_by_label("Who you are").press("Enter")

    expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text(
        "all of these are empty"
    )


@pytest.mark.parametrize("button", ["Silence…", "Acknowledge"])
def test_axe_finds_nothing_serious_in_a_dialog(busy, axe_source, visit, button):
    visitor = visit(busy)
    visitor.context.add_init_script(axe_source)
    page = visitor.open("#/alerts")

    page.get_by_role("button", name=button).first.click()

    expect(page.get_by_role("dialog")).to_be_visible()
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        assert visitor.serious(page) == [], theme


# ---------------------------------------------------------------- rules, and what happened


def test_rules_and_channels_are_told_with_what_they_do(busy, visit):
    page = visit(busy).open("#/alerts")

    for told in ("error rate over 1h above 10 %", "slow-runs"):
        expect(page.get_by_test_id("rules")).to_contain_text(told)
    expect(page.get_by_test_id("channels")).to_contain_text("log")


def test_the_audit_shows_what_it_is_asked_for_and_nothing_else(watched, alarm, visit):
    watched.ask("alerts.acknowledge", {"alert": alarm, "who": "ada", "note": "looking"})
    page = visit(watched).open("#/alerts")
    table = page.get_by_test_id("audit-table")
    expect(table).to_contain_text("Firing")

    page.get_by_label("Show").select_option("Acknowledged")

    expect(table.get_by_role("row")).to_have_count(2)  # and the header
    expect(table).to_contain_text("looking")
    assert page.url.endswith("#/alerts?kind=acknowledged")


def test_without_rules_the_page_says_how_to_have_some(quiet, visit):
    page = visit(quiet).open("#/alerts")

    expect(page.get_by_test_id("no-rules")).to_contain_text("ORBIT_ALERTS")
    expect(page.get_by_test_id("rules")).to_be_hidden()


def test_trouble_with_the_file_of_rules_is_said_first(watched, tmp_path, visit):
    (tmp_path / "alerts.toml").write_text("[[rules]]\nname = 'half")
    with pytest.raises(Exception, match="rules"):
        watched.ask("alerts.reload")

    page = visit(watched).open("#/alerts")

    expect(page.get_by_test_id("alerts-trouble")).to_contain_text("alerts.toml")
    expect(page.get_by_test_id("rules")).to_contain_text("in-flight")


@pytest.fixture
def hub(tmp_path: Path, postgres_url: str, address: str) -> Iterator[Served]:
    """A hub that misses a worker."""
    rules = tmp_path / "alerts.toml"
    rules.write_text(MISSING)
    running = Served(
        tmp_path,
        "--hub",
        ORBIT_HTTP=address,
        ORBIT_HISTORY_URL=postgres_url,
        ORBIT_ALERTS=str(rules),
    )
    running.start()
    yield running
    running.stop()


def test_a_hub_shows_what_fires_and_takes_what_is_done_about_it(hub, visit):
    page = visit(hub).open("#/alerts")

    expect(page.get_by_test_id("firing")).to_contain_text("mailer")
    expect(badge(page)).to_have_text("1 fires")
    page.get_by_role("button", name="Acknowledge").click()
    page.get_by_label("Who you are").fill("ada")
    page.get_by_label("Who you are").press("Enter")
    expect(page.get_by_test_id("firing")).to_contain_text("Acknowledged by ada")
    expect(page.get_by_test_id("audit-table")).to_contain_text("Acknowledged")


# ---------------------------------------------------------------- charts


def test_charts_say_which_alerts_fired_and_when(busy, visit):
    page = visit(busy).open("#/")

    expect(marks(page)).to_contain_text(f"{FIRING} alerts fired: ")


def test_the_charts_of_a_pipeline_say_its_own_alerts(busy, visit):
    visitor = visit(busy)

    expect(marks(visitor.open("#/pipelines/import-orders"))).to_contain_text(
        "1 alert fired: import-orders"
    )
    well = marks(visitor.open("#/pipelines/send-mail"))
    expect(well).to_contain_text("0 of them failed")
    expect(well).not_to_contain_text("fired")


def test_a_hostile_name_can_be_read_in_an_alert(busy, visit):
    page = visit(busy).open("#/alerts")

    expect(page.get_by_test_id("firing")).to_contain_text(HOSTILE)
