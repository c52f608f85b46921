"""The page's files: who gets them, how they are kept, and what they may do in a browser."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from orbit_service.transport.access import Access
from orbit_service.transport.http import HttpOptions, make_app
from orbit_service.transport.pages import FOLDER

SCRIPT = b"console.log('here');" * 9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A page as Vite leaves it, with a secret beside it."""
    assets = tmp_path / "dist" / "assets"
    assets.mkdir(parents=True)
    (tmp_path / "secret.js").write_text("secret")
    (tmp_path / "dist" / "index.html").write_text("<h1>Orbit Metrics</h1>")
    (assets / "index-abc.js").write_bytes(SCRIPT)
    (assets / "index-abc.css").write_text("a{}")
    (assets / "icon-abc.svg").write_text("<svg/>")
    return tmp_path / "dist"


@pytest.fixture
def serve(aiohttp_client, folder):
    async def serve(page: Path = folder, **access: Any) -> TestClient:
        """The application with this page; nothing else of it is asked."""
        options = HttpOptions({}, Access(**access), page=page)
        parts: Any = dict.fromkeys(("dispatcher", "ready", "health", "live"))
        app: web.Application = make_app(options=options, **parts)
        return await aiohttp_client(app, auto_decompress=False)

    return serve


@pytest.fixture
def raw():
    async def raw(http: TestClient, path: str) -> tuple[int, bytes]:
        """Status and body for a path that goes out as it stands, which no client of ours does."""
        reader, writer = await asyncio.open_connection(http.host, http.port)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]

    return raw


async def test_the_page_is_looked_at_anew_and_its_files_are_kept_for_good(serve):
    http = await serve()
    page, script = await http.get("/"), await http.get("/assets/index-abc.js")

    assert (page.status, page.content_type) == (200, "text/html")
    assert page.headers["Cache-Control"] == "no-cache"
    assert (script.status, script.content_type) == (200, "text/javascript")
    assert script.headers["Cache-Control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize(
    ("name", "content_type"), [("index-abc.css", "text/css"), ("icon-abc.svg", "image/svg+xml")]
)
async def test_a_file_says_what_it_is(serve, name, content_type):
    response = await (await serve()).get(f"/assets/{name}")

    assert response.content_type == content_type
    assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_file_is_sent_compressed_to_whoever_takes_it(serve):
    http = await serve()
    small = await http.get("/assets/index-abc.js", headers={"Accept-Encoding": "gzip, br"})
    plain = await http.get("/assets/index-abc.js", headers={"Accept-Encoding": "identity"})

    assert small.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(await small.read()) == await plain.read() == SCRIPT
    assert small.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"


@pytest.mark.parametrize("path", ["/", "/assets/index-abc.js"])
async def test_nothing_runs_in_the_page_but_its_own_files(serve, path):
    response = await (await serve()).get(path)

    policy = dict(
        part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; ")
    )
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert response.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../secret.js",
        "/assets/..%2f..%2fsecret.js",
        "/assets/%2e%2e/%2e%2e/secret.js",
        "/assets/..%5c..%5csecret.js",
        "/assets//etc/passwd",
        "/assets/index-abc.js%00",
        "/assets/.",
        "/assets/",
        "/assets",
    ],
)
async def test_no_path_leads_out_of_the_folder(serve, raw, path):
    status, body = await raw(await serve(), path)

    assert status == 404
    assert b"secret" not in body


async def test_the_page_needs_no_token(serve):
    http = await serve(token="correct-horse")

    assert (await http.get("/")).status == 200
    assert (await http.get("/assets/index-abc.js")).status == 200
    assert (await http.get("/assets/there-is-none.js")).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/openrpc.json",
        "//openrpc.json",
        "/assets/../openrpc.json",
        "/assets/%2e%2e/openrpc.json",
        "/assets/..%2fopenrpc.json",
        "/?/../openrpc.json",
        "/./openrpc.json",
    ],
)
async def test_no_spelling_of_a_path_gets_past_the_token(serve, raw, path):
    _status, body = await raw(await serve(token="correct-horse"), path)

    assert b"{}" not in body  # the document


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}], ids=str
)
@pytest.mark.parametrize("path", ["/", "/assets/index-abc.js"])
async def test_the_page_is_not_for_other_names_and_origins(serve, path, headers):
    assert (await (await serve()).get(path, headers=headers)).status == 403


async def test_the_page_cannot_be_written_to(serve):
    assert (await (await serve()).post("/")).status == 405


async def test_without_the_built_page_the_service_says_how_to_get_it(serve, tmp_path):
    response = await (await serve(page=tmp_path / "nowhere")).get("/")

    assert response.status == 503
    assert "`make demo`" in await response.text()


@pytest.mark.skipif(not FOLDER.exists(), reason="the page was not built: make page")
def test_the_page_is_under_60_kilobytes_in_all():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]

    assert sum(len(gzip.compress(path.read_bytes(), mtime=0)) for path in files) < 60_000
