"""The request of OTLP, read back by OpenTelemetry's own messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE

from builders import MS, T0, a_batch, a_record, a_result, a_session, an_error
from orbit_service.core.histogram import Histogram
from orbit_service.exporters.families import Distribution, Family, Sample, families
from orbit_service.exporters.otlp import rejected, request

RESOURCE = {"service.name": "orbit-metrics"}


def read(*told: Family):
    """The metrics by name."""
    message = ExportMetricsServiceRequest.FromString(request(told, RESOURCE, "1.2.3", T0 + 1))
    [of_resource] = message.resource_metrics
    [scope] = of_resource.scope_metrics
    assert attributes(of_resource.resource) == RESOURCE
    assert (scope.scope.name, scope.scope.version) == ("orbit_metrics", "1.2.3")
    return {metric.name: metric for metric in scope.metrics}


def attributes(of) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in of.attributes}


@given(durations=st.lists(st.integers(0, 10**12), min_size=1, max_size=30))
def test_a_histogram_is_theirs_bucket_by_bucket(durations):
    histogram = Histogram.of(durations)
    low, high = min(durations), max(durations)
    value = Distribution(len(durations), sum(durations), histogram, low, high)
    told = Family("x", "histogram", "", (), [Sample((), value, T0)], otel="x", otel_unit="s")
    theirs = read(told)["x"].exponential_histogram
    [point] = theirs.data_points

    counts = enumerate(point.positive.bucket_counts, point.positive.offset)
    assert {i: n for i, n in counts if n} == dict(histogram.buckets())
    assert (point.scale, point.zero_count, point.count) == (5, histogram.zeroes, len(durations))
    assert (point.sum, point.min, point.max) == (
        sum(durations) / 1_000_000,
        low / 1_000_000,
        high / 1_000_000,
    )
    assert theirs.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE


async def test_counts_are_cumulative_from_when_they_began(collector, reader):
    failed = a_result("a", failed=True, error=an_error("ValueError"))
    collector.record(a_session(collector), a_record(1, failed, a_batch(MS)), T0)
    one = reader()
    metrics = read(*families(await one.read(), one.options))
    runs, errors = metrics["orbit.runs"], metrics["orbit.run.errors"]

    assert (runs.unit, runs.sum.is_monotonic) == ("{run}", True)
    assert runs.sum.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    assert {
        (p.as_int, p.start_time_unix_nano, attributes(p)["orbit.outcome"])
        for p in runs.sum.data_points
    } == {(1, T0 * 1_000_000, "success"), (1, T0 * 1_000_000, "failure")}
    assert attributes(errors.sum.data_points[0]) == {
        "orbit.worker": "mailer",
        "orbit.pipeline": "send",
        "error.type": "ValueError",
    }


async def test_what_is_so_now_is_a_gauge(collector, reader):
    a_session(collector)
    one = reader()
    metrics = read(*families(await one.read(), one.options))
    up = metrics["orbit.worker.up"]

    assert up.WhichOneof("data") == "gauge"
    assert up.gauge.data_points[0].as_int == 1


async def test_everything_but_the_version_is_told(collector, reader):
    collector.record(a_session(collector), a_record(1, a_batch(MS)), T0)
    one = reader()
    told = [f for f in families(await one.read(), one.options) if f.name != "orbit_build"]

    assert all(family.otel for family in told if family.name != "process_start_time_seconds")
    assert all(family.otel_unit for family in told)


def test_what_the_receiver_did_not_take_is_read():
    answer = ExportMetricsServiceResponse()
    answer.partial_success.rejected_data_points = 3
    answer.partial_success.error_message = "too old"

    assert rejected(answer.SerializeToString()) == (3, "too old")
    assert rejected(b"") == (0, "")
