"""
MetricsClient: the object behind the functions of `orbit_worker`.

A guest in someone else's process. Recording appends to a list and returns; it
raises for a wrong type and for nothing else. What it cannot count it counts as
refused, because inside the host's own try block an exception from here would
turn a success into a failure.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import logging
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orbit_rpc_schema.caller import CallFailed, call
from orbit_rpc_schema.wire import (
    DEFAULT_PIPELINE,
    MAX_DURATION_US,
    MAX_SOCKET_PATH,
    Json,
    as_name,
    connect_params,
    default_socket_path,
    default_worker_name,
    is_name,
)
from orbit_worker.buffer import (
    MAX_OPEN,
    Buffer,
    Entry,
    Refused,
    Result,
    Started,
    Withdrawn,
    start_json,
)
from orbit_worker.details import ErrorLike, RunStep, clamped, make_detail, steps_json
from orbit_worker.host import Control, QueueDepths
from orbit_worker.metrics import DerivedMetrics, MetricsSnapshot, snapshot_of
from orbit_worker.reporting import Reporter
from orbit_worker.sender import Sender
from orbit_worker.tracking import Tracker

if TYPE_CHECKING:
    from orbit_worker.adoption import Adopter
    from orbit_worker.spool import Spool

MAX_DURATION_MS = MAX_DURATION_US / 1000
MAX_KNOWN_NAMES = 10_000
ANSWER_SECONDS = 1.0
EXIT_SECONDS = 2.0
FORK_SECONDS = 1.0  # how long a fork waits for the host's own callback
REPORT_EVERY_MS = 60_000
SHORTEST_REPORT_MS = 1_000

log = logging.getLogger("orbit_worker")

_clients: weakref.WeakSet[MetricsClient] = weakref.WeakSet()

F = TypeVar("F", bound=Callable[..., None])


def _plain_first(record_run: F) -> F:
    """Take the plain run, as nearly all are, by a short way; whatever else goes to `record_run`.

    A call that names none of the rare arguments does not pay for their defaults.
    """

    @functools.wraps(record_run)
    def plain(
        self: MetricsClient,
        duration_ms: float,
        success: bool,
        *,
        pipeline: str = DEFAULT_PIPELINE,
        **details: Any,
    ) -> None:
        try:
            is_plain = (
                not details
                and pipeline in self._names
                and 0.0 <= duration_ms <= MAX_DURATION_MS
                and (success is True or success is False)
            )
        except (ArithmeticError, TypeError):
            is_plain = False  # the long way tells them apart
        waiting = self._buffer.open
        if is_plain and len(waiting) <= MAX_OPEN:
            waiting.append((pipeline, duration_ms, success))
            if self._sender.parked:
                self._sender.nudge()
        else:
            record_run(self, duration_ms, success, pipeline=pipeline, **details)

    return plain  # type: ignore[return-value]  # the same signature, by wraps


class MetricsClient:
    """Records runs of one worker and asks for its numbers.

    Everything left out comes from the environment: ORBIT_SOCKET,
    ORBIT_WORKER_NAME, ORBIT_WORKER_VERSION, ORBIT_SPOOL_DIR, ORBIT_DISABLED,
    ORBIT_STRICT, METRICS_INTERVAL. Nothing is opened or started before the first run. Safe to
    share between threads, and across a fork: the child gets a session of its own.

    With a `spool_dir` what waits is also on the disk, and the next process of the
    same worker sends what this one leaves behind.

    `queue_depths` is asked at each heartbeat (every 10 s) how much waits in each
    queue. `on_control` gets an action (pause, resume, restart) and a pipeline or
    None, in a thread of the client, and returns whether it was done, None for an
    action that it does not know.
    """

    def __init__(
        self,
        *,
        socket: str | os.PathLike[str] | None = None,
        worker: str | None = None,
        version: str | None = None,
        slots: int | None = None,
        queue_depths: QueueDepths | None = None,
        on_control: Control | None = None,
        spool_dir: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.socket = Path(socket) if socket is not None else default_socket_path(environ)
        self.worker = as_name(worker) if worker is not None else default_worker_name(environ)
        spool_dir = spool_dir or environ.get("ORBIT_SPOOL_DIR") or None
        self.spool_dir = None if spool_dir is None else _absolute(Path(spool_dir))
        self.version = version or environ.get("ORBIT_WORKER_VERSION") or None
        self.framework: str | None = None
        self.slots = slots
        self._given = slots, queue_depths
        self.enabled = environ.get("ORBIT_DISABLED", "") not in ("1", "true")
        self._strict = environ.get("ORBIT_STRICT", "") in ("1", "true")
        self._interval_ms = environ.get("METRICS_INTERVAL")
        self._queue_depths = queue_depths
        self._on_control = on_control
        self._reporter: Reporter | None = None
        self._said_refused = False
        self._begin_session()
        _clients.add(self)
        if self.enabled and len(os.fsencode(self.socket)) > MAX_SOCKET_PATH:
            log.error(
                "the path %s is longer than a socket's may be (%d bytes): set ORBIT_SOCKET",
                self.socket,
                MAX_SOCKET_PATH,
            )

    def _begin_session(self) -> None:
        self.session = os.urandom(16).hex()  # as uuid4 makes one, without its module
        self._started_at_ms = _now_ms()
        self._buffer = Buffer()
        self._spool, adopter = self._make_spool()
        self._sender = Sender(
            self.socket,
            self._buffer,
            self._hello,
            self._last_report_at_ms,
            self._queue_depths,
            self._on_control,
            self._spool,
            adopter,
        )
        self._ids, self._prefix = itertools.count(1), f"{self.session[:12]}-"
        self._will_leave = False
        # Learnt anew in a forked child: with its first name it prepares to leave.
        self._names: set[str] = set()

    def _make_spool(self) -> tuple[Spool | None, Adopter | None]:
        if self.spool_dir is None or not self.enabled:
            return None, None
        # As few have a spool, and a quarter of what importing this package would cost.
        from orbit_worker.adoption import Adopter
        from orbit_worker.spool import Spool

        buffer = self._buffer
        return (
            Spool(self.spool_dir, self.worker, self.session, buffer, self._hello),
            Adopter(
                self.spool_dir,
                self.worker,
                self.socket,
                # The next step takes it up; at the latest the next heartbeat's.
                dropped=lambda reason, results: buffer.open.append(Refused(reason, results)),
            ),
        )

    def describe(
        self,
        *,
        version: str | None = None,
        framework: str | None = None,
        slots: int | None = None,
        queue_depths: QueueDepths | None = None,
    ) -> None:
        """Say of this process what its constructor was not told; for integrations.

        What is left out stays. `slots` and `queue_depths` are of this process alone: a
        forked child tells of neither, or a pool would count them once a child. A fork
        waits while `queue_depths` is asked, for a second at most.
        Told before the session connects, or with its next connection.
        """
        self.version = version or self.version
        self.framework = framework or self.framework
        self.slots = slots or self.slots
        if queue_depths is not None:
            self._queue_depths = self._sender.host.queue_depths = queue_depths

    # ------------------------------------------------------------ recording

    @_plain_first
    def record_run(
        self,
        duration_ms: float | None,
        success: bool,
        *,
        pipeline: str = DEFAULT_PIPELINE,
        queue: str | None = None,
        id: str | None = None,
        attempt: int = 1,
        final: bool = True,
        wait_ms: float | None = None,
        error: ErrorLike | None = None,
        steps: Sequence[RunStep] = (),
    ) -> None:
        """Count a run that has ended, or with `final=False` an attempt that will be retried.

        A `duration_ms` of None is for a run that nobody measured, as when its process
        was killed or it could not begin: it counts, and has no duration.

        Never blocks. Raises TypeError for an argument of a wrong type. A negative
        or non-finite number is counted as refused and logged once; it raises
        ValueError under ORBIT_STRICT=1 alone.
        """
        if pipeline not in self._names and not self._learn(pipeline):
            return
        try:
            # None raises, and is told apart where it does.
            counts = 0 <= duration_ms <= MAX_DURATION_MS  # type: ignore[operator]
        except ArithmeticError:  # a Decimal that is not a number
            counts = False
        except TypeError:
            if duration_ms is not None:
                raise
            counts = True
        if not counts:
            self._refuse("duration", f"a duration of {duration_ms} ms")
            return
        if success is not True and success is not False:
            raise TypeError(f"success is a bool, not {type(success).__name__}")
        if (
            duration_ms is not None
            and queue is None
            and id is None
            and wait_ms is None
            and error is None
            and attempt == 1
            and final
            and not steps
        ):
            self._put((pipeline, duration_ms, success))
        else:
            self._record_detailed(
                pipeline, duration_ms, success, queue, id, attempt, final, wait_ms, error, steps
            )

    def track(
        self,
        pipeline: str = DEFAULT_PIPELINE,
        *,
        id: str | None = None,
        attempt: int = 1,
        queue: str | None = None,
        wait_ms: float | None = None,
    ) -> Tracker:
        """A run as a block or a function; see `orbit_worker.track`."""
        if not isinstance(pipeline, str):
            raise TypeError(f"pipeline is a str, not {type(pipeline).__name__}")
        return Tracker(
            lambda: self,
            pipeline,
            id=id,
            attempt=attempt,
            queue=queue,
            wait_ms=wait_ms,
        )

    def start_run(
        self, id: str, *, pipeline: str = DEFAULT_PIPELINE, attempt: int | None = None
    ) -> None:
        """Announce a run that begins, so that it fails as WorkerLost if this process is killed.

        It ends with a record_run of the same id and pipeline. `track` does both. Where
        another process may record the end too, `attempt` keeps the two from counting twice.
        """
        if self._learn(pipeline):
            # A start that makes no sense would have a whole message refused.
            self._begin_run(pipeline, as_name(id), None if attempt is None else clamped(attempt))

    def withdraw_run(self, id: str, *, pipeline: str = DEFAULT_PIPELINE) -> None:
        """Take back a start: the run was not executed after all, and counts as nothing."""
        id = as_name(id)
        if self.enabled and self._buffer.running.pop((pipeline, id), None) is not None:
            self._put(Withdrawn(pipeline, id))

    def flush(self, timeout: float = 5.0) -> bool:
        """Send what waits; True when the service has acknowledged everything in `timeout` s.

        With a spool also when it is safe there, because the service is away or silent.
        """
        return not self.enabled or self._sender.flush(timeout)

    def reset_metrics(self, timeout: float = ANSWER_SECONDS) -> bool:
        """End this worker's life and begin another at zero; False when the service is not there."""
        if not self.enabled:
            return False
        answer = self._sender.call("worker.reset", {}, timeout)
        return answer is not None and "result" in answer

    def close(self, timeout: float = EXIT_SECONDS) -> bool:
        """Flush, say goodbye and stop; True when nothing was left behind."""
        self.stop_metrics_reporting()
        if not self.enabled:
            return True
        safe = self._sender.close(timeout, "exit")
        if safe and self._spool is None:
            return True
        waiting = sum(1 for _ in self._buffer.results()) + self._buffer.unacknowledged
        where = f"waiting in {self._spool.path}" if safe and self._spool is not None else "waiting"
        if waiting or not safe:
            log.warning(
                "left without an answer of the metrics service; results %s: %d", where, waiting
            )
        return safe

    # ------------------------------------------------------------ reading

    def get_metrics(self) -> DerivedMetrics:
        """This worker's numbers within 1 s, what was just recorded included; zeroes if it fails."""
        return self.get_metrics_snapshot().derived

    async def get_metrics_async(self) -> DerivedMetrics:
        """`get_metrics` without holding up the event loop."""
        import asyncio  # half of what importing this package would cost

        return await asyncio.to_thread(self.get_metrics)

    def get_metrics_snapshot(self) -> MetricsSnapshot:
        """Raw counters, what is derived from them, and when; within 1 s, zeroes without service."""
        return self._snapshot() or MetricsSnapshot()

    def _snapshot(self) -> MetricsSnapshot | None:
        if not self.enabled:
            return None
        deadline = time.monotonic() + ANSWER_SECONDS
        if not self._buffer.empty:
            self._sender.flush(ANSWER_SECONDS / 2)
        try:
            answer = call(
                self.socket,
                "worker.snapshot",
                {"worker": self.worker},
                timeout=max(deadline - time.monotonic(), 0.1),
            )
            return snapshot_of(answer)
        except (OSError, CallFailed, AttributeError, KeyError, TypeError):
            return None  # away, or another program that answers something else

    # ------------------------------------------------------------ reporting

    def start_metrics_reporting(self, interval_ms: int | None = None) -> None:
        """Log "Worker Metrics Report" every `interval_ms`; None: METRICS_INTERVAL, else a minute.

        A second call replaces the first. Connects this process as a worker.
        """
        self.stop_metrics_reporting()
        if not self.enabled:
            return
        interval = _interval(self._interval_ms) if interval_ms is None else interval_ms
        if interval < SHORTEST_REPORT_MS:
            raise ValueError(f"interval_ms is at least {SHORTEST_REPORT_MS}, not {interval}")
        self.connect()
        self._reporter = Reporter(self._report_metrics, interval)

    def stop_metrics_reporting(self) -> None:
        if self._reporter is not None:
            self._reporter.stop()
            self._reporter = None

    def connect(self) -> None:
        """Become a worker now, before the first run: its life begins, its heartbeat starts."""
        if self.enabled:
            self._prepare_to_leave()
            self._sender.start()

    def _report_metrics(self) -> DerivedMetrics | None:
        snapshot = self._snapshot()
        return None if snapshot is None else snapshot.derived

    # ------------------------------------------------------------ inside

    def _begin_run(
        self, pipeline: str, id: str | None, attempt: int | None = None
    ) -> tuple[str, int]:
        """Announce a run under this id, or under one of our own; the id and the start."""
        id = f"{self._prefix}{next(self._ids)}" if id is None else as_name(id)
        now = _now_ms()
        if self.enabled:
            started = Started(pipeline, now, id, attempt)
            self._buffer.running[pipeline, id] = started
            if not self._will_leave:
                self._prepare_to_leave()
            self._put(started)
        return id, now

    def _follow_run(self, pipeline: str, id: str, progress: Callable[[], Json]) -> None:
        """Tell with each heartbeat how far this run is, until it ends."""
        if self.enabled:
            self._buffer.progress[pipeline, id] = progress

    def _end_run(
        self, pipeline: str, duration_ms: float, success: bool, *, queue: str | None, detail: Json
    ) -> None:
        if not self.enabled:
            return
        run = pipeline, detail["id"]
        self._buffer.running.pop(run, None)
        self._buffer.progress.pop(run, None)
        self._put(Result(pipeline, duration_ms, success, queue, detail))

    def _record_detailed(
        self,
        pipeline: str,
        duration_ms: float | None,
        success: bool,
        queue: str | None,
        id: str | None,
        attempt: int,
        final: bool,
        wait_ms: float | None,
        error: ErrorLike | None,
        steps: Sequence[RunStep],
    ) -> None:
        for name, value, kind in (
            ("queue", queue, str),
            ("id", id, str),
            ("wait_ms", wait_ms, (int, float)),
            ("error", error, (BaseException, str, Mapping)),
        ):
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} cannot be a {type(value).__name__}")
        if type(attempt) is not int:
            raise TypeError(f"attempt is an int, not {type(attempt).__name__}")
        if not all(isinstance(step, RunStep) for step in steps):
            raise TypeError("steps are RunStep")
        if attempt < 1 or attempt > 1_000_000:
            self._refuse("attempt", f"an attempt of {attempt}")
            return
        if wait_ms is not None and not math.isfinite(wait_ms):
            wait_ms = None
        detail = make_detail(
            id=id,
            attempt=attempt,
            final=bool(final),
            untimed=duration_ms is None,
            wait_ms=wait_ms,
            error=error,
            steps=steps_json(steps),
        )
        if id is not None:
            self._buffer.running.pop((pipeline, detail["id"]), None)
        queue = None if queue is None else as_name(queue)
        self._put(Result(pipeline, duration_ms or 0, success, queue, detail))

    def _put(self, entry: Entry) -> None:
        buffer, sender = self._buffer, self._sender
        if len(buffer.open) > MAX_OPEN and not sender.make_room():
            # A run that is not announced is still counted; one that is not taken back
            # seems to go on until the session connects again.
            if not isinstance(entry, Started | Withdrawn):
                buffer.overflow()
            return
        buffer.open.append(entry)
        if sender.parked:
            sender.nudge()

    def _learn(self, pipeline: str) -> bool:
        """Check a name once; False when nothing is to be recorded at all."""
        if not isinstance(pipeline, str):
            raise TypeError(f"pipeline is a str, not {type(pipeline).__name__}")
        if not self.enabled:
            return False
        self._prepare_to_leave()
        if not is_name(pipeline):
            self._refuse("name", f"a pipeline name of {len(pipeline)} characters")
            return False
        if len(self._names) < MAX_KNOWN_NAMES:
            self._names.add(pipeline)
        return True

    def _refuse(self, reason: str, what: str) -> None:
        if self._strict:
            raise ValueError(f"{what} cannot be recorded")
        if not self._said_refused:
            self._said_refused = True
            log.warning("%s cannot be recorded; it is counted as refused, as are others", what)
        self._put(Refused(reason))

    def _hello(self) -> Json:
        return connect_params(
            session=self.session,
            worker=self.worker,
            started_at_ms=self._started_at_ms,
            version=self.version,
            framework=self.framework,
            slots=self.slots,
            running=[start_json(run) for run in list(self._buffer.running.values())],
        )

    def _last_report_at_ms(self) -> int | None:
        return None if self._reporter is None else self._reporter.last_report_at_ms

    def _prepare_to_leave(self) -> None:
        """Once a process: what is not acknowledged is sent when the process ends."""
        if self._will_leave:
            return
        self._will_leave = True
        util = sys.modules.get("multiprocessing.util")
        process = sys.modules.get("multiprocessing.process")
        if util is not None and process is not None and process.parent_process() is not None:
            # Children of multiprocessing leave by os._exit, past atexit, but they
            # run their finalizers.
            util.Finalize(None, self.close, exitpriority=100)
        else:
            atexit.register(self.close)

    def _after_fork(self) -> None:
        self._sender.abandon()
        atexit.unregister(self.close)
        reporting, self._reporter = self._reporter, None
        # What was described is the parent's, and told by it; what the constructor was given
        # is the program's own word, as of a daemon that forks once and leaves.
        self.slots, self._queue_depths = self._given
        self._begin_session()
        if reporting is not None:
            log.debug("the periodic report stays with the parent process")


def _absolute(path: Path) -> Path:
    """The host may change its directory later; where it has none, the path as it is."""
    try:
        return path.absolute()
    except OSError:
        return path


def _interval(text: str | None) -> int:
    """METRICS_INTERVAL in milliseconds; the client never raises over its environment."""
    if text is None:
        return REPORT_EVERY_MS
    if text.isdecimal() and len(text) < 10 and int(text) >= SHORTEST_REPORT_MS:
        return int(text)
    log.warning("METRICS_INTERVAL=%s is not a number of at least 1000; 60000 is used", text[:20])
    return REPORT_EVERY_MS


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


_held = threading.local()  # what the thread that forks holds: locks of clients


def _before_fork() -> None:
    """Let a thread that asks the host for queue depths come out, for a second at most."""
    until = time.monotonic() + FORK_SECONDS
    asking = [client._sender.host.asking for client in list(_clients)]
    _held.locks = [a for a in asking if a.acquire(timeout=max(until - time.monotonic(), 0))]


def _after_fork_in_parent() -> None:
    for asking in _held.locks:
        asking.release()


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._after_fork()


if os.environ.get("ORBIT_SPOOL_DIR"):
    # The first run may find no descriptor free for an import, and must not raise.
    import orbit_worker.adoption  # noqa: F401

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
