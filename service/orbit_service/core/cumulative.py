"""
What a node has counted since its state began, for exporters: sums that never go back.

A life ends and its totals with it; these go on. One series for each worker and
pipeline, whatever the version. A series whose place is given away to another leaves
what it counted to all gone ones of its pipeline, so that their sum without the worker's
name does not go back either; the worker itself begins anew, should it come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct, field

from orbit_service.core.cardinality import (
    MAX_PAIRS,
    OTHER_ERRORS,
    OTHER_PIPELINES,
    OTHER_STEPS,
)
from orbit_service.core.histogram import Histogram
from orbit_service.core.ledger import MAX_REASONS
from orbit_service.core.stats import Stats

MAX_ERROR_TYPES = 2_000  # of all series together, and of steps so many
MAX_STEPS = 10_000

UNKNOWN_ERROR = "(unknown)"  # of a failure that did not tell its type

Pair = tuple[str, str]  # worker, pipeline


class Series(Struct, array_like=True, gc=False):
    """Runs of one pipeline; `created_ms` is when it began to count."""

    created_ms: int
    runs: Stats = field(default_factory=Stats)
    # Where 0.1 kept what is in `runs` now: taken over from what it wrote, and empty in what
    # it may have to read.
    older_waits: Histogram = field(default_factory=Histogram)
    errors: dict[str, int] = field(default_factory=dict)
    steps: dict[str, Stats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.older_waits.lanes or self.older_waits.zeroes:
            self.runs.waits, self.older_waits = self.older_waits, Histogram()

    def merge(self, other: Series) -> None:
        self.created_ms = min(self.created_ms, other.created_ms)
        self.runs.merge(other.runs)
        for type, count in other.errors.items():
            self.errors[type] = self.errors.get(type, 0) + count
        for name, stats in other.steps.items():
            self.steps.setdefault(name, Stats()).merge(stats)

    def copy(self) -> Series:
        """As it is now; it shares nothing that changes."""
        return Series(
            self.created_ms,
            self.runs.copy(),
            errors=dict(self.errors),
            steps={name: stats.copy() for name, stats in self.steps.items()},
        )


class Cumulative(Struct):
    """Every series of a node. `gone` holds by pipeline what gave its place away."""

    series: dict[Pair, Series] = field(default_factory=dict)
    gone: dict[str, Series] = field(default_factory=dict)
    # The most that workers have said they dropped, by reason: what seemed dropped may
    # turn out to have been counted.
    dropped: dict[str, int] = field(default_factory=dict)
    error_types: int = 0
    steps: int = 0

    def of(self, pair: Pair, now_ms: int) -> Series:
        series = self.series.get(pair)
        if series is None:
            series = self.series[pair] = Series(now_ms)
        return series

    def saw_dropped(self, dropped: Mapping[str, int]) -> None:
        for reason, results in dropped.items():
            if reason not in self.dropped and len(self.dropped) >= MAX_REASONS:
                continue  # the ledger has folded others into one of its own
            self.dropped[reason] = max(self.dropped.get(reason, 0), results)

    def add_error(self, series: Series, type: str, count: int = 1) -> None:
        if type not in series.errors and type != OTHER_ERRORS:
            if self.error_types >= MAX_ERROR_TYPES:
                type = OTHER_ERRORS
            else:
                self.error_types += 1
        series.errors[type] = series.errors.get(type, 0) + count

    def step(self, series: Series, name: str) -> Stats:
        if name not in series.steps and name != OTHER_STEPS:
            if self.steps >= MAX_STEPS:
                name = OTHER_STEPS
            else:
                self.steps += 1
        return series.steps.setdefault(name, Stats())

    def let_go(self, pair: Pair) -> None:
        """The pair's place is another's from now on."""
        series = self.series.pop(pair, None)
        if series is None:
            return
        self.error_types -= len(series.errors.keys() - {OTHER_ERRORS})
        self.steps -= len(series.steps.keys() - {OTHER_STEPS})
        pipeline = pair[1]
        if pipeline not in self.gone and len(self.gone) >= MAX_PAIRS:
            pipeline = OTHER_PIPELINES
        if pipeline in self.gone:
            self.gone[pipeline].merge(series)
        else:
            self.gone[pipeline] = series

    def by_pipeline(self) -> dict[str, Series]:
        """All workers together, gone ones too; copies."""
        total: dict[str, Series] = {}
        named: Iterable[tuple[str, Series]] = (
            (pipeline, series) for (_worker, pipeline), series in self.series.items()
        )
        for pipeline, series in (*named, *self.gone.items()):
            if pipeline in total:
                total[pipeline].merge(series)
            else:
                total[pipeline] = series.copy()
        return total
