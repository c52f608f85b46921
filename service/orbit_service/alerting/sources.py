"""What rules are told of: a node's own windows as they close, or those that nodes share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from loguru import logger

from orbit_rpc_schema.errors import HistoryUnavailable
from orbit_service.alerts.backtest import Recorded, TooMuch
from orbit_service.alerts.desk import Errors
from orbit_service.alerts.facts import Facts, facts_here, facts_of
from orbit_service.alerts.saying import Newest
from orbit_service.alerts.sums import Sums
from orbit_service.core.collector import Collector
from orbit_service.core.fleet import Fleet
from orbit_service.core.outbox import GRACE_MS, ErrorText, Key, Window
from orbit_service.core.rollup import Level, Segment
from orbit_service.core.window import WINDOW_MS
from orbit_service.history.archive import Archive
from orbit_service.history.port import Wanted

PATIENCE_SECONDS = 30.0  # for a history that cannot be read; then rules go on without the past
AGAIN_SECONDS = 30.0  # from when they do, between two tries to read it
ERRORS_SECONDS = 30.0  # between two readings of a fleet's newest errors while none fails anew
FINE_MS = 660_000  # of the past that is read in windows of ten seconds: ten minutes, and some

Windows = list[tuple[int, Window]]


@dataclass(frozen=True, slots=True)
class Closed:
    """Windows that have closed: since the look before, or all that there are."""

    windows: Windows
    all_of_it: bool = False


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
    ) -> None:
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

    def saw(self, windows: Mapping[int, Window]) -> None:
        """Windows are about to close; their errors are with the outbox until then."""
        if not self._listens:
            return
        self._closed += windows.items()
        texts = self._collector().outbox.errors
        keys = {key for window in windows.values() for key in window if key.error}
        _keep(self._errors, ((key, texts[key]) for key in keys if key in texts))

    async def look(self, sums: Sums, now_ms: int) -> Closed:
        self._listens = True
        past: Windows | None = None
        if self._filled is not sums or time.monotonic() >= self._again_at:
            past = await self._past(sums, now_ms)
        closed, self._closed = self._closed, []
        return Closed(closed) if past is None else Closed(past + closed, all_of_it=True)

    def added(self, sums: Sums) -> None:
        self._filled = sums

    async def _past(self, sums: Sums, now_ms: int) -> Windows | None:
        """All that closed before now; None where rules have to go on without it."""
        before: Windows = []

        def noted() -> None:
            nonlocal before
            before, self._closed = before + self._closed, []

        try:
            past = await read_past(self._archive, sums, self._kept, self._node, now_ms, noted)
        except (HistoryUnavailable, TooMuch) as error:
            self._closed = before + self._closed
            if self._patient_until is None:
                self._patient_until = time.monotonic() + PATIENCE_SECONDS
            if isinstance(error, HistoryUnavailable) and time.monotonic() < self._patient_until:
                raise
            if self._again_at == inf:
                logger.warning("rules go on without what closed before: {}", error)
            self._again_at = time.monotonic() + AGAIN_SECONDS
            return None
        if self._again_at < inf:
            logger.info("rules have again what closed before")
        self._patient_until, self._again_at = None, inf
        return past

    def facts(self, now_ms: int) -> Facts:
        return facts_here(
            self._collector(), self._stuck_after_ms, self._since_ms, list(self._troubles()), now_ms
        )

    async def errors(self) -> Errors:
        if not self._errors_read:
            self._errors_read = True
            try:
                texts = await self._archive.error_texts(
                    Wanted([], node=self._node, runs=False, errors=True)
                )
                _keep(self._errors, ((key, text) for (_node, key), text in texts.items()))
            except HistoryUnavailable as error:
                logger.warning("the newest errors cannot be read: {}", error.message)
        errors, self._errors = self._errors, {}
        return errors


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
        self._errors_at = float("-inf")
        self._failures: tuple[int, int] = (0, 0)  # the newest window that has any, and how many
        self._failed_anew = False

    async def look(self, sums: Sums, now_ms: int) -> Closed:
        try:
            windows = await read_past(self._archive, sums, self._kept, None, now_ms, lambda: None)
        except TooMuch as error:
            raise HistoryUnavailable(why=str(error)) from None
        failures = max(
            ((start_ms, failed) for start_ms, window in windows if (failed := _failed(window))),
            default=(0, 0),
        )
        self._failed_anew |= failures != self._failures
        self._failures = failures
        return Closed(windows, all_of_it=True)

    def added(self, sums: Sums) -> None:
        """All is read again the next time, whatever is in them."""

    def facts(self, now_ms: int) -> Facts:
        return facts_of(self._fleet().select(None), self._stuck_after_ms, self._since_ms, now_ms)

    async def errors(self) -> Errors:
        # What makes an alert fire has failed just now: its message has to say why.
        if not self._failed_anew and time.monotonic() - self._errors_at < ERRORS_SECONDS:
            return {}
        self._errors_at = time.monotonic()
        errors: dict[tuple[str, str], Newest] = {}
        texts = await self._archive.error_texts(Wanted([], runs=False, errors=True))
        self._failed_anew = False
        _keep(errors, ((key, text) for (_node, key), text in texts.items()))
        return errors


async def read_past(
    archive: Archive,
    sums: Sums,
    kept: Sequence[Level],
    node: str | None,
    now_ms: int,
    noted: Callable[[], None],
) -> Windows:
    """Closed windows for as long as the sums reach back. Raises HistoryUnavailable, TooMuch."""
    # A service that stops closes what is open: the window of now may have closed already.
    end_ms = now_ms - now_ms % WINDOW_MS + WINDOW_MS
    grace_ms = GRACE_MS - GRACE_MS % -WINDOW_MS  # by which sums are behind, in whole windows
    parts = past_of(kept, sums.longest_ms + grace_ms, end_ms)
    wanted = Wanted(parts, node=node, steps=sums.wants_steps)
    recorded = await archive.read(wanted, Recorded, lambda recorded: recorded, noted)
    return list(recorded.windows.items())


def past_of(kept: Sequence[Level], longest_ms: int, end_ms: int) -> list[Segment]:
    """The last minutes in the finest windows, which rules slide over; the rest by minutes."""
    fine, minute = kept[0].window_ms, kept[1].window_ms
    cut_ms = end_ms - FINE_MS
    cut_ms -= cut_ms % minute
    start_ms = end_ms - longest_ms
    if start_ms >= cut_ms:
        return [Segment(0, start_ms - start_ms % fine, end_ms)]
    return [Segment(1, start_ms - start_ms % minute, cut_ms), Segment(0, cut_ms, end_ms)]


def _failed(window: Window) -> int:
    return sum(stats.failed for key, stats in window.items() if not (key.step or key.error))


def _keep(errors: dict[tuple[str, str], Newest], texts: Iterable[tuple[Key, ErrorText]]) -> None:
    """The newest of each pipeline and worker."""
    for key, text in texts:
        pair = (key.pipeline, key.worker)
        if pair not in errors or text.at_ms >= errors[pair][1].at_ms:
            errors[pair] = (key.error, text)
