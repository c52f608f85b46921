"""How long until a run is seen, and until it is acknowledged while others flood the service."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from math import ceil

from benchmarks.harness import Program, Sample, Service, say
from benchmarks.scale import Scale
from benchmarks.scrape import Pinging
from benchmarks.suite.asking import is_whole, request_to, server
from benchmarks.table import Row, Target

GAP_MS = 250  # three turns of the sender, after which its thread is parked, and a commit
PARTS = 4
FLOODS = 2  # workers


def rows(scale: Scale) -> Iterator[Row]:
    taken: list[list[float]] = []
    with Service() as service:
        time.sleep(scale.settle_seconds)  # what a start puts off is over then
        for number in range(PARTS):
            with Program("visible", scale.visible // PARTS, GAP_MS, service=service) as program:
                program.ready()
                program.go()
                taken.append(program.result())  # type: ignore[arg-type]
            service.expect(scale.visible // PARTS + 1)
            say(f"  latency: part {number + 1} of {PARTS}")
    every = [took for part in taken for took in part]
    with server("bare") as bare:
        rested = answered_after_rest(bare.port, max(scale.visible // PARTS, 8))
    figure = "from `record_run` to visible in `worker.metrics`, idle system"
    peer = "a bare aiohttp handler's answer, after the same rest"
    notes = [
        f"Idle system: of {len(every)} runs and {len(rested)} answers, each after a quarter of a "
        "second of rest. What a machine takes to wake is in both."
    ]
    for q, target in ((0.5, None), (0.99, Target(5))):
        ours, theirs = (Sample.of([quantile(took, q)]) for took in (every, rested))
        yield Row(
            f"{figure}, p{q * 100:g}", "ms", ours, f"{peer}, p{q * 100:g}", theirs, target, notes
        )
    yield acknowledged(scale)


def answered_after_rest(port: int, times: int) -> list[float]:
    """Milliseconds until a server answers that has rested."""
    taken = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(times):
            time.sleep(GAP_MS / 1000)  # the rest after which it is asked
            began, received = time.perf_counter(), bytearray()
            connection.sendall(request_to(port))
            while not is_whole(received):
                received += connection.recv(65_536)
            taken.append((time.perf_counter() - began) * 1000)
    return taken


def acknowledged(scale: Scale) -> Row:
    """A worker with a run every 5 ms, beside workers that send as fast as they can."""
    taken: list[float] = []
    bursts = scale.flood_runs // 1000
    with Service() as service:
        time.sleep(scale.settle_seconds)  # what a start puts off is over then
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
