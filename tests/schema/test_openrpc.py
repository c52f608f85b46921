"""The OpenRPC document: what is served, no more and no less."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from builders import T0, a_batch, a_connect, a_record
from orbit_rpc_schema.errors import OrbitError
from orbit_rpc_schema.messages import WRITING
from orbit_rpc_schema.openrpc import document
from orbit_rpc_schema.procedures import LIVE, PROCEDURES, Selection
from orbit_service.core import snapshot
from orbit_service.core.collector import Collector

DOCUMENT = document("1.2.3")
METHODS = {method["name"]: method for method in DOCUMENT["methods"]}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_it_says_the_version_of_the_service() -> None:
    assert DOCUMENT["openrpc"].startswith("1.3")
    assert DOCUMENT["info"]["version"] == "1.2.3"


def test_every_procedure_stands_in_it_and_nothing_else() -> None:
    assert METHODS.keys() == PROCEDURES.keys() | LIVE.keys() | WRITING.keys()
    assert len(DOCUMENT["methods"]) == len(METHODS)


@pytest.mark.parametrize(("transport", "methods"), [("unix", WRITING), ("websocket", LIVE)])
def test_what_one_transport_alone_answers_says_so(transport: str, methods: Any) -> None:
    assert {n for n, m in METHODS.items() if m.get("x-transport") == transport} == set(methods)


def test_what_subscribers_are_told_is_described() -> None:
    told = {told["name"] for told in DOCUMENT["x-notifications"]}

    assert told == {"worker.update", "runs.ended", "alerts.changed"}


def test_every_reference_leads_somewhere() -> None:
    known = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}

    assert set(references(DOCUMENT)) <= known
    assert known


@every_method
def test_a_method_has_a_summary_and_params_by_name_and_position(method: dict[str, Any]) -> None:
    assert method["summary"]
    assert method["paramStructure"] == "either"
    assert method["result"]["name"] == "result"


@every_method
def test_required_params_come_first(method: dict[str, Any]) -> None:
    required = [param["required"] for param in method["params"]]

    assert required == sorted(required, reverse=True)


@every_method
def test_params_are_camel_case(method: dict[str, Any]) -> None:
    assert not [param["name"] for param in method["params"] if "_" in param["name"]]


@every_method
def test_schemas_are_json_schemas(method: dict[str, Any]) -> None:
    for schema in (*(p["schema"] for p in method["params"]), method["result"]["schema"]):
        Draft202012Validator.check_schema({**schema, "components": DOCUMENT["components"]})


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("worker.metrics", ["worker", "pipeline", "window"]),
        ("worker.history", ["from", "to", "step", "worker", "pipeline", "groupBy", "trend"]),
        ("worker.recentRuns", ["worker", "pipeline", "limit", "status"]),
        ("worker.stats", []),
        (
            "runs.record",
            ["seq", "recorded", "batches", "dropped", "started", "withdrawn", "hurry"],
        ),
    ],
)
def test_params_have_their_place(method: str, params: list[str]) -> None:
    assert [param["name"] for param in METHODS[method]["params"]] == params


def test_an_answer_is_what_its_schema_says() -> None:
    collector = Collector("node")
    collector.connect(a_connect(), T0)
    collector.record(collector.sessions["s1"], a_record(1, a_batch(1500, failed=[0])), T0)
    answer = snapshot.metrics(collector, Selection(), T0).model_dump(by_alias=True)

    schema = {
        **METHODS["worker.metrics"]["result"]["schema"],
        "components": DOCUMENT["components"],
    }
    assert not list(Draft202012Validator(schema).iter_errors(answer))
    del answer["totalRuns"]
    assert list(Draft202012Validator(schema).iter_errors(answer))


def test_errors_stand_in_it_with_their_codes() -> None:
    errors = DOCUMENT["components"]["errors"]

    assert errors["MethodNotFound"] == {"code": -32601, "message": "Method not found"}
    assert errors["LineTooLong"]["code"] == -32010


def test_errors_that_no_caller_meets_do_not_stand_in_it() -> None:
    class OnlyAtTheStart(OrbitError):
        """The disk is gone."""

    assert OnlyAtTheStart.__name__ not in document("another")["components"]["errors"]
