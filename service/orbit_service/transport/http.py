"""HTTP for dashboards, Prometheus and probes."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from loguru import logger

from orbit_rpc_schema.procedures import Health
from orbit_rpc_schema.wire import MAX_LINE
from orbit_service.exporters.scrape import Busy, Scraper
from orbit_service.rpc.dispatch import Answer, Dispatcher
from orbit_service.rpc.live import Live
from orbit_service.transport.access import PREFLIGHT, Access
from orbit_service.transport.live import PATH as LIVE_PATH
from orbit_service.transport.live import add_live, token_of
from orbit_service.transport.pages import FOLDER, add_pages
from orbit_service.transport.trpc import add_trpc

RPC_PATH = "/rpc"
PROBES = ("/livez", "/readyz", "/healthz")
JSON = "application/json"
# From the head of a request to the last byte of its answer, whoever sends or reads slowly.
# A question about the past may have to wait for a database.
REQUEST_SECONDS = 60.0
SCRAPE_SECONDS = 15.0
IDLE_SECONDS = 75.0  # of a connection, before and between requests; proxies keep theirs for 60
# Bytes of a call that can be read, and of an answer that can be written, without waiting:
# asyncio holds up whoever writes while more than 65,536 are unread.
MAX_AT_ONCE = 32_768
MAX_REFUSALS_SAID = 100  # lines in the log for each reason, and then no more
# What needs no token. By what is found for a path and not by the path: there are many ways to
# spell one.
OPEN = web.AppKey("OPEN", frozenset[web.AbstractResource])
SAFE = {
    "Server": "orbit-metrics",
    # A page elsewhere shall not embed an answer, nor a browser guess what it is.
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """`fault` counts what was refused, by reason."""

    document: Mapping[str, Any]  # OpenRPC
    access: Access = field(default_factory=Access)
    fault: Callable[[str], None] = lambda _reason: None
    page: Path = FOLDER  # where the built page is


def make_app(
    dispatcher: Dispatcher,
    options: HttpOptions,
    *,
    ready: Callable[[], bool],
    health: Callable[[], Health],
    live: Live,
    scraper: Scraper | None = None,
) -> web.Application:
    """The application; `ready` says whether runs are taken. A hub has no scraper."""

    async def rpc(request: web.Request) -> web.Response:
        if request.content_type != JSON:
            # A form or plain text is what a web page elsewhere can send without asking.
            raise web.HTTPUnsupportedMediaType(text="send Content-Type: application/json\n")
        if "Content-Encoding" in request.headers:
            raise web.HTTPUnsupportedMediaType(text="send it without Content-Encoding\n")
        return _answer(await dispatcher.answer(await request.read()))

    async def alive(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readiness(_request: web.Request) -> web.Response:
        return _probe(ready(), "takes runs", "does not take runs")

    async def healthz(request: web.Request) -> web.Response:
        now = health()
        body: dict[str, Any] = now.model_dump(mode="json", by_alias=True)
        if not options.access.trusts(_authorization(request)):
            body = {"status": now.status}  # the rest names workers and pipelines
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
            options.fault("scrapes")
            text = "other scrapes are under way\n"
            raise web.HTTPServiceUnavailable(text=text, headers={"Retry-After": "1"}) from None

    app = web.Application(client_max_size=MAX_LINE, middlewares=[_guard(options), _hasten(options)])
    app.on_response_prepare.append(_say_who_may_read(options.access))
    add_live(app, dispatcher, live, options.fault)
    app[OPEN] = add_pages(app, options.page)
    app.router.add_post(RPC_PATH, rpc)
    app.router.add_get("/metrics", metrics, allow_head=False)
    app.router.add_get("/livez", alive)
    app.router.add_get("/readyz", readiness)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/openrpc.json", openrpc)
    add_trpc(app, dispatcher)
    return app


def bounded(
    server: web.Server, limit: int, fault: Callable[[str], None]
) -> Callable[[], asyncio.BaseProtocol]:
    """A protocol for each connection; over the limit, one that hangs up."""

    def accept() -> asyncio.BaseProtocol:
        if len(server.connections) < limit:
            return server()
        fault("http connections")
        return _HangUp()

    return accept


def take_plain_calls(server: web.Server, dispatcher: Dispatcher, options: HttpOptions) -> None:
    """Answer a plain call before it is routed and looked at from all sides.

    That takes longer than most answers do. Plain is what needs no refusal, no header of its
    own and no waiting: the application would answer it with the same bytes, and answers
    everything else.
    """
    routed = server.request_handler
    access, fault = options.access, options.fault
    beside = {**access.cors(None), **SAFE}
    headers = {"Content-Type": JSON, **beside}

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if not _is_plain(request, access):
            return await routed(request)
        begun = dispatcher.begin(await request.read())
        if isinstance(begun, bytes) and len(begun) <= MAX_AT_ONCE:
            return web.Response(body=begun, headers=headers)
        return await _in_time(request, later(begun), fault)

    async def later(begun: Answer | Awaitable[Answer]) -> web.StreamResponse:
        answer = begun if begun is None or isinstance(begun, bytes) else await begun
        response = _answer(answer)
        response.headers.update(beside)
        return response

    server.request_handler = answer


def quiet_logger(fault: Callable[[str], None]) -> logging.Logger:
    """What aiohttp logs to: of what is not HTTP it would log the bytes, a token among them."""
    log = logging.Logger("http")  # of this application alone

    class Tell(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            if isinstance(error, HttpProcessingError):
                fault("http malformed")
            else:
                logger.opt(exception=error).error("HTTP: {}", record.getMessage())

    log.addHandler(Tell())
    return log


class _HangUp(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n")
        transport.close()


def _is_plain(request: web.BaseRequest, access: Access) -> bool:
    """Whether it is a call that anyone would let through, and all of it is here."""
    headers, transport = request.headers, request.transport
    return (
        request.raw_path == RPC_PATH
        and request.method == "POST"
        and headers.get("Content-Type") == JSON
        and "Origin" not in headers
        and "Content-Encoding" not in headers
        and "Expect" not in headers
        and access.is_called(headers.get("Host", ""))
        and access.trusts(headers.get("Authorization", ""))
        and 0 < (request.content_length or 0) <= MAX_AT_ONCE
        and request.content.is_eof()
        and transport is not None
        and not transport.get_write_buffer_size()
    )


def _answer(answer: Answer) -> web.Response:
    if answer is None:
        return web.Response(status=204)
    return web.Response(body=answer, content_type=JSON)


async def _write_page(request: web.Request, scraper: Scraper) -> web.StreamResponse:
    accept, encodings = (request.headers.get(name, "") for name in ("Accept", "Accept-Encoding"))
    page = await scraper.scrape(accept, encodings)
    headers = {"Content-Type": page.content_type, "Vary": "Accept, Accept-Encoding"}
    if page.gzipped:
        headers["Content-Encoding"] = "gzip"
    response = web.StreamResponse(headers=headers)
    # Its places are few, and Prometheus waits for ten seconds itself.
    async with asyncio.timeout(SCRAPE_SECONDS):
        await response.prepare(request)
        async for chunk in page.chunks:
            await response.write(chunk)
        await response.write_eof()
    return response


def _hasten(options: HttpOptions) -> Any:
    """Bound the time for which a request, or a reader of its answer, holds a connection."""

    @web.middleware
    async def hasten(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == LIVE_PATH:
            return await handler(request)  # which looks after itself
        return await _in_time(request, handler(request), options.fault)

    return hasten


async def _in_time(
    request: web.BaseRequest, answering: Awaitable[web.StreamResponse], fault: Callable[[str], None]
) -> web.StreamResponse:
    response = None
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            response = await answering
            await response.prepare(request)
            await response.write_eof()
            return response
    except TimeoutError:
        fault("http time-out")
    except ConnectionResetError as gone:
        logger.debug("{!r} of {} was cut short: {!r}", request.path, request.remote, gone)
    # Whoever asked has given up, or is too slow. Without its end nobody takes an
    # answer for whole.
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response(status=408)


def _guard(options: HttpOptions) -> Any:
    """Turn away whoever lacks the token, and web pages that reach for a local service."""
    access = options.access
    said: dict[str, set[str]] = defaultdict(set)

    def refused(request: web.Request, reason: str, sentence: str) -> str:
        options.fault(reason)
        if sentence not in said[reason] and len(said[reason]) < MAX_REFUSALS_SAID:
            said[reason].add(sentence)
            logger.warning("refused {!r} of {}: {}", request.path, request.remote, sentence)
        return f"{sentence}\n"

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        probe = request.path in PROBES
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        # A kubelet calls a pod by its address; it cannot reach one that is on loopback.
        if not access.is_called(host) and not (probe and not access.local):
            why = f"{host!r} is no name of this service; ORBIT_ALLOWED_HOSTS names more"
            raise web.HTTPForbidden(text=refused(request, "http host", why))
        if origin is not None and not access.admits(origin, host):
            why = f"pages of {origin!r} may not call this service; ORBIT_CORS_ORIGINS names some"
            raise web.HTTPForbidden(text=refused(request, "http origin", why))
        if origin is not None and request.method == "OPTIONS":
            return web.Response(status=204, headers=PREFLIGHT)
        needs_none = probe or request.match_info.route.resource in request.app[OPEN]
        if not needs_none and not access.trusts(_authorization(request)):
            why = "send Authorization: Bearer <token>, the one of ORBIT_TOKEN or ORBIT_TOKEN_FILE"
            raise web.HTTPUnauthorized(
                text=refused(request, "http token", why), headers={"WWW-Authenticate": "Bearer"}
            )
        return await handler(request)

    return guard


def _say_who_may_read(access: Access) -> Any:
    async def say(request: web.Request, response: web.StreamResponse) -> None:
        headers = access.cors(request.headers.get("Origin"))
        for name, value in headers.items():
            before = response.headers.get(name) if name == "Vary" else None
            response.headers[name] = f"{before}, {value}" if before else value
        response.headers.update(SAFE)

    return say


def _authorization(request: web.Request) -> str:
    if request.path == LIVE_PATH:
        token = token_of(request.headers.get("Sec-WebSocket-Protocol", ""))
        if token is not None:
            return f"Bearer {token}"
    return request.headers.get("Authorization", "")


def _probe(good: bool, yes: str, no: str) -> web.Response:
    return web.Response(text=f"{yes if good else no}\n", status=200 if good else 503)
