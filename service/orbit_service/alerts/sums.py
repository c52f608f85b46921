"""
Sums over the last minutes, by what rules tell apart, kept while windows close.

Rules that look at the same runs over the same time share a signal. A signal adds what
closes and takes away what has become too old: counts and histograms are whole numbers,
so that both are exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import NamedTuple

from msgspec import Struct

from orbit_service.alerts.fold import Match
from orbit_service.alerts.rules import Rule, is_pattern, matcher
from orbit_service.core.histogram import LANE, Histogram
from orbit_service.core.outbox import Key, Window
from orbit_service.core.rollup import DAY_MS, HOUR_MS, MINUTE_MS
from orbit_service.core.stats import Stats
from orbit_service.core.window import WINDOW_MS

# A window is slid in at most so many parts, so that a day of it costs no more than ten minutes.
PARTS = 60
BUCKETS_MS = (WINDOW_MS, 30_000, MINUTE_MS, 5 * MINUTE_MS, 10 * MINUTE_MS, 30 * MINUTE_MS)
WIDE = LANE // 8  # bytes of a count in a histogram
KNOWN_MS = DAY_MS  # what has not run for longer has no number any more, and not zero
MAX_MATCHES = 10_000  # of a signal
MAX_ROUTES = 100_000  # keys of which it is known where they go


class Signal(NamedTuple):
    """Which runs, told apart by what, over how long."""

    worker: str
    pipeline: str
    step: str | None
    per: tuple[str, ...]
    window_ms: int
    versions: bool = False  # told apart by these too, as the last of a match


def signal_of(rule: Rule) -> Signal:
    return Signal(
        rule.worker,
        rule.pipeline,
        rule.step,
        rule.dimensions,
        rule.window,
        rule.compare == "version",
    )


class Sum:
    """Runs that were added and can be taken away again."""

    __slots__ = (
        "failed",
        "first_ms",
        "histogram",
        "last_ms",
        "retries",
        "runs",
        "timed",
        "total_us",
        "waits",
    )

    def __init__(self) -> None:
        self.runs = self.failed = self.retries = self.timed = self.total_us = 0
        self.histogram = Histogram()
        self.waits = Histogram()
        self.first_ms = 0  # of the first run that was ever added
        self.last_ms = 0  # start of the newest window

    def add(self, stats: Stats | Sum, start_ms: int, first_ms: int | None = None) -> None:
        self.runs += stats.runs
        self.failed += stats.failed
        self.retries += stats.retries
        self.timed += stats.timed
        self.total_us += stats.total_us
        self.histogram.merge(stats.histogram)
        if stats.waits is not None:
            self.waits.merge(stats.waits)
        first_ms = first_ms or start_ms
        self.first_ms = min(self.first_ms or first_ms, first_ms)
        self.last_ms = max(self.last_ms, start_ms)

    def take_away(self, other: Sum) -> None:
        self.runs -= other.runs
        self.failed -= other.failed
        self.retries -= other.retries
        self.timed -= other.timed
        self.total_us -= other.total_us
        self.histogram.take_away(other.histogram)
        self.waits.take_away(other.waits)


# Which bits counts of few bytes have, in the 1,600 buckets of ten years and some.
_NARROW = {
    width: int.from_bytes((b"\xff" * width + bytes(WIDE - width)) * 2048, "little")
    for width in (1, 2, 4)
}


class Packed(Struct, frozen=True, gc=False):
    """A histogram in an eighth of the memory: of all counts the bytes that the largest needs."""

    zeroes: int
    first: int
    width: int
    counts: bytes

    @classmethod
    def of(cls, histogram: Histogram) -> Packed:
        lanes = histogram.lanes
        width = next((width for width, mask in _NARROW.items() if lanes & mask == lanes), WIDE)
        wide = lanes.to_bytes(-(-lanes.bit_length() // LANE) * WIDE, "little")
        counts = bytearray(len(wide) // WIDE * width)
        for byte in range(width):
            counts[byte::width] = wide[byte::WIDE]
        return cls(histogram.zeroes, histogram.first, width, bytes(counts))

    def unpacked(self) -> Histogram:
        wide = bytearray(len(self.counts) // self.width * WIDE)
        for byte in range(self.width):
            wide[byte::WIDE] = self.counts[byte :: self.width]
        return Histogram(self.zeroes, self.first, int.from_bytes(wide, "little"))


class Part(Struct, frozen=True, gc=False):
    """What is to be taken away again from a sum.

    There are hundreds of thousands. They hold nothing that the garbage collector would have
    to look at: it stopped everything for half a second.
    """

    runs: int
    failed: int
    retries: int
    timed: int
    total_us: int
    durations: Packed
    waits: Packed | None

    @classmethod
    def of(cls, runs: Stats | Sum) -> Part:
        waits = runs.waits
        return cls(
            runs.runs,
            runs.failed,
            runs.retries,
            runs.timed,
            runs.total_us,
            Packed.of(runs.histogram),
            Packed.of(waits) if waits is not None and (waits.lanes or waits.zeroes) else None,
        )

    def unpacked(self) -> Sum:
        total = Sum()
        total.runs, total.failed, total.retries = self.runs, self.failed, self.retries
        total.timed, total.total_us = self.timed, self.total_us
        total.histogram = self.durations.unpacked()
        if self.waits is not None:
            total.waits = self.waits.unpacked()
        return total


class Routes:
    """Which signals a row belongs to, and as which of their matches."""

    def __init__(self, signals: Iterable[Signal]) -> None:
        self._known: dict[Key, list[tuple[Signal, Match]]] = {}
        self._by_pipeline: dict[str, list[_Pattern]] = {}
        self._others: list[_Pattern] = []
        for signal in signals:
            pattern = _Pattern(signal)
            if is_pattern(signal.pipeline):
                self._others.append(pattern)
            else:
                self._by_pipeline.setdefault(signal.pipeline, []).append(pattern)

    def of(self, key: Key) -> list[tuple[Signal, Match]]:
        routes = self._known.get(key)
        if routes is None:
            candidates = [*self._by_pipeline.get(key.pipeline, ()), *self._others]
            routes = [(p.signal, p.match(key)) for p in candidates if p.wants(key)]
            if len(self._known) >= MAX_ROUTES:
                self._known.clear()
            self._known[key] = routes
        return routes


class _Pattern:
    """A signal's patterns, compiled."""

    def __init__(self, signal: Signal) -> None:
        self.signal = signal
        self._worker = matcher(signal.worker)
        self._pipeline = matcher(signal.pipeline)
        self._step: re.Pattern[str] | None = None if signal.step is None else matcher(signal.step)
        self._names = (*signal.per, "version") if signal.versions else signal.per

    def wants(self, key: Key) -> bool:
        if key.error or not key.pipeline or bool(key.step) is (self._step is None):
            return False
        return (
            self._pipeline.match(key.pipeline) is not None
            and self._worker.match(key.worker) is not None
            and (self._step is None or self._step.match(key.step) is not None)
        )

    def match(self, key: Key) -> Match:
        return tuple(getattr(key, name) for name in self._names)


class Slide:
    """One signal's sums over its window."""

    def __init__(self, window_ms: int) -> None:
        self.window_ms = window_ms
        self.bucket_ms = next(b for b in BUCKETS_MS if window_ms <= b * PARTS)
        self.totals: dict[Match, Sum] = {}
        self.left_out = 0  # rows of matches for which there was no place
        self.values: dict[tuple[str, int], dict[Match, float | None]] = {}  # until totals change
        self._buckets: dict[int, dict[Match, Part]] = {}
        self._grown: dict[tuple[int, Match], Sum] = {}  # parts of which more came, to be packed
        self._oldest_ms = 0

    def add(self, start_ms: int, match: Match, stats: Stats, alone: Part | None = None) -> None:
        """Add a row; `alone` is what it is by itself, which slides share."""
        if start_ms < self._oldest_ms:
            return
        total = self.totals.get(match)
        if total is None:
            if len(self.totals) >= MAX_MATCHES:
                self.left_out += 1
                return
            total = self.totals[match] = Sum()
        self.values.clear()
        total.add(stats, start_ms, stats.first_run_ms)
        at_ms = start_ms - start_ms % self.bucket_ms
        grown, bucket = self._grown.get((at_ms, match)), self._buckets.setdefault(at_ms, {})
        if grown is None:
            part = bucket.get(match)
            if part is None:
                bucket[match] = alone or Part.of(stats)
                return
            grown = self._grown[at_ms, match] = part.unpacked()
        grown.add(stats, start_ms)

    def _pack(self, end_ms: float) -> None:
        """Pack what is not likely to grow any more: what ended until then."""
        for at_ms, match in [key for key in self._grown if key[0] + self.bucket_ms <= end_ms]:
            self._buckets[at_ms][match] = Part.of(self._grown.pop((at_ms, match)))

    def advance(self, end_ms: int) -> None:
        """Let go of what ended before the window that ends here."""
        self._pack(end_ms)
        oldest_ms = end_ms - self.window_ms
        self._oldest_ms = oldest_ms - oldest_ms % self.bucket_ms
        for start_ms in [start for start in self._buckets if start < self._oldest_ms]:
            self.values.clear()
            for match, part in self._buckets.pop(start_ms).items():
                self.totals[match].take_away(part.unpacked())
        # Of what is forgotten nothing may be left to be taken away.
        known_from_ms = min(end_ms - KNOWN_MS, self._oldest_ms)
        for match in [m for m, t in self.totals.items() if t.last_ms < known_from_ms]:
            self.values.clear()
            del self.totals[match]

    def remember(self, before: Slide) -> None:
        """Know of what has not run for longer than the window, as the one before did."""
        for match, total in before.totals.items():
            if match not in self.totals and len(self.totals) < MAX_MATCHES:
                known = self.totals[match] = Sum()
                known.first_ms, known.last_ms = total.first_ms, total.last_ms
                self.values.clear()

    def shift(self, by_ms: int) -> None:
        """The clock was set: what lies some minutes back lies some minutes back."""
        self._pack(inf)
        by_ms = round(by_ms / self.bucket_ms) * self.bucket_ms
        self._buckets = {start + by_ms: bucket for start, bucket in self._buckets.items()}
        self._oldest_ms += by_ms
        for total in self.totals.values():
            total.first_ms += by_ms
            total.last_ms += by_ms


class Sums:
    """All signals of the rules. `end_ms` is where their windows end."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        signals = {signal_of(rule) for rule in rules if rule.about.source == "runs"}
        self._begin(signals, Routes(signals))

    def _begin(self, signals: Iterable[Signal], routes: Routes) -> None:
        self.slides = {signal: Slide(signal.window_ms) for signal in signals}
        self.end_ms = 0
        self._routes = routes

    def empty(self) -> Sums:
        """Others of the same rules, to be filled."""
        other = Sums(())
        other._begin(self.slides, self._routes)
        return other

    @property
    def longest_ms(self) -> int:
        """From so long ago windows are needed, at the start."""
        return max((s.window_ms + s.bucket_ms for s in self.slides.values()), default=0)

    @property
    def wants_steps(self) -> bool:
        return any(signal.step is not None for signal in self.slides)

    def add(self, start_ms: int, window: Window | Mapping[Key, Stats]) -> None:
        for key, stats in window.items():
            if routes := self._routes.of(key):
                alone = Part.of(stats)
                for signal, match in routes:
                    self.slides[signal].add(start_ms, match, stats, alone)

    def advance(self, end_ms: int) -> None:
        self.end_ms = end_ms
        for slide in self.slides.values():
            slide.advance(end_ms)

    def remember(self, before: Sums) -> None:
        """Know whom these knew, where nothing of them was added."""
        for signal, slide in self.slides.items():
            if (known := before.slides.get(signal)) is not None:
                slide.remember(known)

    def shift(self, by_ms: int) -> None:
        for slide in self.slides.values():
            slide.shift(by_ms)

    def of(self, rule: Rule) -> dict[Match, Sum]:
        return self.slides[signal_of(rule)].totals

    def values(self, rule: Rule) -> Mapping[Match, float | None]:
        """A rule's number of each match; rules that ask the same share it while it holds."""
        slide, asked = self.slides[signal_of(rule)], (rule.metric, rule.least_runs)
        values = slide.values.get(asked)
        if values is None:
            values = {match: value_of(rule, total) for match, total in slide.totals.items()}
            slide.values[asked] = values
        return values

    def left_out(self, rule: Rule) -> int:
        return self.slides[signal_of(rule)].left_out if rule.about.source == "runs" else 0


class Filling:
    """Takes rows of the history, in any order, into sums of their own, and keeps none.

    `moved` says where a window lies on the clock as it is now.
    """

    def __init__(self, sums: Sums, moved: Callable[[int], int]) -> None:
        self.sums = sums.empty()
        self.failures = (0, 0)  # the start of the newest window that has any, and how many
        self._moved = moved

    def add(self, start_ms: int, _node: str, key: Key, stats: Stats) -> None:
        self.sums.add(self._moved(start_ms), {key: stats})
        if stats.failed and key.pipeline and not (key.step or key.error):
            newest_ms, failed = self.failures
            if start_ms >= newest_ms:
                failed = stats.failed + (failed if start_ms == newest_ms else 0)
                self.failures = (start_ms, failed)


def value_of(rule: Rule, total: Sum) -> float | None:
    """A rule's number of some runs, in its unit; None where there are too few to say."""
    match rule.metric:
        case "failures":
            return float(total.failed)
        case "retries":
            return float(total.retries)
        case "runs_per_hour":
            return total.runs * HOUR_MS / rule.window
        case "error_rate":
            return 100 * total.failed / total.runs if _enough(rule, total.runs) else None
        case "avg":
            return total.total_us / total.timed / 1000 if _enough(rule, total.timed) else None
        case "wait_p95":
            return _quantile(rule, total.waits, 0.95, total.waits.count)
    q = {"p50": 0.50, "p95": 0.95, "p99": 0.99}[rule.metric]
    return _quantile(rule, total.histogram, q, total.timed)


def _quantile(rule: Rule, histogram: Histogram, q: float, count: int) -> float | None:
    if not _enough(rule, count):
        return None
    [value] = histogram.quantiles((q,), 0, 1 << 62)
    return value / 1000


def _enough(rule: Rule, count: int) -> bool:
    return count >= max(rule.least_runs, 1)


def change_of(rule: Rule, now: Sum, before: Sum) -> float | None:
    """By how much a number has changed: points of an error rate, percent of a duration."""
    value, earlier = value_of(rule, now), value_of(rule, before)
    if value is None or earlier is None:
        return None
    if rule.metric == "error_rate":
        return value - earlier
    return 100 * (value - earlier) / earlier if earlier else None
