"""
Classic buckets: cumulative counts at powers of two of a second.

They are edges of the histogram itself, so that the counts are exact.
"""

from __future__ import annotations

from array import array
from itertools import accumulate

from orbit_service.core.histogram import LANE, PER_DOUBLING, Histogram

EXPONENTS = range(-10, 16)  # from a millisecond to nine hours
EDGES = tuple(2.0**exponent for exponent in EXPONENTS)


def cumulative(histogram: Histogram) -> list[int]:
    """How many durations are at most each of EDGES; what is longer is in the count alone."""
    first, doublings = _by_doubling(histogram)
    below = list(accumulate(doublings, initial=histogram.zeroes))
    before = first - EXPONENTS[0]
    counts = [histogram.zeroes] * before + below if before >= 0 else below[-before:]
    missing = len(EDGES) - len(counts)
    return counts[: len(EDGES)] if missing <= 0 else counts + [below[-1]] * missing


def _by_doubling(histogram: Histogram) -> tuple[int, array[int]]:
    """Sums over (2^k, 2^(k+1)] seconds from some k on, and this k."""
    first, beyond = divmod(histogram.first, PER_DOUBLING)
    lanes = histogram.lanes << beyond * LANE
    # Added to itself shifted by half a doubling, then a quarter, ..., each lane holds the
    # sum of as many as a doubling has: five additions, where a loop would take hundreds.
    half = PER_DOUBLING // 2
    while half:
        lanes += lanes >> half * LANE
        half //= 2
    size = -(-lanes.bit_length() // LANE) * LANE // 8
    return first, array("Q", lanes.to_bytes(size, "little"))[::PER_DOUBLING]
