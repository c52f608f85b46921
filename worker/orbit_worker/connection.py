"""
One non-blocking connection to the service: whole messages in, whole lines out.

Nothing here waits but `wait`. Around the socket only the system's own errors are caught:
frameworks raise their time limits from signal handlers, and these are to pass.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from pathlib import Path

from orbit_rpc_schema.wire import Json, LineDecoder, LineTooLong

READ_BYTES = 65_536
BLIND_SECONDS = 0.05


class Gone(Exception):
    """The connection has ended or was never made; the text says why."""


class Foreign(Exception):
    """What answers there does not speak the protocol."""


class Connection:
    """Raises Gone when nobody takes the connection."""

    def __init__(self, path: Path) -> None:
        self._lines = LineDecoder()
        self._rest = memoryview(b"")  # of the line under way
        try:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise _gone(error) from None
        try:
            self.socket.setblocking(False)
            self.socket.connect(str(path))
        except OSError as error:
            self.close()
            raise _gone(error) from None

    @property
    def busy(self) -> bool:
        """True while a part of a line has still to go."""
        return len(self._rest) > 0

    def send(self, line: bytes) -> None:
        """Begin a line; only when not `busy`. Raises Gone."""
        self._rest = memoryview(line)
        self.push()

    def push(self) -> None:
        """Send what the socket takes of the line under way. Raises Gone."""
        while self._rest:
            try:
                sent = self.socket.send(self._rest, getattr(socket, "MSG_NOSIGNAL", 0))
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise _gone(error) from None
            self._rest = self._rest[sent:]

    def read(self) -> list[Json]:
        """The messages that have come. Raises Gone when no more will, and Foreign."""
        try:
            data = self.socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            raise _gone(error) from None
        if not data:
            raise Gone("it closed the connection")
        return [_decoded(line) for line in self._lines.feed(data)]

    def close(self) -> None:
        self.socket.close()


def wait(connection: Connection | None, wake: int | None, timeout: float) -> None:
    """Wait for the socket, for a wake-up through a pipe, or for the time in seconds."""
    line = -1 if connection is None else connection.socket.fileno()
    reads = [
        descriptor for descriptor in (wake, line) if descriptor is not None and descriptor >= 0
    ]
    writes = [line] if line >= 0 and connection is not None and connection.busy else []
    readable = _poll if hasattr(select, "poll") else _select
    if wake in readable(reads, writes, timeout):
        assert wake is not None
        os.read(wake, 4096)


def _poll(reads: list[int], writes: list[int], timeout: float) -> list[int]:
    poll = select.poll()
    for descriptor in reads:
        poll.register(descriptor, select.POLLIN | (select.POLLOUT if descriptor in writes else 0))
    return [descriptor for descriptor, _event in poll.poll(timeout * 1000)]


def _select(reads: list[int], writes: list[int], timeout: float) -> list[int]:
    """Where eventlet has taken `poll` away; descriptors over 1,023 it cannot wait for."""
    try:
        return select.select(reads, writes, [], timeout)[0]
    except ValueError:
        time.sleep(min(timeout, BLIND_SECONDS))  # and then look
        return []


def _decoded(line: bytes | LineTooLong) -> Json:
    if isinstance(line, LineTooLong):
        raise Foreign
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise Foreign from None
    if not isinstance(message, dict):
        raise Foreign
    return message


def _gone(error: OSError) -> BaseException:
    """Gone; but a TimeoutError of the host's signal handler stays: the system's have a number."""
    if error.errno is None and type(error) is not OSError:
        return error
    return Gone(error.strerror or str(error))
