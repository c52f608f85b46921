"""HTTP for dashboards, Prometheus and probes."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from loguru import logger

from orbit_rpc_schema.procedures import Health
from orbit_rpc_schema.wire import MAX_LINE
from orbit_service.exporters.scrape import Busy, Scraper
from orbit_service.rpc.dispatch import Dispatcher

PROBES = ("/livez", "/readyz", "/healthz")
SCRAPE_SECONDS = 60.0  # for whoever reads a page slowly
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """`local` is true when the service listens on loopback alone."""

    document: Mapping[str, Any]  # OpenRPC
    local: bool = True
    token: str | None = None


def make_app(
    dispatcher: Dispatcher,
    options: HttpOptions,
    *,
    ready: Callable[[], bool],
    health: Callable[[], Health],
    scraper: Scraper | None = None,
) -> web.Application:
    """The application; `ready` says whether runs are taken. A hub has no scraper."""

    async def rpc(request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            # A form or plain text is what a web page elsewhere can send without asking.
            raise web.HTTPUnsupportedMediaType(text="send Content-Type: application/json\n")
        answer = await dispatcher.answer(await request.read())
        if answer is None:
            return web.Response(status=204)
        return web.Response(body=answer, content_type="application/json")

    async def live(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readiness(_request: web.Request) -> web.Response:
        return _probe(ready(), "takes runs", "does not take runs")

    async def healthz(_request: web.Request) -> web.Response:
        now = health()
        body: dict[str, Any] = now.model_dump(mode="json", by_alias=True)
        # The probes of a container are about this service; a failing pipeline is no
        # reason to restart it. The body tells; the status stays.
        return web.json_response({"ready": ready(), **body}, status=200 if ready() else 503)

    async def openrpc(_request: web.Request) -> web.Response:
        return web.json_response(options.document)

    async def metrics(request: web.Request) -> web.StreamResponse:
        if scraper is None:
            raise web.HTTPNotFound(text="a hub counts nothing itself: scrape its nodes\n")
        try:
            with scraper.page():
                return await _write_page(request, scraper)
        except Busy:
            text = "other scrapes are under way\n"
            raise web.HTTPServiceUnavailable(text=text, headers={"Retry-After": "1"}) from None

    app = web.Application(client_max_size=MAX_LINE, middlewares=[_guard(options)])
    app.router.add_post("/rpc", rpc)
    app.router.add_get("/metrics", metrics, allow_head=False)
    app.router.add_get("/livez", live)
    app.router.add_get("/readyz", readiness)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/openrpc.json", openrpc)
    return app


async def _write_page(request: web.Request, scraper: Scraper) -> web.StreamResponse:
    accept, encodings = (request.headers.get(name, "") for name in ("Accept", "Accept-Encoding"))
    page = await scraper.scrape(accept, encodings)
    headers = {"Content-Type": page.content_type, "Vary": "Accept, Accept-Encoding"}
    if page.gzipped:
        headers["Content-Encoding"] = "gzip"
    response = web.StreamResponse(headers=headers)
    try:
        async with asyncio.timeout(SCRAPE_SECONDS):
            await response.prepare(request)
            async for chunk in page.chunks:
                await response.write(chunk)
            await response.write_eof()
    except (ConnectionResetError, TimeoutError) as gone:
        # Whoever asked has given up. Without its end nobody takes the page for whole.
        logger.debug("a scrape from {} was cut short: {!r}", request.remote, gone)
        response.force_close()
        if request.transport is not None:
            request.transport.abort()
    return response


def _guard(options: HttpOptions) -> Any:
    """Turn away whoever lacks the token, and web pages that reach for a local service."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in PROBES:
            return await handler(request)
        if options.local and _name_of(request.host) not in LOCAL_NAMES:
            # A name that resolves to 127.0.0.1 (DNS rebinding) is not ours.
            raise web.HTTPForbidden(text=f"{request.host} is not a name of this service\n")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            raise web.HTTPForbidden(text=f"pages of {origin} may not call this service\n")
        if options.token is not None and not _has_token(request, options.token):
            raise web.HTTPUnauthorized(
                text="send Authorization: Bearer <token>\n", headers={"WWW-Authenticate": "Bearer"}
            )
        return await handler(request)

    return guard


def _name_of(host: str) -> str:
    name, _colon, port = host.rpartition(":")
    return name if name and port.isdecimal() else host


def _has_token(request: web.Request, token: str) -> bool:
    scheme, _space, given = request.headers.get("Authorization", "").partition(" ")
    # A header holds whatever bytes were sent; those that are no text come as surrogates.
    sent = given.encode(errors="surrogateescape")
    return scheme == "Bearer" and hmac.compare_digest(sent, token.encode())


def _probe(good: bool, yes: str, no: str) -> web.Response:
    return web.Response(text=f"{yes if good else no}\n", status=200 if good else 503)
