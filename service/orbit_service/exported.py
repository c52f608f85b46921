"""The wiring of what others are told: Prometheus, which asks, and OpenTelemetry, which is told."""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from orbit_rpc_schema.errors import Explained
from orbit_service.alerting.runner import Alerting
from orbit_service.exporters.reading import Options, Own, Reader
from orbit_service.exporters.scrape import Scraper
from orbit_service.past import Archived
from orbit_service.program import VERSION, Program
from orbit_service.rpc.handlers import Clock
from orbit_service.settings import Settings
from orbit_service.state.intake import Intake

if TYPE_CHECKING:
    from orbit_service.exporters.push import Pusher


LAST_SECONDS = 3.0  # for the push when the service stops


class NoOtlp(Explained):
    """
    ORBIT_OTLP_URL is set, and what it needs is not installed ({missing}).
    Install the extra: orbit-metrics[service,otlp]. Or unset it.
    """


class Exported:
    """A node's exporters."""

    def __init__(
        self,
        settings: Settings,
        intake: Intake,
        past: Archived,
        alerting: Alerting,
        clock: Clock,
    ) -> None:
        self._intake = intake
        self._past = past
        self._alerting = alerting
        self._started_ms = clock()
        # Faults are kept with the state, and some of them only with its next checkpoint:
        # what may go back is told as of the process, like what begins with it.
        self._earlier_faults: Counter[str] = Counter()
        self.reader = Reader(
            intake.collector,
            Options(
                worker_label=settings.export_workers,
                steps=settings.export_steps,
                waits=settings.export_waits,
                ended_ms=settings.export_ended_for * 1000,
            ),
            clock,
            self._own,
            intake.settle,
        )
        self.scraper = Scraper(self.reader)
        self._pusher = _pusher(settings, self.reader)

    def start(self, program: Program, stack: AsyncExitStack) -> None:
        """Push, where there is where to; to be stopped before the state is closed."""
        pusher = self._pusher
        if pusher is not None:
            stack.push_async_callback(pusher.push, LAST_SECONDS)
            program.spawn(pusher.run(), stack)

    def troubles(self) -> Iterator[str]:
        """What is wrong, in sentences."""
        if self._pusher is not None and self._pusher.trouble is not None:
            yield f"the push to OpenTelemetry fails ({self._pusher.trouble})"

    def begin(self, since: Mapping[str, int] | None = None) -> None:
        """The state was read; `since` are the faults that this process had met before."""
        self._earlier_faults = Counter(self._intake.collector.faults)
        self._earlier_faults.subtract(since or {})

    @property
    def faults(self) -> dict[str, int]:
        """What this process has met."""
        faults = self._intake.collector.faults
        return {kind: count - self._earlier_faults[kind] for kind, count in faults.items()}

    def _own(self) -> Own:
        collector, journal = self._intake.collector, self._intake.journal
        alerts = None if self._alerting.path is None else self._alerting.told()
        places = collector.places()
        return Own(
            version=VERSION,
            started_ms=self._started_ms,
            degraded={
                "state": journal is not None and journal.trouble is not None,
                "history": self._past.trouble is not None,
                "series": any(kind.full for kind in places.values()),
                **({"otlp": self._pusher.trouble is not None} if self._pusher else {}),
                **({"alerts": self._alerting.trouble is not None} if alerts else {}),
            },
            faults={"scrapes": 0, **self.faults},
            waiting=max(collector.ledger.waiting, 0),
            places={name: (len(kind), kind.limit) for name, kind in places.items()},
            sessions=len(collector.sessions),
            history_waiting_bytes=collector.outbox.size,
            commits=None if journal is None else journal.commit_times.copy(),
            commit_failures=0 if journal is None else journal.failures,
            alerts=alerts,
            pushes=None if self._pusher is None else dict(self._pusher.pushes),
            cpu_seconds=_cpu_seconds(),
            rss_bytes=_rss_bytes(),
        )


def _pusher(settings: Settings, reader: Reader) -> Pusher | None:
    """Raises NoOtlp where the extra is missing."""
    if settings.otlp_url is None:
        return None
    try:
        from orbit_service.exporters.push import Pusher, Target
    except ModuleNotFoundError as missing:
        raise NoOtlp(missing=missing.name) from None
    return Pusher(
        reader,
        Target(
            settings.otlp_url,
            settings.otlp_interval,
            VERSION,
            settings.otlp_headers,
            resource={
                "service.name": "orbit-metrics",
                "service.version": VERSION,
                "service.instance.id": settings.node,
                "host.name": gethostname(),
            },
        ),
    )


# The worker's client tells the same of its host, and neither side imports the other.
def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _rss_bytes() -> int:
    """Resident memory now; where the system does not tell, its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
