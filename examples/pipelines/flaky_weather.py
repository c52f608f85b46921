"""A step that fails now and then and is retried, and an async one with a time-out."""

import asyncio
import random
from typing import Any

from orbit_worker.pipelines import Pipeline, step


class StationSilent(Exception):
    """The weather station did not answer."""


@step(retries=4, backoff=0.02)
def ask_station(request: dict[str, Any]) -> dict[str, Any]:
    """Fails two times in five, as a station on a hill does."""
    if random.random() < 0.4:  # weather is not a secret
        raise StationSilent(f"no answer for city {request['city']}")
    return {**request, "degrees": random.gauss(12, 6)}


@step(timeout=2)
async def publish(reading: dict[str, Any]) -> str:
    await asyncio.sleep(0.005)
    return f"{reading['degrees']:.1f} degrees in city {reading['city']}"


pipeline = Pipeline(
    "flaky_weather",
    description="Asks a station that often does not answer",
    steps=[ask_station, publish],
)
