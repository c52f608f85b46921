"""Rows of windows for tests of what is made of them."""

from __future__ import annotations

from builders import HOUR, T0
from orbit_service.core.outbox import Key
from orbit_service.core.stats import Stats
from orbit_service.core.sums import Totals

START = T0 - T0 % HOUR
END = START + HOUR
SEND = Key("mailer", "send")


def runs(*durations_us: int, failed: int = 0, at_ms: int = START) -> Stats:
    stats = Stats()
    stats.add_runs(durations_us, failed, at_ms)
    return stats


def totals(*rows: tuple[int, str, Key, Stats]) -> Totals:
    total = Totals()
    for row in rows:
        total.add(*row)
    return total
