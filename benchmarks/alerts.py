"""
What rules cost: a look at all of them, and what it does to the workers meanwhile.

    .venv/bin/python benchmarks/alerts.py [--seconds 60] [--settle 40] [--case "1000 rules"]

For each case a real service with a state directory gets 200 pipelines of 10 workers, all of
which run 40 times in every ten seconds, with durations over some 200 buckets; beside them a
process of one of the workers sends a run every 5 ms and waits for its acknowledgement.
Cases: no rules; 1,000 rules of mixed metrics, of which each names one pipeline; 50 rules
that match all 2,000 series each; 1,000 alerts that fire, from one look on; 10,000 that are
pending. The service is told by this file to note how long each part of its looks takes, and
how long the garbage collector stopped it at most; the other processes share the machine, and
their work is in what is measured. Settled is what has run for as long as the longest windows:
that takes an hour, after ten minutes the most of it is there.

At last, in a process of its own and without a service: the sums of a rule over 24 hours.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from orbit_rpc_schema.caller import CallFailed, call
from orbit_rpc_schema.wire import connect_line, connect_params, record_line

PIPELINES, WORKERS = 200, 10
RUNS = 40  # a series, every ten seconds
SETTLE_SECONDS = 40.0  # windows have closed, the first looks are over, what was imported is frozen
PAUSE_SECONDS = 0.005
PARTS = (  # of a look: function, where it is looked up, what it is called here
    ("Stamps.as_of_now", "facts"),
    ("Sums.add", "sums"),
    ("Sums.advance", "sums"),
    ("look", "readings"),
    ("fold", "fold"),
    ("Desk._turn", "turn"),
    ("Desk._tell", "plan"),
    ("Desk._commit", "commit"),
    ("Desk.show", "show"),
)
NAMES = tuple(dict.fromkeys(name for _path, name in PARTS))

# Metric, threshold, window; nothing of what runs here breaches one of them.
QUIET = (
    ("error_rate", "above = 50", "5m"),
    ("p95", 'above = "1h"', "5m"),
    ("p99", 'above = "1h"', "10m"),
    ("failures", "above = 1_000_000", "5m"),
    ("runs_per_hour", "below = 0.5", "1h"),
    ("since_success", 'above = "1h"', None),
    ("stuck_runs", "above = 0", None),
    ("avg", 'above = "1h"', "10m"),
    ("oldest_in_flight", 'above = "1h"', None),
    ("retries", "above = 1_000", "5m"),
)
FIRES = ("failures", "above = 0", "5m")
PENDING = ("failures", 'above = 0\nfor = "24h"', "5m")
EACH = ("worker", "pipeline")


# ---------------------------------------------------------------- rules


def pipeline(n: int) -> str:
    return f"package.module.task_{n % PIPELINES:03}"


def a_rule(
    n: int, about: tuple[str, str, str | None], per: Sequence[str], of: str | None = None
) -> str:
    metric, threshold, window = about
    lines = [
        "[[rules]]",
        f'name = "rule-{n:04}"',
        f'metric = "{metric}"',
        threshold,
        f"per = {list(per)}",
        f'window = "{window}"' if window else "",
        f'pipeline = "{of}"' if of else "",
    ]
    return "\n".join(lines)


def mixed(count: int) -> Iterator[str]:
    for n in range(count):
        # A pipeline gets rules of several metrics, each by pipeline and by worker.
        about = QUIET[(n + n // PIPELINES) % len(QUIET)]
        yield a_rule(n, about, EACH if n % 2 else ("pipeline",), pipeline(n))


class Case(NamedTuple):
    """Rules, and how many alerts come of them."""

    name: str
    rules: list[str]
    alerts: int = 0


CASES = [
    Case("no rules", []),
    Case("1000 rules", list(mixed(1000))),
    Case("50 rules of all", [a_rule(n, QUIET[n % len(QUIET)], EACH) for n in range(50)]),
    Case(
        "1000 fire",
        [a_rule(n, FIRES, ("pipeline",), pipeline(n)) for n in range(1000)],
        alerts=1000,
    ),
    Case("10000 pending", [a_rule(n, PENDING, EACH, pipeline(n)) for n in range(1000)], 10_000),
]


# ---------------------------------------------------------------- the service


class Look(NamedTuple):
    """One look: when it began and ended, by a clock that all processes share, and its parts.

    `collected` is the longest stop for the garbage collector meanwhile.
    """

    began: float
    ended: float
    cpu: float
    collected: float
    parts: dict[str, float]


def serve(noted: Path) -> None:
    """The service itself, with watches put on the parts of a look."""
    from orbit_service.alerts import desk
    from orbit_service.entry import main

    parts = dict.fromkeys(NAMES, 0.0)
    collections = [0.0]
    collecting = 0.0

    def collected(phase: str, _info: object) -> None:
        nonlocal collecting
        if phase == "start":
            collecting = time.perf_counter()
        else:
            collections.append(time.perf_counter() - collecting)

    gc.callbacks.append(collected)

    def watch(owner: Any, name: str, part: str) -> None:
        done = getattr(owner, name)

        @wraps(done)
        def watched(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return done(*args, **kwargs)
            finally:
                parts[part] += time.perf_counter() - began

        setattr(owner, name, watched)

    for path, part in PARTS:
        owner, _, name = path.rpartition(".")
        watch(getattr(desk, owner) if owner else desk, name, part)
    look = desk.Desk.look

    def looking(*args: Any) -> Any:
        parts.update(dict.fromkeys(NAMES, 0.0))
        collections[:] = [0.0]
        began, cpu = time.monotonic(), time.thread_time()
        try:
            return look(*args)
        finally:
            ended, cpu = time.monotonic(), time.thread_time() - cpu
            line = Look(began, ended, cpu, max(collections), dict(parts))
            with noted.open("a") as file:
                print(json.dumps(line), file=file)

    desk.Desk.look = looking  # type: ignore[method-assign]  # a watch
    sys.argv = ["orbit-metrics", "serve"]
    main()


@contextlib.contextmanager
def service(folder: Path, rules: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    path = folder / "worker.sock"
    environ = {**os.environ, "ORBIT_SOCKET": str(path), "ORBIT_HTTP": "127.0.0.1:0"}
    environ |= {"ORBIT_STATE": str(folder / "state"), "LOG_LEVEL": "ERROR"}
    if rules:
        file = folder / "alerts.toml"
        file.write_text("\n\n".join(['[channels.log]\nurl = "log://"', *rules]))
        environ["ORBIT_ALERTS"] = str(file)
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(folder / "looks")], env=environ
    )
    try:
        while True:
            with contextlib.suppress(OSError, CallFailed):
                call(path, "service.info")
                break
            time.sleep(0.05)  # until the service answers
        yield process, path
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int | str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


# ---------------------------------------------------------------- workers


class Worker:
    """One session, spoken by hand."""

    def __init__(self, path: Path, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self.seq = self.recorded = 0
        hello = connect_params(
            session=uuid.uuid4().hex, worker=name, started_at_ms=time.time_ns() // 10**6
        )
        self._socket.sendall(connect_line(1, hello))
        self._lines.readline()

    def send(self, batches: list[dict[str, Any]]) -> None:
        """Record, and wait until it is acknowledged."""
        self.seq += 1
        self.recorded += sum(len(batch["durationUs"]) for batch in batches)
        line = record_line(seq=self.seq, recorded=self.recorded, dropped={}, batches=batches)
        self._socket.sendall(line)
        while json.loads(self._lines.readline())["params"]["seq"] < self.seq:
            pass


def load(path: Path, ended: Any, told: Connection) -> None:
    """Runs of every series in every ten seconds, a worker a second; then how many there were."""
    number = random.Random(7)
    durations = [
        [int(number.lognormvariate(11, 1)) + 1 for _ in range(RUNS)] for _ in range(PIPELINES)
    ]
    workers = [Worker(path, f"worker-{n}") for n in range(WORKERS)]
    due, n = time.monotonic(), 0
    while not ended.wait(max(due - time.monotonic(), 0)):
        now = time.time_ns() // 10**6
        workers[n % WORKERS].send(
            [
                # Another list each time, so that sums do not stay the same.
                {"pipeline": pipeline(p), "at": now, "durationUs": d, "failed": [0]}
                for p, d in enumerate(durations[n % 7 :] + durations[: n % 7])
            ]
        )
        due, n = due + 10 / WORKERS, n + 1
    told.send(sum(worker.recorded for worker in workers))


def ping(path: Path, ended: Any, told: Connection) -> None:
    """A run every 5 ms; when each was sent, and how many ms it took to be acknowledged."""
    worker, took = Worker(path, "worker-0"), []
    while not ended.wait(PAUSE_SECONDS):
        batch = {"pipeline": pipeline(0), "at": time.time_ns() // 10**6, "durationUs": [1000]}
        began = time.monotonic()
        worker.send([batch])
        took.append((began, (time.monotonic() - began) * 1000))
    told.send((worker.recorded, took))


class Beside:
    """A process that works until it is told to end, and then tells what came of it."""

    def __init__(self, work: Callable[[Path, Any, Connection], None], path: Path) -> None:
        self._ended = multiprocessing.Event()
        self._told, theirs = multiprocessing.Pipe(duplex=False)
        multiprocessing.Process(target=work, args=(path, self._ended, theirs), daemon=True).start()

    def end(self) -> Any:
        self._ended.set()
        return self._told.recv()


# ---------------------------------------------------------------- what is measured


class Measured(NamedTuple):
    case: Case
    first: Look | None  # that had something to look at
    looks: list[Look]
    pings: list[tuple[float, float]]
    busy: float  # of a core
    mib: float


def measure(case: Case, settle: float, seconds: float) -> Measured:
    with (
        tempfile.TemporaryDirectory(prefix="orbit-bench-") as name,
        service(Path(name), case.rules) as (process, path),
    ):
        loading = Beside(load, path)
        time.sleep(settle)  # as the head of this file says
        pinging = Beside(ping, path)
        spent, began = cpu_seconds(process.pid), time.monotonic()
        time.sleep(seconds)  # of looks, and of runs beside them
        busy = (cpu_seconds(process.pid) - spent) / (time.monotonic() - began)
        mib = resident_mib(process.pid)
        sent, pings = pinging.end()
        sent += loading.end()
        check(path, case, sent)
        noted = Path(name, "looks")
        lines = noted.read_text().splitlines() if noted.exists() else []
    looks = [Look(*json.loads(line)) for line in lines]
    first = max((look for look in looks if look.ended < began), key=_length, default=None)
    return Measured(case, first, [look for look in looks if look.began > began], pings, busy, mib)


def check(path: Path, case: Case, sent: int) -> None:
    """Everything was counted, and the alerts are those that there have to be."""
    counted = call(path, "worker.metrics", {"window": "1h"})["totalRuns"]  # of ended lives too
    if counted != sent:
        raise SystemExit(f"{case.name}: {sent} runs were sent and {counted} counted")
    if case.rules:
        found = call(path, "alerts.list")
        if found["trouble"] is not None or len(found["alerts"]) != case.alerts:
            raise SystemExit(f"{case.name}: {len(found['alerts'])} alerts, {found['trouble']}")


def _length(look: Look) -> float:
    return look.ended - look.began


def report(all_: list[Measured]) -> None:
    print(
        f"\n{'a look, ms':<18}{'looks':>6}{'median':>8}{'max':>8}{'CPU':>8}{'first':>8}"
        f"{'collector':>11}"
    )
    for m in all_:
        if m.looks:
            lengths = [_length(look) * 1000 for look in m.looks]
            cpu = statistics.median(look.cpu for look in m.looks) * 1000
            stopped = max(look.collected for look in m.looks) * 1000
            first = 0.0 if m.first is None else _length(m.first) * 1000
            print(
                f"{m.case.name:<18}{len(lengths):>6}{statistics.median(lengths):>8.1f}"
                f"{max(lengths):>8.1f}{cpu:>8.1f}{first:>8.1f}{stopped:>11.1f}"
            )
    print(f"\n{'its parts, mean ms':<18}" + "".join(f"{name:>9}" for name in NAMES))
    for m in all_:
        if m.looks:
            means = [statistics.fmean(look.parts[n] for look in m.looks) * 1000 for n in NAMES]
            print(f"{m.case.name:<18}" + "".join(f"{mean:>9.1f}" for mean in means))
    print(
        f"\n{'acknowledged, ms':<18}{'runs':>6}{'p50':>8}{'p99':>8}{'p99.9':>8}{'max':>8}"
        f"{'looked: p50':>13}{'p99':>8}{'max':>8}{'core':>7}{'MiB':>6}"
    )
    for m in all_:
        took = [ms for _began, ms in m.pings]
        during = [
            ms
            for began, ms in m.pings
            if any(look.began - ms / 1000 < began < look.ended for look in m.looks)
        ]
        print(
            f"{m.case.name:<18}{len(took):>6}{statistics.median(took):>8.1f}"
            f"{_quantile(took, 0.99):>8.1f}{_quantile(took, 0.999):>8.1f}{max(took):>8.1f}"
            + (
                f"{statistics.median(during):>13.1f}{_quantile(during, 0.99):>8.1f}"
                f"{max(during):>8.1f}"
                if during
                else f"{'-':>13}{'-':>8}{'-':>8}"
            )
            + f"{m.busy:>7.0%}{m.mib:>6.0f}"
        )


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(int(q * len(values)), len(values) - 1)]


# ---------------------------------------------------------------- a day


def a_day(told: Connection) -> None:
    """The sums of one p95 over 24 hours of 2,000 series: what they hold, and what they cost."""
    from orbit_service.alerts.rules import RuleFile
    from orbit_service.alerts.sums import Sums
    from orbit_service.core.histogram import Histogram
    from orbit_service.core.outbox import Key
    from orbit_service.core.stats import Stats

    number = random.Random(7)
    rule = {"name": "day", "metric": "p95", "window": "24h", "above": "1h", "per": EACH}
    sums = Sums(RuleFile.model_validate({"rules": [rule]}).rules)
    keys = [Key(f"worker-{n}", pipeline(p)) for n in range(WORKERS) for p in range(PIPELINES)]
    rows = [
        Stats(runs=RUNS, timed=RUNS, histogram=Histogram.of(durations))
        for durations in (
            [int(number.lognormvariate(11, 1)) + 1 for _ in range(RUNS)] for _ in range(500)
        )
    ]
    before, added, advanced = resident_mib("self"), [], []
    minute, end_ms = 60_000, 1_700_000_000_000 // 1_800_000 * 1_800_000
    for start_ms in range(end_ms - 25 * 60 * minute, end_ms, minute):
        window = {key: number.choice(rows) for key in keys}
        began = time.perf_counter()
        sums.add(start_ms, window)
        added.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        sums.advance(start_ms + minute)
        advanced.append((time.perf_counter() - began) * 1000)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told.send((resident_mib("self") - before, peak - before, added, advanced))


def report_day() -> None:
    mine, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("spawn").Process(target=a_day, args=(theirs,))
    child.start()
    held, peak, added, advanced = mine.recv()
    child.join()
    print(
        f"\n2,000 series over 24 h: {held:.0f} MiB (at most {peak:.0f}); to add a window "
        f"{statistics.median(added):.1f} ms, to let half an hour go {max(advanced):.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--settle", type=float, default=SETTLE_SECONDS)
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve is not None:
        serve(asked.serve)
        return
    print(
        f"{PIPELINES * WORKERS} series, each {RUNS} runs in every 10 s; "
        f"{asked.seconds:.0f} s a case"
    )
    wanted = [case for case in CASES if asked.case is None or case.name in asked.case]
    report([measure(case, asked.settle, asked.seconds) for case in wanted])
    if asked.case is None:
        report_day()


if __name__ == "__main__":
    main()
