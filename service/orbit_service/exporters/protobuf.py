"""
Families as Prometheus's protobuf, the one form that carries native histograms.

io.prometheus.client.MetricFamily of github.com/prometheus/client_model, each with its
length before it. The buckets are the histogram's own: schema 5 has the same base, and
counts a bucket by its upper edge where ours counts by the lower, so the index is one
higher. Nothing is lost. The few kinds of fields that are needed are written by hand:
a library would bring ten times as much to every service for the sake of this file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache

from orbit_service.core.histogram import SCALE, ZERO_THRESHOLD
from orbit_service.exporters.edges import EDGES, cumulative
from orbit_service.exporters.families import Distribution, Family, Kind, Sample
from orbit_service.exporters.text import KEPT_LABELS

_TYPES: dict[Kind, int] = {"counter": 0, "gauge": 1, "info": 1, "histogram": 4}
_SUFFIX: dict[Kind, str] = {"counter": "_total", "gauge": "", "info": "_info", "histogram": ""}
_VARINT, _FIXED64, _BYTES = 0, 1, 2
_double = struct.Struct("<d").pack


def protobuf(families: Iterable[Family]) -> Iterator[bytes]:
    """Families, in pieces of one each, and empty ones between for whoever takes turns."""
    for family in families:
        metrics = []
        for sample in family.samples:
            metrics.append(_metric(family, sample))
            yield b""
        if not metrics:
            continue
        head = (
            _text(1, family.name + _SUFFIX[family.kind])
            + _text(2, family.help)
            + _number(3, _TYPES[family.kind])
        )
        body = head + b"".join(metrics) + (_text(5, family.unit) if family.unit else b"")
        yield _varint(len(body)) + body


def _metric(family: Family, sample: Sample) -> bytes:
    value = sample.value
    if isinstance(value, Distribution):
        told = _bytes(7, _histogram(value, sample.created_ms))
    elif family.kind == "counter":
        told = _bytes(3, _float(1, value) + _time(3, sample.created_ms))
    else:
        told = _bytes(2, _float(1, value))
    return _bytes(4, _labels(family.labels, sample.labels) + told)


def _histogram(value: Distribution, created_ms: int) -> bytes:
    histogram = value.histogram
    classic = []
    for count, edge in zip(cumulative(histogram), _UPPER_BOUNDS, strict=True):
        told = _varint(count)
        # A bucket of two fields: its length, then the count, then the edge as it always is.
        classic.append(b"\x1a%c\x08%b%b" % (1 + len(told) + len(edge), told, edge))
    deltas, before = [], 0
    spans: list[list[int]] = []  # gap and length
    end = 0
    for index, count in histogram.buckets():
        deltas.append(_zigzag(count - before))
        before = count
        if spans and index == end:
            spans[-1][1] += 1
        else:
            spans.append([index - end if spans else index + 1, 1])
        end = index + 1
    return (
        _number(1, value.count)
        + _float(2, value.sum_us / 1_000_000)
        + b"".join(classic)
        + _number(5, _zigzag(SCALE))
        + _float(6, ZERO_THRESHOLD)
        + _number(7, histogram.zeroes)
        + b"".join([_span(gap, length) for gap, length in spans])
        + (_bytes(13, _packed(deltas)) if deltas else b"")
        + _time(15, created_ms)
    )


@lru_cache(4096)
def _span(gap: int, length: int) -> bytes:
    return _bytes(12, _number(1, _zigzag(gap)) + _number(2, length))


def _packed(numbers: list[int]) -> bytes:
    """Varints one after another."""
    if max(numbers) < 0x80:
        return bytes(numbers)
    return b"".join(map(_varint, numbers))


# ---------------------------------------------------------------- fields
# protobuf.dev/programming-guides/encoding


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _zigzag(number: int) -> int:
    return number << 1 if number >= 0 else (-number << 1) - 1


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | _FIXED64) + _double(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _time(field: int, epoch_ms: int) -> bytes:
    """A google.protobuf.Timestamp; nothing where it is not known."""
    if not epoch_ms:
        return b""
    seconds, ms = divmod(epoch_ms, 1000)
    return _bytes(field, _number(1, seconds) + _number(2, ms * 1_000_000))


_UPPER_BOUNDS = [_float(2, edge) for edge in EDGES]


@lru_cache(KEPT_LABELS)
def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> bytes:
    return b"".join(
        _bytes(1, _text(1, name) + _text(2, value))
        for name, value in zip(names, values, strict=True)
    )
