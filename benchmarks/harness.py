"""
What all figures of the suite share: real processes, their CPU and memory, and taking turns.

A figure is measured in rounds in which ours and its peers take turns, so that whatever else
the machine does falls on all of them. Nothing is thrown away: a Sample keeps every round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self, TypeVar

from orbit_rpc_schema.caller import CallFailed, call

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(__file__).parent / "programs"
SERVE = [sys.executable, "-c", "from orbit_service.entry import main; main()", "serve"]
PEERS = ROOT / ".bench" / "bin" / "python"  # no package of ours is installed in it
READY_SECONDS = 60.0
POLL_SECONDS = 0.002
# Names of the settings of whoever runs this, which would be measured as well.
OURS = ("ORBIT_", "METRICS_", "POLL_INTERVAL", "PROMETHEUS_", "DD_", "OTEL_", "STATSD_", "PYTHON")

T = TypeVar("T")


class Lost(Exception):
    """A run was lost, or counted twice: there is no figure to tell."""


@dataclass(frozen=True)
class Sample:
    """A value of each round."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return median(self.values)

    def over(self, other: Sample) -> Sample:
        """The ratio round by round: what disturbs both of a round is not in it."""
        return Sample.of([a / b for a, b in zip(self.values, other.values, strict=True)])

    def less(self, other: Sample) -> Sample:
        return Sample.of([a - b for a, b in zip(self.values, other.values, strict=True)])

    def times(self, factor: float) -> Sample:
        return Sample.of([value * factor for value in self.values])


def say(text: str) -> None:
    """A line of progress, beside the table."""
    print(text, file=sys.stderr, flush=True)


def take_turns(
    group: str, subjects: Mapping[str, Callable[[], T]], rounds: int
) -> dict[str, list[T]]:
    """What each subject measured in each round. Every other round goes backwards."""
    taken: dict[str, list[T]] = {name: [] for name in subjects}
    for number in range(rounds):
        began = time.monotonic()
        order = list(subjects.items())
        for name, measure in order if number % 2 == 0 else reversed(order):
            taken[name].append(measure())
        say(f"  {group}: round {number + 1} of {rounds}, {time.monotonic() - began:.1f} s")
    return taken


# ---------------------------------------------------------------- processes


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, user and system, to the nanosecond.

    The clock of another process, as clock_getcpuclockid(3) makes it on Linux: /proc/pid/stat
    counts in hundredths of a second.
    """
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def environment(**settings: str) -> dict[str, str]:
    """The environment of a process that is measured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**kept, **settings}


class Service:
    """A real service in a process of its own, with a state directory on a disk.

    It is checked when it ends: `expect` says how many runs it has to have counted.
    """

    def __init__(self, *, folder: Path | None = None, **settings: str) -> None:
        self._stack = ExitStack()
        self._settings = settings
        if folder is None:
            folder = Path(self._stack.enter_context(temporary_folder()))
        self.socket = folder / "worker.sock"
        self._state = folder / "state"
        self._expected = 0

    def __enter__(self) -> Self:
        settings = {
            "ORBIT_SOCKET": str(self.socket),
            "ORBIT_HTTP": "127.0.0.1:0",
            "ORBIT_STATE": str(self._state),
            "LOG_LEVEL": "ERROR",
        }
        began = time.monotonic()
        self._process = subprocess.Popen(SERVE, env=environment(**settings | self._settings))
        self._stack.callback(stop, self._process)
        info = wait_until(partial(self._info), self._process)
        self.ready_seconds = time.monotonic() - began
        self.http = f"http://{info['http']}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None:
                self.check()

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)

    def resident_mib(self) -> float:
        return resident_mib(self.pid)

    def call(self, method: str, **params: Any) -> Any:
        return call(self.socket, method, params, timeout=30)

    def expect(self, runs: int) -> None:
        """So many more have been recorded, and acknowledged."""
        self._expected += runs
        self.check()

    def settle(self) -> None:
        """Have it done what a reading would wait for, so that it is in the figure."""
        self.call("worker.metrics")

    def check(self) -> None:
        """Every run is counted once, by the ledger; otherwise there is no figure."""
        told = self.call("service.ledger", limit=1)
        total = told["total"]
        others = {name: total[name] for name in ("repeated", "late", "waiting", "forgotten")}
        others |= {**total["refused"], **total["dropped"]}
        exact = total["recorded"] == total["counted"] == self._expected
        if not exact or not told["balanced"] or any(others.values()):
            raise Lost(f"{self._expected:,} runs were recorded; the ledger says {total}")

    def _info(self) -> Any:
        try:
            return call(self.socket, "service.info")
        except (OSError, CallFailed):
            return None


class Program:
    """A program of `programs/` in a process of its own: ready, told to go, telling its result."""

    def __init__(
        self, name: str, *arguments: object, service: Service | None = None, **settings: str
    ) -> None:
        # Ours from its sources: the environment of the peers has nothing of ours installed,
        # and the same interpreter executes both.
        settings["PYTHONPATH"] = f"{ROOT / 'worker'}:{ROOT / 'rpc_schema'}"
        if service is not None:
            settings["ORBIT_SOCKET"] = str(service.socket)
        self._process = subprocess.Popen(
            [PEERS, PROGRAMS / f"{name}.py", *map(str, arguments)],
            env=environment(**settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> None:
        self._line()

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self._line())
        return told

    def run(self) -> dict[str, Any]:
        """From the start to the end of the process."""
        with self:
            self.ready()
            self.go()
            return self.result()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Lost(f"the program {self._name} ended before it was done")
        return line


def stop(process: subprocess.Popen[Any]) -> None:
    """End it as its supervisor would, or by the end of its input, and wait."""
    if process.stdin is not None:
        process.stdin.close()
    else:
        process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def wait_until(look: Callable[[], T | None], process: subprocess.Popen[Any]) -> T:
    """What `look` finds at last, while this process starts."""
    until = time.monotonic() + READY_SECONDS
    while (found := look()) is None:
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{process.args!r} does not start")
        time.sleep(POLL_SECONDS)  # between two looks at another process
    return found


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="orbit-bench-")


def idle_share(cpu: Callable[[], float], seconds: float) -> float:
    """How much of a core somebody takes who has nothing to do."""
    began, spent = time.monotonic(), cpu()
    time.sleep(seconds)  # of rest, which is what is measured
    return (cpu() - spent) / (time.monotonic() - began)
