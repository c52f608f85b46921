"""Answers as texts for a terminal."""

from __future__ import annotations

from datetime import UTC, datetime

from orbit_rpc_schema.wire import Json


def metrics_table(m: Json) -> str:
    """worker.metrics in lines of a name and a value."""
    if not m["known"]:
        return "what was asked for was never seen here"
    if not m["connected"]:
        last = m["lastLife"]
        if last is None:
            return "no worker is connected"
        return (
            f"no worker is connected; {last['worker']} ended ({last['reason']}) at "
            f"{utc(last['endedAt'])}; runs: {last['totalRuns']}, failed: {last['failed']}"
        )
    rows = [
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
