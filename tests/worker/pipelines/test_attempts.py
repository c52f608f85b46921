"""One step: its tries, its time-out, and an outcome that can be stored."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from orbit_worker.pipelines import Step, step
from orbit_worker.pipelines.attempts import execute


def failing(times: int) -> Callable[[Any], Any]:
    """A function that raises so many times and then gives its argument back."""
    left = [times]

    def function(value: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise ValueError(f"{left[0]} to go")
        return value

    return function


def test_a_step_that_succeeds_gives_its_result():
    outcome = execute(Step("double", lambda n: 2 * n), 21)

    assert (outcome["value"], outcome["error"], outcome["attempts"]) == (42, None, 1)


@pytest.mark.parametrize(
    ("failures", "retries", "attempts", "good"),
    [(0, 2, 1, True), (2, 2, 3, True), (3, 2, 3, False), (1, 0, 1, False)],
)
def test_a_failing_step_is_tried_again_as_often_as_it_says(failures, retries, attempts, good):
    outcome = execute(Step("s", failing(failures), retries=retries, backoff=0), 1)

    assert (outcome["attempts"], outcome["error"] is None) == (attempts, good)


def test_the_last_error_is_told_with_its_type_message_and_place():
    error = execute(Step("s", failing(1)), 1)["error"]

    assert (error["type"], error["message"]) == ("ValueError", "0 to go")
    assert "in function" in error["traceback"]


def test_an_async_step_is_awaited():
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        return 2 * n

    assert execute(step(double), 4)["value"] == 8


def test_an_async_step_over_its_time_is_cancelled():
    cancelled = []

    async def wait(_value: Any) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    outcome = execute(step(timeout=0.02)(wait), None)

    assert (outcome["error"]["type"], cancelled) == ("StepTimeout", [True])


@pytest.mark.parametrize("timeout", [None, 30], ids=["without limit", "within its time"])
def test_a_time_out_of_the_steps_own_is_its_error_and_not_the_limit(timeout):
    async def ask(_value: Any) -> None:
        raise TimeoutError("the database is slow")

    error = execute(step(timeout=timeout)(ask), None)["error"]

    assert (error["type"], error["message"]) == ("TimeoutError", "the database is slow")


def test_the_limit_is_told_with_the_step_and_its_seconds():
    async def wait(_value: Any) -> None:
        await asyncio.Event().wait()

    error = execute(step(timeout=0.02)(wait), None)["error"]

    assert (error["type"], error["message"]) == ("StepTimeout", "wait took longer than 0.02 s")


def test_a_plain_step_over_its_time_fails_and_is_not_waited_for():
    release = threading.Event()
    try:
        outcome = execute(step(timeout=0.02)(lambda _value: release.wait(30)), None)
    finally:
        release.set()

    assert outcome["error"]["type"] == "StepTimeout"
    assert outcome["duration_ms"] < 10_000


def test_a_step_that_leaves_by_sys_exit_is_a_failure_and_the_worker_goes_on():
    assert execute(Step("s", lambda _value: sys.exit(3)), None)["error"]["type"] == "SystemExit"


def test_a_result_that_cannot_be_stored_is_a_failure():
    assert execute(Step("s", lambda _value: lambda: None), None)["error"] is not None
