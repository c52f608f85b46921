"""What a service and a hub have in common: settings, HTTP, a clean start and stop."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from importlib.metadata import version
from typing import Any

from loguru import logger

from orbit_rpc_schema.errors import Explained
from orbit_rpc_schema.procedures import Health
from orbit_service.exporters.scrape import Scraper
from orbit_service.manager import NOTHING_HANDED, Handed, handed_over, notify, watchdog_seconds
from orbit_service.rpc.dispatch import Dispatcher
from orbit_service.rpc.incidents import incident
from orbit_service.rpc.live import LOOK_SECONDS, Live
from orbit_service.settings import Address, Settings, warnings

VERSION = version("orbit-metrics")
STOP_SECONDS = 5.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# How long a thread that computes keeps the others waiting. A commit takes the interpreter
# some eight times: at Python's 5 ms workers waited for 70 ms while a scrape was written.
SWITCH_SECONDS = 0.0005
# By then everything is imported, the history too. The garbage collector need not look at
# it any more, which took it 70 ms each time, and held up workers for as long.
FREEZE_SECONDS = 5.0
# For all workers and dashboards that there may be; many systems begin a process with 1,024.
DESCRIPTORS = 16_384


class AddressInUse(Explained):
    """
    {address} cannot be listened on: {why}.
    Stop what listens there, or set ORBIT_HTTP to another address, or to none.
    """


class GuardMissing(Explained):
    """
    The service manager handed over a socket for HTTP at {address}, which can be reached from
    elsewhere: set ORBIT_TOKEN or ORBIT_TOKEN_FILE.
    """


class Program(ABC):
    """Something that runs until it is told to stop; `_start` says what is in it.

    `handed` are sockets that it need not bind itself.
    """

    def __init__(self, settings: Settings, handed: Handed = NOTHING_HANDED) -> None:
        self.settings = settings
        self.handed = handed
        self.http_address: Address | None = None
        self._stack = AsyncExitStack()
        self._faults: Counter[str] = Counter()

    async def start(self) -> None:
        """Listen. Raises Explained with a sentence when an address or path cannot be had."""
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    @abstractmethod
    def announce(self) -> None:
        """Log what runs now, and where."""

    @abstractmethod
    async def drain(self, cut_short: asyncio.Event) -> None:
        """Wait for what ought to end before us; no longer than until `cut_short` is set."""

    async def reload(self) -> None:
        """Read again what can be read again, at SIGHUP."""
        logger.info("there is nothing to read again: no file of rules is set")

    async def stop(self) -> None:
        """Undo what `start` did, in reverse."""
        await self._stack.aclose()

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether it does its work: takes runs, or has read the fleet."""

    @abstractmethod
    def health(self) -> Health:
        """One word and one sentence."""

    @abstractmethod
    async def _start(self, stack: AsyncExitStack) -> None:
        """Start every part, and leave to the stack how it ends."""

    async def _start_http(
        self,
        dispatcher: Dispatcher,
        document: Mapping[str, Any],
        stack: AsyncExitStack,
        live: Live,
        scraper: Scraper | None = None,
    ) -> None:
        listener = self.handed.http
        address = self.settings.http if listener is None else _address_of(listener)
        if address is None:
            return
        if not address.is_loopback and self.settings.token is None:
            raise GuardMissing(address=address)
        # A third of the time that a start takes, which a service without HTTP saves.
        from aiohttp import web

        from orbit_service.transport.access import Access
        from orbit_service.transport.http import (
            IDLE_SECONDS,
            HttpOptions,
            bounded,
            make_app,
            quiet_logger,
            take_plain_calls,
        )
        from orbit_service.transport.listen import bounds

        settings = self.settings
        access = Access(
            address.is_loopback, settings.token, settings.allowed_hosts, settings.cors_origins
        )
        options = HttpOptions(document, access, self.fault)
        app = make_app(
            dispatcher,
            options,
            ready=lambda: self.ready,
            health=self.health,
            live=live,
            scraper=scraper,
        )
        self.repeat(LOOK_SECONDS, live.look, stack)
        runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=STOP_SECONDS,
            keepalive_timeout=IDLE_SECONDS,
            auto_decompress=False,  # a small body may be a large one, before it is refused too
            logger=quiet_logger(self.fault),
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        assert runner.server is not None
        take_plain_calls(runner.server, dispatcher, options)
        _workers, limit = bounds()
        accept = bounded(runner.server, limit, self.fault)
        loop = asyncio.get_running_loop()
        try:
            if listener is not None:
                server = await loop.create_server(accept, sock=listener)
            else:
                server = await loop.create_server(accept, *address, reuse_address=True)
        except OSError as error:
            raise AddressInUse(address=address, why=error.strerror or error) from None
        stack.callback(server.close)
        self.http_address = Address((address[0], server.sockets[0].getsockname()[1]))

    def fault(self, reason: str) -> None:
        """Count something that was refused."""
        self._faults[reason] += 1

    def repeat(
        self, seconds: float, act: Callable[[], Awaitable[None] | None], stack: AsyncExitStack
    ) -> None:
        async def repeat() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    if (acting := act()) is not None:
                        await acting
                except Exception as error:  # noqa: BLE001  # the next turn may go better
                    incident(act.__qualname__, error)

        self.spawn(repeat(), stack)

    def spawn(self, work: Coroutine[Any, Any, None], stack: AsyncExitStack) -> None:
        task = asyncio.create_task(work)

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


async def run(make: Callable[[Handed], Program]) -> None:
    """Make a program, start it, wait for SIGTERM or SIGINT, stop it.

    A second signal ends the waiting for workers, a third the process.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    _raise_descriptors()
    told, cut_short = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_Troubles())

    def tell() -> None:
        if cut_short.is_set():
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        (cut_short if told.is_set() else told).set()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, tell)
    program = make(handed_over())
    await program.start()
    for sentence in warnings(program.settings):
        logger.warning(sentence)
    program.announce()
    reloading: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(program.reload())
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    notify("READY=1", "STATUS=takes runs", patience=1.0)
    loop.call_later(FREEZE_SECONDS, gc.freeze)
    async with AsyncExitStack() as watched:
        if (seconds := watchdog_seconds()) is not None:
            program.repeat(seconds, lambda: notify("WATCHDOG=1"), watched)
        await told.wait()
        notify("STOPPING=1", "STATUS=stopping")
        await program.drain(cut_short)
        logger.info("stopping")
        await program.stop()
    logger.info("stopped")


class _Troubles:
    """Logs what the loop meets by itself: a line, and not the same again within a second."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message = context["message"]
        if loop.time() - self._said.get(message, -1.0) >= 1.0:
            self._said[message] = loop.time()
            logger.opt(exception=context.get("exception")).error("{}", message)


def _address_of(listener: socket.socket) -> Address:
    host, port = listener.getsockname()[:2]
    return Address((host, port))


def _raise_descriptors() -> None:
    with suppress(OSError, ValueError):  # macOS has a limit of its own
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
