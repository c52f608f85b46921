"""The loop that docs/integrations.md shows, as it stands there, under a service."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders import environment, until
from orbit_worker.pipelines.worker import RESTART_CODE

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    [code] = [block for block in blocks if "on_control" in block]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code], env=environment(tmp_path)
    )
    yield process
    process.kill()
    process.wait()


def test_the_documented_loop_obeys_and_leaves_to_be_started_again(service, loop):
    def outcome(*command: str) -> str:
        [said] = until(lambda: service.control("orders", *command).result(30).values())
        return said

    assert [outcome("pause"), outcome("resume", "orders")] == ["done", "done"]
    assert [outcome("dance"), outcome("pause", "mail")] == ["unknown", "refused"]
    assert outcome("restart") == "done"
    assert loop.wait(20) == RESTART_CODE
