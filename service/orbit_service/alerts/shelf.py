"""
What is kept: the memory that counts while the service runs, and the disk that follows it.

A full disk keeps nobody from being told: what could not be written is kept, within bounds,
and written when it can be.
"""

from __future__ import annotations

from collections.abc import Mapping

from loguru import logger

from orbit_rpc_schema.errors import AlertsUnavailable
from orbit_service.alerts.records import (
    MAX_PARCELS,
    Entry,
    LeaseLost,
    Parcel,
    Store,
    StoreFailed,
    Unwritten,
)


class Shelf:
    """Messages on their way, and what has changed since the last transaction.

    `store` of None: nothing is kept.
    """

    def __init__(self, store: Store | None) -> None:
        self.trouble: str | None = None  # why nothing can be written
        self.parcels: dict[str, Parcel] = {}  # that may be sent
        self._lost = 0  # entries for which there was no place while nothing could be written
        self._store = store
        self._unwritten = Unwritten()
        self._posted: list[Parcel] = []  # in this transaction; nothing of it is sent before
        self._documents: dict[str, bytes] = {}  # as they were written last

    def load(self) -> dict[str, bytes]:
        """Documents by name. Raises StoreFailed."""
        if self._store is None:
            return {}
        documents, parcels = self._store.load()
        self._documents = dict(documents)
        self.parcels = {parcel.key: parcel for parcel in parcels}
        return documents

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
        """Entries with their numbers, newest first. Raises AlertsUnavailable."""
        if self._store is None:
            raise AlertsUnavailable(why="nothing is kept here: ORBIT_STATE is none")
        try:
            return self._store.audit(from_ms, to_ms, limit, rule=rule, alert=alert, kind=kind)
        except StoreFailed as error:
            self._write_all()
            raise AlertsUnavailable(why=str(error)) from None

    # ------------------------------------------------------------ messages

    def post(self, parcel: Parcel) -> Parcel | None:
        """Put a message in; it may be sent once it is written. What it pushes out, if anything."""
        oldest = next(iter(self.parcels.values())) if len(self.parcels) >= MAX_PARCELS else None
        if oldest is not None:
            self.leave(oldest)
        self._unwritten.parcels[parcel.key] = parcel
        self._posted.append(parcel)
        return oldest

    def change(self, parcel: Parcel) -> None:
        """One that is there is tried later."""
        self.parcels[parcel.key] = self._unwritten.parcels[parcel.key] = parcel

    def leave(self, parcel: Parcel) -> None:
        self.parcels.pop(parcel.key, None)
        self._unwritten.parcels[parcel.key] = None

    def due(self, channel: str, now_ms: int, most: int) -> list[Parcel]:
        """What is to be sent through a channel now, oldest first."""
        # Asked while a look may go on in a thread, which changes what is there.
        parcels = list(self.parcels.values())
        mine = (p for p in parcels if p.channel == channel and p.next_ms <= now_ms)
        return sorted(mine, key=lambda parcel: parcel.created_ms)[:most]

    def waiting(self, channel: str) -> int:
        return sum(parcel.channel == channel for parcel in list(self.parcels.values()))

    # ------------------------------------------------------------ the disk

    def note_down(self, entry: Entry) -> None:
        entries = self._unwritten.entries
        if len(entries) == entries.maxlen:
            self._lost += 1
        entries.append(entry)

    def commit(self, documents: Mapping[str, bytes]) -> None:
        """Write what is new; what cannot be written stays to be written. Raises LeaseLost."""
        if self._store is None:
            self._unwritten = Unwritten()
            self._send_on()
            return
        for name, body in documents.items():
            if self._documents.get(name) != body:
                self._unwritten.documents[name] = body
        if not self._unwritten and self.trouble is None:
            return
        try:
            self._store.write(self._unwritten)
        except LeaseLost:
            raise
        except StoreFailed as error:
            if self.trouble is None:
                logger.error("alerts cannot be written: {}; they are kept in memory", error)
            self.trouble = str(error)
            self._write_all()
            self._send_on()
            return
        if self.trouble is not None:
            logger.info("alerts are written again, without {} entries of the audit", self._lost)
        self.trouble, self._lost = None, 0
        self._documents.update(self._unwritten.documents)
        self._unwritten = Unwritten()
        self._send_on()

    def _send_on(self) -> None:
        """What was put in may be sent: it is on the disk, or that takes nothing."""
        for parcel in self._posted:
            self.parcels[parcel.key] = parcel
        self._posted = []

    def _write_all(self) -> None:
        """After a failure: of what was written before nobody knows whether it is there."""
        self._documents = {}
        self._unwritten.parcels.update(self.parcels)
