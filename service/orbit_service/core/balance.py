"""The answer to fleet.balance: shares, utilisation, skew, and who is slower than the others."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable

from orbit_rpc_schema.procedures import FleetBalance, Outlier, Skew, WorkerShare
from orbit_service.core.sessions import Worker
from orbit_service.core.stats import Stats, merged, percent, rounded
from orbit_service.core.sums import Totals

MAX_OUTLIERS = 100
OUTLIER_RUNS = 20  # fewer say little of a p95
OUTLIER_RATIO = 1.5
OUTLIER_MS = 10  # a difference below it bothers nobody


def balance(totals: Totals, workers: Iterable[Worker], start_ms: int, end_ms: int) -> FleetBalance:
    """How runs and busy time are spread over the workers that were there."""
    known = {(worker.node, worker.name): worker for worker in workers}
    by_worker: dict[tuple[str, str], list[Stats]] = defaultdict(list)
    for node, key, total in totals.runs():
        by_worker[node, key.worker].append(total)
    for place, worker in known.items():
        if worker.life is not None:
            by_worker[place]  # connected and idle: its share is nothing
    sums = {place: merged(parts) for place, parts in by_worker.items()}
    runs = sum(total.runs for total in sums.values())
    busy_us = sum(total.total_us for total in sums.values())
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
            runs=_skew([total.runs for total in sums.values()]),
            busy_time=_skew([total.total_us for total in sums.values()]),
        ),
        outliers=_outliers(totals)[:MAX_OUTLIERS],
    )


def _share(
    node: str,
    name: str,
    stats: Stats,
    worker: Worker | None,
    runs: int,
    busy_us: int,
    start_ms: int,
    end_ms: int,
) -> WorkerShare:
    slots = None if worker is None else worker.slots
    life = None if worker is None else worker.life
    used = None
    if slots:
        length_ms = covered_ms(
            start_ms, end_ms, None if life is None else life.started_ms, stats.first_run_ms
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
        p95=stats.quantiles_ms(0.95)[0] if stats.timed else None,
    )


def covered_ms(start_ms: int, end_ms: int, life_ms: int | None, first_ms: int | None) -> int:
    """How much of a range a worker that is connected was there for, by all that is known.

    From its life's start, or from its first run in the range, whichever is earlier; of
    one that is not connected, all of the range.
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
        pipelines[key.pipeline][node, key.worker].append(total)
    found = []
    for pipeline, parts in pipelines.items():
        workers = {place: merged(stats) for place, stats in parts.items()}
        enough = {p: s for p, s in workers.items() if s.timed >= OUTLIER_RUNS}
        if len(enough) < 2:
            continue
        p95s = {place: stats.quantiles_ms(0.95)[0] for place, stats in enough.items()}
        everyone, runs = sorted(p95s.values()), sum(stats.runs for stats in enough.values())
        for (node, name), p95 in p95s.items():
            typical = _median_without(everyone, p95)
            if p95 < OUTLIER_RATIO * typical or p95 - typical < OUTLIER_MS:
                continue
            ratio = rounded(100 * p95, typical) / 100 if typical else float(p95)
            mine = enough[node, name].runs
            found.append(
                Outlier(
                    node=node,
                    worker=name,
                    pipeline=pipeline,
                    runs=mine,
                    p95=p95,
                    others_runs=runs - mine,
                    others_p95=typical,
                    ratio=ratio,
                    message=f"{name} on {node} is {ratio:g} times as slow in {pipeline}: p95 "
                    f"{p95} ms over {mine} runs, where {len(enough) - 1} other"
                    f"{'s' if len(enough) > 2 else ''} took {typical} ms over {runs - mine}",
                )
            )
    return sorted(found, key=lambda outlier: -outlier.ratio)


def _median_without(values: list[int], one: int) -> int:
    """The median of sorted values, one of them left out."""
    place = bisect_left(values, one)
    last = len(values) - 2  # index of the last that is left

    def at(index: int) -> int:
        return values[index if index < place else index + 1]

    return (at(last // 2) + at((last + 1) // 2)) // 2
