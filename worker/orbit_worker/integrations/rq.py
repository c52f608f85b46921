"""
RQ, by the class of its worker.

    rq worker -w orbit_worker.integrations.rq.Worker

or SimpleWorker or SpawnWorker from here. A class of your own takes RecordsJobs as its
first base: `class MyWorker(RecordsJobs, HerokuWorker)`.

A run is one execution of a job, under RQ's own key of it, job:execution: job ids are
used again, by repeats, by `requeue` and by programs that choose them. The work-horse
tells of its job; the parent keeps the worker's life open, tells of the queues, and of a
horse that was killed or stopped. A killed horse's job is a failed run, also where RQ
tries it again: nobody can say who hears of the death first.

The duration is that of the job's function. Whether it was a success is known later,
when its callback has returned and RQ has stored the result.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import time
from typing import Any, NamedTuple

from orbit_rpc_schema.wire import WORKER_LOST, as_name
from orbit_worker.details import ErrorLike
from orbit_worker.host import Waiting
from orbit_worker.integrations import needs
from orbit_worker.integrations._tasks import Task, Tasks, waited_ms

with needs("rq", "rq"):
    import rq.worker
    from redis import ConnectionPool
    from redis.exceptions import RedisError
    from rq.connections import parse_connection
    from rq.exceptions import DeserializationError
    from rq.utils import as_text, utcparse
    from rq.version import VERSION

ATTEMPT = "orbit_attempt"  # the field in a job's hash with the number of its last attempt
NO_NAME = "(no function)"
LEAVE_SECONDS = 1.0  # how long a horse waits for a service that is there and silent
STOP_SECONDS = 0.2


class _Execution(NamedTuple):
    """What a worker executes now, itself or in its horse."""

    id: str
    attempt: int
    job: Any

    def task(self, function: str, wait_ms: float | None = None) -> Task:
        return Task(self.id, as_name(function), self.attempt, self.job.origin, wait_ms)


class RecordsJobs(rq.worker.BaseWorker):
    """What a worker's class of RQ needs to tell of its jobs; the first of its bases."""

    _orbit = Tasks()
    _orbit_execution: _Execution | None = None
    _orbit_running: Task | None = None  # in this process, and without an end so far
    _orbit_started = 0.0
    _orbit_ended: float | None = None
    _orbit_redis: Any = None

    # ------------------------------------------------------------ the parent

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        super().bootstrap(*args, **kwargs)
        self._orbit.client.describe(
            framework=f"rq {VERSION}", slots=1, queue_depths=self._orbit_depths
        )
        self._orbit.client.connect()

    def prepare_execution(self, job: Any) -> Any:
        execution = super().prepare_execution(job)
        self._orbit_expect(job, execution)
        return execution

    def handle_work_horse_killed(self, job: Any, retpid: Any, ret_val: Any, rusage: Any) -> None:
        if (execution := self._orbit_execution_of(job)) is not None:
            self._orbit_fail(execution, WORKER_LOST, f"the work-horse {_end_of_process(ret_val)}")
        super().handle_work_horse_killed(job, retpid, ret_val, rusage)

    def kill_horse(self, *args: Any, **kwargs: Any) -> None:
        execution = self._orbit_execution
        if self.horse_pid and execution and execution.job.id == self._stopped_job_id:
            # Said before the service sees its process die: a stopped job was not lost.
            self._orbit_fail(execution, "Stopped", "stopped by a command")
            self._orbit.client.flush(STOP_SECONDS)
        super().kill_horse(*args, **kwargs)

    def _orbit_fail(self, execution: _Execution, kind: str, message: str) -> None:
        """Tell of the end of a horse's job, in the parent."""
        # Whoever asks is answered after what the horse has said: a start that were heard
        # after its end would begin another run.
        self._orbit.client.get_metrics()
        task = execution.task(_function_of(execution.job))
        self._orbit.fail(task, {"type": kind, "message": message})

    def _orbit_depths(self) -> dict[str, Waiting]:
        """What waits in each queue, and since when that has waited which is next."""
        if self._orbit_redis is None:
            # A connection of its own: the worker's may be the last that its pool allows.
            redis, connection, options = parse_connection(self.connection)
            pool = ConnectionPool(connection_class=connection, **options)
            self._orbit_redis = redis(connection_pool=pool)
        with self._orbit_redis.pipeline(transaction=False) as pipeline:
            for queue in self.queues:
                pipeline.llen(queue.key)
                pipeline.lindex(queue.key, 0)
            told = pipeline.execute()
            depths, first = told[::2], told[1::2]
            for id in first:
                pipeline.hget(self.job_class.key_for(as_text(id or "")), "enqueued_at")
            since = pipeline.execute()
        return {
            queue.name: Waiting(
                depth, int(utcparse(as_text(at)).timestamp() * 1000) if at else None
            )
            for queue, depth, at in zip(self.queues, depths, since, strict=True)
        }

    # ------------------------------------------------------------ where the job is executed

    def perform_job(self, job: Any, *args: Any, **kwargs: Any) -> Any:
        if self._orbit_execution is None:  # a horse that was spawned and not forked
            self._orbit.client.describe(framework=f"rq {VERSION}")
            self._orbit_expect(job, self.execution)
        self._orbit_running = self._orbit_ended = None
        try:
            return super().perform_job(job, *args, **kwargs)
        finally:
            if self.is_horse:
                # It leaves by os._exit, which skips threads and atexit. Where there is no
                # service, this does not wait.
                self._orbit.client.close(LEAVE_SECONDS)

    def prepare_job_execution(self, job: Any, *args: Any, **kwargs: Any) -> None:
        super().prepare_job_execution(job, *args, **kwargs)
        assert self._orbit_execution is not None
        since = job.enqueued_at
        waited = waited_ms(None if since is None else since.timestamp())
        self._orbit_running = task = self._orbit_execution.task(job.func_name or NO_NAME, waited)
        self._orbit.client.start_run(task.id, pipeline=task.pipeline, attempt=task.attempt)
        self._orbit_started = time.perf_counter()

    def handle_execution_ended(self, *args: Any, **kwargs: Any) -> None:
        if self._orbit_ended is None:  # else: a job that returned, and then its callback failed
            self._orbit_ended = time.perf_counter()
        super().handle_execution_ended(*args, **kwargs)

    def handle_job_success(self, *args: Any, **kwargs: Any) -> None:
        super().handle_job_success(*args, **kwargs)
        self._orbit_end()

    def handle_job_retry(self, job: Any, queue: Any, retry: Any, *args: Any, **kwargs: Any) -> None:
        """The job has returned a Retry."""
        exhausted = (job.number_of_retries or 0) >= retry.max
        if not exhausted:
            self._orbit_note_attempt(job)
        super().handle_job_retry(job, queue, retry, *args, **kwargs)
        name = "MaxRetriesExceeded" if exhausted else "Retry"
        self._orbit_end({"type": name, "message": f"returned {retry!r}"}, final=exhausted)

    def handle_exception(self, job: Any, *exc_info: Any) -> None:
        error, final = exc_info[1], not self._orbit_retries(job)
        if self._orbit_running is None and self._orbit_execution is not None:
            # It could not begin; or it is told already, and changes nothing.
            self._orbit.fail(self._orbit_execution.task(_function_of(job)), error, final=final)
        self._orbit_end(error, final=final)
        super().handle_exception(job, *exc_info)

    def handle_job_failure(self, job: Any, *args: Any, **kwargs: Any) -> None:
        """In the parent where the horse was killed or stopped."""
        if self._orbit_retries(job):
            self._orbit_note_attempt(job)
        super().handle_job_failure(job, *args, **kwargs)

    def _orbit_end(self, error: ErrorLike | None = None, *, final: bool = True) -> None:
        task, self._orbit_running = self._orbit_running, None
        if task is not None and self._orbit_ended is not None:
            measured = (self._orbit_ended - self._orbit_started) * 1000
            self._orbit.record(measured, task, error, final)

    # ------------------------------------------------------------ what is known of a job

    def _orbit_expect(self, job: Any, execution: Any) -> None:
        self._orbit_execution = _Execution(execution.composite_key, self._orbit_attempt(job), job)

    def _orbit_execution_of(self, job: Any) -> _Execution | None:
        """None for a job of another worker: RQ's maintenance fails those that were abandoned."""
        execution = self._orbit_execution
        return execution if execution is not None and execution.job.id == job.id else None

    def _orbit_retries(self, job: Any) -> bool:
        return bool(job.retries_left) and self._stopped_job_id != job.id

    def _orbit_attempt(self, job: Any) -> int:
        """RQ knows how many attempts are left, and not how many there were."""
        if job.started_at is None or (job.retries_left is None and not job.number_of_retries):
            return 1
        try:
            return int(self.connection.hget(job.key, ATTEMPT) or 0) + 1
        except (RedisError, ValueError):
            return 1

    def _orbit_note_attempt(self, job: Any) -> None:
        if (execution := self._orbit_execution_of(job)) is not None:
            try:
                self.connection.hset(job.key, ATTEMPT, execution.attempt)
            except RedisError:
                pass  # its next attempt is called the first


class Worker(RecordsJobs, rq.worker.Worker):
    """RQ's Worker, which forks a work-horse for each job."""


class SimpleWorker(RecordsJobs, rq.worker.SimpleWorker):
    """RQ's SimpleWorker, which executes jobs in its own process."""


class SpawnWorker(RecordsJobs, rq.worker.SpawnWorker):
    """RQ's SpawnWorker, which starts a new Python for each job."""


def _function_of(job: Any) -> str:
    """The name of its function, without unpickling its arguments.

    RQ's parent does not unpickle them either: what kills a horse may be in there.
    """
    try:
        if job.data[:1] != pickle.PROTO:
            return job.func_name or NO_NAME  # JSON, or a serializer of the user's own
        strings = (value for _, value, _ in pickletools.genops(job.data) if isinstance(value, str))
        return next(strings, NO_NAME)
    except (DeserializationError, ValueError):
        return "(unreadable)"


def _end_of_process(status: int | None) -> str:
    if status is None:
        return "was killed by its parent"
    if os.WIFSIGNALED(status):
        return f"was killed by signal {os.WTERMSIG(status)}"
    return f"left with code {os.waitstatus_to_exitcode(status)}"
