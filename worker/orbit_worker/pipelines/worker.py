"""The pipeline worker process: discover, execute, report, drain, leave."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from orbit_worker.client import MetricsClient
from orbit_worker.pipelines.definition import CannotStart
from orbit_worker.pipelines.discovery import Found, discover

DRAIN_SECONDS = 30
CONCURRENCY = 4
POLL_INTERVAL_MS = 5_000

log = logging.getLogger("orbit_worker.pipelines")


def load(folder: Path) -> Found:
    """The pipelines of a folder. Raises CannotStart when there are none."""
    if not folder.is_dir():
        raise CannotStart(f"no pipelines: there is no folder {folder.absolute()}")
    found = discover(folder)
    for sentence in found.broken:
        log.error("broken pipeline file %s", sentence)
    if not found.pipelines:
        raise CannotStart(f"no pipelines in {folder.absolute()} (looked for Pipeline in *.py)")
    return found


def run_worker(
    found: Found,
    url: str,
    *,
    concurrency: int = CONCURRENCY,
    poll_interval_ms: int = POLL_INTERVAL_MS,
) -> None:
    """Execute pending runs until SIGTERM or SIGINT, then leave with 0. Does not return."""
    stopping = _stop_signals()
    # A second of its import is DBOS; whoever has no pipelines need not wait for it.
    from orbit_worker.pipelines.engine import Engine

    engine = Engine(
        url,
        found.pipelines,
        concurrency=concurrency,
        poll_seconds=poll_interval_ms / 1000,
    )
    metrics = MetricsClient(
        version=version("orbit-metrics"),
        slots=concurrency,
        queue_depths=engine.depths,
    )
    metrics.start_metrics_reporting()
    engine.start(metrics)
    log.info(
        "worker %s executes %s, %d at once, from %s",
        metrics.worker,
        ", ".join(sorted(found.pipelines)),
        concurrency,
        url,
    )
    stopping.wait()
    log.info("stopping: %d runs in flight have %d s", engine.in_flight, DRAIN_SECONDS)
    finished = engine.stop(DRAIN_SECONDS)
    metrics.close()
    log.info("stopped" if finished else "stopped; what was in flight is taken up by the next")
    # A step that outlasted the grace sits in a thread that would hold up the exit.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def poll_interval(environ: Mapping[str, str] = os.environ) -> int:
    """POLL_INTERVAL in milliseconds. Raises CannotStart for what is none."""
    text = environ.get("POLL_INTERVAL", str(POLL_INTERVAL_MS))
    if not text.isdecimal() or int(text) < 1:
        raise CannotStart(f"POLL_INTERVAL={text} is not a number of milliseconds")
    return int(text)


def log_level(environ: Mapping[str, str] = os.environ) -> int:
    """LOG_LEVEL as logging has it; the service knows two levels more. Raises CannotStart."""
    text = environ.get("LOG_LEVEL", "INFO").upper()
    levels = {**logging.getLevelNamesMapping(), "TRACE": logging.DEBUG, "SUCCESS": logging.INFO}
    if text not in levels:
        raise CannotStart(f"LOG_LEVEL={text} is none of {', '.join(sorted(levels))}")
    return levels[text]


def _stop_signals() -> threading.Event:
    stopping = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        if stopping.is_set():
            os._exit(1)  # asked twice: at once
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping
