"""
What the integrations have in common: a task that begins, and what becomes of it.

A start is announced, so that a task whose process is killed fails as WorkerLost.
Where the framework's parent process sees that end too, it tells of it under the
same id and attempt: whichever is heard first counts, and the other changes nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import orbit_worker
from orbit_rpc_schema.wire import as_name
from orbit_worker.client import MetricsClient
from orbit_worker.details import ErrorLike


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt at a task, by the framework's own id.

    `attempt` counts from 1. `wait_ms` is how long it waited for a worker since it
    could have begun; None where nobody knows.
    """

    id: str
    pipeline: str
    attempt: int = 1
    queue: str | None = None
    wait_ms: float | None = None


class Tasks:
    """The tasks of one framework in this process."""

    def __init__(self, client: MetricsClient | None = None) -> None:
        self._client = client
        self._begun: dict[str, tuple[Task, str, float]] = {}  # with the session, and when

    @property
    def client(self) -> MetricsClient:
        """Where runs go: the client that was given, else the one behind `orbit_worker`."""
        return self._client or orbit_worker.default_client()

    def begin(self, task: Task) -> None:
        """The task's function is about to be called."""
        client = self.client
        client.start_run(task.id, pipeline=as_name(task.pipeline), attempt=task.attempt)
        self._begun[task.id] = (task, client.session, time.perf_counter())

    def end(self, id: str, error: ErrorLike | None = None, *, final: bool = True) -> bool:
        """It returned, or raised `error`; `final` is False where it will be tried again.

        False for a task that did not begin here: a forked child's, or nobody's.
        """
        now = time.perf_counter()
        task, session, started = self._begun.get(id, (None, "", 0.0))
        told = task is not None and session == self.client.session
        if task is not None and told:
            self.record((now - started) * 1000, task, error, final)
        # Only then: a time limit that is raised in between leaves it to be told again.
        self._begun.pop(id, None)
        return told

    def fail(self, task: Task, error: ErrorLike, *, final: bool = True) -> None:
        """It failed where nobody measured it: its process was killed, or it could not begin."""
        self._begun.pop(task.id, None)
        self.record(None, task, error, final)

    def withdraw(self, id: str) -> None:
        """It was passed over after all; nothing counts."""
        task, _session, _started = self._begun.pop(id, (None, "", 0.0))
        if task is not None:
            self.client.withdraw_run(task.id, pipeline=as_name(task.pipeline))

    def record(
        self, duration_ms: float | None, task: Task, error: ErrorLike | None, final: bool
    ) -> None:
        """For whoever measured it, and learnt only later what became of it."""
        self.client.record_run(
            duration_ms,
            error is None,
            pipeline=as_name(task.pipeline),
            queue=task.queue,
            id=task.id,
            attempt=task.attempt,
            final=final,
            wait_ms=task.wait_ms,
            error=error,
        )


def waited_ms(since: float | None) -> float | None:
    """Milliseconds since that time (epoch seconds); never below zero, as clocks of hosts differ."""
    return None if since is None else max(time.time() - since, 0.0) * 1000
