"""
What becomes of a result that carries a run id: a run, an attempt, or nothing new.

A framework redelivers, a worker resends, a run that was given up comes back.
The (id, attempt) pairs that ended are remembered for an hour and at most
100,000 of them, so that none of it is counted twice. Ids leave whole, the oldest
first; one that alone has more attempts loses the older half. Ids are apart by
pipeline: two programs that both number their jobs from one do not meet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from enum import Enum

from msgspec import Struct, field

KEPT_IDS = 100_000
KEPT_PAIRS = 100_000  # of all ids together; one id may have a million attempts
KEPT_MS = 3_600_000


class Verdict(Enum):
    RUN = "run"  # ends a run
    RERUN = "rerun"  # ends a run that had ended before: a run and a retry
    ATTEMPT = "attempt"  # an attempt that will be retried
    REPEATED = "repeated"  # counted already
    LATE = "late"  # counted as lost already


class Ending(Struct, array_like=True):
    """What is remembered of one run id. A Struct: a hundred thousand are saved at a time."""

    at_ms: int
    attempts: dict[int, None] = field(default_factory=dict)  # a set that knows its order
    final: int = 0  # the highest attempt that ended the run; 0 while it goes on
    lost: int = 0  # the attempt that ended with its worker; 0 where none did


class EndedRuns:
    """The memory of ended runs."""

    def __init__(self) -> None:
        self.endings: OrderedDict[tuple[str, str], Ending] = OrderedDict()
        self._pairs = 0

    def restore(self, endings: Mapping[tuple[str, str], Ending]) -> None:
        """Remember again what was remembered, oldest first."""
        self.endings.update(endings)
        self._pairs = sum(len(ending.attempts) for ending in self.endings.values())

    def judge(self, pipeline: str, id: str, attempt: int, final: bool, now_ms: int) -> Verdict:
        """What this result is, remembering it."""
        ending = self._remember(pipeline, id, now_ms)
        if attempt in ending.attempts:
            return Verdict.REPEATED
        if attempt <= ending.lost:
            return Verdict.LATE
        self._add(ending, attempt)
        if not final:
            return Verdict.ATTEMPT
        ended_before = max(ending.final, ending.lost)
        ending.final = max(ending.final, attempt)
        if not ended_before:
            return Verdict.RUN
        return Verdict.RERUN if attempt > ended_before else Verdict.REPEATED

    def start(self, pipeline: str, id: str) -> bool:
        """A run begins; True when a run of this id had ended before, so that this is a retry."""
        ending = self.endings.get((pipeline, id))
        if ending is None or not (ending.final or ending.lost):
            return False
        del self.endings[pipeline, id]
        self._pairs -= len(ending.attempts)
        return True

    def lose(self, pipeline: str, id: str, attempt: int | None, now_ms: int) -> bool:
        """A run ends because its worker was lost; False when its end has been told already.

        A start that does not tell its attempt is of the one after those that have ended.
        """
        ending = self._remember(pipeline, id, now_ms)
        if ending.final or attempt in ending.attempts:
            return False
        if attempt is not None and attempt <= ending.lost:
            return False  # delivered twice at once, and both were killed
        ending.lost = attempt or max(ending.attempts, default=0) + 1
        return True

    def is_lost(self, pipeline: str, id: str) -> bool:
        ending = self.endings.get((pipeline, id))
        return ending is not None and ending.lost > 0

    def _remember(self, pipeline: str, id: str, now_ms: int) -> Ending:
        key = (pipeline, id)
        ending = self.endings.get(key)
        if ending is None:
            ending = self.endings[key] = Ending(now_ms)
            self._forget(now_ms)
        else:
            ending.at_ms = now_ms
            self.endings.move_to_end(key)
        return ending

    def _add(self, ending: Ending, attempt: int) -> None:
        """Remember the pair; `ending` is the newest."""
        ending.attempts[attempt] = None
        self._pairs += 1
        while self._pairs > KEPT_PAIRS and len(self.endings) > 1:
            self._forget_oldest()
        if self._pairs > KEPT_PAIRS:
            # Half at once: a dict that loses its first one by one is slower each time.
            ending.attempts = dict.fromkeys([*ending.attempts][KEPT_PAIRS // 2 :])
            self._pairs = len(ending.attempts)

    def _forget(self, now_ms: int) -> None:
        while len(self.endings) > KEPT_IDS:
            self._forget_oldest()
        while self.endings:
            oldest = next(iter(self.endings.values()))
            if oldest.at_ms > now_ms - KEPT_MS:
                return
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _key, ending = self.endings.popitem(last=False)
        self._pairs -= len(ending.attempts)
