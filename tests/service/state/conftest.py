"""A node whose state is on a real disk, and images of what a kill -9 would leave."""

from __future__ import annotations

import queue
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders import T0, a_connect, until
from orbit_rpc_schema.messages import Connected, Record
from orbit_service.core.collector import Collector
from orbit_service.core.sessions import Session
from orbit_service.state.checkpoint import dump
from orbit_service.state.intake import Intake, opened
from orbit_service.state.journal import Journal, Loop
from orbit_service.state.store import Store


class Node:
    """The state part of a service; what the writer posts is done when a test says so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder)
        self.intake = Intake(Collector("node"))
        self._posted: queue.Queue[tuple[Any, ...]] = queue.Queue()
        collector, position, trouble = opened(self.store, "node")
        self.collector = self.intake.collector
        self.collector.become(collector)
        loop = Loop(
            lambda act: self._posted.put((act,)),
            lambda *call: self._posted.put(call),
            self.intake.committed,
            self.intake.checkpoint,
            self.intake.adopt,
        )
        self.journal = self.intake.journal = Journal(self.store, loop, position, trouble)
        self.journal.start()
        self._images = 0

    def connect(self, session: str = "s1", **fields: Any) -> Connected:
        return self.intake.connect(a_connect(session=session, **fields), T0)

    def record(self, message: Record, session: str = "s1") -> None:
        self.intake.record(self.session(session), message, msgspec.json.encode(message), T0)

    def session(self, session: str = "s1") -> Session:
        return self.collector.sessions[session]

    def until(self, condition: Callable[[], Any]) -> Any:
        """Do what the writer posts until the condition holds."""

        def look() -> Any:
            while not self._posted.empty():
                act, *arguments = self._posted.get()
                act(*arguments)
            return condition()

        return until(look)

    def settle(self) -> None:
        """Wait until everything is on the disk."""
        sessions = [*self.collector.sessions.values(), *self.collector.ended_sessions.values()]
        journal = self.journal
        # A hello has no number that tells of it, and what is being written waits no more.
        self.until(
            lambda: all(s.durable == s.acked for s in sessions) and journal.on_disk >= journal.told
        )

    def image(self) -> Node:
        """A node on what would be on the disk if this one were killed now."""
        self._images += 1
        copy = self.folder.with_name(f"{self.folder.name}-{self._images}")
        shutil.copytree(self.folder, copy)
        return Node(copy)

    def stop(self) -> None:
        self.journal.stop(dump(self.collector))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Node]]:
    """Start a node on the test's state directory; it is stopped at the end."""
    nodes = []

    def start() -> Node:
        nodes.append(Node(tmp_path / "state"))
        return nodes[-1]

    yield start
    for node in nodes:
        node.stop()


@pytest.fixture
def node(start: Callable[[], Node]) -> Node:
    return start()
