"""
What the journal holds: each thing that was told to the collector, with its moment.

The collector is a function of what it is told and when, so telling it again
makes the same state: `apply` is the one way in, for what arrives and for what is
read from the disk. Bodies are kept in the form in which they came, JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from orbit_rpc_schema.messages import Connect, Heartbeat, Record
from orbit_service.core.checks import Refused
from orbit_service.core.collector import Collector

Kind = Literal[
    "connect",
    "record",
    "heartbeat",
    "refuse",
    "reset",
    "disconnect",
    "lose",
    "close",
    "take",
    "begin",
]


class Event(msgspec.Struct, frozen=True, array_like=True):
    """One thing that happened to a session, or to the outbox, which is nobody's."""

    kind: Kind
    at_ms: int
    session: str
    body: bytes = b""


class Uncounted(msgspec.Struct, frozen=True, array_like=True):
    """The body of `refuse`: what a message that cannot be counted still tells."""

    seq: int
    recorded: int
    dropped: dict[str, int]
    reason: str


class Closed(msgspec.Struct, frozen=True, array_like=True):
    """The body of `close`: whose publication, and of which windows."""

    instance: str
    starts: list[int]
    token: str


class UnknownSession(Exception):
    """An event of a session that is not open: something before it is missing."""


_encode = msgspec.msgpack.Encoder().encode
_events = msgspec.msgpack.Decoder(Event)
_rows = msgspec.msgpack.Decoder(list[msgspec.Raw])
_bodies: dict[str, msgspec.json.Decoder[Any]] = {
    "connect": msgspec.json.Decoder(Connect),
    "record": msgspec.json.Decoder(Record),
    "heartbeat": msgspec.json.Decoder(Heartbeat),
    "refuse": msgspec.json.Decoder(Uncounted),
    "disconnect": msgspec.json.Decoder(str),
    "close": msgspec.json.Decoder(Closed),
    "take": msgspec.json.Decoder(int),
    "begin": msgspec.json.Decoder(str),
}


def row_of(events: list[Event]) -> bytes:
    """One row of the journal."""
    return _encode(events)


def events_of(row: bytes) -> Iterator[Event | Exception]:
    """The events of one row, or why one of them cannot be read. Raises msgspec.DecodeError."""
    for encoded in _rows.decode(row):
        try:
            yield _events.decode(encoded)
        except msgspec.DecodeError as error:
            yield error


def apply_again(collector: Collector, event: Event) -> None:
    """Tell the collector what it was told. Raises for what cannot be read or fits nowhere."""
    body: Any = _bodies[event.kind].decode(event.body) if event.kind in _bodies else None
    if event.kind == "connect":
        collector.connect(body, event.at_ms)
        return
    if event.kind == "close":
        collector.outbox.close(body.instance, body.starts, body.token)
        return
    if event.kind == "begin":
        collector.outbox.begin_anew(body)
        return
    if event.kind == "take":
        collector.outbox.take(body)
        return
    session = collector.sessions.get(event.session)
    if session is None:
        raise UnknownSession(event.session)
    match event.kind:
        case "record":
            try:
                collector.record(session, body, event.at_ms)
            except Refused:
                pass  # and counted as such, as it was the first time
        case "heartbeat":
            collector.heartbeat(session, body, event.at_ms)
        case "refuse":
            collector.refuse(
                session, body.seq, body.recorded, body.dropped, None, event.at_ms, body.reason
            )
        case "reset":
            collector.reset(session, event.at_ms)
        case "disconnect":
            collector.disconnect(session, body, event.at_ms)
        case "lose":
            collector.lose(session, event.at_ms)
