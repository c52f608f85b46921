"""
The aggregate of one series, and the arithmetic of every number that is answered.

Sums are whole microseconds and whole counts, so that they come out the same in
any order; one that no longer fits 63 bits stays at the most that can be stored.
Rounding happens once, at the answer, half up, in integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import NamedTuple

from msgspec import Struct, field

from orbit_rpc_schema.wire import MAX_INT
from orbit_service.core.histogram import Histogram


class ColumnSums(NamedTuple):
    """What runs that finished at the same time come to; they have durations."""

    runs: int
    failed: int
    total_us: int
    min_us: int
    max_us: int
    at_ms: int

    @classmethod
    def of(cls, durations_us: Sequence[int], failed: int, at_ms: int) -> ColumnSums:
        low, high = min(durations_us), max(durations_us)
        return cls(len(durations_us), failed, sum(durations_us), low, high, at_ms)


class Stats(Struct, array_like=True, gc=False):
    """Runs that have ended. A value: it adds and merges, and knows nothing else.

    `runs` counts every run, `timed` those that have a duration: a run whose
    worker was lost has none. `attempts` counts retries' attempts too. `waited`
    counts the runs that tell how long they waited for their worker, and `waits`
    holds how long: of fewer where an older release counted some of them, and None
    where it has none.
    """

    runs: int = 0
    failed: int = 0
    attempts: int = 0
    retries: int = 0
    timed: int = 0
    total_us: int = 0
    min_us: int = 0
    max_us: int = 0
    waited: int = 0
    total_wait_us: int = 0
    max_wait_us: int = 0
    first_run_ms: int | None = None
    last_run_ms: int | None = None
    last_success_ms: int | None = None
    histogram: Histogram = field(default_factory=Histogram)
    waits: Histogram | None = None

    def add_runs(self, durations_us: Sequence[int], failed: int, at_ms: int) -> None:
        """Count a column of runs that finished at `at_ms`, `failed` of them without success."""
        if durations_us:
            self.count(ColumnSums.of(durations_us, failed, at_ms))
            self.histogram.merge(Histogram.of(durations_us))

    def count(self, column: ColumnSums) -> None:
        """Count a column in everything but the histogram."""
        runs, failed, total_us, low_us, high_us, at_ms = column
        if not self.timed or low_us < self.min_us:
            self.min_us = low_us
        if high_us > self.max_us:
            self.max_us = high_us
        self.runs += runs
        self.attempts += runs
        self.timed += runs
        self.total_us = _storable(self.total_us + total_us)
        self.failed += failed
        self._saw(at_ms)
        if failed < runs:
            self.last_success_ms = _later(self.last_success_ms, at_ms)

    def add_untimed(self, at_ms: int, *, failed: bool) -> None:
        """Count a run that has no duration, such as one whose worker was killed."""
        self.runs += 1
        self.attempts += 1
        self.failed += failed
        self._saw(at_ms)
        if not failed:
            self.last_success_ms = _later(self.last_success_ms, at_ms)

    def add_unfinished_attempt(self) -> None:
        """Count an attempt that will be retried: the run itself is still to end."""
        self.attempts += 1
        self.retries += 1

    def add_waits(self, waits_us: Sequence[int]) -> None:
        """Count how long some of the runs had waited before they began."""
        if not waits_us:
            return
        self.waited += len(waits_us)
        self.total_wait_us = _storable(self.total_wait_us + sum(waits_us))
        self.max_wait_us = max(self.max_wait_us, *waits_us)
        self._add_waits(Histogram.of(waits_us))

    def merge(self, other: Stats) -> None:
        """Add the other's runs to these.

        Done for every row that is read: comparisons stand where calls would cost more.
        """
        if other.timed:
            if not self.timed or other.min_us < self.min_us:
                self.min_us = other.min_us
            if other.max_us > self.max_us:
                self.max_us = other.max_us
            self.timed += other.timed
            self.total_us = _storable(self.total_us + other.total_us)
            self.histogram.merge(other.histogram)
        self.runs += other.runs
        self.failed += other.failed
        self.attempts += other.attempts
        self.retries += other.retries
        if other.waited:
            self.waited += other.waited
            self.total_wait_us = _storable(self.total_wait_us + other.total_wait_us)
            self.max_wait_us = max(self.max_wait_us, other.max_wait_us)
            if other.waits is not None:
                self._add_waits(other.waits)
        first, last, success = other.first_run_ms, other.last_run_ms, other.last_success_ms
        if first is not None and (self.first_run_ms is None or first < self.first_run_ms):
            self.first_run_ms = first
        if last is not None and (self.last_run_ms is None or last > self.last_run_ms):
            self.last_run_ms = last
        if success is not None and (self.last_success_ms is None or success > self.last_success_ms):
            self.last_success_ms = success

    def copy(self) -> Stats:
        """The same numbers; it shares nothing that changes."""
        other = copy(self)
        other.histogram = self.histogram.copy()
        if self.waits is not None:
            other.waits = self.waits.copy()
        return other

    def _add_waits(self, waits: Histogram) -> None:
        if self.waits is None:
            self.waits = Histogram()
        self.waits.merge(waits)

    def _saw(self, at_ms: int) -> None:
        if self.first_run_ms is None or at_ms < self.first_run_ms:
            self.first_run_ms = at_ms
        if self.last_run_ms is None or at_ms > self.last_run_ms:
            self.last_run_ms = at_ms

    @property
    def succeeded(self) -> int:
        return self.runs - self.failed

    @property
    def average_ms(self) -> int:
        return rounded(self.total_us, self.timed * 1000)

    @property
    def average_wait_ms(self) -> int:
        return rounded(self.total_wait_us, self.waited * 1000)

    @property
    def max_wait_ms(self) -> int:
        return rounded(self.max_wait_us, 1000)

    @property
    def min_ms(self) -> int:
        return rounded(self.min_us, 1000)

    @property
    def max_ms(self) -> int:
        return rounded(self.max_us, 1000)

    def quantiles_ms(self, *qs: float) -> list[int]:
        """In whole milliseconds, half up; zeroes where nothing has a duration."""
        values = self.histogram.quantiles(qs, self.min_us, self.max_us)
        return [int(value / 1000 + 0.5) for value in values]

    def wait_quantiles_ms(self, *qs: float) -> list[int]:
        """In whole milliseconds, half up; zeroes where `waits` holds nothing."""
        values = (self.waits or Histogram()).quantiles(qs, 0, self.max_wait_us)
        return [int(value / 1000 + 0.5) for value in values]


def _storable(number: int) -> int:
    return number if number <= MAX_INT else MAX_INT


def _later(one: int | None, other: int | None) -> int | None:
    if one is None or (other is not None and other > one):
        return other
    return one


def merged(parts: Iterable[Stats]) -> Stats:
    total = Stats()
    for part in parts:
        total.merge(part)
    return total


def rounded(numerator: int, denominator: int) -> int:
    """numerator / denominator to the nearest whole number, half up; 0 where there is nothing."""
    return (2 * numerator + denominator) // (2 * denominator) if denominator else 0


def percent(part: int, whole: int, decimals: int = 2) -> float:
    """100 · part / whole, rounded half up; 0 where there is nothing."""
    scale: int = 10**decimals
    return rounded(100 * scale * part, whole) / scale


# A rate over less than this would be a guess: one run in the first second is not 3600 an hour.
SHORTEST_RATE_SECONDS = 60


def runs_per_hour(runs: int, seconds: int) -> float:
    """Runs over their length of time, taken as at least 60 s; two decimals, half up."""
    return rounded(runs * 3600 * 100, max(seconds, SHORTEST_RATE_SECONDS)) / 100


def uptime_text(seconds: int) -> str:
    """The parts that are not zero, days first: "8d 1h 1m 1s", "2m", "0s"."""
    minutes, s = divmod(max(seconds, 0), 60)
    hours, m = divmod(minutes, 60)
    d, h = divmod(hours, 24)
    parts = [f"{n}{unit}" for n, unit in ((d, "d"), (h, "h"), (m, "m"), (s, "s")) if n]
    return " ".join(parts) or "0s"
