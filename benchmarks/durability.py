"""
What durability costs: the same runs into a service with a state directory and without.

    .venv/bin/python benchmarks/durability.py [--runs 2000000] [--column 1000] [--rounds 5]

Two real services take turns in one run on the same machine. Lines are encoded
beforehand and pushed through the worker socket as fast as it takes them, until
the last is acknowledged: from memory by the one, after its commit by the other.
Printed are medians over the rounds: runs a second of wall time, and CPU seconds
of the service a million runs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from orbit_rpc_schema.caller import CallFailed, call
from orbit_rpc_schema.wire import connect_line, connect_params, record_line

SERVE = [sys.executable, "-c", "from orbit_service.entry import main; main()", "serve"]
TICKS = os.sysconf("SC_CLK_TCK")


class Service:
    """One service as a process of its own."""

    def __init__(self, folder: Path, state: str) -> None:
        self.socket = folder / f"{state.rpartition('/')[2]}.sock"
        environ = {**os.environ, "ORBIT_SOCKET": str(self.socket), "ORBIT_HTTP": "none"}
        environ |= {"ORBIT_STATE": state, "LOG_LEVEL": "ERROR"}
        self._process = subprocess.Popen(SERVE, env=environ)
        while True:
            try:
                call(self.socket, "service.info", {})
                break
            except (OSError, CallFailed):
                time.sleep(0.05)  # until the service answers

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def take(self, lines: list[bytes], runs: int) -> tuple[float, float]:
        """Runs a second, and CPU seconds a million runs."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            hello = connect_params(
                session=uuid.uuid4().hex, worker="bench", started_at_ms=time.time_ns() // 10**6
            )
            answers = connection.makefile("rb")
            connection.sendall(connect_line("hello", hello))
            answers.readline()
            cpu, began = self.cpu_seconds(), time.perf_counter()
            for line in lines:
                connection.sendall(line)
            while json.loads(answers.readline())["params"]["seq"] < len(lines):
                pass
            took = time.perf_counter() - began
        return runs / took, (self.cpu_seconds() - cpu) / runs * 1e6

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


def lines_of(runs: int, column: int) -> list[bytes]:
    at = time.time_ns() // 10**6
    durations = [1000 + (n * 7919) % 900_000 for n in range(column)]
    batch = {"pipeline": "bench", "at": at, "durationUs": durations, "failed": [0]}
    return [
        record_line(seq=seq, recorded=seq * column, dropped={}, batches=[batch])
        for seq in range(1, runs // column + 1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--runs", type=int, default=2_000_000)
    parser.add_argument("--column", type=int, default=1_000, help="runs a line")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lines = lines_of(options.runs, options.column)
    runs = len(lines) * options.column
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        services = {
            "memory": Service(folder, "none"),
            "durable": Service(folder, str(folder / "state")),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in services}
        for _ in range(options.rounds):
            for name, service in services.items():
                taken[name].append(service.take(lines, runs))
        for service in services.values():
            service.stop()
    rates = {}
    for name, rounds in taken.items():
        rates[name] = statistics.median(rate for rate, _cpu in rounds)
        cpu = statistics.median(cpu for _rate, cpu in rounds)
        spread = f"{min(rounds)[0]:,.0f} to {max(rounds)[0]:,.0f}"
        print(f"{name:8} {rates[name]:12,.0f} runs/s ({spread}), {cpu:.3f} CPU s a million runs")
    print(f"durable takes {rates['durable'] / rates['memory']:.1%} of the runs a second")


if __name__ == "__main__":
    main()
