"""The procedures about a range of time: read what is wanted, sum it, say it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

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
from orbit_service.core import balance, pipelines, snapshot
from orbit_service.core.fleet import Fleet
from orbit_service.core.rollup import (
    WANTED_POINTS,
    BadRange,
    Level,
    Segment,
    check_range,
    parse_duration,
    plan,
    segments,
)
from orbit_service.core.stats import Stats, merged
from orbit_service.core.sums import Totals
from orbit_service.core.timeline import Timeline
from orbit_service.history.archive import Archive
from orbit_service.history.port import Wanted
from orbit_service.rpc.times import parse_time

GROUPED_POINTS = (100, 20, 4, 1)
LEAST_WINDOW_MS = 10_000


@contextmanager
def explained() -> Iterator[None]:
    """What is wrong with a range is wrong with the params."""
    try:
        yield
    except BadRange as bad:
        raise InvalidParams(problems=[str(bad)]) from None


class Past:
    """Answers about the past: of one `node`, or where that is None, of all in the history.

    `workers` are those that are connected there; `fleet` is everybody.
    """

    def __init__(
        self,
        archive: Archive,
        kept: Sequence[Level],
        clock: Callable[[], int],
        *,
        workers: Callable[[], snapshot.Known],
        fleet: Callable[[], Fleet],
        node: str | None = None,
    ) -> None:
        self._archive = archive
        self._kept = kept
        self._clock = clock
        self._workers = workers
        self._fleet = fleet
        self._node = node

    async def metrics(self, params: MetricsParams) -> Metrics:
        """worker.metrics over a window."""
        now_ms, known = self._clock(), self._workers()
        assert params.window is not None
        with explained():
            length_ms = parse_duration(params.window)
            if not LEAST_WINDOW_MS <= length_ms <= self._kept[-1].kept_ms:
                longest = self._kept[-1].kept_ms // 86_400_000
                raise BadRange(
                    f"a window of {params.window} is not from 10s to {longest}d; a number is "
                    "milliseconds"
                )
            # Workers' clocks are this one, and yet a run may be stamped a moment ahead.
            parts = segments(now_ms - length_ms, now_ms + LEAST_WINDOW_MS, now_ms, self._kept)
        wanted = self._wanted(parts, params.worker, params.pipeline)
        total = await self._archive.read(wanted, Totals, _sum)
        lives = [worker.life for worker in known.select(params.worker) if worker.life]
        life_ms = min((life.started_ms for life in lives), default=None)
        covered = balance.covered_ms(now_ms - length_ms, now_ms, life_ms, total.first_run_ms)
        return snapshot.metrics(known, params, now_ms, (total, covered // 1000))

    async def history(self, params: HistoryParams) -> HistoryView:
        """worker.history."""
        # Where the step is left out, as many points as fit for all groups.
        free = params.step is None and params.group_by is not None
        *more, last = GROUPED_POINTS if free else (WANTED_POINTS,)
        for points in more:
            with suppress(BadRange):
                return await self._history(params, points)
        with explained():
            return await self._history(params, last)

    async def _history(self, params: HistoryParams, points: int) -> HistoryView:
        """The same with about so many points where the step is left out. Raises BadRange too."""
        now_ms = self._clock()
        start_ms, end_ms = self._range(params, now_ms)
        asked = plan(
            start_ms,
            end_ms,
            None if params.step is None else parse_duration(params.step),
            now_ms,
            self._kept,
            wanted_points=points,
            before=params.trend,
        )
        level = self._kept[asked.level].name
        wanted = self._wanted(
            [Segment(asked.level, asked.first_ms, asked.end_ms)],
            params.worker,
            params.pipeline,
            whole=params.group_by in (None, "node"),
        )
        return await self._archive.read(
            wanted,
            lambda: Timeline(asked, params.group_by),
            lambda line: line.view(level, now_ms),
        )

    async def pipelines(self, params: RangeParams) -> PipelineList:
        """pipelines.list."""
        start_ms, end_ms, parts = self._segments(params)
        return await self._archive.read(
            Wanted(parts, node=self._node),
            Totals,
            lambda totals: pipelines.pipeline_list(totals, start_ms, end_ms),
        )

    async def pipeline(self, params: PipelineParams) -> PipelineMetrics:
        """pipelines.metrics."""
        start_ms, end_ms, parts = self._segments(params)
        wanted = Wanted(
            parts, node=self._node, worker=params.worker, pipeline=params.pipeline, errors=True
        )
        texts = await self._archive.error_texts(wanted)
        return await self._archive.read(
            wanted,
            Totals,
            lambda totals: pipelines.pipeline_metrics(
                params.pipeline, totals, texts, start_ms, end_ms
            ),
        )

    async def steps(self, params: PipelineParams) -> PipelineSteps:
        """pipelines.steps."""
        start_ms, end_ms, parts = self._segments(params)
        wanted = Wanted(
            parts, node=self._node, worker=params.worker, pipeline=params.pipeline, steps=True
        )
        return await self._archive.read(
            wanted,
            Totals,
            lambda totals: pipelines.pipeline_steps(params.pipeline, totals, start_ms, end_ms),
        )

    async def balance(self, params: BalanceParams) -> FleetBalance:
        """fleet.balance."""
        start_ms, end_ms, parts = self._segments(params)
        workers = list(self._fleet().select(None))
        return await self._archive.read(
            Wanted(parts, pipeline=params.pipeline),
            Totals,
            lambda totals: balance.balance(totals, workers, start_ms, end_ms),
        )

    def _range(self, params: RangeParams | PipelineParams, now_ms: int) -> tuple[int, int]:
        return parse_time(params.from_, now_ms), parse_time(params.to, now_ms)

    def _segments(self, params: RangeParams | PipelineParams) -> tuple[int, int, list[Segment]]:
        """Start and end of a range, widened to windows that are kept, and what to read for it."""
        now_ms = self._clock()
        with explained():
            start_ms, end_ms = self._range(params, now_ms)
            check_range(start_ms, end_ms, now_ms)
            parts = segments(start_ms, min(end_ms, now_ms), now_ms, self._kept)
        return parts[0].start_ms, min(parts[-1].end_ms, now_ms), parts

    def _wanted(
        self,
        parts: Sequence[Segment],
        worker: str | None,
        pipeline: str | None,
        *,
        whole: bool = True,
    ) -> Wanted:
        # The sums of everything are kept ready: a month of them is one series.
        total = whole and worker is None and pipeline is None
        return Wanted(parts, total=total, node=self._node, worker=worker, pipeline=pipeline)


def _sum(totals: Totals) -> Stats:
    return merged(totals.sums.values())
