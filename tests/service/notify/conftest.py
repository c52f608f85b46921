"""Receivers that are real, on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from email.message import Message as Mail
from email.parser import BytesParser
from email.policy import default
from typing import Any

import pytest
from aiohttp import web
from aiosmtpd.smtp import SMTP
from loguru import logger

from orbit_service.alerts.rules import Channel
from orbit_service.notify.courier import AppriseCourier


class Receiver:
    """A server that takes posts, or answers what a test wants."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.bodies: list[dict[str, Any]] = []
        self.statuses: list[int] = []  # of the next answers; then: taken
        self.address = ""  # host and port

    async def take(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        self.bodies.append(await request.json())
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200, text="ok")


@pytest.fixture
async def receiver(aiohttp_server) -> Receiver:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/{path:.*}", receiver.take)
    server = await aiohttp_server(app)
    receiver.address = f"127.0.0.1:{server.port}"
    return receiver


@pytest.fixture
def send():
    """Send without holding up the loop on which the receiver is."""
    courier = AppriseCourier()

    async def send(address: str, message: Any) -> None:
        await asyncio.to_thread(courier.send, address, message)

    return send


class Postbox:
    """A mail server; refuses everything with `refuse`, if that is set."""

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.refuse = ""
        self.address = ""

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
        if self.refuse:
            return self.refuse
        self.mails.append(BytesParser(policy=default).parsebytes(envelope.content))
        return "250 OK"


@pytest.fixture
async def postbox() -> AsyncIterator[Postbox]:
    box = Postbox()
    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(box, loop=asyncio.get_running_loop()), "127.0.0.1", 0
    )
    box.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield box
    server.close()
    await server.wait_closed()


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Each line of the service's log, with everything that could be in it."""
    lines: list[str] = []
    number = logger.add(lines.append, format="{level} {message}", level=0, diagnose=True)
    yield lines
    logger.remove(number)


@pytest.fixture
def a_channel(tmp_path) -> Callable[[str], Channel]:
    def make(address: str) -> Channel:
        channel = Channel(url=address)
        assert channel.found({}, tmp_path) is None
        return channel

    return make
