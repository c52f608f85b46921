"""
A histogram of durations whose merge is exact and whose quantiles have a known error.

Exponential buckets as the OpenTelemetry data model defines them
(opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram), at
fixed scale 5 over seconds: base 2^(1/32), bucket i covers (base^i, base^(i+1)],
zero has its own. The scale never changes, so merging is addition, and powers of
two of a second are exact edges.

The counts lie side by side in one whole number, 64 bits each. Merging two
histograms is then the addition of two numbers: 0.2 us for 60 buckets, where
dicts take 4, and a quarter of the memory. In return, one run alone costs a
number of the whole width.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from math import ceil, log2
from operator import is_

SCALE = 5
PER_DOUBLING = 1 << SCALE
BASE = 2.0 ** (1 / PER_DOUBLING)
MICROSECONDS = 1_000_000
LANE = 64  # bits of a count
# Zero is what took less than half a microsecond; below this edge of a bucket there is no other.
ZERO_THRESHOLD = 2.0**-21  # seconds

# To look a duration up in a table of cells of equal length costs half of what its logarithm
# does. A table is made for a column's magnitude: its cells reach to the longest. What is a
# tenth of that lies in a cell of one bucket 97 times of a hundred.
_CELL_BITS = 14
_TABLES = 16  # that are kept, of 128 KB each
_WORTH_A_TABLE = 32  # durations
MAX_HELD = 50_000  # durations in all samples: two megabytes

_HEADER = struct.Struct("<bhQ")  # bytes of a count (negative: sparse), first bucket, zeroes
_TYPES = {1: "B", 2: "H", 4: "I", 8: "Q"}  # of array.array, by bytes of a count


def bucket_of(duration_us: int) -> int:
    """The index i of the bucket (base^i, base^(i+1)] that holds a positive duration."""
    # The division is exact for powers of two, and so is log2 of them; multiplying
    # by 1e-6, or truncating instead of rounding up, puts them one bucket off.
    return ceil(log2(duration_us / MICROSECONDS) * PER_DOUBLING) - 1


_MARK = 1 - bucket_of(1)  # what makes of a bucket's index a number above zero, its mark


def _counts_of(durations_us: Sequence[int]) -> Mapping[int, int]:
    """How many are in each bucket. Raises ValueError for a duration of zero."""
    if len(durations_us) < _WORTH_A_TABLE:
        # bucket_of, inlined; a Counter counts in C.
        return Counter([ceil(log2(d / MICROSECONDS) * PER_DOUBLING) - 1 for d in durations_us])
    shift = max(max(durations_us).bit_length() - _CELL_BITS, 0)
    cells = _cells(shift)
    marks = Counter(
        [
            cells[d >> shift] or ceil(log2(d / MICROSECONDS) * PER_DOUBLING) - 1 + _MARK
            for d in durations_us
        ]
    )
    return {mark - _MARK: count for mark, count in marks.items()}


@lru_cache(_TABLES)
def _cells(shift: int) -> list[int]:
    """By duration >> shift: the mark of the bucket; 0 where the cell lies in several."""
    marks = [0]  # zero is in this cell
    while len(marks) < 1 << _CELL_BITS:
        first = len(marks) << shift
        bucket = bucket_of(first)
        # All cells that end before the bucket does.
        count = (int(BASE ** (bucket + 1) * MICROSECONDS) + 1 >> shift) - len(marks)
        marks += [bucket + _MARK] * count if count > 0 else [0]
    return marks[: 1 << _CELL_BITS]


class Histogram:
    """Counts by bucket, of durations in whole microseconds, zero or more.

    `lanes` holds the counts, bucket `first` in its lowest 64 bits.
    """

    __slots__ = ("_first", "_lanes", "_zeroes", "samples")

    def __init__(self, zeroes: int = 0, first: int = 0, lanes: int = 0) -> None:
        self._zeroes = zeroes
        self._first = first
        self._lanes = lanes
        self.samples: tuple[Sample, ...] = ()  # on their way into this one

    @property
    def zeroes(self) -> int:
        self.settle()
        return self._zeroes

    @property
    def first(self) -> int:
        self.settle()
        return self._first

    @property
    def lanes(self) -> int:
        self.settle()
        return self._lanes

    def settle(self) -> None:
        """Take in what is on its way; whoever reads does so."""
        for sample in self.samples:
            sample.settle()

    @classmethod
    def of(cls, durations_us: Sequence[int]) -> Histogram:
        """The histogram of a sample."""
        if len(durations_us) == 1 and durations_us[0]:
            i = bucket_of(durations_us[0])
            first = i // PER_DOUBLING * PER_DOUBLING
            return cls(0, first, 1 << (i - first) * LANE)
        try:
            return cls.of_buckets(_counts_of(durations_us))
        except ValueError:  # the logarithm of zero, for which to look beforehand costs a tenth
            positive = [duration for duration in durations_us if duration]
            return cls.of_buckets(_counts_of(positive), len(durations_us) - len(positive))

    @classmethod
    def of_buckets(cls, buckets: Mapping[int, int], zeroes: int = 0) -> Histogram:
        """The histogram with these counts by bucket."""
        if not buckets:
            return cls(zeroes)
        # On a whole doubling: two histograms then mostly begin alike, and add as they are.
        first = min(buckets) // PER_DOUBLING * PER_DOUBLING
        counts = array("Q", bytes(8 * (max(buckets) - first + 1)))
        for i, count in buckets.items():
            counts[i - first] = count
        return cls(zeroes, first, int.from_bytes(counts, "little"))

    def merge(self, other: Histogram) -> None:
        """Add the other's sample to this one; exact, because the buckets are the same."""
        if other.samples:
            other.settle()
        self._zeroes += other._zeroes
        if not self._lanes:
            self._first, self._lanes = other._first, other._lanes
        elif self._first == other._first:
            self._lanes += other._lanes
        elif other._lanes:
            first = min(self._first, other._first)
            self._lanes <<= (self._first - first) * LANE
            self._lanes += other._lanes << (other._first - first) * LANE
            self._first = first

    def take_away(self, part: Histogram) -> None:
        """The opposite of `merge`, of what was merged and lies within."""
        self.settle()
        self._zeroes -= part.zeroes
        if part.lanes:
            self._lanes -= part.lanes << (part.first - self._first) * LANE

    def copy(self) -> Histogram:
        return Histogram(self.zeroes, self._first, self._lanes)

    @property
    def count(self) -> int:
        return self.zeroes + sum(self.counts())

    def buckets(self) -> Iterator[tuple[int, int]]:
        """Index and count of every bucket that holds something, lowest first."""
        return ((i, n) for i, n in enumerate(self.counts(), self.first) if n)

    def quantiles(self, qs: Sequence[float], low_us: int, high_us: int) -> list[float]:
        """The values of rank floor(q·n) in microseconds, clamped to the sample's [min, max].

        2ab/(a+b) of the bucket (a, b]: the point whose relative distance to both
        edges is equal, so the error is at most (base-1)/(base+1), 1.1 %. Zeroes for
        an empty histogram.
        """
        below = list(accumulate(self.counts(), initial=self.zeroes))
        count = below[-1]
        values = []
        for q in qs:
            rank = min(int(q * count), count - 1)
            if rank < self.zeroes:
                values.append(0.0)
                continue
            i = self.first + bisect_right(below, rank) - 1
            lower: float = BASE**i * MICROSECONDS
            middle: float = 2 * lower * BASE / (1 + BASE)
            values.append(min(max(middle, low_us), high_us))
        return values

    def encode(self) -> bytes:
        """The histogram in few bytes.

        A header of 11 bytes: bytes of a count (1, 2, 4 or 8, whichever the largest
        needs; negative where sparse), index of the first bucket, count of zeroes.
        Then the counts from the first bucket to the last; or, where that is
        shorter, two bytes of position for each bucket that is not empty, and then
        its counts. All are little-endian, as is every machine that we support. With
        counts below 256, 10 buckets side by side are 21 bytes, 100 are 111 and 400
        are 411; 60 buckets scattered over a thousand are 191.
        """
        lanes, first = self.lanes, self.first
        if not lanes:
            return _HEADER.pack(1, 0, self.zeroes)
        empty = ((lanes & -lanes).bit_length() - 1) // LANE
        counts = _array(lanes >> empty * LANE)
        first += empty
        largest = max(counts)
        width = 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4 if largest < 1 << 32 else 8
        filled = len(counts) - counts.count(0)
        if filled * (2 + width) >= len(counts) * width:
            header = _HEADER.pack(width, first, self.zeroes)
            return header + array(_TYPES[width], counts).tobytes()
        places = array("H", (i for i, n in enumerate(counts) if n))
        present = array(_TYPES[width], filter(None, counts))
        header = _HEADER.pack(-width, first, self.zeroes)
        return header + places.tobytes() + present.tobytes()

    @classmethod
    def decode(cls, data: bytes) -> Histogram:
        """What `encode` wrote. Raises ValueError for anything else."""
        try:
            width, first, zeroes = _HEADER.unpack_from(data)
            body = data[_HEADER.size :]
            if width > 0:
                if width not in _TYPES or len(body) % width:
                    raise ValueError("not a histogram: a count is cut off")
                wide = bytearray(8 * (len(body) // width))
                for byte in range(width):
                    wide[byte::8] = body[byte::width]
                return cls(zeroes, first, int.from_bytes(wide, "little"))
            filled = len(body) // (2 - width)
            places = array("H", body[: 2 * filled])
            present = array(_TYPES[-width], body[2 * filled :])
            counts = array("Q", bytes(8 * (places[-1] + 1)))
            for place, n in zip(places, present, strict=True):
                counts[place] = n
            return cls(zeroes, first, int.from_bytes(counts, "little"))
        except (struct.error, KeyError, IndexError) as error:
            raise ValueError(f"not a histogram: {error}") from None

    def counts(self) -> array[int]:
        return _array(self.lanes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self.zeroes == other.zeroes and dict(self.buckets()) == dict(other.buckets())

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Histogram({self.zeroes}, {dict(self.buckets())})"


def _array(lanes: int) -> array[int]:
    return array("Q", lanes.to_bytes(-(-lanes.bit_length() // LANE) * 8, "little"))


class Sample:
    """Durations on their way into histograms, which all take them when one of them is read.

    What a column costs besides its durations is then paid once for many columns, and once
    for all of the histograms.
    """

    __slots__ = ("durations_us", "histograms")

    def __init__(self, histograms: Sequence[Histogram]) -> None:
        self.histograms = histograms
        self.durations_us: list[int] = []
        for histogram in histograms:
            histogram.samples += (self,)

    def settle(self) -> None:
        """Be taken; afterwards it is empty, and of no more use."""
        sample = Histogram.of(self.durations_us)
        self.durations_us = []
        for histogram in self.histograms:
            histogram.samples = tuple(other for other in histogram.samples if other is not self)
            histogram.merge(sample)


class Samples:
    """Samples that are open; when they hold many durations, all are taken."""

    def __init__(self) -> None:
        self._open: list[Sample] = []
        self._held = 0

    def add(self, durations_us: Sequence[int], histograms: Sequence[Histogram]) -> None:
        """Put durations on their way into these; the last should be of few samples."""
        for sample in histograms[-1].samples:
            if all(map(is_, sample.histograms, histograms)):
                break
        else:
            sample = Sample(histograms)
            self._open.append(sample)
        sample.durations_us += durations_us
        self._held += len(durations_us)
        if self._held > MAX_HELD:
            for sample in self._open:
                sample.settle()
            self._open.clear()
            self._held = 0
