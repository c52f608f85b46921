"""
arq: a decorator of the settings, or a line below them.

    @orbit_worker.integrations.arq.install
    class WorkerSettings:
        functions = [send_mail]

arq's hooks know neither a job's function nor its outcome. So the functions are measured
where they are called, and the hooks, in front of the user's own, tell why one was
cancelled. What arq fails without calling it (expired, unknown, tried too often) it tells
nobody, but it serialises a result for each; the serialiser is a setting too.

A run is a job id and the time at which it was enqueued, so that an id that is used again
is another run. Given up: how long a later try waited, because arq does not tell since when
it could have begun.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import pickle
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from orbit_worker.client import MetricsClient
from orbit_worker.details import ErrorLike
from orbit_worker.integrations import needs
from orbit_worker.integrations._tasks import Task, Tasks, waited_ms

with needs("arq", "arq"):
    from arq.utils import to_seconds, to_unix_ms
    from arq.version import VERSION as ARQ_VERSION
    from arq.worker import Retry, RetryJob, Worker, func

DEPTH_SECONDS = 5.0  # how long Redis may take to tell the depth of the queue

Settings = TypeVar("Settings", bound="type | dict[str, Any]")
Context = dict[str, Any]
Hook = Callable[[Context], Awaitable[Any]]


def install(
    settings: Settings, *, client: MetricsClient | None = None, version: str | None = None
) -> Settings:
    """Record the jobs of a worker with these settings, and return them.

    Hooks, functions and a serialiser that they have already are kept and called.
    """
    # Like arq, which sees nothing that a class inherits.
    own: Mapping[str, Any] = settings if isinstance(settings, dict) else vars(settings)
    jobs = _Jobs(own, Tasks(client), version)
    changed: dict[str, Any] = {
        "on_startup": _both(jobs.on_startup, own.get("on_startup")),
        "on_shutdown": _both(jobs.on_shutdown, own.get("on_shutdown")),
        "on_job_start": _both(own.get("on_job_start"), jobs.on_job_start),
        "on_job_end": _both(jobs.on_job_end, own.get("on_job_end")),
        "job_serializer": jobs.serializer(own.get("job_serializer") or pickle.dumps),
    }
    if "functions" in own:
        changed["functions"] = _Measured(own["functions"], lambda f: jobs.measured(func(f)))
    if own.get("cron_jobs") is not None:
        changed["cron_jobs"] = _Measured(own["cron_jobs"], jobs.measured)
    for name, value in changed.items():
        if isinstance(settings, dict):
            settings[name] = value
        else:
            setattr(settings, name, value)
    return settings


@dataclass(slots=True)
class _Job:
    """A job between on_job_start and on_job_end."""

    began: float  # by the loop's clock, just before its timeout begins to run
    run: str | None = None  # None until its function is called
    timeout: float | None = None
    cancelled: asyncio.CancelledError | None = None
    from_outside: bool = False  # it was cancelled, and did not raise that by itself


class _Jobs:
    """The jobs of one worker."""

    def __init__(self, settings: Mapping[str, Any], tasks: Tasks, version: str | None) -> None:
        self._settings = settings
        self._defaults = inspect.signature(Worker).parameters
        self._tasks = tasks
        self._version = version
        self._running: dict[str, _Job] = {}
        self._queue: str | None = None
        self._redis: Any = None

    def _setting(self, name: str) -> Any:
        return self._settings.get(name, self._defaults[name].default)

    # ------------------------------------------------------------ the worker

    async def on_startup(self, ctx: Context) -> None:
        self._redis = ctx["redis"]
        self._queue = self._setting("queue_name") or self._redis.default_queue_name
        loop = asyncio.get_running_loop()
        client = self._tasks.client
        client.describe(
            version=self._version,
            framework=f"arq {ARQ_VERSION}",
            slots=self._setting("max_jobs"),
            queue_depths=lambda: self._depths(loop),
        )
        client.connect()

    async def on_shutdown(self, ctx: Context) -> None:  # noqa: ARG002
        self._redis = None

    def _depths(self, loop: asyncio.AbstractEventLoop) -> dict[str, int]:
        """Jobs that are due, without those that run here: arq leaves them in the queue."""
        redis, queue = self._redis, self._queue
        if redis is None or queue is None:
            return {}
        due = redis.zcount(queue, "-inf", int(time.time() * 1000))
        depth = asyncio.run_coroutine_threadsafe(due, loop).result(DEPTH_SECONDS)
        return {queue: depth - len(self._running)}

    # ------------------------------------------------------------ a job

    async def on_job_start(self, ctx: Context) -> None:
        self._running[ctx["job_id"]] = _Job(asyncio.get_running_loop().time())

    def measured(self, function: Any) -> Any:
        """The Function or CronJob, with a coroutine function that is recorded."""
        coroutine = function.coroutine

        @functools.wraps(coroutine)
        async def recorded(ctx: Context, *args: Any, **kwargs: Any) -> Any:
            job, run = self._begin(function, ctx)
            try:
                result = await coroutine(ctx, *args, **kwargs)
            except asyncio.CancelledError as cancelled:
                # A timeout, an abort, a shutdown or its own: on_job_end can tell.
                task = asyncio.current_task()
                job.cancelled, job.from_outside = cancelled, bool(task and task.cancelling())
                raise
            except BaseException as error:
                again = self._setting("retry_jobs") and isinstance(error, Retry | RetryJob)
                self._tasks.end(run, error, final=not again)
                raise
            self._tasks.end(run)
            return result

        return replace(function, coroutine=recorded)

    def _begin(self, function: Any, ctx: Context) -> tuple[_Job, str]:
        id, attempt = ctx["job_id"], ctx["job_try"]
        enqueued_ms = to_unix_ms(ctx["enqueue_time"])
        run = _run_id(id, enqueued_ms)
        job = self._running.setdefault(id, _Job(asyncio.get_running_loop().time()))
        job.run, job.timeout = run, function.timeout_s
        # The score is when it is due; an abort that this worker does not heed sets it to 1.
        due_ms = max(ctx["score"], enqueued_ms)
        self._tasks.begin(
            Task(
                id=run,
                pipeline=function.name,
                attempt=attempt,
                queue=self._queue,
                wait_ms=waited_ms(due_ms / 1000) if attempt == 1 else None,
            )
        )
        return job, run

    async def on_job_end(self, ctx: Context) -> None:
        job = self._running.pop(ctx["job_id"], None)
        if job is None or job.run is None or job.cancelled is None:
            return
        around = asyncio.current_task()  # a shutdown cancels this one; all else, the function's
        stopping = around is not None and around.cancelling() > 0
        again = self._setting("retry_jobs") and (stopping or not job.from_outside)
        error: ErrorLike = job.cancelled
        timeout = to_seconds(self._setting("job_timeout")) if job.timeout is None else job.timeout
        took = asyncio.get_running_loop().time() - job.began
        if job.from_outside and not stopping and timeout is not None and took >= timeout:
            error = {"type": "TimeoutError", "message": f"not done within {timeout:g} s"}
        self._tasks.end(job.run, error, final=not again)

    # ------------------------------------------------------------ a job that is not called

    def serializer(self, serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        """The user's serialiser, which sees the results of jobs that arq fails by itself."""

        def serialized(data: Any) -> bytes:
            error = data.get("r")
            job = self._running.get(data.get("id"))
            if isinstance(error, BaseException) and (job is None or job.run is None):
                self._not_called(data, error)
            return serialize(data)

        return serialized

    def _not_called(self, result: Mapping[str, Any], error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError) and result["t"] == 1:
            return  # aborted before it began
        expired = str(error) == "job expired"
        self._tasks.fail(
            Task(
                # Of an expired job nothing is left but the id: not its function, nor since when.
                id=_run_id(result["id"], result["et"] or result["st"]),
                pipeline=result["f"],
                attempt=result["t"],
                queue=self._queue,
            ),
            {"type": "Expired", "message": "it was not begun in time"} if expired else error,
        )


class _Measured:
    """The user's functions as they are when the worker takes them, each one measured."""

    def __init__(self, functions: Iterable[Any], measure: Callable[[Any], Any]) -> None:
        self._functions = functions
        self._measure = measure

    def __iter__(self) -> Iterator[Any]:
        return map(self._measure, self._functions)


def _both(first: Hook | None, second: Hook | None) -> Hook:
    """One hook that calls both, in this order."""
    hooks = [hook for hook in (first, second) if hook is not None]

    async def hook(ctx: Context) -> None:
        for each in hooks:
            await each(ctx)

    return hook


def _run_id(job_id: str, enqueued_ms: int) -> str:
    return f"{job_id}@{enqueued_ms}"
