"""
The push to an OpenTelemetry collector: OTLP over HTTP, in protobuf.

opentelemetry.io/docs/specs/otlp/#otlphttp. Sums are cumulative, so that a push that
fails loses nothing: the next one carries it all. While the collector is away pushes
come less often, as it asks or by and by; the last one is made when the service stops.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
from loguru import logger

from orbit_service.exporters.families import families
from orbit_service.exporters.otlp import rejected, request
from orbit_service.exporters.reading import Reader, Reading

POST_SECONDS = 10.0
LONGEST_RETRY = 300.0
MAX_ANSWER = 65_536  # bytes that are read of what the collector says
RETRYABLE = (429, 502, 503, 504)  # opentelemetry.io/docs/specs/otlp/#retryable-response-codes


@dataclass(frozen=True, slots=True)
class Target:
    """Where to push, how often in seconds, and who we are there."""

    url: str
    interval: float
    version: str
    headers: Mapping[str, str] = field(default_factory=dict)
    resource: Mapping[str, str] = field(default_factory=dict)


class NotTaken(Exception):
    """The collector is away or did not take it; the text says why."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class Pusher:
    """Pushes one node's readings. `trouble` says why the last push failed, or is None."""

    def __init__(self, reader: Reader, target: Target) -> None:
        self.trouble: str | None = None
        self.pushes: Counter[str] = Counter(success=0, failure=0)
        self.rejected = 0  # points
        self._reader = reader
        self._target = target
        self._failed_in_a_row = 0

    async def run(self) -> None:
        """Push at each interval until cancelled."""
        due = time.monotonic()
        while True:
            due = max(due + self._target.interval, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            retry_after = await self.push()
            if self.trouble is not None:
                wait = retry_in(self._failed_in_a_row, self._target.interval, retry_after)
                due = time.monotonic() + wait - self._target.interval

    async def push(self, seconds: float = POST_SECONDS) -> float | None:
        """Push once; never raises. After how many seconds the collector wants the next, if so."""
        try:
            await self._push(seconds)
        except NotTaken as why:
            self._failed(str(why))
            return why.retry_after
        except Exception as error:  # noqa: BLE001  # ours to mend; the next push may go better
            logger.opt(exception=error).error("a push could not be made")
            self._failed(type(error).__name__)
            return None
        self.pushes["success"] += 1
        self._failed_in_a_row = 0
        if self.trouble is not None:
            logger.info("the push to {} works again", self._target.url)
        self.trouble = None
        return None

    def _failed(self, why: str) -> None:
        self.pushes["failure"] += 1
        self._failed_in_a_row += 1
        if self.trouble is None:
            logger.warning("the push to {} failed: {}", self._target.url, why)
        self.trouble = why

    async def _push(self, seconds: float) -> None:
        reading = await self._reader.read()
        # In a thread: making thousands of messages takes longer than a worker should wait.
        body = await asyncio.to_thread(self._body, reading)
        headers = {
            **self._target.headers,
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "gzip",
            "User-Agent": f"orbit-metrics/{self._target.version}",
        }
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            # A session of its own: at one push a minute a connection would not be kept.
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(
                    self._target.url, data=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                await self._look_at(answer)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise NotTaken(str(error) or type(error).__name__) from None

    def _body(self, reading: Reading) -> bytes:
        target = self._target
        told = families(reading, self._reader.options)
        return gzip.compress(request(told, target.resource, target.version, reading.at_ms), 1)

    async def _look_at(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status in RETRYABLE:
            raise NotTaken(f"HTTP {answer.status}", _seconds(answer.headers.get("Retry-After")))
        if not 200 <= answer.status < 300:
            raise NotTaken(f"HTTP {answer.status} {answer.reason}")
        points, why = rejected(await answer.content.read(MAX_ANSWER))
        if points and not self.rejected:
            logger.warning("{} did not take {} points: {}", self._target.url, points, why)
        self.rejected += points


def retry_in(failed_in_a_row: int, interval: float, retry_after: float | None) -> float:
    """Seconds until the next push: as asked for, else twice as long after each failure.

    Never sooner than the interval, and a tenth of it at random, so that many nodes do
    not come back at once.
    """
    wait = interval * 2.0 ** min(failed_in_a_row - 1, 10)
    wait = max(min(wait, max(LONGEST_RETRY, interval)), retry_after or 0.0)
    return wait * random.uniform(1.0, 1.1)


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After in seconds, at most an hour; a date is passed over."""
    if retry_after is None or not retry_after.isdecimal():
        return None
    return min(float(retry_after), 3600.0)
