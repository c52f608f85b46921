"""CPU that the service takes for messages that come one by one, and for tracked runs."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from benchmarks.daemons import Receiver, daemons, run_lines
from benchmarks.harness import (
    Program,
    Sample,
    Service,
    cpu_seconds,
    idle_share,
    say,
    take_turns,
    temporary_folder,
)
from benchmarks.scale import Scale
from benchmarks.scrape import Worker
from benchmarks.suite.asking import started
from benchmarks.table import Row, Target
from orbit_rpc_schema.wire import record_line

RATE = 1_000  # messages a second
WARM = 1  # runs that a program records before it is ready


def rows(scale: Scale) -> Iterator[Row]:
    count = int(scale.message_seconds * RATE)
    with (
        Service() as service,
        daemons() as peers,
        temporary_folder() as folder,
        started("reader", f"{folder}/reader.sock") as (reader, _),
    ):
        time.sleep(scale.settle_seconds)  # what a start puts off is over then
        netdata = peers["netdata"]
        subjects: dict[str, Callable[[], float]] = {
            "one": partial(one_connection, service, count),
            "reader": partial(only_read, reader, f"{folder}/reader.sock", count),
        }
        if scale.message_workers:
            subjects["many"] = partial(many_workers, service, count, scale.message_workers)
        rest: dict[str, float] = {"service": idle_share(service.cpu_seconds, scale.message_seconds)}
        if netdata is not None:
            lines = [b"\n".join(run_lines(n, tersely=False)) for n in range(count)]
            send = partial(paced, lambda n: netdata.send(lines[n]), count)
            rest["netdata"] = idle_share(netdata.cpu_seconds, scale.message_seconds)
            subjects["netdata"] = partial(added, netdata, send)
        taken = take_turns("messages", subjects, scale.rounds)
        lost = 0 if netdata is None else netdata.lost
    say("  messages: idle, " + ", ".join(f"{name} {share:.2%}" for name, share in rest.items()))
    of: dict[str, Sample] = {}
    for name, values in taken.items():
        at_rest = {"netdata": rest.get("netdata", 0.0), "reader": 0.0}.get(name, rest["service"])
        of[name] = Sample.of([(share - at_rest) / RATE * 1e6 for share in values])
    theirs = of.get("netdata")
    said = "netdata is not installed." if theirs is None else f"netdata lost {lost} datagrams."
    notes = ["What either takes when idle is subtracted.", said]
    yield Row(
        f"service, one run a message, {RATE:,} messages/s",
        "CPU us a message",
        of["one"],
        "netdata",
        theirs,
        Target(25, ambition=15),
        notes,
    )
    yield Row(
        f"service, one run a message, {RATE:,} messages/s",
        "CPU us a message",
        of["one"],
        "an asyncio loop that reads them, and does nothing else",
        of["reader"],
    )
    if "many" in of:
        each = RATE // scale.message_workers
        figure = f"the same from {scale.message_workers} workers with {each} runs/s each"
        yield Row(figure, "CPU us a message", of["many"], "netdata", theirs, None, notes)


def one_connection(service: Service, count: int) -> float:
    """The share of a core, while one connection sends a line for each run."""
    with Worker(service.socket, "one-by-one") as worker:

        def put(number: int) -> None:
            now = time.time_ns() // 10**6
            worker.put([{"pipeline": f"p{number % 10}", "at": now, "durationUs": [5_000 + number]}])

        share = added(service, partial(paced, put, count))
        worker.wait()
        service.expect(count)
    return share


def only_read(pid: int, path: str, count: int) -> float:
    """The share of a core of a process that reads lines as long."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)

        def put(number: int) -> None:
            now = time.time_ns() // 10**6
            batch = {"pipeline": f"p{number % 10}", "at": now, "durationUs": [5_000 + number]}
            connection.sendall(
                record_line(seq=number + 1, recorded=number + 1, dropped={}, batches=[batch])
            )

        cpu, began = cpu_seconds(pid), time.monotonic()
        paced(put, count)
        return (cpu_seconds(pid) - cpu) / (time.monotonic() - began)


def many_workers(service: Service, count: int, workers: int) -> float:
    """Real ones. With less than one run in 50 ms, each is a message."""
    with ExitStack() as stack:
        programs = [
            stack.enter_context(
                Program(
                    "record",
                    "orbit",
                    count // workers,
                    1,
                    1000 * workers / RATE,
                    service=service,
                    ORBIT_WORKER_NAME=f"one-of-many-{n}",
                )
            )
            for n in range(workers)
        ]
        for program in programs:
            program.ready()
        service.expect(workers * WARM)

        def send() -> None:
            for number, program in enumerate(programs):
                time.sleep(max(began + number / RATE - time.monotonic(), 0.0))  # the pace
                program.go()
            for program in programs:
                program.result()

        began = time.monotonic()
        share = added(service, send)
        service.expect(count // workers * workers)
    return share


def added(receiver: Receiver, send: Callable[[], None]) -> float:
    """The share of a core that it takes while that is sent."""
    cpu, began = receiver.cpu_seconds(), time.monotonic()
    send()
    return (receiver.cpu_seconds() - cpu) / (time.monotonic() - began)


def paced(put: Callable[[int], None], count: int) -> None:
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(began + number / RATE - time.monotonic(), 0.0))  # the pace
        put(number)


# ---------------------------------------------------------------- track


def tracked(scale: Scale) -> Iterator[Row]:
    """`track` with two steps and its start, in the worker and in the service."""
    runs = scale.flood_runs // 5
    # In bursts as long as the sender keeps up with, or it would be its waiting that counts.
    with Service() as service:
        time.sleep(scale.settle_seconds)  # what a start puts off is over then
        taken = take_turns("track", {"orbit": partial(track, service, runs)}, scale.rounds)
    worker, thread, received = (
        Sample.of([told[which] for told in taken["orbit"]]) for which in range(3)
    )
    both = "`track` with two steps and its start"
    yield Row(f"{both}, the caller's CPU", "us", thread)
    yield Row(f"{both}, all of the worker's CPU", "us", worker, target=Target(6))
    yield Row(f"{both}, the service's CPU", "us", received, target=Target(12))


def track(service: Service, runs: int) -> tuple[float, float, float]:
    """Microseconds a run: of the worker's process, of its tracking thread, of the service."""
    size, every_ms = 250, 10  # 25,000 runs a second
    with Program("record", "orbit_tracked", runs // size, size, every_ms, service=service) as one:
        one.ready()
        service.expect(WARM)
        cpu = service.cpu_seconds()
        one.go()
        told = one.result()
        service.expect(told["runs"])
        service.settle()
        received = service.cpu_seconds() - cpu
    worker, thread = told["process_cpu"], told["thread_cpu"]
    each = 1e6 / told["runs"]
    return worker * each, thread * each, received * each
