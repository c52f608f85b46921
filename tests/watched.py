"""A desk for tests: rules from a text, windows by a word, a clock that the test sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builders import MS, SECOND, T0
from histories import ALL_TIME
from orbit_service.alerts.desk import Desk, Seen
from orbit_service.alerts.facts import Facts, WorkerFact
from orbit_service.alerts.records import FILE
from orbit_service.alerts.rules import parse_rules
from orbit_service.alerts.store import AlertStore
from orbit_service.core.outbox import GRACE_MS, Key, Window
from orbit_service.core.stats import Stats
from orbit_service.core.window import WINDOW_MS
from orbit_service.history.engines import sqlite_file

# More than two failures in a minute, for twenty seconds.
RULES = """
[channels.hook]
url = "json://localhost"

[[rules]]
name = "failures"
metric = "failures"
window = "1m"
above = 2
for = "20s"
"""


class Watched:
    """A desk over a file, looked at every ten seconds as windows close."""

    def __init__(self, folder: Path, rules: str = RULES) -> None:
        self.path = folder / FILE
        self.now_ms = T0 + GRACE_MS
        self.file = parse_rules(rules, folder / "alerts.toml", {})
        self.windows: list[tuple[int, Window]] = []  # that have closed, by the clock as it is
        self.set_by_ms = 0  # the clock, since the last look
        self.begin()

    def begin(self) -> None:
        """What a service does when it starts."""
        self.store = AlertStore(sqlite_file(self.path))
        self.desk = Desk("box", self.store)
        self.desk.load()
        self.desk.use(self.file)
        self.desk.interrupted(self.now_ms)
        self._filled = False

    def restart(self) -> None:
        """What another process would find: nothing is told to it."""
        self.store.close()
        self.begin()

    def take(self, rules: str) -> list[str]:
        """Other rules, as by a reload."""
        self.file = parse_rules(rules, self.path.parent / "alerts.toml", {})
        self._filled = False
        return self.desk.use(self.file)

    def set_clock(self, by_ms: int) -> None:
        self.now_ms += by_ms
        self.set_by_ms += by_ms
        self.windows = [(start + by_ms, window) for start, window in self.windows]

    def look(
        self,
        failed: int = 0,
        *,
        seconds: int = 10,
        runs: int = 10,
        pipelines: Sequence[str] = ("send",),
        lost: Sequence[str] = (),
        here: Sequence[str] = (),
        dropped: int = 0,
        **seen: Any,
    ) -> list[str]:
        """After so many seconds, in which these runs ended; what has changed, the first first."""
        self.now_ms += seconds * SECOND
        end_ms = self.now_ms - GRACE_MS
        start_ms = end_ms - end_ms % WINDOW_MS - WINDOW_MS
        window = {Key("mailer", name): some_runs(runs, failed, start_ms) for name in pipelines}
        self.windows.append((start_ms, window))
        workers = {name: WorkerFact(False, True, False, T0) for name in lost}
        workers |= {name: WorkerFact(True, False, False, self.now_ms) for name in here}
        looked = Seen(
            [(start_ms, window)] if self._filled else self.windows,
            Facts(workers=workers, dropped=dropped, refused=0, troubles=[]),
            step_ms=self.set_by_ms,
            all_of_it=not self._filled,
            **seen,
        )
        self._filled, self.set_by_ms = True, 0
        return [change.kind for change in reversed(self.desk.look(looked, self.now_ms))]

    def fire(self) -> None:
        """Three failures, and twenty seconds."""
        assert [self.look(3), self.look(), self.look()] == [["pending"], [], ["firing"]]

    def audit(self) -> list[tuple[str, str]]:
        """What is on the disk of it: kind and text, the oldest first."""
        entries = self.desk.history(*ALL_TIME, 1_000)
        return [(entry.kind, entry.text) for entry in reversed(entries)]

    def kinds(self) -> list[str]:
        return [kind for kind, _text in self.audit()]

    def said(self) -> list[str]:
        """What waits to be sent, the oldest first."""
        parcels = [
            p for name in self.file.channels for p in self.desk.shelf.due(name, self.now_ms, 99)
        ]
        return [f"{item.saying} {item.rule}" for p in parcels for item in p.message.items]

    def send(self) -> list[str]:
        """The keys of what waits, which is sent."""
        parcels = [
            p for name in self.file.channels for p in self.desk.shelf.due(name, self.now_ms, 99)
        ]
        for parcel in parcels:
            self.desk.delivered(parcel, self.now_ms)
        return [parcel.key for parcel in parcels]


def some_runs(runs: int, failed: int, at_ms: int = T0) -> Stats:
    stats = Stats()
    stats.add_runs([MS] * runs, 0, at_ms)
    stats.failed = failed
    return stats
