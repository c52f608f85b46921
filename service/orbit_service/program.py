"""What a service and a hub have in common: settings, HTTP, a clean start and stop."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any

from loguru import logger

from orbit_rpc_schema.errors import Explained
from orbit_rpc_schema.procedures import Health
from orbit_service.exporters.scrape import Scraper
from orbit_service.rpc.dispatch import Dispatcher
from orbit_service.rpc.incidents import incident
from orbit_service.settings import Address, Settings, warnings

VERSION = version("orbit-metrics")
STOP_SECONDS = 5.0
# How long a thread that computes keeps the others waiting. A commit takes the interpreter
# some eight times: at Python's 5 ms workers waited for 70 ms while a scrape was written.
SWITCH_SECONDS = 0.0005
# By then everything is imported, the history too. The garbage collector need not look at
# it any more, which took it 70 ms each time, and held up workers for as long.
FREEZE_SECONDS = 5.0


class AddressInUse(Explained):
    """
    {address} cannot be listened on: {why}.
    Stop what listens there, or set ORBIT_HTTP to another address, or to none.
    """


class Program(ABC):
    """Something that runs until it is told to stop; `_start` says what is in it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.http_address: Address | None = None
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Listen. Raises Explained with a sentence when an address or path cannot be had."""
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

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
        scraper: Scraper | None = None,
    ) -> None:
        address = self.settings.http
        if address is None:
            return
        # A third of the time that a start takes, which a service without HTTP saves.
        from aiohttp import web

        from orbit_service.transport.http import HttpOptions, make_app

        options = HttpOptions(document, local=address.is_loopback, token=self.settings.token)
        app = make_app(
            dispatcher, options, ready=lambda: self.ready, health=self.health, scraper=scraper
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_SECONDS)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        host, port = address
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise AddressInUse(address=address, why=error.strerror or error) from None
        self.http_address = Address((host, runner.addresses[0][1]))

    def _repeat(self, seconds: float, act: Callable[[], None], stack: AsyncExitStack) -> None:
        async def repeat() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    act()
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


async def run(program: Program, announce: Callable[[], None]) -> None:
    """Start, wait for SIGTERM or SIGINT, stop."""
    sys.setswitchinterval(SWITCH_SECONDS)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await program.start()
    for sentence in warnings(program.settings):
        logger.warning(sentence)
    announce()
    loop.call_later(FREEZE_SECONDS, gc.freeze)
    await stopping.wait()
    logger.info("stopping")
    await program.stop()
    logger.info("stopped")
