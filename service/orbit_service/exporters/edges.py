"""
Classic buckets: cumulative counts at powers of two of a second.

They are edges of the histogram itself, so that the counts are exact.
"""

from __future__ import annotations

from itertools import accumulate

from orbit_service.core.histogram import PER_DOUBLING, Histogram

EXPONENTS = range(-10, 16)  # from a millisecond to nine hours
EDGES = tuple(2.0**exponent for exponent in EXPONENTS)


def cumulative(histogram: Histogram) -> list[int]:
    """How many durations are at most each of EDGES; what is longer is in the count alone."""
    below = list(accumulate(histogram.counts(), initial=histogram.zeroes))
    last = len(below) - 1
    # Bucket i ends at base^(i+1): what ends at 2^k are the buckets below k doublings.
    places = (k * PER_DOUBLING - histogram.first for k in EXPONENTS)
    return [below[min(max(place, 0), last)] for place in places]
