"""
The writer: one thread that puts on the disk what the loop hands it, and says when it is there.

The loop appends events and goes on. The thread writes what has gathered in one
transaction: at once when it has been idle, else after a short rest. Only then
the sequence numbers in it count as durable and are acknowledged.

Whatever the disk does, the service goes on in memory. What waits for the disk is
bounded: over the bound the events are let go, and a checkpoint, which holds all
that they did, is written in their place when the disk is back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from loguru import logger

from orbit_service.core.stats import Stats
from orbit_service.state.events import Event, row_of
from orbit_service.state.store import Saved, StateInUse, Store, StoreFailed

# After a commit the writer rests nine times as long as one takes, so that it works a
# tenth of the time: a worker that flushes waits for 5 ms where the disk is quick, and
# a slow disk is not kept busy. What comes meanwhile shares the next transaction. It is
# the quickest of the last few that counts: a slow disk is always slow, and one that took
# long because the loop was busy just then (a scrape) is no reason to let workers wait.
REST = 9.0
LONGEST_REST = 0.2
# Where no worker has said that it waits, it rests longer: a commit takes as much CPU as ten
# runs that come one by one.
UNHURRIED_REST = 0.05
LAST_COMMITS = 32
EVENT_BYTES = 100  # of an event besides its body, about
MAX_PENDING = 16 * 1_048_576  # bytes of events that wait for the disk
CHECKPOINT_BYTES = 16 * 1_048_576  # of journal; more would make the next start slow
CHECK_SECONDS = 2.0  # an idle writer looks whether its file is still there
FIRST_RETRY = 0.25
LAST_RETRY = 5.0
STOP_SECONDS = 10.0

Marks = dict[str, int]  # by session: the highest sequence number


@dataclass
class _Batch:
    """What has gathered for one transaction."""

    events: list[Event] = field(default_factory=list)
    size: int = 0
    marks: Marks = field(default_factory=dict)
    checkpoint: bytes | None = None
    told: int = 0  # how much had been told to the journal, this batch included

    def __bool__(self) -> bool:
        return bool(self.events or self.marks) or self.checkpoint is not None


class Loop:
    """The event loop, and what the thread tells it by `post` (loop.call_soon_threadsafe)."""

    def __init__(
        self,
        soon: Callable[[Callable[[], None]], object],
        post: Callable[..., object],
        committed: Callable[[Marks], None],
        checkpoint_wanted: Callable[[], None],
        opened: Callable[[Saved], None],
    ) -> None:
        self.soon = soon
        self.post = post
        self.committed = committed
        self.checkpoint_wanted = checkpoint_wanted
        self.opened = opened


class Journal:
    """Owns the store once it is started.

    `trouble` says why nothing can be written now, or is None. `opened` is False
    where the store could not be opened at the start: its content is then read when
    it can be, and `Loop.opened` gets it.
    """

    def __init__(self, store: Store, loop: Loop, position: int, trouble: str | None = None) -> None:
        self.trouble = trouble
        self.failures = 0
        self.commits = 0
        self.written_bytes = 0
        self.commit_times = Stats()
        self.told = 0  # how much was ever handed over, ...
        self.on_disk = 0  # ... and how much of it is on the disk
        self._store = store
        self._loop = loop
        self._position = position
        self._opened = trouble is None
        self._adopting = False  # the loop reads what was saved; nothing is written meanwhile
        self._condition = threading.Condition(threading.RLock())
        self._next = _Batch()
        self._since_checkpoint = 0
        # Events were let go, or the file is another: a checkpoint has to come first.
        self._needs_checkpoint = False
        self._asked = False
        self._stopping = False
        self._rest_until = self._unhurried_until = 0.0
        self._idle = False  # the thread waits for something to write
        self._last_commits: deque[float] = deque(maxlen=LAST_COMMITS)
        self._at_once = self._hurried = False
        self._retry_after = FIRST_RETRY
        self._thread = threading.Thread(target=self._run, name="orbit-journal", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # ------------------------------------------------------------ the loop's side

    def append(self, event: Event, seq: int) -> None:
        """Something happened; with it, the session has got to `seq`."""
        with self._condition:
            if not self._needs_checkpoint:
                self._next.events.append(event)
                self._next.size += len(event.body) + EVENT_BYTES
            self.mark(event.session, seq)
            if self._next.size > MAX_PENDING:
                self._let_go()

    def mark(self, session: str, seq: int) -> None:
        """`session` has got to `seq` without an event: it counts with what came before."""
        with self._condition:
            self.told += 1
            if not self._needs_checkpoint:
                self._next.marks[session] = seq
                self._next.told = self.told
            if self._idle:
                # After this turn of the loop, so that what comes with it is written with it.
                # While the thread writes or rests it needs no waking, which would cost more
                # than counting a run does.
                self._idle = False
                self._loop.soon(self._wake)

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify()

    def pending(self) -> list[Event]:
        """The events that wait, for `Loop.opened` to be told again."""
        with self._condition:
            return list(self._next.events)

    def checkpoint(self, state: bytes, marks: Marks) -> None:
        """Write the state as it is now; it holds every event so far, `marks` of all sessions."""
        with self._condition:
            self._adopting = False
            self._next.events.clear()
            self._next.size = 0
            self._next.checkpoint = state
            self._next.told = self.told
            self._next.marks.update(marks)
            self._needs_checkpoint = self._asked = False
            self._since_checkpoint = 0
            self._condition.notify()

    def wants_checkpoint(self) -> bool:
        """True when the journal has grown enough; the caller then gives one."""
        return self._since_checkpoint > CHECKPOINT_BYTES and not self._needs_checkpoint

    def write_at_once(self) -> None:
        """Somebody waits for what was told: write it without a rest."""
        with self._condition:
            self._at_once = True
            self._condition.notify()

    def hurry(self) -> None:
        """A worker waits, one of many: write it after the short rest."""
        with self._condition:
            if not self._hurried:
                self._hurried = True
                self._condition.notify()

    @property
    def waiting(self) -> int:
        """Bytes that are not on the disk yet."""
        return self._next.size

    def stop(self, state: bytes) -> None:
        """Write the state once more and end the thread; waits for it."""
        with self._condition:
            if not self._adopting:
                self.checkpoint(state, {})
            self._stopping = True
            self._condition.notify()
        self._thread.join(STOP_SECONDS)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            try:
                if not self._opened:
                    self._open()
                batch = self._gather()
                if batch:
                    self._write(batch)
                elif not self._stopping:
                    self._store.check()
                self._recovered()
                if self._stopping and (self._adopting or not self._next):
                    break
            except Exception as error:  # noqa: BLE001  # else nothing is acknowledged any more
                if not isinstance(error, StoreFailed):
                    logger.opt(exception=error).error("the writer of the state failed")
                self._failed(str(error))
                if self._stopping:
                    logger.error("left without the state on the disk: {}", error)
                    break
                self._rest(self._retry_after)
                self._retry_after = min(self._retry_after * 2, LAST_RETRY)
                self._reopen()
        self._store.close()

    def _gather(self) -> _Batch:
        """What is to be written now; nothing when it is time to look at the file."""
        with self._condition:
            for until, over in (
                (self._unhurried_until, lambda: self._hurried or self._at_once or self._stopping),
                (self._rest_until, lambda: self._at_once or self._stopping),
            ):
                self._condition.wait_for(over, timeout=until - time.monotonic())
            if not self._next:
                self._idle = True
            self._condition.wait_for(
                lambda: (self._next and not self._adopting) or self._stopping,
                timeout=CHECK_SECONDS,
            )
            self._idle = False
            if self._adopting:
                return _Batch()
            self._at_once = self._hurried = False
            if self._needs_checkpoint and self._next.checkpoint is None:
                # The loop was asked for it; without it nothing may be written.
                if not self._asked:
                    self._ask_for_checkpoint()
                self._condition.wait(LAST_RETRY)
                return _Batch()
            batch, self._next = self._next, _Batch()
            return batch

    def _write(self, batch: _Batch) -> None:
        events = row_of(batch.events) if batch.events else None
        began = time.monotonic()
        try:
            self._put(batch.checkpoint, events)
        except Exception:
            self._put_back(batch)
            raise
        if events is not None or batch.checkpoint is not None:
            now = time.monotonic()
            took_us = round((now - began) * 1_000_000)
            self._loop.post(self.commit_times.add_runs, (took_us,), 0, 0)
            self._last_commits.append(now - began)
            self._rest_until = now + min(REST * min(self._last_commits), LONGEST_REST)
            self._unhurried_until = max(self._rest_until, now + UNHURRIED_REST)
            self.commits += 1
            self.written_bytes += len(events or b"") + len(batch.checkpoint or b"")
            self._since_checkpoint += len(events or b"")
        self.on_disk = max(self.on_disk, batch.told)
        self._loop.post(self._loop.committed, batch.marks)

    def _put(self, checkpoint: bytes | None, events: bytes | None) -> None:
        # A failed transaction may have been committed all the same: the number of a
        # row is taken again until it is known to be there, and the row replaced.
        if checkpoint is not None:
            self._store.write(self._position + 1, None, checkpoint)
            self._position += 1
        if events is not None:
            self._store.write(self._position + 1, events)
            self._position += 1

    def _put_back(self, batch: _Batch) -> None:
        with self._condition:
            later, self._next = self._next, batch
            batch.marks.update(later.marks)
            batch.told = max(batch.told, later.told)
            if later.checkpoint is not None:
                batch.checkpoint = later.checkpoint
                batch.events, batch.size = later.events, later.size
            elif batch.checkpoint is not None:
                # Large, and out of date by the time the disk is back.
                self._let_go()
            else:
                batch.events += later.events
                batch.size += later.size
                if batch.size > MAX_PENDING:
                    self._let_go()

    def _let_go(self) -> None:
        """Forget what waits; the checkpoint that has to come holds it."""
        self._next.events.clear()
        self._next.marks.clear()
        self._next.size = self._next.told = 0
        self._next.checkpoint = None
        self._needs_checkpoint, self._asked = True, False

    def _ask_for_checkpoint(self) -> None:
        self._asked = True
        self._loop.post(self._loop.checkpoint_wanted)

    # ------------------------------------------------------------ trouble

    def _failed(self, why: str) -> None:
        self.failures += 1
        if why != self.trouble:
            logger.error("the state cannot be written: {}; runs are counted in memory", why)
        self.trouble = why

    def _recovered(self) -> None:
        self._retry_after = FIRST_RETRY
        waits = self._needs_checkpoint or self._next.checkpoint is not None
        if self.trouble is not None and not waits:
            logger.info("the state is written again")
            self.trouble = None

    def _rest(self, seconds: float) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._stopping, timeout=seconds)

    def _reopen(self) -> None:
        """After a failure: a file that is gone or another is made anew, and filled from memory."""
        if not self._opened:
            return
        file = self._store.file
        try:
            saved = self._store.open()
        except (StoreFailed, StateInUse) as why:
            self._failed(str(why))
            return
        # The next row may be there already, if only the word of it was lost.
        if self._store.file != file or saved.position not in (self._position, self._position + 1):
            with self._condition:
                self._let_go()
            logger.warning("the state in {} was lost; it is written anew", self._store.folder)

    def _open(self) -> None:
        """What could not be opened at the start."""
        try:
            saved = self._store.open()
            if not saved.empty and self._needs_checkpoint:
                # Too much has happened since to be told again to what was saved.
                self._store.set_aside("unread", "it could not be opened in time")
                saved = self._store.open()
        except StateInUse as used:
            raise StoreFailed(str(used)) from None
        self._opened = True
        self._position = saved.position
        if self._store.aside:
            logger.error("a state file that cannot be used was put aside: {}", self._store.aside)
        if not saved.empty:
            self._adopting = True
            self._loop.post(self._loop.opened, saved)
