"""
Huey: one line where the instance is made.

    from orbit_worker.integrations.huey import install

    install(huey)

Signals tell that a task begins, a post-execute hook what became of it. Tasks carry
no number of the attempt, and no place for one: for a task that will be tried again
it waits in Huey's own storage. Nor do they carry the time of their sending, so that
the wait is known where there is an ETA, and for retries. The consumer's main process
keeps a session open, over all workers that die and are replaced. Immediate mode is
not recorded: nothing waits, and no worker executes it.
"""

from __future__ import annotations

import multiprocessing
import time
from datetime import UTC, datetime
from typing import Any

from orbit_worker.client import MetricsClient
from orbit_worker.integrations import needs
from orbit_worker.integrations._tasks import Task, Tasks, waited_ms

with needs("huey", "huey"):
    from huey import __version__
    from huey.constants import WORKER_PROCESS
    from huey.signals import (
        SIGNAL_CANCELED,
        SIGNAL_EXECUTING,
        SIGNAL_EXPIRED,
        SIGNAL_INTERRUPTED,
        SIGNAL_REVOKED,
    )

# The ETA of a retry that Huey does not delay: it says that an attempt is in the storage,
# so that nobody looks for one in vain. Long ago, as the clocks of consumers may differ.
AT_ONCE = datetime(1970, 1, 1)  # noqa: DTZ001


def install(huey: Any, *, client: MetricsClient | None = None, version: str | None = None) -> None:
    """Record what consumers of this instance execute; `version` is that of the program."""
    tasks = Tasks(client)
    hooks = _Hooks(huey, tasks)
    huey.signal(SIGNAL_EXECUTING)(hooks.executing)
    huey.signal(SIGNAL_CANCELED)(hooks.canceled)
    huey.signal(SIGNAL_INTERRUPTED)(hooks.interrupted)
    huey.signal(SIGNAL_EXPIRED)(hooks.expired)
    huey.signal(SIGNAL_REVOKED)(hooks.revoked)
    huey.post_execute("orbit")(hooks.executed)

    def depths() -> dict[str, int]:
        return {huey.name: huey.pending_count()}

    @huey.on_startup("orbit")
    def started() -> None:
        # A parent that forks must not touch the storage: its child would inherit a lock
        # that is never released, and SQLite's connection. So the first worker tells.
        if multiprocessing.current_process().name == "Worker-1":
            tasks.client.describe(queue_depths=depths)
            tasks.client.connect()

    @huey.on_shutdown("orbit")
    def stopped() -> None:
        # SIGHUP replaces the consumer's program, which skips atexit. A process of its
        # own sends what it has when it leaves.
        if multiprocessing.parent_process() is None:
            tasks.client.flush(timeout=1.0)

    execute = huey._execute

    def executed(task: Any, timestamp: Any) -> Any:
        """Huey's own, which tells nobody when a result cannot be stored, or of SystemExit."""
        try:
            return execute(task, timestamp)
        except BaseException as error:
            tasks.end(task.id, error)  # where that was told already, it changes nothing
            raise

    huey._execute = executed
    create = huey.create_consumer

    def create_consumer(**options: Any) -> Any:
        """The one place where the consumer's main process can be known as such."""
        consumer = create(**options)
        tasks.client.describe(
            version=version,
            framework=f"huey {__version__}",
            slots=consumer.workers,
            queue_depths=None if consumer.worker_type == WORKER_PROCESS else depths,
        )
        tasks.client.connect()
        return consumer

    huey.create_consumer = create_consumer


class _Hooks:
    """What Huey calls in the thread, process or greenlet that executes a task."""

    def __init__(self, huey: Any, tasks: Tasks) -> None:
        self._huey = huey
        self._tasks = tasks

    def executing(self, _signal: str, task: Any) -> None:
        if not self._huey.immediate:
            task.orbit = self._task(task)
            self._tasks.begin(task.orbit)

    def executed(self, task: Any, _value: Any, exception: Exception | None) -> None:
        if self._huey.immediate:
            return
        final = exception is None or not task.retries
        if not self._tasks.end(task.id, exception, final=final) and exception is not None:
            # It canceled itself, see `canceled`; or it raised when the stop had been told.
            self._tasks.fail(task.orbit, exception, final=final)
        if not final:
            self._huey.put(_key(task), (task.orbit.attempt + 1, time.time()))
            task.eta = AT_ONCE  # where there is a delay, Huey is about to set another

    def canceled(self, _signal: str, task: Any) -> None:
        """By a pre-execute hook, and it counts as nothing; or by itself, and `executed` follows."""
        self._tasks.withdraw(task.id)

    def interrupted(self, _signal: str, task: Any) -> None:
        """Huey does not put it back into the queue."""
        self._tasks.end(task.id, {"type": "Interrupted", "message": "the consumer was stopped"})

    def expired(self, _signal: str, task: Any) -> None:
        if not self._huey.immediate:
            self._tasks.fail(self._task(task), {"type": "Expired", "message": "waited too long"})

    def revoked(self, _signal: str, task: Any) -> None:
        self._take_attempt(task)

    def _task(self, task: Any) -> Task:
        attempt, since = self._take_attempt(task)
        return Task(
            task.id,
            f"{task.__module__}.{task.name}",  # as Huey's registry and its log have it
            attempt=attempt,
            queue=self._huey.name,
            wait_ms=waited_ms(since),
        )

    def _take_attempt(self, task: Any) -> tuple[int, float | None]:
        """Which attempt this is, and since when it could begin (epoch s), where that is known."""
        if task.eta is None:
            return 1, None
        attempt, since = self._huey.get(_key(task), peek=True) or (1, None)
        if since is not None:
            self._huey.delete(_key(task))  # some storages keep what is taken by `get`
        if task.eta != AT_ONCE:
            since = task.eta.replace(tzinfo=UTC if self._huey.utc else None).timestamp()
        return attempt, since


def _key(task: Any) -> str:
    return f"orbit:{task.id}"
