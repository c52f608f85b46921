"""
A histogram of durations whose merge is exact and whose quantiles have a known error.

Exponential buckets as the OpenTelemetry data model defines them
(opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram), at
fixed scale 5 over seconds: base 2^(1/32), bucket i covers (base^i, base^(i+1)],
zero has its own. The scale never changes, so merging is addition, and powers of
two of a second are exact edges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil, log2

SCALE = 5
PER_DOUBLING = 1 << SCALE
BASE = 2.0 ** (1 / PER_DOUBLING)
MICROSECONDS = 1_000_000


def bucket_of(duration_us: int) -> int:
    """The index i of the bucket (base^i, base^(i+1)] that holds a positive duration."""
    # The division is exact for powers of two, and so is log2 of them; multiplying
    # by 1e-6, or truncating instead of rounding up, puts them one bucket off.
    return ceil(log2(duration_us / MICROSECONDS) * PER_DOUBLING) - 1


@dataclass(slots=True)
class Histogram:
    """Counts by bucket. Durations are whole microseconds, zero or more."""

    zeroes: int = 0
    buckets: dict[int, int] = field(default_factory=dict)

    def add(self, durations_us: Iterable[int]) -> None:
        buckets = self.buckets
        get = buckets.get
        for duration in durations_us:
            if duration:
                i = ceil(log2(duration / MICROSECONDS) * PER_DOUBLING) - 1  # bucket_of, inlined
                buckets[i] = get(i, 0) + 1
            else:
                self.zeroes += 1

    def merge(self, other: Histogram) -> None:
        """Add the other's sample to this one; exact, because the buckets are the same."""
        self.zeroes += other.zeroes
        for i, count in other.buckets.items():
            self.buckets[i] = self.buckets.get(i, 0) + count

    @property
    def count(self) -> int:
        return self.zeroes + sum(self.buckets.values())

    def quantile(self, q: float, low_us: int, high_us: int) -> float:
        """The value of rank floor(q·n) in microseconds, clamped to the sample's [min, max].

        2ab/(a+b) of the bucket (a, b]: the point whose relative distance to both
        edges is equal, so the error is at most (base-1)/(base+1), 1.1 %. Zero for
        an empty histogram.
        """
        count = self.count
        if not count:
            return 0.0
        rank = min(int(q * count), count - 1)
        below = self.zeroes
        if rank < below:
            return 0.0
        for i in sorted(self.buckets):
            below += self.buckets[i]
            if rank < below:
                lower: float = BASE**i * MICROSECONDS
                middle: float = 2 * lower * BASE / (1 + BASE)
                return min(max(middle, low_us), high_us)
        raise AssertionError("a rank below the count lies in some bucket")
