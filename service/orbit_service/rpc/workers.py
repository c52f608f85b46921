"""
The writing methods: what a worker's connection may say, and what it does.

A `Peer` is one connection's side of it. At most one connection speaks for a
session: a newer one replaces the older, whose unread bytes are discarded,
because what was in them will be sent again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from loguru import logger
from msgspec import Raw, Struct

from orbit_rpc_schema.errors import (
    AlreadyConnected,
    InvalidParams,
    NotConnected,
    OrbitError,
    UnsupportedProtocol,
)
from orbit_rpc_schema.messages import (
    WRITING,
    ByReason,
    Connect,
    Connected,
    Controlled,
    Disconnect,
    Done,
    Heartbeat,
    Message,
    Record,
    Reset,
    SequenceNumber,
)
from orbit_rpc_schema.wire import MAX_INT, PROTOCOL, as_name, as_text
from orbit_service.core.checks import Refused
from orbit_service.core.collector import Collector
from orbit_service.core.sessions import Session
from orbit_service.rpc.handlers import Clock
from orbit_service.rpc.incidents import incident

_DECODERS = {name: msgspec.json.Decoder(row.params) for name, row in WRITING.items()}


class Numbers(Struct):
    """What a message that cannot be counted still tells."""

    seq: SequenceNumber
    recorded: Any = None
    dropped: Any = None


class Workers:
    """Which connection speaks for which session."""

    def __init__(self, collector: Collector, clock: Clock) -> None:
        self.collector = collector
        self.clock = clock
        self._speakers: dict[str, Peer] = {}

    def claim(self, peer: Peer, session: str) -> None:
        """Make `peer` the one that speaks for the session."""
        older = self._speakers.get(session)
        self._speakers[session] = peer
        if older is not None:
            older.replace()

    def release(self, peer: Peer, session: str) -> None:
        if self._speakers.get(session) is peer:
            del self._speakers[session]

    def expire(self) -> None:
        """Give up sessions that have been away too long."""
        for session in self.collector.expire(self.clock()):
            logger.warning("worker {} lost: session {} did not come back", *_who(session))


class Peer:
    """One connection to the worker socket. `on_replaced` closes it at once."""

    def __init__(self, workers: Workers, pid: int | None, on_replaced: Callable[[], None]) -> None:
        self.session: Session | None = None
        self.pid = pid
        self._workers = workers
        self._on_replaced = on_replaced
        self._suspect: Session | None = None
        self._refusals_level = "WARNING"

    # ------------------------------------------------------------ messages

    def write(self, method: str, params: Raw | dict[str, Any]) -> Any:
        """Do what one message says; its result as JSON values. Raises OrbitError."""
        try:
            message = _decode(method, params)
        except RecursionError:
            raise InvalidParams(problems=["nested too deeply"]) from None
        except msgspec.ValidationError as invalid:
            self._log_refusal(method, str(invalid))
            self._take_number(params, "invalid")
            raise InvalidParams(problems=[str(invalid)]) from None
        try:
            result = self._do(method, message)
        except Refused as refused:
            self._log_refusal(method, refused.problem)
            raise InvalidParams(problems=[refused.problem]) from None
        except OrbitError:
            raise
        except Exception as error:  # noqa: BLE001  # ours; the next message may fare better
            self._take_number(params, "internal error")
            raise incident(method, error) from None
        return msgspec.to_builtins(result)

    def _do(self, method: str, message: Message) -> Struct:
        if isinstance(message, Connect):
            return self._connect(message)
        if self.session is None:
            self._workers.collector.faults["not connected"] += 1
            raise NotConnected(method=method)
        collector, now = self._workers.collector, self._workers.clock()
        match message:
            case Record():
                collector.record(self.session, message, now)
            case Heartbeat():
                collector.heartbeat(self.session, message, now)
            case Reset():
                collector.reset(self.session, now)
                logger.info("worker {} was reset", self.session.worker)
            case Disconnect():
                self._goodbye(self.session, message)
            case Controlled():
                logger.info("worker {} answered {}: {}", self.session.worker, *_fields(message))
        return Done()

    def _connect(self, hello: Connect) -> Connected:
        if hello.protocol != PROTOCOL:
            raise UnsupportedProtocol(asked=hello.protocol, supported=PROTOCOL)
        if self.session is not None:
            raise AlreadyConnected()
        answer = self._workers.collector.connect(hello, self._workers.clock())
        self.session = self._workers.collector.sessions[hello.session]
        self._workers.claim(self, hello.session)
        known = "again" if answer.known else "for the first time"
        logger.info("worker {} connected {}, session {}", hello.worker, known, hello.session)
        return answer

    def _goodbye(self, session: Session, message: Disconnect) -> None:
        self._workers.release(self, session.id)
        reason = as_name(message.reason)
        self._workers.collector.disconnect(session, reason, self._workers.clock())
        self.session = None
        logger.info("worker {} left: {}, session {}", session.worker, reason, session.id)

    def _take_number(self, params: Raw | dict[str, Any], reason: str) -> None:
        """A message that cannot be counted consumes its number, so that it is not sent for ever."""
        if self.session is None:
            return
        try:
            numbers = _numbers(params)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        recorded = numbers.recorded
        try:
            dropped = msgspec.convert(numbers.dropped, ByReason)
        except msgspec.ValidationError:
            dropped = {}
        self._workers.collector.refuse(
            self.session,
            numbers.seq,
            recorded if type(recorded) is int and 0 <= recorded <= MAX_INT else 0,
            dropped,
            runs=None,
            now_ms=self._workers.clock(),
            reason=reason,
        )

    def _log_refusal(self, method: str, problem: str) -> None:
        # One line a connection; how many there were, service.info counts.
        level, self._refusals_level = self._refusals_level, "DEBUG"
        who = self.session.worker if self.session else f"pid {self.pid}"
        logger.log(level, "{} from {} refused: {}", method, who, problem)

    # ------------------------------------------------------------ endings

    def replace(self) -> None:
        """Another connection speaks for the session now."""
        self.session = None
        self._on_replaced()

    def vanished(self, process_gone: bool) -> None:
        """The connection ended without goodbye."""
        session, self.session = self.session, None
        if session is None:
            return
        self._workers.release(self, session.id)
        self._suspect = session
        self._workers.collector.suspect(session, self._workers.clock())
        if process_gone:
            self.process_gone()

    def process_gone(self) -> None:
        """The process behind the vanished connection has ended: it will not come back."""
        session, self._suspect = self._suspect, None
        if session is not None and session.suspect_since_ms is not None:
            self._workers.collector.lose(session, self._workers.clock())
            logger.warning("worker {} lost: its process is gone, session {}", *_who(session))


def _decode(method: str, params: Raw | dict[str, Any]) -> Message:
    if isinstance(params, Raw):
        return _DECODERS[method].decode(params)
    return msgspec.convert(_scrubbed(params), WRITING[method].params, str_keys=True)


def _numbers(params: Raw | dict[str, Any]) -> Numbers:
    if isinstance(params, Raw):
        return msgspec.json.decode(params, type=Numbers)
    return msgspec.convert(params, Numbers)


def _scrubbed(value: Any) -> Any:
    """The same JSON value with storable texts; a lone surrogate is what brings one here."""
    match value:
        case str():
            return as_text(value, len(value))
        case list():
            return [_scrubbed(part) for part in value]
        case dict():
            return {_scrubbed(key): _scrubbed(part) for key, part in value.items()}
        case _:
            return value


def _who(session: Session) -> tuple[str, str]:
    return session.worker, session.id


def _fields(message: Controlled) -> tuple[str, str]:
    return message.id, message.outcome
