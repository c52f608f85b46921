"""Alerts of a real service: its file of rules, its health, and what it goes on from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from builders import HOUR, MINUTE, until
from conftest import RunningService
from orbit_rpc_schema.caller import CallFailed, call
from orbit_service.alerting import answers, runner
from orbit_service.alerts import desk
from orbit_service.alerts.backtest import Backtesting
from orbit_service.alerts.desk import Desk
from orbit_service.clock import wall_clock
from orbit_service.core import outbox
from orbit_worker import sender
from receivers import Hook

RULES = """
[channels.hook]
url = "json://{hook}"

[[rules]]
name = "failures"
metric = "failures"
above = 2
"""
BAD = 'rules = "none"'


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.close()


@pytest.fixture
def away() -> Iterator[Hook]:
    """Another one."""
    away = Hook()
    yield away
    away.close()


class Watching(RunningService):
    """A service whose windows close half a second after they open."""

    def __init__(self, folder: Path) -> None:
        self.rules = folder / "alerts.toml"
        self.set_by_ms = 0  # the clock, by which everything in it goes
        super().__init__(
            folder / "worker.sock",
            lambda: wall_clock() + self.set_by_ms,
            ORBIT_STATE=folder / "state",
            ORBIT_ALERTS=self.rules,
        )

    def restart(self) -> None:
        self.stop()
        self.start()

    def alerts(self) -> list[str]:
        """Rule and phase of each."""
        return [f"{a['phase']} {a['rule']}" for a in self.ask("alerts.list")["alerts"]]

    def audit(self, *kinds: str) -> list[str]:
        """Kinds, the oldest first."""
        entries = self.ask("alerts.history", {"limit": 1000})["entries"]
        return [e["kind"] for e in reversed(entries) if not kinds or e["kind"] in kinds]

    def trouble(self) -> str:
        """What health says of the file of rules."""
        said = self.ask("worker.health")["message"].lower()
        return said if "file of rules" in said else ""

    def looked(self) -> None:
        """Wait until the rules have been looked at again."""
        before = self.ask("alerts.list")["evaluatedAt"]
        self.service.alerting.came()
        until(lambda: self.ask("alerts.list")["evaluatedAt"] != before)


@pytest.fixture
def watching(tmp_path, hook, monkeypatch) -> Iterator[Watching]:
    """A service with rules, started."""
    monkeypatch.setattr(outbox, "GRACE_MS", 500 - outbox.WINDOW_MS)
    monkeypatch.setattr(runner, "LOOK_SECONDS", 0.2)
    watching = Watching(tmp_path)
    watching.rules.write_text(RULES.format(hook=hook.address))
    watching.start()
    yield watching
    watching.close()


@pytest.fixture
def fail(client) -> Callable[[int], None]:
    """Record so many failed runs."""

    def fail(runs: int) -> None:
        for _ in range(runs):
            client.record_run(5, False)
        assert client.flush(10)

    return fail


# ---------------------------------------------------------------- without rules


def test_without_a_file_there_are_no_alerts_and_nothing_to_change(service):
    answer = service.ask("alerts.list")

    assert (answer["alerts"], answer["evaluates"], answer["trouble"]) == ([], False, None)
    assert service.ask("alerts.rules")["file"] is None
    assert service.ask("alerts.history") == {"entries": [], "more": False}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("silence", {"matchers": {"rule": "x"}, "reason": "r", "who": "w"}),
        ("unsilence", {"id": "x", "who": "w"}),
        ("acknowledge", {"alert": "x", "who": "w"}),
        ("sendTest", {"channel": "x"}),
        ("backtest", {}),
        ("reload", {}),
    ],
)
def test_without_a_file_what_needs_one_is_refused(service, method, params):
    with pytest.raises(CallFailed, match="No rules are set here"):
        service.ask(f"alerts.{method}", params)


def test_without_a_file_no_window_is_kept_for_rules(service, client, monkeypatch):
    monkeypatch.setattr(outbox, "GRACE_MS", 500 - outbox.WINDOW_MS)
    client.record_run(5, False)
    assert client.flush(10)
    until(lambda: service.service.collector.outbox.number > 0)

    assert service.service._source._closed == []


# ---------------------------------------------------------------- with rules


def test_runs_that_fail_lead_to_an_alert_and_a_message(watching, hook, fail):
    fail(3)
    until(lambda: watching.alerts() == ["firing failures"])

    until(lambda: hook.sayings() == ["firing failures"])
    until(lambda: watching.audit() == ["firing", "notified"])
    [channel] = watching.ask("alerts.rules")["channels"]
    assert (channel["sent"], channel["waiting"], channel["trouble"]) == (1, 0, None)


def test_a_service_that_starts_again_goes_on_and_says_nothing_twice(watching, hook, fail):
    fail(3)
    until(lambda: watching.audit() == ["firing", "notified"])
    watching.restart()
    watching.looked()

    assert watching.alerts() == ["firing failures"]
    assert (watching.audit(), len(hook.bodies)) == (["firing", "notified"], 1)
    fail(1)
    until(lambda: watching.ask("alerts.list")["alerts"][0]["value"] == 4)


def test_a_look_that_fails_is_made_again_with_all_that_has_closed(watching, fail, monkeypatch):
    monkeypatch.setattr(runner, "RETRY_SECONDS", 0.2)
    look, failed = Desk.look, []

    def fails_once(desk: Desk, seen: Any, now_ms: int) -> Any:
        if seen.windows and not failed:
            failed.append(True)
            raise ZeroDivisionError
        return look(desk, seen, now_ms)

    fail(2)
    until(lambda: watching.service.collector.outbox.number > 0)
    watching.looked()
    monkeypatch.setattr(Desk, "look", fails_once)
    fail(1)

    until(lambda: watching.alerts() == ["firing failures"])
    assert failed
    assert watching.ask("alerts.list")["alerts"][0]["value"] == 3
    until(lambda: watching.ask("alerts.list")["trouble"] is None)


def test_a_channel_that_fails_is_counted_and_shown_and_holds_up_no_other(
    hook, away, watching, fail
):
    away.statuses = [500] * 9
    other = f'[channels.away]\nurl = "json://{away.address}"\n'
    watching.rules.write_text(other + RULES.format(hook=hook.address))
    watching.ask("alerts.reload")
    fail(3)
    until(lambda: watching.ask("alerts.rules")["channels"][0]["failed"])
    until(lambda: watching.ask("alerts.rules")["channels"][1]["sent"])

    first, second = watching.ask("alerts.rules")["channels"]
    assert (first["name"], first["sent"], first["waiting"]) == ("away", 0, 1)
    assert "500" in first["trouble"]
    assert (second["sent"], second["waiting"]) == (1, 0)
    assert hook.sayings() == ["firing failures"]
    assert watching.ask("alerts.list")["trouble"] is None


@pytest.mark.parametrize("by_ms", [HOUR, -HOUR])
def test_a_clock_that_is_set_neither_ends_nor_repeats_anything(
    watching, hook, fail, by_ms, monkeypatch
):
    monkeypatch.setattr(sender, "wall_clock", watching.service.clock)  # workers go by it too
    fail(3)
    until(lambda: watching.audit() == ["firing", "notified"])
    watching.set_by_ms = by_ms
    watching.looked()
    fail(1)
    until(lambda: watching.ask("alerts.list")["alerts"][0]["value"] == 4)

    assert (watching.audit(), len(hook.bodies)) == (["firing", "notified"], 1)
    [alert] = watching.ask("alerts.list")["alerts"]
    assert abs(alert["firedAt"] - watching.service.clock()) < MINUTE


def test_alerts_for_which_there_is_no_place_are_told_of(watching, fail, monkeypatch):
    monkeypatch.setattr(desk, "MAX_ALERTS", 0)
    fail(3)

    said = until(lambda: watching.ask("alerts.list")["trouble"])
    assert said == "1 alerts more than there is place for are not told: see the rules"


# ---------------------------------------------------------------- the file of rules


def test_a_bad_file_at_the_start_stops_nothing_and_says_so(watching, fail, hook):
    watching.stop()
    watching.rules.write_text(BAD)
    watching.start()
    fail(3)

    assert "is not taken" in until(watching.trouble)
    assert watching.ask("alerts.rules")["rules"] == []
    watching.rules.write_text(RULES.format(hook=hook.address))
    assert watching.ask("alerts.reload")["changed"] == ["failures"]
    assert watching.trouble() == ""
    until(lambda: watching.alerts() == ["firing failures"])


def test_a_bad_file_at_the_start_ends_no_alert_and_nothing_is_said_again(watching, fail, hook):
    fail(3)
    until(lambda: watching.audit() == ["firing", "notified"])
    good = watching.rules.read_text()
    watching.stop()
    watching.rules.write_text(BAD)
    watching.start()
    until(watching.trouble)
    watching.ask("alerts.silence", {"matchers": {"rule": "x"}, "reason": "r", "who": "w"})
    watching.restart()
    until(watching.trouble)  # the bad one has been read: half of the good one would be another
    watching.rules.write_text(good)
    watching.ask("alerts.reload")
    watching.looked()

    assert watching.alerts() == ["firing failures"]
    assert watching.audit("firing", "resolved", "notified") == ["firing", "notified"]
    assert (len(hook.bodies), len(watching.ask("alerts.list")["silences"])) == (1, 1)


@pytest.mark.parametrize(
    "matchers",
    [
        {"pipeline": "\ud800"},
        {"\ud800": "x"},
        {"pipeline": "x" * 601},
        {"x" * 201: "x"},
        {"pipeline": ""},
        {"": "x"},
    ],
    ids=["surrogate", "surrogate in a name", "long", "long name", "empty", "empty name"],
)
def test_a_silence_that_cannot_be_kept_is_refused_and_rules_are_looked_at(watching, fail, matchers):
    with pytest.raises(CallFailed, match="Invalid params"):
        watching.ask("alerts.silence", {"matchers": matchers, "reason": "r", "who": "w"})
    fail(3)

    until(lambda: watching.alerts() == ["firing failures"])
    assert watching.ask("alerts.list")["trouble"] is None


def test_a_file_that_hangs_at_a_reload_holds_up_no_look_and_no_silence(watching, fail):
    watching.looked()
    good = watching.rules.read_text()
    watching.rules.unlink()
    os.mkfifo(watching.rules)  # as a disk that is away
    with ThreadPoolExecutor(1) as pool:
        reloaded = pool.submit(call, watching.socket, "alerts.reload", timeout=120)
        try:
            fail(3)
            until(lambda: watching.alerts() == ["firing failures"])
            watching.ask("alerts.silence", {"matchers": {"rule": "x"}, "reason": "r", "who": "w"})
            assert not reloaded.done()
        finally:
            watching.rules.write_text(good)
        assert reloaded.result(10)["changed"] == []


def test_a_bad_file_at_a_reload_leaves_the_last_good_rules_in_force(watching, fail):
    watching.looked()
    watching.rules.write_text(BAD)
    with pytest.raises(CallFailed, match="not taken"):
        watching.ask("alerts.reload")
    fail(3)
    until(lambda: watching.alerts() == ["firing failures"])

    assert "is not taken" in watching.trouble()
    assert "the file of rules is not taken" in watching.ask("alerts.list")["trouble"]
    assert [rule["name"] for rule in watching.ask("alerts.rules")["rules"]] == ["failures"]


def test_a_file_that_is_gone_is_a_bad_one(watching):
    watching.looked()
    watching.rules.unlink()
    with pytest.raises(CallFailed):
        watching.ask("alerts.reload")

    assert "cannot be read" in watching.trouble()


def test_a_reload_keeps_states_and_is_in_the_audit(watching, fail, hook):
    fail(3)
    until(lambda: watching.audit() == ["firing", "notified"])
    more = '\n[[rules]]\nname = "more"\nmetric = "failures"\nabove = 1\n'
    watching.rules.write_text(watching.rules.read_text() + more)

    assert watching.ask("alerts.reload") == {"rules": 2, "channels": 1, "changed": ["more"]}
    until(lambda: hook.sayings() == ["firing failures", "firing more"])
    assert watching.audit("reloaded", "resolved") == ["reloaded"]


def test_tests_on_the_past_are_made_one_at_a_time(watching, monkeypatch):
    at_once: list[int] = []
    making: list[int] = []

    class Counted(Backtesting):
        def go_on(self, *part: Any) -> None:
            making.append(1)
            with suppress(AssertionError):
                until(lambda: len(making) > 1, seconds=0.1)
            at_once.append(len(making))
            making.pop()
            super().go_on(*part)

    monkeypatch.setattr(answers, "Backtesting", Counted)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: watching.ask("alerts.backtest", {"from": "-1m"}), range(3)))

    assert (len(found), set(at_once)) == (3, {1})
