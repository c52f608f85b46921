"""The procedures about a range of time: read what is wanted, sum it, say it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from orbit_rpc_schema.errors import InvalidParams
from orbit_rpc_schema.procedures import (
    BalanceParams,
    FleetBalance,
    HistoryParams,
    HistoryView,
    Metrics,
    MetricsParams,
    PipelineList,
    PipelineMetrics,
    PipelineParams,
    PipelineSteps,
    RangeParams,
)
from orbit_service.core import snapshot, timeline
from orbit_service.core.rollup import (
    BadRange,
    Level,
    Segment,
    check_range,
    parse_duration,
    plan,
    segments,
)
from orbit_service.core.sessions import Worker
from orbit_service.core.timeline import Timeline, Totals, total_of
from orbit_service.history.archive import Archive
from orbit_service.history.port import Wanted
from orbit_service.rpc.times import parse_time

GROUPED_POINTS = 100  # where the step is left out; some fifty groups fit twice
LEAST_WINDOW_MS = 10_000


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except BadRange as bad:
        raise InvalidParams(problems=[str(bad)]) from None


class Past:
    """Answers about the past. `known` are the workers that are here, or in the fleet."""

    def __init__(
        self,
        archive: Archive,
        levels: Sequence[Level],
        known: snapshot.Known,
        clock: Callable[[], int],
    ) -> None:
        self._archive = archive
        self._levels = levels
        self._known = known
        self._clock = clock

    async def metrics(self, params: MetricsParams) -> Metrics:
        """worker.metrics over a window."""
        now_ms = self._clock()
        assert params.window is not None
        with _explained():
            length_ms = parse_duration(params.window)
            if not LEAST_WINDOW_MS <= length_ms <= self._levels[-1].kept_ms:
                longest = self._levels[-1].kept_ms // 86_400_000
                raise BadRange(
                    f"a window of {params.window} is not from 10s to {longest}d; a number is "
                    "milliseconds"
                )
            parts = segments(now_ms - length_ms, now_ms + LEAST_WINDOW_MS, now_ms, self._levels)
        wanted = _wanted(parts, params.worker, params.pipeline)
        total = total_of((await self._archive.read(wanted, Totals)).sums.values())
        lives = [worker.life for worker in self._workers(params.worker) if worker.life]
        life_ms = min((life.started_ms for life in lives), default=None)
        covered = timeline.covered_ms(now_ms - length_ms, now_ms, life_ms, total.first_ms)
        return snapshot.metrics(self._known, params, now_ms, (total.stats, covered // 1000))

    async def history(self, params: HistoryParams) -> HistoryView:
        """worker.history."""
        now_ms = self._clock()
        with _explained():
            start_ms, end_ms = self._range(params, now_ms)
            step_ms = None if params.step is None else parse_duration(params.step)
            points = GROUPED_POINTS if params.group_by else 200
            range = plan(start_ms, end_ms, step_ms, now_ms, self._levels, points)
        first_ms = 2 * range.start_ms - range.end_ms if params.trend else range.start_ms
        parts = [Segment(range.level, first_ms, range.end_ms)]
        wanted = _wanted(
            parts, params.worker, params.pipeline, whole=params.group_by in (None, "node")
        )
        found = await self._archive.read(
            wanted, lambda: Timeline(range, params.group_by, trend=params.trend)
        )
        with _explained():
            return found.view(self._levels[range.level].name, now_ms)

    async def pipelines(self, params: RangeParams) -> PipelineList:
        """pipelines.list."""
        start_ms, end_ms, parts = self._segments(params)
        totals = await self._archive.read(Wanted(parts), Totals)
        return timeline.pipeline_list(totals, start_ms, end_ms)

    async def pipeline(self, params: PipelineParams) -> PipelineMetrics:
        """pipelines.metrics."""
        start_ms, end_ms, parts = self._segments(params)
        wanted = Wanted(parts, worker=params.worker, pipeline=params.pipeline, errors=True)
        totals = await self._archive.read(wanted, Totals)
        texts = await self._archive.error_texts(wanted)
        return timeline.pipeline_metrics(params.pipeline, totals, texts, start_ms, end_ms)

    async def steps(self, params: PipelineParams) -> PipelineSteps:
        """pipelines.steps."""
        start_ms, end_ms, parts = self._segments(params)
        wanted = Wanted(parts, worker=params.worker, pipeline=params.pipeline, steps=True)
        totals = await self._archive.read(wanted, Totals)
        return timeline.pipeline_steps(params.pipeline, totals, start_ms, end_ms)

    async def balance(self, params: BalanceParams) -> FleetBalance:
        """fleet.balance."""
        start_ms, end_ms, parts = self._segments(params)
        totals = await self._archive.read(Wanted(parts, pipeline=params.pipeline), Totals)
        return timeline.balance(totals, self._workers(None), start_ms, end_ms)

    def _workers(self, name: str | None) -> list[Worker]:
        return list(self._known.select(name))

    def _range(self, params: RangeParams | PipelineParams, now_ms: int) -> tuple[int, int]:
        return parse_time(params.from_, now_ms), parse_time(params.to, now_ms)

    def _segments(self, params: RangeParams | PipelineParams) -> tuple[int, int, list[Segment]]:
        """Start and end of a range, rounded to windows that are kept, and what to read for it."""
        now_ms = self._clock()
        with _explained():
            start_ms, end_ms = self._range(params, now_ms)
            check_range(start_ms, end_ms, now_ms)
            end_ms = min(end_ms, now_ms)
            parts = segments(start_ms, end_ms, now_ms, self._levels)
        return parts[0].start_ms, end_ms, parts


def _wanted(
    parts: Sequence[Segment], worker: str | None, pipeline: str | None, *, whole: bool = True
) -> Wanted:
    # The sums of everything are kept ready: a month of them is one series.
    total = whole and worker is None and pipeline is None
    return Wanted(parts, total=total, worker=worker, pipeline=pipeline)
