"""What the page shows, how it keeps up, and what it never does."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from busy import HOSTILE, HOSTILE_RUN
from visitor import Visitor

# A link, and what is seen of the view that it leads to.
EVERY_VIEW = {
    "overview": ("#/", "data-testid=total-runs"),
    "overview-range": ("#/?range=6h", "data-testid=total-runs"),
    "pipelines": ("#/pipelines", "data-testid=pipelines-table"),
    "pipeline": ("#/pipelines/import-orders", "h1:text-is('import-orders')"),
    "workers": ("#/workers", "data-testid=workers-table"),
    "runs": ("#/runs", "data-testid=runs-table"),
    "runs-failed": (
        "#/runs?status=failed&pipeline=import-orders&worker=importer",
        "data-testid=runs-table",
    ),
    "alerts": ("#/alerts", "data-testid=firing"),
    "hostile-pipeline": (f"#/pipelines/{quote(HOSTILE, safe='')}", f"h1:text-is('{HOSTILE}')"),
    "hostile-run": (f"#/runs/{quote(HOSTILE_RUN, safe='')}", "data-testid=run-detail"),
}
every_view = pytest.mark.parametrize("view", EVERY_VIEW)


def live(page: Page) -> Page:
    expect(page.get_by_test_id("connection")).to_contain_text("Live")
    return page


def shown(visitor: Visitor, view: str) -> Page:
    """This view, once it shows what it is for."""
    route, shows = EVERY_VIEW[view]
    page = live(visitor.open(route))
    expect(page.locator(shows)).to_be_visible()
    return page


def number(page: Page, name: str) -> float:
    """The first number of an element, whatever groups its digits."""
    text = page.get_by_test_id(name).inner_text()
    found = re.search(r"\d[\d., \u202f\u00a0]*", text)
    assert found, f"{name}: {text!r}"
    return float(re.sub(r"[, \u202f\u00a0]", "", found.group()))


# ---------------------------------------------------------------- numbers


def test_the_page_shows_the_numbers_that_worker_metrics_gives(busy, visit):
    page = live(visit(busy).open("#/"))
    metrics = busy.ask("worker.metrics")

    expect(page.get_by_test_id("total-runs")).to_contain_text(str(metrics["totalRuns"]))
    assert number(page, "success-rate") == pytest.approx(metrics["successRate"], abs=0.06)
    assert number(page, "error-rate") == pytest.approx(metrics["errorRate"], abs=0.06)
    for name in ("health", "runs-per-hour", "avg", "p95", "uptime"):
        expect(page.get_by_test_id(name)).to_contain_text(re.compile(r"\w"))


def test_the_page_moves_when_runs_arrive(quiet, client, visit):
    client.record_run(5, True)
    assert client.flush()
    page = live(visit(quiet).open("#/"))
    expect(page.get_by_test_id("total-runs")).to_contain_text(re.compile(r"\b1\b"))

    for _ in range(41):
        client.record_run(5, True)

    assert client.flush()
    expect(page.get_by_test_id("total-runs")).to_contain_text(re.compile(r"\b42\b"))


def test_a_run_appears_as_it_ends(quiet, client, visit):
    page = live(visit(quiet).open("#/runs"))

    client.record_run(5, False, pipeline="just-now", error=ValueError("no such customer"))

    assert client.flush()
    expect(page.get_by_test_id("runs-table")).to_contain_text("just-now")


def test_the_page_survives_a_restart_of_the_service(quiet, client, visit):
    client.record_run(5, True)
    assert client.flush()
    visitor = visit(quiet)
    page = live(visitor.open("#/"))

    quiet.stop()
    expect(page.get_by_test_id("connection")).to_contain_text("Connection lost")
    quiet.start()
    client.record_run(5, True)

    live(page)
    expect(page.get_by_test_id("total-runs")).to_contain_text(re.compile(r"\b2\b"))
    # The browser's own words for a service that is away.
    visitor.forgive("ERR_CONNECTION", "WebSocket connection to")


# ---------------------------------------------------------------- views


@every_view
def test_every_view_opens_from_its_link(busy, visit, view):
    route, shows = EVERY_VIEW[view]
    page = live(visit(busy).open(route))

    expect(page.locator(shows)).to_be_visible()
    assert page.url.endswith(route)


def test_a_filter_shows_what_it_names_and_nothing_else(busy, visit):
    page = live(visit(busy).open("#/runs?status=failed&pipeline=nightly-report"))
    table = page.get_by_test_id("runs-table")

    expect(table).to_contain_text("nightly-report")
    expect(table).not_to_contain_text("import-orders")


def test_a_pipeline_says_what_fails_and_where(busy, visit):
    page = live(visit(busy).open("#/pipelines/import-orders"))
    body = page.locator("main")

    for told in ("KeyError", "customer", "download", "1.4.0", "1.5.0"):
        expect(body).to_contain_text(told)


def test_the_overview_says_which_pipeline_fails_most_and_why(busy, visit):
    page = live(visit(busy).open("#/"))

    for told in ("import-orders", "KeyError"):
        expect(page.locator("main")).to_contain_text(told)


def test_where_no_worker_is_connected_the_page_says_what_to_add(quiet, visit):
    page = live(visit(quiet).open("#/"))

    expect(page.locator("main")).to_contain_text("from orbit_worker import track")


# ---------------------------------------------------------------- names


@every_view
def test_a_hostile_name_is_text(busy, visit, view):
    """That nothing was run, asked for or said is looked at for every visitor."""
    page = shown(visit(busy), view)

    expect(page.locator("img[src=x], [onerror]")).to_have_count(0)


def test_a_hostile_name_can_be_read_and_followed(busy, visit):
    page = live(visit(busy).open("#/pipelines"))

    page.get_by_test_id("pipelines-table").get_by_role("link", name=HOSTILE).first.click()

    expect(page.get_by_role("heading", name=HOSTILE)).to_be_visible()


# ---------------------------------------------------------------- who may look


def test_where_a_token_is_set_the_page_asks_for_it(locked, token, visit):
    visitor = visit(locked)
    page = visitor.open("#/workers")
    form = page.get_by_test_id("token-form")
    expect(form).to_be_visible()

    form.locator("input").fill("wrong")
    form.locator("input").press("Enter")
    expect(form).to_be_visible()
    form.locator("input").fill(token)
    form.locator("input").press("Enter")

    live(page)
    expect(form).to_be_hidden()
    assert page.url.endswith("#/workers")
    assert token not in page.url
    visitor.forgive("401", "WebSocket connection to")  # the browser's words for it


# ---------------------------------------------------------------- for everybody

THEMES = ["light", "dark"]
WIDTHS = [360, 900, 1600]


@every_view
def test_axe_finds_nothing_serious(busy, axe_source, visit, view):
    visitor = visit(busy)
    visitor.context.add_init_script(axe_source)
    page = shown(visitor, view)

    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        assert visitor.serious(page) == [], theme


@every_view
def test_the_page_is_never_wider_than_its_window(busy, shoot, visit, view):
    page = shown(visit(busy), view)

    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            shoot(page, f"{view}-{width}-{theme}")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
