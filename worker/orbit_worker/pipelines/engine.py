"""
The worker's side of DBOS: execute pending runs, durably, several at once.

DBOS polls its queue at an interval that it reads from the database and lowers
only slowly, so the interval stays short and the queue itself comes and goes:
while there is nothing to do it is unregistered, and a pacer looks for work every
POLL_INTERVAL and registers it again. Runs that wait keep the queue's name.

DBOS has no pause, and what it keeps of a queue holds for every worker of the
database. So a pause is a condition more in the statement by which this process
claims runs: what is paused here is never claimed here, and another worker may.

Each worker process holds a slot, by a file lock, and its DBOS executor id is
the slot's: what a killed worker left is found under an id whose lock is free.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy
from dbos import DBOS, DBOSConfig
from dbos import error as dbos_error

from orbit_worker.client import MetricsClient
from orbit_worker.details import ErrorLike, RunStep, error_json
from orbit_worker.pipelines.attempts import Outcome, execute
from orbit_worker.pipelines.definition import Pipeline
from orbit_worker.pipelines.pause import Pause
from orbit_worker.pipelines.store import (
    APPLICATION,
    APPLICATION_VERSION,
    PIPELINE,
    QUEUE,
    WORKFLOW,
    Store,
)

FAST_SECONDS = 0.05  # from a free slot to the next start, while there is work
BUSY_LOOK_SECONDS = 1.0
MAX_SLOTS = 1_000
MAX_DEPTH = 10_000
START_SECONDS = 8.0  # how long a command waits for the start; the service waits for ten

log = logging.getLogger("orbit_worker.pipelines")


class Slot:
    """One of the numbered places for worker processes, held until closed."""

    def __init__(self, url: str) -> None:
        self._directory = _slot_directory(url)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(MAX_SLOTS):
            self.executor_id = f"{socket.gethostname()}-slot-{number}"
            descriptor = self.lock(self.executor_id)
            if descriptor is not None:
                self._descriptor = descriptor
                return
        raise RuntimeError(f"{MAX_SLOTS} workers hold all slots of {self._directory}")

    def lock(self, executor_id: str) -> int | None:
        """The descriptor of a lock on that slot; None where a living process holds it."""
        path = self._directory / f"{executor_id}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    @property
    def host_prefix(self) -> str:
        """Executor ids of this host begin so; locks of other hosts cannot be seen from here."""
        return f"{socket.gethostname()}-slot-"


class Engine:
    """Executes pending runs until stopped. One for a process: DBOS is a singleton."""

    def __init__(
        self,
        url: str,
        pipelines: Mapping[str, Pipeline],
        *,
        concurrency: int,
        poll_seconds: float,
    ) -> None:
        self.store = Store(url)
        self._pipelines = pipelines
        self._concurrency = concurrency
        self._poll_seconds = poll_seconds
        self._slot = Slot(url)
        self._stopping = threading.Event()
        self._take_over_at = 0.0
        self._active: set[str] = set()
        self._metrics: MetricsClient | None = None
        self._pause = Pause()
        self._started = threading.Event()
        self._can_pause = False
        self._database: Any = None
        self._dbos = DBOS(
            config=DBOSConfig(
                name=APPLICATION,
                system_database_url=url,
                executor_id=self._slot.executor_id,
                application_version=APPLICATION_VERSION,
                log_level="WARNING",
                # No schedules here, and a thread that looks for them every 30 s otherwise.
                scheduler_polling_interval_sec=3600.0,
            )
        )
        logging.getLogger("dbos").addFilter(_no_cancellation)
        # Recovery is bounded by success, not by a count: a run that was interrupted
        # is taken up however often its worker is killed.
        DBOS.workflow(name=WORKFLOW, max_recovery_attempts=None)(self._make_workflow())

    def start(self, metrics: MetricsClient) -> None:
        """Take up what was interrupted, then pending runs as slots are free."""
        self._metrics = metrics
        DBOS.launch()
        # It is DBOS's own and may go with any version. A pause is then refused, and not
        # promised and not kept.
        self._database = getattr(self._dbos, "_sys_db", None)
        self._can_pause = hasattr(self._database, "_claim_gate")
        if self._can_pause:
            self._database._claim_gate = self._gate
        self._started.set()
        self._take_over()
        self._register()
        threading.Thread(target=self._pace, name="orbit-pacer", daemon=True).start()

    def stop(self, grace_seconds: int) -> bool:
        """Start nothing more, finish what is in flight; True when all of it was."""
        self._stopping.set()
        DBOS.destroy(workflow_completion_timeout_sec=grace_seconds)
        return not self._active

    def pause(self, pipeline: str | None) -> bool:
        """Take no more pending runs of a pipeline, or of any; False where that cannot be done.

        What runs goes on. Until this process ends, or `resume`.
        """
        # The session connects before DBOS is there.
        if not self.knows(pipeline) or not (self._started.wait(START_SECONDS) and self._can_pause):
            return False
        self._pause = self._pause.pause(pipeline)
        log.info("paused: %s; what runs goes on", pipeline or "all pipelines")
        return True

    def resume(self, pipeline: str | None) -> bool:
        """Take pending runs of a pipeline, or of all, again; False where it is unknown."""
        if not self.knows(pipeline):
            return False
        self._pause = self._pause.resume(pipeline)
        log.info("resumed: %s", pipeline or "all pipelines")
        return True

    def knows(self, pipeline: str | None) -> bool:
        """Whether a command for this pipeline, or for all, concerns this worker."""
        return pipeline is None or pipeline in self._pipelines

    @property
    def in_flight(self) -> int:
        return len(self._active)

    def depths(self) -> dict[str, int]:
        """How many runs wait; nothing where there are too many to count."""
        pending = self.store.pending(MAX_DEPTH)
        return {QUEUE: pending} if pending < MAX_DEPTH else {}

    # ------------------------------------------------------------ one run

    def _make_workflow(self) -> Any:
        def orbit_pipeline(pipeline: str, value: Any, enqueued_at_ms: int) -> Outcome:
            id = DBOS.workflow_id or ""
            self._active.add(id)
            started = time.perf_counter()
            try:
                return self._run(id, pipeline, value, enqueued_at_ms)
            except BaseException as error:
                # While we are stopping, the next worker takes the run up.
                if not self._stopping.is_set():
                    duration_ms = (time.perf_counter() - started) * 1000
                    self._broken_off(id, pipeline, duration_ms, error)
                raise
            finally:
                self._active.discard(id)

        return orbit_pipeline

    def _run(self, id: str, name: str, value: Any, enqueued_at_ms: int) -> Outcome:
        assert self._metrics is not None, "runs come after start"
        started = time.perf_counter()
        wait_ms = max(time.time_ns() // 1_000_000 - enqueued_at_ms, 0)
        attempt = self.store.attempt(id)
        self._metrics.start_run(id, pipeline=name)
        steps: list[RunStep] = []
        outcome = Outcome(value=value, error=None, attempts=0, duration_ms=0.0)
        pipeline = self._pipelines.get(name)
        if pipeline is None:
            known = ", ".join(sorted(self._pipelines))
            outcome["error"] = {"type": "UnknownPipeline", "message": f"known are: {known}"}
        for step in pipeline.steps if pipeline else ():
            # A step that finished before a crash is not executed: DBOS gives its outcome.
            outcome = DBOS.run_step({"name": step.name}, execute, step, outcome["value"])
            failed = outcome["error"] is not None
            steps.append(
                RunStep(step.name, outcome["duration_ms"], not failed, outcome["attempts"])
            )
            if failed:
                break
        error = outcome["error"]
        duration_ms = (time.perf_counter() - started) * 1000
        self._metrics.record_run(
            duration_ms,
            error is None,
            pipeline=name,
            id=id,
            attempt=attempt,
            wait_ms=wait_ms,
            error=error,
            steps=steps,
        )
        if error is not None:
            log.warning("run %s of %s failed: %s: %s", id, name, error["type"], error["message"])
        return {**outcome, "duration_ms": duration_ms}

    def _broken_off(self, id: str, name: str, duration_ms: float, error: BaseException) -> None:
        """Record a run that ends here without an outcome: cancelled, or the database is away."""
        assert self._metrics is not None, "runs come after start"
        told: ErrorLike = error
        final = True
        # Cancelled while a step was under way, DBOS says the second: not ours any more.
        if isinstance(
            error, dbos_error.DBOSWorkflowCancelledError | dbos_error.DBOSWorkflowConflictIDError
        ):
            final = self.store.cancelled(id)
            why = "the run was cancelled" if final else "the run was begun anew elsewhere"
            told = {"type": "Cancelled", "message": why}
        self._metrics.record_run(duration_ms, False, pipeline=name, id=id, final=final, error=told)
        log.warning("run %s of %s was broken off: %s", id, name, error_json(told)["message"])

    # ------------------------------------------------------------ pace and recovery

    def _pace(self) -> None:
        busy = True
        while not self._stopping.wait(BUSY_LOOK_SECONDS if busy else self._poll_seconds):
            try:
                busy = self._look(busy)
            except Exception:
                # A database that is away for a moment; the next look is the retry.
                log.exception("cannot look for pending runs")

    def _look(self, busy: bool) -> bool:
        """Register the queue when there is work, unregister it when there is none."""
        now = time.monotonic()
        if now >= self._take_over_at:
            self._take_over_at = now + self._poll_seconds
            self._take_over()
        if self.store.pending(1) or self._active:
            # Another worker, out of work, may have unregistered it.
            if not busy or DBOS.retrieve_queue(QUEUE) is None:
                self._register()
            return True
        if busy:
            DBOS.delete_queue(QUEUE)
            if self.store.pending(1):  # put in between the look and the deletion
                self._register()
                return True
        return False

    def _gate(
        self,
        queue_name: str,
        partition_key: str | None,  # noqa: ARG002  # the signature is DBOS's
    ) -> list[sqlalchemy.ColumnElement[bool]]:
        """What a run must meet to be claimed; DBOS asks at each claim, in the queue's thread."""
        pause = self._pause
        if queue_name != QUEUE or pause == Pause():
            return []
        if pause.others and not pause.names:
            return [sqlalchemy.false()]
        row = self._database.tables.workflow_status.c
        # Runs that were put in before they told their pipeline are of none by name.
        name = sqlalchemy.func.coalesce(row.attributes[PIPELINE].as_string(), "")
        return [name.in_(pause.names) if pause.others else name.not_in(pause.names)]

    def _register(self) -> None:
        DBOS.register_queue(
            QUEUE,
            worker_concurrency=self._concurrency,
            polling_interval_sec=FAST_SECONDS,
            on_conflict="always_update",
        )

    def _take_over(self) -> None:
        """Put back what killed workers of this host left; DBOS does so for our own slot alone."""
        others = {run.executor_id for run in self.store.begun()} - {self._slot.executor_id}
        for executor_id in sorted(filter(None, others)):
            if not executor_id.startswith(self._slot.host_prefix):
                continue
            descriptor = self._slot.lock(executor_id)
            if descriptor is None:
                continue
            try:
                for run in self.store.begun(executor_id):
                    log.warning("taking up run %s of a worker that is gone", run.workflow_id)
                    self.store.put_back(run.workflow_id)
            finally:
                os.close(descriptor)


def _no_cancellation(record: logging.LogRecord) -> bool:
    """DBOS tells of a cancelled run by a traceback of its own inside; we by a sentence."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, dbos_error.DBOSAwaitedWorkflowCancelledError)


def _slot_directory(url: str) -> Path:
    """Beside a SQLite file; for a server in the user's state, by the database's name."""
    if url.startswith("sqlite:///"):
        return Path(url.removeprefix("sqlite:///") + ".slots")
    home = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return Path(home) / "orbit-metrics" / f"slots-{name}"
