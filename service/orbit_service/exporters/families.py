"""
What is exported, as families of samples: the one list from which every form is written.

Names, units and types follow prometheus.io/docs/practices/naming and the OpenMetrics
1.0 specification; `otel` is the same by OpenTelemetry's conventions. No label holds a
run's id or a message: those are without bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from orbit_service.core.cumulative import Pair, Series
from orbit_service.core.histogram import Histogram
from orbit_service.core.stats import Stats
from orbit_service.exporters.reading import AlertsNow, Counts, Options, Own, Reading

Kind = Literal["counter", "gauge", "histogram", "info"]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Durations: how many, their sum in microseconds, and their histogram."""

    count: int
    sum_us: int
    histogram: Histogram
    min_us: int | None = None
    max_us: int | None = None


class Sample(NamedTuple):
    """`labels` are values in the order of the family's names; `created_ms` is of counters."""

    labels: tuple[str, ...]
    value: int | float | Distribution
    created_ms: int = 0


@dataclass(frozen=True, slots=True)
class Family:
    """Samples of one name. `name` is without the suffixes of a format, such as _total.

    `unit` is a suffix of the name where there is one; `otel_unit` is UCUM's.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    samples: Iterable[Sample]
    unit: str = ""
    otel: str = ""
    otel_unit: str = "1"


def families(reading: Reading, options: Options) -> Iterator[Family]:
    """Every family, in the order in which it is told; one may have no samples."""
    if reading.counts is not None:
        yield from _of_runs(reading.counts, options)
    yield from _of_now(reading, options)
    if reading.counts is not None and reading.own is not None:
        yield from _of_intake(reading.counts, reading.own)
    if reading.own is not None:
        yield from _of_service(reading.own)
        if reading.own.alerts is not None:
            yield from _of_alerts(reading.own.alerts, reading.own.started_ms)


# ---------------------------------------------------------------- what ran


def _of_runs(counts: Counts, options: Options) -> Iterator[Family]:
    named = _Named(options)
    pairs = [(named.values(pair), one) for pair, one in sorted(counts.series.items())]

    def each(*of: _Count) -> Iterator[Sample]:
        for values, one in pairs:
            for count in of:
                yield Sample((*values, *count.labels), count.of(one), one.created_ms)

    yield Family(
        "orbit_runs",
        "counter",
        "Runs that have ended.",
        (*named.labels, "outcome"),
        each(
            _Count(lambda one: one.runs.succeeded, ("success",)),
            _Count(lambda one: one.runs.failed, ("failure",)),
        ),
        otel="orbit.runs",
        otel_unit="{run}",
    )
    yield Family(
        "orbit_run_failures",
        "counter",
        "Runs that failed, those of killed workers among them.",
        named.labels,
        each(_Count(lambda one: one.runs.failed)),
        otel="orbit.run.failures",
        otel_unit="{run}",
    )
    yield Family(
        "orbit_run_errors",
        "counter",
        "Runs that failed, by the type of their error; WorkerLost is a worker that was killed.",
        (*named.labels, "error_type"),
        (
            Sample((*values, type), failed, one.created_ms)
            for values, one in pairs
            for type, failed in sorted(one.errors.items())
        ),
        otel="orbit.run.errors",
        otel_unit="{run}",
    )
    yield Family(
        "orbit_run_retries",
        "counter",
        "Attempts beyond a run's first.",
        named.labels,
        each(_Count(lambda one: one.runs.retries)),
        otel="orbit.run.retries",
        otel_unit="{attempt}",
    )
    yield Family(
        "orbit_run_duration_seconds",
        "histogram",
        "How long runs took; a run whose worker was killed has no duration.",
        named.labels,
        (Sample(values, durations(one.runs), one.created_ms) for values, one in pairs),
        unit="seconds",
        otel="orbit.run.duration",
        otel_unit="s",
    )
    if options.waits:
        yield Family(
            "orbit_run_wait_seconds",
            "histogram",
            "How long runs waited for their worker, where the framework tells it.",
            named.labels,
            (Sample(v, _waits(one.runs), one.created_ms) for v, one in pairs if one.runs.waited),
            unit="seconds",
            otel="orbit.run.wait",
            otel_unit="s",
        )
    yield Family(
        "orbit_run_last_success_timestamp_seconds",
        "gauge",
        "When the newest run that succeeded ended; absent until there is one.",
        named.labels,
        (
            Sample(values, one.runs.last_success_ms / 1000)
            for values, one in pairs
            if one.runs.last_success_ms is not None
        ),
        unit="seconds",
        otel="orbit.run.last_success",
        otel_unit="s",
    )
    if options.steps:
        yield Family(
            "orbit_step_duration_seconds",
            "histogram",
            "How long the named steps of runs took.",
            (*named.labels, "step"),
            (
                Sample((*values, name), durations(step), one.created_ms)
                for values, one in pairs
                for name, step in sorted(one.steps.items())
            ),
            unit="seconds",
            otel="orbit.step.duration",
            otel_unit="s",
        )


def _of_now(reading: Reading, options: Options) -> Iterator[Family]:
    named = _Named(options)
    flights = sorted(reading.in_progress.items())
    queues = sorted(reading.queues.items())
    yield Family(
        "orbit_runs_in_progress",
        "gauge",
        "Runs that have begun and not ended.",
        named.labels,
        (Sample(named.values(pair), flight.runs) for pair, flight in flights),
        otel="orbit.runs.in_progress",
        otel_unit="{run}",
    )
    yield Family(
        "orbit_run_oldest_start_timestamp_seconds",
        "gauge",
        "When the oldest of the runs in progress began; absent where there is none.",
        named.labels,
        (Sample(named.values(pair), f.oldest_ms / 1000) for pair, f in flights if f.runs),
        unit="seconds",
        otel="orbit.run.oldest_start",
        otel_unit="s",
    )
    yield Family(
        "orbit_queue_depth",
        "gauge",
        "How much waits in a queue, where the worker tells it.",
        named.queue_labels,
        (Sample(named.values(key), queue.depth) for key, queue in queues),
        otel="orbit.queue.depth",
        otel_unit="{task}",
    )
    yield Family(
        "orbit_queue_oldest_timestamp_seconds",
        "gauge",
        "Since when the oldest task of a queue waits; absent where nobody knows.",
        named.queue_labels,
        (
            Sample(named.values(key), queue.oldest_ms / 1000)
            for key, queue in queues
            if queue.oldest_ms is not None
        ),
        unit="seconds",
        otel="orbit.queue.oldest",
        otel_unit="s",
    )
    yield Family(
        "orbit_workers_connected",
        "gauge",
        "Workers that are connected.",
        (),
        [Sample((), reading.workers_connected)],
        otel="orbit.workers.connected",
        otel_unit="{worker}",
    )
    if not options.worker_label:
        return
    workers = sorted(reading.workers, key=lambda worker: worker.name)
    yield Family(
        "orbit_worker_up",
        "gauge",
        "1 while the worker is connected; 0 for some time after its end, and then absent.",
        ("worker",),
        (Sample((worker.name,), int(worker.started_ms is not None)) for worker in workers),
        otel="orbit.worker.up",
    )
    yield Family(
        "orbit_worker_last_heartbeat_timestamp_seconds",
        "gauge",
        "When the worker was last heard of.",
        ("worker",),
        (Sample((worker.name,), worker.last_seen_ms / 1000) for worker in workers),
        unit="seconds",
        otel="orbit.worker.last_heartbeat",
        otel_unit="s",
    )
    yield Family(
        "orbit_worker_start_time_seconds",
        "gauge",
        "When the worker's life began.",
        ("worker",),
        (
            Sample((worker.name,), worker.started_ms / 1000)
            for worker in workers
            if worker.started_ms is not None
        ),
        unit="seconds",
        otel="orbit.worker.start_time",
        otel_unit="s",
    )


# ---------------------------------------------------------------- the service itself


def _of_intake(counts: Counts, own: Own) -> Iterator[Family]:
    # Of the state, which is older than the process; when it began is not kept. The usual
    # reasons are there from the start: a counter that begins at one has not increased.
    def by(counted: dict[str, int]) -> Iterator[Sample]:
        return (Sample((name,), count) for name, count in sorted(counted.items()))

    yield Family(
        "orbit_ingest_results",
        "counter",
        "Results that came from workers, by what became of them.",
        ("outcome",),
        by(counts.results),
        otel="orbit.ingest.results",
        otel_unit="{result}",
    )
    yield Family(
        "orbit_ingest_dropped",
        "counter",
        "Results that workers dropped, by reason.",
        ("reason",),
        by({"buffer full": 0, "overload": 0, **counts.dropped}),
        otel="orbit.ingest.dropped",
        otel_unit="{result}",
    )
    yield Family(
        "orbit_ingest_refused",
        "counter",
        "Results in messages that could not be counted, by reason.",
        ("reason",),
        by({"invalid": 0, **counts.refused}),
        otel="orbit.ingest.refused",
        otel_unit="{result}",
    )
    yield Family(
        "orbit_ingest_faults",
        "counter",
        "What met a bound or made no sense, by kind, since the process began.",
        ("kind",),
        (Sample((kind,), n, own.started_ms) for kind, n in sorted(own.faults.items())),
        otel="orbit.ingest.faults",
        otel_unit="{fault}",
    )
    yield Family(
        "orbit_series_folded",
        "counter",
        "How often a name found no series of its own, by kind.",
        ("kind",),
        by(counts.folded),
        otel="orbit.series.folded",
        otel_unit="{name}",
    )
    yield Family(
        "orbit_history_dropped_runs",
        "counter",
        "Runs that the history lacks because it was away for too long.",
        (),
        [Sample((), counts.history_dropped)],
        otel="orbit.history.dropped_runs",
        otel_unit="{run}",
    )


def _of_service(own: Own) -> Iterator[Family]:
    yield Family(
        "orbit_build", "info", "The service's version.", ("version",), [Sample((own.version,), 1)]
    )
    yield Family(
        "orbit_degraded",
        "gauge",
        "1 where the service does not do all it should, by reason; worker.health says more.",
        ("reason",),
        (Sample((reason,), int(is_so)) for reason, is_so in sorted(own.degraded.items())),
        otel="orbit.degraded",
    )
    yield Family(
        "orbit_ingest_waiting_results",
        "gauge",
        "Results that workers have recorded and that have not arrived yet.",
        (),
        [Sample((), own.waiting)],
        otel="orbit.ingest.waiting",
        otel_unit="{result}",
    )
    yield Family(
        "orbit_series",
        "gauge",
        "Series that have a name of their own, by kind.",
        ("kind",),
        (Sample((kind,), taken) for kind, (taken, _limit) in sorted(own.places.items())),
        otel="orbit.series",
        otel_unit="{series}",
    )
    yield Family(
        "orbit_series_limit",
        "gauge",
        "How many there may be.",
        ("kind",),
        (Sample((kind,), limit) for kind, (_taken, limit) in sorted(own.places.items())),
        otel="orbit.series.limit",
        otel_unit="{series}",
    )
    yield Family(
        "orbit_sessions",
        "gauge",
        "Processes of workers that are connected.",
        (),
        [Sample((), own.sessions)],
        otel="orbit.sessions",
        otel_unit="{session}",
    )
    if own.commits is not None:
        yield Family(
            "orbit_state_commit_seconds",
            "histogram",
            "How long it took to put the state on the disk, since the process began.",
            (),
            [Sample((), durations(own.commits), own.started_ms)],
            unit="seconds",
            otel="orbit.state.commit",
            otel_unit="s",
        )
        yield Family(
            "orbit_state_commit_failures",
            "counter",
            "How often that failed, since the process began.",
            (),
            [Sample((), own.commit_failures, own.started_ms)],
            otel="orbit.state.commit.failures",
            otel_unit="{commit}",
        )
    if own.pushes is not None:
        yield Family(
            "orbit_otlp_pushes",
            "counter",
            "Pushes to the OpenTelemetry collector, since the process began.",
            ("outcome",),
            (Sample((o,), n, own.started_ms) for o, n in sorted(own.pushes.items())),
            otel="orbit.otlp.pushes",
            otel_unit="{push}",
        )
    yield Family(
        "orbit_history_waiting_bytes",
        "gauge",
        "Closed windows that the history has not taken yet, about.",
        (),
        [Sample((), own.history_waiting_bytes)],
        unit="bytes",
        otel="orbit.history.waiting",
        otel_unit="By",
    )
    yield Family(
        "process_start_time_seconds",
        "gauge",
        "When the service's process began.",
        (),
        [Sample((), own.started_ms / 1000)],
        unit="seconds",
    )
    yield Family(
        "process_cpu_seconds",
        "counter",
        "Processor time of the service's process.",
        (),
        [Sample((), own.cpu_seconds, own.started_ms)],
        unit="seconds",
        otel="process.cpu.time",
        otel_unit="s",
    )
    yield Family(
        "process_resident_memory_bytes",
        "gauge",
        "Memory of the service's process.",
        (),
        [Sample((), own.rss_bytes)],
        unit="bytes",
        otel="process.memory.usage",
        otel_unit="By",
    )


def _of_alerts(alerts: AlertsNow, started_ms: int) -> Iterator[Family]:
    yield Family(
        "orbit_alerts_firing",
        "gauge",
        "Alerts that fire now; a rule that is well is told of with 0.",
        ("rule", "severity"),
        (Sample(labels, n) for labels, n in sorted(alerts.firing.items())),
        otel="orbit.alerts.firing",
        otel_unit="{alert}",
    )
    yield Family(
        "orbit_notifications",
        "counter",
        "Messages to people by channel and outcome: sent, failed (a try), given up.",
        ("channel", "outcome"),
        (Sample(labels, n, started_ms) for labels, n in sorted(alerts.notifications.items())),
        otel="orbit.notifications",
        otel_unit="{message}",
    )
    yield Family(
        "orbit_actions",
        "counter",
        "Actions of rules by what they are and what came of them.",
        ("action", "outcome"),
        (Sample(labels, n, started_ms) for labels, n in sorted(alerts.actions.items())),
        otel="orbit.actions",
        otel_unit="{action}",
    )
    if alerts.evaluated_ms is not None:
        yield Family(
            "orbit_alerts_evaluated_time_seconds",
            "gauge",
            "When the rules were last looked at.",
            (),
            [Sample((), alerts.evaluated_ms / 1000)],
            unit="seconds",
            otel="orbit.alerts.evaluated",
            otel_unit="s",
        )


# ---------------------------------------------------------------- helpers


class _Count(NamedTuple):
    """How to take a number from a series, and the labels that tell it from others."""

    of: Callable[[Series], int]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Named:
    """Names and values of the labels that a setting can leave out."""

    options: Options

    @property
    def labels(self) -> tuple[str, ...]:
        return ("worker", "pipeline") if self.options.worker_label else ("pipeline",)

    @property
    def queue_labels(self) -> tuple[str, ...]:
        return ("worker", "queue") if self.options.worker_label else ("queue",)

    def values(self, pair: Pair) -> tuple[str, ...]:
        """Of a worker and its pipeline, or its queue."""
        return pair if self.options.worker_label else pair[1:]


def durations(runs: Stats) -> Distribution:
    known = runs.timed > 0
    return Distribution(
        runs.timed,
        runs.total_us,
        runs.histogram,
        runs.min_us if known else None,
        runs.max_us if known else None,
    )


def _waits(runs: Stats) -> Distribution:
    told = runs.waits or Histogram()
    return Distribution(runs.waited, runs.total_wait_us, told, None, runs.max_wait_us)
