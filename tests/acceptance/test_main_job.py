"""The main job, end to end, with real processes: recorded in workers, exact in every answer."""

from __future__ import annotations

import json
import random
import urllib.request
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest

from builders import command
from processes import House

WORKERS = 3
RUNS = 400

# Each worker records the runs that its seed makes, in the ways that a program does.
RECORD = """
import random
seed, runs = int(sys.argv[1]), int(sys.argv[2])
chance = random.Random(seed)
for n in range(runs):
    duration_us, success = chance.randrange(1, 5_000_000), chance.random() > 0.1
    if n % 3:
        record_run(duration_us / 1000, success)
    else:
        record_run(duration_us / 1000, success, id=f"{seed}-{n}", queue="q", wait_ms=1.5)
assert flush(20)
step()
"""


def recorded() -> list[tuple[int, bool]]:
    """The same runs, made again: (microseconds, success)."""
    runs = []
    for seed in range(WORKERS):
        chance = random.Random(seed)
        runs += [(chance.randrange(1, 5_000_000), chance.random() > 0.1) for _ in range(RUNS)]
    return runs


def half_up(value: Decimal, places: str) -> Decimal:
    return value.quantize(Decimal(places), ROUND_HALF_UP)


def recomputed(uptime_seconds: int) -> dict[str, Any]:
    """The numbers by their definition, over a plain list of runs."""
    runs = recorded()
    durations = [duration for duration, _success in runs]
    failed = sum(not success for _duration, success in runs)
    per_hour = Decimal(len(runs)) * 3600 / max(uptime_seconds, 60)
    return {
        "totalRuns": len(runs),
        "succeeded": len(runs) - failed,
        "failed": failed,
        "errorRate": float(half_up(Decimal(100 * failed) / len(runs), "0.01")),
        "successRate": float(half_up(Decimal(100 * (len(runs) - failed)) / len(runs), "0.01")),
        "runsPerHour": float(half_up(per_hour, "0.01")),
        "avgExecutionTime": int(half_up(Decimal(sum(durations)) / len(runs) / 1000, "1")),
        "minExecutionTime": int(half_up(Decimal(min(durations)) / 1000, "1")),
        "maxExecutionTime": int(half_up(Decimal(max(durations)) / 1000, "1")),
    }


@pytest.fixture
def busy(house: House) -> House:
    """A service with three workers that have recorded and are still there."""
    house.http = "127.0.0.1:0"
    house.serve()
    workers = [house.worker(RECORD, str(seed), str(RUNS)) for seed in range(WORKERS)]
    for worker in workers:
        worker.reached()
    return house


def over_http(house: House) -> dict[str, Any]:
    call = {"jsonrpc": "2.0", "id": 1, "method": "worker.metrics", "params": ["crew"]}
    request = urllib.request.Request(
        f"http://{house.ask('service.info')['http']}/rpc",
        json.dumps(call).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["result"]


def by_command(house: House) -> dict[str, Any]:
    return json.loads(command(house.socket.parent, "metrics", "--json").stdout)


@pytest.mark.parametrize("ask", [House.metrics, over_http, by_command])
def test_what_was_recorded_is_answered_to_the_digit(busy, ask):
    answer = ask(busy)

    expected = recomputed(answer["uptimeSeconds"])
    assert {name: answer[name] for name in expected} == expected
    assert (answer["connected"], answer["workersConnected"]) == (True, 1)


def test_the_percentiles_are_within_their_error_of_a_plain_sort(busy):
    answer = busy.metrics()

    durations = sorted(duration for duration, _success in recorded())
    for name, q in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99)):
        exact_ms = durations[int(q * len(durations))] / 1000
        assert answer[name] == pytest.approx(exact_ms, rel=0.011, abs=0.5)


def test_every_result_is_accounted_for(busy):
    intake = busy.ask("service.info")["intake"]

    assert (intake["counted"], intake["refused"], intake["dropped"]) == (WORKERS * RUNS, {}, {})
