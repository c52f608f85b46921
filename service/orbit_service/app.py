"""The only wiring: settings -> objects -> run -> stop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import cast

from loguru import logger

from orbit_rpc_schema.alerts import AuditEntry
from orbit_rpc_schema.errors import BadRules, Explained
from orbit_rpc_schema.openrpc import document
from orbit_rpc_schema.procedures import Health, Metrics, Selection, ServiceInfo, StateInfo
from orbit_rpc_schema.wire import PROTOCOL
from orbit_service.alerting.answers import make_alert_handlers
from orbit_service.alerting.runner import Alerting, file_store
from orbit_service.alerting.sources import OfNode
from orbit_service.clock import wall_clock
from orbit_service.core import snapshot
from orbit_service.core.collector import Collector
from orbit_service.core.health import health
from orbit_service.core.outbox import Window
from orbit_service.exported import Exported
from orbit_service.manager import NOTHING_HANDED, Handed
from orbit_service.past import Archived
from orbit_service.program import VERSION, Program, run
from orbit_service.report import Reporter
from orbit_service.rpc.controls import Action
from orbit_service.rpc.dispatch import Dispatcher
from orbit_service.rpc.handlers import Clock, Create, make_handlers
from orbit_service.rpc.live import Live
from orbit_service.rpc.workers import Workers
from orbit_service.settings import Settings
from orbit_service.state.checkpoint import dump
from orbit_service.state.intake import Intake, opened
from orbit_service.state.journal import Journal, Loop
from orbit_service.state.store import Saved, Store
from orbit_service.transport.listen import bind, bounds, path_of, unlink
from orbit_service.transport.peers import Admission
from orbit_service.transport.unix import UnixServer

DRAIN_LOOK_SECONDS = 0.05
EXPIRE_SECONDS = 0.25  # a session counts as lost 2 s after its end; a quarter more is not seen


class Service(Program):
    """One running service: collector, state, worker socket, history, HTTP."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock = wall_clock,
        handed: Handed = NOTHING_HANDED,
        create: Create | None = None,
    ) -> None:
        super().__init__(settings, handed)
        self.socket = settings.socket if handed.workers is None else path_of(handed.workers)
        self.clock = clock
        self.started_ms = clock()
        self.intake = Intake(Collector(settings.node))
        self.collector = self.intake.collector
        self.workers = Workers(self.intake, clock)
        self.past = Archived(settings, self.intake, clock)
        self._creates_runs = create is not None
        self._source = OfNode(
            lambda: self.collector,
            self.past.archive,
            settings.retention,
            self.past.mine,
            settings.stuck_after * 1000,
            self._own_troubles,
            self.started_ms,
            self.intake.close_windows,
            self.workers.awaits_return,
        )
        self.alerting = Alerting(
            settings.alerts,
            settings.node,
            self._source,
            self.past.archive,
            settings.retention,
            partial(file_store, settings.state),
            clock=clock,
            create=create,
            control=self._control,
            history_of=self.past.mine,
        )
        self.exported = Exported(settings, self.intake, self.past, self.alerting, clock)
        handlers = make_handlers(
            self.collector,
            clock,
            version=VERSION,
            info=self.info,
            health=self.health,
            past=self.past.answers,
            fleet=self.past.fleet,
            alerts=make_alert_handlers(self.alerting),
            create=create,
        )
        self.dispatcher = Dispatcher(handlers)
        self.live = Live(handlers["worker.metrics"], clock, self.collector)
        self.intake.on_closed = self._closed
        self.alerting.on_changed = self._alerts_changed
        self._unix: UnixServer | None = None
        self._inode = 0  # of the socket's file
        self._unreachable: str | None = None  # why no worker can connect

    async def _start(self, stack: AsyncExitStack) -> None:
        await self._start_http(
            self.dispatcher, document(VERSION), stack, self.live, self.exported.scraper
        )
        self._start_state(stack)
        self.past.start(self, stack)
        self.exported.start(self, stack)
        self.alerting.start(self, stack)
        self._start_unix(stack)
        self.repeat(EXPIRE_SECONDS, self._look, stack)
        reporter = Reporter(self.metrics)
        self.repeat(self.settings.metrics_interval / 1000, reporter.report, stack)

    def _closed(self, windows: Mapping[int, Window]) -> None:
        self.live.closed(windows)
        self._source.saw(windows)
        self.alerting.came()

    async def _control(self, worker: str, action: str, pipeline: str | None) -> Mapping[str, str]:
        return await self.workers.control(worker, cast(Action, action), pipeline)

    async def _alerts_changed(self, changes: Sequence[AuditEntry]) -> None:
        await self.live.alerts_changed(self.alerting.desk.board.alerts, changes)

    async def reload(self) -> None:
        if self.settings.alerts is None:
            await super().reload()
            return
        with suppress(BadRules):  # the log and the health say what is wrong
            await self.alerting.reload()

    def announce(self) -> None:
        handed = self.handed.workers is not None
        logger.info(
            "orbit-metrics {} on node {}: workers at {} ({}), http at {}, history in {}",
            VERSION,
            self.settings.node,
            self.socket,
            "of the service manager" if handed else f"mode {self.settings.socket_mode:04o}",
            self.http_address or "none",
            self.past.history.name,
        )

    async def drain(self, cut_short: asyncio.Event) -> None:
        """Go on taking runs until the workers have said goodbye, or the time is up.

        Those that are here now. One that comes meanwhile was started again, and is about to
        work: it is served, and not waited for.
        """
        seconds, here = self.settings.drain_timeout, self.workers.speaking()
        if not seconds or not here:
            return
        logger.info(
            "going on for {} processes of {} workers, until they have left or for {} s; "
            "a second signal ends it",
            len(here),
            self.collector.workers_connected(),
            seconds,
        )
        until = time.monotonic() + seconds
        while here and not cut_short.is_set() and time.monotonic() < until:
            await asyncio.sleep(DRAIN_LOOK_SECONDS)
            here &= self.collector.sessions.keys()
        if here:
            logger.warning("{} processes have not left; they keep what they send", len(here))

    def fault(self, reason: str) -> None:
        self.collector.faults[reason] += 1

    def _look(self) -> None:
        """What is to be done several times a second."""
        self.workers.expire()
        self.past.publish()
        self._see_to_the_socket()

    def _see_to_the_socket(self) -> None:
        """Make the socket anew where its file was deleted: nobody could come any more."""
        if self._unix is None or self.handed.workers is not None or self._is_there():
            return
        try:
            self._unix.listen_on(bind(self.socket, self.settings.socket_mode))
        except Explained as error:
            if self._unreachable is None:
                logger.error("no worker can connect any more: {}", error)
            self._unreachable = str(error)
            return
        self._inode = self.socket.stat().st_ino
        self._unreachable = None
        logger.warning("the socket {} was deleted; it is made anew", self.socket)

    def _is_there(self) -> bool:
        try:
            return self.socket.stat().st_ino == self._inode
        except OSError:
            return False

    @property
    def ready(self) -> bool:
        return self._unix is not None and self._unreachable is None

    def metrics(self) -> Metrics:
        return snapshot.metrics(self.collector, Selection(), self.clock())

    def health(self) -> Health:
        return health(
            self.collector,
            self.settings.stuck_after * 1000,
            self.clock(),
            [*self._own_troubles(), *filter(None, [self.alerting.trouble])],
        )

    def _own_troubles(self) -> Iterator[str]:
        """What is wrong with the service, and not with what it counts."""
        yield from self._state_troubles()
        yield from self.past.troubles()
        yield from self.exported.troubles()

    def _state_troubles(self) -> Iterator[str]:
        journal = self.intake.journal
        if journal is not None and journal.trouble is not None:
            yield f"the state cannot be written ({journal.trouble}); runs count in memory"
        full = [kind for kind, places in self.collector.places().items() if places.full]
        if full:
            yield f"no more {', '.join(full)} are told apart; new ones are counted among others"

    def info(self) -> ServiceInfo:
        return ServiceInfo(
            version=VERSION,
            protocol=PROTOCOL,
            node=self.settings.node,
            pid=os.getpid(),
            socket=str(self.socket),
            http=str(self.http_address) if self.http_address else None,
            started_at=self.started_ms,
            uptime_seconds=(self.clock() - self.started_ms) // 1000,
            connections=len(self._unix.connections) if self._unix else 0,
            workers_connected=self.collector.workers_connected(),
            series=len(self.collector.pairs),
            intake=snapshot.intake(self.collector),
            state=self._state_info(),
            history=self.past.info(),
            folded={kind: p.folded for kind, p in self.collector.places().items() if p.folded},
            creates_runs=self._creates_runs,
        )

    def _state_info(self) -> StateInfo | None:
        journal = self.intake.journal
        if journal is None:
            return None
        return StateInfo(
            path=str(self.settings.state),
            trouble=journal.trouble,
            commits=journal.commits,
            failures=journal.failures,
            bytes_written=journal.written_bytes,
            bytes_waiting=journal.waiting,
        )

    def _start_state(self, stack: AsyncExitStack) -> None:
        """Go on from what is on the disk; whatever the disk does, the service starts."""
        if self.settings.state is None:
            return
        store = Store(self.settings.state)
        collector, position, trouble = opened(store, self.settings.node)
        self.collector.become(collector)
        self.exported.begin()
        loop = asyncio.get_running_loop()
        self.intake.journal = journal = Journal(
            store,
            Loop(
                soon=loop.call_soon,
                post=loop.call_soon_threadsafe,
                committed=self.intake.committed,
                checkpoint_wanted=self.intake.checkpoint,
                opened=self._adopt,
            ),
            position,
            trouble,
        )
        journal.start()
        self.workers.await_return()

        async def stop() -> None:
            await loop.run_in_executor(None, journal.stop, dump(self.collector))

        stack.push_async_callback(stop)

    def _adopt(self, saved: Saved) -> None:
        faults = self.exported.faults
        self.intake.adopt(saved)
        self.exported.begin(faults)
        self.workers.await_return()

    def _start_unix(self, stack: AsyncExitStack) -> None:
        listener = self.handed.workers
        if listener is None:
            listener = bind(self.socket, self.settings.socket_mode)
            self._inode = self.socket.stat().st_ino
            stack.callback(lambda: unlink(self.socket, self._inode))
        limit, _http = bounds()
        self._unix = UnixServer(
            listener, self.dispatcher, self.workers, Admission(self.settings.allow_uids), limit
        )
        self._unix.start()
        stack.callback(self._stop_unix, self._unix)

    def _stop_unix(self, server: UnixServer) -> None:
        self._unix = None
        server.close()


async def serve(settings: Settings, create: Create | None = None) -> None:
    """Run a service until SIGTERM or SIGINT; `create` puts in pending runs."""
    await run(lambda handed: Service(settings, handed=handed, create=create))
