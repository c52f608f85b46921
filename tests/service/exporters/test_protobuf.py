"""Prometheus's protobuf, read back by protobuf itself."""

from __future__ import annotations

from itertools import accumulate

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from builders import T0
from orbit_service.core.histogram import Histogram
from orbit_service.exporters.edges import EDGES, cumulative
from orbit_service.exporters.families import Distribution, Family, Sample
from orbit_service.exporters.protobuf import protobuf

# The fields that we use of github.com/prometheus/client_model, io/prometheus/client/metrics.proto.
MESSAGES = {
    "LabelPair": "name:1:string value:2:string",
    "Value": "value:1:double created_timestamp:3:Time",  # Counter and Gauge
    "Time": "seconds:1:int64 nanos:2:int32",
    "Bucket": "cumulative_count:1:uint64 upper_bound:2:double",
    "BucketSpan": "offset:1:sint32 length:2:uint32",
    "Histogram": (
        "sample_count:1:uint64 sample_sum:2:double bucket:3:Bucket* schema:5:sint32 "
        "zero_threshold:6:double zero_count:7:uint64 positive_span:12:BucketSpan* "
        "positive_delta:13:sint64* created_timestamp:15:Time"
    ),
    "Metric": "label:1:LabelPair* gauge:2:Value counter:3:Value histogram:7:Histogram",
    "MetricFamily": "name:1:string help:2:string type:3:int32 metric:4:Metric* unit:5:string",
}


def _message(name: str):
    file = descriptor_pb2.FileDescriptorProto(name="metrics.proto", syntax="proto2")
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for field in fields.split():
            label, number, kind = field.rstrip("*").split(":")
            told = described.field.add(name=label, number=int(number))
            told.label = told.LABEL_REPEATED if field.endswith("*") else told.LABEL_OPTIONAL
            if kind in MESSAGES:
                told.type, told.type_name = told.TYPE_MESSAGE, f".{kind}"
            else:
                told.type = getattr(told, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


MetricFamily = _message("MetricFamily")


def read(*told: Family):
    """The families, and nothing left over."""
    data, found = b"".join(protobuf(told)), []
    while data:
        size = shift = at = 0
        while True:
            size |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if not data[at - 1] & 0x80:
                break
        found.append(MetricFamily.FromString(data[at : at + size]))
        data = data[at + size :]
    return found


def native(histogram) -> dict[int, int]:
    """Count by index, as prometheus.io/docs/specs/native_histograms tells spans and deltas."""
    counts = iter(accumulate(histogram.positive_delta))
    buckets, index = {}, 0
    for span in histogram.positive_span:
        index += span.offset
        for _ in range(span.length):
            buckets[index] = next(counts)
            index += 1
    assert list(counts) == []
    return buckets


@given(durations=st.lists(st.integers(0, 10**12), max_size=30))
def test_a_native_histogram_loses_nothing(durations):
    histogram = Histogram.of(durations)
    value = Distribution(len(durations), sum(durations), histogram)
    [family] = read(Family("orbit_x_seconds", "histogram", "", (), [Sample((), value, T0)]))
    [metric] = family.metric
    told = metric.histogram

    # Theirs counts a bucket by its upper edge, ours by the lower.
    assert native(told) == {index + 1: count for index, count in histogram.buckets()}
    assert (told.schema, told.zero_count) == (5, histogram.zeroes)
    assert (told.sample_count, told.sample_sum) == (len(durations), sum(durations) / 1_000_000)


def test_a_native_histogram_has_the_classic_buckets_too():
    histogram = Histogram.of([1_000, 2_000_000])
    value = Distribution(2, 2_001_000, histogram)
    [family] = read(Family("orbit_x_seconds", "histogram", "", (), [Sample((), value, T0)]))

    buckets = family.metric[0].histogram.bucket
    assert [b.upper_bound for b in buckets] == list(EDGES)
    assert [b.cumulative_count for b in buckets] == cumulative(histogram)


@pytest.mark.parametrize(
    ("kind", "name", "type", "field"),
    [
        ("counter", "orbit_x_total", 0, "counter"),
        ("gauge", "orbit_x", 1, "gauge"),
        ("info", "orbit_x_info", 1, "gauge"),
    ],
)
def test_a_number_reads_back(kind, name, type, field):
    told = Family("orbit_x", kind, "What it is.", ("a", "b"), [Sample(("1", "ü"), 300, T0 + 250)])
    [family] = read(told)
    [metric] = family.metric

    assert (family.name, family.help, family.type) == (name, "What it is.", type)
    assert [(pair.name, pair.value) for pair in metric.label] == [("a", "1"), ("b", "ü")]
    assert getattr(metric, field).value == 300


def test_a_counter_tells_when_it_was_created():
    [family] = read(Family("orbit_x", "counter", "", (), [Sample((), 1, T0 + 250)]))

    created = family.metric[0].counter.created_timestamp
    assert (created.seconds, created.nanos) == (T0 // 1000, 250_000_000)


def test_a_family_without_samples_is_left_out():
    assert read(Family("orbit_x", "gauge", "", (), [])) == []
