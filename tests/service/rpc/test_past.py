"""Questions about a range, as a caller asks them: what is answered, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from builders import HOUR, MINUTE, MS, SECOND, T0, a_batch, a_record, a_result, a_session, an_error
from orbit_rpc_schema.messages import Step
from orbit_service.app import Service
from orbit_service.settings import Settings

NOW = T0 + 5 * SECOND


class Asked:
    """A service that does not run, with a clock that stands still."""

    def __init__(self) -> None:
        self.service = Service(Settings(ORBIT_HTTP=None, ORBIT_STATE=None), clock=lambda: NOW)
        self.collector = self.service.collector
        self.seq = 0

    def record(self, *batches: Any, worker: str = "mailer", **hello: Any) -> None:
        self.seq += 1
        session = a_session(self.collector, f"s{self.seq}", worker=worker, **hello)
        self.collector.record(session, a_record(1, *batches), NOW)

    async def ask(self, method: str, params: Any = ()) -> Any:
        call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = json.loads(await self.service.dispatcher.answer(json.dumps(call).encode()))
        return answer.get("result", answer.get("error"))


@pytest.fixture
def asked() -> Asked:
    return Asked()


# ---------------------------------------------------------------- what is answered


async def test_a_window_holds_what_ended_in_it_whoever_is_connected(asked: Asked) -> None:
    asked.record(a_batch(MS, at=NOW - 6 * MINUTE), a_batch(9 * MS, 5 * MS, at=NOW - MINUTE))
    asked.collector.disconnect(asked.collector.sessions["s1"], "done", NOW)
    answer = await asked.ask("worker.metrics", {"window": "5m"})

    assert (answer["totalRuns"], answer["connected"], answer["uptime"]) == (2, False, "0s")
    assert (answer["minExecutionTime"], answer["maxExecutionTime"]) == (5, 9)
    assert answer["runsPerHour"] == 24.0


async def test_a_window_begins_on_ten_seconds(asked: Asked) -> None:
    start = NOW - 5 * MINUTE
    asked.record(a_batch(MS, at=start - start % 10_000), a_batch(MS, at=start - start % 10_000 - 1))

    assert (await asked.ask("worker.metrics", {"window": "5m"}))["totalRuns"] == 1


async def test_a_window_is_of_the_selection(asked: Asked) -> None:
    asked.record(a_batch(MS, at=NOW), a_batch(MS, at=NOW, pipeline="fetch"))
    asked.record(a_batch(MS, at=NOW), worker="other")
    totals = [
        (await asked.ask("worker.metrics", {"window": "1h", **selection}))["totalRuns"]
        for selection in ({}, {"worker": "mailer"}, {"pipeline": "send"}, {"worker": "none"})
    ]

    assert totals == [3, 2, 2, 0]


async def test_the_history_of_the_last_day_is_the_default(asked: Asked) -> None:
    asked.record(a_batch(MS, at=NOW - HOUR))
    answer = await asked.ask("worker.history")

    [group] = answer["groups"]
    assert (group["name"], group["total"]["runs"], answer["step"]) == (None, 1, 10 * MINUTE)
    assert next(iter(group["points"][0])) == "at"
    assert [p["at"] for p in group["points"] if p["runs"]] == [
        (NOW - HOUR) - (NOW - HOUR) % (10 * MINUTE)
    ]


async def test_an_empty_history_has_empty_points(asked: Asked) -> None:
    [group] = (await asked.ask("worker.history", {"from": "-1h"}))["groups"]

    assert {point["runs"] for point in group["points"]} == {0}
    assert {point["p95"] for point in group["points"]} == {None}


async def test_pipelines_steps_errors_and_versions_are_told(asked: Asked) -> None:
    steps = [Step("parse", 3 * MS, attempts=2), Step("load", 6 * MS)]
    asked.record(a_result("r1", 10 * MS, steps=steps), version="1.0")
    asked.record(a_result("r2", 10 * MS, failed=True, error=an_error()), version="1.1")
    listed = await asked.ask("pipelines.list", {"from": "-1h"})
    found = await asked.ask("pipelines.metrics", {"pipeline": "send", "from": "-1h"})
    parts = await asked.ask("pipelines.steps", {"pipeline": "send", "from": "-1h"})

    assert [(p["name"], p["total"]["runs"]) for p in listed["pipelines"]] == [("send", 2)]
    assert [version["version"] for version in found["versions"]] == ["1.0", "1.1"]
    [error] = found["errors"]
    assert (error["type"], error["count"], error["message"]) == ("ValueError", 1, "no")
    assert [(s["name"], s["shareOfTime"], s["retries"]) for s in parts["steps"]] == [
        ("load", 30.0, 0),
        ("parse", 15.0, 1),
    ]


async def test_an_error_that_is_told_of_a_success_is_no_failure(asked: Asked) -> None:
    asked.record(a_result("r1", error=an_error()))
    found = await asked.ask("pipelines.metrics", {"pipeline": "send", "from": "-1h"})

    assert found["errors"] == []


async def test_a_run_of_the_first_seconds_of_all_time_is_found(asked: Asked) -> None:
    asked.record(a_batch(MS, at=5))
    listed = await asked.ask("pipelines.list", {"from": 0})

    assert (listed["from"], [p["total"]["runs"] for p in listed["pipelines"]]) == (0, [1])


async def test_the_range_that_was_read_is_told(asked: Asked) -> None:
    listed = await asked.ask("pipelines.list", {"from": NOW - HOUR + 3, "to": NOW - HOUR + 5})

    assert (listed["from"] % 10_000, listed["to"] - listed["from"]) == (0, 10_000)


@pytest.mark.parametrize("pipelines", [101, 700])
async def test_groups_are_answered_with_as_many_points_as_fit(asked: Asked, pipelines: int) -> None:
    asked.record(*(a_batch(MS, at=NOW - HOUR, pipeline=str(n)) for n in range(pipelines)))
    answer = await asked.ask("worker.history", {"groupBy": "pipeline"})

    assert len(answer["groups"]) == pipelines
    assert len(answer["groups"]) * len(answer["groups"][0]["points"]) <= 10_000


async def test_the_rate_of_a_window_is_over_the_time_that_the_worker_has_been_there(
    asked: Asked,
) -> None:
    batches = [a_batch(MS, at=NOW - minute * MINUTE) for minute in range(30)]
    asked.record(*batches, started_at=NOW - 30 * MINUTE)
    answer = await asked.ask("worker.metrics", {"window": "24h"})

    assert answer["runsPerHour"] == 60.0


async def test_a_fleet_of_one_is_this_node(asked: Asked) -> None:
    asked.record(a_batch(MS, at=NOW), slots=2)
    fleet = await asked.ask("fleet.metrics")
    balance = await asked.ask("fleet.balance")

    assert [(n["name"], n["totalRuns"]) for n in fleet["nodes"]] == [(asked.collector.node, 1)]
    assert [(w["worker"], w["slots"]) for w in balance["workers"]] == [("mailer", 2)]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("method", "params", "said"),
    [
        ("worker.history", {"from": NOW, "to": NOW - 1}, "has to be before to"),
        ("worker.history", {"from": NOW + HOUR, "to": NOW + 2 * HOUR}, "in the future"),
        ("worker.history", {"from": T0 // 1000}, f"epoch milliseconds: {T0}"),
        ("worker.history", {"from": "2023-11-14T22:13:20"}, "no offset from UTC"),
        ("worker.history", {"from": "-1h", "step": 0}, "take 10s"),
        ("worker.history", {"from": "-1h", "step": "7s"}, "take 10s"),
        ("worker.history", {"from": "-167h", "step": "1m"}, "at most 10000: take 2m"),
        ("worker.history", {"from": "-4d", "step": "1m", "trend": True}, "the one before it"),
        ("worker.history", {"from": "9" * 5000}, "no time"),
        ("worker.history", {"from": "0001-01-01T00:00:00Z"}, "before 1970"),
        ("worker.history", {"from": "-1h", "step": 10**30}, "up to a year"),
        ("worker.history", {"from": "-30d", "step": "1m"}, "take 1h"),
        ("worker.history", {"from": "-1h", "step": "often"}, "give 30s, 5m, 24h"),
        ("worker.history", {"from": [1]}, "from"),
        ("worker.history", {"groupBy": "colour"}, "groupBy"),
        ("worker.history", {"form": "-1h"}, "form"),
        ("worker.metrics", {"window": 0}, "not from 10s to 400d"),
        ("worker.metrics", {"window": "500d"}, "not from 10s to 400d"),
        ("worker.metrics", {"window": 300}, "a number is milliseconds"),
        ("pipelines.list", {"from": "now", "to": "-1h"}, "has to be before to"),
        ("pipelines.metrics", {}, "pipeline"),
        ("pipelines.steps", {"pipeline": "x", "from": "soon"}, "no time"),
        ("fleet.balance", {"to": "-2h"}, "has to be before to"),
    ],
)
async def test_a_bad_question_is_told_what_would_work(
    asked: Asked, method: str, params: dict[str, Any], said: str
) -> None:
    error = await asked.ask(method, params)

    assert error["code"] == -32602
    assert said in " ".join(error["data"]["problems"])
