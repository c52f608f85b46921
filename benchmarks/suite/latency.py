"""How long until a run is seen, and until it is acknowledged while others flood the service."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from math import ceil

from benchmarks.harness import Program, Sample, Service, say
from benchmarks.scale import Scale
from benchmarks.scrape import Pinging
from benchmarks.table import Row, Target

GAP_MS = 250  # three turns of the sender, after which its thread is parked, and a commit
PARTS = 4
FLOODS = 2  # workers


def rows(scale: Scale) -> Iterator[Row]:
    taken: list[list[float]] = []
    with Service() as service:
        time.sleep(scale.settle_seconds)
        for number in range(PARTS):
            with Program("visible", scale.visible // PARTS, GAP_MS, service=service) as program:
                program.ready()
                program.go()
                taken.append(program.result())  # type: ignore[arg-type]
            service.expect(scale.visible // PARTS + 1)
            say(f"  latency: part {number + 1} of {PARTS}")
    every = [took for part in taken for took in part]
    p50, p99 = (Sample.of([quantile(every, q)]) for q in (0.5, 0.99))
    figure = "from `record_run` to visible in `worker.metrics`, idle system"
    of = f"of {len(every)} runs"
    yield Row(f"{figure}, p50", "ms", p50, notes=[f"Idle system: {of}."])
    yield Row(f"{figure}, p99", "ms", p99, target=Target(5), notes=[f"Idle system: {of}."])
    yield acknowledged(scale)


def acknowledged(scale: Scale) -> Row:
    """A worker with a run every 5 ms, beside workers that send as fast as they can."""
    taken: list[float] = []
    bursts = scale.flood_runs // 1000
    with Service() as service:
        time.sleep(scale.settle_seconds)
        for number in range(scale.rounds):
            programs = [
                Program(
                    "record",
                    "orbit_ten",
                    bursts,
                    1000,
                    0,
                    service=service,
                    ORBIT_WORKER_NAME=f"flood-{n}",
                )
                for n in range(FLOODS)
            ]
            for program in programs:
                program.ready()
            pinging = Pinging(service.socket)
            for program in programs:
                program.go()
            recorded = [program.result()["runs"] for program in programs]
            took = pinging.end()
            for program in programs:
                program.__exit__()
            service.expect(sum(recorded) + FLOODS + len(took))
            taken += took
            say(f"  latency: flood {number + 1} of {scale.rounds}, {len(took)} acknowledged")
    figure = f"acknowledgement under the flood of {FLOODS} workers, p99"
    notes = [
        f"Of {len(taken)} runs. Acknowledged is committed, with `synchronous=FULL`; no peer here "
        "tells as much."
    ]
    return Row(figure, "ms", Sample.of([quantile(taken, 0.99)]), target=Target(300), notes=notes)


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[ceil(q * len(values)) - 1]
