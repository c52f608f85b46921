"""
A scrape: which form the asker reads, and the reading in it.

Writing 2,000 series takes some fifty milliseconds; it is done in slices, so that
no worker waits for its acknowledgement meanwhile.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orbit_service.exporters.families import Family, families
from orbit_service.exporters.protobuf import protobuf
from orbit_service.exporters.reading import Reader
from orbit_service.exporters.text import openmetrics, plain

SLICE_SECONDS = 0.005
LEAST_TO_COMPRESS = 4_096  # bytes

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROTOBUF = (
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
)


@dataclass(frozen=True, slots=True)
class Page:
    """What is answered."""

    body: bytes
    content_type: str
    gzipped: bool = False


class Scraper:
    """Answers scrapes of one node."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def scrape(self, accept: str = "", encodings: str = "") -> Page:
        """The page in the form that `accept` prefers, as a request's header has it."""
        form = preferred(accept)
        told = families(await self._reader.read(), self._reader.options)
        pieces = protobuf(told) if form == PROTOBUF else _encoded(told, form)
        body = await unhurried(pieces)
        if len(body) < LEAST_TO_COMPRESS or not takes_gzip(encodings):
            return Page(body, form)
        # In a thread: zlib lets the loop go on. At its lowest level, names that repeat
        # shrink to a twentieth all the same.
        return Page(await asyncio.to_thread(gzip.compress, body, 1), form, gzipped=True)


def _encoded(told: Iterable[Family], form: str) -> Iterator[bytes]:
    write = openmetrics if form == OPENMETRICS else plain
    return (piece.encode() for piece in write(told))


async def unhurried(pieces: Iterator[bytes]) -> bytes:
    """Join the pieces, and let others have their turn every few milliseconds."""
    parts = []
    until = time.monotonic() + SLICE_SECONDS
    for piece in pieces:
        parts.append(piece)
        if time.monotonic() > until:
            await asyncio.sleep(0)
            until = time.monotonic() + SLICE_SECONDS
    return b"".join(parts)


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
    """Whether an Accept-Encoding header takes gzip."""
    wanted = (part.strip().partition(";") for part in encodings.lower().split(","))
    return any(
        name.strip() in ("gzip", "*") and _weight(_params(rest).get("q", "1")) > 0
        for name, _semicolon, rest in wanted
    )
