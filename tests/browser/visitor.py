"""Somebody who looks at the page, in a real Chromium."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import BrowserContext, Page

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WATCH = """
addEventListener("securitypolicyviolation", (event) =>
    console.error(`policy: ${event.violatedDirective} stopped ${event.blockedURI}`));
"""


class Visitor:
    """Somebody who looks at the page of a service, and notes whatever a page should not do."""

    def __init__(self, context: BrowserContext, base: str) -> None:
        self.base = base
        self.context = context
        self.faults: list[str] = []
        self._forgiven: tuple[str, ...] = ()
        context.add_init_script(WATCH)
        context.on("console", self._heard)
        context.on("request", self._asked)
        context.on("dialog", self._stopped)
        context.on("weberror", lambda error: self._note(f"raised: {error.error}"))

    def open(self, route: str = "#/") -> Page:
        page = self.context.new_page()
        # The log of the service has whoever opens a socket; the page has nobody else.
        page.on("websocket", lambda socket: self._reached(socket.url))
        page.goto(self.base + route)
        return page

    def forgive(self, *parts: str) -> None:
        """Forget the faults that hold one of these, and those that are still on their way."""
        self._forgiven += parts
        noted, self.faults = self.faults, []
        for fault in noted:
            self._note(fault)

    def _note(self, fault: str) -> None:
        if not any(part in fault for part in self._forgiven):
            self.faults.append(fault)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            where = message.location.get("url", "")
            self._note(f"{message.type}: {message.text} ({where})")

    def _asked(self, request: Any) -> None:
        self._reached(request.url)

    def _reached(self, url: str) -> None:
        ours = (self.base, self.base.replace("http:", "ws:", 1), "data:")
        if not url.startswith(ours):
            self._note(f"reached out to {url}")

    def _stopped(self, dialog: Any) -> None:
        self._note(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def serious(self, page: Page) -> list[str]:
        """What axe-core, which has to be in the context, finds serious or critical."""
        found = page.evaluate("() => axe.run()")
        return [
            f"{violation['id']} at {node['target']}: {node['failureSummary']}"
            for violation in found["violations"]
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]
