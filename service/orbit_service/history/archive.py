"""
The past as it is known here: what the history has, and what it does not have yet.

Both are read so that nothing counts twice: first the open windows and the
publications that wait are noted, then the history is read, which says in the same
snapshot up to which number it has taken them; of the noted ones those after it are
added. If it has taken one that was made after the noting, all is read again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from orbit_rpc_schema.errors import HistoryUnavailable
from orbit_service.core.outbox import EVERYTHING, ErrorText, Key, Outbox
from orbit_service.core.rollup import Segment
from orbit_service.core.stats import Stats
from orbit_service.history.port import History, HistoryFailed, Wanted

READ_SECONDS = 30.0  # then the caller is told that there is no answer
AT_ONCE = 3  # readings; each is a thread
MAX_WAITING = 50
TRIES = 5  # a publication is made every ten seconds

T = TypeVar("T")


class Adder(Protocol):
    def add(self, start_ms: int, node: str, key: Key, stats: Stats) -> None: ...


A = TypeVar("A", bound=Adder)


class Archive:
    """Answers from the history and, of the own node, from the outbox. For one event loop."""

    def __init__(
        self, history: Callable[[], History], node: str, outbox: Callable[[], Outbox]
    ) -> None:
        self._history = history
        self._node = node
        self._outbox = outbox
        self._places = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def read(self, wanted: Wanted, make: Callable[[], A]) -> A:
        """All rows that are wanted, added to what `make` makes. Raises HistoryUnavailable."""
        for _ in range(TRIES):
            outbox = self._outbox()
            made = outbox.number
            noted = [row for row in outbox.unpublished() if _is_wanted(wanted, row[1], row[2])]
            total = make()
            taken = await self._in_thread(partial(self._read, wanted, total))
            # The first window to close gives the instance its name, maybe meanwhile.
            number = taken.get(self._outbox().instance, 0)
            if number > made or self._outbox() is not outbox:
                continue
            for n, start_ms, key, stats in noted:
                if n > number:
                    total.add(start_ms, self._node, key, stats)
            return total
        raise HistoryUnavailable(why="windows close faster than they are read")

    def _read(self, wanted: Wanted, total: Adder) -> dict[str, int]:
        return self._history().read(wanted, total.add)

    async def error_texts(self, wanted: Wanted) -> dict[tuple[str, Key], ErrorText]:
        """The newest error of each type. Raises HistoryUnavailable."""
        outbox = self._outbox()
        sources = [*(p.errors for p in outbox.waiting), dict(outbox.errors)]
        texts = await self._in_thread(lambda: self._history().error_texts(wanted))
        for source in sources:
            for key, text in source.items():
                place = (self._node, key)
                if _is_about(wanted, key) and (
                    place not in texts or text.at_ms >= texts[place].at_ms
                ):
                    texts[place] = text
        return texts

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._waiting >= MAX_WAITING:
            raise HistoryUnavailable(why=f"{MAX_WAITING} questions wait for it already")
        self._waiting += 1
        try:
            async with asyncio.timeout(READ_SECONDS), self._places:
                return await in_thread(work)
        except TimeoutError:
            raise HistoryUnavailable(why=f"no answer within {READ_SECONDS:g} s") from None
        except HistoryFailed as error:
            raise HistoryUnavailable(why=str(error)) from None
        finally:
            self._waiting -= 1


async def in_thread(work: Callable[[], T]) -> T:
    """Do it in a thread of its own, which no end of the program waits for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # None is a T there

    def run() -> None:
        try:
            result, error = work(), None
        except BaseException as raised:  # noqa: BLE001  # it is the caller's
            result, error = None, raised
        try:
            loop.call_soon_threadsafe(finish, result, error)
        except RuntimeError:
            pass  # the loop has ended, and nobody waits

    threading.Thread(target=run, name="orbit-history-read", daemon=True).start()
    return await done


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
