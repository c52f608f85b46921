"""
The past as it is known here: what the history has, and what it does not have yet.

Both are read so that nothing counts twice: first the open windows and the
publications that wait are noted, then the history is read, which says in the same
snapshot up to which number it has taken them; of the noted ones those after it are
added. If it has taken one that was made after the noting, all is read again.

Reading, adding and answering is done in threads: a month of many series takes longer
than the workers' socket can wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any, Protocol, TypeVar

from orbit_rpc_schema.errors import HistoryUnavailable
from orbit_service.core.outbox import EVERYTHING, ErrorText, Key, Outbox, Unpublished
from orbit_service.core.rollup import Segment
from orbit_service.core.stats import Stats
from orbit_service.history.port import History, HistoryFailed, Wanted
from orbit_service.threads import start_thread

READ_SECONDS = 30.0  # then the caller is told that there is no answer
AT_ONCE = 3  # readings; each is a thread, and a connection
MAX_WAITING = 50
TRIES = 5  # a publication is made every ten seconds

T = TypeVar("T")


class Adder(Protocol):
    def add(self, start_ms: int, node: str, key: Key, stats: Stats) -> None: ...


A = TypeVar("A", bound=Adder)


class Archive:
    """Answers from the history and, of the own node, from the outbox. For one event loop."""

    def __init__(
        self,
        history: Callable[[], History],
        node: str,
        outbox: Callable[[], Outbox],
    ) -> None:
        self._history = history
        self._node = node
        self._outbox = outbox
        self._places = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def read(
        self,
        wanted: Wanted,
        make: Callable[[], A],
        answer: Callable[[A], T],
        noted: Callable[[], None] | None = None,
    ) -> T:
        """What `answer` makes of all rows that are wanted, added to what `make` makes.

        With `noted` of windows that have closed alone: those that close after it was
        called, in the loop and maybe several times, are not among them.
        Raises HistoryUnavailable, and what those two raise; they run in a thread.
        """

        def read(outbox: Outbox, own: Unpublished) -> T | None:
            total, until = make(), monotonic() + READ_SECONDS

            def add(start_ms: int, node: str, key: Key, stats: Stats) -> None:
                if monotonic() > until:
                    raise HistoryFailed("there is too much to be read in time")
                total.add(start_ms, node, key, stats)

            taken = self._history().read(wanted, add)
            now = self._outbox()
            # The first window to close gives the instance its name, maybe meanwhile.
            number, token = taken.get(now.instance, (0, ""))
            if token not in now.tokens():
                number = 0  # not ours, but of the state of which this one is a copy
            changed = now is not outbox or own.instance not in ("", now.instance)
            if changed or number > own.number:
                return None
            for start_ms, key, stats in own.after(number):
                # What is to be published yet is not whoever's it is given to.
                total.add(start_ms, self._node, key, stats.copy())
            return answer(total)

        async with self._place() as place:
            for _ in range(TRIES):
                outbox = self._outbox()
                own = outbox.unpublished(lambda start, key: _is_wanted(wanted, start, key))
                if noted is not None:
                    own.open_rows.clear()
                    noted()
                found = await place.run(partial(read, outbox, own))
                if found is not None:
                    return found
        raise HistoryUnavailable(why="windows close faster than they are read")

    async def error_texts(self, wanted: Wanted) -> dict[tuple[str, Key], ErrorText]:
        """The newest error of each type. Raises HistoryUnavailable."""
        outbox = self._outbox()
        sources = [*(p.errors for p in outbox.waiting), dict(outbox.errors)]
        async with self._place() as place:
            texts = await place.run(lambda: self._history().error_texts(wanted))
        if wanted.node not in (None, self._node):
            return texts
        for source in sources:
            for key, text in source.items():
                mine = (self._node, key)
                if _is_about(wanted, key) and (
                    mine not in texts or text.at_ms >= texts[mine].at_ms
                ):
                    texts[mine] = text
        return texts

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[_Place]:
        """A place among those that read at once; errors of the history are explained."""
        if self._waiting >= MAX_WAITING:
            raise HistoryUnavailable(why=f"{MAX_WAITING} questions wait for it already")
        self._waiting += 1
        place = _Place(self._places)
        try:
            async with asyncio.timeout(READ_SECONDS):
                await self._places.acquire()
                try:
                    yield place
                finally:
                    place.leave()
        except TimeoutError:
            raise HistoryUnavailable(why=f"no answer within {READ_SECONDS:g} s") from None
        except HistoryFailed as error:
            raise HistoryUnavailable(why=str(error)) from None
        finally:
            self._waiting -= 1


class _Place:
    """Given back when its thread has ended, which may be long after nobody waits for it."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._working: asyncio.Future[Any] | None = None

    async def run(self, work: Callable[[], T]) -> T:
        done = start_thread(work, "orbit-history-read")
        self._working = done
        return await asyncio.shield(done)

    def leave(self) -> None:
        if self._working is None or self._working.done():
            self._places.release()
        else:
            self._working.add_done_callback(self._left_late)

    def _left_late(self, done: asyncio.Future[Any]) -> None:
        if not done.cancelled():
            done.exception()  # nobody waits for it
        self._places.release()


def _is_wanted(wanted: Wanted, start_ms: int, key: Key) -> bool:
    return _is_about(wanted, key) and any(_holds(s, start_ms) for s in wanted.segments)


def _holds(segment: Segment, start_ms: int) -> bool:
    return segment.start_ms <= start_ms < segment.end_ms


def _is_about(wanted: Wanted, key: Key) -> bool:
    """The rule of the database's query, for a row in memory."""
    if wanted.total:
        return not (key.step or key.error)
    if key == EVERYTHING:
        return False
    kind = wanted.steps if key.step else wanted.errors if key.error else wanted.runs
    return kind and wanted.worker in (None, key.worker) and wanted.pipeline in (None, key.pipeline)
