"""
What a scrape takes, and what it costs the workers meanwhile.

    .venv/bin/python benchmarks/scrape.py [--series 2000] [--scrapes 15]

A real service with a state directory gets --series (worker, pipeline) with a few
dozen runs of scattered durations each, and is scraped over HTTP in every form,
while a worker sends a run every 5 ms and waits for its acknowledgement. Beside it, in
the same run and on the same machine, prometheus-client writes as many histograms of as
many buckets, with the counters that go with them, without HTTP. Printed are medians
and maxima in milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.request import Request, urlopen

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from orbit_rpc_schema.caller import CallFailed, call
from orbit_rpc_schema.wire import connect_line, connect_params, record_line
from orbit_service.exporters.edges import EDGES

SERVE = [sys.executable, "-c", "from orbit_service.entry import main; main()", "serve"]
PIPELINES = 50  # a worker
RUNS = 40  # a series
PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)
FORMS = {
    "text": {},
    "text, gzip": {"Accept-Encoding": "gzip"},
    "OpenMetrics": {"Accept": "application/openmetrics-text"},
    "protobuf, native": {"Accept": PROTOBUF},
}


def durations_us(number: random.Random) -> list[int]:
    # From a few milliseconds to a second or two: some 250 buckets.
    return [int(number.lognormvariate(11, 1)) + 1 for _ in range(RUNS)]


@contextlib.contextmanager
def service(folder: Path) -> Iterator[tuple[Path, str]]:
    """Socket and HTTP address of one service."""
    path = folder / "worker.sock"
    environ = {**os.environ, "ORBIT_SOCKET": str(path), "ORBIT_HTTP": "127.0.0.1:0"}
    environ |= {"ORBIT_STATE": str(folder / "state"), "LOG_LEVEL": "ERROR"}
    process = subprocess.Popen(SERVE, env=environ)
    while True:
        with contextlib.suppress(OSError, CallFailed):
            address = call(path, "service.info", {})["http"]
            break
        time.sleep(0.05)  # until the service answers
    try:
        yield path, f"http://{address}/metrics"
    finally:
        process.terminate()
        process.wait()


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

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def send(self, batches: list[dict[str, object]]) -> None:
        """Record, and wait until it is acknowledged."""
        self.put(batches)
        self.wait()

    def put(self, batches: list[dict[str, object]]) -> None:
        self.seq += 1
        self.recorded += sum(len(batch["durationUs"]) for batch in batches)  # type: ignore[arg-type]  # a list
        line = record_line(seq=self.seq, recorded=self.recorded, dropped={}, batches=batches)
        self._socket.sendall(line)

    def put_line(self, line: bytes) -> None:
        """One that is formed already, with the next number."""
        self.seq += 1
        self._socket.sendall(line)

    def wait(self) -> None:
        """Until all that was put is acknowledged."""
        while json.loads(self._lines.readline())["params"]["seq"] < self.seq:
            pass


def fill(path: Path, series: int, *, waits: bool = True) -> list[Worker]:
    number = random.Random(7)
    workers = []
    for first in range(0, series, PIPELINES):
        worker = Worker(path, f"worker-{first // PIPELINES:03}.example.com")
        now = time.time_ns() // 10**6
        batches = []
        for n in range(min(PIPELINES, series - first)):
            told = {i: {"waitUs": wait} for i, wait in enumerate(durations_us(number))}
            batches.append(
                {
                    "pipeline": f"package.module.task_{n:02}",
                    "at": now,
                    "durationUs": durations_us(number),
                    "failed": [0],
                    "details": told if waits else {},
                }
            )
        worker.send(batches)
        workers.append(worker)
    return workers


class Pinging:
    """A run every 5 ms; how long each took to be acknowledged, in ms.

    A process of its own: in this one it would wait for whoever reads a page.
    """

    def __init__(self, path: Path) -> None:
        self._ended = multiprocessing.Event()
        self._took, told = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=self._ping, args=(path, told), daemon=True)
        process.start()

    def _ping(self, path: Path, told: Connection) -> None:
        worker, took = Worker(path, "pinging"), []
        while not self._ended.wait(0.005):
            began = time.perf_counter()
            now = time.time_ns() // 10**6
            worker.send([{"pipeline": "ping", "at": now, "durationUs": [1000]}])
            took.append((time.perf_counter() - began) * 1000)
        told.send(took)

    def end(self) -> list[float]:
        self._ended.set()
        return self._took.recv()


def timed(act: Callable[[], bytes], times: int, rest: float = 0.0) -> tuple[list[float], int]:
    took, size = [], 0
    for _ in range(times):
        time.sleep(rest)  # so that pages do not run into one another
        began = time.perf_counter()
        size = len(act())
        took.append((time.perf_counter() - began) * 1000)
    return took, size


def peer(series: int, *, waits: bool) -> Callable[[], bytes]:
    """prometheus-client with the same series."""
    registry = CollectorRegistry()
    labels = ["worker", "pipeline"]
    runs = Counter("orbit_runs", "Runs.", [*labels, "outcome"], registry=registry)
    for name in ("orbit_run_duration_seconds", "orbit_run_wait_seconds")[: 1 + waits]:
        histogram = Histogram(name, "Durations.", labels, buckets=EDGES, registry=registry)
        number = random.Random(7)
        for first in range(0, series, PIPELINES):
            for n in range(min(PIPELINES, series - first)):
                pair = (
                    f"worker-{first // PIPELINES:03}.example.com",
                    f"package.module.task_{n:02}",
                )
                runs.labels(*pair, "success").inc(RUNS - 1)
                runs.labels(*pair, "failure").inc(1)
                bound = histogram.labels(*pair)
                for duration in durations_us(number):
                    bound.observe(duration / 1e6)
    return lambda: generate_latest(registry)


def row(name: str, took: list[float], size: int | None = None) -> None:
    told = f"{size / 1e6:6.1f} MB" if size else ""
    print(f"{name:44} {statistics.median(took):8.1f} {max(took):8.1f}  {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--series", type=int, default=2000)
    parser.add_argument("--scrapes", type=int, default=15)
    parser.add_argument("--no-waits", action="store_true", help="one histogram a series")
    options = parser.parse_args()
    print(f"{options.series} series, {options.scrapes} scrapes of each form")
    print(f"{'ms':44} {'median':>8} {'max':>8}")
    with tempfile.TemporaryDirectory() as folder, service(Path(folder)) as (path, url):
        workers = fill(path, options.series - 1, waits=not options.no_waits)
        time.sleep(5)  # until it has settled after its start
        pinging = Pinging(path)
        time.sleep(5)  # of runs without a scrape
        quiet = pinging.end()
        acknowledged = {}
        for form, headers in FORMS.items():
            pinging = Pinging(path)

            def scrape(headers: dict[str, str] = headers) -> bytes:
                with urlopen(Request(url, headers=headers)) as answer:
                    return answer.read()

            took, size = timed(scrape, options.scrapes, rest=0.2)
            row(f"scrape: {form}", took, size)
            acknowledged[form] = pinging.end()
        row("acknowledgement of a run, no scrape", quiet)
        for form, took in acknowledged.items():
            row(f"acknowledgement during scrapes: {form}", took)
        del workers
    by_hand = peer(options.series, waits=not options.no_waits)
    row("prometheus-client: text", *timed(by_hand, options.scrapes))


if __name__ == "__main__":
    main()
