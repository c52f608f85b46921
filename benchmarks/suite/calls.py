"""What one record_run costs its caller, beside what one writes with the peers for the same."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.harness import Program, Sample, Service, say, take_turns, temporary_folder
from benchmarks.scale import Scale
from benchmarks.table import Row, Target

SIZE, EVERY_MS = 1_000, 5  # calls in a row, then a pause: the sender's thread has its time

# By subject of programs/record.py: its name here, settings, and what of a run it has at its end.
PROMETHEUS = "prometheus-client, bound labels"
PEERS = {
    "prometheus": (PROMETHEUS, "in memory only: a restart begins at 0"),
    "prometheus_looked_up": ("prometheus-client, labels looked up", ""),
    "multiprocess": ("prometheus-client, multiprocess mode, bound", "files of each pid stay"),
    "opentelemetry": ("opentelemetry-sdk, add + record", "in memory, not exported here"),
    "datadog_udp": ("datadog, UDP, each sent", "not acknowledged: what is not received is lost"),
    "datadog_udp_buffered": ("datadog, UDP, buffered", ""),
    "datadog_unix": ("datadog, Unix socket, each sent", ""),
    "datadog_unix_buffered": ("datadog, Unix socket, buffered", ""),
    "statsd": ("statsd, UDP, each sent", "not acknowledged: what is not received is lost"),
}
SLOW = 4  # of those that send each call by itself, so many times fewer calls are enough


def rows(scale: Scale) -> Iterator[Row]:
    with Service() as service, Sink() as sink:
        subjects: dict[str, Callable[[], dict[str, float]]] = {
            "orbit": partial(measured, "orbit", scale.calls, service=service),
            "orbit_client": partial(measured, "orbit_client", scale.calls, service=service),
            "nothing": partial(measured, "nothing", scale.calls),
        }
        for peer in PEERS:
            calls = scale.calls if peer.startswith("prometheus") else scale.calls // SLOW
            subjects[peer] = partial(measured, peer, calls, sink=sink)
        taken = take_turns("calls", subjects, scale.rounds)
    cpu, wall = (
        {name: Sample.of([told[what] for told in all]) for name, all in taken.items()}
        for what in ("thread_cpu", "bursts_wall")
    )
    for what, of in (("the caller's CPU", cpu), ("wall time back to back", wall)):
        loop = of["nothing"]
        for peer, (name, lacks) in PEERS.items():
            if of is wall and name != PROMETHEUS:
                continue
            target = Target(1 / 7, of_ratio=True) if of is cpu and name == PROMETHEUS else None
            yield Row(
                f"`record_run`, {what}",
                "ns",
                of["orbit"].less(loop).times(1e9),
                name,
                of[peer].less(loop).times(1e9),
                target,
                [f"{name}: {lacks}."] if lacks else [],
            )
    method = cpu["orbit_client"].less(cpu["nothing"]).times(1e9)
    bound = cpu["prometheus"].less(cpu["nothing"]).times(1e9)
    yield Row("`MetricsClient.record_run`, the caller's CPU", "ns", method, PROMETHEUS, bound)
    if sink.lost:
        say(f"  calls: datadog and statsd lost {sink.lost:,} of their metrics")


def measured(
    subject: str, calls: int, *, service: Service | None = None, sink: Sink | None = None
) -> dict[str, float]:
    """Seconds of one call."""
    settings = {} if sink is None else sink.settings
    with contextlib.ExitStack() as stack:
        if subject == "multiprocess":
            folder = stack.enter_context(temporary_folder())
            subject, settings = "prometheus", {"PROMETHEUS_MULTIPROC_DIR": folder}
        bursts = calls // SIZE
        program = Program("record", subject, bursts, SIZE, EVERY_MS, service=service, **settings)
        told = program.run()
    if service is not None:
        service.expect(told["runs"] + 1)
    if sink is not None and subject in SENDING:
        sink.expect(2 * (told["runs"] + 1))
    return {what: told[what] / told["runs"] for what in ("thread_cpu", "bursts_wall")}


SENDING = ("datadog_udp", "datadog_udp_buffered", "datadog_unix", "datadog_unix_buffered", "statsd")


class Sink:
    """Somebody who receives what the peers send, over UDP and a Unix socket, and counts it."""

    def __enter__(self) -> Sink:
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(temporary_folder()))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        unix.bind(str(folder / "sink"))
        self.settings = {"SINK_PORT": str(udp.getsockname()[1]), "SINK_PATH": str(folder / "sink")}
        self.received = self.expected = 0
        for each in (udp, unix):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_194_304)
            each.settimeout(0.2)
            self._stack.callback(each.close)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._receive, args=(s,)) for s in (udp, unix)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._stack.close()

    def expect(self, metrics: int) -> None:
        self.expected += metrics

    @property
    def lost(self) -> int:
        return self.expected - self.received

    def _receive(self, connection: socket.socket) -> None:
        while True:
            try:
                received = connection.recv(65_536)
            except TimeoutError:
                if self._ended.is_set():
                    return
                continue
            lines = len(received.splitlines())
            with self._lock:
                self.received += lines
