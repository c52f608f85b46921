"""
Answers about the past: rows of windows, summed by what was asked.

Rows come one at a time, from the database and from memory, in any order; what
takes them keeps sums only, so that a month costs as much memory as its points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from orbit_rpc_schema.procedures import (
    Change,
    ErrorTypeView,
    FleetBalance,
    HistoryGroup,
    HistoryView,
    Outlier,
    PipelineList,
    PipelineMetrics,
    PipelineSteps,
    PipelineView,
    Point,
    Skew,
    StepMetrics,
    Summary,
    Trend,
    VersionChange,
    VersionView,
    WorkerShare,
)
from orbit_service.core.outbox import ErrorText, Key
from orbit_service.core.rollup import MAX_POINTS, BadRange, Range, duration_text
from orbit_service.core.sessions import Worker
from orbit_service.core.stats import Stats, merged, percent, rounded

GroupBy = Literal["worker", "pipeline", "node"]

MAX_ERRORS = 100
MAX_OUTLIERS = 100
OUTLIER_RUNS = 20  # fewer say little of a p95
OUTLIER_RATIO = 1.5
OUTLIER_MS = 10  # a difference below it bothers nobody


@dataclass(slots=True)
class Sum:
    """Runs, and when the first and the last window of them began."""

    stats: Stats = field(default_factory=Stats)
    first_ms: int | None = None
    last_ms: int = 0

    def add(self, start_ms: int, stats: Stats) -> None:
        self.stats.merge(stats)
        if stats.runs or stats.attempts:
            self.first_ms = start_ms if self.first_ms is None else min(self.first_ms, start_ms)
            self.last_ms = max(self.last_ms, start_ms)


class Totals:
    """Sums of the rows of a range, by node and key."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, Key], Sum] = defaultdict(Sum)

    def add(self, start_ms: int, node: str, key: Key, stats: Stats) -> None:
        self.sums[node, key].add(start_ms, stats)

    def runs(self) -> Iterable[tuple[str, Key, Sum]]:
        """Those of runs; the others are of steps or errors."""
        return (
            (node, key, total)
            for (node, key), total in self.sums.items()
            if not (key.step or key.error)
        )


def total_of(sums: Iterable[Sum]) -> Sum:
    total = Sum()
    for part in sums:
        total.stats.merge(part.stats)
        if part.first_ms is not None:
            total.first_ms = min(filter(None, [total.first_ms, part.first_ms]))
            total.last_ms = max(total.last_ms, part.last_ms)
    return total


# ---------------------------------------------------------------- worker.history


class Timeline:
    """Sums by group and step; of the range before as well, where a trend is asked."""

    def __init__(self, range: Range, group_by: GroupBy | None, *, trend: bool = False) -> None:
        self.range = range
        self.before_ms = 2 * range.start_ms - range.end_ms if trend else range.start_ms
        self._group_by = group_by
        self._trend = trend
        self._points: dict[str | None, dict[int, Stats]] = defaultdict(lambda: defaultdict(Stats))
        self._before: dict[str | None, Stats] = defaultdict(Stats)

    def add(self, start_ms: int, node: str, key: Key, stats: Stats) -> None:
        group = None
        if self._group_by == "node":
            group = node
        elif self._group_by is not None:
            group = getattr(key, self._group_by)
        if start_ms < self.range.start_ms:
            self._before[group].merge(stats)
        else:
            step = self.range.step_ms
            self._points[group][start_ms - start_ms % step].merge(stats)

    def view(self, level: str, now_ms: int) -> HistoryView:
        """The answer. Raises BadRange where it would be too large."""
        points = self.range.points * len(self._points)
        if points > MAX_POINTS:
            least = -(-points // MAX_POINTS) * self.range.step_ms
            raise BadRange(
                f"{len(self._points)} groups of {self.range.points} points are more than "
                f"{MAX_POINTS}: take a step of {duration_text(least)} or more, or ask for one"
            )
        names = set(self._points) | set(self._before) or ({None} if not self._group_by else set())
        groups = [self._group(name, now_ms) for name in names]
        groups.sort(key=lambda group: (-group.total.runs, group.name or ""))
        return HistoryView(
            from_=self.range.start_ms,
            to=self.range.end_ms,
            step=self.range.step_ms,
            level=level,
            groups=groups,
        )

    def _group(self, name: str | None, now_ms: int) -> HistoryGroup:
        found = self._points.get(name, {})
        range = self.range
        starts = _steps(range)
        total = summary(merged(found.values()), min(range.end_ms, now_ms) - range.start_ms)
        return HistoryGroup(
            name=name,
            total=total,
            points=[
                _point(at, found.get(at), min(range.step_ms, max(now_ms - at, 0))) for at in starts
            ],
            trend=self._change(name, total) if self._trend else None,
        )

    def _change(self, name: str | None, now: Summary) -> Trend:
        length = self.range.end_ms - self.range.start_ms
        before = summary(self._before.get(name, Stats()), length)
        return Trend(from_=self.before_ms, **vars(change(before, now)))


def _steps(range_: Range) -> range:
    return range(range_.start_ms, range_.end_ms, range_.step_ms)


NOTHING = Stats()


def _point(at_ms: int, stats: Stats | None, length_ms: int) -> Point:
    return Point(at=at_ms, **vars(summary(stats or NOTHING, length_ms)))


def summary(stats: Stats, length_ms: int) -> Summary:
    """The numbers of some runs; null where there are none to tell of."""
    timed = stats.timed > 0
    return Summary(
        runs=stats.runs,
        failed=stats.failed,
        retries=stats.retries,
        avg=stats.average_ms if timed else None,
        min=stats.min_ms if timed else None,
        max=stats.max_ms if timed else None,
        p50=stats.quantile_ms(0.50) if timed else None,
        p95=stats.quantile_ms(0.95) if timed else None,
        p99=stats.quantile_ms(0.99) if timed else None,
        # A step is as long as it is: a minute's floor would make ten seconds slower.
        runs_per_hour=rounded(stats.runs * 3_600_000 * 100, length_ms) / 100,
        error_rate=percent(stats.failed, stats.runs) if stats.runs else None,
    )


def change(before: Summary, now: Summary) -> Change:
    errors = None
    if now.error_rate is not None and before.error_rate is not None:
        errors = round(now.error_rate - before.error_rate, 2)
    return Change(
        before=before,
        runs_per_hour=_percent_change(before.runs_per_hour, now.runs_per_hour),
        error_rate=errors,
        p95=_percent_change(before.p95, now.p95),
    )


def _percent_change(before: float | None, now: float | None) -> float | None:
    if not before or now is None:
        return None
    return round(100 * (now - before) / before, 2)


# ---------------------------------------------------------------- pipelines.*


def pipeline_list(totals: Totals, start_ms: int, end_ms: int) -> PipelineList:
    by_pipeline: dict[str, list[tuple[str, Sum]]] = defaultdict(list)
    for _node, key, total in totals.runs():
        by_pipeline[key.pipeline].append((key.worker, total))
    views = []
    for name, parts in by_pipeline.items():
        runs = total_of(part for _worker, part in parts).stats
        views.append(
            PipelineView(
                id=name,
                name=name,
                workers=sorted({worker for worker, _part in parts}),
                total=summary(runs, end_ms - start_ms),
                last_run=runs.last_run_ms,
                last_success=runs.last_success_ms,
            )
        )
    views.sort(key=lambda view: (-view.total.runs, view.name))
    return PipelineList(from_=start_ms, to=end_ms, pipelines=views)


def pipeline_metrics(
    pipeline: str,
    totals: Totals,
    texts: dict[tuple[str, Key], ErrorText],
    start_ms: int,
    end_ms: int,
) -> PipelineMetrics:
    by_version: dict[str, list[Sum]] = defaultdict(list)
    for _node, key, total in totals.runs():
        by_version[key.version].append(total)
    everything = total_of(total for _node, _key, total in totals.runs()).stats
    versions = sorted(
        (_version(name, total_of(parts), end_ms) for name, parts in by_version.items()),
        key=lambda view: (view.first_run, view.last_run or 0),
    )
    errors = _error_types(totals, texts)
    return PipelineMetrics(
        pipeline=pipeline,
        from_=start_ms,
        to=end_ms,
        total=summary(everything, end_ms - start_ms),
        last_run=everything.last_run_ms,
        last_success=everything.last_success_ms,
        versions=versions,
        change=_version_change(versions),
        errors=errors[:MAX_ERRORS],
        untyped_failures=max(everything.failed - sum(error.count for error in errors), 0),
    )


def _version(name: str, total: Sum, end_ms: int) -> VersionView:
    first = end_ms if total.first_ms is None else total.first_ms
    last = total.stats.last_run_ms
    # A version's rate is over the time in which it ran.
    length = max((last or end_ms) - first, 60_000)
    return VersionView(
        version=name or None,
        first_run=first,
        last_run=last,
        total=summary(total.stats, length),
    )


def _version_change(versions: list[VersionView]) -> VersionChange | None:
    if len(versions) < 2:
        return None
    before, now = versions[-2:]
    return VersionChange(
        version=now.version,
        previous=before.version,
        **vars(change(before.total, now.total)),
    )


def _error_types(totals: Totals, texts: dict[tuple[str, Key], ErrorText]) -> list[ErrorTypeView]:
    counts: dict[str, Sum] = defaultdict(Sum)
    for (_node, key), total in totals.sums.items():
        if key.error:
            counts[key.error] = total_of([counts[key.error], total])
    newest: dict[str, ErrorText] = {}
    for (_node, key), text in texts.items():
        if key.error not in newest or text.at_ms > newest[key.error].at_ms:
            newest[key.error] = text
    views = [
        ErrorTypeView(
            type=name,
            count=total.stats.failed,
            last_seen=total.stats.last_run_ms,
            message=newest[name].message if name in newest else "",
            traceback=newest[name].traceback if name in newest else None,
        )
        for name, total in counts.items()
        if total.stats.failed
    ]
    return sorted(views, key=lambda view: (-view.count, view.type))


def pipeline_steps(pipeline: str, totals: Totals, start_ms: int, end_ms: int) -> PipelineSteps:
    runs = total_of(total for _node, _key, total in totals.runs()).stats
    by_step: dict[str, list[Stats]] = defaultdict(list)
    for (_node, key), total in totals.sums.items():
        if key.step:
            by_step[key.step].append(total.stats)
    steps = []
    for name, parts in by_step.items():
        step = merged(parts)
        steps.append(
            StepMetrics(
                name=name,
                count=step.runs,
                failed=step.failed,
                retries=step.retries,
                avg=step.average_ms,
                min=step.min_ms,
                max=step.max_ms,
                p50=step.quantile_ms(0.50),
                p95=step.quantile_ms(0.95),
                p99=step.quantile_ms(0.99),
                share_of_time=percent(step.total_us, runs.total_us),
                last_success=step.last_success_ms,
            )
        )
    steps.sort(key=lambda step: (-step.share_of_time, step.name))
    return PipelineSteps(pipeline=pipeline, from_=start_ms, to=end_ms, runs=runs.runs, steps=steps)


# ---------------------------------------------------------------- fleet.balance


def balance(totals: Totals, workers: Iterable[Worker], start_ms: int, end_ms: int) -> FleetBalance:
    """How runs and busy time are spread over the workers that were there."""
    known = {(worker.node, worker.name): worker for worker in workers}
    by_worker: dict[tuple[str, str], list[Sum]] = defaultdict(list)
    for node, key, total in totals.runs():
        by_worker[node, key.worker].append(total)
    for place, worker in known.items():
        if worker.life is not None:
            by_worker[place]  # connected and idle: its share is nothing
    sums = {place: total_of(parts) for place, parts in by_worker.items()}
    runs = sum(total.stats.runs for total in sums.values())
    busy_us = sum(total.stats.total_us for total in sums.values())
    shares = [
        _share(node, name, total, known.get((node, name)), runs, busy_us, start_ms, end_ms)
        for (node, name), total in sums.items()
    ]
    shares.sort(key=lambda share: (-share.busy_seconds, share.worker, share.node))
    return FleetBalance(
        from_=start_ms,
        to=end_ms,
        workers=shares,
        skew=Skew(
            runs=_skew([total.stats.runs for total in sums.values()]),
            busy_time=_skew([total.stats.total_us for total in sums.values()]),
        ),
        outliers=_outliers(totals)[:MAX_OUTLIERS],
    )


def _share(
    node: str,
    name: str,
    total: Sum,
    worker: Worker | None,
    runs: int,
    busy_us: int,
    start_ms: int,
    end_ms: int,
) -> WorkerShare:
    stats = total.stats
    slots = None if worker is None else worker.slots
    life = None if worker is None else worker.life
    used = None
    if slots:
        length_ms = covered_ms(
            start_ms, end_ms, None if life is None else life.started_ms, total.first_ms
        )
        used = percent(stats.total_us, slots * length_ms * 1000)
    return WorkerShare(
        node=node,
        worker=name,
        connected=life is not None,
        runs=stats.runs,
        share_of_runs=percent(stats.runs, runs),
        busy_seconds=rounded(stats.total_us, 1000) / 1000,
        share_of_busy_time=percent(stats.total_us, busy_us),
        slots=slots,
        utilisation=used,
        p95=stats.quantile_ms(0.95) if stats.timed else None,
    )


def covered_ms(start_ms: int, end_ms: int, life_ms: int | None, first_ms: int | None) -> int:
    """How much of a range a worker that is connected was there for, by all that is known.

    From its life's start, or from the first window that has runs, whichever is
    earlier; of one that is not connected, all of the range.
    """
    if life_ms is not None:
        since = life_ms if first_ms is None else min(life_ms, first_ms)
        start_ms = min(max(start_ms, since), end_ms)
    return max(end_ms - start_ms, 1)


def _skew(parts: list[int]) -> float:
    whole = sum(parts)
    return rounded(max(parts) * len(parts) * 100, whole) / 100 if whole else 1.0


def _outliers(totals: Totals) -> list[Outlier]:
    """Workers whose p95 in a pipeline is far over that of the others which run it."""
    pipelines: dict[str, dict[tuple[str, str], list[Stats]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for node, key, total in totals.runs():
        pipelines[key.pipeline][node, key.worker].append(total.stats)
    found = []
    for pipeline, parts in pipelines.items():
        workers = {place: merged(stats) for place, stats in parts.items()}
        enough = {p: s for p, s in workers.items() if s.timed >= OUTLIER_RUNS}
        if len(enough) < 2:
            continue
        p95s = {place: stats.quantile_ms(0.95) for place, stats in enough.items()}
        for (node, name), p95 in p95s.items():
            others = [place for place in enough if place != (node, name)]
            typical = int(median(p95s[place] for place in others))
            if p95 < OUTLIER_RATIO * typical or p95 - typical < OUTLIER_MS:
                continue
            ratio = rounded(100 * p95, typical) / 100 if typical else float(p95)
            count = sum(enough[place].runs for place in others)
            mine = enough[node, name].runs
            found.append(
                Outlier(
                    node=node,
                    worker=name,
                    pipeline=pipeline,
                    runs=mine,
                    p95=p95,
                    others_runs=count,
                    others_p95=typical,
                    ratio=ratio,
                    message=f"{name} on {node} is {ratio:g} times as slow in {pipeline}: p95 "
                    f"{p95} ms over {mine} runs, where {len(others)} other"
                    f"{'s' if len(others) > 1 else ''} took {typical} ms over {count}",
                )
            )
    return sorted(found, key=lambda outlier: -outlier.ratio)
