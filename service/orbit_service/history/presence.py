"""What a node tells the fleet of its workers every ten seconds, as bytes."""

from __future__ import annotations

import zlib

import msgspec

from orbit_service.core.collector import Collector
from orbit_service.core.fleet import NodeLives
from orbit_service.core.saved import SavedWorker, decoder, encoder, revive, save
from orbit_service.core.sessions import Session
from orbit_service.history.port import HistoryFailed, Member


class _Presence(msgspec.Struct):
    workers: list[SavedWorker]
    sessions: list[Session]
    seen: list[tuple[str, str]]


_encode = encoder().encode
_decode = decoder(_Presence).decode


def dump(collector: Collector) -> bytes:
    """Workers and their lives, without the runs that are remembered one by one."""
    presence = _Presence(
        workers=[save(worker, recent=False) for worker in collector.workers.values()],
        sessions=list(collector.sessions.values()),
        seen=list(collector.pipelines_seen),
    )
    return zlib.compress(_encode(presence), level=1)


def load(member: Member) -> NodeLives:
    """What a member said. Raises HistoryFailed for what cannot be read."""
    try:
        presence = _decode(zlib.decompress(member.state or b""))
        sessions = {session.id: session for session in presence.sessions}
        workers = [revive(saved, sessions, member.node) for saved in presence.workers]
    except (zlib.error, msgspec.DecodeError, ValueError, KeyError) as error:
        raise HistoryFailed(f"what node {member.node} says cannot be read: {error}") from error
    return NodeLives(member.node, member.at_ms, member.alive, workers, set(presence.seen))
