"""Answers as texts for a terminal."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from io import StringIO
from itertools import pairwise

from orbit_rpc_schema.wire import Json

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # columns of a sparkline
HEADER = ("", "runs", "failed", "error %", "avg ms", "p50", "p95", "p99", "runs/h")
NUMBERS = ("runs", "failed", "retries", "avg", "min", "max", "p50", "p95", "p99")


def metrics_table(m: Json, window: str | None = None) -> str:
    """worker.metrics in lines of a name and a value."""
    if not m["known"]:
        return "what was asked for was never seen here"
    if not m["connected"] and window is None:
        last = m["lastLife"]
        if last is None:
            return "no worker is connected"
        return (
            f"no worker is connected; {last['worker']} ended ({last['reason']}) at "
            f"{utc(last['endedAt'])}; runs: {last['totalRuns']}, failed: {last['failed']}"
        )
    length = f"{window} ms" if window and window.isdecimal() else window
    rows = [("window", f"the last {length}")] if window else []
    rows += [
        ("workers", f"{m['workersConnected']} connected, up {m['uptime']}"),
        ("runs", f"{m['totalRuns']} ({m['runsPerHour']:.2f} an hour)"),
        ("succeeded", f"{m['succeeded']} ({m['successRate']:.2f} %)"),
        ("failed", f"{m['failed']} ({m['errorRate']:.2f} %), {m['retries']} retries"),
        (
            "duration",
            f"avg {m['avgExecutionTime']} ms, min {m['minExecutionTime']}, "
            f"max {m['maxExecutionTime']}",
        ),
        ("quantiles", f"p50 {m['p50']} ms, p95 {m['p95']}, p99 {m['p99']}"),
        ("last run", utc(m["lastRunTime"]) if m["lastRunTime"] is not None else "none yet"),
    ]
    return "\n".join(f"{name:<10} {value}" for name, value in rows)


def utc(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# ---------------------------------------------------------------- worker.history


def history_table(view: Json) -> str:
    """worker.history: a line for each group if there are some, else for each step."""
    groups = view["groups"]
    if view_is_empty(view):
        return f"no runs from {utc(view['from'])} to {utc(view['to'])}"
    if len(groups) > 1 or groups[0]["name"] is not None:
        return "\n".join(_group_lines(groups))
    return "\n".join(_point_lines(view, groups[0]))


def view_is_empty(view: Json) -> bool:
    return not any(group["total"]["runs"] or group["trend"] for group in view["groups"])


def _point_lines(view: Json, group: Json) -> Iterator[str]:
    total, points = group["total"], group["points"]
    shown = 19 if view["step"] < 60_000 else 16  # of a time; seconds where they differ
    yield f"from {utc(view['from'])} to {utc(view['to'])}, in steps of {_step(view['step'])}"
    yield f"runs  {sparkline([p['runs'] for p in points])}"
    yield f"p95   {sparkline([p['p95'] for p in points])}"
    yield ""
    yield _line(HEADER)
    for point in points:
        yield _line((utc(point["at"])[:shown], *_cells(point)))
    yield _line(("all", *_cells(total)))
    if group["trend"] is not None:
        yield f"against the range before: {_trend(group['trend'])}"


def _group_lines(groups: Sequence[Json]) -> Iterator[str]:
    width = max(16, *(len(_shown(group["name"])) for group in groups))
    yield _line(HEADER, width)
    for group in groups:
        bars = sparkline([point["runs"] for point in group["points"]], 24)
        line = _line((_shown(group["name"]), *_cells(group["total"])), width)
        trend = "" if group["trend"] is None else f"  {_trend(group['trend'])}"
        yield f"{line}  {bars}{trend}"


def _cells(numbers: Json) -> list[str]:
    rate, per_hour = numbers["errorRate"], f"{numbers['runsPerHour']:.2f}"
    names = ("avg", "p50", "p95", "p99")
    return [
        str(numbers["runs"]),
        str(numbers["failed"]),
        "-" if rate is None else f"{rate:.2f}",
        *("-" if numbers[name] is None else str(numbers[name]) for name in names),
        per_hour,
    ]


def _line(cells: Sequence[str], width: int = 19) -> str:
    first, *rest, last = cells
    return f"{first:<{width}}" + "".join(f" {cell:>8}" for cell in rest) + f" {last:>12}"


def _trend(trend: Json) -> str:
    if not trend["before"]["runs"]:
        return "nothing to compare with"
    parts = [
        ("runs/h", trend["runsPerHour"], "%"),
        ("error rate", trend["errorRate"], " points"),
        ("p95", trend["p95"], "%"),
    ]
    return ", ".join(
        f"{name} {'no comparison' if change is None else f'{change:+.2f}{unit}'}"
        for name, change, unit in parts
    )


def sparkline(values: Sequence[int | None], width: int = WIDTH) -> str:
    """A bar for each value, or for the largest of several; a space where there is nothing."""
    if len(values) > width:
        cuts = [round(i * len(values) / width) for i in range(width + 1)]
        parts = [values[a:b] for a, b in pairwise(cuts)]
        values = [max((v for v in part if v is not None), default=None) for part in parts]
    top = max((value for value in values if value), default=1)
    return "".join(BARS[value * len(BARS) // (top + 1)] if value else " " for value in values)


def history_csv(view: Json) -> str:
    """worker.history, a line for each point."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("at", "group", *NUMBERS, "runsPerHour", "errorRate"))
    for group in view["groups"]:
        for point in group["points"]:
            at = datetime.fromtimestamp(point["at"] / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            numbers = [point[name] for name in (*NUMBERS, "runsPerHour", "errorRate")]
            writer.writerow((at, group["name"] or "", *numbers))
    return text.getvalue()


def _step(ms: int) -> str:
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        if ms % length == 0:
            return f"{ms // length} {unit}"
    return f"{ms // 1000} s"


def _shown(name: str | None) -> str:
    return name or "(none)"
