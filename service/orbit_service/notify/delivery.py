"""
Delivery: what waits in the outbox goes out, each channel for itself.

At least once: a message that was taken and not marked so, because of a kill, is sent
again under the same key. A channel sends one at a time and in order. One that fails is
tried less and less often, and a message is given up after a day; a message that is
refused again and again lets those behind it pass. A send that does not come back is left
alone in its thread; while it is out, its channel sends nothing else.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Protocol

from loguru import logger

from orbit_service.alerts.messages import Message
from orbit_service.alerts.records import Parcel
from orbit_service.alerts.rules import Channel
from orbit_service.core.rollup import DAY_MS, MINUTE_MS, SECOND_MS
from orbit_service.notify.courier import Courier, NotSent
from orbit_service.threads import start_thread

LOOK_SECONDS = 5.0
SEND_SECONDS = 30.0
STOP_SECONDS = 2.0  # for a send that is under way; afterwards it is sent again
FIRST_RETRY_MS = 5 * SECOND_MS
LONGEST_RETRY_MS = 15 * MINUTE_MS
GIVE_UP_MS = DAY_MS
TRIES_ALONE = 5  # about three minutes; a message that fails more often lets others pass
MAX_LEFT = 20  # threads that have not come back, of addresses that a reload has changed too


class Outbox(Protocol):
    """What is to be sent, durable; each of these is there after a crash once it returns."""

    async def due(self, channel: str, now_ms: int) -> list[Parcel]:
        """The oldest first, at most 20."""
        ...

    async def delivered(self, parcel: Parcel, now_ms: int) -> None: ...

    async def failed(self, parcel: Parcel, why: str, next_ms: int) -> None: ...

    async def gave_up(self, parcel: Parcel, why: str, now_ms: int) -> None: ...


@dataclass(slots=True)
class Tally:
    """What a channel has done since the service began."""

    sent: int = 0
    failed: int = 0  # tries
    given_up: int = 0
    trouble: str | None = None  # why the last try failed


class Delivery:
    """Takes parcels from the outbox to the courier. For one event loop."""

    def __init__(self, outbox: Outbox, courier: Courier, clock: Callable[[], int]) -> None:
        self._outbox = outbox
        self._courier = courier
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        self._left: set[asyncio.Future[None]] = set()
        self._stopping = False

    def use(self, channels: Mapping[str, Channel]) -> None:
        """Send to these from now on; what goes on under its name keeps its tally."""
        for name in self._lines.keys() - channels.keys():
            self._lines.pop(name).task.cancel()
        for name, channel in channels.items():
            if name in self._lines:
                self._lines[name].change(channel)
            else:
                self._lines[name] = _Line(name, channel, self._run)

    def wake(self, channel: str) -> None:
        """There is something new for the channel."""
        if channel in self._lines:
            self._lines[channel].woken.set()

    @property
    def tallies(self) -> Mapping[str, Tally]:
        return {name: line.tally for name, line in self._lines.items()}

    async def send_now(self, channel: str, message: Message) -> None:
        """Send what is in no outbox, and only once. Raises NotSent."""
        line = self._lines.get(channel)
        if line is None:
            raise NotSent("there is no such channel")
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await line.sending.acquire()
        except TimeoutError:
            raise NotSent("another message is under way") from None
        try:
            await self._send(line, message)
        finally:
            line.sending.release()

    async def stop(self) -> None:
        """Begin no further send, and wait a moment for those under way."""
        self._stopping = True
        tasks = [line.task for line in self._lines.values()]
        for line in self._lines.values():
            line.woken.set()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, line: _Line) -> None:
        while not self._stopping:
            line.woken.clear()
            try:
                await self._look(line)
                line.blind = False
            except Exception as error:  # noqa: BLE001  # of the outbox; the next look may go better
                if not line.blind:
                    logger.opt(exception=error).error("the outbox of {} failed", line.name)
                line.blind = True
            if not self._stopping:
                await line.wait()

    async def _look(self, line: _Line) -> None:
        """Send what is due, until a send fails that others are to wait for."""
        if monotonic() < line.paused_until:
            return
        parcels = await self._outbox.due(line.name, self._clock())
        for parcel in parcels:
            if self._stopping:
                return
            async with line.sending:
                passed = await self._try(line, parcel)
            if not passed:
                return
        if parcels:
            line.woken.set()  # there may be more

    async def _try(self, line: _Line, parcel: Parcel) -> bool:
        """Whether the next parcel may be tried too."""
        try:
            # Taken before, but it could not be marked, or came back after its time.
            if parcel.key not in line.taken:
                await self._send(line, parcel.message)
                line.taken.add(parcel.key)
        except NotSent as why:
            return await self._failed(line, parcel, str(why))
        await self._outbox.delivered(parcel, self._clock())
        line.taken.discard(parcel.key)
        line.tally.sent += 1
        if line.tally.trouble is not None:
            logger.info("messages reach the channel {} again", line.name)
        line.tally.trouble = None
        return True

    async def _failed(self, line: _Line, parcel: Parcel, why: str) -> bool:
        tries = parcel.tries + 1
        now_ms, wait_ms = self._clock(), retry_in_ms(tries)
        line.tally.failed += 1
        if line.tally.trouble is None:
            logger.warning("a message did not reach the channel {}: {}", line.name, why)
        line.tally.trouble = why
        if now_ms - parcel.created_ms >= GIVE_UP_MS:
            logger.error("a message to the channel {} is given up: {}", line.name, why)
            line.tally.given_up += 1
            await self._outbox.gave_up(parcel, why, now_ms)
        else:
            await self._outbox.failed(parcel, why, now_ms + wait_ms)
        if tries > TRIES_ALONE and line.out is None:
            return True
        line.paused_until = monotonic() + wait_ms / 1000
        return False

    async def _send(self, line: _Line, message: Message) -> None:
        if line.out is not None:
            raise NotSent("the send before it has not come back")
        if len(self._left) >= MAX_LEFT:
            raise NotSent(f"{MAX_LEFT} sends have not come back")
        work = partial(self._courier.send, line.channel.address, message)
        done = start_thread(work, "orbit-notify")
        try:
            await asyncio.wait({done}, timeout=SEND_SECONDS)
        finally:
            if not done.done():  # its time is over, or nobody waits for it any more
                self._leave(line, message.key, done)
        if not done.done():
            raise NotSent(f"no answer within {SEND_SECONDS:g} s")
        error = done.exception()
        if isinstance(error, NotSent):
            raise error
        if error is not None:  # a fault of the courier's; its text may hold the address
            raise NotSent(f"it failed with {type(error).__name__}")

    def _leave(self, line: _Line, key: str, done: asyncio.Future[None]) -> None:
        line.out = done
        self._left.add(done)
        done.add_done_callback(self._left.discard)
        done.add_done_callback(partial(line.came_back, key))


class _Line:
    """One channel, and how it is doing."""

    def __init__(
        self, name: str, channel: Channel, run: Callable[[_Line], Coroutine[None, None, None]]
    ) -> None:
        self.name = name
        self.channel = channel
        self.tally = Tally()
        self.woken = asyncio.Event()
        self.sending = asyncio.Lock()
        self.paused_until = float("-inf")
        self.blind = False  # the outbox could not be read or written
        self.taken: set[str] = set()  # keys that the receiver has and the outbox does not know of
        self.out: asyncio.Future[None] | None = None  # a send that is not waited for any more
        self.task = asyncio.create_task(run(self))

    def change(self, channel: Channel) -> None:
        """After a reload. What is out to an old address holds up nothing at the new one."""
        if channel.address != self.channel.address:
            self.out = None
            self.paused_until = float("-inf")
            self.woken.set()
        self.channel = channel

    def came_back(self, key: str, done: asyncio.Future[None]) -> None:
        if not done.cancelled() and done.exception() is None:
            self.taken.add(key)
        if self.out is done:
            self.out = None

    async def wait(self) -> None:
        """Until it is time to look."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self.woken.wait()
        except TimeoutError:
            pass


def retry_in_ms(tries: int) -> int:
    """How long after so many failures the next try is made: twice as long after each.

    A quarter of it at random, so that many channels of a service that is away do not come
    back to it at once.
    """
    wait = min(FIRST_RETRY_MS * 2.0 ** min(tries - 1, 20), LONGEST_RETRY_MS)
    return round(wait * random.uniform(0.75, 1.0))
