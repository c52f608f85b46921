"""A service and its workers as real processes, for the tests that kill and restart them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from builders import ENTRY, environment, until
from orbit_rpc_schema.caller import CallFailed, call


class House:
    """A folder with a service in it, under these settings, and workers around it."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.socket = folder / "worker.sock"
        self.http = "none"  # the service starts in two thirds of the time without
        self._folder = folder
        self._settings = settings
        self._processes: list[subprocess.Popen[str]] = []

    def serve(self, **environ: str) -> subprocess.Popen[str]:
        with (self._folder / "service.log").open("a") as log:
            process = self._start([*ENTRY, "serve"], environ, log)
        until(lambda: self.ask("service.info"))
        return process

    def log(self) -> str:
        """What the service has said."""
        return (self._folder / "service.log").read_text()

    def worker(self, code: str, *arguments: str, **environ: str) -> Worker:
        """A program that has `record_run` and its kin, and `step()`, which waits to be told."""
        return Worker(
            self._start([sys.executable, "-W", "error", "-c", PRELUDE + code, *arguments], environ)
        )

    def ask(self, method: str, **params: Any) -> Any:
        """The answer, or None while there is no service."""
        try:
            return call(self.socket, method, params, timeout=20)
        except (OSError, CallFailed):
            return None

    def metrics(self) -> dict[str, Any]:
        return self.ask("worker.metrics", worker="crew")

    def runs(self) -> int:
        return (self.metrics() or {}).get("totalRuns", -1)

    def ended(self) -> dict[str, Any]:
        """The last life, once it is over."""
        return until(lambda: None if (m := self.metrics())["connected"] else m["lastLife"])

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def environment(self) -> dict[str, str]:
        return environment(
            self._folder, ORBIT_WORKER_NAME="crew", ORBIT_HTTP=self.http, **self._settings
        )

    def _start(
        self,
        command: list[str],
        environ: Mapping[str, str] | None = None,
        log: IO[str] | int = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            env={**self.environment(), **(environ or {})},
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self._processes.append(process)
        return process


PRELUDE = """
import multiprocessing, os, signal, sys
import orbit_worker
from orbit_worker import flush, record_run, track

# Who leaves has two seconds to hand over what waits; a machine that does much else takes them.
orbit_worker.MetricsClient.close.__defaults__ = (15.0,)

def step(said="ready"):
    print(said, flush=True)
    assert sys.stdin.readline()

"""


class Worker:
    """A worker's process, which stops at each `step()`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def reached(self) -> str:
        """Wait until it stands at a step; what it said there."""
        line = self.process.stdout.readline()
        assert line, "the worker has ended"
        return line.strip()

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def leave(self) -> None:
        assert self.process.wait(20) == 0
