"""Alerts through kills: of a node at each point of their way, and of the hub that evaluates."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders import until
from processes import House
from receivers import Hook

HERE = Path(__file__).parent
# Those of killed_alerting.py, which is not imported: it is about the process that it is in.
POINTS = (
    "before_the_firing_is_written",
    "after_the_firing_is_written",
    "before_it_is_sent",
    "after_it_is_sent",
    "before_it_is_marked_as_sent",
    "after_it_is_marked_as_sent",
    "before_the_action_is_performed",
    "after_the_action_is_performed",
    "before_the_action_is_marked_as_done",
)
SENT_AND_NOT_KNOWN = ("after_it_is_sent", "before_it_is_marked_as_sent")
# Of these it is not known that nothing was done, and so it is not done before the cool-down.
BEGUN_AND_NOT_DONE = ("after_the_firing_is_written", "before_the_action_is_performed")
RULES = """
[recovery]
dry_run = false

[channels.hook]
url = "json://{hook}"

[[rules]]
name = "failures"
metric = "failures"
above = 2

[[rules.actions]]
kind = "command"
command = ["/bin/sh", "-c", "echo acted >> {acted}"]
cooldown = "1h"
"""


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.close()


class Watching(House):
    """A house whose service watches by rules, and may be doomed."""

    def __init__(self, folder: Path, hook: Hook) -> None:
        rules = folder / "alerts.toml"
        super().__init__(folder, ORBIT_ALERTS=str(rules))
        self.rules = rules
        self.acted = folder / "acted"
        rules.write_text(RULES.format(hook=hook.address, acted=self.acted))

    def start(self, point: str = POINTS[0], times: int = 0) -> subprocess.Popen[str]:
        with (self.rules.parent / "service.log").open("a") as log:
            program = [sys.executable, str(HERE / "killed_alerting.py"), point, str(times)]
            return self._start(program, log=log)

    def audit(self) -> Counter[str]:
        """How often each thing happened."""
        answer = self.ask("alerts.history", limit=1_000) or {"entries": []}
        return Counter(e["details"].get("outcome", e["kind"]) for e in answer["entries"])

    def looked(self, times: int = 2) -> None:
        """Wait until the rules were looked at so often."""
        seen: set[int | None] = set()
        until(lambda: seen.add(self.evaluated_at()) or len(seen - {None}) > times)

    def evaluated_at(self) -> int | None:
        return (self.ask("alerts.list") or {}).get("evaluatedAt")


@pytest.fixture
def watching(tmp_path: Path, hook: Hook) -> Iterator[Watching]:
    house = Watching(tmp_path, hook)
    yield house
    house.close()


FAILING = """
for _ in range(3): record_run(5, False)
flush(30); step()
"""


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_loses_no_message_and_repeats_neither_a_firing_nor_an_action(
    watching, hook, point
):
    watching.worker(FAILING)
    doomed = watching.start(point, 1)
    assert doomed.wait(60) == -signal.SIGKILL
    service = watching.start()

    until(lambda: watching.audit()["notified"] == 1)
    until(lambda: watching.audit()["done"] or watching.audit()["unknown"])
    for again in (False, True):
        if again:
            service.kill()
            service.wait()
            watching.start()
        watching.looked()
        audit = watching.audit()
        assert (audit["firing"], audit["notified"], audit["resolved"]) == (1, 1, 0)
        assert (audit["started"], audit["done"] + audit["unknown"]) == (1, 1)
        assert hook.sayings() == ["firing failures"]
        performed = watching.acted.read_text() if watching.acted.exists() else ""
        assert performed == ("" if point in BEGUN_AND_NOT_DONE else "acted\n")
    if point in SENT_AND_NOT_KNOWN:
        assert [body["key"] for body in hook.bodies] == 2 * [hook.bodies[0]["key"]]


def test_a_stop_loses_and_repeats_nothing_either(watching, hook):
    watching.worker(FAILING)
    service = watching.start()
    until(lambda: watching.audit()["done"] and watching.audit()["notified"])
    service.send_signal(signal.SIGTERM)
    assert service.wait(20) == 0
    watching.start()
    watching.looked()

    audit = watching.audit()
    assert (audit["firing"], audit["notified"], audit["done"], audit["unknown"]) == (1, 1, 1, 0)
    assert len(hook.bodies) == 1


def test_sighup_takes_a_new_file_and_a_bad_one_changes_nothing(watching, hook):
    watching.worker(FAILING)
    service = watching.start()
    until(lambda: watching.audit()["notified"])
    good = watching.rules.read_text()
    watching.rules.write_text("no rules = at all")
    service.send_signal(signal.SIGHUP)
    until(lambda: "file of rules" in (watching.ask("worker.health") or {"message": ""})["message"])
    assert len(watching.ask("alerts.list")["alerts"]) == 1
    watching.rules.write_text(good + '[[rules]]\nname = "more"\nmetric = "failures"\nabove = 1\n')
    service.send_signal(signal.SIGHUP)

    until(lambda: hook.sayings() == ["firing failures", "firing more"])
    assert watching.audit()["resolved"] == 0
    assert watching.ask("alerts.list")["trouble"] is None
