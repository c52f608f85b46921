"""
The wiring of alerts: when rules are looked at, at what, and where it goes from there.

A node looks at its own windows as they close; of several hubs one looks at those of all
nodes, by a lease. The desk does its work in a thread, one thing at a time.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from loguru import logger

from orbit_rpc_schema.alerts import AuditEntry
from orbit_rpc_schema.errors import AlertsUnavailable, BadRules, HistoryUnavailable, NoRules
from orbit_service.alerting.sources import Closed, Windows
from orbit_service.alerts.actions import Context, Control, Performer
from orbit_service.alerts.before import NOTHING_BEFORE, Before, Hours, ranges_of
from orbit_service.alerts.desk import Board, Desk, Errors, Seen
from orbit_service.alerts.facts import Facts
from orbit_service.alerts.records import FILE, LeaseLost, Parcel, Store, StoreFailed
from orbit_service.alerts.recovery import Act
from orbit_service.alerts.rules import Action, RuleFile, RulesFailed, read_rules
from orbit_service.alerts.sums import Sums
from orbit_service.clock import wall_clock
from orbit_service.core.rollup import HOUR_MS, Level, segments
from orbit_service.exporters.reading import AlertsNow
from orbit_service.history.archive import Archive
from orbit_service.history.port import Wanted
from orbit_service.notify.courier import AppriseCourier, check
from orbit_service.notify.delivery import Delivery
from orbit_service.rpc.handlers import Clock, Create
from orbit_service.threads import start_thread

if TYPE_CHECKING:
    from orbit_service.program import Program

LOOK_SECONDS = 5.0  # at the latest
STEP_MS = 5_000  # a clock that differs by more from one that nobody sets was set
RETRY_SECONDS = 30.0  # where the past, or the database, could not be read
BEFORE_SECONDS = 600.0  # what there is to compare with changes by the hour
STOP_SECONDS = 5.0
RENEW_SECONDS = 5.0  # the lease of a hub, while it reads
KEPT_SECONDS = 30.0  # for what a node has kept to be readable; then its alerts begin anew
OPEN_SECONDS = 5.0  # for what was kept to be read, before somebody is told to come again

T = TypeVar("T")
Told = Callable[[Sequence[AuditEntry]], Awaitable[None]]


async def _nobody(_entries: Sequence[AuditEntry]) -> None:
    """Nobody listens."""


class Source(Protocol):
    """What rules are told of: a node, or a fleet."""

    hub: bool

    async def past(self, sums: Sums, now_ms: int) -> Windows | None:
        """What has closed that the sums lack and the history holds. Raises HistoryUnavailable."""

    def closed(self, past: Windows | None, now_ms: int) -> Closed:
        """That, and every window that is over by now."""

    def added(self, sums: Sums) -> None:
        """These have all of it now."""

    def facts(self, now_ms: int) -> Facts:
        """What is so now. Raises HistoryUnavailable."""

    async def errors(self) -> Errors:
        """Newest errors. Raises HistoryUnavailable."""


class Alerting:
    """Alerts of one program. Without a file of rules there are none."""

    def __init__(
        self,
        path: Path | None,
        node: str,
        source: Source,
        archive: Archive,
        kept: Sequence[Level],
        store: Callable[[], Store | None],
        *,
        clock: Clock = wall_clock,
        create: Create | None = None,
        control: Control | None = None,
        history_of: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.path = path
        self.on_changed: Told = _nobody
        self.file_trouble: str | None = None  # what is wrong with the file as it is now
        self.loaded_ms: int | None = None
        self.evaluates = False
        self.actions: Counter[tuple[str, str]] = Counter()  # by kind and outcome
        self.archive = archive
        self.history_of = history_of
        self.kept = kept
        self.clock = clock
        self._source = source
        self._environ = environ
        self._make_store = store
        self._store: Store | None = None
        self._node = node
        self._desk = Desk(node, None)
        self._is_open = asyncio.Event()  # the desk has what was kept
        self._trouble: str | None = None  # why nothing is evaluated
        self._lock = asyncio.Lock()
        self._reading = asyncio.Lock()  # of the file, one at a time, so that the last one counts
        self._come = asyncio.Event()
        self._before: Before = NOTHING_BEFORE
        self._before_at = float("-inf")
        self._before_hour = 0
        self._wall_ms, self._monotonic = clock(), time.monotonic()
        self._step_ms = 0  # by how much the clock was set, and no look has heard of it
        self._patient_until: float | None = None
        self._performer = Performer(create, control, environ)
        self._acting: set[asyncio.Task[None]] = set()
        self.delivery = Delivery(_Outbox(self), AppriseCourier(), clock)

    # ------------------------------------------------------------ what others ask

    @property
    def desk(self) -> Desk:
        return self._desk

    @property
    def trouble(self) -> str | None:
        """Why rules are not in force, or alerts not kept; None where all is well."""
        if self.path is None:
            return None
        if self.file_trouble is not None:
            return f"the file of rules is not taken: {self.file_trouble}"
        if self._trouble is not None:
            return self._trouble
        if self._desk.shelf.trouble is not None:
            return f"alerts cannot be written ({self._desk.shelf.trouble}); they are kept in memory"
        if left_out := self._desk.board.left_out:
            return f"{left_out} alerts more than there is place for are not told: see the rules"
        return None

    def told(self) -> AlertsNow:
        """What exporters tell."""
        desk = self._desk
        firing: Counter[tuple[str, str]] = Counter()
        for rule in desk.file.rules:
            firing[rule.name, rule.severity] = 0
        for alert in desk.board.alerts:
            firing[alert.rule, alert.severity] += alert.phase == "firing"
        return AlertsNow(
            firing,
            {
                (name, outcome): count
                for name, tally in self.delivery.tallies.items()
                for outcome, count in (
                    ("sent", tally.sent),
                    ("failed", tally.failed),
                    ("given up", tally.given_up),
                )
            },
            self.actions + Counter({(kind, "refused"): n for kind, n in desk.refused.items()}),
            desk.board.evaluated_at,
        )

    def came(self) -> None:
        """Windows have closed: look soon."""
        self._come.set()

    async def ask(self, act: Callable[[Desk], T]) -> T:
        """Ask something at the desk, in a thread, alone. Raises NoRules and what `act` raises."""
        if self.path is None:
            raise NoRules
        await self._be_open()
        async with self._lock:
            return await self._alone(lambda: act(self._desk))

    async def change(self, act: Callable[[Desk], T]) -> T:
        """The same for what changes something. Raises AlertsUnavailable where another does it."""
        if self.path is None:
            raise NoRules
        await self._be_open()
        async with self._lock:
            if not self.evaluates and self._source.hub:
                raise AlertsUnavailable(why="another hub evaluates the rules: ask that one")
            before = self._desk.board
            try:
                done = await self._alone(lambda: act(self._desk))
            except LeaseLost as lost:
                self._close()
                raise AlertsUnavailable(why=f"{lost}: ask that one") from None
        if self._desk.board is not before:
            await self.on_changed([])
        self._wake()
        return done

    async def settled(self) -> None:
        """Wait a moment after the start, in which what fires is not known to do so."""
        if self.path is not None and self._trouble is None:
            with suppress(AlertsUnavailable):
                await self._be_open()

    async def _be_open(self) -> None:
        """Wait a moment for what was kept to be read, at the start."""
        try:
            await asyncio.wait_for(self._is_open.wait(), OPEN_SECONDS)
        except TimeoutError:
            raise AlertsUnavailable(why=self._trouble or "the service has just started") from None

    async def _alone(self, work: Callable[[], T]) -> T:
        """Do it in a thread, and hold the lock until it has ended, though nobody waits for it."""
        done = start_thread(work, "orbit-alerts")
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait([done], timeout=STOP_SECONDS)
            if done.done() and not done.cancelled():
                done.exception()
            raise

    async def reload(self) -> list[str]:
        """Take the file as it is now. Raises NoRules, BadRules; a bad file changes nothing."""
        if self.path is None:
            raise NoRules
        async with self._reading:
            # Not under the lock: a file that hangs holds up no look by the rules in force.
            rules = await self._alone(self._read)
            async with self._lock:
                changed = self._take(rules)
                if self.evaluates:
                    try:
                        await self._alone(lambda: self._desk.reloaded(changed, self.clock()))
                    except LeaseLost:  # whoever has it now has a file of its own
                        self._close()
        logger.info("{} rules in force, {} channels", len(rules.rules), len(rules.channels))
        self._come.set()
        return changed

    def _read(self) -> RuleFile:
        """The file as it is now. Raises BadRules."""
        assert self.path is not None
        try:
            rules = read_checked(self.path, self._environ)
        except RulesFailed as failed:
            self.file_trouble = "; ".join(failed.problems)
            logger.error("the file of rules is not taken: {}", self.file_trouble)
            raise BadRules(problems="\n".join(failed.problems)) from None
        self.file_trouble = None
        return rules

    def _take(self, rules: RuleFile) -> list[str]:
        changed = self._desk.use(rules)
        self.loaded_ms = self.clock()
        self._before_at = float("-inf")
        self.delivery.use(rules.channels)
        return changed

    # ------------------------------------------------------------ looking

    def start(self, program: Program, stack: AsyncExitStack) -> None:
        """Look and deliver until the program stops."""
        if self.path is None:
            return

        async def stop() -> None:
            for task in list(self._acting):
                task.cancel()
            if self._acting:
                await asyncio.wait(self._acting, timeout=STOP_SECONDS)
            if self._store is not None:
                leaving = start_thread(self._leave, "orbit-alerts")
                await asyncio.wait([leaving], timeout=STOP_SECONDS)

        stack.push_async_callback(stop)
        stack.push_async_callback(self.delivery.stop)
        program.spawn(self._run(), stack)

    def _leave(self) -> None:
        assert self._store is not None
        self._store.give_lease_up()
        self._store.close()

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
                wait = LOOK_SECONDS
            except HistoryUnavailable as error:
                self._in_trouble(f"rules cannot be evaluated: {error.message}")
                wait = LOOK_SECONDS
            except StoreFailed as error:
                if self._source.hub:
                    # Until it is back another may have begun, and ended too.
                    self.evaluates = False
                self._in_trouble(f"rules cannot be evaluated: {error}")
                wait = LOOK_SECONDS
            except Exception as error:  # noqa: BLE001  # the next look may go better
                logger.opt(exception=error).error("looking at the rules failed")
                # Of what had closed some may have been added, and some not: all of it again.
                self._desk.use(self._desk.file)
                self._in_trouble("rules cannot be evaluated: see the log")
                wait = RETRY_SECONDS
            with suppress(TimeoutError):
                await asyncio.wait_for(self._come.wait(), wait)
            self._come.clear()

    def _in_trouble(self, why: str) -> None:
        if why != self._trouble:
            logger.error("{}", why)
        self._trouble = why

    async def _look(self) -> None:
        async with self._lock:
            if self.loaded_ms is None and self.file_trouble is None:
                with suppress(BadRules):  # the log and the health say what is wrong
                    self._take(await self._alone(self._read))
            shown = self._desk.board
            looks = await self._may_look() and self.loaded_ms is not None
        if not looks:  # without any rules states would end for want of theirs
            if _differs(shown, self._desk.board):
                await self.on_changed([])  # what the hub that looks has found
            return
        sums = self._desk.sums
        # Which may take long, and holds nobody up.
        async with self._holding_the_lease():
            errors = await self._source.errors()
            before = await self._to_compare(self.clock())
            past = await self._source.past(sums, self.clock())
        async with self._lock:
            if self._desk.sums is not sums:
                self._come.set()  # other rules came meanwhile, and need all that has closed
                return
            now_ms = self._time()
            closed, facts = self._source.closed(past, now_ms), self._source.facts(now_ms)
            seen = Seen(
                closed.windows,
                facts,
                before,
                errors,
                self._step_ms,
                closed.all_of_it,
                closed.known_from_ms,
                closed.grace_ms,
            )
            try:
                told = await self._alone(lambda: self._desk.look(seen, now_ms))
            except LeaseLost:
                logger.warning("another hub evaluates the rules now")
                self._close()
                return
            self._step_ms = 0
            self._source.added(self._desk.sums)
            acts, self._desk.acts = self._desk.acts, []
            # While nobody else is at the desk: the next look may end the alert.
            contexts = [Context(*self._desk.about(act)) for act, _action in acts]
        self._trouble, self.evaluates = None, True
        for (act, action), context in zip(acts, contexts, strict=True):
            self._begin(act, action, context)
        if told:
            await self.on_changed(told)
        self._wake()

    @asynccontextmanager
    async def _holding_the_lease(self) -> AsyncIterator[None]:
        """Renew it meanwhile: reading may take longer than it lasts."""
        store = self._store if self._source.hub else None

        async def renew() -> None:
            while store is not None:
                await asyncio.sleep(RENEW_SECONDS)
                with suppress(StoreFailed):
                    await self._alone(store.take_lease)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])

    async def _may_look(self) -> bool:
        """Open the store at first; of hubs see whether this is the one that evaluates."""
        if self._store is None and not self._is_open.is_set():
            self._store = await self._alone(self._make_store)
        if self._store is not None and self._source.hub:
            if self.loaded_ms is None or not await self._alone(self._store.take_lease):
                self._close()
                await self._alone(self._open)  # to answer what the other has found
                self._is_open.set()
                return False
            if not self.evaluates:
                self._close()
        if not self._is_open.is_set():
            await self._alone(self._open)
            await self._alone(lambda: self._desk.interrupted(self.clock()))
            self._is_open.set()
        return True

    def _close(self) -> None:
        self.evaluates, self._trouble = False, None
        self._is_open.clear()

    def _open(self) -> None:
        """Go on from what is kept; what cannot be read now is not waited for by a node."""
        desk = Desk(self._node, self._store)
        try:
            desk.load()
        except StoreFailed as error:
            if self._patient_until is None:
                self._patient_until = time.monotonic() + KEPT_SECONDS
            if self._source.hub or time.monotonic() < self._patient_until:
                raise
            desk.shelf.trouble = str(error)
            logger.error("alerts cannot be read: {}; they begin anew", error)
        desk.use(self._desk.file)
        desk.show(self.clock())
        self._desk = desk
        self._time()
        self._step_ms = 0  # what was kept is by the clock as it is

    def _time(self) -> int:
        """Now; by how much the clock was set since the last time is added up."""
        wall_ms, monotonic = self.clock(), time.monotonic()
        passed_ms = int((monotonic - self._monotonic) * 1000)
        step_ms = wall_ms - self._wall_ms - passed_ms
        self._wall_ms, self._monotonic = wall_ms, monotonic
        if abs(step_ms) > STEP_MS:
            self._step_ms += step_ms
        return wall_ms

    async def _to_compare(self, now_ms: int) -> Before:
        rules = [rule for rule in self._desk.file.rules if rule.compare is not None]
        if not rules:
            return NOTHING_BEFORE
        hour = now_ms // HOUR_MS
        if time.monotonic() - self._before_at < BEFORE_SECONDS and hour == self._before_hour:
            return self._before
        parts = [
            part
            for start_ms, end_ms in ranges_of(rules, now_ms)
            for part in segments(start_ms, end_ms, now_ms, self.kept)
        ]
        wanted = Wanted(parts, node=self.history_of)
        try:
            self._before = await self.archive.read(
                wanted, lambda: Hours(rules), lambda hours: hours.at(now_ms)
            )
        except HistoryUnavailable as error:
            logger.warning("there is nothing to compare with now: {}", error.message)
            self._before = NOTHING_BEFORE
        self._before_at, self._before_hour = time.monotonic(), hour
        return self._before

    # ------------------------------------------------------------ acting

    def _begin(self, act: Act, action: Action, context: Context) -> None:
        task = asyncio.create_task(self._perform(act, action, context))
        self._acting.add(task)
        task.add_done_callback(self._acting.discard)

    async def _perform(self, act: Act, action: Action, context: Context) -> None:
        came = await self._performer.perform(act, action, context)
        outcome, text = came.outcome, came.text
        self.actions[act.kind, outcome] += 1
        said = " ".join(text.split())
        logger.warning("action {} of {}: {} ({})", act.kind, act.rule, outcome, said)
        with suppress(AlertsUnavailable):  # another hub has it down as not known
            await self.change(lambda desk: desk.acted(act, outcome, text, self.clock()))

    def _wake(self) -> None:
        for name in self._desk.file.channels:
            self.delivery.wake(name)


def _differs(one: Board, other: Board) -> bool:
    return (one.alerts, one.silences) != (other.alerts, other.silences)


class _Outbox:
    """What waits to be delivered, for whoever delivers it."""

    def __init__(self, alerting: Alerting) -> None:
        self._alerting = alerting

    async def due(self, channel: str, now_ms: int) -> list[Parcel]:
        alerting = self._alerting
        if not alerting.evaluates:
            return []  # another hub does it, or it is not known yet
        return alerting.desk.shelf.due(channel, now_ms, 20)

    async def delivered(self, parcel: Parcel, now_ms: int) -> None:
        await self._change(lambda desk: desk.delivered(parcel, now_ms))

    async def failed(self, parcel: Parcel, _why: str, next_ms: int) -> None:
        await self._change(lambda desk: desk.failed(parcel, next_ms))

    async def gave_up(self, parcel: Parcel, why: str, now_ms: int) -> None:
        await self._change(lambda desk: desk.gave_up(parcel, why, now_ms))

    async def _change(self, act: Callable[[Desk], None]) -> None:
        with suppress(AlertsUnavailable):  # another hub has it, and sends it under the same key
            await self._alerting.change(act)


def read_checked(path: Path, environ: Mapping[str, str] = os.environ) -> RuleFile:
    """The rules in a file, of which every channel can be sent to. Raises RulesFailed.

    Slow at first: it imports what sends.
    """
    rules = read_rules(path, environ)
    refused = [
        f"{path}: channel {name}: {why}"
        for name, channel in rules.channels.items()
        if (why := check(channel.address)) is not None
    ]
    if refused:
        raise RulesFailed(refused)
    return rules


def file_store(folder: Path | None) -> Store | None:
    """Where a node keeps its alerts; None where it keeps nothing."""
    if folder is None:
        return None
    # SQLAlchemy is slow to import.
    from orbit_service.alerts.store import AlertStore
    from orbit_service.history.engines import sqlite_file

    return AlertStore(sqlite_file(folder / FILE))


def shared_store(url: str, node: str) -> Store:
    """Where hubs keep theirs, of which one evaluates."""
    from orbit_service.alerts.store import AlertStore, holder_of
    from orbit_service.history.engines import checked_url, postgres

    return AlertStore(postgres(checked_url(url)), holder_of(node))
