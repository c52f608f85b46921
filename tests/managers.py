"""A service manager as systemd is one, as far as a service can see it."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from builders import ENTRY, environment

# As systemd does it: the sockets are descriptors from 3 on, in the process of that number.
EXEC = """
import os, sys
count = int(sys.argv[1])
for number, descriptor in enumerate(map(int, sys.argv[2:2 + count])):
    os.dup2(descriptor, 3 + number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(count)
os.execvp(sys.argv[2 + count], sys.argv[2 + count:])
"""
OUT_OF_THE_WAY = 100  # of the descriptors that are to be 3 and more


class Manager:
    """Listens for its service, starts it, and hears what it has to say."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sockets: list[socket.socket] = []
        self._services: list[subprocess.Popen[str]] = []
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(str(folder / "notify"))
        self._ear.settimeout(30)

    def listen_for_workers(self, name: str = "worker.sock", mode: int = 0o660) -> Path:
        path = self._folder / name
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(mode)
        listener.listen(4096)
        self.hand_over(listener)
        return path

    def listen_for_http(self, host: str = "127.0.0.1") -> int:
        listener = socket.create_server((host, 0))
        self.hand_over(listener)
        return int(listener.getsockname()[1])

    def hand_over(self, listener: socket.socket) -> None:
        self._sockets.append(listener)

    def start(self, **environ: str) -> subprocess.Popen[str]:
        """`orbit-metrics serve` as the unit's process."""
        environ = environment(self._folder, NOTIFY_SOCKET=str(self._folder / "notify"), **environ)
        return self._start(partial(subprocess.Popen, env=environ), *ENTRY, "serve")

    def _start(self, start: Callable[..., Any], *command: str) -> subprocess.Popen[str]:
        high = [fcntl.fcntl(made, fcntl.F_DUPFD, OUT_OF_THE_WAY) for made in self._sockets]
        with (self._folder / "said.txt").open("a") as log:
            service = start(
                [sys.executable, "-c", EXEC, str(len(high)), *map(str, high), *command],
                pass_fds=high,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        for descriptor in high:
            os.close(descriptor)
        self._services.append(service)
        return service

    def heard(self) -> list[str]:
        """The lines of the next message of a service."""
        return self._ear.recv(4096).decode().split("\n")

    def said(self) -> str:
        return (self._folder / "said.txt").read_text()

    def close(self) -> None:
        for service in self._services:
            service.kill()
            service.wait(10)
        for made in (*self._sockets, self._ear):
            made.close()
