"""The answers to pipelines.*: which there are, their versions, errors and steps."""

from __future__ import annotations

from collections import defaultdict

from orbit_rpc_schema.procedures import (
    ErrorTypeView,
    PipelineList,
    PipelineMetrics,
    PipelineSteps,
    PipelineView,
    StepMetrics,
    VersionChange,
    VersionView,
)
from orbit_service.core.outbox import ErrorText, Key
from orbit_service.core.stats import Stats, merged, percent
from orbit_service.core.sums import Totals, change, summary

MAX_ERRORS = 100
LEAST_MS = 60_000  # a rate over less would be a guess


def pipeline_list(totals: Totals, start_ms: int, end_ms: int) -> PipelineList:
    by_pipeline: dict[str, list[tuple[str, Stats]]] = defaultdict(list)
    for _node, key, total in totals.runs():
        by_pipeline[key.pipeline].append((key.worker, total))
    views = []
    for name, parts in by_pipeline.items():
        runs = merged(part for _worker, part in parts)
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
    by_version: dict[str, list[Stats]] = defaultdict(list)
    for _node, key, total in totals.runs():
        by_version[key.version].append(total)
    everything = merged(total for _node, _key, total in totals.runs())
    versions = _versions(by_version, end_ms)
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


def _versions(by_version: dict[str, list[Stats]], end_ms: int) -> list[VersionView]:
    """In the order in which they appeared; a rate is over the time in which a version ran."""
    sums = {name: merged(parts) for name, parts in by_version.items()}
    known = [(s.first_run_ms, s.last_run_ms, name, s) for name, s in sums.items()]
    ordered = sorted((first, last, n, s) for first, last, n, s in known if first and last)
    views = []
    for place, (first_ms, last_ms, name, stats) in enumerate(ordered, start=1):
        # The newest goes on.
        until_ms = end_ms if place == len(ordered) else last_ms
        views.append(
            VersionView(
                version=name or None,
                first_run=first_ms,
                last_run=last_ms,
                total=summary(stats, max(until_ms - first_ms, LEAST_MS)),
            )
        )
    return views


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
    counts: dict[str, Stats] = defaultdict(Stats)
    for (_node, key), total in totals.sums.items():
        if key.error:
            counts[key.error].merge(total)
    newest: dict[str, ErrorText] = {}
    for (_node, key), text in texts.items():
        if key.error not in newest or text.at_ms > newest[key.error].at_ms:
            newest[key.error] = text
    views = [
        ErrorTypeView(
            type=name,
            count=total.failed,
            last_seen=total.last_run_ms,
            message=newest[name].message if name in newest else "",
            traceback=newest[name].traceback if name in newest else None,
        )
        for name, total in counts.items()
        if total.failed
    ]
    return sorted(views, key=lambda view: (-view.count, view.type))


def pipeline_steps(pipeline: str, totals: Totals, start_ms: int, end_ms: int) -> PipelineSteps:
    runs = merged(total for _node, _key, total in totals.runs())
    by_step: dict[str, list[Stats]] = defaultdict(list)
    for (_node, key), total in totals.sums.items():
        if key.step:
            by_step[key.step].append(total)
    steps = []
    for name, parts in by_step.items():
        step = merged(parts)
        p50, p95, p99 = step.quantiles_ms(0.50, 0.95, 0.99)
        steps.append(
            StepMetrics(
                name=name,
                count=step.runs,
                failed=step.failed,
                retries=step.retries,
                avg=step.average_ms,
                min=step.min_ms,
                max=step.max_ms,
                p50=p50,
                p95=p95,
                p99=p99,
                share_of_time=percent(step.total_us, runs.total_us),
                last_success=step.last_success_ms,
            )
        )
    steps.sort(key=lambda step: (-step.share_of_time, step.name))
    return PipelineSteps(pipeline=pipeline, from_=start_ms, to=end_ms, runs=runs.runs, steps=steps)
