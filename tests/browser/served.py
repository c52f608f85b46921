"""
A service for the page, in a process of its own.

Within Playwright greenlets switch stacks; with a service in another thread, whose garbage
collection looks at them, the process of the tests has crashed.
"""

from __future__ import annotations

import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from builders import ENTRY, environment, until
from orbit_rpc_schema.caller import CallFailed, call


class Served:
    """A service, or what else `arguments` start, under these settings."""

    def __init__(self, folder: Path, *arguments: str, **settings: str) -> None:
        self.socket = folder / "worker.sock"
        self.address = ""  # of HTTP
        self._folder = folder
        self._arguments = arguments
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "service.log").open("a") as log:
            self._process = subprocess.Popen(
                [*ENTRY, "serve", *self._arguments],
                env=environment(self._folder, **self._settings),
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        self.address = self._settings.get("ORBIT_HTTP") or until(self._told_address)
        until(self._is_ready)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def ask(self, method: str, params: Any = ()) -> Any:
        """The result of one call over the socket."""
        return call(self.socket, method, params)

    def _told_address(self) -> str | None:
        with suppress(OSError, CallFailed):
            return str(self.ask("service.info")["http"])
        return None

    def _is_ready(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://{self.address}/readyz") as answer:
            return bool(answer.status == 200)
        return False
