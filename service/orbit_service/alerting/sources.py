"""What rules are told of: a node's own windows as they close, or those that nodes share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from loguru import logger

from orbit_rpc_schema.errors import HistoryUnavailable
from orbit_service.alerts.desk import Errors
from orbit_service.alerts.facts import Facts, facts_here, facts_of
from orbit_service.alerts.saying import Newest
from orbit_service.alerts.sums import Filling, Sums
from orbit_service.core.collector import Collector
from orbit_service.core.fleet import Fleet
from orbit_service.core.outbox import GRACE_MS, ErrorText, Key, Window
from orbit_service.core.rollup import DAY_MS, MINUTE_MS, Level, Segment, segments
from orbit_service.core.stats import Stats
from orbit_service.core.window import WINDOW_MS
from orbit_service.history.archive import Archive
from orbit_service.history.port import Wanted

PATIENCE_SECONDS = 30.0  # for a history that cannot be read; then rules go on without the past
AGAIN_SECONDS = 30.0  # from when they do, between two tries to read it
ERRORS_SECONDS = 30.0  # between two readings of a fleet's newest errors while none fails anew
SUCCESSES_SECONDS = 10.0  # between two readings of a fleet's successes
SUCCESSES_MS = 7 * DAY_MS  # of the past that is read for them at first
OVERLAP_MS = 2 * MINUTE_MS  # of one with the next, for what is published late
# For nodes to publish a window: what is over and not there yet would pass for nothing ran.
PUBLISH_MS = 5_000
FINE_MS = 660_000  # of the past that is read in windows of ten seconds: ten minutes, and some

Windows = list[tuple[int, Window]]
Moved = Callable[[int, int], int]  # the start of a window, now -> where it lies on the clock as set


@dataclass(frozen=True, slots=True)
class Closed:
    """Windows that have closed: since the look before, or all that there are."""

    windows: Windows
    errors: Errors
    sums: Sums | None = None  # of all that closed before them
    known_from_ms: int = 0  # of what closed before that, some may be missing
    grace_ms: int = GRACE_MS  # after its end a window is there


class OfNode:
    """A node: nothing is read but what closed before it began to listen."""

    hub = False

    def __init__(
        self,
        collector: Callable[[], Collector],
        archive: Archive,
        kept: Sequence[Level],
        node: str | None,
        stuck_after_ms: int,
        troubles: Callable[[], Iterable[str]],
        since_ms: int,
        close: Callable[[int], None],
        awaits_return: Callable[[], bool] = lambda: False,
    ) -> None:
        self._close = close
        self._awaits_return = awaits_return
        self._collector = collector
        self._archive = archive
        self._kept = kept
        self._node = node
        self._stuck_after_ms = stuck_after_ms
        self._troubles = troubles
        self._since_ms = since_ms
        self._listens = False  # until somebody looks, what closes is the history's to tell
        self._closed: Windows = []
        self._errors: dict[tuple[str, str], Newest] = {}
        self._filled: Sums | None = None  # which have been given what closed before
        self._errors_read = False
        self._patient_until: float | None = None
        self._again_at = inf  # when the past that is lacking is asked for again
        self._known_from_ms = 0

    def saw(self, windows: Mapping[int, Window]) -> None:
        """Windows are about to close; their errors are with the outbox until then."""
        if not self._listens:
            return
        self._closed += windows.items()
        texts = self._collector().outbox.errors
        keys = {key for window in windows.values() for key in window if key.error}
        _keep(self._errors, ((key, texts[key]) for key in keys if key in texts))

    async def past(self, sums: Sums, moved: Moved, now_ms: int) -> Sums | None:
        self._listens = True
        if self._filled is not sums or time.monotonic() >= self._again_at:
            return await self._past(sums, moved, now_ms)
        return None

    def closed(self, past: Sums | None, now_ms: int) -> Closed:
        # The next round of closing may be a quarter of a second away: till then the sums would
        # lack their newest ten seconds, and a rule over few of them would calm down and fire.
        self._close(now_ms)
        closed, self._closed = self._closed, []
        errors, self._errors = self._errors, {}
        # What ran while the service was away is told by workers that come back.
        known_from_ms = now_ms if self._awaits_return() else self._known_from_ms
        return Closed(closed, errors, past, known_from_ms)

    def added(self, sums: Sums) -> None:
        self._filled = sums

    async def _past(self, sums: Sums, moved: Moved, now_ms: int) -> Sums | None:
        """All that closed before now, as far as it is known; None: there is nothing new to it."""
        before: Windows = []

        def noted() -> None:
            nonlocal before
            before, self._closed = before + self._closed, []

        try:
            past = await read_past(
                self._archive, sums, moved, self._kept, self._node, now_ms, noted
            )
        except HistoryUnavailable as error:
            self._closed = before + self._closed
            if self._patient_until is None:
                self._patient_until = time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() < self._patient_until:
                raise
            if self._again_at == inf:
                logger.warning("rules go on without what closed before: {}", error)
            self._again_at = time.monotonic() + AGAIN_SECONDS
            return None if self._filled is sums else self._unpublished(sums, moved, now_ms)
        if self._again_at < inf:
            logger.info("rules have again what closed before")
        self._patient_until, self._again_at, self._known_from_ms = None, inf, 0
        return past.sums

    def _unpublished(self, sums: Sums, moved: Moved, now_ms: int) -> Sums:
        """What the node has itself: all that closed since the history takes nothing."""
        self._closed = []  # which is among it
        held, self._known_from_ms = sums.empty(), now_ms
        for publication in self._collector().outbox.waiting:
            for start_ms, window in publication.windows.items():
                held.add(moved(start_ms, now_ms), window)
                self._known_from_ms = min(self._known_from_ms, start_ms)
        return held

    def facts(self, now_ms: int) -> Facts:
        return facts_here(
            self._collector(), self._stuck_after_ms, self._since_ms, list(self._troubles()), now_ms
        )

    async def read_errors(self) -> None:
        if not self._errors_read:
            self._errors_read = True
            try:
                texts = await self._archive.error_texts(
                    Wanted([], node=self._node, runs=False, errors=True)
                )
                _keep(self._errors, ((key, text) for (_node, key), text in texts.items()))
            except HistoryUnavailable as error:
                logger.warning("the newest errors cannot be read: {}", error.message)


class OfFleet:
    """A hub: the windows of all nodes, read again for each look."""

    hub = True

    def __init__(
        self,
        fleet: Callable[[], Fleet],
        archive: Archive,
        kept: Sequence[Level],
        stuck_after_ms: int,
        since_ms: int,
    ) -> None:
        self._fleet = fleet
        self._archive = archive
        self._kept = kept
        self._stuck_after_ms = stuck_after_ms
        self._since_ms = since_ms
        self._errors_at = self._successes_at = float("-inf")
        self._successes = _Successes()
        self._failures: tuple[int, int] = (0, 0)  # the newest window that has any, and how many
        self._failed_anew = False
        self._errors: dict[tuple[str, str], Newest] = {}

    async def past(self, sums: Sums, moved: Moved, now_ms: int) -> Sums | None:
        await self._read_successes(now_ms)
        past = await read_past(self._archive, sums, moved, self._kept, None, now_ms, lambda: None)
        self._failed_anew |= past.failures != self._failures
        self._failures = past.failures
        return past.sums

    def closed(self, past: Sums | None, _now_ms: int) -> Closed:
        errors, self._errors = self._errors, {}
        return Closed([], errors, past, grace_ms=GRACE_MS + PUBLISH_MS)

    def added(self, sums: Sums) -> None:
        """All is read again the next time, whatever is in them."""

    def facts(self, now_ms: int) -> Facts:
        workers = self._fleet().select(None)
        facts = facts_of(workers, self._stuck_after_ms, self._since_ms, now_ms)
        for pair, success_ms in self._successes.last.items():
            facts.successes[pair] = max(success_ms, facts.successes.get(pair, 0))
        return facts

    async def _read_successes(self, now_ms: int) -> None:
        """Of workers that are gone: nodes tell of the lives that go on alone."""
        if time.monotonic() - self._successes_at < SUCCESSES_SECONDS:
            return
        oldest_ms = now_ms - SUCCESSES_MS
        from_ms = max(self._successes.read_ms - OVERLAP_MS, oldest_ms)
        parts = segments(from_ms, now_ms, now_ms, self._kept)
        read = await self._archive.read(Wanted(parts), _Successes, lambda found: found)
        self._successes = self._successes.with_later(read, oldest_ms, now_ms)
        self._successes_at = time.monotonic()

    async def read_errors(self) -> None:
        # What makes an alert fire has failed just now: its message has to say why.
        if not self._failed_anew and time.monotonic() - self._errors_at < ERRORS_SECONDS:
            return
        self._errors_at = time.monotonic()
        texts = await self._archive.error_texts(Wanted([], runs=False, errors=True))
        self._failed_anew = False
        _keep(self._errors, ((key, text) for (_node, key), text in texts.items()))


class _Successes:
    """Takes rows of the history, and keeps when each worker's pipeline succeeded last."""

    def __init__(self) -> None:
        self.last: dict[tuple[str, str], int] = {}
        self.read_ms = 0  # until when

    def add(self, _start_ms: int, _node: str, key: Key, stats: Stats) -> None:
        if stats.last_success_ms is not None and not (key.step or key.error):
            pair = (key.worker, key.pipeline)
            self.last[pair] = max(stats.last_success_ms, self.last.get(pair, 0))

    def with_later(self, later: _Successes, oldest_ms: int, read_ms: int) -> _Successes:
        both = _Successes()
        both.read_ms = read_ms
        both.last = {pair: at_ms for pair, at_ms in self.last.items() if at_ms >= oldest_ms}
        both.last.update(later.last)
        return both


async def read_past(
    archive: Archive,
    sums: Sums,
    moved: Moved,
    kept: Sequence[Level],
    node: str | None,
    now_ms: int,
    noted: Callable[[], None],
) -> Filling:
    """What closed for as long as the sums reach back. Raises HistoryUnavailable."""
    # A service that stops closes what is open: the window of now may have closed already.
    end_ms = now_ms - now_ms % WINDOW_MS + WINDOW_MS
    grace_ms = GRACE_MS - GRACE_MS % -WINDOW_MS  # by which sums are behind, in whole windows
    parts = past_of(kept, sums.longest_ms + grace_ms, end_ms)
    wanted = Wanted(parts, node=node, steps=sums.wants_steps)
    return await archive.read(
        wanted,
        lambda: Filling(sums, lambda start_ms: moved(start_ms, now_ms)),
        lambda filling: filling,
        noted,
    )


def past_of(kept: Sequence[Level], longest_ms: int, end_ms: int) -> list[Segment]:
    """The last minutes in the finest windows, which rules slide over; the rest by minutes."""
    fine, minute = kept[0].window_ms, kept[1].window_ms
    cut_ms = end_ms - FINE_MS
    cut_ms -= cut_ms % minute
    start_ms = end_ms - longest_ms
    if start_ms >= cut_ms:
        return [Segment(0, start_ms - start_ms % fine, end_ms)]
    return [Segment(1, start_ms - start_ms % minute, cut_ms), Segment(0, cut_ms, end_ms)]


def _keep(errors: dict[tuple[str, str], Newest], texts: Iterable[tuple[Key, ErrorText]]) -> None:
    """The newest of each pipeline and worker."""
    for key, text in texts:
        pair = (key.pipeline, key.worker)
        if pair not in errors or text.at_ms >= errors[pair][1].at_ms:
            errors[pair] = (key.error, text)
