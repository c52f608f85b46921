"""
A scrape: which form the asker reads, and the reading in it.

Writing 2,000 series takes some hundred milliseconds and makes fifteen megabytes. It is
done in small slices that go out as they are made, so that no worker waits for its
acknowledgement meanwhile, and no more than a family is in memory.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from orbit_service.exporters.families import Family, families
from orbit_service.exporters.protobuf import protobuf
from orbit_service.exporters.reading import Reader
from orbit_service.exporters.text import openmetrics, plain

SLICE_SECONDS = 0.002
CHUNK = 65_536  # bytes
MAX_PAGES = 5  # at a time; a pair of Prometheus and somebody who looks, twice
GZIP = 16 + zlib.MAX_WBITS  # with the header of gzip, RFC 1952

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROTOBUF = (
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
)


@dataclass(frozen=True, slots=True)
class Page:
    """What is answered, in chunks of some 64 KB."""

    content_type: str
    gzipped: bool
    chunks: AsyncIterator[bytes]


class Busy(Exception):
    """As many pages are being written as may be at a time."""


class Scraper:
    """Answers scrapes of one node."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._pages = 0  # being written

    @contextmanager
    def page(self) -> Iterator[None]:
        """Around the writing of one page. Raises Busy."""
        if self._pages >= MAX_PAGES:
            raise Busy
        self._pages += 1
        try:
            yield
        finally:
            self._pages -= 1

    async def scrape(self, accept: str = "", encodings: str = "") -> Page:
        """The page in the form that `accept` prefers, as a request's header has it."""
        form = preferred(accept)
        told = families(await self._reader.read(), self._reader.options)
        pieces = protobuf(told) if form == PROTOBUF else _encoded(told, form)
        chunks = unhurried(pieces)
        if not takes_gzip(encodings):
            return Page(form, False, chunks)
        return Page(form, True, _compressed(chunks))


def _encoded(told: Iterable[Family], form: str) -> Iterator[bytes]:
    write = openmetrics if form == OPENMETRICS else plain
    return (piece.encode() for piece in write(told))


async def unhurried(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces in larger chunks; others have their turn every few milliseconds."""
    parts: list[bytes] = []
    size = 0
    until = time.monotonic() + SLICE_SECONDS
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield b"".join(parts)
            parts, size = [], 0
        if time.monotonic() > until:
            await asyncio.sleep(0)
            until = time.monotonic() + SLICE_SECONDS
    if parts:
        yield b"".join(parts)


async def _compressed(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    # At its lowest level, names that repeat shrink to a twentieth all the same.
    gzip = zlib.compressobj(1, wbits=GZIP)
    async for chunk in chunks:
        if compressed := gzip.compress(chunk):
            yield compressed
    yield gzip.flush()


# ---------------------------------------------------------------- negotiation


def preferred(accept: str) -> str:
    """The content type that an Accept header prefers (RFC 9110, 12.5.1); plain text for others."""
    best, best_weight = PLAIN, 0.0
    for wanted in accept.split(","):
        kind, _semicolon, rest = wanted.strip().partition(";")
        form = _form(kind.strip().lower(), _params(rest))
        weight = _weight(_params(rest).get("q", "1"))
        if form is not None and weight > best_weight:
            best, best_weight = form, weight
    return best


def _form(kind: str, params: dict[str, str]) -> str | None:
    match kind:
        case "application/openmetrics-text":
            # Version 0.0.1 is what 1.0.0 was called before it had its number.
            return OPENMETRICS if params.get("version", "1.0.0") in ("1.0.0", "0.0.1") else None
        case "application/vnd.google.protobuf":
            is_ours = params.get("proto") == "io.prometheus.client.MetricFamily"
            return PROTOBUF if is_ours and params.get("encoding") == "delimited" else None
        case "text/plain" | "text/*" | "*/*":
            return PLAIN
    return None


def _params(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): value.strip().strip('"') for name, _equals, value in pairs}


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def takes_gzip(encodings: str) -> bool:
    """Whether an Accept-Encoding header takes gzip; what it says of any other is for others."""
    wanted = (part.strip().partition(";") for part in encodings.lower().split(","))
    weights = {name.strip(): _weight(_params(rest).get("q", "1")) for name, _, rest in wanted}
    return weights.get("gzip", weights.get("*", 0.0)) > 0
