"""The worker in examples/node-worker, a real process in Node, beside a real service."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builders import until
from processes import House

EXAMPLE = Path(__file__).parents[2] / "examples" / "node-worker" / "worker.mjs"
RUNS = 3_000
FAILED = RUNS // 10  # every tenth
DURATIONS_MS = [n % 7 for n in range(1, RUNS + 1)]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


@pytest.fixture
def start(house: House, needs_node: None) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts the worker, which makes its runs and leaves."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = ["node", str(EXAMPLE), str(RUNS)]
        environ = {**os.environ, **house.environment()}
        started.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True))
        return started[0]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ends_well(worker: subprocess.Popen[str]) -> None:
    assert (worker.communicate(timeout=100)[1], worker.returncode) == ("", 0)


def test_every_run_is_counted_once_over_a_kill_of_the_service(house, start):
    service = house.serve()
    worker = start()
    until(lambda: house.runs() > RUNS // 10)
    service.kill()
    service.wait(10)
    house.serve()
    ends_well(worker)

    life = house.ended()
    assert (life["totalRuns"], life["failed"], life["reason"]) == (RUNS, FAILED, "exit")
    books = house.ask("service.ledger")
    assert books["balanced"]
    assert (books["total"]["counted"], books["total"]["waiting"]) == (RUNS, 0)
    [pipeline] = house.ask("pipelines.list")["pipelines"]
    total = pipeline["total"]
    assert (total["runs"], total["failed"]) == (RUNS, FAILED)
    assert total["avg"] == round(sum(DURATIONS_MS) / RUNS)
    assert total["max"] == 6


def test_it_need_not_be_there_first(house, start):
    worker = start()
    house.serve()
    ends_well(worker)

    assert house.ended()["totalRuns"] == RUNS
    error = house.ask("worker.recentRuns", status="failed", limit=1)[0]["error"]
    assert (error["type"], error["message"]) == ("RangeError", "no more tea")
    assert "worker.mjs" in error["traceback"]


def test_it_is_as_short_as_it_says():
    assert len(EXAMPLE.read_text().splitlines()) < 80
