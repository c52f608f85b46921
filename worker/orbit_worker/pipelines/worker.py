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
# After a restart by command. Not 0: systemd's Restart=on-failure would leave it at that. PM2,
# Kubernetes and Compose start it again after any.
RESTART_CODE = os.EX_TEMPFAIL

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


class Departure:
    """When the worker is to leave, and with which code: told by a signal, or by a command."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self._signalled = False

    @property
    def code(self) -> int:
        return 0 if self._signalled else RESTART_CODE

    def listen(self) -> None:
        """From now on SIGTERM and SIGINT say to leave."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, _number: int, _frame: object) -> None:
        # The first after a restart was asked for is of its manager, and ends nothing sooner.
        if self._signalled:
            os._exit(1)  # asked twice: at once
        self._signalled = True
        self.told.set()


def run_worker(
    found: Found,
    url: str,
    *,
    concurrency: int = CONCURRENCY,
    poll_interval_ms: int = POLL_INTERVAL_MS,
) -> None:
    """Execute pending runs until SIGTERM or SIGINT, then leave with 0. Does not return.

    After the command `restart` it leaves in the same way, with RESTART_CODE.
    """
    departure = Departure()
    departure.listen()
    # A second of its import is DBOS; whoever has no pipelines need not wait for it.
    from orbit_worker.pipelines.engine import Engine

    engine = Engine(
        url,
        found.pipelines,
        concurrency=concurrency,
        poll_seconds=poll_interval_ms / 1000,
    )

    def obey(action: str, pipeline: str | None) -> bool | None:
        match action:
            case "pause":
                return engine.pause(pipeline)
            case "resume":
                return engine.resume(pipeline)
            case "restart":
                if not engine.knows(pipeline):
                    return False
                departure.told.set()
                return True
            case _:
                return None

    metrics = MetricsClient(
        version=version("orbit-metrics"),
        slots=concurrency,
        queue_depths=engine.depths,
        on_control=obey,
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
    departure.told.wait()
    log.info("stopping: %d runs in flight have %d s", engine.in_flight, DRAIN_SECONDS)
    finished = engine.stop(DRAIN_SECONDS)
    metrics.close()
    log.info("stopped" if finished else "stopped; what was in flight is taken up by the next")
    # A step that outlasted the grace sits in a thread that would hold up the exit.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(departure.code)


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
