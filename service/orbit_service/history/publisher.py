"""
The thread that gives the history what is closed, and keeps it in order.

The loop offers; the thread adds, says what has been taken, and looks after old
windows in between. While the database is away it tries again, ever more rarely,
and what is to be published waits with the loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from loguru import logger

from orbit_service.core.outbox import Publication
from orbit_service.history.port import (
    AnotherIsWriting,
    History,
    HistoryFailed,
    HistoryRefused,
    Member,
)

MAINTAIN_SECONDS = 60.0
MAINTAIN_AT_ONCE = 1.0  # seconds of work on what others left
RENEW_SECONDS = 10.0
FIRST_RETRY = 0.25
LAST_RETRY = 10.0
STUCK_SECONDS = 30.0  # a database that takes longer for one thing is in trouble
STOP_SECONDS = 5.0  # with what is drained before, less than a container is given


@dataclass(frozen=True, slots=True)
class Offer:
    """What the loop has for the history; `state` where the lease is to be renewed."""

    instance: str
    publications: Sequence[Publication]
    ours: Container[str] = ()  # tokens of all that we may have published
    state: bytes | None = None


class Publisher:
    """Owns the history's writing side.

    `post(act, *arguments)` runs something in the loop. There `taken(number)` is called
    with what the history has, and `another(number)` where somebody else has written
    under our instance. `trouble` says why the history cannot be used now, or is None.
    """

    def __init__(
        self,
        history: Callable[[], History],
        node: str,
        post: Callable[..., object],
        taken: Callable[[int], None],
        another: Callable[[int], None],
    ) -> None:
        self.failures = 0
        self.refused = 0  # publications
        self.twin: str | None = None
        self._history = history
        self._node = node
        self._post = post
        self._taken = taken
        self._another = another
        self._trouble: str | None = None
        self._condition = threading.Condition()
        self._offer: Offer | None = None
        self._todo: Offer | None = None  # of the one that was taken up, what is not done
        self._stopping = False
        self._leave: str | None = None
        self._busy_since: float | None = None
        self._maintain_at = 0.0
        self._retry_after = FIRST_RETRY
        self._others: dict[str, int] = {}  # instances of our name: when they last wrote
        self._thread = threading.Thread(target=self._run, name="orbit-history", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def trouble(self) -> str | None:
        since = self._busy_since
        if since is not None and time.monotonic() - since > STUCK_SECONDS:
            return f"no answer for {int(time.monotonic() - since)} s"
        return self._trouble

    @property
    def ready(self) -> bool:
        """Whether an offer would be taken up now."""
        return self._offer is None and self._todo is None

    def offer(self, offer: Offer) -> None:
        with self._condition:
            self._offer = offer
            self._condition.notify()

    def stop(self, leave: str | None = None) -> None:
        """End the thread; waits for what it does, and not for ever.

        `leave` is the instance whose lease ends with it.
        """
        with self._condition:
            self._stopping, self._leave = True, leave
            self._condition.notify()
        self._thread.join(STOP_SECONDS)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self._stopping:
            self._wait()
            self._busy_since = time.monotonic()
            try:
                self._work()
                self._recovered()
                wait = 0.0
            except Exception as error:  # noqa: BLE001  # else nothing is published any more
                if not isinstance(error, HistoryFailed):
                    logger.opt(exception=error).error("publishing to the history failed")
                self._failed(str(error))
                wait = self._retry_after
                self._retry_after = min(2 * self._retry_after, LAST_RETRY)
            finally:
                self._busy_since = None
            with self._condition:
                self._condition.wait_for(lambda: self._stopping, timeout=wait)
        if self._leave is not None and self._trouble is None:
            with suppress(HistoryFailed):
                self._history().leave(self._leave)

    def _wait(self) -> None:
        """Until there is something to do: what is left of an offer, a new one, or upkeep."""
        with self._condition:
            if self._todo is None:
                rest = self._maintain_at - time.monotonic()
                self._condition.wait_for(
                    lambda: self._offer or self._stopping, timeout=max(rest, 0)
                )
                self._todo, self._offer = self._offer, None

    def _work(self) -> None:
        todo = self._todo
        try:
            if todo is not None and todo.state is not None:
                # First: to be late with windows is to be slow, with the lease is to be lost.
                history = self._history()
                self._look_at(history.renew(self._node, todo.instance, todo.state, todo.ours))
                todo = self._todo = replace(todo, state=None)
            if todo is not None and todo.publications:
                self._publish(todo)
        except AnotherIsWriting as error:
            self._post(self._another, error.number)
        # From here on the loop may offer again, however long the upkeep takes.
        self._todo = None
        if time.monotonic() >= self._maintain_at:
            self._maintain()

    def _publish(self, offer: Offer) -> None:
        history = self._history()
        try:
            number = history.apply(self._node, offer.instance, offer.publications, offer.ours)
        except HistoryRefused as error:
            if len(offer.publications) > 1:
                for publication in offer.publications:
                    self._publish(replace(offer, publications=[publication]))
                return
            number, token = offer.publications[0].number, offer.publications[0].token
            logger.error("publication {} is left out, the history refuses it: {}", number, error)
            self.refused += 1
            nothing = Publication(number, {}, {}, token=token)
            history.apply(self._node, offer.instance, [nothing], offer.ours)
        self._post(self._taken, number)

    def _maintain(self) -> None:
        """Some of what is to be done, so that what is offered does not wait for the rest."""
        self._maintain_at = time.monotonic()
        until = self._maintain_at + MAINTAIN_AT_ONCE
        if self._keep_up(self._node):
            return
        for node in set(self._history().abandoned()) - {self._node}:
            while self._keep_up(node):
                if time.monotonic() > until or self._stopping:
                    return
        self._maintain_at += MAINTAIN_SECONDS

    def _keep_up(self, node: str) -> bool:
        """Whether there is more to do; what the history refuses is left as it is for a while."""
        try:
            return self._history().maintain(node)
        except HistoryRefused as error:
            logger.error("windows of node {} cannot be rolled up: {}", node, error)
            return False

    def _look_at(self, others: Sequence[Member]) -> None:
        """Another that goes on writing under our name is a twin; one before our restart is not."""
        again = [o for o in others if o.alive and self._others.get(o.instance, o.at_ms) < o.at_ms]
        self._others = {other.instance: other.at_ms for other in others}
        twin = again[0].instance if again else None
        if twin and not self.twin:
            logger.error(
                "another service calls itself {} too (instance {}): set ORBIT_NODE of one of them; "
                "both are counted",
                self._node,
                twin,
            )
        if twin or not any(other.alive for other in others):
            self.twin = twin

    # ------------------------------------------------------------ trouble

    def _failed(self, why: str) -> None:
        self.failures += 1
        self._maintain_at = 0.0  # also to see whether it is there again
        if why != self._trouble:
            logger.error("the history cannot be used: {}; windows wait", why)
        self._trouble = why

    def _recovered(self) -> None:
        self._retry_after = FIRST_RETRY
        if self._trouble is not None:
            logger.info("the history is used again")
            self._trouble = None
