"""The only wiring: settings -> objects -> run -> stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib.metadata import version

from loguru import logger

from orbit_rpc_schema.errors import Explained
from orbit_rpc_schema.procedures import Health, Metrics, Selection, ServiceInfo, StateInfo
from orbit_rpc_schema.wire import PROTOCOL
from orbit_service.core import snapshot
from orbit_service.core.collector import Collector
from orbit_service.core.health import health
from orbit_service.report import Reporter
from orbit_service.rpc.dispatch import Dispatcher
from orbit_service.rpc.handlers import Clock, make_handlers
from orbit_service.rpc.incidents import incident
from orbit_service.rpc.workers import Workers
from orbit_service.settings import Address, Settings, warnings
from orbit_service.state.checkpoint import dump
from orbit_service.state.intake import Intake, opened
from orbit_service.state.journal import Journal, Loop
from orbit_service.state.store import Saved, Store
from orbit_service.transport.listen import bind, unlink
from orbit_service.transport.peers import Admission
from orbit_service.transport.unix import UnixServer

VERSION = version("orbit-metrics")
EXPIRE_SECONDS = 0.25  # a session counts as lost 2 s after its end; a quarter more is not seen
STOP_SECONDS = 5.0


class AddressInUse(Explained):
    """
    {address} cannot be listened on: {why}.
    Stop what listens there, or set ORBIT_HTTP to another address, or to none.
    """


def wall_clock() -> int:
    return time.time_ns() // 1_000_000


class Service:
    """One running service."""

    def __init__(self, settings: Settings, clock: Clock = wall_clock) -> None:
        self.settings = settings
        self.clock = clock
        self.started_ms = clock()
        self.intake = Intake(Collector(settings.node))
        self.collector = self.intake.collector
        self.workers = Workers(self.intake, clock)
        self.dispatcher = Dispatcher(
            make_handlers(
                self.collector,
                clock,
                version=VERSION,
                info=self.info,
                health=self.health,
            )
        )
        self.http_address: Address | None = None
        self._unix: UnixServer | None = None
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Listen. Raises Explained with a sentence when an address or path cannot be had."""
        async with AsyncExitStack() as stack:
            if self.settings.http is not None:
                await self._start_http(self.settings.http, stack)
            self._start_state(stack)
            self._start_unix(stack)
            self._start_repeating(EXPIRE_SECONDS, self.workers.expire, stack)
            reporter = Reporter(self.metrics)
            self._start_repeating(self.settings.metrics_interval / 1000, reporter.report, stack)
            self._stack = stack.pop_all()

    async def stop(self) -> None:
        """Take what has arrived, close every connection, remove the socket."""
        await self._stack.aclose()

    @property
    def ready(self) -> bool:
        return self._unix is not None

    def metrics(self) -> Metrics:
        return snapshot.metrics(self.collector, Selection(), self.clock())

    def health(self) -> Health:
        journal = self.intake.journal
        return health(
            self.collector,
            self.settings.stuck_after * 1000,
            self.clock(),
            storage_trouble=None if journal is None else journal.trouble,
        )

    def info(self) -> ServiceInfo:
        return ServiceInfo(
            version=VERSION,
            protocol=PROTOCOL,
            node=self.settings.node,
            pid=os.getpid(),
            socket=str(self.settings.socket),
            http=str(self.http_address) if self.http_address else None,
            started_at=self.started_ms,
            uptime_seconds=(self.clock() - self.started_ms) // 1000,
            connections=len(self._unix.connections) if self._unix else 0,
            workers_connected=self.collector.workers_connected(),
            series=len(self.collector.pairs),
            intake=snapshot.intake(self.collector),
            state=self._state_info(),
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
        self.intake.adopt(saved)
        self.workers.await_return()

    async def _start_http(self, address: Address, stack: AsyncExitStack) -> None:
        # A third of the time that a start takes, which a service without HTTP saves.
        from aiohttp import web

        from orbit_service.transport.http import HttpOptions, make_app

        options = HttpOptions(VERSION, local=address.is_loopback, token=self.settings.token)
        app = make_app(self.dispatcher, options, ready=lambda: self.ready, health=self.health)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_SECONDS)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        host, port = address
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise AddressInUse(address=address, why=error.strerror or error) from None
        self.http_address = Address((host, runner.addresses[0][1]))

    def _start_unix(self, stack: AsyncExitStack) -> None:
        path = self.settings.socket
        listener = bind(path, self.settings.socket_mode)
        stack.callback(unlink, path, path.stat().st_ino)
        self._unix = UnixServer(
            listener, self.dispatcher, self.workers, Admission(self.settings.allow_uids)
        )
        self._unix.start()
        stack.callback(self._stop_unix, self._unix)

    def _stop_unix(self, server: UnixServer) -> None:
        self._unix = None
        server.close()

    def _start_repeating(
        self, seconds: float, act: Callable[[], None], stack: AsyncExitStack
    ) -> None:
        async def repeat() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    act()
                except Exception as error:  # noqa: BLE001  # the next turn may go better
                    incident(act.__qualname__, error)

        task = asyncio.create_task(repeat())

        async def cancel() -> None:
            task.cancel()
            await asyncio.wait([task])

        stack.push_async_callback(cancel)


def configure_logging(level: str) -> None:
    """Sentences on standard error, in UTC, without a traceback's variables."""
    logger.remove()
    logger.add(
        sys.stderr,
        level=level,
        format="{time:YYYY-MM-DDTHH:mm:ss.SSS!UTC}Z {level: <7} {message}",
        backtrace=False,
        diagnose=False,  # the variables of a failing call may hold a secret
    )


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    service = Service(settings)
    await service.start()
    for sentence in warnings(settings):
        logger.warning(sentence)
    logger.info(
        "orbit-metrics {} on node {}: workers at {} (mode {:04o}), http at {}",
        VERSION,
        settings.node,
        settings.socket,
        settings.socket_mode,
        service.http_address or "none",
    )
    await stopping.wait()
    logger.info("stopping")
    await service.stop()
    logger.info("stopped")
