"""
Workers and sessions as bytes, and back: MessagePack of the core's own types.

For the checkpoint of the state and for what a node tells the fleet. A field that is
added with a default reads what an older release wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from orbit_service.core.histogram import Histogram
from orbit_service.core.recent import Column, RecentRuns
from orbit_service.core.sessions import EndedLife, Life, Session, Worker


class SavedWorker(msgspec.Struct):
    """A worker; of its sessions the ids."""

    name: str
    last_seen_ms: int
    sessions: list[str]
    life: Life | None
    last_life: EndedLife | None
    recent: list[Column]


def save(worker: Worker, *, recent: bool = True) -> SavedWorker:
    return SavedWorker(
        name=worker.name,
        last_seen_ms=worker.last_seen_ms,
        sessions=list(worker.sessions),
        life=worker.life,
        last_life=worker.last_life,
        recent=list(worker.recent.columns) if recent else [],
    )


def revive(saved: SavedWorker, sessions: Mapping[str, Session], node: str) -> Worker:
    return Worker(
        name=saved.name,
        last_seen_ms=saved.last_seen_ms,
        node=node,
        sessions={id: sessions[id] for id in saved.sessions},
        life=saved.life,
        last_life=saved.last_life,
        recent=RecentRuns(saved.recent),
    )


def encoder() -> msgspec.msgpack.Encoder:
    return msgspec.msgpack.Encoder(enc_hook=_encoded)


def decoder(type: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(type, dec_hook=_decoded)


def _encoded(value: Any) -> bytes:
    if isinstance(value, Histogram):
        return value.encode()
    raise NotImplementedError(f"there is no form for {type(value).__name__}")


def _decoded(_type: type, value: Any) -> Histogram:
    return Histogram.decode(value)
