"""
tRPC's HTTP protocol for queries, over the same dispatcher: calls in, answers out.

A client of tRPC 10 or 11 works here as it does with a router of its own, plain or with
superjson. Which of the two it speaks is in what it sends: superjson wraps every input, also
one that is left out, in an object of `json` and `meta`, and no params of ours look like that.

Queries alone: they travel by GET, which any web page can send.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import UnionType
from typing import Annotated, Any, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from aiohttp import web

from orbit_rpc_schema.errors import (
    BatchTooLarge,
    HistoryUnavailable,
    InvalidParams,
    InvalidRequest,
    MethodNotFound,
    NotOnHub,
    ParseError,
)
from orbit_rpc_schema.model import EpochMs, Model
from orbit_rpc_schema.procedures import PROCEDURES
from orbit_service.rpc.dispatch import MAX_BATCH, Dispatcher

PREFIXES = ("/trpc", "/api/trpc")
WITHIN = tuple(f"{prefix}/" for prefix in PREFIXES)
QUERIES = {name for name, procedure in PROCEDURES.items() if procedure.reads}
MUTATIONS = PROCEDURES.keys() - QUERIES

Json = dict[str, Any]
Path = tuple[str, ...]


class Kind(NamedTuple):
    """An error as tRPC names and numbers it (trpc.io/docs/rpc), and its HTTP status."""

    name: str
    number: int
    status: int


INTERNAL = Kind("INTERNAL_SERVER_ERROR", -32603, 500)
NOT_FOUND = Kind("NOT_FOUND", -32004, 404)
BAD_REQUEST = Kind("BAD_REQUEST", -32600, 400)
NOT_SUPPORTED = Kind("METHOD_NOT_SUPPORTED", -32005, 405)
TOO_LARGE = Kind("PAYLOAD_TOO_LARGE", -32013, 413)
BY_CODE = {
    MethodNotFound.code: NOT_FOUND,
    InvalidParams.code: BAD_REQUEST,
    InvalidRequest.code: BAD_REQUEST,
    ParseError.code: BAD_REQUEST,
    BatchTooLarge.code: TOO_LARGE,
    NotOnHub.code: Kind("NOT_IMPLEMENTED", -32603, 501),
    HistoryUnavailable.code: Kind("SERVICE_UNAVAILABLE", -32603, 503),
}
BY_STATUS = {
    kind.status: kind
    for kind in (
        BAD_REQUEST,
        NOT_FOUND,
        NOT_SUPPORTED,
        TOO_LARGE,
        Kind("UNAUTHORIZED", -32001, 401),
        Kind("FORBIDDEN", -32003, 403),
        Kind("UNSUPPORTED_MEDIA_TYPE", -32015, 415),
    )
}


def add_trpc(app: web.Application, dispatcher: Dispatcher) -> None:
    """Serve queries under each of the prefixes."""

    async def get(request: web.Request) -> web.Response:
        return await answer(request, request.query.get("input", ""))

    async def post(request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="send Content-Type: application/json\n")
        return await answer(request, await request.read())

    async def answer(request: web.Request, given: str | bytes) -> web.Response:
        batch = request.query.get("batch") == "1"
        try:
            text = given if isinstance(given, str) else given.decode()
            queries = _queries(request.match_info["path"], batch, text)
            calls = _calls(queries)
        except BatchTooLarge as error:
            return _refusal(_failure(error.to_json()))
        except (ValueError, RecursionError) as error:
            return _refusal(Failure(BAD_REQUEST, f"the input is not JSON: {error}", {}))
        answers = json.loads(await dispatcher.answer(calls) or b"[]") if calls else []
        return _answer(request, batch, queries, _results(queries, answers))

    for prefix in PREFIXES:
        app.router.add_get(prefix + "/{path:.*}", get, allow_head=False)
        app.router.add_post(prefix + "/{path:.*}", post)
    # Around the others: a client cannot read a refusal in another shape than tRPC's.
    app.middlewares.insert(0, _refuse)


@web.middleware
async def _refuse(request: web.Request, handler: Any) -> web.StreamResponse:
    if not request.path.startswith(WITHIN):
        return await handler(request)  # type: ignore[no-any-return]
    try:
        return await handler(request)  # type: ignore[no-any-return]
    except web.HTTPException as refused:
        text = (refused.text or refused.reason).strip()
        response = _refusal(Failure(BY_STATUS.get(refused.status, INTERNAL), text, {}))
        response.set_status(refused.status)
        for name in ("Allow", "WWW-Authenticate"):
            if name in refused.headers:
                response.headers[name] = refused.headers[name]
        return response


# ---------------------------------------------------------------- what is asked


@dataclass(frozen=True, slots=True)
class Query:
    path: str
    params: Any
    superjson: bool


def _queries(path: str, batch: bool, text: str) -> list[Query]:
    """The calls of one request. Raises ValueError or RecursionError for what is no JSON."""
    given = _read(text) if text else None
    # A client may be told to separate the parts of a name by slashes.
    names = path.replace("/", ".").split(",") if batch else [path.replace("/", ".")]
    if len(names) > MAX_BATCH:
        raise BatchTooLarge(limit=MAX_BATCH, size=len(names))
    if not batch:
        return [_query(names[0], given)]
    inputs = given if isinstance(given, dict) else {}
    return [_query(name, inputs.get(str(index))) for index, name in enumerate(names)]


def _query(name: str, given: Any) -> Query:
    wrapped = _is_superjson(given)
    params = _unwrapped(given) if wrapped else given
    return Query(name, {} if params is None else params, wrapped)


def _is_superjson(given: Any) -> bool:
    return isinstance(given, dict) and "json" in given and given.keys() <= {"json", "meta"}


def _unwrapped(given: Json) -> Any:
    """The params; dates are ISO 8601 already, which is what a moment is asked by."""
    params, meta = given["json"], given.get("meta")
    values = meta.get("values") if isinstance(meta, dict) else None
    if isinstance(params, dict) and isinstance(values, dict):
        # In plain JSON these are not there at all.
        left_out = {name for name, kind in values.items() if kind == ["undefined"]}
        return {name: value for name, value in params.items() if name not in left_out}
    return params


def _calls(queries: list[Query]) -> bytes | None:
    """Those that may be asked, as a batch of JSON-RPC; None: there are none."""
    calls = [
        {"jsonrpc": "2.0", "id": 1, "method": query.path, "params": query.params}
        for query in queries
        if query.path in QUERIES
    ]
    return json.dumps(calls, allow_nan=False).encode() if calls else None


def _read(text: str) -> Any:
    return json.loads(text, parse_constant=_not_json)


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# ---------------------------------------------------------------- what is answered


class Failure(NamedTuple):
    kind: Kind
    message: str
    data: Json

    def to_json(self, path: str | None = None) -> Json:
        where = {} if path is None else {"path": path}
        return {
            "message": self.message,
            "code": self.kind.number,
            "data": {
                **self.data,
                "code": self.kind.name,
                "httpStatus": self.kind.status,
                **where,
            },
        }


class Answered(NamedTuple):
    """A result, and where it has dates for superjson."""

    value: Any
    dates: list[str]


def _results(queries: list[Query], answers: list[Json]) -> list[Answered | Failure]:
    """What became of each query, in their order; answers are there for those that were asked."""
    left = iter(answers)
    return [_result(query, next(left) if query.path in QUERIES else None) for query in queries]


def _result(query: Query, answer: Json | None) -> Answered | Failure:
    if answer is None and query.path in MUTATIONS:
        why = f'"{query.path}" changes something: call it by JSON-RPC, POST /rpc'
        return Failure(NOT_SUPPORTED, why, {})
    if answer is None:
        return Failure(NOT_FOUND, f'No procedure found on path "{query.path}"', {})
    if "error" in answer:
        return _failure(answer["error"])
    value = answer["result"]
    return Answered(value, list(_dated(query.path, value)) if query.superjson else [])


def _failure(error: Json) -> Failure:
    if error["code"] == InvalidRequest.code:  # what else is in a request is ours
        return Failure(BAD_REQUEST, "the input is an object, of the procedure's params", {})
    data = error.get("data", {})
    said = [error["message"], *data.get("problems", [])]
    return Failure(BY_CODE.get(error["code"], INTERNAL), ": ".join(said), data)


def _answer(
    request: web.Request, batch: bool, queries: list[Query], results: list[Answered | Failure]
) -> web.Response:
    if batch and "application/jsonl" in _accepted(request):
        # httpBatchStreamLink of tRPC 11: one line holds all, none is promised for later.
        return _respond(_json_line(queries, results), 200)
    members = [_json(_member(*pair)) for pair in zip(queries, results, strict=True)]
    if batch and request.headers.get("trpc-batch-mode") == "stream":  # that of tRPC 10
        lines = ",".join(f'"{index}":{member}\n' for index, member in enumerate(members))
        return _respond(f"{{{lines}}}", 200)
    return _respond(f"[{','.join(members)}]" if batch else members[0], _status(results))


def _accepted(request: web.Request) -> str:
    return request.headers.get("trpc-accept", request.headers.get("Accept", ""))


def _status(results: list[Answered | Failure]) -> int:
    """The one of all, or 207 where they differ."""
    statuses = {result.kind.status if isinstance(result, Failure) else 200 for result in results}
    return statuses.pop() if len(statuses) == 1 else 207


def _member(query: Query, result: Answered | Failure) -> Json:
    if isinstance(result, Failure):
        error = result.to_json(query.path)
        return {"error": {"json": error} if query.superjson else error}
    return {"result": {"data": _wrapped(*result) if query.superjson else result.value}}


def _json_line(queries: list[Query], results: list[Answered | Failure]) -> str:
    """Here superjson wraps the line, and not its members."""
    head: Json = {}
    dates: list[str] = []
    for index, (query, result) in enumerate(zip(queries, results, strict=True)):
        if isinstance(result, Failure):
            head[str(index)] = [[{"error": result.to_json(query.path)}]]
            continue
        dates += [f"{index}.0.0.result.data.{path}" for path in result.dates]
        head[str(index)] = [[{"result": {"data": result.value}}]]
    wrap = any(query.superjson for query in queries)
    return _json(_wrapped(head, dates) if wrap else head) + "\n"


def _wrapped(value: Any, dates: list[str]) -> Json:
    if not dates:
        return {"json": value}
    return {"json": value, "meta": {"values": {path: ["Date"] for path in dates}}}


def _refusal(failure: Failure) -> web.Response:
    """One answer for a whole request; a client takes it for that of each call in it."""
    error = failure.to_json()
    # It is given before the input is read. Plain clients read the one, superjson the other.
    return _respond(_json({"error": {**error, "json": error}}), failure.kind.status)


def _respond(text: str, status: int) -> web.Response:
    headers = {"Cache-Control": "no-store", "Vary": "trpc-accept, accept, trpc-batch-mode"}
    return web.Response(text=text, status=status, content_type="application/json", headers=headers)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


# ---------------------------------------------------------------- times as dates


def times_in(hint: Any) -> list[Path]:
    """Where a result of this type has times: by names of fields, and `*` for each of a list."""
    if hint == EpochMs:
        return [()]
    if isinstance(hint, type) and issubclass(hint, Model):
        hints = get_type_hints(hint, include_extras=True)
        return [
            (field.alias or name, *path)
            for name, field in hint.model_fields.items()
            for path in times_in(hints[name])
        ]
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return times_in(parts[0])
    if origin in (Union, UnionType):
        return [path for part in parts for path in times_in(part)]
    if origin is list:
        return [("*", *path) for path in times_in(parts[0])]
    if origin is dict and times_in(parts[1]):
        raise TypeError(f"{hint}: superjson would have to escape the keys of these times")
    return []


TIMES = {name: times_in(PROCEDURES[name].result) for name in QUERIES}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _dated(name: str, result: Any) -> Iterator[str]:
    """Make dates of a result's times, as superjson writes them; the path of each."""
    for path in TIMES[name]:
        yield from _date(result, path)


def _date(value: Any, path: Path, within: str = "") -> Iterator[str]:
    name, *rest = path
    if value is None:
        return
    keys = range(len(value)) if name == "*" else [name]
    for key in keys:
        if rest:
            yield from _date(value[key], tuple(rest), f"{within}{key}.")
        elif value[key] is not None:
            value[key] = _iso(value[key])
            yield f"{within}{key}"


def _iso(time: int) -> str | int:
    try:
        text = (EPOCH + timedelta(milliseconds=time)).isoformat(timespec="milliseconds")
    except OverflowError:
        return time  # after the year 9999, of a worker that says so: a Date is made of it too
    return text.replace("+00:00", "Z")
