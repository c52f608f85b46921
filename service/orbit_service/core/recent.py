"""
The newest runs of a worker, for people to look at.

Columns are kept as they came and opened when somebody asks: storing costs a
batch, not a run. Totals never depend on this; it forgets by design.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec import Struct

from orbit_rpc_schema.messages import Detail

KEPT_RUNS = 1000  # a worker
KEPT_MS = 3_600_000
KEPT_TEXT = 1_048_576  # characters of errors a worker; a hundred long tracebacks and more

NO_DETAIL = Detail()


@dataclass(frozen=True, slots=True)
class Run:
    """One ended run; `duration_us` is None where its worker was lost."""

    id: str
    pipeline: str
    finished_ms: int
    duration_us: int | None
    success: bool
    detail: Detail
    started_ms: int | None


class Column(Struct, frozen=True, gc=False):
    """Runs of one pipeline that ended together. `key` makes ids for runs that have none."""

    key: str
    pipeline: str
    at_ms: int
    durations_us: Sequence[int | None]
    failed: Collection[int]
    details: Mapping[int, Detail] = {}
    started_ms: int | None = None
    first: int = 0  # the number of its first run, so that a run keeps its id when others leave

    @property
    def text(self) -> int:
        """Characters of the errors in it."""
        errors = [detail.error for detail in self.details.values() if detail.error]
        return sum(len(error.message) + len(error.traceback or "") for error in errors)

    def newest(self, count: int) -> Column:
        """The last `count` runs of this column."""
        cut = len(self.durations_us) - count
        if cut <= 0:
            return self
        return Column(
            key=self.key,
            pipeline=self.pipeline,
            at_ms=self.at_ms,
            durations_us=self.durations_us[cut:],
            failed={i - cut for i in self.failed if i >= cut},
            details={i - cut: detail for i, detail in self.details.items() if i >= cut},
            started_ms=self.started_ms,
            first=self.first + cut,
        )

    def runs(self) -> Iterator[Run]:
        """Every run, newest first."""
        for i in range(len(self.durations_us) - 1, -1, -1):
            duration = self.durations_us[i]
            detail = self.details.get(i, NO_DETAIL)
            started = self.started_ms if duration is None else self.at_ms - duration // 1000
            yield Run(
                id=detail.id or f"{self.key}.{self.first + i}",
                pipeline=self.pipeline,
                finished_ms=self.at_ms,
                duration_us=duration,
                success=i not in self.failed,
                detail=detail,
                started_ms=started,
            )


class RecentRuns:
    """At most a thousand runs of the last hour, or a million characters of errors; newest kept."""

    def __init__(self, columns: Iterable[Column] = ()) -> None:
        self.columns: deque[Column] = deque()
        self._count = 0
        self._text = 0
        for column in columns:
            self.add(column)

    def add(self, column: Column) -> None:
        if len(column.durations_us) > KEPT_RUNS:
            column = column.newest(KEPT_RUNS)
        self.columns.append(column)
        self._count += len(column.durations_us)
        if column.details:
            self._text += column.text
        # Whole columns leave, so up to one column more than the bound stays.
        while self._count - len(self.columns[0].durations_us) >= KEPT_RUNS or (
            self._text >= KEPT_TEXT and self._text - self.columns[0].text >= KEPT_TEXT
        ):
            oldest = self.columns.popleft()
            self._count -= len(oldest.durations_us)
            self._text -= oldest.text

    def newest(self, now_ms: int) -> Iterator[Run]:
        """The runs of the last hour, newest first."""
        left = KEPT_RUNS
        # Of columns with the same time the one that came last is the newest.
        for column in sorted(self.columns, key=lambda column: column.at_ms)[::-1]:
            if column.at_ms <= now_ms - KEPT_MS:
                return
            for run in column.newest(left).runs():
                yield run
                left -= 1
            if not left:
                return
