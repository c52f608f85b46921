"""
A process that records runs, for us or for a peer, in bursts at a pace.

    record.py SUBJECT BURSTS SIZE EVERY_MS

It records one run, says that it is ready, waits for a line, and tells as JSON: how many runs it
has recorded since, CPU seconds of the recording thread within the bursts and their wall time,
CPU seconds of the whole process from the first burst until all is sent, and how long that took.
With EVERY_MS of 0 one burst follows the other. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import NamedTuple

Burst = Callable[[Sequence[float]], None]


class Subject(NamedTuple):
    """Who is measured: a burst of runs, what sends the rest, and what knows of lost ones."""

    burst: Burst
    finish: Callable[[], object] = lambda: None
    counted: Callable[[], float | None] = lambda: None  # None: it cannot tell


# In a flood, so many bursts of a thousand are at most half of what the client keeps unacknowledged.
FLUSH_EVERY = 500

PIPELINES = [f"pipeline_{n}" for n in range(10)]


def nothing() -> Subject:
    def burst(durations: Sequence[float]) -> None:
        for _duration in durations:
            pass

    return Subject(burst)


def orbit() -> Subject:
    from orbit_worker import record_run

    def burst(durations: Sequence[float]) -> None:
        for duration in durations:
            record_run(duration, True, pipeline="mail")

    return connected(burst)


def orbit_client() -> Subject:
    """A client's method, as a program has it that makes its client itself."""
    import orbit_worker

    record_run = orbit_worker.default_client().record_run

    def burst(durations: Sequence[float]) -> None:
        for duration in durations:
            record_run(duration, True, pipeline="mail")

    return connected(burst)


def orbit_ten() -> Subject:
    """Ten pipelines; one run in a hundred fails."""
    from orbit_worker import record_run

    outcomes = [n % 100 != 7 for n in range(100)]

    def burst(durations: Sequence[float]) -> None:
        for duration, pipeline, succeeded in zip(
            durations, cycle(PIPELINES), cycle(outcomes), strict=False
        ):
            record_run(duration, succeeded, pipeline=pipeline)

    return connected(burst)


def orbit_tracked() -> Subject:
    from orbit_worker import track

    def burst(durations: Sequence[float]) -> None:
        for _duration in durations:
            with track("mail") as run:
                with run.step("render"):
                    pass
                with run.step("send"):
                    pass

    return connected(burst)


def connected(burst: Burst) -> Subject:
    import orbit_worker
    from orbit_rpc_schema.caller import call

    client = orbit_worker.default_client()

    def finish() -> None:
        if not client.flush(60):
            sys.exit("not acknowledged within a minute")

    def counted() -> float:
        # Not by get_metrics, which says zero after a second: on a busy machine it is not answered.
        asked = {"worker": client.worker}
        total: float = call(client.socket, "worker.metrics", asked, timeout=60)["totalRuns"]
        return total

    client.connect()
    return Subject(burst, finish, counted)


def prometheus(*, looked_up: bool = False) -> Subject:
    from prometheus_client import REGISTRY, Counter, Histogram

    runs = Counter("runs", "Runs.", ["pipeline", "outcome"])
    took = Histogram("took", "Durations.", ["pipeline"])
    counter, histogram = runs.labels("mail", "success"), took.labels("mail")

    def bound(durations: Sequence[float]) -> None:
        for duration in durations:
            counter.inc()
            histogram.observe(duration)

    def labels(durations: Sequence[float]) -> None:
        for duration in durations:
            runs.labels("mail", "success").inc()
            took.labels("mail").observe(duration)

    def counted() -> float | None:
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            return None  # it is in the files of that directory
        told = {"pipeline": "mail", "outcome": "success"}
        return REGISTRY.get_sample_value("runs_total", told)

    return Subject(labels if looked_up else bound, counted=counted)


def prometheus_looked_up() -> Subject:
    return prometheus(looked_up=True)


def opentelemetry() -> Subject:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    provider = MeterProvider([InMemoryMetricReader()])
    meter = provider.get_meter("bench")
    counter, histogram = meter.create_counter("runs"), meter.create_histogram("took")

    def burst(durations: Sequence[float]) -> None:
        for duration in durations:
            counter.add(1, {"pipeline": "mail", "outcome": "success"})
            histogram.record(duration, {"pipeline": "mail"})

    return Subject(burst)


def datadog(*, socket_path: str | None, buffered: bool) -> Subject:
    from datadog.dogstatsd import DogStatsd

    client = DogStatsd(
        host="127.0.0.1",
        port=int(os.environ["SINK_PORT"]),
        socket_path=socket_path,
        disable_buffering=not buffered,
        disable_telemetry=True,
    )
    client.socket_timeout = 5  # of a socket that is full: what cannot be sent would be dropped

    def burst(durations: Sequence[float]) -> None:
        for duration in durations:
            client.increment("runs", tags=["pipeline:mail", "outcome:success"])
            client.timing("took", duration, tags=["pipeline:mail"])

    return Subject(burst, client.flush_buffered_metrics)


def datadog_udp() -> Subject:
    return datadog(socket_path=None, buffered=False)


def datadog_udp_buffered() -> Subject:
    return datadog(socket_path=None, buffered=True)


def datadog_unix() -> Subject:
    return datadog(socket_path=os.environ["SINK_PATH"], buffered=False)


def datadog_unix_buffered() -> Subject:
    return datadog(socket_path=os.environ["SINK_PATH"], buffered=True)


def statsd() -> Subject:
    from statsd import StatsClient

    client = StatsClient("127.0.0.1", int(os.environ["SINK_PORT"]))

    def burst(durations: Sequence[float]) -> None:
        for duration in durations:
            client.incr("mail.success")
            client.timing("mail.took", duration)

    return Subject(burst)


SUBJECTS = {
    each.__name__: each
    for each in (
        nothing,
        orbit,
        orbit_client,
        orbit_ten,
        orbit_tracked,
        prometheus,
        prometheus_looked_up,
        opentelemetry,
        datadog_udp,
        datadog_udp_buffered,
        datadog_unix,
        datadog_unix_buffered,
        statsd,
    )
}


def main() -> None:
    name, bursts, size, every = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    subject = SUBJECTS[name]()
    # From 1 ms to 901 ms, each different for a good while.
    durations = [1 + (n * 7919) % 900_000 / 1000 for n in range(size)]
    subject.burst(durations[:1])  # what the first one does besides
    subject.finish()
    print("ready", flush=True)
    sys.stdin.readline()
    thread_cpu = bursts_wall = 0.0
    process, began = time.process_time(), time.perf_counter()
    for number in range(bursts):
        cpu, wall = time.thread_time(), time.perf_counter()
        subject.burst(durations)
        thread_cpu += time.thread_time() - cpu
        bursts_wall += time.perf_counter() - wall
        if not every and number % FLUSH_EVERY == FLUSH_EVERY - 1:
            subject.finish()
        elif every:
            time.sleep(
                max(began + (number + 1) * every / 1000 - time.perf_counter(), 0.0)
            )  # the pace
    subject.finish()
    told = {
        "runs": bursts * size,
        "thread_cpu": thread_cpu,
        "bursts_wall": bursts_wall,
        "process_cpu": time.process_time() - process,
        "wall": time.perf_counter() - began,
    }
    counted = subject.counted()
    if counted is not None and counted != bursts * size + 1:
        sys.exit(f"{name} counted {counted} of {bursts * size + 1} runs")
    print(json.dumps(told), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
