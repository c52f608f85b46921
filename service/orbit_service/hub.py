"""
A hub: one address that answers for all nodes, from the history that they share.

It has no socket and no state; what it knows is at most 15 s old, or it says that it
knows nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial

from loguru import logger

from orbit_rpc_schema.alerts import AuditEntry
from orbit_rpc_schema.errors import BadRules, Explained, HistoryUnavailable
from orbit_rpc_schema.openrpc import document
from orbit_rpc_schema.procedures import Health
from orbit_service.alerting.answers import make_alert_handlers
from orbit_service.alerting.runner import Alerting, shared_store
from orbit_service.alerting.sources import OfFleet
from orbit_service.clock import wall_clock
from orbit_service.core.fleet import Fleet
from orbit_service.core.health import Status
from orbit_service.core.outbox import Outbox
from orbit_service.history.archive import Archive
from orbit_service.history.late import LateHistory
from orbit_service.history.watch import Watch
from orbit_service.manager import NOTHING_HANDED, Handed, UnusableSocket
from orbit_service.program import VERSION, Program, run
from orbit_service.rpc.dispatch import Dispatcher
from orbit_service.rpc.handlers import ON_HUB, Clock, make_hub_handlers
from orbit_service.rpc.live import Live
from orbit_service.rpc.past import Past
from orbit_service.settings import Settings


class HubNeedsDatabase(Explained):
    """
    A hub answers from a history that many nodes share, and none is set.
    Set ORBIT_HISTORY_URL=postgresql+psycopg://user@host/database.
    """


class HubNeedsHttp(Explained):
    """
    A hub answers over HTTP alone, and ORBIT_HTTP is none.
    Set ORBIT_HTTP to an address, such as 127.0.0.1:8790.
    """


class Hub(Program):
    """One running hub."""

    def __init__(
        self,
        settings: Settings,
        handed: Handed = NOTHING_HANDED,
        clock: Clock = wall_clock,
    ) -> None:
        if settings.history_url is None:
            raise HubNeedsDatabase
        if handed.workers is not None:
            raise UnusableSocket(why="a hub has no workers")
        if settings.http is None and handed.http is None:
            raise HubNeedsHttp
        super().__init__(settings, handed)
        self._clock = clock
        self.history = LateHistory(settings.history_url, None, settings.retention)
        fleet = Fleet()
        self._watch = Watch(self.history, fleet, own=lambda: "")
        nothing = Outbox()  # is open here
        archive = Archive(self.history, "", lambda: nothing)
        fleet_now = self._watch.fleet
        past = Past(archive, settings.retention, clock, workers=fleet_now, fleet=fleet_now)
        self.alerting = Alerting(
            settings.alerts,
            settings.node,
            OfFleet(fleet_now, archive, settings.retention, settings.stuck_after * 1000, clock()),
            archive,
            settings.retention,
            partial(shared_store, settings.history_url, settings.node),
            clock=clock,
        )
        handlers = make_hub_handlers(
            clock,
            version=VERSION,
            health=self.health,
            past=past,
            fleet=self._watch.fleet,
            alerts=make_alert_handlers(self.alerting),
        )
        self._dispatcher = Dispatcher(handlers)
        self._live = Live(handlers["worker.metrics"], clock)
        self.alerting.on_changed = self._alerts_changed
        self._document = document(VERSION, ON_HUB)

    async def _start(self, stack: AsyncExitStack) -> None:
        stack.callback(self.history.close)
        await self._start_http(self._dispatcher, self._document, stack, self._live)
        self.spawn(self._watch.run(), stack)
        self.alerting.start(self, stack)

    async def _alerts_changed(self, changes: Sequence[AuditEntry]) -> None:
        await self._live.alerts_changed(self.alerting.desk.board.alerts, changes)

    async def reload(self) -> None:
        if self.alerting.path is None:
            await super().reload()
            return
        with suppress(BadRules):  # the log and the health say what is wrong
            await self.alerting.reload()

    def announce(self) -> None:
        logger.info(
            "orbit-metrics {}, a hub: http at {}, history in {}",
            VERSION,
            self.http_address,
            self.history.name,
        )

    async def drain(self, cut_short: asyncio.Event) -> None:
        """No worker is connected to a hub."""

    @property
    def ready(self) -> bool:
        """Whether it has read the fleet lately."""
        return self._watch.fresh

    def health(self) -> Health:
        """worker.health of a fleet: whether its nodes are there."""
        try:
            fleet = self._watch.fleet()
        except HistoryUnavailable as error:
            return _health("error", error.message, fleet=None)
        lost = sorted(node.name for node in fleet.others.values() if not node.alive)
        alive = len(fleet.others) - len(lost)
        workers = sum(worker.life is not None for worker in fleet.select(None))
        said = f"{alive} nodes alive, {workers} workers connected"
        if (trouble := self.alerting.trouble) is not None:
            said = f"{said}; {trouble}"
        if lost:
            return _health("error", f"{len(lost)} nodes lost: {', '.join(lost[:5])}; {said}", fleet)
        return _health("healthy" if trouble is None else "warning", said, fleet)


def _health(status: Status, message: str, fleet: Fleet | None) -> Health:
    seen = [] if fleet is None else [worker.last_seen_ms for worker in fleet.select(None)]
    return Health(
        status=status,
        message=message,
        last_activity=max(seen, default=None),
        stuck_runs=[],
    )


async def serve(settings: Settings) -> None:
    """Run a hub until SIGTERM or SIGINT."""
    await run(lambda handed: Hub(settings, handed))
