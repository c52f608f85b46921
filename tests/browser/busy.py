"""Workers that have done a bit of everything, for pages that show it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orbit_worker.client import MetricsClient
from orbit_worker.details import RunStep

HOSTILE = "<img src=x onerror=alert(1)>"
HOSTILE_RUN = f"{HOSTILE}/1?#%2f"
LONG = "L" * 200
RUNS = 40 + 30 + 6 + 3 + 24 + 3

# Four pipelines fail so often that they fire; one is slow, for which it takes an hour.
RULES = f"""
[channels.log]
url = "log://"
[channels."{"c" * 60}"]
url = "log://"

[[rules]]
name = "error-rate"
metric = "error_rate"
window = "1h"
above = 10
min_runs = 3
severity = "critical"
labels = {{ team = "<b>ops</b>", note = "{"n" * 200}" }}
runbook = "https://wiki.example.com/errors"

[[rules]]
name = "slow-runs"
metric = "p95"
window = "1h"
above = "1s"
min_runs = 3
for = "1h"
runbook = "javascript:alert(1)"
"""
FIRING, PENDING = 4, 1


def do_a_bit_of_everything(path: Path) -> Iterator[MetricsClient]:
    def worker(name: str, version: str) -> MetricsClient:
        return MetricsClient(socket=path, worker=name, version=version, slots=4, environ={})

    # Two versions of one worker, the newer of which breaks what it does.
    importer = worker("importer", "1.4.0")
    for i in range(40):
        steps = [RunStep("download", 30 + i), RunStep("parse", 8), RunStep("store", 61)]
        importer.record_run(99 + i, True, pipeline="import-orders", steps=steps, wait_ms=20)
    importer.flush()
    importer.close(timeout=1.0)
    importer = worker("importer", "1.5.0")
    for i in range(30):
        error = _raised() if i % 3 == 0 else None
        steps = [RunStep("download", 31), RunStep("parse", 9, success=error is None)]
        importer.record_run(
            180 + i, error is None, pipeline="import-orders", steps=steps, error=error, attempt=2
        )
    yield importer

    # Names that would be more than names in a page that took them for anything but text.
    hostile = worker(HOSTILE, HOSTILE)
    for i in range(6):
        hostile.record_run(
            12,
            i % 2 == 0,
            pipeline=HOSTILE,
            id=HOSTILE_RUN if i == 1 else f"hostile-{i}",
            queue=HOSTILE,
            error=None if i % 2 == 0 else type(HOSTILE, (ValueError,), {})(HOSTILE),
            steps=[RunStep(HOSTILE, 5)],
        )
    for _ in range(3):
        hostile.record_run(12, False, pipeline=LONG, error=ValueError("?" * 2_000))
    yield hostile

    mailer = worker("mailer", "2.0.1")
    for i in range(24):
        mailer.record_run(5 + i % 7, True, pipeline="send-mail", queue="mail")
    for i in range(3):
        mailer.record_run(60_000, False, pipeline="nightly-report", error=TimeoutError("60 s"))
        mailer.start_run(f"under-way-{i}", pipeline="send-mail")
    yield mailer
    for client in (importer, hostile, mailer):
        assert client.flush()


def _raised() -> Exception:
    """An error with a traceback of some depth."""
    try:
        {}["customer"]
    except KeyError as error:
        return error
    raise AssertionError
