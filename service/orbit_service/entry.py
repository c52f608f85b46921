"""
The console script: a shim on the standard library.

It answers `healthcheck` itself, because a container's probe runs every few
seconds, and it names the extra that a command needs where it is not installed.
"""

from __future__ import annotations

import sys


def main() -> None:
    if sys.argv[1:] == ["healthcheck"] or sys.argv[1:-1] == ["healthcheck", "--url"]:
        from orbit_service.healthcheck import healthcheck

        sys.exit(healthcheck(*sys.argv[3:]))
    try:
        from orbit_service.cli import cli
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("orbit_"):
            raise
        print(
            f"orbit-metrics: {missing.name} is not installed. The base install is the worker's "
            "client; for this command install orbit-metrics[service] (serve, metrics, call, ...) "
            "or orbit-metrics[pipelines] (worker, run).",
            file=sys.stderr,
        )
        sys.exit(1)
    cli()
