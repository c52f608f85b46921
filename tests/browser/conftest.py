"""
The page in a real Chromium, against a real service.

Under the page's policy nothing may be evaluated in it later: tests wait for what is shown, and
never for a function of their own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from builders import a_port, until
from busy import FIRING, PENDING, RULES, RUNS, do_a_bit_of_everything
from orbit_service.transport.pages import FOLDER
from served import Served
from visitor import FLAGS, Visitor

AXE = FOLDER.parent / "node_modules" / "axe-core" / "axe.min.js"
SHOTS = Path(__file__).parent / "shots"
TOKEN = "correct-horse"

expect.set_options(timeout=60_000)  # of a machine that does much else


def _needed(**needs: bool) -> None:
    if missing := [what for what, there in needs.items() if not there]:
        said = f"not to be had here: {', '.join(missing)}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(said)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Gone when its module is over: the loop within Playwright would stop every async test."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    _needed(**{"chromium": path is not None, "the page (`make page`)": FOLDER.exists()})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Visitor]]:
    """A visitor to a service, in a fresh profile, who sees nothing that a page should not do.

    Asked for last, so that the visitor leaves before the service does.
    """
    visitors: list[Visitor] = []

    def visit(service: Served, **options: Any) -> Visitor:
        context = chromium.new_context(locale="en-GB", timezone_id="Europe/Berlin", **options)
        visitors.append(Visitor(context, f"http://{service.address}/"))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        visitor.context.close()
    assert [fault for visitor in visitors for fault in visitor.faults] == []


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that has seen a bit of everything; tests may only look at it."""
    folder = tmp_path_factory.mktemp("busy")
    (folder / "alerts.toml").write_text(RULES)
    running = Served(folder, ORBIT_ALERTS=str(folder / "alerts.toml"))
    running.start()
    workers = list(do_a_bit_of_everything(running.socket))
    until(lambda: running.ask("worker.stats")["runsLast24Hours"] == RUNS)
    # Their windows have to close first.
    until(lambda: len(running.ask("alerts.list")["alerts"]) == FIRING + PENDING, seconds=60)
    yield running
    for worker in workers:
        worker.close(timeout=1.0)
    running.stop()


@pytest.fixture
def address() -> Iterator[str]:
    """Where nobody listens."""
    with a_port() as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def quiet(tmp_path: Path, address: str) -> Iterator[Served]:
    """A service of the test's own that nobody has told anything; it comes back where it was."""
    running = Served(tmp_path, ORBIT_HTTP=address)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Served]:
    """A service that wants TOKEN."""
    running = Served(tmp_path, ORBIT_TOKEN=TOKEN)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def token() -> str:
    return TOKEN


@pytest.fixture
def axe_source() -> str:
    """axe-core, which a visitor brings along: the page's policy would not load it."""
    _needed(**{"axe-core (`make check` brings it)": AXE.exists()})
    return AXE.read_text()


@pytest.fixture
def shoot() -> Callable[[Page, str], None]:
    """Keep a picture of the whole page, to be looked at."""
    SHOTS.mkdir(exist_ok=True)
    return lambda page, name: page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
