"""
Celery.

    import orbit_worker.integrations.celery

    app = Celery("shop", broker="redis://localhost")
    orbit_worker.integrations.celery.install(app)

A run is one execution of a task's function in a worker. Where the worker's own process
executes it (the threads, solo, gevent and eventlet pools), Celery's signals tell of it.
Of a prefork pool its main process tells, by the answers of its children: a child that
is killed can neither take along what it has done nor be late with it, so every count is
exact; in return, what failed is timed by when that was heard. Programs that send tasks
stamp them with the time, and connect to nothing, as do the children.

What the broker delivers again (acks_late after a killed child, Reject with requeue) has
the task's id and a suffix. Celery does not number deliveries, and two executions of one
attempt would count as one.
"""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any

from orbit_rpc_schema.wire import WORKER_LOST, as_name
from orbit_worker.client import MetricsClient
from orbit_worker.details import error_json
from orbit_worker.integrations import needs
from orbit_worker.integrations._tasks import Task, Tasks, waited_ms

with needs("celery", "celery"):
    from billiard import current_process
    from billiard.einfo import ExceptionWithTraceback
    from celery import Celery, __version__, signals, states
    from celery.exceptions import (
        Ignore,
        Reject,
        Retry,
        Terminated,
        TimeLimitExceeded,
        WorkerLostError,
    )
    from celery.utils.serialization import get_pickled_exception
    from celery.utils.time import maybe_iso8601, maybe_make_aware

SENT_AT = "orbit_sent_at"  # the header with the time of sending, epoch seconds
TELLS_DEPTHS = ("redis", "amqp")  # other brokers guess, or do not know


def install(app: Celery, client: MetricsClient | None = None, version: str | None = None) -> None:
    """Record the tasks that workers of this app execute; to be called where the app is made.

    Celery's signals are of the whole process: the first call counts, for all its apps.
    """
    hooks = _Hooks(app, Tasks(client), version)
    for when, hook in (
        (signals.before_task_publish, hooks.stamp),
        (signals.worker_ready, hooks.start_worker),
        (signals.worker_process_init, hooks.start_process),
        (signals.task_received, hooks.receive),
        (signals.task_revoked, hooks.revoke),
        (signals.task_prerun, hooks.begin),
        (signals.task_postrun, hooks.end),
    ):
        when.connect(hook, weak=False, dispatch_uid="orbit_worker")


class _Hooks:
    """One for a process. What a hook of a signal raises, Celery logs, and goes on."""

    def __init__(self, app: Celery, tasks: Tasks, version: str | None) -> None:
        self._app = app
        self._tasks = tasks
        self._version = version
        self._is_child = False

    def stamp(self, headers: dict[str, Any], **_: Any) -> None:
        headers[SENT_AT] = time.time()

    # ------------------------------------------------------------ the worker

    def start_worker(self, sender: Any, **_: Any) -> None:
        """In the main process, when it has forked its first children: until then it is alone."""
        worker, client = sender.controller, self._tasks.client
        told = self._app.connection_for_read().transport.driver_type in TELLS_DEPTHS
        client.describe(
            version=self._version,
            framework=f"celery {__version__}",
            slots=worker.max_concurrency if worker.autoscale else worker.pool.limit,
            queue_depths=self._depths if told else None,
        )
        client.connect()

    def start_process(self, **_: Any) -> None:
        self._is_child = current_process().name != "MainProcess"  # which sends it for solo

    def _depths(self) -> dict[str, int]:
        depths = {}
        with self._app.connection_or_acquire() as connection:
            for name in list(self._app.amqp.queues.consume_from):
                with connection.channel() as channel:
                    try:
                        depths[name] = channel.queue_declare(name, passive=True).message_count
                    except connection.channel_errors:
                        depths[name] = 0  # an empty list of Redis does not exist
        return depths

    def revoke(self, sender: Any, request: Any, expired: bool, **_: Any) -> None:
        """A task that was revoked before it began is nothing; one whose time is over has failed."""
        if expired:
            why = f"it had to begin before {request.expires}"
            self._tasks.fail(self._task(sender, request), {"type": "Expired", "message": why})

    # ------------------------------------------------------------ executed in this process

    def begin(self, task: Any, **_: Any) -> None:
        request = task.request
        # An eager task is a call like any other, in whatever program.
        if not self._is_child and not request.is_eager:
            request.orbit_session = self._tasks.client.session
            run = self._task(task, request, self._waited_ms(request))
            self._begin(request, run, time.monotonic())

    def _begin(self, request: Any, run: Task, at: float) -> None:
        """Kept with the request: a retry may begin before its first try is over, with its id."""
        request.orbit_run = run, at
        self._tasks.client.start_run(run.id, pipeline=as_name(run.pipeline), attempt=run.attempt)

    def end(self, task: Any, state: str | None, retval: Any, **_: Any) -> None:
        begun = task.request.get("orbit_run")
        # A child that the task has forked, and that comes this way too, has begun nothing.
        if begun is not None and task.request.orbit_session == self._tasks.client.session:
            run, at = begun
            measured_ms = (time.monotonic() - at) * 1000
            # What passes through Celery, such as SystemExit, comes without a state; or with
            # that of the task, where it comes from storing the result.
            left_by = sys.exc_info()[1] or (None if state == states.SUCCESS else retval)
            error, final = _ending(left_by, task)
            self._tasks.record(measured_ms, run, error, final)

    # ------------------------------------------------------------ executed in a child

    def receive(self, sender: Any, request: Any, **_: Any) -> None:
        # Of what comes back from children there is no signal. Each task has a class of
        # requests of its own, which Celery makes for it.
        kind = type(request)
        if sender.pool.uses_semaphore and "orbit_listens" not in vars(kind):  # prefork alone does
            self._listen(kind)

    def _listen(self, kind: Any) -> None:
        """Let this class of requests tell; Celery's own methods follow whatever happens here."""
        on_accepted, on_success, on_failure = kind.on_accepted, kind.on_success, kind.on_failure

        def accepted(request: Any, pid: int, at: float) -> None:
            try:
                self._accept(request, at)
            finally:
                on_accepted(request, pid, at)

        def succeeded(request: Any, result: Any, **kwargs: Any) -> None:
            try:
                failed, _value, seconds = result
                if not failed:  # else it goes on to on_failure
                    self._tell(request, None, seconds)
            finally:
                on_success(request, result, **kwargs)

        def failed(request: Any, exc_info: Any, *args: Any, **kwargs: Any) -> None:
            try:
                self._tell(request, exc_info)
            finally:
                on_failure(request, exc_info, *args, **kwargs)

        kind.on_accepted, kind.on_success, kind.on_failure = accepted, succeeded, failed
        kind.orbit_listens = True

    def _accept(self, request: Any, at: float) -> None:
        """A child begins with the request, at this time of the monotonic clock, which all share."""
        headers = request.request_dict
        self._begin(request, self._task(request.task, headers, self._waited_ms(headers)), at)

    def _tell(self, request: Any, exc_info: Any, seconds: float | None = None) -> None:
        """What became of a request; of a hard time limit Celery hears twice."""
        task, accepted_at = vars(request).pop("orbit_run", (None, 0.0))
        if task is None:
            return
        left_by = None if exc_info is None else exc_info.exception
        if isinstance(left_by, ExceptionWithTraceback):
            left_by = left_by.exc
        if seconds is None:
            seconds = max(time.monotonic() - accepted_at, 0.0)
        measured_ms: float | None = seconds * 1000
        error, final = _ending(left_by, request.task)
        if isinstance(error, WorkerLostError):
            measured_ms = None  # it was killed at some time before Celery saw it
            error = {"type": WORKER_LOST, "message": str(error)}
            final = not _is_sent_again(request.task, task.attempt)
        elif isinstance(error, Terminated):
            error = {"type": "Terminated", "message": "it was revoked, or stopped, as it ran"}
        elif isinstance(error, TimeLimitExceeded):
            error = {"type": "TimeLimitExceeded", "message": str(error)}
        elif error is not None:
            # The exception was in another process: where, the text alone tells.
            error = {**error_json(get_pickled_exception(error)), "traceback": exc_info.traceback}
        self._tasks.record(measured_ms, task, error, final)

    # ------------------------------------------------------------ what a request says

    def _task(self, task: Any, request: Any, wait_ms: float | None = None) -> Task:
        """The attempt that this request is, a Context or the headers of its message."""
        retries = request.get("retries")
        again = f"+{uuid.uuid4().hex[:8]}" if _is_redelivered(request) else ""
        return Task(
            id=f"{request.get('id')}{again}",
            pipeline=task.name,
            attempt=retries + 1 if isinstance(retries, int) else 1,
            queue=self._queue(request),
            wait_ms=wait_ms,
        )

    def _queue(self, request: Any) -> str | None:
        """The routing key is the queue's name with AMQP's default exchange, which Celery uses."""
        where = request.get("delivery_info") or {}
        key = where.get("routing_key")
        return key if not where.get("exchange") or key in self._app.amqp.queues else None

    def _waited_ms(self, request: Any) -> float | None:
        """Since it was sent, or since its ETA, until now."""
        if _is_redelivered(request):
            return None  # what it did before would be counted as waiting
        sent_at, eta = request.get(SENT_AT), request.get("eta")
        if not isinstance(sent_at, float):
            sent_at = None
        if eta is not None:
            eta_at = maybe_make_aware(maybe_iso8601(eta), self._app.timezone).timestamp()
            sent_at = max(eta_at, sent_at or 0.0)
        return waited_ms(sent_at)


def _is_redelivered(request: Any) -> bool:
    return bool((request.get("delivery_info") or {}).get("redelivered"))


def _is_sent_again(task: Any, attempt: int) -> bool:
    """Whether Celery itself sends a task again whose child was killed; newer ones can."""
    again = getattr(task, "retry_on_worker_lost", False)
    return again and (task.max_retries is None or attempt <= task.max_retries)


def _ending(left_by: Any, task: Any) -> tuple[Any, bool]:
    """The error of a task that was left by this exception or none, and whether for good."""
    if isinstance(left_by, Retry):
        return (left_by if left_by.exc is None else left_by.exc), False
    if isinstance(left_by, Reject):
        # Without acks_late the broker took it as done when it began, and has nothing to deliver.
        return left_by, not (left_by.requeue and task.acks_late)
    return (None if isinstance(left_by, Ignore) else left_by), True
