"""The push: to a collector that is there, that says no, that is away."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from builders import MS, T0, a_batch, a_record, a_session
from orbit_service.exporters.push import Pusher, Target, retry_in


class Collecting:
    """A collector that answers what a test wants."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.answers: list[web.Response] = []  # the next ones; then: taken

    async def take(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        self.bodies.append(await request.read())
        return self.answers.pop(0) if self.answers else web.Response()

    def pushed(self, body: bytes) -> int:
        """The runs in what was pushed."""
        message = ExportMetricsServiceRequest.FromString(body)
        metrics = message.resource_metrics[0].scope_metrics[0].metrics
        runs = next(metric for metric in metrics if metric.name == "orbit.runs")
        return sum(point.as_int for point in runs.sum.data_points)


@pytest.fixture
def collecting() -> Collecting:
    return Collecting()


@pytest.fixture
async def pusher(collecting, aiohttp_server, collector, reader):
    app = web.Application()
    app.router.add_post("/v1/metrics", collecting.take)
    server = await aiohttp_server(app)
    collector.record(a_session(collector), a_record(1, a_batch(MS, MS)), T0)
    url = str(server.make_url("/v1/metrics"))
    return Pusher(reader(), Target(url, 0.01, "1.2.3", headers={"api-key": "secret"}))


async def test_a_push_carries_the_counts_and_says_who_it_is_from(pusher, collecting):
    await pusher.push()

    [request], [body] = collecting.requests, collecting.bodies
    assert collecting.pushed(body) == 2
    assert request.headers["api-key"] == "secret"
    assert request.headers["Content-Encoding"] == "gzip"  # aiohttp has undone it
    assert request.headers["Content-Type"] == "application/x-protobuf"
    assert request.headers["User-Agent"] == "orbit-metrics/1.2.3"
    assert (pusher.trouble, pusher.pushes) == (None, {"success": 1, "failure": 0})


async def test_what_a_failed_push_would_have_told_the_next_one_tells(pusher, collecting, collector):
    collecting.answers = [web.Response(status=503)]
    await pusher.push()
    assert pusher.trouble == "HTTP 503"

    collector.record(collector.sessions["s1"], a_record(2, a_batch(MS), recorded=3), T0)
    await pusher.push()
    assert collecting.pushed(collecting.bodies[-1]) == 3
    assert (pusher.trouble, pusher.pushes) == (None, {"success": 1, "failure": 1})


async def test_a_collector_says_when_it_wants_the_next(pusher, collecting):
    headers = {"Retry-After": "7"}
    collecting.answers = [web.Response(status=status, headers=headers) for status in (429, 400)]

    assert await pusher.push() == 7
    assert await pusher.push() is None  # it will not take this one at any time


async def test_points_that_are_not_taken_are_counted(pusher, collecting):
    answer = ExportMetricsServiceResponse()
    answer.partial_success.rejected_data_points = 3
    body = answer.SerializeToString()
    collecting.answers = [web.Response(body=body), web.Response(body=body)]
    await pusher.push()
    await pusher.push()

    assert pusher.rejected == 6
    assert pusher.trouble is None


async def test_a_redirect_is_not_followed(pusher, collecting):
    collecting.answers = [web.Response(status=307, headers={"Location": "/elsewhere"})]
    await pusher.push()

    assert pusher.trouble == "HTTP 307 Temporary Redirect"


async def test_an_answer_that_makes_no_sense_is_no_failure(pusher, collecting):
    collecting.answers = [web.Response(body=b"\xff\xff\xff")]
    await pusher.push()

    assert pusher.trouble is None


async def test_a_collector_that_does_not_answer_is_waited_for_only_so_long(reader):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/metrics"
        pusher = Pusher(reader(), Target(url, 60, "1.2.3"))
        await pusher.push(seconds=0.05)

    assert pusher.trouble is not None


async def test_a_collector_that_is_away_is_a_trouble_and_no_exception(reader):
    pusher = Pusher(reader(), Target("http://127.0.0.1:1/v1/metrics", 60, "1.2.3"))
    await pusher.push()

    assert "127.0.0.1" in pusher.trouble


async def test_what_cannot_be_made_at_all_is_a_failure_and_no_exception(pusher, monkeypatch):
    monkeypatch.setattr(pusher, "_body", lambda _reading: int("no number"))
    await pusher.push()

    assert (pusher.trouble, pusher.pushes["failure"]) == ("ValueError", 1)


async def test_it_pushes_at_each_interval(pusher, collecting):
    async def three() -> None:
        while len(collecting.bodies) < 3:
            await asyncio.sleep(0.001)

    pushing = asyncio.create_task(pusher.run())
    await asyncio.wait_for(three(), 20)
    pushing.cancel()


@pytest.mark.parametrize(
    ("failed", "asked", "least"),
    [
        pytest.param(1, None, 60, id="at the next interval"),
        pytest.param(2, None, 120, id="then twice as long"),
        pytest.param(9, None, 300, id="at most five minutes"),
        pytest.param(99, None, 300, id="however often"),
        pytest.param(1, 100, 100, id="as asked"),
        pytest.param(1, 5, 60, id="no sooner than it would have"),
    ],
)
def test_the_next_try_comes_later_each_time(failed, asked, least):
    assert least <= retry_in(failed, 60, asked) <= 1.1 * least
