"""
The writing methods: what a worker's connection may say, and what it does.

A `Peer` is one connection's side of it. At most one connection speaks for a
session: a newer one replaces the older, whose unread bytes are discarded,
because what was in them will be sent again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

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
from orbit_rpc_schema.wire import MAX_INT, PROTOCOL, as_name, as_text, encode, notification
from orbit_service.core.checks import Refused
from orbit_service.core.sessions import Session
from orbit_service.rpc.controls import CONTROL_SECONDS, Action, Controls, Outcome
from orbit_service.rpc.handlers import Clock
from orbit_service.rpc.incidents import incident
from orbit_service.state.events import Uncounted
from orbit_service.state.intake import Intake

# A session whose connection ended without goodbye may come back for this long, ...
SUSPECT_SECONDS = 2.0
# ... and after a start of the service for this long.
RETURN_SECONDS = 30.0
# Who is back sends what waited meanwhile, within so long.
TELL_SECONDS = 5.0
# Between two looks no more than this has passed, or the service itself was stopped.
LOOK_SECONDS = 1.0

_DECODERS = {name: msgspec.json.Decoder(row.params) for name, row in WRITING.items()}


class Numbers(Struct):
    """What a message that cannot be counted still tells."""

    seq: SequenceNumber
    recorded: Any = None
    dropped: Any = None


class Workers:
    """Which connection speaks for which session, and which session has none.

    Deadlines go by a clock that nobody sets, so that a step of the wall clock
    loses no worker.
    """

    def __init__(
        self, intake: Intake, clock: Clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.intake = intake
        self.collector = intake.collector
        self.clock = clock
        self._monotonic = monotonic
        self._speakers: dict[str, Peer] = {}
        self._suspects: dict[str, float] = {}  # until when a session may come back
        self._controls = Controls()
        self._looked_at = monotonic()
        self._returning: set[str] = set()  # who was here when the service started
        self._returned_at = float("-inf")
        intake.on_durable = self._durable

    def speaking(self) -> set[str]:
        """Sessions that have a connection now."""
        return set(self._speakers)

    def claim(self, peer: Peer, session: str) -> None:
        """Make `peer` the one that speaks for the session."""
        older = self._speakers.get(session)
        self._speakers[session] = peer
        self._suspects.pop(session, None)
        if older is not None:
            older.replace()

    def release(self, peer: Peer, session: str) -> None:
        if self._speakers.get(session) is peer:
            del self._speakers[session]
            self._controls.gone(session)

    async def control(
        self,
        worker: str,
        action: Action,
        pipeline: str | None = None,
        timeout: float = CONTROL_SECONDS,
    ) -> dict[str, Outcome]:
        """Tell each session of the worker that has a connection now; what became of it, by session.

        Empty when there is none. Waits `timeout` seconds at most. A session that comes back
        within that time by a new connection may still answer, where the old one was
        replaced. Raises TooManyControls.
        """
        peers = {
            id: peer
            for id, peer in self._speakers.items()
            if not peer.successor
            and (session := self.collector.sessions.get(id)) is not None
            and session.worker == worker
        }
        if not peers:
            return {}
        control = self._controls.begin(peers)
        try:
            params = {"id": control.id, "action": action}
            if pipeline is not None:
                params["pipeline"] = pipeline
            line = encode(notification("worker.control", params))
            for peer in peers.values():
                peer.send(line)
            await control.wait(timeout)
        finally:
            self._controls.end(control)
        return control.outcomes

    def controlled(self, session: Session, message: Controlled) -> None:
        """A session has answered a control message."""
        outcome = cast(Outcome, message.outcome)  # the decoder has looked at it
        awaited = self._controls.answer(message.id, session.id, outcome)
        logger.log(
            "INFO" if awaited else "DEBUG",
            "worker {} answered {}{}: {}, session {}",
            session.worker,
            as_name(message.id),
            "" if awaited else ", for which nobody waits",
            outcome,
            session.id,
        )

    def suspect(self, session: str, seconds: float = SUSPECT_SECONDS) -> None:
        """The session has no connection; it may come back."""
        self._suspects[session] = self._monotonic() + seconds

    def await_return(self) -> None:
        """The service has started: whoever was connected before may come back."""
        for session in self.collector.sessions.keys() - self._speakers.keys():
            self.suspect(session, RETURN_SECONDS)
            self._returning.add(session)

    def awaits_return(self) -> bool:
        """Whether somebody from before the start may have more to tell of the time since."""
        now = self._monotonic()
        self._returning &= self._suspects.keys()
        if self._returning:
            self._returned_at = now
        return now < self._returned_at + TELL_SECONDS

    def lose(self, session_id: str, why: str) -> None:
        """Give a suspect session up; one that came back is none."""
        if self._suspects.pop(session_id, None) is None:
            return
        session = self.collector.sessions.get(session_id)
        if session is None:
            return
        runs = len(session.running)
        self.intake.lose(session, self.clock())
        # One of many that ends with nothing in hand is the usual way of forked children.
        usual = not runs and self.collector.workers[session.worker].life is not None
        logger.log(
            "DEBUG" if usual else "WARNING",
            "worker {} lost a process, with {} runs in flight: {}, session {}",
            session.worker,
            runs,
            why,
            session.id,
        )

    def expire(self) -> None:
        """Give up sessions that have been away too long; to be called several times a second."""
        now = self._monotonic()
        passed, self._looked_at = now - self._looked_at, now
        if passed > LOOK_SECONDS:
            # We were stopped, or busy: nobody could have come back in that time.
            self._suspects = {id: at + passed for id, at in self._suspects.items()}
        for session in [id for id, until in self._suspects.items() if until <= now]:
            self.lose(session, "it did not come back")
        self.collector.forget(self.clock())
        self.intake.checkpoint_when_due()

    def _durable(self, session: str) -> None:
        speaker = self._speakers.get(session)
        if speaker is not None:
            speaker.on_durable()


class Peer:
    """One connection to the worker socket.

    `on_replaced` closes it at once; `on_durable` is called when more of what it
    sent is on the disk; `send` writes a line to it, without waiting.
    """

    def __init__(
        self,
        workers: Workers,
        pid: int | None,
        on_replaced: Callable[[], None],
        on_durable: Callable[[], None] = lambda: None,
        send: Callable[[bytes], None] = lambda _line: None,
    ) -> None:
        self.pid = pid
        self.on_durable = on_durable
        self.send = send
        self.successor = False  # it sends what a dead process left; nothing there can obey
        self._workers = workers
        self._on_replaced = on_replaced
        self._session_id = ""  # for which it speaks
        self._left_id = ""  # for which it spoke until the connection ended
        self._refusals_level = "WARNING"

    @property
    def session(self) -> Session | None:
        return self._workers.collector.sessions.get(self._session_id)

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
            result = self._do(method, message, params)
        except Refused as refused:
            self._log_refusal(method, refused.problem)
            raise InvalidParams(problems=[refused.problem]) from None
        except OrbitError:
            raise
        except Exception as error:  # noqa: BLE001  # ours; the next message may fare better
            self._take_number(params, "internal error")
            raise incident(method, error) from None
        return msgspec.to_builtins(result)

    def _do(self, method: str, message: Message, params: Raw | dict[str, Any]) -> Struct:
        if isinstance(message, Connect):
            return self._connect(message)
        session = self.session
        if session is None:
            self._workers.collector.faults["not connected"] += 1
            raise NotConnected(method=method)
        intake, now = self._workers.intake, self._workers.clock()
        match message:
            case Record():
                # A text that had to be mended is in the message alone.
                source = params if isinstance(params, Raw) else msgspec.json.encode(message)
                intake.record(session, message, bytes(source), now)
            case Heartbeat():
                intake.heartbeat(session, message, now)
            case Reset():
                intake.reset(session, now)
                logger.info("worker {} was reset", session.worker)
            case Disconnect():
                self._goodbye(session, message)
            case Controlled():
                self._workers.controlled(session, message)
        return Done()

    def _connect(self, hello: Connect) -> Connected:
        if hello.protocol != PROTOCOL:
            raise UnsupportedProtocol(asked=hello.protocol, supported=PROTOCOL)
        if self.session is not None:
            raise AlreadyConnected()
        answer = self._workers.intake.connect(hello, self._workers.clock())
        self._session_id = hello.session
        self.successor = hello.resume
        self._workers.claim(self, hello.session)
        how = "again" if answer.known else "for the first time"
        if hello.resume:
            how = "by a successor, which sends what it left"
        logger.info("worker {} connected {}, session {}", hello.worker, how, hello.session)
        return answer

    def _goodbye(self, session: Session, message: Disconnect) -> None:
        self._workers.release(self, session.id)
        reason = as_name(message.reason)
        self._workers.intake.disconnect(session, reason, self._workers.clock())
        self._session_id = ""
        logger.info("worker {} left: {}, session {}", session.worker, reason, session.id)

    def _take_number(self, params: Raw | dict[str, Any], reason: str) -> None:
        """A message that cannot be counted consumes its number, so that it is not sent for ever."""
        session = self.session
        if session is None:
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
        uncounted = Uncounted(
            seq=numbers.seq,
            recorded=recorded if type(recorded) is int and 0 <= recorded <= MAX_INT else 0,
            dropped=dropped,
            reason=reason,
        )
        self._workers.intake.refuse(session, uncounted, self._workers.clock())

    def _log_refusal(self, method: str, problem: str) -> None:
        # One line a connection; how many there were, service.info counts.
        level, self._refusals_level = self._refusals_level, "DEBUG"
        who = self.session.worker if self.session else f"pid {self.pid}"
        logger.log(level, "{} from {} refused: {}", method, who, problem)

    # ------------------------------------------------------------ endings

    def replace(self) -> None:
        """Another connection speaks for the session now."""
        self._session_id = ""
        self._on_replaced()

    def vanished(self, process_gone: bool) -> None:
        """The connection ended without goodbye."""
        session, self._session_id = self.session, ""
        if session is None:
            return
        self._workers.release(self, session.id)
        self._left_id = session.id
        self._workers.suspect(session.id)
        if process_gone:
            self.process_gone()

    def process_gone(self) -> None:
        """The process behind the vanished connection has ended: it will not come back."""
        self._workers.lose(self._left_id, "its process is gone")
        self._left_id = ""


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
