"""
Subscriptions: who hears of what, and the news once for all of them.

What is asked alike is one subject: its news are made and written as JSON once, however many
listen, and by its text a subscription is the same for all. A listener that is slow hears the
newest of a subject and how much it missed in between, and never holds more than that.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any

from orbit_rpc_schema.alerts import Alert, AlertsChanged, AlertsSubscribeParams, AuditEntry
from orbit_rpc_schema.errors import (
    NoSuchSubscription,
    NotOnHub,
    OrbitError,
    TooManySubscriptions,
)
from orbit_rpc_schema.model import Model
from orbit_rpc_schema.procedures import (
    Metrics,
    MetricsParams,
    Point,
    RunsEnded,
    RunsSubscribeParams,
    RunView,
    Selection,
    Subscription,
    Unsubscribed,
    WorkerSubscribeParams,
    WorkerUpdate,
)
from orbit_service.core.collector import Collector
from orbit_service.core.outbox import Window
from orbit_service.core.recent import Column
from orbit_service.core.sessions import Worker
from orbit_service.core.snapshot import ended_view
from orbit_service.core.stats import Stats, merged
from orbit_service.core.sums import summary
from orbit_service.core.window import WINDOW_MS
from orbit_service.rpc.handlers import Clock

MAX_SUBJECTS = 10  # of one listener
MAX_RUNS = 100  # told at once
MAX_KEPT = 2_000  # runs between two looks
LOOK_SECONDS = 0.25
AT_ONCE = 25  # listeners; some 50 us each, in which no worker is heard

UPDATE = "worker.update"
ENDED = "runs.ended"
ALERTS = "alerts.changed"


@dataclass(frozen=True, slots=True)
class News:
    """One notification as JSON, and what it counts as where somebody misses it."""

    text: str
    weight: int
    missed: int = 0  # of it, for which there is no room in one message

    def after(self, missed: int) -> str:
        """The text, telling how much was missed before it and in it."""
        missed += self.missed
        # Its end is that of the params and of the message.
        return f'{self.text[:-2]},"missed":{missed}}}}}' if missed else self.text


class Listener:
    """One connection's subscriptions, and what waits to be sent to it."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._waiting: dict[str, News] = {}
        self._missed: Counter[str] = Counter()
        self._come = asyncio.Event()

    def change(self, params: Any) -> Any:
        """Do what a call of the three says. Raises OrbitError."""
        return self._live.change(self, params)

    def leave(self) -> None:
        self._live.leave(self)

    def tell(self, subject: str, news: News) -> None:
        """Leave the newest of a subject for the sender; what was there before is missed."""
        before = self._waiting.get(subject)
        if before is not None:
            self._missed[subject] += before.weight
        self._waiting[subject] = news
        self._come.set()

    def forget(self, subject: str) -> None:
        self._waiting.pop(subject, None)
        self._missed.pop(subject, None)

    async def send_all(self, send: Callable[[str], Awaitable[None]]) -> None:
        """Send what comes, for as long as the connection lasts."""
        while True:
            await self._come.wait()
            self._come.clear()
            for subject in list(self._waiting):
                news = self._waiting.pop(subject, None)
                if news is not None:
                    await send(news.after(self._missed.pop(subject, 0)))


class _Subject:
    """What is asked alike, and by whom."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.listeners: set[Listener] = set()

    async def tell(self, method: str, params: Model, weight: int, missed: int = 0) -> None:
        told = params.model_dump(mode="json", by_alias=True, exclude={"missed"})
        message = {"jsonrpc": "2.0", "method": method, "params": told}
        text = json.dumps(message, separators=(",", ":"), allow_nan=False)
        news = News(text, weight, missed)
        for number, listener in enumerate(list(self.listeners)):
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)  # workers come in between
            if listener in self.listeners:
                listener.tell(self.name, news)


class _Totals(_Subject):
    """worker.subscribe"""

    def __init__(self, name: str, asked: WorkerSubscribeParams) -> None:
        super().__init__(name)
        self.asked = asked
        self.selection = Selection(worker=asked.worker, pipeline=asked.pipeline)
        self.due = 0.0
        self.window: Point | None = None


class _Runs(_Subject):
    """runs.subscribe"""

    def __init__(self, name: str, asked: RunsSubscribeParams) -> None:
        super().__init__(name)
        self.asked = asked

    def wants(self, worker: str, pipeline: str) -> bool:
        return self.asked.worker in (None, worker) and self.asked.pipeline in (None, pipeline)


class _Alerts(_Subject):
    """alerts.subscribe"""

    def __init__(self, name: str, asked: AlertsSubscribeParams) -> None:
        super().__init__(name)
        self.asked = asked


class Live:
    """All subscriptions of a service, or of a hub, which has no runs to tell of.

    `look` is to be called several times a second.
    """

    def __init__(
        self,
        metrics: Callable[[MetricsParams], Metrics | Awaitable[Metrics]],
        clock: Clock,
        collector: Collector | None = None,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._totals: dict[str, _Totals] = {}
        self._runs: dict[str, _Runs] = {}
        self._alerts: dict[str, _Alerts] = {}
        self._ended = EndedRuns()
        if collector is not None:
            collector.on_ended = self._ended.add
        self._tells_runs = collector is not None

    # ------------------------------------------------------------ subscribing

    def change(self, listener: Listener, asked: Any) -> Any:
        """Do what a call of the three says. Raises OrbitError."""
        match asked:
            case WorkerSubscribeParams():
                return self._add(listener, self._totals, _Totals, asked)
            case RunsSubscribeParams() if not self._tells_runs:
                raise NotOnHub(method="runs.subscribe")
            case RunsSubscribeParams():
                subscribed = self._add(listener, self._runs, _Runs, asked)
                self._ended.wanted = True
                return subscribed
            case AlertsSubscribeParams():
                return self._add(listener, self._alerts, _Alerts, asked)
        if not self._remove(listener, asked.subscription):
            raise NoSuchSubscription(subscription=asked.subscription)
        return Unsubscribed()

    def leave(self, listener: Listener) -> None:
        for subjects in self._subjects:
            for name in list(subjects):
                self._remove(listener, name)

    @property
    def _subjects(self) -> tuple[dict[str, Any], ...]:
        return self._totals, self._runs, self._alerts

    def _add(
        self, listener: Listener, subjects: dict[str, Any], make: Any, asked: Any
    ) -> Subscription:
        name = f"{make.__doc__} {asked.model_dump_json(by_alias=True, exclude_none=True)}"
        subject = subjects.get(name) or make(name, asked)
        held = sum(listener in s.listeners for kind in self._subjects for s in kind.values())
        if listener not in subject.listeners and held >= MAX_SUBJECTS:
            raise TooManySubscriptions(limit=MAX_SUBJECTS)
        subjects[name] = subject
        subject.listeners.add(listener)
        return Subscription(subscription=name)

    def _remove(self, listener: Listener, name: str) -> bool:
        for subjects in self._subjects:
            subject = subjects.get(name)
            if subject is not None and listener in subject.listeners:
                subject.listeners.remove(listener)
                listener.forget(name)
                if not subject.listeners:
                    del subjects[name]
                self._ended.wanted = bool(self._runs)
                return True
        return False

    # ------------------------------------------------------------ telling

    async def look(self) -> None:
        """Tell what is due."""
        now = time.monotonic()
        for subject in list(self._totals.values()):
            if subject.due <= now:
                subject.due = now + subject.asked.interval / 1000 - LOOK_SECONDS / 2
                await self._tell_totals(subject)
        if self._runs:
            batch = self._ended.take()
            for ended in list(self._runs.values()):
                await _tell_runs(ended, batch)

    async def _tell_totals(self, subject: _Totals) -> None:
        try:
            metrics = self._metrics(MetricsParams(**subject.selection.model_dump()))
            if isawaitable(metrics):
                metrics = await metrics
        except OrbitError:
            return  # a hub that cannot read the fleet now; its health says so
        update = WorkerUpdate(subscription=subject.name, metrics=metrics, window=subject.window)
        await subject.tell(UPDATE, update, 1)

    async def alerts_changed(self, alerts: Sequence[Alert], changes: Sequence[AuditEntry]) -> None:
        """Tell of what fires now, and of what has changed, newest first."""
        for subject in list(self._alerts.values()):
            told = AlertsChanged(
                subscription=subject.name, alerts=list(alerts), changes=list(changes)
            )
            await subject.tell(ALERTS, told, 1)

    def closed(self, windows: Mapping[int, Window]) -> None:
        """Windows have closed; what comes late for one closes it once more, with that alone."""
        for subject in self._totals.values():
            for start, window in sorted(windows.items()):
                stats = _of(window, subject.selection)
                if stats.runs or stats.retries:
                    subject.window = Point(at=start, **vars(summary(stats, WINDOW_MS)))


def _of(window: Window, selection: Selection) -> Stats:
    return merged(
        [
            stats
            for key, stats in window.items()
            if key.pipeline
            and not (key.step or key.error)
            and selection.worker in (None, key.worker)
            and selection.pipeline in (None, key.pipeline)
        ]
    )


class EndedRuns:
    """What has ended since the last look: columns as they came, at most so many runs."""

    def __init__(self) -> None:
        self.wanted = False
        self._columns: deque[tuple[Worker, Column]] = deque()
        self._count = 0
        # Runs for which there was no room, by (worker, pipeline, whether they failed).
        self._lost: Counter[tuple[str, str, bool]] = Counter()

    def add(self, worker: Worker, column: Column) -> None:
        if not self.wanted:
            return
        self._columns.append((worker, column))
        self._count += len(column.durations_us)
        while self._count - len(self._columns[0][1].durations_us) >= MAX_KEPT:
            left, oldest = self._columns.popleft()
            self._count -= len(oldest.durations_us)
            for failed, count in _by_outcome(oldest):
                self._lost[left.name, oldest.pipeline, failed] += count

    def take(self) -> Batch:
        batch = Batch(list(self._columns), self._lost)
        self._columns.clear()
        self._count, self._lost = 0, Counter()
        return batch


@dataclass(frozen=True, slots=True)
class Batch:
    """What ended between two looks, the newest last."""

    columns: list[tuple[Worker, Column]]
    lost: Counter[tuple[str, str, bool]]


def _by_outcome(column: Column) -> Iterator[tuple[bool, int]]:
    yield True, len(column.failed)
    yield False, len(column.durations_us) - len(column.failed)


async def _tell_runs(subject: _Runs, batch: Batch) -> None:
    outcomes = {None: (True, False), "failed": (True,), "success": (False,)}[subject.asked.status]
    wanted = [(w, c) for w, c in batch.columns if subject.wants(w.name, c.pipeline)]
    ended = sum(
        n for _w, column in wanted for failed, n in _by_outcome(column) if failed in outcomes
    )
    lost = sum(
        count
        for (worker, pipeline, failed), count in batch.lost.items()
        if failed in outcomes and subject.wants(worker, pipeline)
    )
    runs: list[RunView] = []
    for worker, column in reversed(wanted):
        for run in column.newest(MAX_RUNS).runs() if len(outcomes) == 2 else column.runs():
            if (not run.success) in outcomes and len(runs) < MAX_RUNS:
                runs.append(ended_view(worker, run))
        if len(runs) == MAX_RUNS:
            break
    if not runs:
        return
    ended += lost
    told = RunsEnded(subscription=subject.name, runs=runs)
    await subject.tell(ENDED, told, ended, ended - len(runs))
