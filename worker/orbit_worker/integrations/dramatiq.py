"""
Dramatiq: one line where the broker is made, in producers and workers alike.

    from orbit_worker.integrations.dramatiq import install

    install(broker)

Whether a failed message is tried again is for Retries to decide, so `install` puts
the middleware in front of it, where the decision is known. In return, a duration
includes what the middleware behind it does, as the storing of a result.

Dramatiq's main process imports nothing of the user's and can tell nothing: each
worker process has a session of its own, and the first of them tells of the queues.
When one process dies Dramatiq stops the others, so that none is ever replaced.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping
from typing import Any

from orbit_worker.client import MetricsClient
from orbit_worker.host import QueueDepths, Waiting
from orbit_worker.integrations import needs
from orbit_worker.integrations._tasks import Task, Tasks, waited_ms

with needs("dramatiq", "dramatiq"):
    from dramatiq import __version__
    from dramatiq.errors import ActorNotFound
    from dramatiq.message import Message
    from dramatiq.middleware import Middleware, Retries, SkipMessage

# The option that says since when a message can be executed (epoch ms). Dramatiq's own
# times do not: a pipeline's messages bear that of the first, and the ETA is taken off
# a delayed one before it gets to a worker.
SINCE = "orbit_since"

# What AgeLimit says; it has no exception of its own.
TOO_OLD = "Message age limit exceeded"


class Orbit(Middleware):
    """Records each message that an actor is called with; see `install`, which adds it."""

    def __init__(self, *, client: MetricsClient | None = None, version: str | None = None) -> None:
        self._tasks = Tasks(client)
        self._version = version

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        client = self._tasks.client
        client.describe(
            version=self._version,
            framework=f"dramatiq {__version__}",
            slots=worker.worker_threads,
            queue_depths=_depths(broker, worker) if _is_first_process() else None,
        )
        client.connect()

    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:  # noqa: ARG002
        if delay is not None:  # sent with a delay, or tried again after a back-off
            message.options[SINCE] = _now_ms() + delay
        else:
            # A worker puts a delayed message, which has the option, back without a delay.
            message.options.setdefault(SINCE, _now_ms())

    def before_process_message(self, broker: Any, message: Any) -> None:  # noqa: ARG002
        self._tasks.begin(_task(message))

    def after_process_message(
        self,
        broker: Any,
        message: Any,
        *,
        result: Any = None,  # noqa: ARG002
        exception: BaseException | None = None,
    ) -> None:
        error: BaseException | Mapping[str, str] | None = exception
        if exception is None and message.failed:
            error = {"type": "Rejected", "message": "the message was marked as failed"}
        # Without Retries, Dramatiq takes a failed message for done.
        final = exception is None or message.failed or not _retries(broker)
        self._tasks.end(message.message_id, error, final=final)

    def after_skip_message(self, broker: Any, message: Any) -> None:  # noqa: ARG002
        self._tasks.withdraw(message.message_id)

    def after_nack(self, broker: Any, message: Any) -> None:  # noqa: ARG002
        """A dead letter; where no actor was called with it, it is a run that failed."""
        match message._exception:
            case SkipMessage() as skipped:
                kind = "Expired" if str(skipped) == TOO_OLD else "SkipMessage"
                self._tasks.fail(_task(message), {"type": kind, "message": str(skipped)})
            case ActorNotFound() as unknown:
                self._tasks.fail(_task(message), unknown)


def install(
    broker: Any, *, client: MetricsClient | None = None, version: str | None = None
) -> None:
    """Record what workers of this broker execute; `version` is that of the program."""
    orbit = Orbit(client=client, version=version)
    broker.add_middleware(orbit, before=Retries if _retries(broker) else None)


def _retries(broker: Any) -> bool:
    return any(isinstance(middleware, Retries) for middleware in broker.middleware)


def _task(message: Any) -> Task:
    since = message.options.get(SINCE, message.message_timestamp)
    return Task(
        message.message_id,
        message.actor_name,
        attempt=message.options.get("retries", 0) + 1,
        queue=message.queue_name,
        wait_ms=waited_ms(since / 1000),
    )


def _is_first_process() -> bool:
    """Of the processes of `dramatiq -p`; or the only one, which is not Dramatiq's."""
    return multiprocessing.current_process().name in ("Process-1", "MainProcess")


def _depths(broker: Any, worker: Any) -> QueueDepths | None:
    """For Redis: what no process has fetched yet. RabbitMQ cannot be asked cheaply."""
    try:
        from dramatiq.brokers.redis import RedisBroker
    except ImportError:  # redis is an extra of Dramatiq's
        return None
    if not isinstance(broker, RedisBroker):
        return None

    def depths() -> dict[str, Waiting]:
        return {
            queue: _waiting(broker, f"{broker.namespace}:{queue}")
            for queue in worker.consumer_whitelist or broker.get_declared_queues()
        }

    return depths


def _waiting(broker: Any, key: str) -> Waiting:
    depth, first = broker.client.llen(key), broker.client.lindex(key, 0)
    data = first and broker.client.hget(f"{key}.msgs", first)
    if not data:
        return Waiting(depth)
    message = Message.decode(data)
    return Waiting(depth, message.options.get(SINCE, message.message_timestamp))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
