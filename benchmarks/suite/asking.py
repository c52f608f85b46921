"""`worker.metrics` over HTTP, beside a handler that only answers and beside jsonrpcserver."""

from __future__ import annotations

import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

from benchmarks.harness import (
    PROGRAMS,
    Program,
    Sample,
    Service,
    cpu_seconds,
    environment,
    stop,
    take_turns,
)
from benchmarks.scale import Scale
from benchmarks.table import Row, Target

CONNECTIONS = 16
BODY = b'{"jsonrpc":"2.0","id":1,"method":"worker.metrics"}'
RUNS = 150
LENGTH = re.compile(rb"(?i)content-length: *([0-9]+)")


def rows(scale: Scale) -> Iterator[Row]:
    seconds = scale.asked_seconds
    with (
        Service() as service,
        server("bare") as bare,
        server("jsonrpcserver") as comes,
        Program("clients", "asked", 1, 1, RUNS, service=service) as worker,
    ):
        worker.ready()
        service.expect(RUNS)
        time.sleep(scale.settle_seconds)  # what a start puts off is over then
        ours = Server(service.pid, int(service.http.rpartition(":")[2]))
        servers = {"ours": ours, "bare": bare, "jsonrpcserver": comes}
        subjects = {name: partial(measured, each, seconds) for name, each in servers.items()}
        for warm in subjects.values():
            warm()
        taken = take_turns("asking", subjects, scale.rounds)
        if service.call("worker.metrics")["totalRuns"] != RUNS:
            raise RuntimeError("worker.metrics does not tell of all runs")
    rate, cpu = (
        {name: Sample.of([told[which] for told in all]) for name, all in taken.items()}
        for which in range(2)
    )
    figure = f"`worker.metrics` over HTTP, {CONNECTIONS} connections"
    target = Target(0.6, ambition=0.8, at_least=True, of_ratio=True)
    bare_name, as_it_comes = "a bare aiohttp handler", "jsonrpcserver as it comes, in aiohttp"
    yield Row(figure, "requests/s", rate["ours"], bare_name, rate["bare"], target)
    yield Row(figure, "requests/s", rate["ours"], as_it_comes, rate["jsonrpcserver"])
    # The same on a machine that is shared: requests a second are divided among all.
    yield Row(figure, "CPU us a request", cpu["ours"], bare_name, cpu["bare"])


class Server(NamedTuple):
    pid: int
    port: int


def measured(server: Server, seconds: float) -> tuple[float, float]:
    """Requests a second, and the server's CPU microseconds a request."""
    cpu, began = cpu_seconds(server.pid), time.perf_counter()
    rate = requests(server.port, seconds)
    answered = rate * (time.perf_counter() - began)
    return rate, (cpu_seconds(server.pid) - cpu) / answered * 1e6


@contextmanager
def server(name: str) -> Iterator[Server]:
    """In our own environment: aiohttp is that of the service."""
    with started(name) as (pid, said):
        yield Server(pid, int(said))


@contextmanager
def started(*arguments: object) -> Iterator[tuple[int, str]]:
    """One of programs/servers.py: its process, and what it says when it is ready."""
    process = subprocess.Popen(
        [sys.executable, PROGRAMS / "servers.py", *map(str, arguments)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.pid, process.stdout.readline().strip()
    finally:
        stop(process)


def request_to(port: int) -> bytes:
    return (
        b"POST /rpc HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (port, len(BODY), BODY)
    )


def requests(port: int, seconds: float) -> float:
    """Answers a second. Each connection asks again when it is answered."""
    asked = request_to(port)
    answered, began = 0, time.perf_counter()
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(asked)
            selector.register(connection, selectors.EVENT_READ, (connection, bytearray()))
        while (took := time.perf_counter() - began) < seconds:
            for key, _events in selector.select(1.0):
                connection, received = key.data
                received += connection.recv(65_536)
                if is_whole(received):
                    received.clear()
                    answered += 1
                    connection.sendall(asked)
    return answered / took


def is_whole(received: bytearray) -> bool:
    """Whether it is an answer to its end; raises for one that is none."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return False
    length = int(LENGTH.search(head)[1])  # type: ignore[index]  # both servers tell it
    if len(body) < length:
        return False
    if not head.startswith(b"HTTP/1.1 200") or b'"totalRuns"' not in body:
        raise RuntimeError(f"not answered: {bytes(received)!r}")
    return True
