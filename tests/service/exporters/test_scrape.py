"""A scrape: the form that the asker reads."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from builders import MS, T0, a_batch, a_record, a_session
from orbit_service.exporters.scrape import (
    CHUNK,
    OPENMETRICS,
    PLAIN,
    PROTOBUF,
    SLICE_SECONDS,
    Page,
    Scraper,
    preferred,
    takes_gzip,
    unhurried,
)

OPEN = "application/openmetrics-text"
PROTO = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        pytest.param("", PLAIN, id="nothing said"),
        pytest.param("*/*", PLAIN, id="curl"),
        pytest.param("text/html,*/*;q=0.8", PLAIN, id="a browser"),
        pytest.param(
            f"{OPEN};version=1.0.0,{OPEN};version=0.0.1;q=0.75,text/plain;q=0.5,*/*;q=0.1",
            OPENMETRICS,
            id="Prometheus 2",
        ),
        pytest.param(
            f"{PROTO};q=0.6,{OPEN};version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            PROTOBUF,
            id="Prometheus with native histograms",
        ),
        pytest.param(f"{OPEN};version=2.0.0", PLAIN, id="an OpenMetrics that we do not speak"),
        pytest.param(f"{OPEN};q=0,text/plain", PLAIN, id="a form that is not wanted"),
        pytest.param("application/vnd.google.protobuf;proto=other", PLAIN, id="other messages"),
        pytest.param("text/plain;q=high, ;;=,", PLAIN, id="nonsense"),
    ],
)
def test_the_form_is_the_one_that_is_preferred(accept, form):
    assert preferred(accept) == form


@pytest.mark.parametrize(
    ("encodings", "taken"),
    [
        ("", False),
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("*", True),
        ("gzip;q=0,*", False),
    ],
)
def test_a_page_is_compressed_for_whoever_takes_that(encodings, taken):
    assert takes_gzip(encodings) is taken


async def body(page: Page) -> bytes:
    return b"".join([chunk async for chunk in page.chunks])


async def test_a_page_holds_the_runs_in_its_form(collector, reader):
    collector.record(a_session(collector), a_record(1, a_batch(MS)), T0)
    scraper = Scraper(reader())
    plain = await scraper.scrape()
    opened = await scraper.scrape(OPEN)
    packed = await scraper.scrape(OPEN, "gzip")

    assert (plain.content_type, plain.gzipped) == (PLAIN, False)
    line = b'orbit_runs_total{worker="mailer",pipeline="send",outcome="success"} 1\n'
    assert line in await body(plain)
    text = await body(opened)
    assert text.endswith(b"# EOF\n")
    assert packed.gzipped
    assert gzip.decompress(await body(packed)) == text
    assert (await scraper.scrape(PROTO)).content_type == PROTOBUF


async def test_others_have_their_turn_while_a_long_page_is_written():
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def slow():
        loop = asyncio.get_running_loop()
        for _ in range(3):
            until = loop.time() + 2 * SLICE_SECONDS
            while loop.time() < until:
                pass
            yield b"piece"

    task = asyncio.create_task(others())
    chunks = [chunk async for chunk in unhurried(slow())]
    assert b"".join(chunks) == b"piece" * 3
    task.cancel()
    assert turns >= 3


async def test_a_long_page_comes_in_chunks():
    pieces = iter([b"x" * (CHUNK // 2)] * 5)
    chunks = [len(chunk) async for chunk in unhurried(pieces)]

    assert chunks == [CHUNK, CHUNK, CHUNK // 2]
