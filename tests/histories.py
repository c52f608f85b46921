"""A history for tests: short ways to fill it and to read it, at a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from builders import T0
from orbit_service.core.outbox import Key, Publication, Window
from orbit_service.core.rollup import Segment
from orbit_service.core.stats import Stats, merged
from orbit_service.history.engines import Database
from orbit_service.history.port import Wanted
from orbit_service.history.sql import SqlHistory

SEND = Key("mailer", "send")
ALL_TIME = (0, 4_000_000_000_000)


class Anything:
    """Holds whatever it is asked for."""

    def __contains__(self, _token: object) -> bool:
        return True


ANY = Anything()


class Clock:
    """Epoch ms, as the test sets it."""

    def __init__(self, now_ms: int = T0) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


class Place:
    """A history, how to open it again, and short ways to fill and to read it."""

    def __init__(self, connect: Callable[[], Database]) -> None:
        self.clock = Clock()
        self._connect = connect
        self.number = 0
        self.history = SqlHistory(connect(), clock=self.clock)

    def restart(self) -> None:
        """What another process would find."""
        self.history.close()
        self.history = SqlHistory(self._connect(), clock=self.clock)

    def add(
        self,
        start_ms: int,
        *durations_us: int,
        key: Key = SEND,
        node: str = "n",
        failed: int = 0,
        waits: Sequence[int] = (),
    ) -> None:
        """Publish runs of one window."""
        self.number += 1
        window = {key: runs(*durations_us, waits=waits)}
        publication = a_publication(self.number, {start_ms: window})
        publication.windows[start_ms][key].failed = failed
        self.history.apply(node, f"instance of {node}", [publication], ANY)

    def maintain(self, node: str = "n") -> None:
        while self.history.maintain(node):
            pass

    def read(self, level: int = 0, times: Sequence[int] = ALL_TIME, **wanted: object) -> Window:
        """Sums by key of what one level answers, with finer ones where it is not rolled up."""
        found: Window = {}

        def add(_start: int, _node: str, key: Key, stats: Stats) -> None:
            found.setdefault(key, Stats()).merge(stats)

        self.history.read(Wanted([Segment(level, *times)], **wanted), add)  # type: ignore[arg-type]
        return found

    def starts(self, level: int = 0, times: Sequence[int] = ALL_TIME) -> list[int]:
        """Where the windows of a level begin, ms."""
        found: list[int] = []
        self.history.read(Wanted([Segment(level, *times)]), lambda at, *_: found.append(at))
        return sorted(found)

    def total(self, level: int = 0, **wanted: object) -> Stats:
        return merged(self.read(level, **wanted).values())


def runs(*durations_us: int, waits: Sequence[int] = ()) -> Stats:
    stats = Stats()
    stats.add_runs(durations_us, 0, T0)
    stats.add_waits(waits)
    return stats


def a_publication(number: int, windows: dict[int, Window] | None = None) -> Publication:
    return Publication(number, windows or {}, {})
