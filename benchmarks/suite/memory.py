"""Resident memory: of a service at rest, with many series, and many runs later."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.daemons import daemons
from benchmarks.harness import Program, Sample, Service, say
from benchmarks.history import series_bytes
from benchmarks.scale import Scale
from benchmarks.suite.flood import BURST
from benchmarks.table import Row, Target

WORKERS, PIPELINES, RUNS = 100, 20, 50
MOST = 10_000_000  # runs of one process; between them, there is a word of progress


def rows(scale: Scale) -> Iterator[Row]:
    with Service() as service, daemons() as peers:
        time.sleep(scale.window_seconds)  # a window is closed, and stored
        idle = Sample.of([service.resident_mib()])
        theirs = {
            name: None if peer is None else Sample.of([peer.resident_mib()])
            for name, peer in peers.items()
        }
        for name, its in theirs.items():
            target = Target(75) if name == "netdata" else None
            notes = [f"{name} is not installed."] if its is None else []
            yield Row("memory of an idle service", "MiB", idle, name, its, target, notes)
        say("  memory: idle")
        arguments = ("many", WORKERS, PIPELINES, RUNS)
        with Program("clients", *arguments, service=service) as program:
            program.ready()
            service.expect(WORKERS * PIPELINES * RUNS)
            time.sleep(scale.window_seconds)  # a window is closed, and stored
            many = Sample.of([service.resident_mib()])
    yield Row(
        f"memory with {WORKERS} workers × {PIPELINES} pipelines", "MiB", many, target=Target(100)
    )
    used, buckets = series_bytes()
    notes = [f"A life's total and an open window, of {buckets:.0f} buckets each on average."]
    yield Row("a series in memory", "bytes", Sample.of([used]), target=Target(8_192), notes=notes)


def later(scale: Scale) -> Iterator[Row]:
    """Memory and cost of the last runs, beside those of the first, in so many parts each."""
    first, *others = scale.later
    parts = scale.rounds
    with Service() as service:
        time.sleep(scale.settle_seconds)  # what a start puts off is over then
        cost, memory, done = {}, {}, 0
        for total in scale.later:
            # The last of them as many as the first.
            while done < total - first:
                part = min(MOST, total - first - done)
                flooded(service, part)
                done += part
                say(f"  later: {done:,} runs")
            cost[total] = Sample.of([flooded(service, first // parts) for _ in range(parts)])
            done += first
            memory[total] = Sample.of([service.resident_mib()])
    for total in others:
        for what, unit, of, limit in (
            ("memory", "MiB", memory, 1.1),
            ("cost of a run", "CPU s a million runs", cost, 1.15),
        ):
            yield Row(
                f"{what}, {total:,} runs later",
                unit,
                of[total],
                f"after the first {first:,}",
                of[first],
                Target(limit, of_ratio=True, said="(flat)"),
            )


def flooded(service: Service, runs: int) -> float:
    """CPU seconds a million runs."""
    arguments = ("orbit_ten", runs // BURST, BURST, 0)
    with Program("record", *arguments, service=service, ORBIT_WORKER_NAME="ever") as program:
        program.ready()
        service.expect(1)
        cpu = service.cpu_seconds()
        program.go()
        recorded: int = program.result()["runs"]
        service.expect(recorded)
        return (service.cpu_seconds() - cpu) / recorded * 1e6
