"""Alerts through kills: of a node at each point of their way, and of the hub that evaluates."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from builders import environment, until
from orbit_service.alerting import runner
from orbit_service.alerts import store
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


def test_with_a_full_disk_people_are_told_and_nothing_is_done_until_it_can_be_written(
    watching, hook
):
    rules = watching.rules.read_text().replace('"1h"', '"1s"\nmax_tries = 100')
    watching.rules.write_text(rules)
    service = watching.start()
    watching.looked()
    before = resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (4_096, resource.RLIM_INFINITY))
    watching.worker("for _ in range(3): record_run(5, False)\nflush(0.1); step()")
    until(lambda: hook.sayings() == ["firing failures"])
    assert "they are kept in memory" in watching.ask("alerts.list")["trouble"]
    assert "they are kept in memory" in watching.ask("worker.health")["message"]
    assert not watching.acted.exists()
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, before)

    until(lambda: watching.audit()["done"])
    assert watching.ask("alerts.list")["trouble"] is None
    service.kill()
    service.wait()
    watching.start()
    watching.looked()
    audit = watching.audit()
    assert (audit["firing"], audit["notified"], audit["resolved"]) == (1, 1, 0)
    assert len(hook.bodies) == 1


# ---------------------------------------------------------------- several hubs

FLEET = """
[channels.hook]
url = "json://{hook}"

[[rules]]
name = "failures"
metric = "failures"
above = 2
"""
HASTY = [sys.executable, str(HERE / "hasty.py"), "serve"]


class Hub:
    """One of several hubs, over HTTP."""

    def __init__(self, folder: Path, url: str, rules: Path) -> None:
        folder.mkdir()
        environ = environment(folder, ORBIT_HISTORY_URL=url, ORBIT_ALERTS=str(rules))
        self._log = folder / "log"
        with self._log.open("w") as output:
            self.process = subprocess.Popen([*HASTY, "--hub"], env=environ, stderr=output)

    @cached_property
    def _url(self) -> str:
        """Where it listens, once it does."""
        said = until(lambda: self._log.read_text().partition("a hub: http at ")[2])
        return f"http://{said.partition(',')[0]}/rpc"

    def ask(self, method: str, **params: Any) -> Any:
        """The result, or the error."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            found = json.load(answer)
        return found.get("result", found.get("error"))

    def evaluates(self) -> bool:
        return self.ask("alerts.list")["evaluates"]

    def audit(self) -> Counter[str]:
        return Counter(e["kind"] for e in self.ask("alerts.history", limit=1_000)["entries"])

    def alerts(self) -> list[str]:
        return [alert["rule"] for alert in self.ask("alerts.list")["alerts"]]

    def close(self, signal_number: int = signal.SIGKILL) -> int:
        self.process.send_signal(signal_number)
        return self.process.wait(20)


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str) -> Iterator[House]:
    """A house whose service shares its history, started."""
    house = House(tmp_path, ORBIT_HISTORY_URL=postgres_url)
    house._start(HASTY)
    yield house
    house.close()


@pytest.fixture
def hubs(tmp_path: Path, postgres_url: str, hook: Hook) -> Iterator[list[Hub]]:
    """Two that share it too."""
    rules = tmp_path / "alerts.toml"
    rules.write_text(FLEET.format(hook=hook.address))
    hubs = [Hub(tmp_path / name, postgres_url, rules) for name in ("one", "other")]
    yield hubs
    for hub in hubs:
        hub.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_of_two_hubs_one_evaluates_and_the_other_takes_over(fleet, hubs, hook, how):
    fleet.worker(FAILING)
    until(lambda: hook.sayings() == ["firing failures"])
    [first] = [hub for hub in hubs if hub.evaluates()]
    [second] = [hub for hub in hubs if hub is not first]
    until(lambda: first.audit()["notified"])
    # The one that stands by answers what the other has found, and refuses to change it.
    until(lambda: second.alerts() == ["failures"])
    silence = {"matchers": {"rule": "x"}, "reason": "r", "who": "w"}
    assert "another hub" in str(second.ask("alerts.silence", **silence))
    assert first.ask("alerts.silence", **silence)["who"] == "w"
    first.close(how)

    until(second.evaluates)
    until(lambda: second.ask("alerts.list")["alerts"][0]["value"] == 3)
    assert second.audit() == {"firing": 1, "notified": 1, "silenced": 1}
    assert [s["who"] for s in second.ask("alerts.list")["silences"]] == ["w"]
    assert len(hook.bodies) == 1


def test_a_hub_that_stood_still_while_another_took_over_gives_way(fleet, hubs, hook):
    fleet.worker(FAILING)
    until(lambda: hook.sayings() == ["firing failures"])
    [first] = [hub for hub in hubs if hub.evaluates()]
    [second] = [hub for hub in hubs if hub is not first]
    until(lambda: first.audit()["notified"])
    first.process.send_signal(signal.SIGSTOP)
    until(second.evaluates)
    first.process.send_signal(signal.SIGCONT)

    until(lambda: not first.evaluates())
    until(lambda: first.alerts() == second.alerts() == ["failures"])
    assert (second.evaluates(), len(hook.bodies)) == (True, 1)
    assert second.audit() == {"firing": 1, "notified": 1}


def test_a_hub_whose_database_was_away_goes_on_from_what_is_in_it(fleet, hubs, hook, postgres):
    fleet.worker(FAILING)
    until(lambda: hook.sayings() == ["firing failures"])
    until(lambda: any(hub.audit()["notified"] for hub in hubs))
    postgres.stop()
    until(lambda: any(hub.ask("alerts.list")["trouble"] for hub in hubs))
    postgres.start()

    until(lambda: sum(hub.evaluates() for hub in hubs) == 1)
    [first] = [hub for hub in hubs if hub.evaluates()]
    until(lambda: first.alerts() == ["failures"])
    assert first.audit() == {"firing": 1, "notified": 1}
    assert len(hook.bodies) == 1


def test_a_hub_that_is_killed_is_replaced_within_thirty_seconds():
    """By the constants as they are; the tests above have shorter ones."""
    assert store.LEASE_MS / 1000 + 2 * runner.LOOK_SECONDS <= 30
