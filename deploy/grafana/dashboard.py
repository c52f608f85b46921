"""
The Grafana dashboard of Orbit Metrics: `python deploy/grafana/dashboard.py > orbit.json`.

Needs grafana-foundation-sdk. Percentiles are taken of summed buckets and never averaged.
A variable that stands at All matches everything, a label that is missing too, so that all
but the row Workers is whole under ORBIT_EXPORT_WORKERS=false; there only the number of
connected workers is left. Pushes to OpenTelemetry are not shown: most have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

# What the variables choose; SERVICE is of what has no pipeline.
SERVICE = 'job=~"$job", instance=~"$instance"'
WORKER = f'{SERVICE}, worker=~"$worker"'
RUNS = f'{WORKER}, pipeline=~"$pipeline"'

TILE, THIRD, HALF = 4, 8, 12  # of 24 columns
LOW, HIGH = 4, 8  # rows

GREEN, YELLOW, RED = "green", "yellow", "red"


# ---------------------------------------------------------------- expressions


def rate(metric: str, by: str = "", having: str = RUNS) -> str:
    """What a counter does a second, summed."""
    return f"{_sum(by)} (rate({metric}{{{having}}}[$__rate_interval]))"


def now(metric: str, by: str = "", having: str = RUNS) -> str:
    return f"{_sum(by)} ({metric}{{{having}}})"


def quantile(q: float, metric: str, by: str = "", having: str = RUNS) -> str:
    """Of the classic buckets, which every Prometheus has."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', labels, having)})"


def age(metric: str, by: str, having: str = RUNS, pick: str = "max") -> str:
    return f"time() - {pick} by ({by}) ({metric}{{{having}}})"


def or_none(expression: str) -> str:
    """Zero where there is no series at all: it begins with the first that it counts."""
    return f"{expression} or vector(0)"


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


# ---------------------------------------------------------------- panels


def query(expression: str, legend: str = "", *, instant: bool = False) -> prometheus.Dataquery:
    built = prometheus.Dataquery().datasource(SOURCE).expr(expression).ref_id("A")
    built = built.legend_format(legend or "__auto")
    return built.instant() if instant else built.range()


def tile(
    title: str, unit: str, description: str, expression: str, *steps: tuple[float, str]
) -> stat.Panel:
    """One number of now; `steps` are where its colour changes."""
    thresholds = [models.Threshold(value=None, color=GREEN)]
    thresholds += [models.Threshold(value=value, color=color) for value, color in steps]
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(TILE)
        .height(LOW)
        .graph_mode(shapes.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(
            dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds)
        )
        .with_target(query(expression))
    )


def graph(
    title: str,
    unit: str,
    description: str,
    *queries: prometheus.Dataquery,
    span: int = HALF,
    stacked: bool = False,
) -> timeseries.Panel:
    """Lines over time; the largest stand first in the legend."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(span)
        .height(HIGH)
        .fill_opacity(60 if stacked else 8)
        .show_points(shapes.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(shapes.LegendDisplayMode.LIST)
            .placement(shapes.LegendPlacement.BOTTOM)
            .calcs(["lastNotNull"])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(shapes.TooltipDisplayMode.MULTI)
            .sort(shapes.SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL))
    for name, each in zip("ABCDE", queries, strict=False):
        panel = panel.with_target(each.ref_id(name))
    return panel


def bars(title: str, unit: str, description: str, expression: str, legend: str) -> bargauge.Panel:
    """One bar for each, of now."""
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(HALF)
        .height(HIGH)
        .orientation(shapes.VizOrientation.HORIZONTAL)
        .display_mode(shapes.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(query(expression, legend, instant=True))
    )


# ---------------------------------------------------------------- rows

FAILED = rate("orbit_run_failures_total")
ALL = rate("orbit_runs_total")
STUCK_SECONDS = 1800  # as OrbitRunStuck has it


def overview() -> Iterator[Any]:
    yield tile("Runs", "ops", "Runs that ended, a second.", ALL)
    yield tile(
        "Errors",
        "percentunit",
        "Share of the runs that failed; those of killed workers count.",
        f"{FAILED} / {ALL}",
        (0.02, YELLOW),
        (0.1, RED),
    )
    yield tile(
        "In progress",
        "short",
        "Runs that have begun and not ended.",
        now("orbit_runs_in_progress"),
    )
    yield tile(
        "Workers",
        "short",
        "Workers that are connected, of all pipelines.",
        now("orbit_workers_connected", having=SERVICE),
    )
    yield tile(
        "Stuck",
        "short",
        "Pairs of worker and pipeline with a run in progress for more than half an hour.",
        or_none(
            f"count(time() - orbit_run_oldest_start_timestamp_seconds{{{RUNS}}} > {STUCK_SECONDS})"
        ),
        (1, RED),
    )
    yield tile(
        "p95",
        "s",
        "19 of 20 runs took at most so long, over all that is chosen; between two powers of two "
        "of a second it is interpolated.",
        quantile(0.95, "orbit_run_duration_seconds"),
    )


def pipelines() -> Iterator[Any]:
    yield graph(
        "Runs by pipeline",
        "ops",
        "Runs that ended, a second.",
        query(rate("orbit_runs_total", "pipeline"), "{{pipeline}}"),
    )
    yield graph(
        "Errors by pipeline",
        "percentunit",
        "Share of the runs that failed.",
        query(
            f"{rate('orbit_run_failures_total', 'pipeline')}"
            f" / {rate('orbit_runs_total', 'pipeline')}",
            "{{pipeline}}",
        ),
    )
    yield graph(
        "Failures by type",
        "ops",
        "WorkerLost is a worker that was killed. A failure without an error has no type, and the "
        "very first of a type only begins its line: the list beside has it.",
        query(
            rate("orbit_run_errors_total", "pipeline, error_type"), "{{pipeline}}: {{error_type}}"
        ),
    )
    yield bars(
        "Failures until now",
        "short",
        "Since each series began to count, the first of a type too.",
        f"topk(10, {now('orbit_run_errors_total', 'pipeline, error_type')})",
        "{{pipeline}}: {{error_type}}",
    )
    yield graph(
        "Durations",
        "s",
        "Of all runs that are chosen.",
        *(
            query(quantile(q, "orbit_run_duration_seconds"), f"p{q * 100:.0f}")
            for q in (0.5, 0.95, 0.99)
        ),
    )
    yield graph(
        "p95 by pipeline",
        "s",
        "19 of 20 runs took at most so long.",
        query(quantile(0.95, "orbit_run_duration_seconds", "pipeline"), "{{pipeline}}"),
    )
    yield (
        heatmap.Panel()
        .title("How long runs take")
        .description("Runs by duration: two hills are two kinds of runs.")
        .datasource(SOURCE)
        .span(HALF)
        .height(HIGH)
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges"))
        .y_axis(heatmap.YAxisConfig().unit("s"))
        .with_target(
            query(
                "sum by (le) (increase(orbit_run_duration_seconds_bucket"
                f"{{{RUNS}}}[$__rate_interval]))",
                "{{le}}",
            ).format(PromQueryFormat.HEATMAP)
        )
    )
    yield graph(
        "Waited for a worker, p95",
        "s",
        "Where the framework tells it; ORBIT_EXPORT_WAITS=false leaves it out.",
        query(quantile(0.95, "orbit_run_wait_seconds", "pipeline"), "{{pipeline}}"),
    )
    yield graph(
        "Since the last success",
        "s",
        "Of any worker. A pipeline that is idle grows old too.",
        query(age("orbit_run_last_success_timestamp_seconds", "pipeline"), "{{pipeline}}"),
        span=THIRD,
    )
    yield graph(
        "Retries",
        "ops",
        "Attempts beyond a run's first, a second.",
        query(rate("orbit_run_retries_total", "pipeline"), "{{pipeline}}"),
        span=THIRD,
    )
    yield graph(
        "Oldest run in progress",
        "s",
        "How long the oldest of the runs that have not ended has been going on.",
        query(
            age("orbit_run_oldest_start_timestamp_seconds", "pipeline", pick="min"),
            "{{pipeline}}",
        ),
        span=THIRD,
    )


def steps() -> Iterator[Any]:
    yield graph(
        "Share of the runs' time",
        "percentunit",
        "Time in each step, of all time in runs of its pipeline; what is missing to 100 % is "
        "outside of steps. ORBIT_EXPORT_STEPS=false leaves it out.",
        query(
            f"{rate('orbit_step_duration_seconds_sum', 'pipeline, step')}"
            " / on (pipeline) group_left () "
            f"{rate('orbit_run_duration_seconds_sum', 'pipeline')}",
            "{{pipeline}}: {{step}}",
        ),
    )
    yield graph(
        "p95 by step",
        "s",
        "19 of 20 times the step took at most so long.",
        query(
            quantile(0.95, "orbit_step_duration_seconds", "pipeline, step"),
            "{{pipeline}}: {{step}}",
        ),
    )


def workers() -> Iterator[Any]:
    yield graph(
        "Up",
        "short",
        "1 while the worker is connected; 0 for ORBIT_EXPORT_ENDED_FOR after its end.",
        query(
            f"max by (instance, worker) (orbit_worker_up{{{WORKER}}})", "{{worker}} at {{instance}}"
        ),
        span=THIRD,
    )
    yield graph(
        "Runs by worker",
        "ops",
        "Runs that ended, a second.",
        query(rate("orbit_runs_total", "instance, worker"), "{{worker}} at {{instance}}"),
        span=THIRD,
    )
    yield graph(
        "Last heard of",
        "s",
        "A worker that is connected says something every 10 s.",
        query(
            age("orbit_worker_last_heartbeat_timestamp_seconds", "instance, worker", WORKER),
            "{{worker}} at {{instance}}",
        ),
        span=THIRD,
    )
    began = f"orbit_worker_start_time_seconds{{{WORKER}}}"
    yield (
        table.Panel()
        .title("Began")
        .description("Since when each worker has been there, without a gap.")
        .datasource(SOURCE)
        .unit("dateTimeFromNow")
        .span(HALF)
        .height(HIGH)
        .with_target(
            query(f"max by (instance, worker) ({began}) * 1000", instant=True).format(
                PromQueryFormat.TABLE
            )
        )
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "renameByName": {"Value": "began"},
                },
            )
        )
    )
    yield graph(
        "Connected",
        "short",
        "Workers, and their processes, by service; told with ORBIT_EXPORT_WORKERS=false too.",
        query(now("orbit_workers_connected", "instance", SERVICE), "workers at {{instance}}"),
        query(now("orbit_sessions", "instance", SERVICE), "processes at {{instance}}"),
    )


def queues() -> Iterator[Any]:
    # Workers that share a queue tell of the same: the largest, and never the sum.
    yield graph(
        "Depth",
        "short",
        "How much waits, where workers tell it (queue_depths).",
        query(f"max by (queue) (orbit_queue_depth{{{WORKER}}})", "{{queue}}"),
    )
    yield graph(
        "Oldest that waits",
        "s",
        "How long the oldest task has been waiting, where workers tell it.",
        query(age("orbit_queue_oldest_timestamp_seconds", "queue", WORKER, "min"), "{{queue}}"),
    )


def service() -> Iterator[Any]:
    yield graph(
        "Results by what became of them",
        "ops",
        "counted is what all other numbers are of; repeated was sent twice and counted once; late "
        "is the end of a run that counts as lost.",
        query(rate("orbit_ingest_results_total", "outcome", SERVICE), "{{outcome}}"),
        span=THIRD,
    )
    yield graph(
        "Dropped and refused until now",
        "short",
        "What will never be counted: dropped by workers, refused by the service, and counted but "
        "missing in the history.",
        query(or_none(now("orbit_ingest_dropped_total", having=SERVICE)), "dropped"),
        query(or_none(now("orbit_ingest_refused_total", having=SERVICE)), "refused"),
        query(now("orbit_history_dropped_runs_total", having=SERVICE), "not in the history"),
        span=THIRD,
    )
    yield graph(
        "Waiting",
        "short",
        "Results that workers have recorded and that have not arrived.",
        query(now("orbit_ingest_waiting_results", "instance", SERVICE), "{{instance}}"),
        span=THIRD,
    )
    yield graph(
        "Commits",
        "s",
        "How long it takes to put the state on the disk; until then nothing is acknowledged.",
        *(
            query(quantile(q, "orbit_state_commit_seconds", having=SERVICE), f"p{q * 100:.0f}")
            for q in (0.5, 0.99)
        ),
        span=THIRD,
    )
    yield graph(
        "Places taken",
        "percentunit",
        "Of the names that may have a series of their own; at 100 % new ones are counted together.",
        query(
            f"max by (kind) (orbit_series{{{SERVICE}}} / orbit_series_limit{{{SERVICE}}})",
            "{{kind}}",
        ),
        span=THIRD,
    )
    yield graph(
        "Degraded",
        "short",
        "1 where a service does not do all it should; worker.health says it in a sentence.",
        query(
            f"max by (instance, reason) (orbit_degraded{{{SERVICE}}})", "{{reason}} at {{instance}}"
        ),
        span=THIRD,
    )
    yield graph(
        "Failed commits",
        "ops",
        "How often the disk refused, a second.",
        query(rate("orbit_state_commit_failures_total", "instance", SERVICE), "{{instance}}"),
        span=THIRD,
    )
    yield graph(
        "Processor",
        "percentunit",
        "Of one core.",
        query(
            "sum by (instance) (rate(process_cpu_seconds_total"
            f"{{{SERVICE}}}[$__rate_interval]) and on (job, instance) orbit_build_info)",
            "{{instance}}",
        ),
        span=THIRD,
    )
    yield graph(
        "Memory",
        "bytes",
        "Resident memory of the service, and what waits for the history in it.",
        query(
            f"sum by (instance) (process_resident_memory_bytes{{{SERVICE}}}"
            " and on (job, instance) orbit_build_info)",
            "{{instance}}",
        ),
        query(
            now("orbit_history_waiting_bytes", "instance", SERVICE),
            "for the history at {{instance}}",
        ),
        span=THIRD,
    )


ROWS = {
    "Overview": overview,
    "Pipelines": pipelines,
    "Steps": steps,
    "Workers": workers,
    "Queues": queues,
    "The service itself": service,
}


# ---------------------------------------------------------------- the whole


def _variable(name: str, values: str) -> dashboard.QueryVariable:
    """Its values are those of a label."""
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(values)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


VARIABLES = {
    "job": "label_values(orbit_build_info, job)",
    "instance": 'label_values(orbit_build_info{job=~"$job"}, instance)',
    "worker": f"label_values(orbit_worker_up{{{SERVICE}}}, worker)",
    "pipeline": f"label_values(orbit_runs_total{{{WORKER}}}, pipeline)",
}


def build() -> models.Dashboard:
    whole = (
        dashboard.Dashboard("Orbit Metrics")
        .uid("orbit-metrics")
        .description("Background workers: what ran, what failed, how slow, and who counts it.")
        .tags(["orbit-metrics", "workers"])
        .time("now-3h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
    )
    for name, values in VARIABLES.items():
        whole = whole.with_variable(_variable(name, values))
    for title, panels in ROWS.items():
        whole = whole.with_row(dashboard.Row(title))
        for panel in panels():
            whole = whole.with_panel(panel)
    return whole.build()


def queries(built: models.Dashboard) -> Iterator[tuple[str, str]]:
    """Title of the panel and expression of each query."""
    for panel in built.panels or []:
        for target in getattr(panel, "targets", None) or []:
            yield f"{panel.title}", f"{target.expr}"


if __name__ == "__main__":
    print(JSONEncoder(sort_keys=True, indent=2).encode(build()))
