"""What is kept of alerts, and the port to where it is kept."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from orbit_rpc_schema.alerts import Kind
from orbit_service.alerts.messages import Message

FILE = "alerts.sqlite"  # beside the state of a node
MAX_UNWRITTEN = 10_000  # entries that wait for the disk
MAX_PARCELS = 10_000  # messages that wait to be delivered


class StoreFailed(Exception):
    """The database cannot be used now; the text says why."""


class LeaseLost(StoreFailed):
    """Another hub evaluates now; what this one made of it is not written."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the audit."""

    at_ms: int
    kind: Kind
    text: str
    rule: str = ""
    alert: str = ""
    labels: dict[str, str] = {}
    who: str | None = None
    details: dict[str, Any] = {}


class Parcel(msgspec.Struct):
    """A message on its way to a channel."""

    key: str
    channel: str
    created_ms: int
    next_ms: int
    tries: int
    message: Message


@dataclass
class Unwritten:
    """What has changed since the last transaction."""

    documents: dict[str, bytes] = field(default_factory=dict)
    entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=MAX_UNWRITTEN))
    parcels: dict[str, Parcel | None] = field(default_factory=dict)  # None: it has left

    def __bool__(self) -> bool:
        return bool(self.documents or self.entries or self.parcels)


class Store(Protocol):
    """A database of alerts. Its methods may take long, and raise StoreFailed."""

    def load(self) -> tuple[dict[str, bytes], list[Parcel]]:
        """Documents by name, and what waits to be delivered."""

    def take_lease(self) -> bool:
        """Whether this one evaluates for the next while; of a node, always."""

    def give_lease_up(self) -> None:
        """Let another evaluate at once."""

    def write(self, unwritten: Unwritten) -> None:
        """All of it or nothing. Raises LeaseLost too."""

    def audit(
        self,
        from_ms: int,
        to_ms: int,
        limit: int,
        *,
        rule: str | None = None,
        alert: str | None = None,
        kind: str | None = None,
    ) -> list[tuple[int, Entry]]:
        """The newest entries of a range with their numbers, newest first."""

    def close(self) -> None:
        """Give back what is open."""
