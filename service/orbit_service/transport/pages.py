"""
The web page: what Vite has built, held in memory, for whoever may call the service.

It holds no data and needs no token; it asks for what it shows as any client does. Only
what is in the folder when the service starts can be had, by its whole name: no path leads
anywhere else.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).parents[1] / "dashboard" / "dist"
ASSETS = "/assets/"
NOT_BUILT = (
    "The web page is not part of this installation. In a checkout, `make demo` or `make page` "
    "builds it; then start the service again. Everything else is here: POST /rpc answers calls.\n"
)
# Its own files alone, and nothing within its text: a name that a worker chose, should it ever
# get into the page as anything but text, still runs nothing, loads nothing and sends nothing.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}


@dataclass(frozen=True, slots=True)
class _File:
    plain: bytes
    gzipped: bytes
    content_type: str


def add_pages(app: web.Application, folder: Path = FOLDER) -> frozenset[web.AbstractResource]:
    """Serve the page; the resources that need no token."""
    index = _read(folder / "index.html")
    assets = _read_all(folder / "assets")

    async def page(request: web.Request) -> web.Response:
        if index is None:
            return web.Response(status=503, text=NOT_BUILT)
        # It names the assets by their hashes: after an upgrade the next look gets the new ones.
        return _answer(request, index, "no-cache")

    async def asset(request: web.Request) -> web.Response:
        file = assets.get(request.match_info["name"])
        if file is None:
            raise web.HTTPNotFound(text="there is no such file; load the page again\n")
        return _answer(request, file, "public, max-age=31536000, immutable")

    routes = (app.router.add_get("/", page), app.router.add_get(ASSETS + "{name}", asset))
    return frozenset(route.resource for route in routes if route.resource is not None)


def _read(path: Path) -> _File | None:
    if not path.is_file():
        return None
    plain = path.read_bytes()
    content_type = TYPES.get(path.suffix, "application/octet-stream")
    return _File(plain, gzip.compress(plain, mtime=0), content_type)


def _read_all(folder: Path) -> Mapping[str, _File]:
    paths = folder.iterdir() if folder.is_dir() else ()
    return {path.name: file for path in paths if (file := _read(path)) is not None}


def _answer(request: web.Request, file: _File, keep: str) -> web.Response:
    headers = {**HEADERS, "Cache-Control": keep}
    body = file.plain
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        headers["Content-Encoding"] = "gzip"
        body = file.gzipped
    charset = "utf-8" if file.content_type.startswith("text/") else None
    return web.Response(body=body, content_type=file.content_type, charset=charset, headers=headers)
