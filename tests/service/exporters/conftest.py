"""A collector that has counted something, and what an exporter reads of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from builders import T0
from orbit_service.core.collector import Collector
from orbit_service.core.stats import Stats
from orbit_service.exporters.reading import Options, Own, Reader


@pytest.fixture
def collector() -> Collector:
    return Collector("box")


class Disk:
    """What `settle` says: whether everything has got to the disk."""

    takes = True

    async def settle(self, _seconds: float) -> bool:
        return self.takes


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def clock() -> list[int]:
    """The time; a test may set it."""
    return [T0]


@pytest.fixture
def reader(collector: Collector, disk: Disk, clock: list[int]) -> Callable[..., Reader]:
    """A reader under these options."""

    def reader(**options: bool | int) -> Reader:
        return Reader(collector, Options(**options), lambda: clock[0], an_own, disk.settle)

    return reader


def an_own() -> Own:
    return Own(
        version="1.2.3",
        started_ms=T0,
        degraded={"state": False, "history": True},
        faults={"parse": 2},
        waiting=3,
        places={"steps": (5, 10_000)},
        sessions=2,
        history_waiting_bytes=7,
        commits=Stats(),
        commit_failures=1,
        pushes={"success": 4, "failure": 1},
        cpu_seconds=1.5,
        rss_bytes=1_000_000,
    )
