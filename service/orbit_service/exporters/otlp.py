"""
Families as one OTLP request: cumulative sums, gauges, exponential histograms.

opentelemetry.io/docs/specs/otel/metrics/data-model. The histogram is theirs: scale and
bucket indexes are written as they are, and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    ExponentialHistogramDataPoint,
    Metric,
    NumberDataPoint,
    ScopeMetrics,
)

from orbit_service.core.histogram import SCALE, ZERO_THRESHOLD
from orbit_service.exporters.families import Distribution, Family, Sample

SCOPE = "orbit_metrics"
_ATTRIBUTES = {"error_type": "error.type"}  # a name of theirs; the others are ours
_MS = 1_000_000  # nanoseconds


def request(
    families: Iterable[Family], resource: Mapping[str, str], version: str, at_ms: int
) -> bytes:
    """An ExportMetricsServiceRequest of every family that has a name there."""
    message = ExportMetricsServiceRequest()
    of_resource = message.resource_metrics.add()
    of_resource.resource.attributes.extend(_attributes(resource.items()))
    scope = of_resource.scope_metrics.add()
    scope.scope.name, scope.scope.version = SCOPE, version
    for family in families:
        if family.otel:
            _add(scope, family, at_ms)
    return bytes(message.SerializeToString())


def rejected(answer: bytes) -> tuple[int, str]:
    """How many points the receiver did not take, and why, by its answer; (0, "") for nonsense."""
    try:
        told = ExportMetricsServiceResponse.FromString(answer).partial_success
    except DecodeError:
        return 0, ""
    return told.rejected_data_points, told.error_message


def _add(scope: ScopeMetrics, family: Family, at_ms: int) -> None:
    samples = list(family.samples)
    if not samples:
        return
    metric = scope.metrics.add()
    metric.name, metric.unit, metric.description = family.otel, family.otel_unit, family.help
    names = [_ATTRIBUTES.get(name, f"orbit.{name}") for name in family.labels]
    for sample in samples:
        point = _point(metric, family, sample)
        point.time_unix_nano = at_ms * _MS
        if family.kind != "gauge":
            point.start_time_unix_nano = sample.created_ms * _MS
        point.attributes.extend(_attributes(zip(names, sample.labels, strict=True)))


def _point(
    metric: Metric, family: Family, sample: Sample
) -> NumberDataPoint | ExponentialHistogramDataPoint:
    value = sample.value
    if isinstance(value, Distribution):
        metric.exponential_histogram.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
        return _histogram(metric.exponential_histogram.data_points.add(), value)
    point: NumberDataPoint
    if family.kind == "counter":
        metric.sum.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
        metric.sum.is_monotonic = True
        point = metric.sum.data_points.add()
    else:
        point = metric.gauge.data_points.add()
    if isinstance(value, int):
        point.as_int = value
    else:
        point.as_double = value
    return point


def _histogram(
    point: ExponentialHistogramDataPoint, value: Distribution
) -> ExponentialHistogramDataPoint:
    histogram = value.histogram
    point.count, point.sum = value.count, value.sum_us / 1_000_000
    point.scale, point.zero_threshold = SCALE, ZERO_THRESHOLD
    point.zero_count = histogram.zeroes
    buckets = dict(histogram.buckets())
    if buckets:
        first = next(iter(buckets))
        point.positive.offset = first
        last = max(buckets)
        point.positive.bucket_counts.extend(buckets.get(i, 0) for i in range(first, last + 1))
    if value.min_us is not None:
        point.min = value.min_us / 1_000_000
    if value.max_us is not None:
        point.max = value.max_us / 1_000_000
    return point


def _attributes(pairs: Iterable[tuple[str, str]]) -> list[KeyValue]:
    return [KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in pairs]
