"""
GET /ws: JSON-RPC over a WebSocket, for what answers once and for what goes on.

A message is a text frame. Answers are written by whoever reads the questions, so that
somebody who does not read them is not asked further; news by a task of their own, which
holds the newest of each subscription and no more.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable

from aiohttp import WSMsgType, web

from orbit_rpc_schema.wire import MAX_LINE
from orbit_service.rpc.dispatch import Dispatcher
from orbit_service.rpc.live import Listener, Live

PATH = "/ws"
PROTOCOL = "orbit-metrics.v1"
TOKEN_PREFIX = "bearer."  # noqa: S105  # of a subprotocol: a browser can send no header with a WebSocket
MAX_LISTENERS = 1_500
PING_SECONDS = 20.0  # a reader that does not answer in half of it is gone, or stuck


def add_live(
    app: web.Application, dispatcher: Dispatcher, live: Live, fault: Callable[[str], None]
) -> None:
    """Serve `/ws`; what is open is closed with the application."""
    open_: set[web.WebSocketResponse] = set()

    async def talk(request: web.Request) -> web.WebSocketResponse:
        if len(open_) >= MAX_LISTENERS:
            fault("live connections")
            raise web.HTTPServiceUnavailable(text=f"{MAX_LISTENERS} listen already\n")
        socket = web.WebSocketResponse(
            protocols=(PROTOCOL,), heartbeat=PING_SECONDS, max_msg_size=MAX_LINE, compress=False
        )
        try:
            await socket.prepare(request)
        except ConnectionResetError:
            return socket  # a page that was loaded again meanwhile
        open_.add(socket)
        listener = Listener(live)
        news = asyncio.create_task(listener.send_all(socket.send_str))
        try:
            async for message in socket:
                if message.type is not WSMsgType.TEXT:
                    break
                answer = await dispatcher.answer(message.data.encode(), listener)
                if answer is not None:
                    await socket.send_str(answer.decode())
        except ConnectionResetError:
            pass  # it is gone
        finally:
            news.cancel()
            listener.leave()
            open_.discard(socket)
        return socket

    async def close(_app: web.Application) -> None:
        for socket in list(open_):
            await socket.close(code=1001, message=b"the service stops")

    app.router.add_get(PATH, talk)
    app.on_shutdown.append(close)


def token_of(protocols: str) -> str | None:
    """The token that a browser has put among its subprotocols; None where there is none."""
    for name in protocols.split(","):
        text = name.strip()
        if text.startswith(TOKEN_PREFIX):
            encoded = text.removeprefix(TOKEN_PREFIX)
            try:
                return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
            except (binascii.Error, ValueError):
                return None
    return None
