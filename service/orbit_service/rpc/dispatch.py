"""
JSON-RPC 2.0 over any transport: bytes in, bytes or nothing out.

jsonrpcserver gives the semantics of a call. A check of our own stands before
it, member by member, because the library answers five of the fifteen examples
of the specification's section 7 otherwise, and one behind it, so that no
exception text, NaN or unserialisable result reaches a caller.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from math import isfinite
from types import NoneType
from typing import Any, NoReturn, Protocol

from loguru import logger
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

with warnings.catch_warnings():
    # Its import reads a schema through functions that importlib.resources has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from jsonrpcserver import Error, Success
    from jsonrpcserver.async_main import dispatch_to_serializable

MAX_BATCH = 100  # calls; a dashboard asks for a handful at once

Method = Callable[..., Awaitable[Any]]


class Writer(Protocol):
    """A connected worker's side of the writing methods."""

    def write(self, method: str, params: Any) -> Any:
        """The method's result as JSON values. Raises OrbitError."""


class Dispatcher:
    """Answers calls. `writer` is the caller's session where the transport has one."""

    def __init__(
        self, handlers: Mapping[str, Handler], procedures: Mapping[str, Procedure] = PROCEDURES
    ) -> None:
        self._methods: dict[str, Method] = {
            name: _reading(procedures[name], handler) for name, handler in handlers.items()
        }
        self._methods.update({name: _writing(name) for name in WRITING})
        self._methods.update({name: _subscribing(LIVE[name]) for name in LIVE})

    async def answer(self, body: bytes, writer: Writer | Listener | None = None) -> bytes | None:
        """The answer to one message or batch, without a newline; None where none is due."""
        try:
            message = json.loads(body.decode(), parse_constant=_not_json)
        except (ValueError, RecursionError):
            return _encode(_error(ParseError()))
        if not isinstance(message, list):
            return await self._one(message, writer)
        if not message:
            return _encode(_error(InvalidRequest()))
        if len(message) > MAX_BATCH:
            return _encode(_error(BatchTooLarge(limit=MAX_BATCH, size=len(message))))
        answers = [await self._one(member, writer) for member in message]
        due = [answer for answer in answers if answer is not None]
        return b"[" + b",".join(due) + b"]" if due else None

    async def _one(self, call: Any, writer: Writer | Listener | None) -> bytes | None:
        if not _is_request(call):
            return _encode(_error(InvalidRequest()))
        if call["method"] not in self._methods:
            return _encode(_error(MethodNotFound(), call["id"])) if "id" in call else None
        answer = await dispatch_to_serializable(
            call, methods=self._methods, context=writer, deserializer=_same, validator=_same
        )
        return None if answer is None else _encode(answer)


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
    def change(caller: Writer | Listener | None, params: Any) -> Any:
        if not isinstance(caller, Listener):
            raise WebSocketOnly(method=procedure.name)
        return caller.change(params)

    return _typed(procedure, change)


def _typed(procedure: Procedure, handle: Callable[[Any, Any], Any]) -> Method:
    names = [field.alias or name for name, field in procedure.params.model_fields.items()]
    results: TypeAdapter[Any] = TypeAdapter(procedure.result)

    async def method(caller: Writer | Listener | None, /, *args: Any, **kwargs: Any) -> Any:
        try:
            params = procedure.params.model_validate(_by_name(names, args) if args else kwargs)
        except ValidationError as invalid:
            return _failure(InvalidParams(problems=_problems(invalid)))
        except OrbitError as error:
            return _failure(error)
        try:
            result = handle(caller, params)
            if isawaitable(result):
                result = await result
            return Success(results.dump_python(result, mode="json", by_alias=True))
        except OrbitError as error:
            return _failure(error)
        except PydanticSerializationError as error:
            return _failure(_unwritable(error))
        except Exception as error:  # noqa: BLE001  # whatever it is, its text is ours alone
            return _failure(incident(procedure.name, error))

    return method


def _writing(name: str) -> Method:
    names = list(WRITING[name].params.__struct_encode_fields__)

    async def method(writer: Writer | Listener | None, /, *args: Any, **kwargs: Any) -> Any:
        try:
            if writer is None or isinstance(writer, Listener):
                raise SocketOnly(method=name)
            return Success(writer.write(name, _by_name(names, args) if args else kwargs))
        except OrbitError as error:
            return _failure(error)

    return method


def _by_name(names: list[str], values: tuple[Any, ...]) -> dict[str, Any]:
    if len(values) > len(names):
        raise InvalidParams(problems=[f"at most {len(names)} params: {', '.join(names)}"])
    return dict(zip(names, values, strict=False))


def _problems(invalid: ValidationError) -> list[str]:
    return [
        f"{'.'.join(map(str, problem['loc'])) or 'params'}: {problem['msg']}"
        for problem in invalid.errors(include_url=False, include_input=False, include_context=False)
    ]


def _failure(error: OrbitError) -> Any:
    return Error(**error.to_json())


def _error(error: OrbitError, id: Any = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "error": error.to_json(), "id": id}


def _encode(answer: Any) -> bytes:
    try:
        return json.dumps(answer, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        answer = _error(_unwritable(error), answer["id"])
        return json.dumps(answer, separators=(",", ":")).encode()


def _unwritable(error: Exception) -> NotSerialisable:
    logger.error("a result could not be written as JSON: {}", error)
    return NotSerialisable()


def _same(value: Any) -> Any:
    return value


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
