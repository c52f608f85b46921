"""
What all workers together did in the last 24 hours, in intervals of ten seconds.

Windows follow finish time. A run that comes late therefore changes a window
that was already read; in return, an outage leaves no hole and no spike.
"""

from __future__ import annotations

from dataclasses import dataclass

from orbit_rpc_schema.wire import MAX_INT

WINDOW_MS = 10_000
KEPT_MS = 24 * 3_600_000


@dataclass(slots=True)
class Tally:
    """Runs, failures and durations of an interval; adds."""

    runs: int = 0
    failed: int = 0
    timed: int = 0
    total_us: int = 0

    def add(self, other: Tally) -> None:
        self.runs += other.runs
        self.failed += other.failed
        self.timed += other.timed
        self.total_us = min(self.total_us + other.total_us, MAX_INT)


class LastDay:
    """The windows of a day that have runs: some 8,650, with those a minute ahead."""

    def __init__(self, windows: dict[int, Tally] | None = None) -> None:
        self.windows = windows or {}

    def add(self, tally: Tally, at_ms: int, now_ms: int) -> None:
        """Count into the window of `at_ms`; what is older than a day is not kept."""
        oldest = _start_of(now_ms - KEPT_MS)
        start = _start_of(at_ms)
        if start < oldest:
            return
        window = self.windows.get(start)
        if window is None:
            if len(self.windows) > KEPT_MS // WINDOW_MS:
                self.windows = {at: w for at, w in self.windows.items() if at >= oldest}
            window = self.windows[start] = Tally()
        window.add(tally)

    def since(self, from_ms: int) -> Tally:
        """The sum from `from_ms`, rounded down to ten seconds, until now."""
        start = _start_of(from_ms)
        total = Tally()
        for at, window in self.windows.items():
            if at >= start:
                total.add(window)
        return total


def _start_of(at_ms: int) -> int:
    return at_ms - at_ms % WINDOW_MS
