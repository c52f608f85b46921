"""
The ecosystem file under a real PM2: one service, and a worker of four processes.

The worker notes each run in a file before it records it, so that a loss shows and
so does a run that is counted twice. Every run that was noted was counted once, over
`pm2 restart all` and `pm2 stop all`, by PM2 7.0.4 on Node 20; its dependencies are
whatever npm brings.

Not shown: `pm2 startup` and `pm2 save`, which bring all this back with the machine;
a worker that does not heed SIGINT, which PM2 kills; a worker of other frameworks.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders import environment, until
from processes import House

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / ".pm2" / "node_modules" / ".bin"
PROCESSES = 4

# It ends between two runs, so that what is noted is also recorded.
WORKER = """
import os, signal, threading
from orbit_worker import record_run

told = threading.Event()
signal.signal(signal.SIGINT, lambda *_: told.set())
with open("noted-" + os.environ["NODE_APP_INSTANCE"], "a", buffering=1) as notes:
    while not told.wait(0.005):
        print("a run", file=notes)
        record_run(1, True)
print("left between two runs")
"""


def test_four_processes_are_one_worker(pm2: Pm2) -> None:
    pm2("start", "ecosystem.config.cjs")
    until(pm2.all_processes_record)

    assert pm2.statuses() == {("orbit-metrics", "online"): 1, ("worker", "online"): PROCESSES}
    assert pm2.ask("worker.metrics")["workersConnected"] == 1
    (worker,) = pm2.ask("worker.list")
    assert (worker["name"], worker["sessions"]) == ("worker", PROCESSES)
    assert "workers at" in pm2("logs", "orbit-metrics", "--nostream")


def test_a_restart_of_all_loses_no_run_and_counts_none_twice(pm2: Pm2) -> None:
    pm2("start", "ecosystem.config.cjs")
    until(pm2.all_processes_record)
    first = pm2.service()

    pm2("restart", "all")
    until(lambda: pm2.service() not in (None, first))
    until(pm2.all_processes_record)
    pm2("stop", "worker")

    books = pm2.ask("service.ledger")
    assert len(books["sessions"]) == 2 * PROCESSES
    assert books["total"]["recorded"] == books["total"]["counted"] == pm2.noted()
    assert pm2.in_the_history() == pm2.noted()
    assert not pm2.killed()


def test_at_a_stop_of_all_the_service_ends_last_and_has_every_run(pm2: Pm2) -> None:
    pm2("start", "ecosystem.config.cjs")
    until(pm2.all_processes_record)

    pm2("stop", "all")

    assert pm2.statuses() == {("orbit-metrics", "stopped"): 1, ("worker", "stopped"): PROCESSES}
    assert pm2.ended() == ["worker"] * PROCESSES + ["orbit-metrics"]
    assert not pm2.killed()
    pm2("start", "orbit-metrics")
    until(pm2.service)
    assert pm2.in_the_history() == pm2.noted()


@pytest.fixture
def pm2(tmp_path: Path) -> Iterator[Pm2]:
    pm2 = Pm2(tmp_path)
    yield pm2
    pm2("kill")


class Pm2:
    """A PM2 of its own, at home in `folder`, and an app with the shipped file in it."""

    def __init__(self, folder: Path) -> None:
        self._program = _program()
        self._app, self._home = folder / "app", folder / "pm2"
        self._environment = {
            **environment(folder, HOME=str(folder), PM2_HOME=str(self._home)),
            "PM2_DISABLE_VERSION_CHECK": "1",
        }
        # What the file says by itself is what is to be shown.
        for name in ("ORBIT_SOCKET", "VIRTUAL_ENV"):
            self._environment.pop(name, None)
        self.ask = House(folder / ".orbit-metrics").ask
        self._app.mkdir()
        (self._app / ".venv").symlink_to(sys.prefix)
        (self._app / "worker.py").write_text(WORKER)
        shutil.copy(ROOT / "deploy/pm2/ecosystem.config.cjs", self._app)

    def __call__(self, *arguments: str) -> str:
        """Run `pm2 ...` to its end; what it says."""
        said = subprocess.run(
            [self._program, *arguments, "--no-color"],
            env=self._environment,
            cwd=self._app,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        assert said.returncode == 0, said.stdout
        return said.stdout

    def statuses(self) -> Counter[tuple[str, str]]:
        listed = json.loads(self("jlist"))
        return Counter((process["name"], process["pm2_env"]["status"]) for process in listed)

    def ended(self) -> list[str]:
        """The names of processes in the order in which they ended."""
        return re.findall(r"App \[(.+):\d+\] exited", self._log())

    def killed(self) -> bool:
        """Whether a process outlived its time."""
        return "SIGKILL" in self._log()

    def _log(self) -> str:
        return (self._home / "pm2.log").read_text()

    def service(self) -> int | None:
        """The pid of the service that answers."""
        info = self.ask("service.info")
        return info and info["pid"]

    def all_processes_record(self) -> bool:
        """Whether the service that runs now has heard of runs of each process."""
        info, books = self.ask("service.info"), self.ask("service.ledger")
        if info is None or books is None:
            return False
        # A service that has just started counts those of before as connected for a while.
        heard = [
            s for s in books["sessions"] if s["connected"] and s["lastSeen"] > info["startedAt"]
        ]
        return sum(session["counted"] > 0 for session in heard) == PROCESSES

    def in_the_history(self) -> int:
        return int(self.ask("worker.metrics", window="1h")["totalRuns"])

    def noted(self) -> int:
        """Runs that the processes noted; each has noted some."""
        notes = [path.read_text().count("\n") for path in self._app.glob("noted-*")]
        assert len(notes) == PROCESSES
        return sum(notes)


def _program() -> str:
    """The path of PM2; without it the test is skipped, but in CI."""
    found = shutil.which("pm2", path=f"{INSTALLED}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        said = "pm2 is not installed; `make .pm2/ready` brings it, and needs Node with npm"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(said)
    return found
