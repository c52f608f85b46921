"""tRPC's HTTP protocol as it is on the wire; tests/clients has the real clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web

from builders import T0
from orbit_rpc_schema.errors import HistoryUnavailable, NotOnHub
from orbit_rpc_schema.messages import WRITING
from orbit_rpc_schema.procedures import (
    LIVE,
    PROCEDURES,
    FleetMetrics,
    Health,
    HistoryView,
    RunView,
    Stats,
    StuckRun,
)
from orbit_service.rpc.dispatch import MAX_BATCH, Dispatcher
from orbit_service.transport.trpc import MUTATIONS, QUERIES, add_trpc, times_in

UNDEFINED = {"json": None, "meta": {"values": ["undefined"], "v": 1}}  # superjson of no input
LATER = 10**15  # epoch ms, after the year 9999

STUCK = [StuckRun(id=str(at), worker="w", pipeline="p", started_at=at) for at in (T0, LATER)]
HEALTH = Health(status="error", message="stuck", last_activity=None, stuck_runs=STUCK)


@pytest.fixture
def executed():
    """The procedures that were executed."""
    return []


@pytest.fixture
async def http(aiohttp_client, executed):
    """A client of an application that has queries and nothing else."""
    ends: dict[str, Any] = {
        "worker.health": HEALTH,
        "worker.recentRuns": [],
        "pipelines.list": HistoryUnavailable(why="the disk is full"),
        "fleet.metrics": NotOnHub(method="fleet.metrics"),
        "service.ledger": ZeroDivisionError("a secret"),
    }

    def handler(name: str) -> Any:
        def handle(_params: Any) -> Any:
            executed.append(name)
            if isinstance(ends[name], Exception):
                raise ends[name]
            return ends[name]

        return handle

    app = web.Application()
    add_trpc(app, Dispatcher({name: handler(name) for name in PROCEDURES}))
    return await aiohttp_client(app)


def given(value: Any) -> dict[str, str]:
    """The parameters of the address for one input."""
    return {"input": json.dumps(value)}


def batch(*values: Any) -> dict[str, str]:
    return {"batch": "1", **given({str(index): value for index, value in enumerate(values)})}


async def error(response: Any) -> tuple[int, str, int]:
    """Its status, its name and its number."""
    told = (await response.json())["error"]
    assert told["data"]["httpStatus"] == response.status
    return response.status, told["data"]["code"], told["code"]


# ---------------------------------------------------------------- shapes


async def test_a_result_is_plain_where_the_input_is(http):
    response = await http.get("/trpc/worker.recentRuns", params=given({"limit": 5}))

    assert (response.status, response.content_type) == (200, "application/json")
    assert await response.json() == {"result": {"data": []}}


async def test_a_result_is_wrapped_where_the_input_is(http):
    response = await http.get("/trpc/worker.recentRuns", params=given(UNDEFINED))

    assert await response.json() == {"result": {"data": {"json": []}}}


async def test_times_are_marked_as_dates_for_superjson(http):
    response = await http.get("/trpc/worker.health", params=given(UNDEFINED))

    data = (await response.json())["result"]["data"]
    first, second = data["json"]["stuckRuns"]
    assert first["startedAt"] == "2023-11-14T22:13:20.000Z"
    assert second["startedAt"] == LATER  # of which JavaScript can make a Date all the same
    assert data["json"]["lastActivity"] is None
    assert data["meta"]["values"] == {
        "stuckRuns.0.startedAt": ["Date"],
        "stuckRuns.1.startedAt": ["Date"],
    }


async def test_an_error_is_wrapped_where_the_input_is(http):
    response = await http.get("/trpc/worker.fire", params=given(UNDEFINED))

    assert (await response.json())["error"]["json"]["data"]["path"] == "worker.fire"


async def test_each_call_of_a_batch_has_its_place(http):
    response = await http.get(
        "/trpc/worker.recentRuns,worker.fire,worker.health", params=batch({"limit": 1})
    )

    assert response.status == 207
    first, second, third = await response.json()
    assert first == {"result": {"data": []}}
    assert second["error"]["data"]["path"] == "worker.fire"
    assert third["result"]["data"]["status"] == "error"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("path", "ended"),
    [
        ("worker.fire", (404, "NOT_FOUND", -32004)),
        ("", (404, "NOT_FOUND", -32004)),
        ("pipelines.list", (503, "SERVICE_UNAVAILABLE", -32603)),
        ("fleet.metrics", (501, "NOT_IMPLEMENTED", -32603)),
        ("service.ledger", (500, "INTERNAL_SERVER_ERROR", -32603)),
    ],
)
async def test_an_error_has_the_name_and_the_status_of_trpc(http, path, ended):
    assert await error(await http.get(f"/trpc/{path}")) == ended


async def test_the_text_of_an_exception_reaches_nobody(http):
    text = await (await http.get("/trpc/service.ledger")).text()

    assert "secret" not in text
    assert "incident" in json.loads(text)["error"]["data"]


@pytest.mark.parametrize(
    "text", ["{", "NaN", "[1e999]", '{"limit": NaN}', "[" * 100_000, "1" * 5_000]
)
async def test_an_input_that_is_no_json_is_a_bad_request(http, text):
    headers = {"Content-Type": "application/json"}
    response = await http.post("/trpc/worker.recentRuns", data=text, headers=headers)

    assert (await error(response))[1] == "BAD_REQUEST"


async def test_bytes_that_are_no_text_are_a_bad_request(http):
    headers = {"Content-Type": "application/json"}
    response = await http.post("/trpc/worker.recentRuns", data=b"\xff", headers=headers)

    assert (await error(response))[1] == "BAD_REQUEST"


@pytest.mark.parametrize("value", [5, "text", [1, 2, 3, 4, 5], {"json": 5}, {"no": 1}])
async def test_an_input_that_is_no_params_is_a_bad_request(http, value):
    body = await (await http.get("/trpc/worker.recentRuns", params=given(value))).json()

    told = body["error"].get("json", body["error"])
    assert told["data"]["code"] == "BAD_REQUEST"


@pytest.mark.parametrize("meta", [None, 5, [], {"values": 5}, {"values": {"limit": 5}}])
async def test_a_strange_meta_is_passed_over(http, meta):
    wrapped = {"json": {"limit": 5}, "meta": meta}
    response = await http.get("/trpc/worker.recentRuns", params=given(wrapped))

    assert response.status == 200


async def test_a_batch_over_the_bound_is_not_executed(http, executed):
    path = ",".join(["worker.health"] * (MAX_BATCH + 1))
    response = await http.post(f"/trpc/{path}?batch=1", json={})

    assert await error(response) == (413, "PAYLOAD_TOO_LARGE", -32013)
    assert executed == []


async def test_a_refusal_of_a_whole_request_can_be_read_with_superjson_and_without(http):
    told = (await (await http.put("/trpc/worker.health")).json())["error"]

    assert told == {**told["json"], "json": told["json"]}


async def test_what_aiohttp_refuses_has_the_shape_of_trpc_too(http):
    form = await http.post("/trpc/worker.health", data="{}", headers={"Content-Type": "text/plain"})
    other = await http.put("/trpc/worker.health")

    assert await error(form) == (415, "UNSUPPORTED_MEDIA_TYPE", -32015)
    assert await error(other) == (405, "METHOD_NOT_SUPPORTED", -32005)
    assert other.headers["Allow"] == "GET,POST"


# ---------------------------------------------------------------- queries alone


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("name", sorted(MUTATIONS))
async def test_what_changes_something_cannot_be_called(http, executed, method, name):
    response = await http.request(
        method, f"/trpc/{name}", **({"json": {}} if method == "POST" else {})
    )

    assert (await error(response))[1] == "METHOD_NOT_SUPPORTED"
    assert executed == []


@pytest.mark.parametrize("name", sorted(WRITING | LIVE))
async def test_what_is_no_procedure_of_http_is_not_found(http, name):
    assert (await error(await http.get(f"/trpc/{name}")))[1] == "NOT_FOUND"


async def test_a_head_executes_nothing(http, executed):
    assert (await http.head("/trpc/worker.health")).status == 405
    assert executed == []


def test_every_procedure_that_creates_something_is_a_mutation():
    assert [name for name in QUERIES if "create" in name] == []


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("result", "times"),
    [
        (Stats, []),
        (Health, ["lastActivity", "stuckRuns.*.startedAt"]),
        (list[RunView], ["*.startedAt", "*.finishedAt"]),
        (HistoryView, ["from", "to", "groups.*.points.*.at", "groups.*.trend.from"]),
        (
            FleetMetrics,
            [
                "nodes.*.lastSeen",
                "total.workerStartTime",
                "total.lastRunTime",
                "total.timestamp",
                "total.lastLife.endedAt",
            ],
        ),
    ],
    ids=str,
)
def test_where_a_result_has_times_is_read_from_its_type(result, times):
    assert [".".join(path) for path in times_in(result)] == times
