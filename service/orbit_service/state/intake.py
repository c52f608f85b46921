"""
The collector behind its journal: what it is told is written down, and can be told again.

Everything that changes the collector goes through here. It changes at once, in
memory; `session.durable` follows when the event is on the disk, and that is the
number that workers are told. Without a journal the memory is all there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from uuid import uuid4

import msgspec
from loguru import logger

from orbit_rpc_schema.messages import Connect, Connected, Heartbeat, Record
from orbit_service.core.checks import Refused
from orbit_service.core.collector import Collector
from orbit_service.core.outbox import CLOSED, TAKEN, Window
from orbit_service.core.sessions import Session
from orbit_service.state.checkpoint import Unreadable, dump, load
from orbit_service.state.events import Closed, Event, Kind, Uncounted, apply_again, events_of
from orbit_service.state.journal import Journal, Marks
from orbit_service.state.store import Saved, Store, StoreFailed

_json = msgspec.json.Encoder().encode


class Intake:
    """One for a service. `on_durable` is called with a session whose number has moved,
    `on_closed` with the windows that close, by their start.
    """

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.journal: Journal | None = None
        self.on_durable: Callable[[str], None] = lambda _session: None
        self.on_closed: Callable[[Mapping[int, Window]], None] = lambda _windows: None
        self._waiting: list[tuple[int, asyncio.Event]] = []

    # ------------------------------------------------------------ what is told

    def connect(self, hello: Connect, now_ms: int) -> Connected:
        """Open a session or take it up again. Raises Refused."""
        answer = self.collector.connect(hello, now_ms)
        session = self.collector.sessions[hello.session]
        self._write("connect", session, now_ms, _json(hello))
        # What is counted and not on the disk yet is sent again, and passed over.
        answer.acked = session.durable
        return answer

    def record(self, session: Session, message: Record, params: bytes, now_ms: int) -> None:
        """Count a message of results; `params` is the JSON it was read from. Raises Refused."""
        if message.seq <= session.acked:
            return
        try:
            self.collector.record(session, message, now_ms)
        except Refused:
            self._write("record", session, now_ms, params)
            raise
        self._write("record", session, now_ms, params)
        if message.hurry and self.journal is not None:
            self.journal.hurry()

    def refuse(self, session: Session, uncounted: Uncounted, now_ms: int) -> None:
        """A message that cannot be counted consumes its number."""
        if uncounted.seq <= session.acked:
            return
        self.collector.refuse(
            session,
            uncounted.seq,
            uncounted.recorded,
            uncounted.dropped,
            None,
            now_ms,
            uncounted.reason,
        )
        self._write("refuse", session, now_ms, _json(uncounted))

    def heartbeat(self, session: Session, beat: Heartbeat, now_ms: int) -> None:
        """A sign of life; written down only if its totals are news, so that idleness is not."""
        if beat.seq <= session.acked:
            return
        before = (session.ledger.recorded, session.dropped)
        self.collector.heartbeat(session, beat, now_ms)
        if (session.ledger.recorded, session.dropped) != before:
            self._write("heartbeat", session, now_ms, _json(beat))
        elif self.journal is None or session.durable >= session.written:
            session.durable = session.acked
        else:
            self.journal.mark(session.id, session.acked)

    def reset(self, session: Session, now_ms: int) -> None:
        self.collector.reset(session, now_ms)
        self._write("reset", session, now_ms)

    def disconnect(self, session: Session, reason: str, now_ms: int) -> None:
        self.collector.disconnect(session, reason, now_ms)
        self._write("disconnect", session, now_ms, _json(reason))

    def lose(self, session: Session, now_ms: int) -> None:
        self.collector.lose(session, now_ms)
        self._write("lose", session, now_ms)

    # ------------------------------------------------------------ what the history is given

    def close_windows(self, now_ms: int) -> None:
        """Make a publication of the windows that are over, if there are any."""
        if starts := self.collector.outbox.over(now_ms):
            self._close(starts, now_ms)

    def close_every_window(self, now_ms: int) -> None:
        """Make a publication of all there are, of none too: it gives the instance its name."""
        self._close(list(self.collector.outbox.windows), now_ms)

    def _close(self, starts: list[int], now_ms: int) -> None:
        outbox = self.collector.outbox
        self.on_closed({start: outbox.windows[start] for start in starts})
        closed = Closed(outbox.instance or uuid4().hex, starts, uuid4().hex)
        outbox.close(closed.instance, closed.starts, closed.token)
        self._write_outbox("close", CLOSED, outbox.number, now_ms, _json(closed))

    def taken(self, number: int, now_ms: int) -> None:
        """The history has taken everything up to this number."""
        outbox = self.collector.outbox
        if number > outbox.taken:
            outbox.take(number)
            self._write_outbox("take", TAKEN, number, now_ms, _json(number))

    def begin_anew(self, number: int, now_ms: int) -> None:
        """Somebody has published this number as our instance, and it was not us."""
        logger.error(
            "the history has publication {} of this state, which did not make it: the state was "
            "restored from a backup, or copied. It goes on as another; runs that were on their way "
            "to the history then may count twice",
            number,
        )
        outbox, instance = self.collector.outbox, uuid4().hex
        outbox.begin_anew(instance)
        self._write_outbox("begin", CLOSED, outbox.number, now_ms, _json(instance))

    def _write_outbox(self, kind: Kind, mark: str, number: int, now_ms: int, body: bytes) -> None:
        if self.journal is None:
            self.collector.outbox.committed({mark: number})
        else:
            self.journal.append(Event(kind, now_ms, mark, body), number)

    def _write(self, kind: Kind, session: Session, now_ms: int, body: bytes = b"") -> None:
        session.written = session.acked
        if self.journal is None:
            session.durable = session.acked
            return
        self.journal.append(Event(kind, now_ms, session.id, body), session.acked)

    # ------------------------------------------------------------ what is on the disk

    async def settle(self, seconds: float) -> bool:
        """Wait until everything that is counted now is on the disk; False when it is not in time.

        Where the disk is known not to take anything, at once.
        """
        journal = self.journal
        if journal is None:
            return True
        if journal.trouble is not None:
            return False
        wanted = journal.told
        if journal.on_disk >= wanted:
            return True
        there = asyncio.Event()
        self._waiting.append((wanted, there))
        journal.write_at_once()
        try:
            await asyncio.wait_for(there.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            self._waiting.remove((wanted, there))
        return True

    def committed(self, marks: Marks) -> None:
        """The journal has written this far."""
        collector = self.collector
        collector.outbox.committed(marks)
        assert self.journal is not None
        for wanted, there in self._waiting:
            if self.journal.on_disk >= wanted:
                there.set()
        for id, seq in marks.items():
            session = collector.sessions.get(id) or collector.ended_sessions.get(id)
            if session is not None and seq > session.durable:
                session.durable = seq
                self.on_durable(id)

    def checkpoint(self) -> None:
        """Hand the whole state to the journal."""
        if self.journal is not None:
            marks = {session.id: session.acked for session in self.collector.sessions.values()}
            self.journal.checkpoint(dump(self.collector), marks | self.collector.outbox.marks())

    def checkpoint_when_due(self) -> None:
        if self.journal is not None and self.journal.wants_checkpoint():
            self.checkpoint()

    def adopt(self, saved: Saved) -> None:
        """What was saved could be read only now: go on from there with what came since.

        Sessions are the same by their numbers, so nothing counts twice.
        """
        assert self.journal is not None
        earlier = restored(saved, self.collector.node)
        for event in self.journal.pending():
            _apply(earlier, event)
        earlier.faults.update(self.collector.faults)
        self.collector.become(earlier)
        self.checkpoint()


def opened(store: Store, node: str) -> tuple[Collector, int, str | None]:
    """The collector as it was left, its position, and why it could not be read, if so.

    Raises StateInUse. A file that cannot be used is put aside and a new one begun.
    """
    try:
        saved = store.open()
        try:
            collector = restored(saved, node)
        except Unreadable as why:
            store.set_aside("unreadable", str(why))
            saved = store.open()
            collector = Collector(node)
    except StoreFailed as why:
        logger.error("the state cannot be read: {}; runs are counted in memory", why)
        return Collector(node), 0, str(why)
    if store.aside:
        logger.error("a state file that cannot be used was put aside: {}", store.aside)
    if saved.empty:
        logger.info("no state in {}: everything begins at zero", store.folder)
    else:
        logger.info(
            "state in {}: {} results counted, {} sessions were open",
            store.folder,
            collector.ledger.counted,
            len(collector.sessions),
        )
    return collector, saved.position, None


def restored(saved: Saved, node: str) -> Collector:
    """The collector as it was when the last row was committed. Raises Unreadable."""
    collector = Collector(node)
    if saved.checkpoint is not None:
        load(saved.checkpoint, collector)
    for row in saved.journal:
        try:
            for event in events_of(row):
                _apply(collector, event)
        except msgspec.DecodeError as error:
            _set_aside(collector, error)
    for session in collector.sessions.values():
        session.durable = session.written = session.acked
    collector.outbox.committed(collector.outbox.marks())
    return collector


def _apply(collector: Collector, event: Event | Exception) -> None:
    if isinstance(event, Exception):
        _set_aside(collector, event)
        return
    try:
        apply_again(collector, event)
    except Exception as error:  # noqa: BLE001  # one that cannot be told must not stop the others
        _set_aside(collector, error)


def _set_aside(collector: Collector, error: Exception) -> None:
    if not collector.faults["journal"]:
        logger.opt(exception=error).error("a part of the journal cannot be read; the rest goes on")
    collector.faults["journal"] += 1
