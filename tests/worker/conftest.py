"""A service that does what a test tells it, on a real Unix socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class ScriptedService:
    """Takes connections one after another; `messages` is what arrived, oldest first.

    What it does is said by its attributes, which a test may change at any time:
    `answers` (to worker.connect), `acknowledges`, `acked` and `known` (its answer
    to a connect; `counted` where it is another for a session), `refuses` (with this
    text), `reading` (an Event). `sessions` is what arrived, by session.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[dict[str, Any]] = []
        self.sessions: dict[str, list[dict[str, Any]]] = {}
        self.node = "n"
        self.acked = 0
        self.counted: dict[str, int] = {}
        self.known = True
        self.answers = True
        self.acknowledges = True
        self.refuses: str | None = None
        self.reading = threading.Event()
        self.reading.set()
        self.greeted = 0
        self._listener: socket.socket | None = None
        self._connection: socket.socket | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._in_thread(self._accept, self._listener)

    def stop(self) -> None:
        """Go away as a killed service does."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
            self.path.unlink()
        self.cut()
        self.reading.set()
        for thread in self._threads:
            thread.join(5)

    def cut(self) -> None:
        """End the connection without a word."""
        if self._connection is not None:
            try:
                self._connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client was quicker

    def say(self, message: dict[str, Any] | bytes, to: socket.socket | None = None) -> None:
        """Say it on this connection, else on the newest."""
        line = message if isinstance(message, bytes) else json.dumps(message).encode()
        connection = to or self._connection
        assert connection is not None
        connection.sendall(line + b"\n")

    def notify(self, method: str, **params: Any) -> None:
        self.say({"jsonrpc": "2.0", "method": method, "params": params})

    def params(self, method: str) -> list[dict[str, Any]]:
        """The params of every message of this method."""
        return [m["params"] for m in list(self.messages) if m["method"] == method]

    def seqs(self) -> list[int]:
        return [record["seq"] for record in self.params("runs.record")]

    def durations_us(self) -> list[int]:
        """Every duration that arrived, once for each time it did."""
        records = self.params("runs.record")
        return [us for r in records for batch in r["batches"] for us in batch["durationUs"]]

    def _in_thread(self, act: Any, connection: socket.socket) -> None:
        thread = threading.Thread(target=act, args=(connection,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                self._connection, _address = listener.accept()
            except OSError:
                return
            self._in_thread(self._serve, self._connection)

    def _serve(self, connection: socket.socket) -> None:
        session: list[dict[str, Any]] = []
        with connection, connection.makefile("rb") as lines:
            try:
                while self.reading.wait() and (line := lines.readline()):
                    if line.endswith(b"\n"):
                        message = json.loads(line)
                        if message["method"] == "worker.connect":
                            session = self.sessions.setdefault(message["params"]["session"], [])
                        session.append(message)
                        self._answer(message, connection)
            except OSError:
                pass  # the client went first

    def _answer(self, message: dict[str, Any], connection: socket.socket) -> None:
        try:
            self._take(message, connection)
        except OSError:
            pass  # the client went first; what it had said is still to be read

    def _take(self, message: dict[str, Any], connection: socket.socket) -> None:
        self.messages.append(message)
        if message["method"] == "worker.connect":
            self._greet(message, connection)
        elif self.acknowledges and "seq" in message["params"]:
            params = {"seq": message["params"]["seq"]}
            self.say({"jsonrpc": "2.0", "method": "runs.acked", "params": params}, connection)

    def _greet(self, message: dict[str, Any], connection: socket.socket) -> None:
        self.greeted += 1
        answer = {"jsonrpc": "2.0", "id": message["id"]}
        if self.refuses is not None:
            self.say({**answer, "error": {"code": -32000, "message": self.refuses}}, connection)
        elif self.answers:
            acked = self.counted.get(message["params"]["session"], self.acked)
            result = {"acked": acked, "known": self.known, "node": self.node, "limits": {}}
            self.say({**answer, "result": result}, connection)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits for long where it usually gives up soon: the machine may be busy."""
    monkeypatch.setattr("orbit_worker.client.ANSWER_SECONDS", 30.0)
    monkeypatch.setattr("orbit_worker.sender.DEPTHS_SECONDS", 30.0)
    monkeypatch.setattr("orbit_worker.sender.LOCK_SECONDS", 30.0)
    monkeypatch.setattr("orbit_worker.sender.ROOM_SECONDS", 30.0)


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[ScriptedService]:
    """A scripted service at the socket of `client`, started."""
    service = ScriptedService(tmp_path / "worker.sock")
    service.start()
    yield service
    service.stop()
