"""
The collector: every message of every worker ends here, in memory and at once.

It decides what counts, once and only once, and keeps what the answers are made
from. Time comes in as an argument (epoch milliseconds); nothing here waits.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from orbit_rpc_schema.messages import (
    Batch,
    Connect,
    Connected,
    Detail,
    Error,
    Heartbeat,
    Record,
    Start,
    Step,
)
from orbit_rpc_schema.wire import LIMITS, MAX_AHEAD_MS, MAX_RUNNING, WORKER_LOST, as_name
from orbit_service.core import cardinality
from orbit_service.core.cardinality import Places
from orbit_service.core.checks import Refused, check_connect, check_record, mended, mended_hello
from orbit_service.core.cumulative import UNKNOWN_ERROR, Cumulative, Series
from orbit_service.core.ended import EndedRuns, Verdict
from orbit_service.core.histogram import Samples
from orbit_service.core.ledger import Ledger
from orbit_service.core.outbox import ErrorText, Key, Outbox
from orbit_service.core.recent import KEPT_MS as RECENT_MS
from orbit_service.core.recent import Column, RecentRuns
from orbit_service.core.sessions import InFlight, Session, Worker
from orbit_service.core.stats import ColumnSums, Stats
from orbit_service.core.window import LastDay, Tally

# Sessions that ended are remembered by their sequence number, so that one that
# was given up and comes back is not counted twice.
KEPT_SESSIONS = 20_000
KEPT_SESSION_MS = 24 * 3_600_000
# Names of workers that are not connected; the one that ended first goes first.
KEPT_WORKERS = 2_000
KEPT_WORKER_MS = 24 * 3_600_000
KEPT_PIPELINES = 20_000  # pairs by name alone, those of ended lives too
MAX_ERROR_TRACEBACK = 4_000  # characters that the history keeps of an error type's newest


class Collector:
    """What is known of all workers. One for a service; not thread-safe."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.workers: dict[str, Worker] = {}
        self.sessions: dict[str, Session] = {}  # the open ones
        self.on_ended: Callable[[Worker, Column], None] = lambda _worker, _column: None
        self.last_day = LastDay()
        self.ledger = Ledger()  # of all sessions there ever were
        self.faults: Counter[str] = Counter()
        self.ended_runs = EndedRuns()
        self.ended_sessions: OrderedDict[str, Session] = OrderedDict()
        self.pipelines_seen: OrderedDict[tuple[str, str], None] = OrderedDict()  # with the worker
        self.lives = 0  # begun; the number of the newest
        self.outbox = Outbox()
        self._samples = Samples()
        self.cumulative = Cumulative()
        # A life keeps the totals of all that it ran, however long ago.
        self.pairs: Places[tuple[str, str]] = Places(
            cardinality.MAX_PAIRS,
            lambda _pair: (cardinality.OTHER_WORKERS, cardinality.OTHER_PIPELINES),
            lambda pair: not self._lives(*pair),
            lambda pair: self.cumulative.let_go(pair),
        )
        self.versions: Places[Key] = Places(
            cardinality.MAX_VERSIONS, lambda key: key._replace(version=cardinality.OTHER_VERSIONS)
        )
        self.steps: Places[Key] = Places(
            cardinality.MAX_STEPS, lambda key: key._replace(step=cardinality.OTHER_STEPS)
        )
        self.errors: Places[Key] = Places(
            cardinality.MAX_ERRORS, lambda key: key._replace(error=cardinality.OTHER_ERRORS)
        )

    def become(self, other: Collector) -> None:
        """Take the other's place in everything."""
        listens = self.on_ended
        vars(self).update(vars(other))
        self.on_ended = listens

    # ------------------------------------------------------------ sessions

    def connect(self, hello: Connect, now_ms: int) -> Connected:
        """Open a session, or take it up again where it was left. Raises Refused."""
        check_connect(hello)
        ended = self.ended_sessions.get(hello.session)
        known = self.sessions.get(hello.session) or ended
        if known and known.worker != hello.worker:
            raise Refused(f"session {hello.session} belongs to worker {known.worker!r}")
        session = known or Session(hello, now_ms, connected_ms=now_ms)
        session.hello = mended_hello(hello)
        session.last_seen_ms = now_ms
        self.sessions[session.id] = session
        self.ended_sessions.pop(session.id, None)
        worker = self._worker(hello.worker, now_ms)
        answer = Connected(
            acked=session.acked, known=known is not None, node=self.node, limits=dict(LIMITS)
        )
        if hello.resume:
            # A successor sends what a dead process left: that opens no life, and does
            # not know what was running.
            return answer
        # The life of a session that had ended is over: what it does now is another.
        started_ms = now_ms if ended else min(hello.started_at, now_ms)
        if worker.open(session, started_ms, self.lives + 1):
            self.lives += 1
        # The worker knows what runs in it; what ended while it was away is in
        # the results that it is about to send. What was given up as lost stays so;
        # in a session that is new, it is a run that was delivered again.
        session.running = {}
        for start in hello.running:
            if not (known and self.ended_runs.is_lost(start.pipeline, start.id)):
                self._run_begins(session, start, now_ms)
        return answer

    def heartbeat(self, session: Session, beat: Heartbeat, now_ms: int) -> None:
        if beat.seq <= session.acked:
            return
        self._take(session, beat.seq, beat.recorded, beat.dropped, 0, now_ms)
        session.queues = beat.queues and {as_name(q): n for q, n in beat.queues.items()}
        session.oldest = {as_name(q): at for q, at in beat.oldest.items()}
        for told in beat.progress:
            run = session.running.get((told.pipeline, told.id))
            if run is not None:
                run.done = [replace(step, name=as_name(step.name)) for step in told.done]
                run.now = [as_name(name) for name in told.now]
        if beat.last_report_at is not None:
            session.last_report_ms = min(beat.last_report_at, now_ms)

    def disconnect(self, session: Session, reason: str, now_ms: int) -> None:
        """The session said goodbye."""
        self._end(session, reason, "the worker left before the run ended", now_ms, lost=False)

    def lose(self, session: Session, now_ms: int) -> None:
        """The session's process is gone, or did not come back."""
        session.was_lost = True
        self._end(session, "lost", "the worker was killed or vanished", now_ms, lost=True)

    def reset(self, session: Session, now_ms: int) -> None:
        """The worker's life ends and another begins."""
        self.lives += 1
        self.workers[session.worker].reset(now_ms, self.lives)

    # ------------------------------------------------------------ results

    def record(self, session: Session, message: Record, now_ms: int) -> None:
        """Count a message of results, whole and once. Raises Refused, counting it as such."""
        if message.seq <= session.acked:
            return
        worker = self.workers[session.worker]
        runs = sum(len(batch.duration_us) for batch in message.batches)
        try:
            check_record(message, worker.series_of(session))
        except Refused:
            self.refuse(session, message.seq, message.recorded, message.dropped, runs, now_ms)
            raise
        self._take(session, message.seq, message.recorded, message.dropped, runs, now_ms)
        for start in message.started:
            self._run_begins(session, start, now_ms)
        for taken_back in message.withdrawn:
            session.running.pop((taken_back.pipeline, taken_back.id), None)
        for number, batch in enumerate(message.batches):
            self._count(worker, session, batch, f"{session.id[:8]}.{message.seq}.{number}", now_ms)

    def refuse(
        self,
        session: Session,
        seq: int,
        recorded: int,
        dropped: dict[str, int],
        runs: int | None,
        now_ms: int,
        reason: str = "invalid",
    ) -> None:
        """A message that cannot be counted consumes its number; None runs: by its totals."""
        if seq <= session.acked:
            return
        if runs is None:
            # Totals that could not be read either stand where they stood.
            recorded = max(recorded, session.recorded)
            dropped = {**session.dropped, **dropped}
            # Without the message before it there is nothing to subtract from.
            runs = session.unheard(recorded, dropped) if session.acked or seq == 1 else 0
        self._take(session, seq, recorded, dropped, runs, now_ms)
        for ledger in (self.ledger, session.ledger):
            ledger.refuse(reason, runs)

    def _take(
        self,
        session: Session,
        seq: int,
        recorded: int,
        dropped: dict[str, int],
        runs: int,
        now_ms: int,
    ) -> None:
        """Take a message's number and totals; `runs` are the results that it carries itself."""
        session.last_seen_ms = now_ms
        self.workers[session.worker].last_seen_ms = now_ms
        if dropped:
            dropped = {as_name(reason): count for reason, count in dropped.items()}
        if not session.acked and seq > 1:
            self._forget_the_lost_past(session, recorded - sum(dropped.values()) - runs)
        for ledger in (self.ledger, session.ledger):
            ledger.recorded += recorded - session.recorded
        if dropped or session.dropped:
            self._take_dropped(session, dropped)
        session.acked = seq
        session.recorded = recorded

    def _take_dropped(self, session: Session, dropped: dict[str, int]) -> None:
        # A reason that is no longer named stands at zero: what seemed dropped was counted.
        changes = {
            reason: dropped.get(reason, 0) - session.dropped.get(reason, 0)
            for reason in dropped.keys() | session.dropped.keys()
        }
        for ledger in (self.ledger, session.ledger):
            for reason, change in changes.items():
                ledger.drop(reason, change)
        if any(changes.values()):
            self.cumulative.saw_dropped(self.ledger.dropped)
        session.dropped = dropped

    def _forget_the_lost_past(self, session: Session, results: int) -> None:
        """What the session recorded before and did not drop was counted by a lost state.

        Its life begins where the counts do: a rate of today's runs over ten days
        that are not known would be wrong.
        """
        if results <= 0:
            return
        session.recorded = results
        for ledger in (self.ledger, session.ledger):
            ledger.forgotten += results
        life = self.workers[session.worker].life
        if life is not None and life.opened_by == session.id:
            life.started_ms = max(life.started_ms, session.connected_ms)

    def _count(self, worker: Worker, session: Session, batch: Batch, key: str, now_ms: int) -> None:
        at_ms = batch.at if batch.at <= now_ms + MAX_AHEAD_MS else now_ms
        failed = set(batch.failed)
        durations: Sequence[int | None] = batch.duration_us
        timed = batch.duration_us
        failed_in_time = len(failed)
        details: dict[int, Detail] = {}
        counted: Stats | None = None  # besides the runs that have durations
        if batch.details:
            details = {i: mended(detail) for i, detail in batch.details.items()}
            counted = Stats()
            passed_over = self._passed_over(session, counted, batch.pipeline, details, now_ms)
            if passed_over:
                kept = [i for i in range(len(durations)) if i not in passed_over]
                durations = [durations[i] for i in kept]
                failed = {new for new, old in enumerate(kept) if old in failed}
                details = {new: details[old] for new, old in enumerate(kept) if old in details}
            untimed = {i for i, detail in details.items() if detail.untimed}
            if passed_over or untimed:
                durations = [None if i in untimed else d for i, d in enumerate(durations)]
                timed = [duration for duration in durations if duration is not None]
            failed_in_time = len(failed - untimed)
            for i in untimed:
                counted.add_untimed(at_ms, failed=i in failed)
            counted.add_waits([d.wait_us for d in details.values() if d.wait_us is not None])
        sums = ColumnSums.of(timed, failed_in_time, at_ms) if timed else None
        if sums is None and (counted is None or not (counted.attempts or counted.retries)):
            return
        window, series, rows = self._rows(worker, session, batch.pipeline, at_ms, now_ms)
        if counted is not None:
            for stats in rows:
                stats.merge(counted)
        if sums is not None:
            for stats in rows:
                stats.count(sums)
            self._samples.add(timed, [stats.histogram for stats in rows])
        if not durations:
            return
        if details:
            typed = self._count_details(window, series, details, failed, at_ms, now_ms)
        else:
            typed = 0
        if len(failed) > typed:
            self.cumulative.add_error(series, UNKNOWN_ERROR, len(failed) - typed)
        self._counted(session, len(durations))
        tally = Tally(len(durations), len(failed), len(timed), sums.total_us if sums else 0)
        self.last_day.add(tally, at_ms, now_ms)
        self._remember(worker, Column(key, batch.pipeline, at_ms, durations, failed, details))

    def _count_details(
        self,
        window: Key,
        series: Series,
        details: dict[int, Detail],
        failed: set[int],
        at_ms: int,
        now_ms: int,
    ) -> int:
        """Count steps and errors; of how many failures the type is known."""
        typed = 0
        steps: dict[str, list[Step]] = {}
        for i, detail in details.items():
            for step in detail.steps:
                if step.name in steps:
                    steps[step.name].append(step)
                else:
                    steps[step.name] = [step]
            if detail.error is not None and i in failed:
                self._add_error(window, series, detail.error, at_ms, now_ms)
                typed += 1
        for name, column in steps.items():
            part = Key(window.worker, window.pipeline, name, window.version)
            part = self.steps.place(part, now_ms)
            durations = [step.duration_us for step in column]
            sums = ColumnSums.of(durations, sum([step.failed for step in column]), at_ms)
            retries = sum([step.attempts for step in column]) - len(column)
            rows = (self.cumulative.step(series, part.step), self.outbox.stats(part, at_ms))
            for stats in rows:
                stats.count(sums)
                stats.attempts += retries
                stats.retries += retries
            self._samples.add(durations, [stats.histogram for stats in rows])
        return typed

    def _add(
        self,
        worker: Worker,
        session: Session,
        pipeline: str,
        counted: Stats,
        at_ms: int,
        now_ms: int,
    ) -> tuple[Key, Series]:
        """Add to every row that runs of this pipeline count in."""
        key, series, rows = self._rows(worker, session, pipeline, at_ms, now_ms)
        for stats in rows:
            stats.merge(counted)
        return key, series

    def _rows(
        self, worker: Worker, session: Session, pipeline: str, at_ms: int, now_ms: int
    ) -> tuple[Key, Series, tuple[Stats, Stats, Stats]]:
        """Where runs count: the life's totals, all that ever was, and the window."""
        name, pipeline = self.pairs.place((worker.name, pipeline), now_ms)
        life = self._known(worker.series_of(session), worker, pipeline)
        series = self.cumulative.of((name, pipeline), now_ms)
        version = session.hello.version or ""
        key = Key(name, pipeline, "", version)
        if version:
            key = self.versions.place(key, now_ms)
        return key, series, (life, series.runs, self.outbox.stats(key, at_ms))

    def _known(self, series: dict[str, Stats], worker: Worker, pipeline: str) -> Stats:
        stats = series.get(pipeline)
        if stats is None:
            stats = series[pipeline] = Stats()
            self.pipelines_seen[worker.name, pipeline] = None
            while len(self.pipelines_seen) > KEPT_PIPELINES:
                self.pipelines_seen.popitem(last=False)
        return stats

    def _add_error(
        self, window: Key, series: Series, error: Error, at_ms: int, now_ms: int
    ) -> None:
        key = self.errors.place(window._replace(error=error.type), now_ms)
        self.cumulative.add_error(series, key.error)
        self.outbox.stats(key, at_ms).add_untimed(at_ms, failed=True)
        traceback = error.traceback and error.traceback[-MAX_ERROR_TRACEBACK:]
        self.outbox.add_error(key, ErrorText(at_ms, error.message, traceback))

    def _passed_over(
        self,
        session: Session,
        counted: Stats,
        pipeline: str,
        details: dict[int, Detail],
        now_ms: int,
    ) -> set[int]:
        """The indexes of results that end no run, each counted as what it is."""
        passed_over = set()
        for i, detail in sorted(details.items()):
            if detail.id is None:
                verdict = Verdict.RUN if detail.final else Verdict.ATTEMPT
            else:
                session.running.pop((pipeline, detail.id), None)
                if detail.began and self._begins_again(session, pipeline, detail.id):
                    counted.retries += 1
                verdict = self.ended_runs.judge(
                    pipeline, detail.id, detail.attempt, detail.final, now_ms
                )
            match verdict:
                case Verdict.RUN:
                    continue
                case Verdict.RERUN:
                    counted.retries += 1
                    continue
                case Verdict.ATTEMPT:
                    counted.add_unfinished_attempt()
                    self._counted(session, 1)
                case Verdict.REPEATED:
                    for ledger in (self.ledger, session.ledger):
                        ledger.repeated += 1
                case Verdict.LATE:
                    for ledger in (self.ledger, session.ledger):
                        ledger.late += 1
            passed_over.add(i)
        return passed_over

    def _counted(self, session: Session, results: int) -> None:
        self.ledger.counted += results
        session.ledger.counted += results

    def _run_begins(self, session: Session, start: Start, now_ms: int) -> None:
        if len(session.running) >= MAX_RUNNING:
            self.faults["running"] += 1
            return
        if self._begins_again(session, start.pipeline, start.id):
            worker = self.workers[session.worker]
            self._add(worker, session, start.pipeline, Stats(retries=1), now_ms, now_ms)
        session.running[start.pipeline, start.id] = InFlight(
            start.id, start.pipeline, start.started_at, start.attempt
        )

    def _begins_again(self, session: Session, pipeline: str, id: str) -> bool:
        """Whether a run that had ended begins anew with this start.

        What a session tells that was given up as lost is of before its loss: its starts
        are those of the runs that were lost with it, and no new ones.
        """
        if session.was_lost and self.ended_runs.is_lost(pipeline, id):
            return False
        return self.ended_runs.start(pipeline, id)

    # ------------------------------------------------------------ endings

    def _end(self, session: Session, reason: str, why: str, now_ms: int, *, lost: bool) -> None:
        worker = self.workers[session.worker]
        for run in session.running.values():
            self._lose_run(worker, session, run, why, now_ms)
        session.running = {}
        session.last_seen_ms = worker.last_seen_ms = now_ms
        # What is kept for a return is its number and its totals.
        session.hello = replace(session.hello, running=[], queues=[])
        session.queues, session.oldest = None, {}
        del self.sessions[session.id]
        worker.close(session, reason, now_ms, lost=lost)
        self.ended_sessions[session.id] = session
        if len(self.ended_sessions) > KEPT_SESSIONS:
            self.ended_sessions.popitem(last=False)

    def _lose_run(
        self, worker: Worker, session: Session, run: InFlight, why: str, now_ms: int
    ) -> None:
        if not self.ended_runs.lose(run.pipeline, run.id, run.attempt, now_ms):
            return  # its end was told by another process, such as a pool's parent
        counted = Stats()
        counted.add_untimed(now_ms, failed=True)
        key, series = self._add(worker, session, run.pipeline, counted, now_ms, now_ms)
        error = Error(type=WORKER_LOST, message=why)
        self._add_error(key, series, error, now_ms, now_ms)
        self.last_day.add(Tally(runs=1, failed=1), now_ms, now_ms)
        detail = Detail(id=run.id, attempt=run.attempt or 1, error=error)
        self._remember(
            worker, Column(run.id, run.pipeline, now_ms, [None], {0}, {0: detail}, run.started_ms)
        )

    def _remember(self, worker: Worker, column: Column) -> None:
        worker.recent.add(column)
        self.on_ended(worker, column)

    # ------------------------------------------------------------ bounds

    def _worker(self, name: str, now_ms: int) -> Worker:
        worker = self.workers.get(name)
        if worker is None:
            worker = self.workers[name] = Worker(name, now_ms, self.node)
        worker.last_seen_ms = now_ms
        return worker

    def _lives(self, worker_name: str, pipeline: str) -> bool:
        worker = self.workers.get(worker_name)
        life = None if worker is None else worker.life
        return life is not None and pipeline in life.series

    def places(self) -> dict[str, Places[Any]]:
        """Places for names, by what they are names of."""
        return {
            "pipelines": self.pairs,
            "versions": self.versions,
            "steps": self.steps,
            "error types": self.errors,
        }

    def forget(self, now_ms: int) -> None:
        """Let go of what ended long ago; to be called now and then."""
        ended = self.ended_sessions
        while ended and next(iter(ended.values())).last_seen_ms <= now_ms - KEPT_SESSION_MS:
            ended.popitem(last=False)
        gone = [worker for worker in self.workers.values() if worker.life is None]
        for worker in gone:
            if worker.last_seen_ms <= now_ms - RECENT_MS:
                worker.recent = RecentRuns()
        gone.sort(key=lambda worker: worker.last_seen_ms, reverse=True)
        for place, worker in enumerate(gone):
            if place >= KEPT_WORKERS or worker.last_seen_ms <= now_ms - KEPT_WORKER_MS:
                del self.workers[worker.name]

    # ------------------------------------------------------------ questions

    def select(self, name: str | None) -> Iterable[Worker]:
        """All workers, or the one of this name."""
        if name is None:
            return self.workers.values()
        return filter(None, [self.workers.get(name)])

    def has_seen(self, worker: Worker, pipeline: str) -> bool:
        """Whether this worker has run the pipeline, in this life or an earlier one."""
        alive = worker.life is not None and pipeline in worker.life.series
        return alive or (worker.name, pipeline) in self.pipelines_seen

    def workers_connected(self) -> int:
        return sum(worker.life is not None for worker in self.workers.values())

    def running(self) -> Iterator[tuple[Session, InFlight]]:
        """Every run that is in flight, with its session."""
        for session in self.sessions.values():
            for run in session.running.values():
                yield session, run
