"""
A thousand subscribers of one service: how late they hear, and what it costs the workers.

    .venv/bin/python benchmarks/live.py [--subscribers 1000] [--seconds 20]

A real service; a worker that sends a run every 5 ms and waits for its acknowledgement; that
many WebSockets in processes of their own, each subscribed to the totals twice a second and to
the runs as they end; a hundred more that never read. Printed: how old an update is when it is
read (by the clock of one machine), acknowledgements with and without subscribers, the service's
CPU and memory. The reading processes share the machine, and their work is in what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp

from orbit_rpc_schema.caller import CallFailed, call
from orbit_rpc_schema.wire import connect_line, connect_params, record_line

SERVE = [sys.executable, "-c", "from orbit_service.entry import main; main()", "serve"]
READERS = 2  # processes
STUCK = 100
PAUSE_SECONDS = 0.005


@contextlib.contextmanager
def service(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path, str]]:
    path = folder / "worker.sock"
    environ = {
        **os.environ,
        "ORBIT_SOCKET": str(path),
        "ORBIT_HTTP": "127.0.0.1:0",
        "ORBIT_STATE": str(folder / "state"),
        "LOG_LEVEL": "ERROR",
    }
    process = subprocess.Popen(SERVE, env=environ)
    try:
        while True:
            with contextlib.suppress(OSError, CallFailed):
                yield process, path, f"http://{call(path, 'service.info')['http']}/ws"
                return
            time.sleep(0.05)  # until the service answers
    finally:
        process.kill()
        process.wait()


def acknowledged(path: Path, seconds: float) -> list[float]:
    """How long each acknowledgement took, in ms."""
    wire = socket.socket(socket.AF_UNIX)
    wire.connect(str(path))
    hello = connect_params(
        session=uuid.uuid4().hex, worker="bench", started_at_ms=time.time_ns() // 1_000_000
    )
    wire.sendall(connect_line("hello", hello))
    reader = wire.makefile("rb")
    reader.readline()
    took, until, seq = [], time.monotonic() + seconds, 0
    while time.monotonic() < until:
        seq += 1
        batch = {"pipeline": "p", "at": time.time_ns() // 1_000_000, "durationUs": [5_000]}
        started = time.perf_counter()
        wire.sendall(record_line(seq=seq, recorded=seq, dropped={}, batches=[batch], started=[]))
        while json.loads(reader.readline()).get("params", {}).get("seq", 0) < seq:
            pass
        took.append((time.perf_counter() - started) * 1000)
        time.sleep(PAUSE_SECONDS)  # the load that the head of this file names
    wire.close()
    return took


def read(url: str, count: int, seconds: float, done: Connection) -> None:
    done.send(asyncio.run(_read_all(url, count, seconds)))


async def _read_all(url: str, count: int, seconds: float) -> tuple[list[float], int, int]:
    ages: list[float] = []
    missed = runs = 0
    until = time.monotonic() + seconds

    async def listen(socket: aiohttp.ClientWebSocketResponse) -> None:
        nonlocal missed, runs
        while (left := until - time.monotonic()) > 0:
            try:
                message = await socket.receive(timeout=left)
            except TimeoutError:
                return
            told: dict[str, Any] = json.loads(message.data)
            params = told.get("params", {})
            missed += params.get("missed", 0)
            if told.get("method") == "worker.update":
                ages.append(time.time() * 1000 - params["metrics"]["timestamp"])
            runs += len(params.get("runs", ()))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        sockets = []
        for _ in range(count):
            socket = await session.ws_connect(url)
            for id, (method, params) in enumerate(
                [("worker.subscribe", {"interval": 500}), ("runs.subscribe", {})]
            ):
                await socket.send_json(
                    {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
                )
            sockets.append(socket)
        until = time.monotonic() + seconds
        await asyncio.gather(*map(listen, sockets))
    return ages, missed, runs


def stuck(url: str, ready: Connection) -> None:
    """Subscribe and never read."""
    asyncio.run(_stuck(url, ready))


async def _stuck(url: str, ready: Connection) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        sockets = [await session.ws_connect(url) for _ in range(STUCK)]
        for each in sockets:
            await each.send_json({"jsonrpc": "2.0", "id": 1, "method": "worker.subscribe"})
            await each.send_json({"jsonrpc": "2.0", "id": 2, "method": "runs.subscribe"})
        ready.send(None)
        time.sleep(3600)  # with the loop stopped: nothing is read, until the parent ends it


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def summary(name: str, took: list[float]) -> str:
    p99 = statistics.quantiles(took, n=100)[98]
    return (
        f"{name:<34} median {statistics.median(took):7.1f}  p99 {p99:7.1f}  max {max(took):7.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("--subscribers", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="orbit-bench-") as folder,
        service(Path(folder)) as (process, path, url),
    ):
        print(summary("acknowledged, nobody listens", acknowledged(path, asked.seconds / 2)))
        before = resident_mib(process.pid)
        children, pipes = [], []
        for target, arguments in [
            (stuck, (url,)),
            *[(read, (url, asked.subscribers // READERS, asked.seconds))] * READERS,
        ]:
            mine, theirs = multiprocessing.Pipe()
            child = multiprocessing.Process(target=target, args=(*arguments, theirs), daemon=True)
            child.start()
            children.append(child)
            pipes.append(mine)
        pipes[0].recv()
        time.sleep(asked.subscribers / 400)  # until all have connected
        spent, began = cpu_seconds(process.pid), time.monotonic()
        print(
            summary(
                f"acknowledged, {asked.subscribers} listen", acknowledged(path, asked.seconds / 2)
            )
        )
        busy = (cpu_seconds(process.pid) - spent) / (time.monotonic() - began)
        after = resident_mib(process.pid)
        ages, missed, runs = [], 0, 0
        for pipe in pipes[1:]:
            each = pipe.recv()
            ages += each[0]
            missed += each[1]
            runs += each[2]
        print(summary("age of an update when it is read", ages))
        print(f"{len(ages)} updates and {runs} runs read, {missed} missed; {STUCK} never read")
        print(f"the service: {busy:.0%} of a core, {before:.0f} -> {after:.0f} MiB")


if __name__ == "__main__":
    main()
