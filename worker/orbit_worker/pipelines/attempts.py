"""Execute one step: tries, waits between them, a time-out for each, and an outcome as data."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import threading
import time
from typing import Any, TypedDict

from orbit_rpc_schema.wire import Json
from orbit_worker.details import error_json
from orbit_worker.pipelines.definition import Step


class Outcome(TypedDict):
    """What became of a step; `error` is None when it succeeded."""

    value: Any
    error: Json | None
    attempts: int
    duration_ms: float


class StepTimeout(Exception):
    """A try took longer than its time-out."""


def execute(step: Step, value: Any) -> Outcome:
    """Never raises: an outcome can be stored, an exception not always."""
    started = time.perf_counter()
    attempts = 0
    while True:
        attempts += 1
        result: Any = None
        error: Json | None = None
        try:
            result = _try(step, value)
            # It is stored, so that a finished step is not executed again after a
            # crash; one that cannot be stored or read back is told of here and now.
            pickle.loads(pickle.dumps(result))  # written a moment ago, right here
        except BaseException as raised:  # noqa: BLE001  # SystemExit too: the worker goes on
            error, result = error_json(raised), None
        if error is None or attempts > step.retries:
            return Outcome(
                value=result,
                error=error,
                attempts=attempts,
                duration_ms=(time.perf_counter() - started) * 1000,
            )
        time.sleep(step.backoff * 2 ** (attempts - 1))


def _try(step: Step, value: Any) -> Any:
    if inspect.iscoroutinefunction(step.function):
        return asyncio.run(_cancelling(step, value))
    if step.timeout is None:
        return step.function(value)
    return _in_time(step, value, step.timeout)


async def _cancelling(step: Step, value: Any) -> Any:
    scope = asyncio.timeout(step.timeout)
    try:
        async with scope:
            return await step.function(value)
    except TimeoutError as error:
        if scope.expired():
            raise _timed_out(step) from error
        raise  # the function's own


def _in_time(step: Step, value: Any, timeout: float) -> Any:
    outcome: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            outcome.append((step.function(value), None))
        except BaseException as error:  # noqa: BLE001  # handed over to the thread that waits
            outcome.append((None, error))

    thread = threading.Thread(target=work, name=f"step-{step.name}", daemon=True)
    thread.start()
    thread.join(timeout)
    if not outcome:
        raise _timed_out(step)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _timed_out(step: Step) -> StepTimeout:
    return StepTimeout(f"{step.name} took longer than {step.timeout:g} s")
