"""Exponential buckets at scale 5 over seconds: exact to merge, of known error to read."""

from __future__ import annotations

from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbit_rpc_schema.wire import MAX_DURATION_US
from orbit_service.core.histogram import BASE, MAX_HELD, Histogram, Samples, bucket_of


def edge(bucket: int) -> int:
    return min(int(BASE ** (bucket + 1) * 1_000_000), MAX_DURATION_US)


quick = settings(max_examples=60, deadline=None, derandomize=True)

durations = st.lists(st.integers(0, MAX_DURATION_US) | st.integers(0, 10_000_000), max_size=60)
# Long enough to be looked up in the table of their magnitude, edges of buckets among them.
alike = st.integers(1, 48).flatmap(
    lambda bits: st.lists(
        st.integers(0, min(2**bits, MAX_DURATION_US))
        | st.integers(-640, 32 * bits - 638).map(edge),
        min_size=40,
        max_size=80,
    )
)
from_50_us = st.lists(st.integers(50, MAX_DURATION_US) | st.integers(50, 10**7), min_size=1)
quantiles = st.sampled_from([0.0, 0.25, 0.5, 0.95, 0.99, 1.0])


def a_histogram(*durations_us: int) -> Histogram:
    return Histogram.of(durations_us)


def quantile(histogram: Histogram, q: float, low_us: int, high_us: int) -> float:
    [value] = histogram.quantiles([q], low_us, high_us)
    return value


def contents(histogram: Histogram) -> tuple[int, dict[int, int]]:
    return histogram.zeroes, dict(histogram.buckets())


def merged(*parts: Histogram) -> Histogram:
    total = Histogram()
    reduce(lambda _none, part: total.merge(part), parts, None)
    return total


# ---------------------------------------------------------------- buckets


@pytest.mark.parametrize(
    ("duration_us", "bucket"),
    [
        pytest.param(1_000_000, -1, id="1 s is the upper edge of (base^-1, 1]"),
        pytest.param(1_000_001, 0, id="what is over it is in the next"),
        pytest.param(2_000_000, 31, id="a doubling is 32 buckets"),
        pytest.param(2_000_001, 32, id="its edge is exact too"),
        pytest.param(500_000, -33, id="and below a second"),
        pytest.param(500_001, -32, id="likewise"),
        pytest.param(15_625, -193, id="1/64 s, the smallest that is whole microseconds"),
        pytest.param(1_000_000 << 28, 28 * 32 - 1, id="eight years"),
        pytest.param(1, -638, id="a microsecond"),
    ],
)
def test_powers_of_two_of_a_second_are_exact_inclusive_edges(duration_us: int, bucket: int) -> None:
    assert bucket_of(duration_us) == bucket


@quick
@given(st.integers(1, MAX_DURATION_US))
def test_a_bucket_holds_what_is_in_it(duration_us: int) -> None:
    i = bucket_of(duration_us)

    assert BASE**i * 0.999_999 < duration_us / 1e6 <= BASE ** (i + 1) * 1.000_001


@quick
@given(durations | alike)
def test_each_duration_is_in_its_bucket(sample: list[int]) -> None:
    histogram = a_histogram(*sample)

    positive = [bucket_of(d) for d in sample if d]
    assert dict(histogram.buckets()) == {i: positive.count(i) for i in positive}
    assert histogram.zeroes == sample.count(0)
    assert histogram.count == len(sample)


# ---------------------------------------------------------------- merging


@quick
@given(durations, durations)
def test_a_merge_is_the_histogram_of_both_samples(one: list[int], other: list[int]) -> None:
    both = merged(a_histogram(*one), a_histogram(*other))

    assert contents(both) == contents(a_histogram(*one, *other))


@quick
@given(st.lists(durations, max_size=4).flatmap(lambda s: st.tuples(st.just(s), st.permutations(s))))
def test_the_order_of_merging_does_not_matter(samples: tuple[list[list[int]], ...]) -> None:
    one, other = ([a_histogram(*sample) for sample in order] for order in samples)

    assert contents(merged(*one)) == contents(merged(*other))


def test_a_merge_leaves_the_other_as_it_was() -> None:
    other = a_histogram(5, 0)
    a_histogram(5).merge(other)

    assert contents(other) == contents(a_histogram(5, 0))


# ---------------------------------------------------------------- samples on their way


@quick
@given(st.lists(st.tuples(st.sampled_from(["add", "read 0", "read 1", "read 2"]), durations)))
def test_whenever_one_is_read_all_hold_what_was_added(steps: list[tuple[str, list[int]]]) -> None:
    samples, histograms, added = Samples(), [Histogram() for _ in range(3)], []
    for step, durations_us in steps:
        if step == "add":
            samples.add(durations_us, histograms)
            added += durations_us
        else:
            assert contents(histograms[int(step[-1])]) == contents(a_histogram(*added))


def test_one_that_is_in_several_samples_takes_them_all() -> None:
    samples, total, parts = Samples(), Histogram(), [Histogram(), Histogram()]
    for number, part in enumerate(parts, 1):
        samples.add([number], [total, part])

    assert contents(total) == contents(a_histogram(1, 2))
    assert [contents(part) for part in parts] == [contents(a_histogram(n)) for n in (1, 2)]


def test_samples_of_one_window_and_two_lives_are_two() -> None:
    samples, lives, window = Samples(), [Histogram(), Histogram()], Histogram()
    for number, life in enumerate(lives, 1):
        samples.add([number], [life, window])

    assert [contents(life) for life in lives] == [contents(a_histogram(n)) for n in (1, 2)]
    assert contents(window) == contents(a_histogram(1, 2))


def test_what_is_held_back_has_a_bound() -> None:
    samples, histogram = Samples(), Histogram()
    for _ in range(3):
        samples.add([1] * (MAX_HELD // 2), [histogram])

    assert histogram.samples == ()
    assert histogram.count == 3 * (MAX_HELD // 2)


def test_what_is_on_its_way_counts_in_a_merge_and_in_a_copy() -> None:
    histogram = Histogram()
    Samples().add([5], [histogram])

    assert contents(merged(histogram)) == contents(histogram.copy()) == contents(a_histogram(5))


def test_what_was_merged_can_be_taken_away() -> None:
    total = merged(a_histogram(0, 5), a_histogram(5, 90))
    total.take_away(a_histogram(0, 5))

    assert contents(total) == contents(a_histogram(5, 90))


# ---------------------------------------------------------------- quantiles


@quick
@given(from_50_us, quantiles)
def test_a_quantile_is_within_1_1_percent_of_a_plain_sort(sample: list[int], q: float) -> None:
    exact = sorted(sample)[min(int(q * len(sample)), len(sample) - 1)]
    found = quantile(a_histogram(*sample), q, min(sample), max(sample))

    assert abs(found - exact) <= 0.011 * exact


@quick
@given(durations.filter(bool), st.lists(quantiles, min_size=1, max_size=4))
def test_quantiles_are_the_same_together_and_alone(sample: list[int], qs: list[float]) -> None:
    histogram, ends = a_histogram(*sample), (min(sample), max(sample))

    assert histogram.quantiles(qs, *ends) == [quantile(histogram, q, *ends) for q in qs]


@quick
@given(durations.filter(bool), quantiles)
def test_a_quantile_lies_between_min_and_max(sample: list[int], q: float) -> None:
    found = quantile(a_histogram(*sample), q, min(sample), max(sample))

    assert min(sample) <= found <= max(sample)


@quick
@given(durations.filter(bool), quantiles, quantiles)
def test_a_higher_quantile_is_not_lower(sample: list[int], p: float, q: float) -> None:
    low, high = (
        quantile(a_histogram(*sample), x, min(sample), max(sample)) for x in sorted((p, q))
    )

    assert low <= high


@pytest.mark.parametrize(
    ("sample", "q", "expected"),
    [
        pytest.param([], 0.5, 0.0, id="of nothing is zero"),
        pytest.param([0, 0, 0], 0.99, 0.0, id="of zeroes is zero"),
        pytest.param([777], 0.5, 777.0, id="of one run is that run"),
        pytest.param([777] * 9, 0.99, 777.0, id="of equal runs is exact"),
        pytest.param([0, 777], 0.5, 777.0, id="has rank floor(q n)"),
        pytest.param([0, 0, 777], 0.5, 0.0, id="so here it is still zero"),
    ],
)
def test_a_quantile(sample: list[int], q: float, expected: float) -> None:
    low, high = min(sample, default=0), max(sample, default=0)

    assert quantile(a_histogram(*sample), q, low, high) == expected


def test_inside_a_bucket_a_quantile_is_where_both_edges_are_relatively_as_far() -> None:
    lower, upper = 1e6, 1e6 * BASE
    found = quantile(a_histogram(1_010_000), 0.5, 0, 10**9)

    assert found == pytest.approx(2 * lower * upper / (lower + upper))
    assert (found - lower) / lower == pytest.approx((upper - found) / upper)


# ---------------------------------------------------------------- encoding


@quick
@given(durations)
def test_what_is_encoded_is_decoded_the_same(sample: list[int]) -> None:
    histogram = a_histogram(*sample)

    assert Histogram.decode(histogram.encode()) == histogram


@pytest.mark.parametrize("count", [1, 2**8 - 1, 2**8, 2**16, 2**32, 2**63 - 1])
@pytest.mark.parametrize("others", [{}, {-101: 1}, {500: 1}], ids=["alone", "beside", "far off"])
def test_counts_of_every_size_are_kept(count: int, others: dict[int, int]) -> None:
    histogram = Histogram.of_buckets({-100: count, **others}, zeroes=3)

    assert Histogram.decode(histogram.encode()) == histogram


@pytest.mark.parametrize(
    ("buckets", "size"),
    [
        pytest.param(range(10), 21, id="10 side by side"),
        pytest.param(range(100), 111, id="100"),
        pytest.param(range(400), 411, id="400"),
        pytest.param(range(0, 960, 16), 191, id="60 scattered over a thousand"),
    ],
)
def test_it_takes_as_many_bytes_as_it_says(buckets: range, size: int) -> None:
    assert len(Histogram.of_buckets(dict.fromkeys(buckets, 200)).encode()) == size


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"\x03" + bytes(12), b"\x02" + bytes(11), b"\xff" + bytes(12)]
)
def test_what_is_no_histogram_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a histogram|bytes"):
        Histogram.decode(data)
