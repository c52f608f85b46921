"""
Peers written in C that receive statsd over UDP: netdata's and collectd's, where installed.

Each is started with its statsd alone, in the foreground, as a process of ours. UDP is not
acknowledged and carries no numbers: what the socket has no room for is gone, and the kernel
counts it. So the sender here looks at the socket and waits while there is much in it.
"""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from benchmarks.harness import (
    Service,
    cpu_seconds,
    resident_mib,
    stop,
    temporary_folder,
    wait_until,
)

# Debian puts them where only root's PATH leads.
SEARCH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
DATAGRAM = 1_432  # bytes; what the clients' buffers take for UDP, and fits an Ethernet frame
FULL_BYTES = 60_000  # in the socket; a quarter of what it may hold
LOOK_EVERY = 8  # datagrams

NETDATA = """
[global]
    run as user = {user}
    hostname = bench
[directories]
    config = {folder}
    stock config = {folder}
    cache = {folder}
    lib = {folder}
    log = {folder}
    plugins = {folder}
    registry = {folder}
[db]
    mode = ram
[plugins]
    timex = no
    proc = no
    diskspace = no
    cgroups = no
    tc = no
    idlejitter = no
    checks = no
    apps = no
    enable running new plugins = no
    netdata monitoring = no
    statsd = yes
[health]
    enabled = no
[ml]
    enabled = no
[cloud]
    enabled = no
[web]
    mode = none
[statsd]
    bind to = udp:127.0.0.1:{port}
"""
COLLECTD = """
BaseDir "{folder}"
PIDFile "{folder}/pid"
PluginDir "/usr/lib/collectd"
TypesDB "/usr/share/collectd/types.db"
LoadPlugin statsd
<Plugin statsd>
  Host "127.0.0.1"
  Port "{port}"
  TimerPercentile 50
  TimerPercentile 95
  TimerPercentile 99
  TimerLower true
  TimerUpper true
  TimerSum true
  TimerCount true
</Plugin>
"""


class Statsd:
    """One of them, running."""

    def __init__(self, name: str, configuration: str, arguments: Sequence[str]) -> None:
        self.name = name
        self._configuration = configuration
        self._arguments = arguments
        self._stack = ExitStack()

    @property
    def installed(self) -> bool:
        return shutil.which(self.name, path=SEARCH) is not None

    def __enter__(self) -> Self:
        folder = Path(self._stack.enter_context(temporary_folder()))
        self._port = free_port()
        file = folder / f"{self.name}.conf"
        file.write_text(
            self._configuration.format(folder=folder, port=self._port, user=getpass.getuser())
        )
        command = shutil.which(self.name, path=SEARCH)
        assert command is not None
        # What they say is about what we have switched off.
        self._process = subprocess.Popen(
            [command, *self._arguments, str(file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(stop, self._process)
        wait_until(lambda: queue_of(self._port), self._process)
        self._socket = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._socket.connect(("127.0.0.1", self._port))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def cpu_seconds(self) -> float:
        return cpu_seconds(self._process.pid)

    def resident_mib(self) -> float:
        return resident_mib(self._process.pid)

    @property
    def lost(self) -> int:
        """Datagrams for which there was no room."""
        return self._queue().lost

    def send(self, datagram: bytes) -> None:
        self._socket.send(datagram)

    def flood(self, datagrams: Sequence[bytes]) -> None:
        """All of them, as fast as it takes them."""
        for number, datagram in enumerate(datagrams):
            if number % LOOK_EVERY == 0:
                while self._queue().bytes > FULL_BYTES:
                    time.sleep(0.0002)  # a fifth of what it takes for as much
            self._socket.send(datagram)
        self.drained()

    def drained(self) -> None:
        while self._queue().bytes:
            time.sleep(0.001)  # until it has read them

    def _queue(self) -> Queue:
        found = queue_of(self._port)
        assert found is not None
        return found


class Queue(NamedTuple):
    """Of a UDP socket: bytes that wait to be read, and datagrams lost so far."""

    bytes: int
    lost: int


def queue_of(port: int) -> Queue | None:
    """As the kernel tells it, proc_net_udp(5); None while nobody listens there."""
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].partition(":")[2], 16) == port:
            return Queue(int(fields[4].partition(":")[2], 16), int(fields[-1]))
    return None


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def netdata() -> Statsd:
    return Statsd("netdata", NETDATA, ["-D", "-c"])


def collectd() -> Statsd:
    return Statsd("collectd", COLLECTD, ["-f", "-C"])


@contextmanager
def daemons() -> Iterator[dict[str, Statsd | None]]:
    """Both, running; None for what is not installed."""
    with ExitStack() as stack:
        yield {
            each.name: stack.enter_context(each) if each.installed else None
            for each in (netdata(), collectd())
        }


def run_lines(number: int, *, tersely: bool) -> Iterator[bytes]:
    """A run in statsd's words: its duration, and the count of its outcome.

    Tersely, a success is not counted: a timer counts as well. One run in a hundred fails.
    """
    pipeline = b"pipeline_%d" % (number % 10)
    yield b"%s.duration:%.3f|ms" % (pipeline, 1 + number * 7919 % 900_000 / 1000)
    if number % 100 == 7:
        yield b"%s.failed:1|c" % pipeline
    elif not tersely:
        yield b"%s.succeeded:1|c" % pipeline


def datagrams(runs: int, *, tersely: bool) -> list[bytes]:
    """Those runs, as many in a datagram as there is room for."""
    packed: list[bytes] = []
    room = b""
    for number in range(runs):
        for line in run_lines(number, tersely=tersely):
            if len(room) + 1 + len(line) > DATAGRAM:
                packed.append(room)
                room = line
            else:
                room += b"\n" + line if room else line
    return [*packed, room]


Receiver = Service | Statsd
