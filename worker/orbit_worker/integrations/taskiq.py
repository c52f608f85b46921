"""
Taskiq: a middleware.

    from orbit_worker.integrations.taskiq import OrbitMiddleware

    broker = ListQueueBroker(url).with_middlewares(OrbitMiddleware())

Its place among other middlewares does not matter: what became of a task is told after
all of them have seen its error. What the function did counts, not whether its result
could be stored. A function that ends by NoResultError has succeeded.

Given up: a sync task's time in the queue of the thread pool counts as execution (as in
Taskiq's own `execution_time`), because Taskiq tells nobody when the thread begins. Queue
depths, because brokers have no common way to tell them. A message that is delivered a
second time while its task still runs counts once.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from orbit_worker.client import MetricsClient
from orbit_worker.details import ErrorLike
from orbit_worker.integrations import needs
from orbit_worker.integrations._keeper import keep_life_open, wait_until_open
from orbit_worker.integrations._tasks import Task, Tasks, waited_ms

with needs("taskiq", "taskiq"):
    from taskiq import SmartRetryMiddleware, TaskiqMessage, TaskiqMiddleware, TaskiqResult
    from taskiq import __version__ as taskiq_version
    from taskiq.exceptions import NoResultError

READY_AT = "orbit_ready_at"  # a label: epoch seconds from which on a worker could take it
RETRIES = "_retries"  # of Taskiq's own middlewares
REQUEUES = "X-Taskiq-requeue"  # of Context.requeue


@dataclass(slots=True, eq=False)
class _Execution:
    """A task between pre_execute and post_execute, and what is to be known at its end."""

    id: str
    retries: int
    requeues: int
    asyncio_task: asyncio.Task[Any] | None
    on_leaving: Callable[[object], None] | None = None
    error: BaseException | None = None
    sent_again: bool = False

    @property
    def attempt(self) -> int:
        return 1 + self.retries + self.requeues


class OrbitMiddleware(TaskiqMiddleware):
    """Records the tasks of a worker, and stamps what a producer sends with the time.

    Put it on the broker that both import; a producer opens no session.
    """

    def __init__(self, *, client: MetricsClient | None = None, version: str | None = None) -> None:
        super().__init__()
        self._tasks = Tasks(client)
        self._version = version
        self._executions: dict[str, _Execution] = {}
        self._keeper: subprocess.Popen[bytes] | None = None

    async def startup(self) -> None:
        """Open the session of a worker's process, and see that the life outlasts it."""
        if not self.broker.is_worker_process:
            return
        client = self._tasks.client
        client.describe(version=self._version, framework=f"taskiq {taskiq_version}")
        client.connect()
        if multiprocessing.current_process().name.startswith("worker-"):
            # Taskiq's manager, which restarts this process, imports nothing of the user's.
            keeper = keep_life_open(client)
            if keeper is not None:
                # Before the first task, which may be what kills this process.
                await asyncio.to_thread(wait_until_open, keeper)
                self._keeper = keeper

    # ------------------------------------------------------------ sending

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        execution = self._execution(message)
        if execution is not None:
            execution.sent_again = True
        ready_at = time.time() + _number(message.labels.get("delay"))
        message.labels[READY_AT] = str(ready_at)
        return message

    # ------------------------------------------------------------ executing

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        id, labels = message.task_id, message.labels
        # Taken out, because a retry is sent with the labels of its first try.
        ready_at = _number(labels.pop(READY_AT, None))
        execution = _Execution(
            id=id,
            retries=int(_number(labels.get(RETRIES))),
            requeues=int(_number(labels.get(REQUEUES))),
            asyncio_task=asyncio.current_task(),
        )
        before = self._executions.get(id)
        if before is not None:
            if before.attempt == execution.attempt:
                return message
            self._end(before, before.error, final=False)  # its retry is quicker than its end
        self._executions[id] = execution
        if execution.asyncio_task is not None:
            execution.on_leaving = partial(self._left, execution)
            execution.asyncio_task.add_done_callback(execution.on_leaving)
        queue = labels.get("queue_name") or getattr(self.broker, "queue_name", None)
        self._tasks.begin(
            Task(
                id=id,
                pipeline=message.task_name,
                attempt=execution.attempt,
                queue=queue if isinstance(queue, str) else None,
                wait_ms=waited_ms(ready_at or None),
            )
        )
        return message

    def on_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        # What follows is not known here: a middleware that retries may come later.
        execution = self._execution(message)
        if execution is not None:
            execution.error = exception

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        execution = self._execution(message)
        if execution is not None:
            error = execution.error
            final = error is None or not self._tried_again(execution, message, result)
            self._end(execution, error, final=final)

    def _execution(self, message: TaskiqMessage) -> _Execution | None:
        """What goes on here for this message; None for one that is not, or no longer, counted."""
        execution = self._executions.get(message.task_id)
        if execution is None or execution.asyncio_task is not asyncio.current_task():
            return None
        return execution

    def _end(self, execution: _Execution, error: ErrorLike | None, *, final: bool) -> None:
        del self._executions[execution.id]
        if execution.asyncio_task is not None and execution.on_leaving is not None:
            execution.asyncio_task.remove_done_callback(execution.on_leaving)
            execution.on_leaving = None  # which holds the execution: no work for the collector
        if isinstance(error, NoResultError):
            error = None
        self._tasks.end(execution.id, error, final=final)

    def _tried_again(
        self, execution: _Execution, message: TaskiqMessage, result: TaskiqResult[Any]
    ) -> bool:
        """Whether the task was sent again instead of being given up."""
        if isinstance(execution.error, NoResultError):
            return int(_number(message.labels.get(REQUEUES))) > execution.requeues
        if execution.sent_again or isinstance(result.error, NoResultError):
            return True
        # With a schedule source, and told to store the result of each try, this one leaves
        # its count alone. SimpleRetryMiddleware counts the last try as well, but it sends.
        return int(_number(message.labels.get(RETRIES))) > execution.retries and any(
            isinstance(middleware, SmartRetryMiddleware) for middleware in self.broker.middlewares
        )

    def _left(self, execution: _Execution, _task: object) -> None:
        """Taskiq left the task without telling: an acknowledgement or a middleware raised.

        The exception stays unread, because asyncio logs it for being so.
        """
        unknown = {"type": "Abandoned", "message": "taskiq left it half done; see its log"}
        self._end(execution, execution.error or unknown, final=True)


def _number(label: object) -> float:
    """Of a label, which may be anything; zero for what is no number."""
    if label is None:
        return 0.0
    try:
        number = float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 0.0
    return number if math.isfinite(number) else 0.0
