"""The answer to worker.history: points in steps, by group, and the range before."""

from __future__ import annotations

from typing import Literal

from orbit_rpc_schema.procedures import HistoryGroup, HistoryView, Point, Trend
from orbit_service.core.outbox import Key
from orbit_service.core.rollup import MAX_POINTS, BadRange, Range, duration_text
from orbit_service.core.stats import Stats, merged
from orbit_service.core.sums import change, summary

GroupBy = Literal["worker", "pipeline", "node"]
NOTHING = Stats()


class Timeline:
    """Sums by group and step; of the range before as well, where a trend is asked."""

    def __init__(self, asked: Range, group_by: GroupBy | None) -> None:
        self._asked = asked
        self._group_by = group_by
        self._points: dict[str | None, dict[int, Stats]] = {}
        self._before: dict[str | None, Stats] = {}
        if group_by is None:
            self._begin(None)

    def add(self, start_ms: int, node: str, key: Key, stats: Stats) -> None:
        """Take one row. Raises BadRange where there are more groups than can be answered."""
        group: str | None = None
        if self._group_by == "node":
            group = node
        elif self._group_by is not None:
            group = getattr(key, self._group_by)
        if group not in self._points:
            self._begin(group)
        if start_ms < self._asked.start_ms:
            self._before[group].merge(stats)
        else:
            at = start_ms - start_ms % self._asked.step_ms
            self._points[group].setdefault(at, Stats()).merge(stats)

    def _begin(self, group: str | None) -> None:
        if (len(self._points) + 1) * self._asked.points > MAX_POINTS:
            raise BadRange(
                f"{len(self._points) + 1} and more groups of {self._asked.points} points are over "
                f"{MAX_POINTS}: take a longer step than {duration_text(self._asked.step_ms)}, "
                "or ask for one worker or pipeline"
            )
        self._points[group] = {}
        self._before[group] = Stats()

    def view(self, level: str, now_ms: int) -> HistoryView:
        """The answer."""
        asked = self._asked
        groups = [self._group(name, now_ms) for name in self._points]
        groups.sort(key=lambda group: (-group.total.runs, group.name or ""))
        return HistoryView(
            from_=asked.start_ms, to=asked.end_ms, step=asked.step_ms, level=level, groups=groups
        )

    def _group(self, name: str | None, now_ms: int) -> HistoryGroup:
        asked, found = self._asked, self._points[name]
        total = summary(merged(found.values()), min(asked.end_ms, now_ms) - asked.start_ms)
        points = []
        for at in range(asked.start_ms, asked.end_ms, asked.step_ms):
            length_ms = min(asked.step_ms, max(now_ms - at, 0))
            points.append(Point(at=at, **vars(summary(found.get(at, NOTHING), length_ms))))
        trend = None
        if asked.first_ms < asked.start_ms:
            before = summary(self._before[name], asked.start_ms - asked.first_ms)
            trend = Trend(from_=asked.first_ms, **vars(change(before, total)))
        return HistoryGroup(name=name, total=total, points=points, trend=trend)
