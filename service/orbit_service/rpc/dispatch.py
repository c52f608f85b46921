"""
JSON-RPC 2.0 over any transport: bytes in, bytes or nothing out.

jsonrpcserver gives the semantics of a call. A check of our own stands before
it, member by member, because the library answers five of the fifteen examples
of the specification's section 7 otherwise, and one behind it, so that no
exception text, NaN or unserialisable result reaches a caller.

A call that comes alone, as most do, goes past the library, which takes longer to find
out whether a method may be called than most methods take. Whatever is not plainly such a
call goes by the library; a property test holds both ways to the same bytes.
"""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from math import isfinite
from types import CoroutineType, NoneType
from typing import Any, Literal, NoReturn, Protocol

import msgspec
from loguru import logger
from msgspec import UNSET, Struct, UnsetType
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from orbit_rpc_schema.errors import (
    BatchTooLarge,
    InvalidParams,
    InvalidRequest,
    MethodNotFound,
    NotSerialisable,
    OrbitError,
    ParseError,
    SocketOnly,
    WebSocketOnly,
)
from orbit_rpc_schema.messages import WRITING
from orbit_rpc_schema.procedures import LIVE, PROCEDURES, Procedure
from orbit_service.rpc.handlers import Handler
from orbit_service.rpc.incidents import incident
from orbit_service.rpc.live import Listener

MAX_BATCH = 100  # calls; a dashboard asks for a handful at once


class Writer(Protocol):
    """A connected worker's side of the writing methods."""

    def write(self, method: str, params: Any) -> Any:
        """The method's result as JSON values. Raises OrbitError."""


Caller = Writer | Listener | None  # who asks; None where the transport only answers
Params = list[Any] | dict[str, Any]
# The result as JSON values, or a coroutine of it. Raises OrbitError, and nothing else.
Method = Callable[[Caller, Params], Any]
Answer = bytes | None  # without a newline; None where none is due


class _Call(Struct, forbid_unknown_fields=True):
    """A request as JSON-RPC 2.0 has it, with nothing beside."""

    jsonrpc: Literal["2.0"]
    method: str
    params: Params = {}
    id: str | int | float | UnsetType | None = UNSET


_alone = msgspec.json.Decoder(_Call)
_written = msgspec.json.Encoder().encode  # four times as fast as json.dumps


class Dispatcher:
    """Answers calls. `caller` is the caller's session where the transport has one."""

    def __init__(
        self, handlers: Mapping[str, Handler], procedures: Mapping[str, Procedure] = PROCEDURES
    ) -> None:
        self._methods: dict[str, Method] = {
            name: _reading(procedures[name], handler) for name, handler in handlers.items()
        }
        self._methods.update({name: _writing(name) for name in WRITING})
        self._methods.update({name: _subscribing(LIVE[name]) for name in LIVE})
        self._by_library = {name: _as_library(method) for name, method in self._methods.items()}

    async def answer(self, body: bytes, caller: Caller = None) -> Answer:
        """The answer to one message or batch."""
        if caller is not None:
            # One read of its connection may hold thousands of messages: a turn for the others.
            await asyncio.sleep(0)
        begun = self.begin(body, caller)
        return begun if begun is None or isinstance(begun, bytes) else await begun

    def begin(self, body: bytes, caller: Caller = None) -> Answer | Awaitable[Answer]:
        """The same at once, or to be awaited where it takes waiting."""
        try:
            call = _alone.decode(body)
            method = self._methods[call.method]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
            return self._answer(body, caller)
        try:
            result = method(caller, call.params)
        except OrbitError as error:
            return None if call.id is UNSET else _encode(_error(error, call.id))
        if isinstance(result, CoroutineType):
            return _awaited(result, call.id)
        return None if call.id is UNSET else _encode(_success(result, call.id))

    async def _answer(self, body: bytes, caller: Caller) -> Answer:
        """The answer to whatever comes, by the library."""
        try:
            message = json.loads(body.decode(), parse_constant=_not_json)
        except (ValueError, RecursionError):
            return _encode(_error(ParseError()))
        if not isinstance(message, list):
            return await self._one(message, caller)
        if not message:
            return _encode(_error(InvalidRequest()))
        if len(message) > MAX_BATCH:
            return _encode(_error(BatchTooLarge(limit=MAX_BATCH, size=len(message))))
        answers = [await self._one(member, caller) for member in message]
        due = [answer for answer in answers if answer is not None]
        return b"[" + b",".join(due) + b"]" if due else None

    async def _one(self, call: Any, caller: Caller) -> Answer:
        if not _is_request(call):
            return _encode(_error(InvalidRequest()))
        if call["method"] not in self._methods:
            return _encode(_error(MethodNotFound(), call["id"])) if "id" in call else None
        answer = await _library().dispatch_to_serializable(
            call, methods=self._by_library, context=caller, deserializer=_same, validator=_same
        )
        return None if answer is None else _encode(answer)


async def _awaited(result: CoroutineType[Any, Any, Any], id: Any) -> Answer:
    try:
        answer = _success(await result, id)
    except OrbitError as error:
        answer = _error(error, id)
    return None if id is UNSET else _encode(answer)


def _is_request(call: Any) -> bool:
    """JSON-RPC 2.0, section 4."""
    return (
        isinstance(call, dict)
        and call.get("jsonrpc") == "2.0"
        and isinstance(call.get("method"), str)
        and isinstance(call.get("params", []), (list, dict))
        and _is_id(call.get("id"))
    )


def _is_id(value: Any) -> bool:
    if isinstance(value, float):
        return isfinite(value)  # 1e999 reads as infinity, which cannot be written back
    return isinstance(value, (str, int, NoneType)) and not isinstance(value, bool)


def _reading(procedure: Procedure, handler: Handler) -> Method:
    return _typed(procedure, lambda _caller, params: handler(params))


def _subscribing(procedure: Procedure) -> Method:
    def change(caller: Caller, params: Any) -> Any:
        if not isinstance(caller, Listener):
            raise WebSocketOnly(method=procedure.name)
        return caller.change(params)

    return _typed(procedure, change)


def _typed(procedure: Procedure, handle: Callable[[Any, Any], Any]) -> Method:
    names = [field.alias or name for name, field in procedure.params.model_fields.items()]
    given = TypeAdapter(procedure.params).validator.validate_python
    to_json: Callable[..., Any] = TypeAdapter[Any](procedure.result).serializer.to_python

    def method(caller: Caller, params: Params) -> Any:
        try:
            valid = given(_by_name(names, params))
        except ValidationError as invalid:
            raise InvalidParams(problems=_problems(invalid)) from None
        try:
            result = handle(caller, valid)
            if isinstance(result, CoroutineType):
                return later(result)
            return to_json(result, mode="json", by_alias=True)
        except Exception as error:  # noqa: BLE001  # whatever it is, its text is ours alone
            raise _told(procedure.name, error) from None

    async def later(result: CoroutineType[Any, Any, Any]) -> Any:
        try:
            return to_json(await result, mode="json", by_alias=True)
        except Exception as error:  # noqa: BLE001  # as above
            raise _told(procedure.name, error) from None

    return method


def _writing(name: str) -> Method:
    names = list(WRITING[name].params.__struct_encode_fields__)

    def method(caller: Caller, params: Params) -> Any:
        if caller is None or isinstance(caller, Listener):
            raise SocketOnly(method=name)
        try:
            return caller.write(name, _by_name(names, params))
        except Exception as error:  # noqa: BLE001  # as in _typed
            raise _told(name, error) from None

    return method


def _told(method: str, error: Exception) -> OrbitError:
    """What the caller is told of it."""
    if isinstance(error, OrbitError):
        return error
    if isinstance(error, PydanticSerializationError):
        return _unwritable(error)
    return incident(method, error)


@cache
def _library() -> Any:
    """jsonrpcserver, when it is first needed: 2.6 MiB that many a service does without."""
    with warnings.catch_warnings():
        # Its import reads a schema through functions that importlib.resources has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        from jsonrpcserver import async_main
    return async_main


def _as_library(method: Method) -> Callable[..., Awaitable[Any]]:
    """The method as jsonrpcserver calls one."""

    async def library(caller: Caller, /, *args: Any, **kwargs: Any) -> Any:
        from jsonrpcserver import Error, Success

        try:
            result = method(caller, list(args) or kwargs)
            return Success(await result if isinstance(result, CoroutineType) else result)
        except OrbitError as error:
            return Error(**error.to_json())

    return library


def _by_name(names: list[str], params: Params) -> dict[str, Any]:
    if isinstance(params, dict):
        return params
    if len(params) > len(names):
        raise InvalidParams(problems=[f"at most {len(names)} params: {', '.join(names)}"])
    return dict(zip(names, params, strict=False))


def _problems(invalid: ValidationError) -> list[str]:
    return [
        f"{'.'.join(map(str, problem['loc'])) or 'params'}: {problem['msg']}"
        for problem in invalid.errors(include_url=False, include_input=False, include_context=False)
    ]


def _success(result: Any, id: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "result": result, "id": id}


def _error(error: OrbitError, id: Any = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "error": error.to_json(), "id": id}


def _encode(answer: dict[str, Any]) -> bytes:
    try:
        if _is_finite(answer):
            return _written(answer)
    except UnicodeEncodeError:
        # A lone surrogate, which the standard library escapes, and reads.
        return json.dumps(answer, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, RecursionError) as error:
        return _written(_error(_unwritable(error), answer["id"]))
    return _written(_error(_unwritable(ValueError("a number that is none")), answer["id"]))


def _is_finite(value: Any) -> bool:
    """Whether all its numbers can be written; msgspec would make null of the others."""
    kind = type(value)
    if kind is dict:
        return all(map(_is_finite, value.values()))
    if kind is list:
        return all(map(_is_finite, value))
    return kind is not float or isfinite(value)


def _unwritable(error: Exception) -> NotSerialisable:
    logger.error("a result could not be written as JSON: {}", error)
    return NotSerialisable()


def _same(value: Any) -> Any:
    return value


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
