"""
Rows of windows, summed by what was asked, and said in numbers.

Rows come one at a time, from the database and from memory, in any order; what
takes them keeps sums only, so that a month costs as much memory as its points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from orbit_rpc_schema.procedures import Change, Summary
from orbit_service.core.outbox import Key
from orbit_service.core.stats import Stats, percent, rounded


class Totals:
    """Sums of the rows of a range, by node and key."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, Key], Stats] = defaultdict(Stats)

    def add(self, _start_ms: int, node: str, key: Key, stats: Stats) -> None:
        self.sums[node, key].merge(stats)

    def runs(self) -> Iterator[tuple[str, Key, Stats]]:
        """Those of runs; the others are of steps or errors."""
        return (
            (node, key, total)
            for (node, key), total in self.sums.items()
            if not (key.step or key.error)
        )


def summary(stats: Stats, length_ms: int) -> Summary:
    """The numbers of some runs; null where there are none to tell of."""
    quantiles: Sequence[int | None] = (None, None, None)
    if timed := stats.timed > 0:
        quantiles = stats.quantiles_ms(0.50, 0.95, 0.99)
    p50, p95, p99 = quantiles
    return Summary(
        runs=stats.runs,
        failed=stats.failed,
        retries=stats.retries,
        avg=stats.average_ms if timed else None,
        min=stats.min_ms if timed else None,
        max=stats.max_ms if timed else None,
        p50=p50,
        p95=p95,
        p99=p99,
        # A step is as long as it is: a minute's floor would make ten seconds slower.
        runs_per_hour=rounded(stats.runs * 3_600_000 * 100, length_ms) / 100,
        error_rate=percent(stats.failed, stats.runs) if stats.runs else None,
    )


def change(before: Summary, now: Summary) -> Change:
    errors = None
    if now.error_rate is not None and before.error_rate is not None:
        errors = round(now.error_rate - before.error_rate, 2)
    return Change(
        before=before,
        runs_per_hour=_percent_change(before.runs_per_hour, now.runs_per_hour),
        error_rate=errors,
        p95=_percent_change(before.p95, now.p95),
    )


def _percent_change(before: float | None, now: float | None) -> float | None:
    if not before or now is None:
        return None
    return round(100 * (now - before) / before, 2)
