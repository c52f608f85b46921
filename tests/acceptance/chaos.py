"""
Random faults against real processes, and the books afterwards.

    python tests/acceptance/chaos.py --kills 1000 --seed 7        (make chaos N=1000 SEED=7)

A round is one service, workers that record runs with known contents, and a proxy
between some of them. Each worker notes in a file of its own what it is about to hand
over and what it has handed over; processes are killed, stopped and cut off at random
moments; in the end the service's answers have to be what the files say, to the run.

Messages arrive in order, so what is counted of a session that was killed is a
beginning of what it noted; how long a beginning, the session's ledger says, and then
everything else follows from the file exactly. Only runs that had begun around the end of
the beginning may be lost runs or not: there a number has bounds.

Service and workers are forked from a process that has imported them already, which
starts one in milliseconds. Of the product six constants are changed: how long sessions are
waited for after a start, how much journal makes a checkpoint, how often a worker looks for
spools, how soon a window closes and is rolled up, and how often the history is looked
after. Contents and actions come from the seed; when exactly a kill strikes does not, so a
seed that failed may have to be run more than once.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from killed_at import POINTS, Countdown, close_windows_at_once

from orbit_rpc_schema.caller import CallFailed, call
from orbit_service.app import serve
from orbit_service.core.stats import Stats, percent, rounded
from orbit_service.program import configure_logging
from orbit_service.rpc import workers
from orbit_service.settings import Settings
from orbit_service.state import journal
from orbit_worker import RunStep, adoption
from orbit_worker.client import MetricsClient
from orbit_worker.connection import Connection
from orbit_worker.sender import Sender
from orbit_worker.spool import prefix

ROUND = 50  # kills with one state
PLAIN = ("alpha", "beta", "gamma", "delta")
SPOOLED = ("spool", "spool & proxy")
NAMES = PLAIN + SPOOLED
PROXIED = ("gamma", "delta", "spool & proxy")
PIPELINES = ("orders", "mails", "größe", "long")
# More than a worker that tries again every 2 s needs, on a machine that does much else.
RETURN_SECONDS = 6.0
CHECKPOINT_BYTES = (20_000, 200_000, journal.CHECKPOINT_BYTES)
LOOK_SECONDS = 0.5  # of a worker, for the spools of those before it
PATIENCE = 60.0  # for what has to happen in the end


def fork(act: Callable[..., object], *arguments: Any) -> int:
    """A process of ours that does one thing and dies with its parent.

    It begins with SIGTERM blocked, so that none can strike before its handler is there.
    """
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return pid
    try:
        die_with(parent)
        act(*arguments)
    except BaseException:  # noqa: BLE001  # told, and then this process ends
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def die_with(parent: int) -> None:
    set_parent_death_signal = 1  # prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


# ---------------------------------------------------------------- the service


def run_service(folder: Path, checkpoint_bytes: int, point: str | None, times: int) -> None:
    log = os.open(folder / "service.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    workers.RETURN_SECONDS = RETURN_SECONDS
    close_windows_at_once()
    journal.CHECKPOINT_BYTES = checkpoint_bytes
    if point is not None:
        POINTS[point](Countdown(times))
    configure_logging("INFO")
    settings: dict[str, Any] = {
        "ORBIT_SOCKET": folder / "worker.sock",
        "ORBIT_HTTP": "none",
        "ORBIT_STATE": folder / "state",
        "ORBIT_NODE": "chaos",
        "METRICS_INTERVAL": 3_600_000,
    }
    asyncio.run(serve(Settings(**settings)))


# ---------------------------------------------------------------- a worker


class Notes:
    """What a worker says it does: lines of JSON that outlive it, one write each."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *what: Any) -> None:
        os.write(self._file, json.dumps(what).encode() + b"\n")


class NotedClient(MetricsClient):
    """A client that notes each result before and after it takes it."""

    notes: Notes
    results = 0  # handed over

    def result(self, kind: str, us: int, ok: bool, pipeline: str, **detail: Any) -> None:
        self.notes.write("result", kind, us, ok, pipeline, detail.get("id"))
        self.record_run(us / 1000 if kind != "refused" else -1, ok, pipeline=pipeline, **detail)
        self._taken()

    def _begin_run(
        self, pipeline: str, id: str | None, attempt: int | None = None
    ) -> tuple[str, int]:
        self.notes.write("start", pipeline, id)
        return super()._begin_run(pipeline, id, attempt)

    def _end_run(self, pipeline: str, duration_ms: float, success: bool, **rest: Any) -> None:
        # A run under `track` has the duration that it has.
        us = int(duration_ms * 1000 + 0.5)
        self.notes.write("result", "run", us, success, pipeline, rest["detail"]["id"])
        super()._end_run(pipeline, duration_ms, success, **rest)
        self._taken()

    def flush(self, timeout: float = 5.0) -> bool:
        flushed = super().flush(timeout)
        if flushed:
            self.notes.write("flushed", self.results)
        return flushed

    def _taken(self) -> None:
        self.results += 1
        self.notes.write("taken")


def note_the_wire(notes: Notes) -> None:
    """Let the sender note how many results a service has wholly in its socket, and which one."""
    transmit = Sender._transmit

    def transmit_and_note(self: Sender, connection: Connection, now: float) -> None:
        before = self._position
        transmit(self, connection, now)
        message = self._buffer._formed.get(self._position)
        if self._position > before and message is not None and not connection.busy:
            notes.write("wire", message.recorded, _pid_of_peer(connection.socket))

    Sender._transmit = transmit_and_note  # type: ignore[method-assign]


def _pid_of_peer(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def run_worker(path: Path, name: str, notes_path: Path, seed: str, spool: Path | None) -> None:
    rng = random.Random(seed)
    notes = Notes(notes_path)
    note_the_wire(notes)
    client = NotedClient(socket=path, worker=name, spool_dir=spool, environ={})
    client.notes = notes
    notes.write("session", client.session, name)
    adoption.LOOK_SECONDS = LOOK_SECONDS
    leaving = False

    def leave(*_: object) -> None:
        nonlocal leaving
        leaving = True

    signal.signal(signal.SIGTERM, leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    for _turn in _turns(client, rng, starts=spool is None):
        if leaving:
            break
    flushed = client.flush(PATIENCE)
    client.close(5.0)
    notes.write("left", flushed)


def run_heir(path: Path, name: str, notes_path: Path, spool: Path) -> None:
    """A last worker, which records nothing and leaves when nothing is left to adopt."""
    notes = Notes(notes_path)
    adoption.LOOK_SECONDS = LOOK_SECONDS
    client = NotedClient(socket=path, worker=name, spool_dir=spool, environ={})
    client.notes = notes
    notes.write("session", client.session, name)
    client.connect()
    _until(lambda: not list(spool.glob(f"{prefix(name)}-*.spool")), "spools are adopted")
    flushed = client.flush(PATIENCE)
    client.close(5.0)
    notes.write("left", flushed)


def _turns(client: NotedClient, rng: random.Random, *, starts: bool) -> Iterator[None]:
    """One thing after another, without end.

    Without `starts` no run is announced: what a spool holds of one that was given up as
    lost meanwhile comes late, and which ones do the ledger does not say.
    """
    ids = (f"{client.session[:6]}-{n}" for n in range(1_000_000))
    open_runs: list[str] = []
    while True:
        pipeline = rng.choice(PIPELINES[:3])
        match rng.randrange(11):
            case 0 | 1 | 2:
                for _ in range(rng.choice((1, 3, 30, 200))):
                    client.result("run", _us(rng), rng.random() > 0.1, pipeline)
            case 3:
                steps = [RunStep("read", rng.randrange(50)), RunStep("wörk", 3, success=False)]
                client.result(
                    "run", _us(rng), False, pipeline, wait_ms=7, error="Böse: \x00", steps=steps
                )
            case 4:  # tried again, until it goes well or not
                id, last = next(ids), rng.randint(1, 4)
                for attempt in range(1, last):
                    client.result(
                        "attempt", _us(rng), False, pipeline, id=id, attempt=attempt, final=False
                    )
                client.result("run", _us(rng), rng.random() > 0.3, pipeline, id=id, attempt=last)
                if rng.random() < 0.3:
                    client.result("repeated", _us(rng), True, pipeline, id=id, attempt=last)
                elif rng.random() < 0.3:
                    client.result("rerun", _us(rng), True, pipeline, id=id, attempt=last + 1)
            case 5:
                client.result("refused", 0, True, pipeline)
            case 6 if starts and len(open_runs) < 5:
                open_runs.append(next(ids))
                client.start_run(open_runs[-1], pipeline="long")
            case 7 if open_runs:
                id = open_runs.pop(rng.randrange(len(open_runs)))
                client.result("run", _us(rng), rng.random() > 0.2, "long", id=id)
            case 8 if starts:
                try:
                    with client.track("long", id=next(ids)) as run:
                        with run.step("part"):
                            time.sleep(rng.random() * 0.02)
                        if rng.random() < 0.3:
                            raise LookupError("no")
                except LookupError:
                    pass
            case 9 if rng.random() < 0.3:
                client.flush(rng.random() * 0.5)
            case 10 if rng.random() < 0.2:
                time.sleep(rng.random() * 0.5)  # long enough for the sender to go to sleep
        yield
        time.sleep(rng.random() * 0.02)


def _us(rng: random.Random) -> int:
    return rng.choice((0, rng.randrange(1_000), rng.randrange(1_000_000), rng.randrange(10**10)))


def run_keeper(path: Path, names: tuple[str, ...]) -> None:
    """One open session for each worker, so that its life lasts until the end."""
    clients = [MetricsClient(socket=path, worker=name, environ={}) for name in names]
    for client in clients:
        client.connect()
    signal.sigwait({signal.SIGTERM})
    for client in clients:
        client.close(5.0)


# ---------------------------------------------------------------- the proxy


class Proxy:
    """Passes bytes on: as they are, in crumbs, late, or until it cuts the line."""

    def __init__(self, front: Path, back: Path, seed: str) -> None:
        self._front, self._back = front, back
        self._rng = random.Random(seed)
        self._calm = False

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._calm_down)
        server = await asyncio.start_unix_server(self._pass_on, self._front)
        await server.serve_forever()

    def _calm_down(self) -> None:
        self._calm = True

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back_reader, back_writer = await asyncio.open_unix_connection(self._back)
        except OSError:
            writer.close()
            return
        mood = self._rng.choice(("as it is", "crumbs", "late", "cut", "cut"))
        until = self._rng.randrange(30_000) if mood == "cut" else 10**12
        halves = [
            asyncio.create_task(self._pump(reader, back_writer, mood, until)),
            asyncio.create_task(self._pump(back_reader, writer, mood, until)),
        ]
        await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
        for half in halves:
            half.cancel()
        for end in (writer, back_writer):
            end.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mood: str, until: int
    ) -> None:
        try:
            while data := await reader.read(65_536):
                if not self._calm:
                    if mood == "late":
                        await asyncio.sleep(self._rng.random() * 0.05)
                    if len(data) >= until:
                        writer.write(data[:until])
                        return
                    until -= len(data)
                crumb = 1 + self._rng.randrange(3000) if mood == "crumbs" else len(data)
                for at in range(0, len(data), crumb):
                    writer.write(data[at : at + crumb])
                    await writer.drain()
                    if mood == "crumbs":
                        await asyncio.sleep(0)
        except OSError:
            pass


# ---------------------------------------------------------------- what has to be


@dataclass
class Books:
    """What is to be counted of one series, recomputed from the notes."""

    stats: Stats = field(default_factory=Stats)
    must_be_lost: int = 0
    may_be_lost: int = 0

    def add(self, kind: str, us: int, ok: bool) -> None:
        if kind in ("run", "rerun"):
            self.stats.add_runs([us], 0 if ok else 1, 0)
        if kind == "rerun":
            self.stats.retries += 1
        elif kind == "attempt":
            self.stats.add_unfinished_attempt()

    def merge(self, other: Books) -> None:
        self.stats.merge(other.stats)
        self.must_be_lost += other.must_be_lost
        self.may_be_lost += other.may_be_lost


@dataclass
class Incarnation:
    """One process of a worker: what it noted, and how it ended."""

    name: str
    pid: int
    notes_path: Path
    killed: bool = False
    floor: int = 0  # results that were on the wire to a service that lived on

    def notes(self) -> list[list[Any]]:
        if not self.notes_path.exists():
            return []
        lines = self.notes_path.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]

    def on_the_wire(self, service: int) -> int:
        """Results that this service had in its socket, by the sender's notes."""
        wires = [note for note in self.notes() if note[0] == "wire"]
        return wires[-1][1] if wires and wires[-1][2] == service else 0


def audit_session(
    who: Incarnation, ledger: dict[str, Any] | None, books: dict[str, Books]
) -> Iterator[str]:
    """What is wrong with this session; adds what has to be counted to `books`."""
    notes = who.notes()
    session = next((note[1] for note in notes if note[0] == "session"), None)
    results = [note for note in notes if note[0] == "result"]
    acknowledged = max([note[1] for note in notes if note[0] == "flushed"] + [0, who.floor])
    where = f"{who.name} {session} ({'killed' if who.killed else 'left'})"
    if not who.killed and notes[-1:] != [["left", True]]:
        yield f"{where}: could not hand over everything in the end: {notes[-1:]}"
    if ledger is None:
        if acknowledged or (not who.killed and results):
            yield f"{where}: unknown to the service, with {acknowledged} acknowledged"
        return
    arrived = ledger["recorded"]
    kinds = Counter(note[1] for note in results[:arrived])
    if who.killed:
        if not acknowledged <= arrived <= len(results):
            yield f"{where}: {arrived} arrived, not from {acknowledged} to {len(results)}"
    elif arrived != len(results):
        yield f"{where}: {arrived} arrived of {len(results)}"
    expected = {
        "recorded": arrived,
        "counted": kinds["run"] + kinds["rerun"] + kinds["attempt"],
        "repeated": kinds["repeated"],
        "late": 0,
        "refused": {},
        "dropped": {"duration": kinds["refused"]} if kinds["refused"] else {},
        "waiting": 0,
        "forgotten": 0,
        "connected": False,
    }
    actual = {key: ledger[key] for key in expected}
    if actual != expected:
        yield f"{where}: the ledger says {_difference(actual, expected)}"
    place = {}  # of each result by its id
    for number, (_, kind, us, ok, pipeline, id) in enumerate(results, 1):
        if number <= arrived:
            books[pipeline].add(kind, us, ok)
        place[pipeline, id] = number
    passed = 0
    for note in notes:
        if note[0] == "result":
            passed += 1
        elif note[0] == "start":
            ended = place.get((note[1], note[2]))
            if ended is None or ended > arrived:
                books[note[1]].may_be_lost += 1
                # Known to have begun, as something after it has arrived, and never ended.
                announced = passed < arrived or not who.killed
                books[note[1]].must_be_lost += announced and ended is None


def audit_series(where: str, answer: dict[str, Any], books: Books) -> Iterator[str]:
    """worker.metrics against the recomputation; lost runs are those over what ended."""
    stats = books.stats
    lost = answer["totalRuns"] - stats.runs
    if not books.must_be_lost <= lost <= books.may_be_lost:
        yield (
            f"{where}: {answer['totalRuns']} runs, of which {stats.runs} ended; so {lost} were "
            f"lost, not from {books.must_be_lost} to {books.may_be_lost}"
        )
    expected = {
        "failed": stats.failed + lost,
        "avgExecutionTime": stats.average_ms,
        "minExecutionTime": stats.min_ms,
        "maxExecutionTime": stats.max_ms,
        "p50": stats.quantiles_ms(0.50)[0],
        "p95": stats.quantiles_ms(0.95)[0],
        "p99": stats.quantiles_ms(0.99)[0],
        "retries": stats.retries,
    }
    actual = {key: answer[key] for key in expected}
    if actual != expected:
        yield f"{where}: {_difference(actual, expected)}"


def _difference(actual: dict[str, Any], expected: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {actual[key]!r} and not {expected[key]!r}"
        for key in expected
        if actual[key] != expected[key]
    )


# ---------------------------------------------------------------- a round


class Round:
    """Some kills with one state, and the audit."""

    def __init__(self, seed: int, kills: int, folder: Path) -> None:
        self.seed = seed
        self.kills = 0
        self.counts: Counter[str] = Counter()
        self.incarnations: list[Incarnation] = []
        self._wanted = kills
        self._rng = random.Random(f"round {seed}")
        self._folder = folder
        self._socket = folder / "worker.sock"
        self._checkpoint_bytes = self._rng.choice(CHECKPOINT_BYTES)
        self._service = 0
        self._crew: dict[str, Incarnation] = {}

    def run(self) -> list[str]:
        """What is wrong; an empty list is what is hoped for."""
        front = self._folder / "proxy.sock"
        proxy = fork(Proxy(front, self._socket, f"proxy {self.seed}").run)
        self._start_service()
        _until(self._answers, "the service starts")
        keeper = fork(run_keeper, self._socket, NAMES)
        for name in NAMES:
            self._follow(name)
        while self.kills < self._wanted:
            time.sleep(min(self._rng.expovariate(8.0), 0.5))
            self._strike()
        if not self._answers():
            _until(self._answers, "the service answers after the last kill")
        os.kill(proxy, signal.SIGUSR1)
        for who in self._crew.values():
            os.kill(who.pid, signal.SIGTERM)
        for who in self._crew.values():
            os.waitpid(who.pid, 0)
        for heir in [self._follow(name, last=True) for name in SPOOLED]:
            os.waitpid(heir.pid, 0)
        _until(self._all_ended, "sessions of killed workers end")
        _until(lambda: not self._ask("service.info")["state"]["trouble"], "the disk does its work")
        wrong = list(self._audit())
        # What was answered is answered again by the next service, until the lives end.
        before = self._answers_now()
        self._kill_service()
        self._start_service()
        _until(self._answers, "the service starts for the last time")
        after = self._answers_now()
        if before != after:
            wrong.append(f"after a last kill: {_difference(after, before)}")
        _until(self._keeper_is_back, "the keeper comes back")
        os.kill(keeper, signal.SIGTERM)
        os.waitpid(keeper, 0)
        _until(lambda: not self._ask("service.info")["workersConnected"], "the keeper leaves")
        wrong += self._audit_last_lives(before)
        for pid in (self._service, proxy):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return wrong

    # ------------------------------------------------------------ faults

    def _strike(self) -> None:
        strikes: dict[Callable[[], None], int] = {
            self._service_returns_at_once: 6,
            self._service_returns_later: 3,
            self._service_dies_as_it_starts: 2,
            self._service_dies_at_a_point: 3,
            self._worker_dies: 5,
            self._worker_dies_unread: 3,
            self._both_die: 2,
            self._service_stands_still: 1,
            self._service_dies_standing_still: 1,
            self._service_is_told_to_stop: 1,
            self._worker_leaves: 1,
            self._disk_is_full: 2,
            self._state_is_locked: 1,
        }
        [strike] = self._rng.choices(list(strikes), list(strikes.values()))
        self.counts[strike.__name__.strip("_").replace("_", " ")] += 1
        strike()

    def _service_returns_at_once(self) -> None:
        self._kill_service()
        self._start_service()
        self._maybe_wait()

    def _service_returns_later(self) -> None:
        self._kill_service()
        time.sleep(self._rng.random() * 0.7)
        self._start_service()
        self._maybe_wait()

    def _service_dies_as_it_starts(self) -> None:
        self._kill_service()
        self._start_service()
        time.sleep(self._rng.random() * 0.1)
        self._service_returns_at_once()

    def _service_dies_at_a_point(self) -> None:
        self._kill_service()
        self._start_service(self._rng.choice(list(POINTS)), self._rng.randint(1, 12))
        _until(self._service_is_dead, "the service gets to the point", patience=1.5)
        self._service_returns_at_once()

    def _worker_dies(self) -> None:
        name = self._rng.choice(NAMES)
        on_the_wire = self._end_worker(name)
        if self._rng.random() < 0.5:
            self._see_it_counted(name, on_the_wire)
        self._follow(name)

    def _worker_dies_unread(self) -> None:
        """What it wrote lies in the socket when it dies."""
        name = self._rng.choice([name for name in NAMES if name not in PROXIED])
        _until(lambda: self._crew[name].on_the_wire(self._service), "it is there", patience=1.5)
        os.kill(self._service, signal.SIGSTOP)
        time.sleep(self._rng.random() * 0.3)
        on_the_wire = self._end_worker(name)
        os.kill(self._service, signal.SIGCONT)
        self._see_it_counted(name, on_the_wire)
        self._follow(name)

    def _both_die(self) -> None:
        name = self._rng.choice(NAMES)
        first, second = self._kill_service, lambda: self._end_worker(name)
        for kill in (first, second) if self._rng.random() < 0.5 else (second, first):
            kill()
        self._start_service()
        self._follow(name)

    def _service_stands_still(self) -> None:
        os.kill(self._service, signal.SIGSTOP)
        time.sleep(self._rng.random())
        os.kill(self._service, signal.SIGCONT)

    def _service_dies_standing_still(self) -> None:
        os.kill(self._service, signal.SIGSTOP)
        time.sleep(self._rng.random() * 0.5)
        self._service_returns_at_once()

    def _service_is_told_to_stop(self) -> None:
        os.kill(self._service, signal.SIGTERM)
        os.waitpid(self._service, 0)
        self._start_service()

    def _worker_leaves(self) -> None:
        name = self._rng.choice(NAMES)
        who = self._crew[name]
        os.kill(who.pid, signal.SIGTERM)
        os.waitpid(who.pid, 0)
        self._follow(name)

    def _disk_is_full(self) -> None:
        """For a while no file can be written; some services do not live to see the end of it."""
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(self._service, resource.RLIMIT_FSIZE, (0, unlimited))
        time.sleep(self._rng.random())
        if self._rng.random() < 0.3:
            self._service_returns_at_once()
        else:
            resource.prlimit(self._service, resource.RLIMIT_FSIZE, (unlimited, unlimited))

    def _state_is_locked(self) -> None:
        other = sqlite3.connect(self._folder / "state" / "state.sqlite", isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            time.sleep(self._rng.random() * 1.5)
        except sqlite3.OperationalError:
            pass  # the service was quicker, or is just making the file
        finally:
            other.close()

    # ------------------------------------------------------------ processes

    def _start_service(self, point: str | None = None, times: int = 0) -> None:
        """One that kills itself the n-th time it gets to a point, or one that does not."""
        self._service = fork(run_service, self._folder, self._checkpoint_bytes, point, times)

    def _kill_service(self) -> None:
        os.kill(self._service, signal.SIGKILL)
        _pid, status = os.waitpid(self._service, 0)
        if os.WIFEXITED(status):
            raise AssertionError(f"the service had ended by itself with {status}")
        self.kills += 1

    def _maybe_wait(self) -> None:
        """Half of the time the next strike finds a service that works, else one that begins."""
        if self._rng.random() < 0.5:
            _until(self._answers, "the service starts")

    def _follow(self, name: str, *, last: bool = False) -> Incarnation:
        number = len(self.incarnations)
        notes = self._folder / f"{number:04}-{name}.notes"
        path = self._folder / "proxy.sock" if name in PROXIED else self._socket
        spool = self._folder / "spool" if name in SPOOLED else None
        if last:
            pid = fork(run_heir, path, name, notes, spool)
        else:
            pid = fork(run_worker, path, name, notes, f"{self.seed} {number}", spool)
        self._crew[name] = Incarnation(name, pid, notes)
        self.incarnations.append(self._crew[name])
        return self._crew[name]

    def _end_worker(self, name: str) -> int:
        """kill -9; the results that the service has in its socket, or had."""
        who = self._crew[name]
        os.kill(who.pid, signal.SIGKILL)
        os.waitpid(who.pid, 0)
        who.killed = True
        self.kills += 1
        return who.on_the_wire(self._service)

    def _see_it_counted(self, name: str, on_the_wire: int) -> None:
        """Let the service live until it has read what was written and has it on the disk."""
        if on_the_wire and self._answers():
            who = self._crew[name]
            _until(lambda: self._has_ended(name, who.notes()[0][1]), "a killed session ends")
            if self._has_committed():
                who.floor = on_the_wire

    def _service_is_dead(self) -> bool:
        return os.waitid(os.P_PID, self._service, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    # ------------------------------------------------------------ questions

    def _ask(self, method: str, **params: Any) -> Any:
        return call(self._socket, method, params, timeout=20)

    def _answers(self) -> bool:
        try:
            return bool(call(self._socket, "service.info", timeout=2))
        except (OSError, CallFailed):
            return False

    def _sessions(self, name: str) -> dict[str, dict[str, Any]]:
        ledger = self._ask("service.ledger", worker=name, limit=1000)
        return {session["session"]: session for session in ledger["sessions"]}

    def _has_ended(self, name: str, session: str) -> bool:
        ledger = self._sessions(name).get(session)
        return ledger is None or not ledger["connected"]

    def _has_committed(self) -> bool:
        """What is counted now is on the disk; False where the others give it nothing to write."""
        commits = self._ask("service.info")["state"]["commits"]
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            # The one that is under way may be without it; the one after that is not.
            if self._ask("service.info")["state"]["commits"] >= commits + 2:
                return True
            time.sleep(0.005)
        return False

    def _all_ended(self) -> bool:
        """Nobody is connected but the keeper."""
        workers = {worker["name"]: worker["sessions"] for worker in self._ask("worker.list")}
        return workers == dict.fromkeys(NAMES, 1)

    def _all_published(self) -> bool:
        history = self._ask("service.info")["history"]
        return not (history["waiting"] or history["trouble"])

    def _keeper_is_back(self) -> bool:
        return bool(self._ask("service.info")["connections"] > len(NAMES))  # and who asks

    def _answers_now(self) -> dict[str, Any]:
        """What does not change while nothing happens."""
        passing = ("uptime", "uptimeSeconds", "runsPerHour", "timestamp")
        answers: dict[str, Any] = {"stats": self._ask("worker.stats")}
        window = self._ask("worker.metrics", window="1h")
        answers["the last hour"] = {k: v for k, v in window.items() if k not in passing}
        answers["total"] = self._ask("service.ledger")["total"]
        for name in NAMES:
            metrics = self._ask("worker.metrics", worker=name)
            answers[name] = {k: v for k, v in metrics.items() if k not in passing}
            answers[f"{name}'s sessions"] = {
                id: {k: v for k, v in session.items() if k not in ("lastSeen", "connected")}
                for id, session in self._sessions(name).items()
            }
        return answers

    # ------------------------------------------------------------ the audit

    def _audit(self) -> Iterator[str]:
        everything = Books()
        ledgers: list[dict[str, Any]] = []
        for name in NAMES:
            sessions = self._sessions(name)
            ledgers += sessions.values()
            books: defaultdict[str, Books] = defaultdict(Books)
            for who in self.incarnations:
                if who.name == name:
                    ids = [note[1] for note in who.notes() if note[0] == "session"]
                    yield from audit_session(who, sessions.get(ids[0]) if ids else None, books)
            total = Books()
            for part in books.values():
                total.merge(part)
            everything.merge(total)
            window = self._ask("worker.metrics", worker=name, window="1h")
            yield from audit_series(f"{name}, the last hour", window, total)
            if name in SPOOLED:
                # A session that was never seen before it was adopted has no life to count in.
                continue
            for pipeline, part in books.items():
                answer = self._ask("worker.metrics", worker=name, pipeline=pipeline)
                yield from audit_series(f"{name}/{pipeline}", answer, part)
            yield from audit_series(name, self._ask("worker.metrics", worker=name), total)
            raw = self._ask("worker.snapshot", worker=name)["raw"]
            if raw["totalExecutionTime"] != rounded(total.stats.total_us, 1000):
                yield f"{name}: totalExecutionTime {raw['totalExecutionTime']}"
            yield from self._audit_lost_runs(name)
        yield from self._audit_windows(everything)
        window = self._ask("worker.metrics", window="1h")
        yield from audit_series("the last hour", window, everything)
        _until(self._all_published, "the history has everything")
        window = self._ask("worker.metrics", window="1h")
        yield from audit_series("the last hour, published", window, everything)
        ledger = self._ask("service.ledger", limit=1000)
        for key in ("recorded", "counted", "repeated", "late", "waiting", "forgotten"):
            if ledger["total"][key] != sum(session[key] for session in ledgers):
                yield f"the total of {key} {ledger['total'][key]} is not the sum of the sessions'"
        if not ledger["balanced"]:
            yield "the ledger is not balanced"
        info = self._ask("service.info")
        if info["state"]["trouble"] is not None:
            yield f"the state is in trouble: {info['state']['trouble']}"
        if faults := {k: n for k, n in info["intake"]["faults"].items() if k != "line cut off"}:
            yield f"faults: {faults}"
        said = (self._folder / "service.log").read_text()
        self.counts["spools adopted"] = said.count("connected by a successor")
        self.counts["floors on the wire"] = sum(who.floor > 0 for who in self.incarnations)
        self.counts["results counted"] = ledger["total"]["counted"]
        self.counts["sessions"] = len(ledgers)

    def _audit_windows(self, books: Books) -> Iterator[str]:
        answer, stats = self._ask("worker.stats"), books.stats
        lost = answer["runsLast24Hours"] - stats.runs
        runs, failed = stats.runs + lost, stats.failed + lost
        self.counts["lost runs"] = lost
        expected = {
            "runsLastHour": runs,
            "runsLast24Hours": runs,
            "successCount": runs - failed,
            "failedCount": failed,
            "avgDurationMs": rounded(stats.total_us, stats.timed * 1000),
            "errorRate": percent(failed, runs, decimals=1),
            "running": 0,
        }
        actual = {key: answer[key] for key in expected}
        if actual != expected or not books.must_be_lost <= lost <= books.may_be_lost:
            yield f"worker.stats: {lost} lost, {_difference(actual, expected)}"

    def _audit_lost_runs(self, name: str) -> Iterator[str]:
        """Each lost run once, and each one of somebody who had begun it."""
        views = self._ask(
            "worker.recentRuns", worker=name, pipeline="long", status="failed", limit=100
        )
        lost = Counter(v["id"] for v in views if (v["error"] or {}).get("type") == "WorkerLost")
        begun = {
            note[2]
            for who in self.incarnations
            if who.name == name
            for note in who.notes()
            if note[0] == "start"
        }
        for id, times in lost.items():
            if times > 1 or id not in begun:
                yield f"{name}: the run {id} was lost {times} times"

    def _audit_last_lives(self, before: dict[str, Any]) -> Iterator[str]:
        for name in NAMES:
            metrics = self._ask("worker.metrics", worker=name)
            last, life = metrics["lastLife"], before[name]
            if metrics["connected"] or last is None:
                yield f"{name}: the life did not end with its last session"
            elif (last["totalRuns"], last["failed"]) != (life["totalRuns"], life["failed"]):
                yield f"{name}: the last life says {last} and not {life}"


def _until(condition: Callable[[], object], what: str, patience: float | None = None) -> None:
    """Wait for a condition; with a patience of its own it need not come."""
    deadline = time.monotonic() + (PATIENCE if patience is None else patience)
    while not condition():
        if time.monotonic() > deadline:
            if patience is not None:
                return
            raise AssertionError(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.005)  # between two looks


# ---------------------------------------------------------------- the program


def run_round(seed: int, kills: int, folder: Path) -> None:
    """One round in this process; its outcome as a line of JSON."""
    round = Round(seed, kills, folder)
    try:
        wrong = round.run()
    except Exception:  # noqa: BLE001  # a harness that fails is no balance
        wrong = [traceback.format_exc()]
    print(json.dumps({"kills": round.kills, "wrong": wrong, "counts": round.counts}))


def run_rounds(seed: int, kills: int, jobs: int) -> int:
    """Rounds of ROUND kills, some at once, until there were so many; 1 when one is wrong."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="orbit-chaos-"))
    left = [min(ROUND, kills - at) for at in range(0, kills, ROUND)]
    waiting = list(enumerate(left, seed))
    print(f"{kills} kills in {len(waiting)} rounds, seed {seed}, {jobs} at once", flush=True)
    running: dict[subprocess.Popen[str], tuple[int, int, Path]] = {}
    total: Counter[str] = Counter()
    failed = False
    while (waiting and not failed) or running:
        while waiting and not failed and len(running) < jobs:
            round_seed, round_kills = waiting.pop(0)
            place = folder / str(round_seed)
            place.mkdir()
            command = [sys.executable, __file__, "--round", str(place)]
            command += ["--seed", str(round_seed), "--kills", str(round_kills)]
            with (place / "round.log").open("w") as log:
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
            running[process] = round_seed, round_kills, place
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        for process in [process for process in running if process.poll() is not None]:
            round_seed, round_kills, place = running.pop(process)
            assert process.stdout is not None
            said = process.stdout.read().splitlines()
            process.stdout.close()
            outcome: dict[str, Any] = {"kills": 0, "wrong": ["it died"]}
            if said:
                outcome = json.loads(said[-1])
            total.update(outcome.get("counts", {}), kills=outcome["kills"])
            seconds = time.monotonic() - began
            print(
                f"  seed {round_seed}: {outcome['kills']} kills, "
                f"{'WRONG' if outcome['wrong'] else 'in balance'}; "
                f"{total['kills']} in {seconds:.0f} s",
                flush=True,
            )
            if outcome["wrong"]:
                failed = True
                for sentence in outcome["wrong"]:
                    print(f"    {sentence}")
                (place / "wrong.txt").write_text("\n".join(outcome["wrong"]))
                print(f"  again: make chaos N={round_kills} SEED={round_seed}; files in {place}")
            else:
                shutil.rmtree(place)
    seconds = time.monotonic() - began
    print(f"{total['kills']} kills in {seconds:.0f} s, {total['kills'] / seconds:.1f} a second")
    print("  " + ", ".join(f"{what} {n}" for what, n in sorted(total.items())))
    if not failed:
        shutil.rmtree(folder)
        print("every equation held")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--round", type=Path, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    if given.round is not None:
        die_with(os.getppid())
        run_round(seed, given.kills, given.round)
        return 0
    return run_rounds(seed, given.kills, given.jobs)


if __name__ == "__main__":
    sys.exit(main())
