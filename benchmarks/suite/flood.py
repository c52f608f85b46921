"""CPU that receiving takes of the service, as fast as workers send; beside daemons written in C."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks.daemons import Statsd, daemons, datagrams
from benchmarks.harness import Program, Sample, Service, say, take_turns
from benchmarks.programs.record import PIPELINES
from benchmarks.scale import Scale
from benchmarks.scrape import Worker
from benchmarks.table import Row, Target
from orbit_worker.buffer import Buffer

BURST = 1_000
FORMED_AT = 1_000_000_000_000  # a time with as many digits as now
MANY, BUSY, IDLE = 50, 10, 1_000
IDLE_PROCESSES = 4
TERSELY, IN_FULL = "a timer a run", "a timer and a counter a run"
SHARES = 2  # of datagrams: made once, sent so many times
COMES_IN = {  # how the peers' CPU comes to an end: what they put off to their next second
    "netdata": 1.2,
    "collectd": 0.2,
}
LACKS = {
    "netdata": "netdata: not durable, nothing is acknowledged, a timer is kept for one second.",
    "collectd": "collectd: not durable, nothing is acknowledged, a timer is kept for ten seconds.",
}


def rows(scale: Scale) -> Iterator[Row]:
    runs = scale.flood_runs
    words = {
        said: datagrams(runs // SHARES, tersely=tersely) * SHARES
        for said, tersely in ((IN_FULL, False), (TERSELY, True))
    }
    with Service() as alone, Service() as crowded, daemons() as peers, idle(crowded):
        time.sleep(scale.settle_seconds)  # what a start puts off is over then
        subjects: dict[str, Callable[[], float]] = {
            "one": partial(flood, alone, 1, runs),
            "client": partial(flood_by_client, alone, runs),
            "many": partial(flood, alone, MANY, runs),
            "crowd": partial(flood, crowded, BUSY, runs),
        }
        running = {name: peer for name, peer in peers.items() if peer is not None}
        for name, daemon in running.items():
            for said, sent in words.items():
                flooded = partial(flood_peer, daemon, sent, runs // SHARES * SHARES)
                subjects[f"{name}, {said}"] = flooded
        taken = take_turns("flood", subjects, scale.rounds)
        lost = {name: daemon.lost for name, daemon in running.items()}
    of = {name: Sample.of(values) for name, values in taken.items()}
    datagrams_sent = scale.rounds * sum(map(len, words.values()))
    for name in peers:
        for said in words:
            # Outcome and duration, as with the peers that are libraries.
            aim = Target(0.6, ambition=0.5, of_ratio=True)
            aimed = aim if name == "netdata" and said == IN_FULL else None
            notes = [f"{name} is not installed."]
            if name in lost:
                notes = [LACKS[name], f"{name} lost {lost[name]} datagrams of {datagrams_sent:,}."]
            peer = f"{name}, {said}"
            figure = "service, flood of one worker, 10 pipelines, durable"
            yield Row(figure, "CPU s a million runs", of["one"], peer, of.get(peer), aimed, notes)
    yield Row(
        "the same, from a client that records meanwhile",
        "CPU s a million runs",
        of["client"],
        "the flood of lines that are formed",
        of["one"],
    )
    for what, subject in (
        (f"{MANY} workers at once", "many"),
        (f"{BUSY} busy workers beside {IDLE:,} idle ones", "crowd"),
    ):
        yield Row(
            f"service, flood of {what}",
            "CPU s a million runs",
            of[subject],
            "the flood of one worker",
            of["one"],
            Target(1.3, of_ratio=True),
        )


def lines_of(runs: int) -> list[bytes]:
    """As the client forms them: ten pipelines, from 1 to 901 ms, one run in a hundred fails."""
    buffer = Buffer(max_runs=runs, max_bytes=100 * runs)
    buffer.open += [
        (PIPELINES[n % 10], 1 + (n % BURST * 7919) % 900_000 / 1000, n % 100 != 7)
        for n in range(runs)
    ]
    buffer.form_all(FORMED_AT)
    return [message.line for message in buffer.kept(0)]


def flood(service: Service, workers: int, runs: int) -> float:
    """CPU seconds a million runs, of so many connections at once.

    Lines are formed beforehand, as the daemons' datagrams are, but for their time.
    """
    each = runs // workers
    now = b"%d" % (time.time_ns() // 10**6)
    lines = [line.replace(b"%d" % FORMED_AT, now) for line in lines_of(each)]
    with ExitStack() as stack:
        senders = [
            stack.enter_context(Worker(service.socket, f"flood-{n}")) for n in range(workers)
        ]
        cpu = service.cpu_seconds()
        for line in lines:
            for sender in senders:
                sender.put_line(line)
        for sender in senders:
            sender.wait()
        service.settle()
        spent = service.cpu_seconds() - cpu
        service.expect(each * workers)
    return spent / (each * workers) * 1e6


def flood_by_client(service: Service, runs: int) -> float:
    """The same of one worker whose client forms and sends while runs are recorded."""
    with Program(
        "record", "orbit_ten", runs // BURST, BURST, 0, service=service, ORBIT_WORKER_NAME="flood"
    ) as program:
        program.ready()
        service.expect(1)  # the first
        cpu = service.cpu_seconds()
        program.go()
        recorded: int = program.result()["runs"]
        service.settle()
        spent = service.cpu_seconds() - cpu
        service.expect(recorded)
    return spent / recorded * 1e6


def flood_peer(peer: Statsd, datagrams: list[bytes], runs: int) -> float:
    cpu = peer.cpu_seconds()
    peer.flood(datagrams)
    time.sleep(COMES_IN[peer.name])  # what it puts off is in the figure then
    return (peer.cpu_seconds() - cpu) / runs * 1e6


@contextmanager
def idle(service: Service) -> Iterator[None]:
    """A thousand clients that are connected, and send their heartbeats."""
    with ExitStack() as stack:
        programs = [
            stack.enter_context(
                Program("clients", f"idle-{n}", IDLE // IDLE_PROCESSES, 0, 0, service=service)
            )
            for n in range(IDLE_PROCESSES)
        ]
        for program in programs:
            program.ready()
        connected = service.call("worker.metrics")["workersConnected"]
        say(f"  flood: {connected:,} idle workers are connected")
        yield
