"""
The wiring of the past: from closed windows to the history, and back into answers.

What a hub has of it is the reading half.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from orbit_rpc_schema.procedures import HistoryInfo
from orbit_service.core.fleet import Fleet
from orbit_service.history.archive import Archive
from orbit_service.history.late import LateHistory
from orbit_service.history.presence import dump
from orbit_service.history.publisher import RENEW_SECONDS, Offer, Publisher
from orbit_service.history.watch import Watch
from orbit_service.rpc.handlers import Clock
from orbit_service.rpc.past import Past
from orbit_service.settings import Settings
from orbit_service.state.intake import Intake

if TYPE_CHECKING:
    from orbit_service.program import Program

DRAIN_SECONDS = 3.0  # for what is published at the end
DRAIN_LOOK_SECONDS = 0.02


class Archived:
    """A node's history: its publisher, its archive, and the fleet that shares it."""

    def __init__(self, settings: Settings, intake: Intake, clock: Clock) -> None:
        self.history = LateHistory(settings.history_url, settings.state, settings.retention)
        self._intake = intake
        self._clock = clock
        self._node = settings.node
        self.archive = Archive(self.history, settings.node, lambda: intake.collector.outbox)
        fleet = Fleet(here=intake.collector)
        # What many share holds others' windows too; those are the hub's to tell.
        self.mine = settings.node if self.history.shared else None
        self.answers = Past(
            self.archive,
            settings.retention,
            clock,
            workers=lambda: intake.collector,
            fleet=self.fleet,
            node=self.mine,
        )
        self._watch = Watch(self.history, fleet, lambda: intake.collector.outbox.instance)
        self._publisher: Publisher | None = None
        self._renew_at = 0.0

    def start(self, program: Program, stack: AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        publisher = Publisher(
            self.history,
            self._node,
            loop.call_soon_threadsafe,
            lambda number: self._intake.taken(number, self._clock()),
            lambda number: self._intake.begin_anew(number, self._clock()),
        )
        publisher.start()
        self._publisher = publisher

        async def stop() -> None:
            await self._drain()
            instance = self._intake.collector.outbox.instance
            leave = instance if self.history.shared else None
            await loop.run_in_executor(None, publisher.stop, leave)
            self.history.close()

        stack.push_async_callback(stop)
        if self.history.shared:
            # Others have to know this one by its instance.
            if not self._intake.collector.outbox.instance:
                self._intake.close_every_window(self._clock())
            program.spawn(self._watch.run(), stack)

    def publish(self) -> None:
        """Close what is over, and offer it; to be called several times a second."""
        self._intake.close_windows(self._clock())
        publisher, outbox = self._publisher, self._intake.collector.outbox
        if publisher is None or not publisher.ready:
            return
        head, state = outbox.head(), None
        if self.history.shared and time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + RENEW_SECONDS
            state = dump(self._intake.collector)
        if head or state is not None:
            publisher.offer(Offer(outbox.instance, head, outbox.tokens(), state))

    async def _drain(self) -> None:
        """Publish the open windows too: this node may not be started again."""
        outbox = self._intake.collector.outbox
        if outbox.windows:
            self._intake.close_every_window(self._clock())
        until = time.monotonic() + DRAIN_SECONDS
        while outbox.waiting and self.trouble is None and time.monotonic() < until:
            self.publish()
            await asyncio.sleep(DRAIN_LOOK_SECONDS)

    # ------------------------------------------------------------ questions

    def fleet(self) -> Fleet:
        """Every node. Raises HistoryUnavailable."""
        if not self.history.shared:
            return Fleet(here=self._intake.collector)
        return self._watch.fleet()

    @property
    def trouble(self) -> str | None:
        return None if self._publisher is None else self._publisher.trouble

    def troubles(self) -> Iterator[str]:
        """What is wrong, in sentences."""
        outbox = self._intake.collector.outbox
        if self.trouble is not None:
            said = f"{len(outbox.waiting)} publications wait"
            yield f"the history cannot be used ({self.trouble}); {said}"
        if outbox.dropped and outbox.waiting:
            yield f"{outbox.dropped} runs found no memory on their way to the history"
        if self._publisher is not None and self._publisher.refused:
            yield f"the history refused {self._publisher.refused} publications"
        if self._publisher is not None and self._publisher.twin is not None:
            yield f"another service calls itself {self._node} too: set ORBIT_NODE of one of them"

    def info(self) -> HistoryInfo:
        outbox, publisher = self._intake.collector.outbox, self._publisher
        return HistoryInfo(
            database=self.history.name,
            trouble=self.trouble,
            failures=publisher.failures if publisher else 0,
            waiting=len(outbox.waiting),
            waiting_bytes=outbox.size,
            dropped=outbox.dropped,
            refused=publisher.refused if publisher else 0,
            unreadable=self.history.unreadable,
            twin=publisher.twin if publisher else None,
        )
