"""Parts of sums are small, and give back exactly what they were made of."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import T0
from orbit_service.alerts.sums import Packed, Part, Slide
from orbit_service.core.histogram import Histogram
from orbit_service.core.stats import Stats

SEND = ("send",)
BUCKETS = st.dictionaries(st.integers(-700, 1_000), st.integers(1, 2**62), max_size=30)


def some_runs(*durations_us: int) -> Stats:
    stats = Stats()
    stats.add_runs(durations_us, 1, T0)
    stats.add_waits(durations_us)
    return stats


@given(BUCKETS, st.integers(0, 2**62))
def test_a_histogram_comes_back_as_it_was_packed(buckets: dict[int, int], zeroes: int) -> None:
    histogram = Histogram.of_buckets(buckets, zeroes)

    assert Packed.of(histogram).unpacked() == histogram


@pytest.mark.parametrize(
    ("largest", "width"), [(255, 1), (256, 2), (65_535, 2), (65_536, 4), (2**32, 8)]
)
def test_a_count_takes_the_bytes_that_the_largest_needs(largest: int, width: int) -> None:
    packed = Packed.of(Histogram.of_buckets({0: 1, 1: largest, 2: 0, 3: 7}))

    assert (packed.width, len(packed.counts)) == (width, 4 * width)


def test_a_part_is_no_work_for_the_garbage_collector() -> None:
    part = Part.of(some_runs(1, 1_000_000))

    assert not any(map(gc.is_tracked, (part, part.durations, part.waits)))


def test_what_was_added_to_a_packed_part_goes_with_it() -> None:
    slide = Slide(3_600_000)
    for n in range(4):  # of one minute, which is a part of an hour
        slide.add(T0 + n * 10_000, SEND, some_runs(n + 1, 900_000))
        slide.advance(T0 + n * 10_000 + 10_000)
    slide.add(T0 + 60_000, SEND, some_runs(7))
    slide.advance(T0 + 3_600_000 + 60_000)

    [total] = slide.totals.values()
    assert (total.runs, total.failed, total.total_us) == (1, 1, 7)
    assert total.histogram == total.waits == Histogram.of((7,))
