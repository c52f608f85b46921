"""
How many series there may be, and which one folds.

A name has a place while it is used; when all places are taken, those that nobody
needs any more are freed, and only then a newcomer folds into one series with
others of its kind. So the dead never fold the living.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

MAX_PAIRS = 2_000  # (worker, pipeline)
MAX_VERSIONS = 4 * MAX_PAIRS  # (worker, pipeline, version): a deploy shows each pair twice
MAX_STEPS = 10_000
MAX_ERRORS = 2_000  # their newest texts are kept: 16 MB at the most
IDLE_MS = 15 * 60_000  # an ended worker's, or an unused name's, place is kept for so long
SWEEP_MS = 1_000  # a full house is looked through at most so often

OTHER_WORKERS = "(other workers)"
OTHER_PIPELINES = "(other pipelines)"
OTHER_VERSIONS = "(other versions)"
OTHER_STEPS = "(other steps)"
OTHER_ERRORS = "(other errors)"

K = TypeVar("K", bound=Hashable)


class Places(Generic[K]):
    """At most `limit` names at a time, each as itself; the others as what `fold` makes of them.

    `may_go` says which idle name can give its place away; `gone` is told of it.
    """

    def __init__(
        self,
        limit: int,
        fold: Callable[[K], K],
        may_go: Callable[[K], bool] = lambda _name: True,
        gone: Callable[[K], None] = lambda _name: None,
    ) -> None:
        self.limit = limit
        self.used_ms: OrderedDict[K, int] = OrderedDict()  # the one used longest ago first
        self.folded = 0  # how often a name found no place
        self.swept_ms = 0
        self._fold = fold
        self._may_go = may_go
        self._gone = gone

    def place(self, name: K, now_ms: int) -> K:
        """The name, which has a place from now on or keeps its own; or what it folds into."""
        if name not in self.used_ms and self.full:
            self._sweep(now_ms)
            if self.full:
                self.folded += 1
                return self._fold(name)
        self.used_ms[name] = now_ms
        self.used_ms.move_to_end(name)
        return name

    @property
    def full(self) -> bool:
        return len(self.used_ms) >= self.limit

    def _sweep(self, now_ms: int) -> None:
        if 0 <= now_ms - self.swept_ms < SWEEP_MS:
            return
        self.swept_ms = now_ms
        idle = [name for name, at in self.used_ms.items() if at <= now_ms - IDLE_MS]
        for name in idle:
            if self._may_go(name):
                del self.used_ms[name]
                self._gone(name)

    def __len__(self) -> int:
        return len(self.used_ms)
