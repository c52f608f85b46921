"""
`track`: a run as a block or a function, with its steps, outcome and error.

Whatever exception leaves the block makes the run a failure, CancelledError and
SystemExit included, and passes.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, TypeVar

from orbit_rpc_schema.wire import MAX_PROGRESS_STEPS, MAX_STEPS, Json, as_name
from orbit_worker.details import make_detail

F = TypeVar("F", bound=Callable[..., Any])


class Recorder(Protocol):
    """Where runs go; MetricsClient is one. A fork gives it another session."""

    session: str

    def _begin_run(self, pipeline: str, id: str | None) -> tuple[str, int]:
        """Announce a run; its id and its start in epoch milliseconds."""

    def _follow_run(self, pipeline: str, id: str, progress: Callable[[], Json]) -> None:
        """Ask now and then how far it is."""

    def _end_run(
        self, pipeline: str, duration_ms: float, success: bool, *, queue: str | None, detail: Json
    ) -> None:
        """Record the end of an announced run."""


class Run:
    """One run under way. Made by `track`."""

    def __init__(self, tracker: Tracker, client: Recorder, id: str, started_at_ms: int) -> None:
        self.id = id
        self.entered: object = None  # the thread and task, of blocks that share a tracker
        self._tracker = tracker
        self._client = client
        self._session = client.session
        self._started_at_ms = started_at_ms
        self._started = time.perf_counter()
        self._steps: list[Json] = []
        self._followed = False
        self._under_way: list[str] = []  # names of steps that have begun, and not ended

    def step(self, name: str) -> Step:
        """`with run.step("parse"):` measures a named part of the run."""
        if not self._followed:
            self._followed = True
            self._client._follow_run(self._tracker.pipeline, self.id, self._progress)
        return Step(self._steps, self._under_way, as_name(name))

    def _progress(self) -> Json:
        return {
            "id": self.id,
            "pipeline": self._tracker.pipeline,
            "done": self._steps[-MAX_PROGRESS_STEPS:],
            "now": self._under_way[-MAX_PROGRESS_STEPS:],
        }

    def _end(self, error: BaseException | None) -> None:
        duration_ms = (time.perf_counter() - self._started) * 1000
        if self._client.session != self._session:
            return  # the run belongs to the process that this one was forked from
        tracker = self._tracker
        detail: Json = {"id": self.id}
        if self._steps:
            detail["steps"] = self._steps[:MAX_STEPS]
        if error is not None or tracker.says_more:
            detail |= make_detail(attempt=tracker.attempt, wait_ms=tracker.wait_ms, error=error)
        self._client._end_run(
            tracker.pipeline, duration_ms, error is None, queue=tracker.queue, detail=detail
        )


class Step(AbstractContextManager["Step"]):
    """A named part of a run."""

    def __init__(self, steps: list[Json], under_way: list[str], name: str) -> None:
        self._steps = steps
        self._under_way = under_way
        self._name = name
        self._started = 0.0

    def __enter__(self) -> Step:
        self._under_way.append(self._name)
        self._started = time.perf_counter()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        duration_us = int((time.perf_counter() - self._started) * 1_000_000 + 0.5)
        step: Json = {"name": self._name, "durationUs": duration_us}
        if error is not None:
            step["failed"] = True
        self._steps.append(step)
        if self._name in self._under_way:
            self._under_way.remove(self._name)


class Tracker:
    """What `track(...)` gives: a context manager, sync and async, and a decorator.

    One tracker may be entered many times, also at once: a decorated function is.
    """

    def __init__(
        self,
        client: Callable[[], Recorder],
        pipeline: str,
        *,
        id: str | None = None,
        attempt: int = 1,
        queue: str | None = None,
        wait_ms: float | None = None,
    ) -> None:
        # Here and not at the end of the block, when the host's work is done.
        if type(attempt) is not int or not (wait_ms is None or isinstance(wait_ms, (float, int))):
            raise TypeError("attempt is an int, and wait_ms a number of milliseconds")
        self.pipeline = as_name(pipeline)
        self.attempt = attempt
        self.queue = None if queue is None else as_name(queue)
        self.wait_ms = wait_ms
        self.says_more = attempt != 1 or wait_ms is not None
        self._id = id
        self._client = client
        self._runs: list[Run] = []

    def begin(self) -> Run:
        client = self._client()
        id, started_at_ms = client._begin_run(self.pipeline, self._id)
        return Run(self, client, id, started_at_ms)

    def __enter__(self) -> Run:
        run = self.begin()
        run.entered = _here()
        self._runs.append(run)
        return run

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        runs = self._runs[:]
        run = runs[-1]
        if len(runs) > 1:
            here = _here()
            run = next((run for run in reversed(runs) if run.entered == here), run)
        self._runs.remove(run)
        run._end(error)

    async def __aenter__(self) -> Run:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: F) -> F:
        """Track each call of a function, plain or async."""
        import inspect  # a tenth of what importing this package would cost

        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{function.__qualname__} is a generator: it has not run when its call returns. "
                "Put `with track(...)` around the loop that consumes it."
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def tracked_async(*args: Any, **kwargs: Any) -> Any:
                with self._fresh():
                    return await function(*args, **kwargs)

            return tracked_async  # type: ignore[return-value]  # the same signature, by wraps

        @functools.wraps(function)
        def tracked(*args: Any, **kwargs: Any) -> Any:
            with self._fresh():
                return function(*args, **kwargs)

        return tracked  # type: ignore[return-value]  # the same signature, by wraps

    def _fresh(self) -> Tracker:
        """A tracker of one call: calls of one function run at the same time."""
        return Tracker(
            self._client,
            self.pipeline,
            id=self._id,
            attempt=self.attempt,
            queue=self.queue,
            wait_ms=self.wait_ms,
        )


def _here() -> object:
    """The thread and, where there is one, the asyncio task that runs."""
    # current_task alone would raise where no loop runs, which costs more than all of this.
    running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    loop = running and running()
    return threading.get_ident(), loop and sys.modules["asyncio"].current_task(loop)
