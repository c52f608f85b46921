"""Calls as JSON-RPC 2.0 means them, whatever the handler does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger
from pydantic import Field, create_model

from orbit_rpc_schema.errors import NoSuchSilence, NotConnected
from orbit_rpc_schema.messages import WRITING
from orbit_rpc_schema.model import Model, NoParams
from orbit_rpc_schema.procedures import LIVE, Procedure
from orbit_service.rpc.dispatch import MAX_BATCH, Dispatcher

SECTION_7 = json.loads(Path(__file__).with_name("jsonrpc_section7.json").read_text())
ALONE = [
    example
    for example in SECTION_7
    if example["request"].startswith("{") and "invalid JSON" not in example["name"]
]


class Unwritable:
    """Something that JSON has no form for."""


def a_procedure(name: str, **params: type) -> Procedure:
    fields: dict[str, Any] = {param: (kind, ...) for param, kind in params.items()}
    return Procedure(name, name, create_model(name, __base__=Model, **fields), Any)


class Anything(Model):
    value: Any = None
    caller: Any = None  # a name that the dispatcher uses itself
    self_: Any = Field(None, alias="self")


def refuse(_params: Any) -> Any:
    raise NoSuchSilence(id="x")


async def later(_params: Any) -> Any:
    await asyncio.sleep(0)
    return {"at": "last"}


def explode(_params: Any) -> Any:
    raise ValueError("password=hunter2")


PROCEDURES = {
    procedure.name: procedure
    for procedure in (
        a_procedure("subtract", minuend=int, subtrahend=int),
        a_procedure("sum", a=int, b=int, c=int),
        a_procedure("update", a=int, b=int, c=int, d=int, e=int),
        a_procedure("notify_hello", number=int),
        a_procedure("get_data"),
        a_procedure("explode"),
        Procedure("nan", "a number that is none", NoParams, float),
        Procedure("unwritable", "no type says what it is", NoParams, Any),
        Procedure("mistyped", "another type than was said", NoParams, int),
        Procedure("later", "an answer that is waited for", NoParams, Any),
        Procedure("refuse", "an error of the contract", NoParams, Any),
        Procedure("surrogate", "a text that is none", NoParams, str),
        Procedure("echo", "what it was given", Anything, Any),
    )
}
HANDLERS: dict[str, Callable[[Any], Any]] = {
    "subtract": lambda params: params.minuend - params.subtrahend,
    "sum": lambda params: params.a + params.b + params.c,
    "update": lambda _params: None,
    "notify_hello": lambda _params: None,
    "get_data": lambda _params: ["hello", 5],
    "explode": explode,
    "nan": lambda _params: float("nan"),
    "unwritable": lambda _params: {"it": Unwritable()},
    "mistyped": lambda _params: Unwritable(),
    "later": later,
    "refuse": refuse,
    "surrogate": lambda _params: "a\ud800",
    "echo": lambda params: [params.value, params.caller, params.self_],
}


class FailingWriter:
    """A worker's session whose every message brings something else."""

    def write(self, method: str, params: Any) -> Any:
        if method == "runs.record":
            raise ValueError("password=hunter2")
        if method == "worker.heartbeat":
            raise NotConnected(method=method)
        return {"given": params}


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(HANDLERS, PROCEDURES)


async def answer_to(dispatcher: Dispatcher, message: Any) -> Any:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    answer = await dispatcher.answer(body)
    return None if answer is None else json.loads(answer, parse_constant=pytest.fail)


async def call(dispatcher: Dispatcher, method: str, params: Any = ()) -> Any:
    return await answer_to(dispatcher, a_call(method, params))


def a_call(method: str, params: Any = (), id: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params, "id": id}


def in_any_order(answer: Any) -> Any:
    """A batch's answers may come in any order (section 6)."""
    return sorted(answer, key=json.dumps) if isinstance(answer, list) else answer


# ---------------------------------------------------------------- the specification


def test_the_transcript_holds_all_fifteen_examples():
    assert len({example["request"] for example in SECTION_7}) == 15


@pytest.mark.parametrize("example", SECTION_7, ids=lambda example: example["name"])
async def test_the_specifications_example_is_answered_exactly(dispatcher, example):
    answer = await answer_to(dispatcher, example["request"].encode())

    assert in_any_order(answer) == in_any_order(example["response"])


@pytest.mark.parametrize("id", [1, -5, 2.5, "", "a\ud800", None], ids=repr)
async def test_an_id_comes_back_as_it_was(dispatcher, id):
    answer = await answer_to(dispatcher, a_call("get_data", id=id))
    assert answer == {"jsonrpc": "2.0", "result": ["hello", 5], "id": id}


@pytest.mark.parametrize(
    "request_text",
    {
        "no version": '{"method": "get_data", "id": 1}',
        "version 1.0": '{"jsonrpc": "1.0", "method": "get_data", "id": 1}',
        "version as a number": '{"jsonrpc": 2.0, "method": "get_data", "id": 1}',
        "no method": '{"jsonrpc": "2.0", "id": 1}',
        "params a text": '{"jsonrpc": "2.0", "method": "get_data", "params": "x", "id": 1}',
        "params null": '{"jsonrpc": "2.0", "method": "get_data", "params": null, "id": 1}',
        "id an object": '{"jsonrpc": "2.0", "method": "get_data", "id": {}}',
        "id true": '{"jsonrpc": "2.0", "method": "get_data", "id": true}',
        "id beyond a float": '{"jsonrpc": "2.0", "method": "get_data", "id": 1e999}',
        "a text": '"get_data"',
    }.items(),
    ids=lambda case: case[0],
)
async def test_what_is_no_request_is_called_so(dispatcher, request_text):
    answer = await answer_to(dispatcher, request_text[1].encode())
    assert answer["error"]["code"] == -32600
    assert answer["id"] is None


@pytest.mark.parametrize(
    "body",
    {
        "nothing": b"",
        "not UTF-8": b'{"jsonrpc": "2.0", "method": "\xff", "id": 1}',
        "NaN": b'{"jsonrpc": "2.0", "method": "get_data", "params": [NaN], "id": 1}',
        "infinity": b'{"jsonrpc": "2.0", "method": "get_data", "params": [-Infinity], "id": 1}',
        "10,000 nested arrays": b"[" * 10_000 + b"]" * 10_000,
        "a number of 5,000 digits": b"1" * 5_000,
    }.items(),
    ids=lambda case: case[0],
)
async def test_what_is_no_json_is_a_parse_error(dispatcher, body):
    answer = await answer_to(dispatcher, body[1])
    assert answer == {
        "jsonrpc": "2.0",
        "error": {"code": -32700, "message": "Parse error"},
        "id": None,
    }


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
async def test_no_bytes_bring_it_down(body):
    answer = await Dispatcher(HANDLERS, PROCEDURES).answer(body)
    assert answer is None or json.loads(answer)


# ---------------------------------------------------------------- alone and in a batch

# As json.loads reads them: surrogates, numbers of any size, and names twice are among it.
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = ("minuend", "subtrahend", "a", "b", "c", "value", "caller", "self", "seq", "args")
CALLS = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": st.sampled_from([*HANDLERS, *WRITING, *LIVE, "nothing"])},
    optional={
        "params": st.lists(st.integers() | JSON_VALUES, max_size=6)
        | st.dictionaries(st.sampled_from(NAMES), st.integers() | JSON_VALUES, max_size=4),
        "id": st.integers() | JSON_VALUES,
        "more": JSON_VALUES,
    },
)
MALFORMED = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | JSON_VALUES,
        "method": st.sampled_from([*HANDLERS]) | JSON_VALUES,
        "params": JSON_VALUES,
        "id": JSON_VALUES,
    },
)


@pytest.fixture
def one_incident(monkeypatch):
    """Each incident has an id of its own, by which no two answers would be alike."""
    monkeypatch.setattr("orbit_service.rpc.incidents.uuid4", lambda: UUID(int=0))


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=CALLS | MALFORMED, writer=st.sampled_from([None, FailingWriter()]))
async def test_a_call_alone_is_answered_as_in_a_batch_to_the_byte(one_incident, call, writer):
    """Alone it goes past jsonrpcserver; in a batch it does not."""
    dispatcher, body = Dispatcher(HANDLERS, PROCEDURES), json.dumps(call).encode()

    alone = await dispatcher.answer(body, writer)
    in_batch = await dispatcher.answer(b"[" + body + b"]", writer)

    assert in_batch == (None if alone is None else b"[" + alone + b"]")


@pytest.mark.parametrize("example", ALONE, ids=lambda example: example["name"])
async def test_the_specifications_example_is_answered_in_a_batch_as_alone(dispatcher, example):
    answer = await answer_to(dispatcher, f"[{example['request']}]".encode())

    assert answer == (example["response"] and [example["response"]])


# ---------------------------------------------------------------- params


@pytest.mark.parametrize(
    "params",
    {
        "too few": [1],
        "too many": [1, 2, 3],
        "none by name": {},
        "an unknown name": {"minuend": 1, "subtrahend": 2, "third": 3},
        "of a wrong type": ["a", "b"],
        "null": [None, None],
    }.items(),
    ids=lambda case: case[0],
)
async def test_params_that_do_not_fit_are_refused_by_name(dispatcher, params):
    answer = await call(dispatcher, "subtract", params[1])
    assert answer["error"]["code"] == -32602
    assert answer["error"]["data"]["problems"]


async def test_a_problem_names_the_param_and_never_its_value(dispatcher):
    answer = await call(dispatcher, "subtract", {"minuend": "hunter2", "subtrahend": 1})
    [problem] = answer["error"]["data"]["problems"]
    assert problem.startswith("minuend: ")
    assert "hunter2" not in json.dumps(answer)


async def test_a_notification_with_bad_params_has_no_answer(dispatcher):
    assert await answer_to(dispatcher, {"jsonrpc": "2.0", "method": "sum", "params": [1]}) is None


# ---------------------------------------------------------------- batches


async def test_a_batch_of_the_greatest_size_is_answered(dispatcher):
    calls = [a_call("sum", [n, 0, 0], id=n) for n in range(MAX_BATCH)]
    answers = await answer_to(dispatcher, calls)
    assert {answer["id"]: answer["result"] for answer in answers} == {
        n: n for n in range(MAX_BATCH)
    }


async def test_a_batch_over_it_is_refused_whole(dispatcher):
    answer = await answer_to(dispatcher, [a_call("get_data")] * (MAX_BATCH + 1))
    assert answer["error"]["code"] == -32011
    assert answer["error"]["data"]["limit"] == MAX_BATCH
    assert answer["id"] is None


async def test_a_batch_in_a_batch_is_no_request(dispatcher):
    [answer] = await answer_to(dispatcher, [[a_call("get_data")]])
    assert answer["error"]["code"] == -32600


async def test_one_bad_result_leaves_the_rest_of_its_batch_alone(dispatcher):
    calls = [a_call("nan", id=1), a_call("get_data", id=2), a_call("explode", id=3)]
    answers = {answer["id"]: answer for answer in await answer_to(dispatcher, calls)}
    assert answers[1]["error"]["code"] == -32004
    assert answers[2]["result"] == ["hello", 5]
    assert answers[3]["error"]["code"] == -32603


# ---------------------------------------------------------------- results and exceptions


@pytest.mark.parametrize("method", ["nan", "unwritable", "mistyped"])
async def test_a_result_that_json_has_no_form_for_is_an_error(dispatcher, method):
    answer = await call(dispatcher, method)
    assert answer["error"]["code"] == -32004
    assert answer["id"] == 1


@pytest.mark.parametrize(
    "value", ["a\ud800", "caf\u00e9 \u2028 \n", 2**70, 1e16, 5e-324, -0.0, [[{"": None}]]], ids=repr
)
async def test_any_value_of_json_can_be_a_result(dispatcher, value):
    assert (await call(dispatcher, "echo", [value]))["result"][0] == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
async def test_a_number_that_is_none_is_found_wherever_it_is(value):
    deep = Procedure("nan", "a number in many", NoParams, dict[str, list[float]])
    dispatcher = Dispatcher({"nan": lambda _params: {"a": [1.0, value]}}, {"nan": deep})
    assert (await call(dispatcher, "nan"))["error"]["code"] == -32004


@pytest.mark.parametrize("method", ["explode", "unwritable", "nan", "mistyped"])
async def test_no_exception_text_reaches_a_caller(dispatcher, method):
    answer = json.dumps(await call(dispatcher, method))
    assert '"error"' in answer
    for text in ("hunter2", "ValueError", "Unwritable", "Traceback", "nan"):
        assert text not in answer


async def test_no_exception_text_of_a_writing_method_reaches_a_caller(dispatcher):
    for body in (b"%s", b"[%s]"):
        answer = await dispatcher.answer(
            body % json.dumps(a_call("runs.record")).encode(), FailingWriter()
        )
        assert b'"incident"' in answer
        assert b"hunter2" not in answer


async def test_an_exception_is_logged_under_the_id_that_the_caller_gets(dispatcher):
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message} {exception}")
    answer = await call(dispatcher, "explode")
    logger.remove(sink)

    assert answer["error"]["data"]["incident"] in "".join(lines)
    assert "password=hunter2" in "".join(lines)


async def test_a_writing_method_is_refused_where_no_worker_is_connected(dispatcher):
    answer = await call(dispatcher, "runs.record", {"seq": 1, "recorded": 0, "batches": []})
    assert answer["error"]["code"] == -32020
    assert "Unix socket" in answer["error"]["message"]
