"""Programs in Node, each in a folder of its own that has the packages of `make .clients/ready`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from builders import T0
from conftest import RunningService
from orbit_worker.client import MetricsClient

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGES = ROOT / ".clients"  # a folder for each major version of tRPC


class Node:
    """A folder in which programs find the packages of tRPC 10 or 11."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder = folder
        self.version = version
        folder.mkdir()
        (folder / "node_modules").symlink_to(PACKAGES / version / "node_modules")
        (folder / "package.json").write_text('{"type": "module"}')

    def bring(self, file: Path) -> None:
        shutil.copy(file, self.folder)

    def ask(self, link: str, form: str, url: str, token: str, calls: Sequence[Any]) -> Any:
        """What ask.mjs prints of these calls."""
        self.bring(HERE / "ask.mjs")
        command = ("node", "ask.mjs", self.version, link, form, url, token)
        return json.loads(self.run(*command, stdin=json.dumps(calls)))

    def run(
        self, *command: str, stdin: str = "", pass_fds: Sequence[int] = (), **environ: str
    ) -> str:
        """What a program prints; it has to end well."""
        ended = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **environ},
            input=stdin,
            pass_fds=pass_fds,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def tsc(self, *arguments: str) -> str:
        return self.run("node", "node_modules/typescript/bin/tsc", *arguments)


@pytest.fixture
def needs_node() -> None:
    _needs(shutil.which("node"), "node")


@pytest.fixture
def node_of(needs_node: None, tmp_path: Path) -> Callable[[str], Node]:
    """A Node with the packages of this major version of tRPC."""
    _needs((PACKAGES / "ready").exists(), "what `make .clients/ready` brings")
    return lambda version: Node(tmp_path / f"node-{version}", version)


def _needs(there: object, what: str) -> None:
    if not there:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not to be had here: {what}")


@pytest.fixture
def node(node_of: Callable[[str], Node]) -> Node:
    return node_of("11")


@pytest.fixture
def token() -> str:
    return "correct-horse"


@pytest.fixture
def service(tmp_path: Path, token: str) -> Iterator[RunningService]:
    """A service whose clock stands at T0, with the token."""
    running = RunningService(tmp_path / "worker.sock", lambda: T0, ORBIT_TOKEN=token)
    running.start()
    yield running
    running.close()


@pytest.fixture
def recorded(service: RunningService, client: MetricsClient) -> None:
    """A run that ended well, and one that failed."""
    client.record_run(1250, True, pipeline="orders")
    client.record_run(40, False, pipeline="orders", error=ValueError("no"))
    assert client.flush(5)
