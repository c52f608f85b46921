"""
All CPU that recording takes of a worker's process, sending included.

The same program runs at the same pace without recording, and what that takes is subtracted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from benchmarks.harness import Program, Sample, Service, cpu_seconds, say, take_turns
from benchmarks.scale import Scale
from benchmarks.suite.calls import PROMETHEUS, Sink
from benchmarks.table import Row, Target

EVERY_MS = 10
SLOW_RATE = 100
PEERS = {
    "prometheus": PROMETHEUS,
    "datadog_unix_buffered": "datadog, Unix socket, buffered",
}
EACH = 8  # processes of a kind, which make one figure


def rows(scale: Scale) -> Iterator[Row]:
    with Service() as service, Sink() as sink:
        for rate in scale.rates:
            yield from paced(scale, rate, service, sink)
        yield flooding(scale, service)
        yield from quiet(scale, service)


def paced(scale: Scale, rate: int, service: Service, sink: Sink) -> Iterator[Row]:
    size, bursts = rate * EVERY_MS // 1000, int(scale.paced_seconds * 1000 / EVERY_MS)
    peers = PEERS if rate == scale.rates[0] else {"prometheus": PROMETHEUS}
    subjects: dict[str, Callable[[], float]] = {
        "nothing": partial(process_cpu, "nothing", bursts, size),
        "orbit": partial(process_cpu, "orbit", bursts, size, service=service),
    }
    for peer in peers:
        subjects[peer] = partial(process_cpu, peer, bursts, size, sink=sink)
    taken = take_turns(f"workers, {rate:,} runs/s", subjects, scale.rounds)
    of = {name: Sample.of(values).times(1e9 / (bursts * size)) for name, values in taken.items()}
    for peer, name in peers.items():
        yield Row(
            f"all of a worker's CPU a run, {rate:,} runs/s",
            "ns",
            of["orbit"].less(of["nothing"]),
            name,
            of[peer].less(of["nothing"]),
            Target(1 / 3, of_ratio=True) if peer == "prometheus" else None,
            ["prometheus-client's sends nothing: what a scrape takes of the worker comes on top."]
            if peer == "prometheus"
            else [],
        )


def flooding(scale: Scale, service: Service) -> Row:
    """As fast as it goes."""
    bursts, size = scale.flood_runs // 1000, 1000
    taken = take_turns(
        "workers, flood",
        {
            "orbit": partial(process_cpu, "orbit", bursts, size, every=0, service=service),
            "prometheus": partial(process_cpu, "prometheus", bursts, size, every=0),
        },
        scale.rounds,
    )
    of = {name: Sample.of(values).times(1e9 / (bursts * size)) for name, values in taken.items()}
    name = "all of a worker's CPU a run, as fast as it goes"
    return Row(name, "ns", of["orbit"], PROMETHEUS, of["prometheus"], Target(1 / 3, of_ratio=True))


def process_cpu(
    subject: str,
    bursts: int,
    size: int,
    *,
    every: float = EVERY_MS,
    service: Service | None = None,
    sink: Sink | None = None,
) -> float:
    settings = {} if sink is None else sink.settings
    told = Program("record", subject, bursts, size, every, service=service, **settings).run()
    if service is not None:
        service.expect(told["runs"] + 1)
    cpu: float = told["process_cpu"]
    return cpu


def quiet(scale: Scale, service: Service) -> Iterator[Row]:
    """Several processes of each kind at once, each hardly busy: one alone would be noise."""
    taken = []
    for number in range(scale.quiet_rounds):
        taken.append(at_once(scale, service))
        say(f"  workers, hardly busy: round {number + 1} of {scale.quiet_rounds}")
    slow, idle = (Sample.of([told[which] for told in taken]) for which in range(2))
    aim = Target(0.1, said="% of a core")
    yield Row(f"a worker's added CPU at {SLOW_RATE} runs/s", "% of a core", slow, target=aim)
    aim = Target(0.01, said="% (not measurable)")
    yield Row("CPU of an idle worker, connected", "% of a core", idle, target=aim)


def at_once(scale: Scale, service: Service) -> tuple[float, float]:
    """Percent of a core that recording adds to a process, and that being connected does."""
    bursts = int(scale.quiet_seconds * SLOW_RATE)
    spent: dict[tuple[str, int], float] = {}
    with ExitStack() as stack:
        programs = {
            (subject, count): [
                stack.enter_context(
                    Program(
                        "record",
                        subject,
                        count,
                        1,
                        1000 / SLOW_RATE,
                        service=service,
                        ORBIT_WORKER_NAME=f"quiet-{count}-{n}",
                    )
                )
                for n in range(EACH)
            ]
            for subject in ("nothing", "orbit")
            for count in (bursts, 0)
        }
        for each in programs.values():
            for program in each:
                program.ready()
        for (_subject, count), each in programs.items():
            if not count:
                for program in each:
                    program.go()
                    program.result()
        time.sleep(0.5)  # until those have come to rest
        before = {kind: sum(cpu_seconds(p.pid) for p in each) for kind, each in programs.items()}
        began = time.monotonic()
        busy = [p for (_subject, count), each in programs.items() if count for p in each]
        for program in busy:
            program.go()
        for program in busy:
            program.result()
        seconds = time.monotonic() - began
        for kind, each in programs.items():
            spent[kind] = sum(cpu_seconds(p.pid) for p in each) - before[kind]
    service.expect(EACH * (bursts + 2))
    slow, idle = (spent["orbit", count] - spent["nothing", count] for count in (bursts, 0))
    return slow / EACH / seconds * 100, idle / EACH / seconds * 100
